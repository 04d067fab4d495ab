"""The CPU engine: resident threads that take slots from rings and interpret tiles, without the GIL.

Owns: threads, the program and binding tables, the native functions' callables. Leaves to others: what user arrays
mean (runtime), the order of words (ring), the lanes (tileform, handlers).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import threading
import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.cores import available_cores
from vyre.engines.base import FileRange
from vyre.engines.cpu import state
from vyre.engines.cpu.abi import (
    CTX_ACCS,
    CTX_BINS,
    CTX_EMITS,
    CTX_FUEL_USED,
    CTX_MASKS,
    CTX_PARTIALS,
    CTX_PTRS,
    SCRATCH_SLOTS,
    SCRATCH_STRIDE,
)
from vyre.engines.cpu.addresses import MEMORY_WORDS, OFFSET, address_of, table_at
from vyre.engines.cpu.image import Image
from vyre.errors import ArenaFull, EngineUnavailable, ProgramError, SessionClosed
from vyre.kept import kept_ir
from vyre.program.verifier import Verified
from vyre.ring.layout import (
    DEFAULT_CAPACITY,
    MAX_RINGS,
    NATIVE_FIRST,
    NATIVE_LAST,
    PROGRAM_FIRST,
    RECORD_DTYPE,
    SEQUENCE_NONE,
    SESSION_RING_COUNT,
    SESSION_RING_LIST,
    SESSION_SLEEPERS,
    SESSION_STOP,
    SESSION_WORDS,
    SESSION_WORK_BELL,
    SLOT_BYTES,
    SLOT_DTYPE,
    STOP_ITEMS,
    STOP_LEAVE,
    USER_LAST,
    OperandKind,
)
from vyre.ring.memory import Region, Ring
from vyre.store import Store

if TYPE_CHECKING:
    from vyre.engines.base import Operands
    from vyre.engines.cpu.chunks import CpuChunks
    from vyre.engines.cpu.items import CpuItem
    from vyre.native import Unit
    from vyre.stream.source import Source

WAITERS: Final = 32
"""User threads that can run work at the same time; more of them take turns."""
MAX_HANDLERS: Final = 256
WAIT_SLICE_NS: Final = 50_000_000
"""A wait returns to Python this often, so that Ctrl-C is heard (decision 33)."""

EXPORTS: Final[dict[str, int]] = {
    # function        arguments
    "worker_loop": 2,
    "take_worker": 1,
    "wait": 5,
    "call": 1,
    "start": 1,
    "take": 1,
    "submit": 6,
    "collect": 4,
    "cancel": 2,
    "refused": 3,
    "is_complete": 2,
    "wake_workers": 2,
    "drain": 2,
    "fold_tile_sums": 6,
}


@dataclass(frozen=True, slots=True)
class Natives:
    """The compiled protocol: each function releases the GIL while it runs, takes and gives unsigned 64-bit words."""

    worker_loop: Any
    take_worker: Any
    wait: Any
    call: Any
    start: Any
    take: Any
    submit: Any
    collect: Any
    cancel: Any
    refused: Any
    is_complete: Any
    wake_workers: Any
    drain: Any
    fold_tile_sums: Any


_natives: list[Natives] = []


def natives(store: Store | None) -> Natives:
    """Compile the protocol, or take it from the store; once in a process, whatever store later sessions bring."""
    if _natives:
        return _natives[0]
    from vyre.jit import compile_ir

    arch = platform.machine()
    if arch not in ("x86_64", "aarch64"):
        raise EngineUnavailable(f"engine cpu runs on x86_64 and aarch64, not on {arch}", fix="take engine reference")
    addresses = compile_ir(kept_ir(_protocol, arch, EXPORTS, store), list(EXPORTS), store)
    word = ctypes.c_uint64
    _natives[:] = [Natives(**{n: ctypes.CFUNCTYPE(word, *[word] * k)(addresses[n]) for n, k in EXPORTS.items()})]
    return _natives[0]


def _protocol() -> Unit:
    from vyre.engines.cpu.worker import worker_unit  # not at the top: most processes find its IR in the store

    return worker_unit


class BindingBlock:
    """Descriptors of one binding in the memory that workers read, and room for its results.

    Attributes:
        results: u64[accumulators], bits of the folded results.
        emitted: u64[emits], elements kept.
        tile_results: u64[tiles, accumulators]; float sums of a stream's part are folded from here.
        bins: i64[bins] per histogram, by accumulator index.
    """

    __slots__ = ("_block", "_image", "_owners", "_results", "accs", "address", "bins", "emits", "tile_results")

    def __init__(
        self,
        image: Image,
        opcode: int,
        origin: int,
        elements: int,
        inputs: Sequence[tuple[int, int, int]],
        outputs: Sequence[int],
        emits: Sequence[int],
        tables: Sequence[tuple[int, int]],
        params: Sequence[int],
        owners: object,
        requests: int = 0,
    ) -> None:
        accs, n_emits = len(image.bins), len(emits)
        tiles = (elements + 1023) >> 10
        words = state.BINDING_WORDS + 4 * len(inputs) + len(outputs) + n_emits + 2 * len(tables) + len(params)
        total = words + 2 * accs + n_emits + tiles * n_emits
        block = self._block = _NOTHING[:total] if total <= len(_NOTHING) else array("Q", bytes(8 * total))
        base = self.address = block.buffer_info()[0]
        self.bins: dict[int, NDArray[np.int64]] = {}
        self.accs, self.emits = accs, n_emits
        bins = [0] * accs
        self.tile_results: NDArray[np.uint64] | None = None
        tile_results = 0
        if accs:
            self.tile_results = np.empty((tiles, accs), np.uint64)
            tile_results = self.tile_results.ctypes.data
            for i, n in enumerate(image.bins):
                if n:
                    self.bins[i] = np.zeros(n, np.int64)
                    bins[i] = self.bins[i].ctypes.data
        at = base + 8 * state.BINDING_WORDS
        p_inputs = at
        p_outputs = p_inputs + 32 * len(inputs)
        p_emits = p_outputs + 8 * len(outputs)
        p_tables = p_emits + 8 * n_emits
        p_params = p_tables + 16 * len(tables)
        p_bins = p_params + 8 * len(params)
        p_results = p_bins + 8 * accs
        p_emitted = p_results + 8 * accs
        p_tile_emits = p_emitted + 8 * n_emits
        head = [
            opcode,
            origin,
            elements,
            p_params,
            p_tables,
            tile_results,
            p_tile_emits,
            p_results,
            p_emitted,
            p_inputs,
        ]
        head += [p_outputs, p_emits, p_bins, image.address, requests]
        for kind, place, offset in inputs:
            head += (kind, place, offset, 0)
        head += outputs
        head += emits
        for pair in tables:
            head += pair
        head += params
        head += bins
        used = self._results = len(head)
        _packer(used)(block, 0, *head)
        self._owners = owners
        self._image = image

    def retarget(self, operands: Operands) -> None:
        """Other operands of no more elements than the block was made for. Not while a slot names it."""
        block = self._block
        block[_ORIGIN] = operands.origin
        block[_ELEMENTS] = operands.count
        at = state.BINDING_WORDS
        for a in operands.inputs:
            if type(a) is np.ndarray and OFFSET:  # address_of, written out
                block[at] = MEMORY
                block[at + 1] = MEMORY_WORDS[id(a) + OFFSET >> 3]
                block[at + 2] = 0
            elif isinstance(a, FileRange):
                block[at] = file_kind(a)
                block[at + 1] = a.fd
                block[at + 2] = a.offset
            else:
                block[at] = MEMORY
                block[at + 1] = address_of(a)
                block[at + 2] = 0
            at += 4
        for a in operands.outputs:
            block[at] = address_of(a)
            at += 1
        if operands.emits or operands.tables or operands.params:
            rest = [address_of(a) for a in operands.emits]
            for table in operands.tables:
                rest += table_at(table)
            rest += operands.params
            _packer(len(rest))(block, 8 * at, *rest)
        self._owners = operands

    @property
    def results(self) -> array[int]:
        return self._block[self._results : self._results + self.accs]

    @property
    def emitted(self) -> array[int]:
        return self._block[self._results + self.accs : self._results + self.accs + self.emits]

    def point(self, outputs: Sequence[NDArray[Any]], emits: Sequence[NDArray[Any]]) -> None:
        """Other memory for outputs and emits. Not while a slot names it."""
        at = (self._block[state.B_OUTPUTS // 8] - self.address) // 8
        for a in (*outputs, *emits):
            self._block[at] = a.ctypes.data
            at += 1

    def clear_bins(self) -> None:
        for counts in self.bins.values():
            counts[:] = 0


_NOTHING: Final = array("Q", bytes(512))
_ORIGIN, _ELEMENTS = state.B_ORIGIN // 8, state.B_ELEMENTS // 8


def file_kind(a: FileRange) -> int:
    """The first word of an input that lies in a file."""
    return FILE | a.width << state.ROW_WIDTH_SHIFT | a.inside << state.ROW_INSIDE_SHIFT


@cache
def _packer(count: int) -> Callable[..., None]:
    return struct.Struct(f"<{count}Q").pack_into


class _Memory:
    """Everything that native code may touch; freed only after the last thread has left."""

    def __init__(self, workers: int, programs: int, bindings: int) -> None:
        blocks = self.blocks = workers + WAITERS
        self.rings: list[Ring] = []
        self.dispatched: list[object] = []  # rings and owners of finite dispatches under way
        self.engine = Region(state.ENGINE_BYTES)
        self.programs = Region(8 * programs)
        self.handlers = Region(16 * MAX_HANDLERS)
        self.bindings = Region(8 * bindings)
        self.session_words = Region(4 * SESSION_WORDS)
        self.jobs = Region(state.JOB_BYTES * state.JOB_COUNT)
        self.workers = Region(state.WORKER_BYTES * blocks)
        for i in range(blocks):
            self._prepare_worker(i)

    @property
    def in_use(self) -> int:
        """Threads inside native code that may run items."""
        step = state.WORKER_BYTES // 8
        words = self.workers.words
        return sum(1 for i in range(self.blocks) if words[i * step + state.W_IN_USE // 8] & 0xFFFF_FFFF)

    def _prepare_worker(self, i: int) -> None:
        base = self.workers.address + i * state.WORKER_BYTES
        words = self.workers.words[i * state.WORKER_BYTES // 8 : (i + 1) * state.WORKER_BYTES // 8]
        words[state.W_INDEX // 8] = i
        for field, place in (
            (CTX_PTRS, state.W_PTRS),
            (CTX_MASKS, state.W_MASKS),
            (CTX_FUEL_USED, state.W_FUEL),
            (CTX_ACCS, state.W_ACCS),
            (CTX_PARTIALS, state.W_PARTIALS),
            (CTX_BINS, state.W_BINS),
            (CTX_EMITS, state.W_EMITS),
        ):
            words[(state.W_CONTEXT + field) // 8] = base + place
        scratch = base + state.W_SCRATCH
        first = state.W_PTRS // 8
        words[first : first + SCRATCH_SLOTS] = memoryview(
            array("Q", range(scratch, scratch + SCRATCH_SLOTS * SCRATCH_STRIDE, SCRATCH_STRIDE))
        )


class CpuEngine:
    """Resident threads over rings.

    Args:
        workers: threads that execute at the same time, 1 to 1,024; None takes what affinity and cgroup allow.
        store: where compiled code is kept; None keeps nothing.
        capacity: slots of the session's ring, a power of two.
        programs, bindings: how many may be loaded or bound at once.
        null: complete every item without executing it; for measuring the protocol.
        resident: False starts no threads: items run in waiting threads and in finite dispatch only.
    Raises:
        EngineUnavailable: this machine cannot run it; the message says why.
    """

    name = "cpu"
    takes_paged_tables = True

    def __init__(
        self,
        *,
        workers: int | None = None,
        store: Store | None = None,
        capacity: int = DEFAULT_CAPACITY,
        programs: int = 65_536,
        bindings: int = 65_536,
        null: bool = False,
        resident: bool = True,
    ) -> None:
        self.workers = available_cores() if workers is None else workers
        if not 1 <= self.workers <= 1_024:
            raise ValueError(f"workers {workers}: it must be from 1 to 1,024")
        self.store = store
        self.natives = natives(store)
        self._memory = memory = _Memory(self.workers, programs, bindings)
        self.address = memory.engine.address
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._rings = memory.rings
        self._idle_rings: dict[int, list[Ring]] = {}
        # The opcode that has been free for longest goes first, so that one is not soon given to another program.
        self._free_programs = deque(range(programs))
        self._free_bindings = list(range(bindings - 1, -1, -1))
        self._capacities = (programs, bindings)
        self._images: dict[int, Image] = {}
        self._blocks: dict[int, BindingBlock] = {}
        self._handlers: dict[int, int] = {}
        self.closed = False
        w = memory.engine.words
        w[state.E_LIMIT // 8] = self.workers
        w[state.E_NULL // 8] = int(null)
        w[state.E_PROGRAMS // 8] = memory.programs.address
        w[state.E_PROGRAM_CAPACITY // 8] = programs
        w[state.E_HANDLERS // 8] = memory.handlers.address
        w[state.E_BINDINGS // 8] = memory.bindings.address
        w[state.E_BINDING_CAPACITY // 8] = bindings
        w[state.E_WORDS // 8] = memory.session_words.address
        w[state.E_JOBS // 8] = memory.jobs.address
        w[state.E_JOB_COUNT // 8] = state.JOB_COUNT
        w[state.E_WORKERS // 8] = memory.workers.address
        w[state.E_WORKER_COUNT // 8] = self.workers + WAITERS
        w[state.E_SPIN_TICKS // 8] = _spin_ticks()
        self.ring = self.new_ring(capacity)
        self._threads: list[threading.Thread] = []
        if resident:
            for i in range(self.workers):
                thread = threading.Thread(
                    target=_live, args=(self.natives, memory), name=f"vyre-worker-{i}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        # Threads hold the memory, not the engine: an engine that nobody holds any more is stopped and joined.
        self._finalizer = weakref.finalize(self, _stop, self.natives, memory, self._threads)
        _OPEN.add(self)

    # --- programs -----------------------------------------------------------------------------------------------

    def load(self, verified: Verified) -> int:
        """Make a verified program resident. Returns its opcode.

        Raises:
            ArenaFull: the program store has no room.
        """
        return self._place(self._image(verified))

    def load_paged(self, verified: Verified, tables: frozenset[int]) -> int:
        """The same for a program whose tables of these numbers are bound as tables on disk; the others are memory."""
        return self._place(self._image(verified, tables))

    def _place(self, image: Image) -> int:
        with self._lock:
            self._check_open()
            while True:
                if not self._free_programs:
                    raise ArenaFull(
                        f"the program store holds {self._capacities[0]} programs and is full",
                        fix="unload programs that are no longer used, or open the session with a larger store",
                    )
                n = self._free_programs.popleft()
                opcode = PROGRAM_FIRST + n
                if opcode not in self._handlers:
                    break
        self._images[opcode] = image
        self._memory.programs.words[n] = image.address
        return opcode

    def unload(self, opcode: int) -> None:
        """Forget a program. No slot that names it may be unfinished."""
        image = self._images.pop(opcode, None)
        if image is None or self.closed:
            return
        if opcode in self._handlers:
            self._memory.handlers.words[2 * self._handlers[opcode] + 1] = 0
            return
        n = opcode - PROGRAM_FIRST
        self._memory.programs.words[n] = 0
        self._free_programs.append(n)

    def install(self, opcode: int, verified: Verified) -> None:
        """Answer an opcode outside the program range (8 .. 0xFFEF, or up to 0x7FFFFFFF) with a program.

        Raises:
            ProgramError: the opcode is reserved, or a program is loaded there.
            ArenaFull: there are MAX_HANDLERS already.
        """
        if not (NATIVE_FIRST <= opcode <= NATIVE_LAST or PROGRAM_FIRST <= opcode <= USER_LAST):
            raise ProgramError(
                f"opcode {opcode:#x} is reserved",
                fix=f"install at {NATIVE_FIRST}..{NATIVE_LAST:#x} or {PROGRAM_FIRST:#x}..{USER_LAST:#x}",
            )
        if opcode in self._images and opcode not in self._handlers:
            raise ProgramError(f"opcode {opcode:#x} is a loaded program's", fix="install at another opcode")
        image = self._image(verified)
        words = self._memory.handlers.words
        with self._lock:
            self._check_open()
            entry = self._handlers.get(opcode, len(self._handlers))
            if entry >= MAX_HANDLERS:
                raise ArenaFull(f"{MAX_HANDLERS} handlers are installed and that is all there is room for")
            self._handlers[opcode] = entry
            self._images[opcode] = image
            words[2 * entry + 1] = image.address
            words[2 * entry] = opcode
            self._memory.engine.words[state.E_HANDLER_COUNT // 8] = len(self._handlers)

    def _image(self, verified: Verified, paged: frozenset[int] = frozenset()) -> Image:
        shared, lower = _lowering()
        program = verified.program
        form = (None if paged else shared(self.store).straight(program)) or lower(verified, self.store, paged)
        prologue, body, slots, uses_fuel, in_place, reads_outputs = form
        return Image(program, body, prologue, uses_fuel, slots, in_place, reads_outputs)

    def image(self, opcode: int) -> Image:
        """What was loaded or installed at an opcode. KeyError when nothing is."""
        return self._images[opcode]

    def item(self, opcode: int, operands: Operands, *, stream: object = None) -> CpuItem:
        """Operands bound for publishing, on the session's ring or a stream's own."""
        assert stream is None or isinstance(stream, Ring)
        return _item_type()(self, stream or self.ring, opcode, operands)

    # --- bindings -----------------------------------------------------------------------------------------------

    def bind(
        self,
        opcode: int,
        *,
        origin: int = 0,
        elements: int,
        inputs: Sequence[tuple[int, int, int]],
        outputs: Sequence[int] = (),
        emits: Sequence[int] = (),
        tables: Sequence[tuple[int, int]] = (),
        params: Sequence[int] = (),
        owners: object = None,
        requests: int = 0,
    ) -> tuple[int, BindingBlock]:
        """Describe operands to the workers.

        Args:
            origin: global index of the operands' element 0, a multiple of 1,024.
            elements: elements of each operand.
            inputs: (OperandKind, of rows with their layout, address or fd, byte offset of element 0) of each input.
            outputs, emits: address of element 0 of each; an emit's memory holds ``elements``.
            tables: (address, elements) of each.
            params: 64 bits each, in memory form.
            owners: kept alive until unbind.
            requests: address of the list for requests of tables on disk, 0 when there are none.
        Returns:
            The binding's number, for slots, and its block, for results.
        Raises:
            ArenaFull: the binding arena has no room.
        """
        image = self._images[opcode]
        block = BindingBlock(image, opcode, origin, elements, inputs, outputs, emits, tables, params, owners, requests)
        try:
            number = self._free_bindings.pop()
        except IndexError:
            raise ArenaFull(
                f"the arena holds {self._capacities[1]} bindings and is full",
                fix="close bindings and collect results that are no longer used, or open with a larger arena",
            ) from None
        self._blocks[number] = block
        self._memory.bindings.words[number] = block.address
        return number, block

    def unbind(self, number: int) -> None:
        """Forget a binding. No slot that names it may be unfinished."""
        del self._blocks[number]
        if self.closed:  # nothing runs any more; in a forked child the memory is not even there
            return
        self._memory.bindings.words[number] = 0
        self._free_bindings.append(number)

    # --- rings and items ----------------------------------------------------------------------------------------

    def new_ring(self, capacity: int) -> Ring:
        """A ring that the workers poll; a stream has one of its own (decision 19).

        Raises:
            ArenaFull: all MAX_RINGS are in use.
        """
        with self._lock:
            self._check_open()
            idle = self._idle_rings.get(capacity)
            if idle:
                return idle.pop()
            n = len(self._rings)
            if n >= MAX_RINGS:
                raise ArenaFull(f"{MAX_RINGS} rings are open, which is all there are", fix="close a stream first")
            ring = Ring(capacity)
            self._rings.append(ring)
            words = self._memory.engine.words
            words[SESSION_RING_LIST // 8 + n] = ring.address
            words[SESSION_RING_COUNT // 8] = n + 1
            return ring

    def release_ring(self, ring: Ring) -> None:
        """Give a ring back. Every item of it is complete and collected."""
        if self.closed:
            return
        with self._lock:
            self._idle_rings.setdefault(ring.capacity, []).append(ring)

    def submit(self, ring: Ring, items: NDArray[np.void], *, stop_at_ns: int = 0, wake: int = 0) -> int | None:
        """Publish all of ``items`` (SLOT_DTYPE, C-contiguous) or none. First sequence, or None when the ring is full.

        Raises:
            ProgramError: an opcode that nothing answers to; nothing was published.
        """
        n = len(items)
        place = items.ctypes.data
        natives_ = self.natives
        bad = natives_.refused(self.address, place, n)
        if bad != n:
            raise ProgramError(
                f"item {bad} of {n}: opcode {int(items['opcode'][bad]):#x} has no handler",
                fix="load the program first, or install a handler; 0xFFF0..0xFFFF and a high bit are reserved",
            )
        sequence = natives_.submit(self.address, ring.address, place, n, stop_at_ns, wake)
        return None if sequence == SEQUENCE_NONE else int(sequence)

    def wait(self, ring: Ring, first: int, n: int, timeout_ns: int) -> int:
        """Wait for n items from ``first``; how many of them are complete. Returns early every 50 ms' worth of time.

        With timeout_ns = 0 it looks and runs nothing, unless there is nobody else to run it: an event loop may ask, and
        a tile of a loop can take most of a second.
        """
        if timeout_ns <= 0 and self._threads:
            done = 0
            while done < n and self.natives.is_complete(ring.address, first + done):
                done += 1
            return done
        return int(self.natives.wait(self.address, ring.address, first, n, min(timeout_ns, WAIT_SLICE_NS)))

    def collect(self, ring: Ring, first: int, n: int) -> NDArray[np.void]:
        """Records of n complete items; their slots are free afterwards."""
        records = np.empty(n, RECORD_DTYPE)
        self.natives.collect(ring.address, first, n, records.ctypes.data)
        return records

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def session_words(self) -> NDArray[np.uint32]:
        """The 4,096 words that control items work on. Read them behind a fence."""
        return self._memory.session_words.bytes.view(np.uint32)

    @property
    def resident(self) -> bool:
        """Whether there are threads that run what is published; else whoever waits does."""
        return bool(self._threads)

    @property
    def fold_onto(self) -> Callable[[int, int, int, int], int]:
        """What folds the tiles of a stream's parts: see vyre.engines.spans."""
        from vyre.engines.spans import fold_onto

        return fold_onto(self.store)

    def open_chunks(
        self,
        opcode: int,
        source: Source,
        *,
        io: str,
        chunk_elements: int | None,
        pool_bytes: int | None,
        tables: Sequence[NDArray[Any]],
        params: Sequence[int],
    ) -> CpuChunks | None:
        """A source through a program by a pump, or None: see vyre.engines.cpu.chunks."""
        from vyre.engines.cpu.chunks import open_chunks

        return open_chunks(
            self,
            opcode,
            source,
            io=io,
            chunk_elements=chunk_elements,
            pool_bytes=pool_bytes,
            tables=tables,
            params=params,
        )

    @property
    def bytes_read(self) -> int:
        """Bytes that workers have read from files, through the page cache."""
        return int(self._memory.engine.words[state.E_BYTES_READ // 8])

    @property
    def asleep(self) -> int:
        """Workers that sleep now."""
        return int(self._memory.engine.words[SESSION_SLEEPERS // 8] & 0xFFFF_FFFF)

    def dispatch(
        self, items: NDArray[np.void], groups: int, *, timeout_s: float | None = None, owners: object = None
    ) -> NDArray[np.void]:
        """Finite dispatch: run exactly these items on ``groups`` workgroups that leave when nothing is left.

        Groups loop over tickets, so any number of them covers all items; at most ``workers`` run at a time.

        Args:
            items: SLOT_DTYPE, C-contiguous.
            groups: at least 1.
            timeout_s: items that have not begun by then end in FAULT (deadline passed); None for no limit.
            owners: kept alive until the last group has left.
        Returns:
            The records, in the order of the items.
        Raises:
            ProgramError: an opcode that nothing answers to; nothing was run.
            SessionClosed: the engine was closed before the last item was complete.
        """
        self._check_open()
        n = len(items)
        if n == 0:
            return np.empty(0, RECORD_DTYPE)
        ring = Ring(1 << (n - 1).bit_length())
        stop_at = 0 if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
        if self.submit(ring, items, stop_at_ns=stop_at) is None:  # pragma: no cover - the ring was made to hold them
            raise AssertionError("a ring of the batch's size was full")
        threads = [
            threading.Thread(target=_drain, args=(self.natives, self._memory, ring), daemon=True)
            for _ in range(max(1, min(groups, self.workers)))
        ]
        # Native code knows addresses only: whatever happens to this call, they stay until the last item is complete.
        held = (ring, items, owners)
        self._memory.dispatched.append(held)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self._finish(ring, n)
        except BaseException:
            for sequence in range(n):
                self.natives.cancel(ring.address, sequence)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            if not self.closed:
                self._finish(ring, n)
            raise
        self._memory.dispatched.remove(held)
        return self.collect(ring, 0, n)

    def _finish(self, ring: Ring, n: int) -> None:
        """See the last items of a dispatch out.

        Groups leave when there is no ticket; a long item's last tiles may be with a resident worker even then, and a
        fence behind it still to be taken.
        """
        while self.wait(ring, 0, n, WAIT_SLICE_NS) < n:
            if self.closed:
                self.close()
                raise SessionClosed("this engine was closed during a dispatch", fix="open a new session")
            self.natives.drain(self.address, ring.address)

    def close(self) -> None:
        """Stop the workers and join them. Items not yet taken are left where they are.

        When it returns, whoever called it, no thread is inside an item, so memory that items name is their owners'.
        """
        self.closed = True
        with self._closing:
            if self._finalizer.alive:
                # Not so at the end of the process: a daemon thread in an item would come out of it with an error.
                self._memory.engine.words[SESSION_STOP // 8] |= STOP_ITEMS
            self._finalizer()

    def _check_open(self) -> None:
        if self.closed:
            raise SessionClosed("this engine is closed", fix="open a new session")


_OPEN: Final[weakref.WeakSet[CpuEngine]] = weakref.WeakSet()


def _forked() -> None:
    """In a forked child: neither threads nor ring memory exist here; never signal the parent's."""
    for engine in _OPEN:
        engine.closed = True
        engine._closing = threading.Lock()
        engine._finalizer.detach()


os.register_at_fork(after_in_child=_forked)


def _live(natives_: Natives, memory: _Memory) -> None:
    """A worker thread: signals are the main thread's, the GIL nobody's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    engine = memory.engine.address
    natives_.worker_loop(engine, natives_.take_worker(engine))


def _drain(natives_: Natives, memory: _Memory, ring: Ring) -> None:
    """One workgroup of a finite dispatch. It holds everything that it touches."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    natives_.drain(memory.engine.address, ring.address)


def _stop(natives_: Natives, memory: _Memory, threads: list[threading.Thread]) -> None:
    """Ask the workers to leave, ring the bell, join them, and see everybody out who works while he waits."""
    words = memory.engine.words
    words[SESSION_STOP // 8] |= STOP_LEAVE
    memory.engine.bytes[SESSION_WORK_BELL : SESSION_WORK_BELL + 4].view(np.uint32)[0] += 1
    natives_.wake_workers(memory.engine.address, len(threads))
    for thread in threads:
        while thread.is_alive():
            natives_.wake_workers(memory.engine.address, len(threads))
            thread.join(0.05)
    while memory.in_use:
        time.sleep(0.000_5)


@cache
def _lowering() -> tuple[Any, Any]:
    """The process's handlers and tileform.lower: imported when the first program comes, and by no statement after that."""
    from vyre.engines.cpu.handlers import shared
    from vyre.engines.cpu.tileform import lower

    return shared, lower


@cache
def _item_type() -> type[CpuItem]:
    from vyre.engines.cpu.items import CpuItem

    return CpuItem


@cache
def _spin_ticks() -> int:
    """Clock ticks of the 2 us that a thread without work spins (decision 22)."""
    return 2 * ticks_per_us()


@cache
def ticks_per_us() -> int:
    """Ticks of the engine clock in a microsecond, from the kernel's idea of the processor; 1,000 where it has none."""
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith("cpu MHz"):
                    return max(1, round(float(line.split(":")[1])))
    except (OSError, ValueError):
        pass
    return 1_000


def item(
    opcode: int,
    binding: int = 0,
    first: int = 0,
    count: int = 0,
    *,
    priority: int = 2,
    flags: int = 0,
) -> NDArray[np.void]:
    """One slot, ready to publish."""
    slot = np.zeros(1, SLOT_DTYPE)
    slot.view(np.uint32)[1:10] = (
        opcode, 0, priority, binding, first & 0xFFFF_FFFF, first >> 32, count & 0xFFFF_FFFF, count >> 32, flags,
    )  # fmt: skip
    return slot


assert SLOT_DTYPE.itemsize == SLOT_BYTES
MEMORY: Final = int(OperandKind.MEMORY)
FILE: Final = int(OperandKind.FILE)
