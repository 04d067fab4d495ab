"""The lease from the host's side: launching stays, publishing slots, seeing completions, asking to leave.

Everything that crosses the bus is in one pinned block: control words, slots, records, updates. The engine reads slots,
the host reads records; no word is written by both. A stay is launched when the last one is over and slots are
published beyond its final tail: looked at after every publish, in every wait, and by a keeper thread.

Owns: the ring, the protocol of a stay (modelled in tests/test_lease_model.py). Leaves to others: what slots mean
(engine), the device's side (kernel/resident.cu).
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.cuda import abi, caller
from vyre.engines.cuda.driver import Device
from vyre.engines.cuda.memory import Arena, array_at, view
from vyre.errors import DeviceLost, SessionClosed, WaitTimeout
from vyre.program.opcodes import FaultCode
from vyre.ring.layout import (
    MAX_CAPACITY,
    RECORD_BYTES,
    RECORD_DTYPE,
    SEQUENCE_NONE,
    SESSION_WORDS,
    SLOT_BYTES,
    SLOT_DTYPE,
    Opcode,
    Status,
)
from vyre.store import Store

_FIELDS: Final = {name: abi.CONTROL.fields[name][1] // 8 for name in abi.CONTROL.names or ()}  # type: ignore[index]
_TAIL, _FENCES, _UPDATES, _STOP = (_FIELDS[n] for n in ("tail", "fences", "updates", "stop"))
_LEFT, _FINAL, _UNFINISHED, _BROKEN, _APPLIED = (
    _FIELDS[n] for n in ("left", "final_tail", "unfinished", "broken", "applied")
)
_FENCE: Final = int(Opcode.BATCH_FENCE)
_EMPTY: Final = int(Status.EMPTY)
_PUBLISHED, _GENERATION, _COUNTED = caller.R_PUBLISHED // 8, caller.R_GENERATION // 8, caller.R_FENCES // 8
_HELD: Final = caller.R_HELD // 8
_LAUNCHED: Final = abi.LAUNCH.fields["generation"][1] // 8  # type: ignore[index]
THREADS: Final = abi.WARP * abi.WARPS_PER_BLOCK
KEEPER_S: Final = 0.005
CLOSE_S: Final = 2.0
"""How long closing waits for threads that wait for records; each looks every millisecond."""
SPINS: Final = 20_000
"""Looks of a waiting thread, about two milliseconds, before it begins to sleep in between."""
_LOST_FIX: Final = "open a session in a new process; this process's GPU context cannot be trusted"


class Residency:
    """One ring, one kernel, at most one stay at a time.

    Args:
        device: with the kernel loaded.
        blocks: of the resident grid.
        shared_bytes: dynamic shared memory of a block.
        capacity: slots, a power of two.
        grace_s: how long a stay waits for work before it leaves.
        stay_s: how long a stay lasts at most; what others in the process wait for at most.
        resident: False: each stay takes what is published when it starts and ends when that is done.
        hard_s: after this the device ends any wait by itself and the engine is lost.
    """

    def __init__(
        self,
        device: Device,
        *,
        blocks: int,
        shared_bytes: int,
        capacity: int,
        arena_bytes: int,
        grace_s: float,
        stay_s: float,
        hard_s: float,
        resident: bool,
        store: Store | None = None,
    ) -> None:
        if capacity & (capacity - 1) or not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity {capacity}: it must be a power of two from 1 to {MAX_CAPACITY:,}")
        self.device = device
        self.capacity = capacity
        self.blocks = blocks
        self.shared_bytes = shared_bytes
        self.stay_s = stay_s
        self.hard_s = hard_s
        self.resident = resident
        self._mask = capacity - 1
        self._shift = capacity.bit_length() - 1
        self.lock = threading.RLock()
        self._paused = 0
        self._dispatching = threading.RLock()
        self._deadlines: list[tuple[int, int, int]] = []  # heap of (CLOCK_MONOTONIC ns, first sequence, count)
        self.closed = False
        self.chore: Callable[[Residency], bool] | None = None  # the keeper's, until it gives False
        sizes = [256, SLOT_BYTES * capacity, RECORD_BYTES * capacity, 8 * abi.UPDATE_ENTRIES, arena_bytes]
        offsets = np.cumsum([0, *[-(-s // 4096) * 4096 for s in sizes]]).tolist()
        host, mapped = device.pinned(offsets[-1])
        self._host = host
        control, slots, records, updates, arena = (mapped + o for o in offsets[:-1])
        self._control = view(host, 256).cast("Q")
        self._slot_words = view(host + offsets[1], SLOT_BYTES * capacity).cast("I")
        self.slots: NDArray[Any] = array_at(host + offsets[1], SLOT_DTYPE, capacity)
        self._slot_lines: NDArray[Any] = self.slots.view(np.uint64).reshape(capacity, 8)
        self._record_words = view(host + offsets[2], RECORD_BYTES * capacity).cast("Q")
        self.records: NDArray[Any] = array_at(host + offsets[2], RECORD_DTYPE, capacity)
        self._update_words = view(host + offsets[3], 8 * abi.UPDATE_ENTRIES).cast("Q")
        self.arena = Arena(host + offsets[4], arena_bytes, abi.UNIT, abi.TABLE_BYTES)
        self._busy = bytearray(capacity)  # 1: published and not yet collected
        self._busy_array: NDArray[Any] = np.frombuffer(self._busy, np.uint8)
        self._updates = 0
        self._told = 0  # updates that a published slot has told the kernel of: a refused one has not
        # Published slots, fences among them, the last stay's number: one place for native code and Python.
        self._ring = array("Q", bytes(8 * caller.R_WORDS))
        for at, value in (
            (caller.R_CONTROL, host), (caller.R_SLOTS, host + offsets[1]), (caller.R_RECORDS, host + offsets[2]),
            (caller.R_BUSY, self._busy_array.ctypes.data), (caller.R_MASK, self._mask), (caller.R_SHIFT, self._shift),
            (caller.R_HELD, not caller.has_gil()),
        ):  # fmt: skip
            self._ring[at // 8] = value
        self.ring_address: int = self._ring.buffer_info()[0]
        self.natives = caller.natives(store)
        self._alone = _Alone(self)
        warps = max(blocks, 1024) * abi.WARPS_PER_BLOCK
        handed = 1 << (4 * (capacity + warps)).bit_length()
        device_sizes = [
            abi.ENGINE.itemsize, abi.JOB.itemsize * capacity, 8 * handed, 8 * max(capacity, abi.MAX_SUSPENDED),
            4 * SESSION_WORDS, arena_bytes,
        ]  # fmt: skip
        places = np.cumsum([0, *[-(-s // 4096) * 4096 for s in device_sizes]]).tolist()
        self._device_memory = base = device.memory(places[-1])
        engine, jobs, queue, suspended, words, device_arena = (base + p for p in places[:-1])
        self.words_address = words
        self._engine_address = engine
        self._jobs_address = jobs
        self.arena_address = device_arena
        self._launch = launch = np.zeros(1, abi.LAUNCH)
        launch["grace_ns"] = int(grace_s * 1e9)
        launch["stay_ns"] = int(stay_s * 1e9)
        launch["hard_ns"] = int(hard_s * 1e9)
        launch["limit"] = (1 << 64) - 1
        for name, value in (
            ("control", control), ("slots", slots), ("records", records), ("updates", updates), ("arena_host", arena),
            ("arena", device_arena), ("engine", engine), ("jobs", jobs), ("handed", queue), ("suspended", suspended),
            ("words", words), ("capacity_log2", self._shift), ("handed_log2", handed.bit_length() - 1),
            ("arena_units", arena_bytes // abi.UNIT), ("shared_bytes", (shared_bytes - abi.LAUNCH_BYTES) // abi.WARPS_PER_BLOCK // 16 * 16),
        ):  # fmt: skip
            launch[name] = value
        self._launch_words = launch.view(np.uint64).data
        self._argument = (ctypes.c_void_p * 1)(launch.ctypes.data)
        self._argument_address = ctypes.addressof(self._argument)
        self.relaunches = 0
        self._heap_bytes = 0
        self._heaps: list[int] = []
        self._waiting = 0  # threads that look at records: the memory stays while there are some
        self._stop_keeper = threading.Event()
        self._keeper = threading.Thread(
            target=_keep, args=(weakref.ref(self), self._stop_keeper), name="vyre-cuda-keeper", daemon=True
        )
        self._keeper.start()

    @property
    def published(self) -> int:
        """Slots published since the ring was made."""
        return self._ring[_PUBLISHED]

    @property
    def generation(self) -> int:
        """Number of the stay that was launched last; 0 before the first."""
        return self._ring[_GENERATION]

    # --- stays ----------------------------------------------------------------------------------------------------

    def need_heap(self, size: int) -> None:
        """Have each warp get ``size`` bytes of device memory from the next stay on."""
        if size <= self._heap_bytes:
            return
        with self.paused(), self.lock:
            if size <= self._heap_bytes:  # another thread needed more meanwhile
                return
            warps = max(self.blocks, 1024) * abi.WARPS_PER_BLOCK
            # The old one is not freed: a free would wait for every other kernel of the process.
            heap = self.device.memory(size * warps)
            self._heaps.append(heap)
            self._launch["scratch"] = heap
            self._launch["scratch_bytes"] = size
            self._heap_bytes = size

    @property
    def is_here(self) -> bool:
        """Whether a stay is under way."""
        return bool(self._control[_LEFT] != self.generation)

    def _owed(self) -> bool:
        """Whether the last stay is over and work is left for another."""
        c = self._control
        return c[_LEFT] == self.generation and (self.published > c[_FINAL] or c[_UNFINISHED] != 0)

    def look(self) -> None:
        """Start a stay if one is owed. Cheap; called after every publish and while anybody waits."""
        if self._control[_LEFT] == self.generation and self._owed():
            with self.lock:
                if self._owed() and not self._paused and not self.closed:
                    if self.resident:
                        self._start(self.blocks, THREADS)
                    else:
                        self._start_finite(self.blocks, THREADS)

    def _start_finite(self, blocks: int, threads: int) -> None:
        """A stay that takes what is published now and ends when that is done."""
        launch = self._launch
        grace, stay = int(launch["grace_ns"][0]), int(launch["stay_ns"][0])
        launch["limit"] = self.published
        launch["grace_ns"], launch["stay_ns"] = 0, int(self.hard_s * 5e8)
        try:
            self._start(blocks, threads)  # which copies the argument
        finally:
            launch["limit"] = (1 << 64) - 1
            launch["grace_ns"], launch["stay_ns"] = grace, stay

    def _start(self, blocks: int, threads: int) -> None:
        if self._control[_BROKEN]:
            raise DeviceLost("a stay on the GPU ended by its deadline with work in hand", fix=_LOST_FIX)
        self._ring[_GENERATION] += 1
        self.relaunches += 1
        self._launch_words[_LAUNCHED] = self.generation
        try:
            self.device.launch(blocks, threads, self.shared_bytes, self._argument_address)
        except DeviceLost:
            self._control[_BROKEN] = self.generation
            raise

    def ask_to_leave(self) -> None:
        """Have the stay end soon, without waiting for it. Whatever is owed then starts another."""
        self._control[_STOP] = self.generation

    def leave(self, timeout_s: float | None = None) -> None:
        """Ask the stay to end and wait until it is over."""
        self.ask_to_leave()
        deadline = time.monotonic() + (timeout_s or self.hard_s + 10)
        spins = 0
        while self._control[_LEFT] != self.generation:
            spins += 1
            if spins > 2_000:
                time.sleep(0.0002)
                if spins % 64 == 0:
                    self._check_alive()
                if time.monotonic() > deadline:
                    raise DeviceLost("the kernel does not leave the GPU", fix=_LOST_FIX)

    def _check_open(self) -> None:
        if self.closed:
            raise SessionClosed("this engine was closed while an item was waited for", fix="open a new session")

    def _check_alive(self) -> None:
        """A stream that is idle while the stay has not left means that the kernel died."""
        self.device.enter()
        if self.device.idle() and self._control[_LEFT] != self.generation:
            raise DeviceLost("the kernel ended without leaving in order", fix=_LOST_FIX)
        if self._control[_BROKEN]:
            raise DeviceLost("a stay on the GPU ended by its deadline with work in hand", fix=_LOST_FIX)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No stay inside: the GPU is others'. Slots may be published and wait."""
        with self.lock:
            self._paused += 1
        try:
            self.leave()
            yield
        finally:
            with self.lock:
                self._paused -= 1
            if not self.closed:
                self.look()

    @contextlib.contextmanager
    def dispatching(self) -> Iterator[None]:
        """No stay inside but those of ``finite``; one thread at a time."""
        with self._dispatching, self.paused():
            yield

    def finite(self, blocks: int, threads: int = THREADS) -> None:
        """Launch the interpreter for what is published now and wait until it has left."""
        with self.dispatching():
            limit = self.published
            while self._control[_FINAL] < limit or self._control[_UNFINISHED]:
                self._start_finite(blocks, threads)
                deadline = time.monotonic() + 2 * self.hard_s
                while self._control[_LEFT] != self.generation:
                    if time.monotonic() > deadline:
                        raise DeviceLost("the kernel does not leave the GPU", fix=_LOST_FIX)
                    time.sleep(0)

    def ping(self, timeout_s: float) -> float | None:
        """Seconds from publishing a slot while the kernel is there to its record. The ring is idle before and after.

        Returns:
            None when the record was not there in time: then the device does not see what the host writes meanwhile, or
            the host not what the device writes, and only finite launches work.
        """
        launch = self._launch
        grace, stay = int(launch["grace_ns"][0]), int(launch["stay_ns"][0])
        slot = np.zeros(1, SLOT_DTYPE).tobytes()
        with self.paused(), self.lock:
            first = self.publish(slot)
            assert first is not None, "the ring is idle"
            launch["grace_ns"] = launch["stay_ns"] = int(2e9 * timeout_s)
            try:
                self._start(self.blocks, THREADS)
            finally:
                launch["grace_ns"], launch["stay_ns"] = grace, stay
            self._seen(first, self.hard_s)  # a first launch may take long
            here = self.is_here
            began = time.perf_counter()
            second = self.publish(slot)
            assert second is not None, "the ring is idle"
            seen = self._seen(second, timeout_s)
            took = time.perf_counter() - began
            self.leave()  # its grace is not the usual one
        self.wait(first, 2, None)  # in a finite launch, if need be
        self.collect(first, 2)
        return took if here and seen else None

    def _seen(self, sequence: int, timeout_s: float) -> bool:
        """Whether a record comes in time from the stay that is there."""
        end = time.monotonic() + timeout_s
        while not self.is_done(sequence):
            if time.monotonic() > end or not self.is_here:
                return self.is_done(sequence)
        return True

    # --- slots and records ----------------------------------------------------------------------------------------

    def _flush_updates(self) -> bool:
        """Hand dirty parts of the arena to the kernel. True when the next slot has to tell it that there are some."""
        dirty = self.arena.dirty
        if not dirty:
            return self._told != self._updates
        c = self._control
        for at, size in dirty:
            while self._updates - c[_APPLIED] >= abi.UPDATE_ENTRIES:
                self._push_updates()
            self._update_words[self._updates % abi.UPDATE_ENTRIES] = at // 16 | size // 16 << 32
            self._updates += 1
        dirty.clear()
        c[_UPDATES] = self._updates
        return self._told != self._updates

    def _push_updates(self) -> None:
        """The update ring is full: a no-op that takes them in, waited for."""
        self._control[_UPDATES] = self._updates
        dirty, self.arena.dirty = self.arena.dirty, []
        slot = np.zeros(1, SLOT_DTYPE)
        sequence = self._put(slot)
        assert sequence is not None, "the ring has a free slot for updates"
        self.wait(sequence, 1, None)
        self.collect(sequence, 1)
        self.arena.dirty = dirty

    def publish(self, slot: bytes) -> int | None:
        """Publish one slot of 64 bytes whose status is EMPTY and flags have no lap. None when the ring is full."""
        data = array("Q", slot)
        with self._alone:
            flags = abi.UPDATE_FLAG if self._flush_updates() else 0
            sequence: int = self.natives.gpu_put(self.ring_address, data.buffer_info()[0], flags)
            if sequence != SEQUENCE_NONE:
                self._told = self._updates
            self.look()
        return None if sequence == SEQUENCE_NONE else sequence

    def bring(self, call: caller.Call) -> None:
        """Copy what a call's item reads to where the kernel reads it, for a slot that is published in another way."""
        self.natives.gpu_bring(call.address)

    def start(self, call: caller.Call, flags: int = 0) -> bool:
        """Publish a call's slot, with further flags. False when the ring is full."""
        with self._alone:
            if self._flush_updates():
                flags |= abi.UPDATE_FLAG
            started = bool(self.natives.gpu_start(call.address, flags))
            if started:
                self._told = self._updates
            self.look()
        return started

    def call(self, call: caller.Call) -> bool:
        """Publish a call's slot and, when its record comes soon, collect it. True: it did, the record is in ``call``.

        False: ``call.sequence`` says whether it was published; if not, the ring is full.
        """
        untold = self.arena.dirty or self._told != self._updates
        answer = caller.REFUSED if untold else call.run()
        if answer == caller.PENDING:
            self.look()
            return False
        if answer == caller.REFUSED:
            self.start(call)
            return False
        return bool(answer)

    def take(self, call: caller.Call) -> None:
        """Collect the record of a call's slot, which is complete; the slot is free afterwards."""
        if self.closed:
            raise SessionClosed("this engine is closed", fix="open a new session")
        self.natives.gpu_take(call.address)

    def publish_batch(self, items: NDArray[Any]) -> int | None:
        """Publish all of ``items`` (SLOT_DTYPE) or none. First sequence, or None when the ring has no room for all."""
        with self._alone:
            return self._put(items)

    def _put(self, items: NDArray[Any]) -> int | None:
        """A batch is published by the tail alone. The status of its slots stays EMPTY, so that the poller, which trusts
        a status, never takes one of them before the tail says that all are there; workers look at no status."""
        n = len(items)
        if n == 0:
            return self.published
        if n > self.capacity:
            return None
        self._flush_updates()
        first = self.published
        at = first & self._mask
        count = min(n, self.capacity - at)  # at most two pieces: the ring's end and its start
        busy = self._busy_array
        if busy[at : at + count].any() or busy[: n - count].any():
            return None
        lines = items.view(np.uint64).reshape(n, 8)
        heads = lines[:, 0].copy()  # status and opcode, side by side
        if np.bitwise_or.reduce(heads) & 0xFFFF_FFFF:
            items = items.copy()
            items["status"] = 0
            lines = items.view(np.uint64).reshape(n, 8)
            heads = lines[:, 0].copy()
        fences = int(np.count_nonzero(heads == _FENCE << 32))
        self._slot_lines[at : at + count] = lines[:count]
        busy[at : at + count] = 1
        if count < n:
            self._slot_lines[: n - count] = lines[count:]
            busy[: n - count] = 1
        if fences:
            self._ring[_COUNTED] += fences
            self._control[_FENCES] = self._ring[_COUNTED]
        self._ring[_PUBLISHED] = first + n
        self._control[_TAIL] = first + n
        self._told = self._updates  # what is published by the tail goes the way on which updates are looked for
        self.look()
        return first

    def is_done(self, sequence: int) -> bool:
        return bool(self._record_words[(sequence & self._mask) * 8] == sequence + 1)

    def stop(self, first: int, n: int, code: FaultCode) -> None:
        """Have n items from ``first`` end soon with a fault. Those that are done stay done.

        One that has not begun does not begin. One that has is stopped behind the tile that a warp is at, or within a few
        thousand turns of a loop.
        """
        flag = abi.STOP_FLAGS[code]
        marked = []
        if self.closed:
            return
        with self._alone:  # so that a slot which is freed meanwhile does not get another item's mark
            for sequence in range(max(first, self.published - self.capacity), min(first + n, self.published)):
                at = sequence & self._mask
                if self._busy[at] and not self.is_done(sequence):
                    self._slot_words[(at << 4) + 9] |= flag
                    marked.append(sequence)
            # The word behind the mark: who took a slot before it was marked looks at the word later.
            word = ctypes.c_uint64()
            offset = abi.JOB.fields["stop"][1]  # type: ignore[index]
            for sequence in marked:
                word.value = sequence + 1 << 8 | code
                place = self._jobs_address + abi.JOB.itemsize * (sequence & self._mask) + offset
                self.device.to_device(place, ctypes.addressof(word), 8)

    def set_deadline(self, at_ns: int, first: int, n: int = 1) -> None:
        """Stop n items from ``first`` at a time of CLOCK_MONOTONIC, unless they are done by then."""
        with self.lock:
            heap = self._deadlines
            if len(heap) > 2 * self.capacity:  # most are of items that were done long before theirs
                heap[:] = [entry for entry in heap if self._any_left(*entry[1:])]
                heapq.heapify(heap)
            heapq.heappush(heap, (at_ns, first, n))

    def _any_left(self, first: int, n: int) -> bool:
        """Whether one of n items from ``first`` may still be unfinished."""
        first_possible = max(first, self.published - self.capacity)
        return any(not self.is_done(sequence) for sequence in range(first_possible, first + n))

    def expire(self) -> None:
        """Stop items whose deadline has passed. The keeper calls it."""
        while self._deadlines and self._deadlines[0][0] <= time.monotonic_ns():
            with self.lock:
                _, first, n = heapq.heappop(self._deadlines)
            self.stop(first, n, FaultCode.deadline)

    def wait(self, first: int, n: int, timeout_s: float | None) -> None:
        """Wait for the records of n sequences from ``first``.

        Raises:
            WaitTimeout: they were not all there in time.
            DeviceLost: the kernel died.
            SessionClosed: the engine was closed meanwhile.
        """
        with self.looking():
            self._wait(first, n, timeout_s)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Inside, the ring's memory stays where it is: for waits, which ``close`` ends before it frees.

        Raises:
            SessionClosed: the engine is closed.
        """
        with self.lock:
            if self.closed:
                raise SessionClosed("this engine is closed", fix="open a new session")
            self._waiting += 1
        try:
            yield
        finally:
            with self.lock:
                self._waiting -= 1

    def _wait(self, first: int, n: int, timeout_s: float | None) -> None:
        words, mask = self._record_words, self._mask
        at = first
        end = first + n
        spins = 0
        deadline = None
        c = self._control
        while at < end:
            if end - at > 8:
                # Records come roughly in order. Only the last is looked at while they come: reading lines that the
                # engine still writes would slow both.
                last = min(end, at + self.capacity) - 1
                if words[(last & mask) * 8] == last + 1:
                    found = self._completed(at, end - at)
                    at += found
                    if found:
                        continue
            elif words[(at & mask) * 8] == at + 1:
                at += 1
                continue
            spins += 1
            if c[_LEFT] == self.generation:
                self.look()
                self._check_open()
            if spins & 1023 == 0:
                now = time.monotonic()
                if deadline is None:
                    deadline = now + (float("inf") if timeout_s is None else timeout_s)
                    alive = now + 1.0
                if now >= deadline:
                    raise WaitTimeout(
                        f"item {at} was not complete within {timeout_s} s", fix="wait again, or cancel it"
                    )
                if now > alive:
                    alive = now + 1.0
                    if self.is_here:
                        self._check_alive()
                if spins > SPINS:
                    self._wait_long(at, end, timeout_s, deadline)
                    return

    def _wait_long(self, at: int, end: int, timeout_s: float | None, deadline: float) -> None:
        """The rest of a wait that has spun for about two milliseconds: other threads of Python get to run now.

        It sleeps for a thirty-second part of what it has waited, so that is what it may be late by, and at most 1 ms.
        """
        words, mask = self._record_words, self._mask
        began = time.monotonic()
        alive = began + 1.0
        while True:
            while at < end and words[(at & mask) * 8] == at + 1:
                at += 1
            if at >= end:
                return
            self.look()
            self._check_open()
            now = time.monotonic()
            if now >= deadline:
                raise WaitTimeout(f"item {at} was not complete within {timeout_s} s", fix="wait again, or cancel it")
            if now > alive:
                alive = now + 1.0
                if self.is_here:
                    self._check_alive()
            time.sleep(min(max((now - began) / 32, 0.00002), 0.001, deadline - now))

    def _completed(self, first: int, n: int) -> int:
        """How many of n sequences from ``first`` are complete without a gap, looking at one stretch of the ring."""
        at = first & self._mask
        n = min(n, self.capacity - at)
        seen = self.records["sequence_plus_1"][at : at + n]
        if seen.min() > first:  # what older laps left is smaller
            return n
        missing = seen != np.arange(first + 1, first + n + 1, dtype=np.uint64)
        return int(missing.argmax()) if missing.any() else n

    def collect(self, first: int, n: int) -> NDArray[Any]:
        """Copies of n complete records; their slots are free afterwards."""
        at = first & self._mask
        count = min(n, self.capacity - at)
        found = self.records[at : at + count].copy()
        if n == 1:
            self._slot_words[at << 4] = _EMPTY  # a batch's slots are EMPTY all the time
        self._busy_array[at : at + count] = 0
        if count < n:
            found = np.concatenate([found, self.records[: n - count]])
            self._busy_array[: n - count] = 0
        return found

    def collect_one(self, sequence: int) -> tuple[int, int, int, int, int]:
        """(status, code, pc, element, value) of one complete record; its slot is free afterwards."""
        at = sequence & self._mask
        w = self._record_words
        base = 8 * at
        answer = (w[base + 1] & 0xFFFF_FFFF, w[base + 1] >> 32, w[base + 2] & 0xFFFF_FFFF, w[base + 3], w[base + 4])
        self._slot_words[at << 4] = _EMPTY
        self._busy[at] = 0
        return answer

    @property
    def room(self) -> int:
        """Slots that one batch may take now."""
        at = self.published & self._mask
        taken = self._busy.find(1, at)
        if taken >= 0:
            return taken - at
        taken = self._busy.find(1, 0, at)
        return self.capacity - at + (at if taken < 0 else taken)

    @property
    def free_slots(self) -> int:
        return self._busy.count(0)

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Have the kernel leave; then free. Slots that were not taken are left."""
        if self.closed:
            return
        with self.lock:
            self.closed = True
            self._ring[_HELD] += 1
            self._paused += 1
        self._stop_keeper.set()
        self.device.enter()
        self.leave()
        self.device.wait_for(self.device.stream)
        self._keeper.join(1.0)
        until = time.monotonic() + CLOSE_S
        while self._waiting and time.monotonic() < until:  # each of them sees that the engine is closed
            time.sleep(0.0002)
        for address in (self._device_memory, *self._heaps):
            self.device.free(address)
        for name in ("slots", "records", "_slot_lines"):
            setattr(self, name, getattr(self, name)[:0].copy())
        self._control = memoryview(bytearray(256)).cast("Q")
        self._record_words = memoryview(bytearray(RECORD_BYTES * self.capacity)).cast("Q")
        if not self._waiting:  # else it is left: somebody may still look
            self.device.free_pinned(self._host)


class _Alone:
    """Inside, nobody else publishes: no thread in Python, for it holds the lock, and no native call, for the ring is held.

    Updates that are flushed inside are told of by the slot that is published inside, and no slot comes in between.

    Raises:
        SessionClosed: the engine is closed.
    """

    def __init__(self, residency: Residency) -> None:
        self._residency = weakref.proxy(residency)
        self._lock = residency.lock
        self._ring = residency._ring

    def __enter__(self) -> None:
        self._lock.acquire()
        self._ring[_HELD] += 1
        if self._residency.closed:
            self.__exit__()
            raise SessionClosed("this engine is closed", fix="open a new session")

    def __exit__(self, *_: object) -> None:
        self._ring[_HELD] -= 1
        self._lock.release()


def _keep(reference: weakref.ref[Residency], stop: threading.Event) -> None:
    """Start owed stays while nobody waits. Holds no reference between two looks."""
    ready = False
    while not stop.wait(KEEPER_S):
        residency = reference()
        if residency is None:
            return
        try:
            if not ready:
                residency.device.enter()
                residency.device.relax_capture()
                ready = True
            residency.look()
            residency.expire()
            if residency.chore is not None and not residency.chore(residency):
                residency.chore = None
        except DeviceLost:
            return  # whoever waits finds out by itself
        del residency
