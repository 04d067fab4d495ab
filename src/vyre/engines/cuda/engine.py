"""The resident GPU engine: programs and bindings in an arena, items through a ring, results where the host reads them.

Owns: where programs lie in the arena, results of an item. Leaves to others: operands (bindings), the ring and the lease
(residency), rewriting (lower, straight), driver calls (driver), execution (kernel/).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import ItemResult, PopulationResult
from vyre.engines.cuda import abi, populations
from vyre.engines.cuda.bindings import NUMPY, Binding, Bindings, fault_of, size_of, slot_of
from vyre.engines.cuda.caller import Call
from vyre.engines.cuda.cold import Successor, kernel_for
from vyre.engines.cuda.compile import ENTRY, blocks_per_multiprocessor
from vyre.engines.cuda.driver import Device
from vyre.engines.cuda.lower import Image, value_of_key
from vyre.engines.cuda.memory import Pool
from vyre.engines.cuda.populations import ResidentPopulation
from vyre.engines.cuda.residency import THREADS, Residency
from vyre.engines.cuda.straight_form import Lowering
from vyre.engines.device_array import DeviceArray
from vyre.engines.fold import fold_spans
from vyre.errors import ArenaFull, BindError, EngineUnavailable, RingFull, SessionClosed
from vyre.program.ir import Program
from vyre.program.opcodes import TILE, AccKind
from vyre.program.population import Population
from vyre.program.verifier import Verified, verify
from vyre.ring.layout import DEFAULT_CAPACITY, PROGRAM_FIRST, RECORD_DTYPE, SLOT_DTYPE, Status
from vyre.store import Store

_POOL_CHUNK: Final = 64 << 20
_HEAP_SUMS: Final = 2  # float sums that a program may have without waiting for a new stay at its first load


class _Resident(NamedTuple):
    """A loaded program.

    Attributes:
        unit: of its image in the arena.
        float_sums: accumulators that are float sums.
    """

    program: Program
    unit: int
    float_sums: tuple[int, ...]


class CudaEngine:
    """A kernel that stays on one GPU while there is work, and interprets what a ring names.

    Args:
        device: CUDA's number of the device.
        store: where compiled kernels are kept; None compiles each time.
        capacity: slots of the ring, a power of two.
        arena_bytes: room for programs and bindings.
        grace_s, stay_s: how long a stay waits for work, and how long it lasts at most (decision 25).
        blocks: per multiprocessor, of the resident grid; 0 takes the architecture's default.
        resident: False: the kernel is launched for what is published and leaves when that is done.
        quick_start: where no kernel is kept, begin with one that compiles quickly and change to the optimised one later;
            False compiles that one at once.
    Raises:
        EngineUnavailable: package, driver or device is missing; the message says which and how to get it.
    """

    name = "cuda"

    def __init__(
        self,
        device: int = 0,
        *,
        store: Store | None = None,
        capacity: int = DEFAULT_CAPACITY,
        arena_bytes: int = 32 << 20,
        grace_s: float = 0.001,
        stay_s: float = 0.010,
        hard_s: float = 30.0,
        blocks: int = 0,
        resident: bool = True,
        quick_start: bool = False,
    ) -> None:
        self.device = dev = Device(device)
        per_sm = blocks or blocks_per_multiprocessor(dev.arch)
        cubin, successor = kernel_for(dev.arch, store, per_sm, quick_start)
        shared = min(dev.shared_per_multiprocessor // per_sm - dev.shared_reserved, dev.shared_per_block)
        shared = shared // 512 * 512
        dev.load(cubin, ENTRY, shared)
        fit = dev.occupancy(THREADS, shared)
        if fit < 1:
            raise EngineUnavailable(f"{dev.name} cannot hold one block of the kernel")
        self.per_multiprocessor = min(fit, per_sm)
        self.shared_of_warp = (shared - abi.LAUNCH_BYTES) // abi.WARPS_PER_BLOCK // 16 * 16
        self._pinned = Pool(dev.pinned, _POOL_CHUNK, seen=True)
        self._device_pool = Pool(lambda n: (dev.memory(n),) * 2, _POOL_CHUNK, seen=False)
        self.residency = Residency(
            dev, blocks=self.per_multiprocessor * dev.multiprocessors, shared_bytes=shared, capacity=capacity,
            arena_bytes=arena_bytes, grace_s=grace_s, stay_s=stay_s, hard_s=hard_s, resident=resident, store=store,
        )  # fmt: skip
        if successor is not None:
            self.residency.chore = _replacing(dev, successor, shared)
        self.residency.need_heap(4096 * _HEAP_SUMS)
        self.arena = self.residency.arena
        self.bindings = Bindings(dev, self.residency, self._pinned, self._device_pool)
        self.lowering = Lowering(store)
        self._programs: dict[int, _Resident] = {}
        self._by_identity: dict[int, tuple[Any, int]] = {}
        self._populations: dict[int, ResidentPopulation] = {}  # by their first opcode
        self._free_opcodes: list[int] = []
        self._next_opcode = 0
        self.closed = False
        self._finalizer = weakref.finalize(self, _close, self.residency, self._pinned, self._device_pool, dev)
        _OPEN.add(self)

    # --- programs -------------------------------------------------------------------------------------------------

    def load(self, verified: Verified) -> int:
        """Make a verified program resident. Returns its opcode.

        Raises:
            ArenaFull: there is no room for it.
            EngineUnavailable: it needs more of a warp's shared memory than this device has.
        """
        self._check_open()
        program = verified.program if isinstance(verified, Verified) else verified
        image = self.lowering.image(program)
        if image.shared_bytes > self.shared_of_warp:
            self.refuse_image(image, program)
        with self.residency.lock:
            opcode = self._place(program, image)
        if image.heap_bytes:
            self.residency.need_heap(image.heap_bytes)
        return opcode

    def refuse_image(self, image: Image, program: Program) -> None:
        """
        Raises:
            EngineUnavailable: a warp has too little shared memory for it.
        """
        if image.shared_bytes > self.shared_of_warp:
            raise EngineUnavailable(
                f"{program.name} needs {image.shared_bytes:,} bytes of shared memory per warp, {self.device.name} has "
                f"{self.shared_of_warp:,}: {image.planes} planes and {len(program.accumulators)} accumulators",
                fix="use fewer accumulators or emits in one program, or engine='cpu'",
            )

    def take_numbers(self, n: int) -> NDArray[np.int64]:
        """Numbers for n programs, new ones first. The caller holds the lock."""
        fresh = min(n, abi.MAX_PROGRAMS - self._next_opcode)
        if n - fresh > len(self._free_opcodes):
            raise ArenaFull(
                f"{n} programs are to be loaded and {self._next_opcode - len(self._free_opcodes)} are: there is room for "
                f"{abi.MAX_PROGRAMS}",
                fix="unload some",
            )
        found = [*range(self._next_opcode, self._next_opcode + fresh), *self._free_opcodes[: n - fresh]]
        self._next_opcode += fresh
        del self._free_opcodes[: n - fresh]
        return np.array(found, np.int64)

    def give_numbers(self, numbers: NDArray[np.int64]) -> None:
        """Take them back. The caller holds the lock."""
        self._free_opcodes += numbers.tolist()

    def _place(self, program: Program, image: Image) -> int:
        if self._free_opcodes:
            number = self._free_opcodes.pop()
        else:
            number = self._next_opcode
            if number >= abi.MAX_PROGRAMS:
                self.take_numbers(1)  # says that there is no room
            self._next_opcode = number + 1
        # The table's word before the image, so that a binding that comes next lies beside the image and travels with it.
        unit = self.arena.place(image.data, before=(4 * number, 4))
        self.arena.words[number] = unit
        self.arena.words[unit * (abi.UNIT // 4) + 1] = opcode = PROGRAM_FIRST + number
        self._programs[opcode] = _Resident(program, unit, image.float_sums)
        return opcode

    def load_population(self, population: Population) -> ResidentPopulation:
        """Make all programs of a population resident, or none.

        Raises:
            VerifyError: of the first that is not valid; the message starts with its number.
            ArenaFull, EngineUnavailable: as for ``load``.
        """
        self._check_open()
        found = populations.load(self, population)
        self._populations[int(found.opcodes[0])] = found
        return found

    def unload_population(self, resident: ResidentPopulation) -> None:
        """Forget it. No slot that names one of its programs may be unfinished."""
        self._populations.pop(int(resident.opcodes[0]), None)
        populations.unload(self, resident)

    def run_population(
        self,
        resident: ResidentPopulation,
        chosen: NDArray[np.int64],
        inputs: Sequence[Any],
        tables: Sequence[Any],
        params: Sequence[int],
        outputs: Sequence[Any],
        count: int,
        make_room: Callable[[], None],
    ) -> PopulationResult:
        """Run ``chosen`` programs over the same elements [0, count).

        Args:
            inputs, tables: host arrays are copied to the device once; device arrays are used in place. No atomic tables.
            params: 64 bits each, in memory form.
            outputs: [len(chosen), count] each, contiguous; on the device they are written in place.
            make_room: called while the ring is full of others' items; collects some of them.
        """
        self._check_open()
        return populations.run(self, resident, chosen, inputs, tables, params, outputs, count, make_room)

    def unload(self, opcode: int) -> None:
        """Forget a program. No slot that names it may be unfinished."""
        with self.residency.lock:
            resident = self._programs.pop(opcode, None)
            if resident is None or self.closed:
                return
            self.arena.write(4 * (opcode - PROGRAM_FIRST), bytes(4))
            self.arena.release(resident.unit)
            self._free_opcodes.append(opcode - PROGRAM_FIRST)

    # --- bindings -------------------------------------------------------------------------------------------------

    def pinned_empty(self, count: int, dtype: Any) -> NDArray[Any]:
        """An array that the kernel reads and writes in place. Lives as long as the engine."""
        kind = np.dtype(dtype)
        chunk, at = self._pinned.cut(max(count * kind.itemsize, 1))
        return chunk.array(at, kind, count)

    def bind(
        self,
        opcode: int,
        inputs: Sequence[Any],
        tables: Sequence[Any] = (),
        params: Sequence[int] = (),
        outputs: Sequence[Any] | None = None,
        count: int | None = None,
        base: int = 0,
    ) -> Binding:
        """Operands for a program, in declaration order.

        Args:
            inputs: host arrays are copied into pinned memory unless they are the engine's own (pinned_empty); device
                arrays (DLPack or ``__cuda_array_interface__``) are used in place, after their stream is done.
            tables: likewise; atomic ones in host memory are copied to the device and back.
            params: 64 bits each, in memory form.
            outputs: as inputs, written in place where they are the engine's own or on the device; None makes pinned ones.
            count: elements of each; by default those of the first input or output.
            base: global index of element 0, a multiple of 1,024.
        Raises:
            ArenaFull: no room. BindError: an array does not fit.
        """
        with self.residency.lock:
            self._check_open()
            program, unit, float_sums = self._programs[opcode]
            if count is None:
                arrays = [*inputs, *(outputs or ())]
                if not arrays:
                    raise BindError("a program without inputs and outputs is bound with count=")
                count = size_of(arrays[0])
            if base % TILE:
                raise BindError(f"base {base} is not a multiple of {TILE}")
            return self.bindings.bind(program, opcode, unit, float_sums, inputs, tables, params, outputs, count, base)

    def wait_for_producers(self, arrays: Iterable[DeviceArray]) -> None:
        """Wait until what their producers have put on their current streams is done (decision 30)."""
        self.bindings.wait_for_producers(arrays)

    def unbind(self, binding: Binding) -> None:
        """Forget a binding. No slot that names it may be unfinished."""
        with self.residency.lock:
            if self.closed or binding.number < 0:
                return
            self.arena.release(binding.number)
            binding.number = -1
            self.bindings.put(binding.pieces)
            binding.owners.clear()

    # --- items ----------------------------------------------------------------------------------------------------

    def publish(self, binding: Binding, first: int | None = None, count: int | None = None) -> int | None:
        """Publish an item: all of a binding, or elements [first, first + count). Its sequence; None: the ring is full."""
        slot = binding.slot
        if first is not None or count is not None:
            first = binding.base if first is None else first
            count = binding.base + binding.count - first if count is None else count
            slot = slot_of(binding.opcode, binding.number, first, count)
        return self.residency.publish(slot)

    def call(self, binding: Binding) -> bool:
        """Publish all of a binding and, when its record comes within some microseconds, collect it: the fast way.

        True: ``binding.call.record()`` has it. False: look at ``binding.call.sequence``. None there: the ring is full.
        Otherwise it is published; ``wait`` for it, then ``take`` its record.
        """
        call = binding.call
        if call is None:
            call = binding.call = Call(self.residency.ring_address, binding.slot)
        return self.residency.call(call)

    def submit_batch(self, items: NDArray[Any]) -> int | None:
        """Publish all of ``items`` (SLOT_DTYPE, or u32[n, 16]) or none. First sequence; None: the ring has no room."""
        if items.dtype != SLOT_DTYPE:
            items = np.ascontiguousarray(items, np.uint32).view(SLOT_DTYPE).reshape(-1)
        elif not items.flags.c_contiguous:
            items = np.ascontiguousarray(items)
        return self.residency.publish_batch(items)

    def wait(self, sequence: int, n: int = 1, timeout_s: float | None = None) -> None:
        """Wait for n items from ``sequence``. Raises WaitTimeout, DeviceLost."""
        self.residency.wait(sequence, n, timeout_s)

    def completions(self, first: int, n: int) -> NDArray[Any]:
        """Records (RECORD_DTYPE) of n complete items; their slots are free afterwards."""
        return self.residency.collect(first, n)

    def result(self, binding: Binding, sequence: int, outputs: list[Any] | None = None) -> ItemResult:
        """What a complete item over the whole binding delivered.

        Args:
            outputs: host arrays that outputs are copied to which the engine made; None makes new ones.
        """
        status, code, pc, element, _ = self.residency.collect_one(sequence)
        return self.delivered(binding, status, code, pc, element, outputs)

    def delivered(
        self,
        binding: Binding,
        status: int,
        code: int,
        pc: int,
        element: int,
        outputs: list[Any] | None = None,
        *,
        copied: bool = False,
    ) -> ItemResult:
        """What an item over the whole binding delivered, from its record.

        Args:
            outputs: as for ``result``. copied: they hold theirs already.
        """
        if status != Status.DONE:
            return ItemResult(fault=fault_of(code, pc, element))
        for array_, address in binding.copies_back:
            if array_.size:
                flat = array_ if array_.flags.c_contiguous else np.ascontiguousarray(array_)
                self.device.to_host(flat.ctypes.data, address, flat.nbytes)
                if flat is not array_:
                    array_[...] = flat
        found = ItemResult()
        if outputs is None:
            found.outputs = [x.copy() if isinstance(x, np.ndarray) else x for x in binding.outputs]
        else:
            if not copied:
                for given, made in zip(outputs, binding.outputs, strict=True):
                    if type(given) is np.ndarray:
                        given.reshape(-1)[:] = made
            found.outputs = outputs
        if binding.emits:
            counts = binding.emit_counts
            for i, segment in enumerate(binding.emits):
                parts = [segment[t * TILE : t * TILE + n] for t, n in enumerate(counts[i].tolist())]
                found.emits.append(np.concatenate(parts) if parts else segment[:0].copy())
        if binding.program.accumulators:
            self._accumulators(binding, found)
        return found

    def _accumulators(self, binding: Binding, found: ItemResult) -> None:
        accs = binding.program.accumulators
        bins_at = len(accs)
        for i, acc in enumerate(accs):
            kind = NUMPY[acc.dtype]
            if acc.kind is AccKind.histogram:
                found.accumulators.append(binding.results[bins_at : bins_at + acc.bins].view(np.int64).copy())
                bins_at += acc.bins
            elif i in binding.float_sums:
                sums = binding.tile_sums[binding.float_sums.index(i)].copy()
                found.tile_sums[i] = sums
                found.accumulators.append(np.array(fold_spans(sums, binding.base // TILE), kind))
            else:
                word = int(binding.results[i])
                if acc.kind in (AccKind.min, AccKind.max):
                    word = value_of_key(acc.kind, acc.dtype, word)
                found.accumulators.append(np.frombuffer(struct.pack("<Q", word), kind, 1)[0:1].reshape(()).copy())

    def execute(
        self,
        program: Program | Verified,
        inputs: Sequence[Any],
        params: Sequence[int],
        tables: Sequence[Any],
        first: int,
        count: int,
    ) -> ItemResult:
        """Load, bind, run and forget: what the conformance and differential runners call."""
        key = id(program)
        known = self._by_identity.get(key)
        if known is None or known[0] is not program:
            while len(self._by_identity) >= 64:
                self.unload(self._by_identity.pop(next(iter(self._by_identity)))[1])
            known = (program, self.load(program if isinstance(program, Verified) else verify(program)))
            self._by_identity[key] = known
        binding = self.bind(known[1], list(inputs), tables, params, None, count, first)
        try:
            sequence = self.publish(binding)
            assert sequence is not None, "items of execute are collected one by one"
            self.wait(sequence)
            return self.result(binding, sequence)
        finally:
            self.unbind(binding)

    def dispatch(
        self,
        items: NDArray[Any],
        groups: int,
        width: int = THREADS,
        *,
        timeout_s: float | None = None,
        make_room: Callable[[], None] | None = None,
    ) -> NDArray[Any]:
        """Finite dispatch: launch the interpreter for exactly these items; it leaves when none is left (decision 31).

        More items than the ring has room for take several launches.

        Args:
            items: SLOT_DTYPE.
            groups: blocks of the launch, at least 1. width: threads of a block, a multiple of 32 from 64 to 128.
            timeout_s: items that are not done by then end in FaultCode.deadline.
            make_room: called when the ring is full, to collect older records. None: a full ring is an error.
        Returns:
            The records, in order.
        Raises:
            RingFull: the ring is full of items whose records nobody has read.
        """
        if groups < 1 or width % 32 or not 64 <= width <= THREADS:
            raise ValueError(f"groups {groups}, width {width}: at least one group, of 64, 96 or 128 threads")
        self._check_open()
        give_up = None if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
        records = np.empty(len(items), RECORD_DTYPE)
        ring = self.residency
        full_until = time.monotonic() + 60.0
        at = 0
        while at < len(items):
            with ring.dispatching():
                n = min(len(items) - at, ring.room)
                first = self.submit_batch(items[at : at + n]) if n else None
                if first is not None:
                    if give_up is not None:
                        ring.set_deadline(give_up, first, n)
                    ring.finite(min(groups, 1024), width)
            if first is None:
                if make_room is None or time.monotonic() > full_until:
                    raise RingFull(
                        f"the ring's {ring.capacity} slots are taken by items whose records nobody has read",
                        fix="collect results, or open with a larger capacity",
                    )
                make_room()
                continue
            self.wait(first, n)
            records[at : at + n] = self.completions(first, n)
            at += n
        return records

    def ping(self, timeout_s: float) -> float | None:
        """Seconds from publishing a slot while the kernel is resident to its record; None: not in that time."""
        return self.residency.ping(timeout_s)

    def wait_until_optimised(self, timeout_s: float = 60.0) -> bool:
        """After a quick start: wait until the optimised kernel serves. False when it does not in time."""
        end = time.monotonic() + timeout_s
        while self.residency.chore is not None and time.monotonic() < end:
            time.sleep(0.01)
        return self.residency.chore is None

    def make_finite(self) -> None:
        """From now on the kernel is launched for what is published and leaves when that is done."""
        self.residency.resident = False

    # --- state ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, the kernel is not on the GPU: for those who need it to themselves. Items wait in the ring."""
        with self.residency.paused():
            yield

    @property
    def device_stream(self) -> int:
        """Our stream that the work of other libraries is put before when we take their arrays."""
        return self.bindings.stream

    @property
    def session_words(self) -> NDArray[np.uint32]:
        """A copy of the 4,096 words that control items work on. Read it behind a fence."""
        found = np.empty(4096, np.uint32)
        self.device.enter()
        self.device.to_host(found.ctypes.data, self.residency.words_address, found.nbytes)
        return found

    def close(self) -> None:
        """Have the kernel leave and give everything back. Arrays of pinned_empty must not be used afterwards."""
        if not self.closed:
            self.closed = True
            self._finalizer()

    def _check_open(self) -> None:
        if self.closed:
            raise SessionClosed("this engine is closed", fix="open a new session")

    def __enter__(self) -> CudaEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _replacing(device: Device, successor: Successor, shared: int) -> Callable[[Residency], bool]:
    """A chore of the keeper: load the better kernel between two stays, when it is there. False when nothing is left."""

    def chore(residency: Residency) -> bool:
        cubin = successor.arrived()
        if cubin is not None:
            with residency.paused():
                device.load(cubin, ENTRY, shared)
        return not successor.is_over

    return chore


def _close(residency: Residency, pinned: Pool, device_pool: Pool, device: Device) -> None:
    if device.pid != os.getpid():
        return
    if sys.is_finalizing():  # the driver may be gone; the process's end frees the GPU
        return
    residency.close()
    for address in device_pool.chunks:
        device.free(address)
    for address in pinned.chunks:
        device.free_pinned(address)
    device.close()


_OPEN: Final[weakref.WeakSet[CudaEngine]] = weakref.WeakSet()


def _at_exit() -> None:
    for engine in list(_OPEN):
        engine.close()


atexit.register(_at_exit)


def _forked() -> None:
    """A forked child has no GPU context: its engines are closed and never signal the parent's."""
    for engine in _OPEN:
        engine.closed = True
        engine._finalizer.detach()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
