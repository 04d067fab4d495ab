"""The resident GPU engine: programs and bindings in an arena, items through a ring, results where the host reads them.

Owns: what a program and a binding look like in the arena, staging of host arrays, results of an item. Leaves to
others: the ring and the lease (residency), rewriting (lower), driver calls (driver), execution (kernel/).
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import struct
import sys
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import ItemResult
from vyre.engines.cuda import abi
from vyre.engines.cuda.compile import ENTRY, blocks_per_multiprocessor, compile_kernel
from vyre.engines.cuda.driver import Device
from vyre.engines.cuda.lower import Image, value_of_key
from vyre.engines.cuda.memory import Pool, array_at
from vyre.engines.cuda.residency import THREADS, Residency
from vyre.engines.cuda.straight_form import Lowering
from vyre.engines.device_array import DeviceArray, is_on_device
from vyre.engines.fold import fold_spans
from vyre.errors import ArenaFull, BindError, EngineUnavailable, Fault, SessionClosed
from vyre.program.ir import Program
from vyre.program.opcodes import FAULT_REASONS, TILE, Access, AccKind, FaultCode, MemType
from vyre.program.verifier import Verified, verify
from vyre.ring.layout import DEFAULT_CAPACITY, NO_ELEMENT, NO_PC, PROGRAM_FIRST, SLOT_DTYPE, Status
from vyre.store import Store

NUMPY: Final[dict[MemType, np.dtype[Any]]] = {
    MemType.i32: np.dtype("<i4"), MemType.i64: np.dtype("<i8"), MemType.f32: np.dtype("<f4"),
    MemType.f64: np.dtype("<f8"), MemType.i8: np.dtype("i1"), MemType.u8: np.dtype("u1"), MemType.i16: np.dtype("<i2"),
    MemType.u16: np.dtype("<u2"), MemType.u32: np.dtype("<u4"), MemType.u64: np.dtype("<u8"),
    MemType.f16: np.dtype("<f2"), MemType.bf16: np.dtype("<u2"), MemType.bool: np.dtype("?"),
}  # fmt: skip
"""NumPy type of each memory type. bf16 has none of its own and travels as u16."""

_POOL_CHUNK: Final = 64 << 20
_HEAP_SUMS: Final = 2  # float sums that a program may have without waiting for a new stay at its first load


@dataclass(slots=True)
class _Resident:
    """A loaded program."""

    program: Program
    image: Image
    unit: int
    bindings: int = 0


@dataclass(slots=True, eq=False)
class Binding:
    """A program with its operands, as the kernel reads it. Give it back with ``CudaEngine.unbind``.

    Attributes:
        number: what a slot names it by.
        outputs, emits: arrays that results are written to; the pinned ones of the engine or the caller's.
    """

    number: int
    opcode: int
    program: Program
    base: int
    count: int
    tiles: int
    slot: bytes
    outputs: list[Any]
    emits: list[NDArray[Any]]
    results: NDArray[np.uint64]
    tile_sums: NDArray[np.float64]
    emit_counts: NDArray[np.uint32]
    float_sums: tuple[int, ...]
    inputs: list[NDArray[Any] | None] = field(default_factory=list)
    copies_back: list[tuple[NDArray[Any], int]] = field(default_factory=list)
    pieces: list[tuple[Pool, int]] = field(default_factory=list)
    owners: list[Any] = field(default_factory=list)


class CudaEngine:
    """A kernel that stays on one GPU while there is work, and interprets what a ring names.

    Args:
        device: CUDA's number of the device.
        store: where compiled kernels are kept; None compiles each time.
        capacity: slots of the ring, a power of two.
        arena_bytes: room for programs and bindings.
        grace_s, stay_s: how long a stay waits for work, and how long it lasts at most (decision 25).
        blocks: per multiprocessor, of the resident grid; 0 takes the architecture's default.
        resident: False: items run in finite dispatch only.
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
    ) -> None:
        self.device = dev = Device(device)
        per_sm = blocks or blocks_per_multiprocessor(dev.arch)
        cubin = compile_kernel(dev.arch, store, per_sm)
        shared = min(dev.shared_per_multiprocessor // per_sm - dev.shared_reserved, dev.shared_per_block)
        shared = shared // 512 * 512
        dev.load(cubin, ENTRY, shared)
        fit = dev.occupancy(THREADS, shared)
        if fit < 1:
            raise EngineUnavailable(f"{dev.name} cannot hold one block of the kernel")
        self.per_multiprocessor = min(fit, per_sm)
        self._shared_of_warp = (shared - abi.LAUNCH_BYTES) // abi.WARPS_PER_BLOCK // 16 * 16
        self._pinned = Pool(dev.pinned, _POOL_CHUNK)
        self._device_pool = Pool(lambda n: (dev.memory(n),) * 2, _POOL_CHUNK)
        self.residency = Residency(
            dev, blocks=self.per_multiprocessor * dev.multiprocessors, shared_bytes=shared, capacity=capacity,
            arena_bytes=arena_bytes, grace_s=grace_s, stay_s=stay_s, hard_s=hard_s, resident=resident,
        )  # fmt: skip
        self.residency.need_heap(4096 * _HEAP_SUMS)
        self.arena = self.residency.arena
        self._lowering = Lowering(store)
        self._programs: dict[int, _Resident] = {}
        self._by_identity: dict[int, tuple[Any, int]] = {}
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
        image = self._lowering.image(program)
        if image.shared_bytes > self._shared_of_warp:
            raise EngineUnavailable(
                f"{program.name} needs {image.shared_bytes:,} bytes of shared memory per warp, {self.device.name} has "
                f"{self._shared_of_warp:,}: {image.planes} planes and {len(program.accumulators)} accumulators",
                fix="use fewer accumulators or emits in one program, or engine='cpu'",
            )
        with self.residency.lock:
            opcode = self._place(program, image)
        if image.heap_bytes:
            self.residency.need_heap(image.heap_bytes)
        return opcode

    def _place(self, program: Program, image: Image) -> int:
        if self._free_opcodes:
            number = self._free_opcodes.pop()
        else:
            number = self._next_opcode
            if number >= abi.MAX_PROGRAMS:
                raise ArenaFull(
                    f"{abi.MAX_PROGRAMS} programs are loaded, which is all there is room for", fix="unload some"
                )
            self._next_opcode += 1
        unit = self.arena.place(struct.pack("<II", abi.MAGIC_PROGRAM, PROGRAM_FIRST + number) + image.data[8:])
        self.arena.write(4 * number, struct.pack("<I", unit))
        self._programs[PROGRAM_FIRST + number] = _Resident(program, image, unit)
        return PROGRAM_FIRST + number

    def load_many(self, programs: Sequence[Verified]) -> list[int]:
        """Opcodes of many programs. They lie side by side, so that they travel to the device in one piece."""
        return [self.load(program) for program in programs]

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
        address = self._pinned.get(max(count * kind.itemsize, 1))
        return array_at(address, kind, count)

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
            return self._bind(opcode, inputs, tables, params, outputs, count, base)

    def _bind(
        self,
        opcode: int,
        inputs: Sequence[Any],
        tables: Sequence[Any],
        params: Sequence[int],
        outputs: Sequence[Any] | None,
        count: int | None,
        base: int,
    ) -> Binding:
        self._check_open()
        resident = self._programs[opcode]
        program = resident.program
        if count is None:
            arrays = [*inputs, *(outputs or ())]
            if not arrays:
                raise BindError("a program without inputs and outputs is bound with count=")
            count = _size(arrays[0])
        if base % TILE:
            raise BindError(f"base {base} is not a multiple of {TILE}")
        tiles = -(-count // TILE)
        pieces: list[tuple[Pool, int]] = []
        owners: list[Any] = []
        copies_back: list[tuple[NDArray[Any], int]] = []
        operands: list[tuple[int, int, int]] = []  # address, extent, dtype
        staged: list[NDArray[Any] | None] = []
        made: list[Any] = []

        def pinned(size: int) -> int:
            address = self._pinned.get(max(size, 16))
            pieces.append((self._pinned, address))
            return address

        def mapped(address: int) -> int:
            found = self._pinned.device_address(address)
            assert found is not None
            return found

        for stream, value in zip(program.inputs, inputs, strict=True):
            kind = NUMPY[stream.dtype]
            address = self._in_place(value, kind, count, stream.name)
            if address is None:
                flat = _host(value, kind, count, stream.name)
                host = pinned(count * kind.itemsize)
                copy = array_at(host, kind, count)
                copy[:] = flat[:count]
                staged.append(copy)
                address = mapped(host)
            else:
                owners.append(value)
                staged.append(None)
            near = (
                abi.IN_DEVICE_MEMORY
                if address is not None and not isinstance(value, np.ndarray) and staged[-1] is None
                else 0
            )
            operands.append((address, int(address % 16 == 0), int(stream.dtype) | near))
        for i, stream in enumerate(program.outputs):
            kind = NUMPY[stream.dtype]
            given = None if outputs is None else outputs[i]
            address = None if given is None else self._in_place(given, kind, count, stream.name)
            if address is None:
                host = pinned(count * kind.itemsize)
                given = array_at(host, kind, count)
                address = mapped(host)
            else:
                owners.append(given)
            made.append(given)
            operands.append((address, int(address % 16 == 0), int(stream.dtype)))
        for table, value in zip(program.tables, tables, strict=True):
            kind = NUMPY[table.dtype]
            extent = _size(value)
            if extent > abi.MAX_TABLE:
                raise BindError(f"table {table.name} has {extent:,} elements, at most {abi.MAX_TABLE:,} fit")
            address = self._in_place(value, kind, extent, table.name)
            if address is not None and table.access is Access.atomic and self._pinned.device_address(_address(value)):
                address = None  # atomics across the bus are none
            if address is None:
                flat = _host(value, kind, extent, table.name)
                if table.access is Access.atomic:
                    address = self._device_pool.get(max(flat.nbytes, 16))
                    pieces.append((self._device_pool, address))
                    if extent:
                        self.device.to_device(address, flat.ctypes.data, flat.nbytes)
                    copies_back.append((value, address))
                else:
                    host = pinned(flat.nbytes)
                    array_at(host, kind, extent)[:] = flat
                    address = mapped(host)
            else:
                owners.append(value)
            operands.append((address, extent, int(table.dtype)))
        emits = []
        for stream in program.emits:
            kind = NUMPY[stream.dtype]
            host = pinned(count * kind.itemsize)
            emits.append(array_at(host, kind, count))
            operands.append((mapped(host), 0, int(stream.dtype)))
        accs = program.accumulators
        bins = 0
        for acc in accs:
            address = 0
            if acc.kind is AccKind.histogram:
                address = self._device_pool.get(8 * acc.bins)
                pieces.append((self._device_pool, address))
                bins += acc.bins
            operands.append((address, acc.bins, 0))
        sums = resident.image.float_sums
        size_results = 8 * (len(accs) + bins)
        size_sums = 8 * len(sums) * tiles
        host = pinned(size_results + size_sums + 4 * len(emits) * tiles)
        at = mapped(host)
        scratch = 0
        if accs and tiles > 1:
            scratch = self._device_pool.get(8 * len(accs))
            pieces.append((self._device_pool, scratch))
        data = struct.pack(
            "<IIIIQQQQQQ",
            abi.MAGIC_BINDING, opcode, resident.unit, tiles, base, count, at, scratch, at + size_results,
            at + size_results + size_sums,
        )  # fmt: skip
        data += b"".join(struct.pack("<QII", *o) for o in operands)
        data += array("Q", params).tobytes()
        try:
            number = self.arena.place(data)
        except ArenaFull:
            for pool, address in pieces:
                pool.put(address)
            raise
        resident.bindings += 1
        slot = struct.pack(
            "<16I", 0, opcode, 0, 2, number, base & 0xFFFFFFFF, base >> 32, count & 0xFFFFFFFF, count >> 32, *[0] * 7
        )
        return Binding(
            number, opcode, program, base, count, tiles, slot, made, emits,
            array_at(host, np.uint64, len(accs) + bins),
            array_at(host + size_results, np.float64, len(sums) * tiles).reshape(len(sums), tiles),
            array_at(host + size_results + size_sums, np.uint32, len(emits) * tiles).reshape(len(emits), tiles),
            sums, staged, copies_back, pieces, owners,
        )  # fmt: skip

    def _in_place(self, value: Any, kind: np.dtype[Any], count: int, name: str) -> int | None:
        """Device address of an array that the kernel can use where it is, or None."""
        if isinstance(value, np.ndarray):
            if value.flags.c_contiguous and value.dtype == kind and value.size >= count:
                return self._pinned.device_address(value.ctypes.data, max(count * kind.itemsize, 1))
            return None
        known = isinstance(value, DeviceArray)
        if not known and not is_on_device(value):
            return None
        array = value if known else DeviceArray(value, name, self.device_stream)
        if array.dtype != kind:
            raise BindError(f"{name}: the device array is {array.dtype}, the program declares {kind}")
        if array.size < count:
            raise BindError(f"{name}: the device array has {array.size} elements, {count} are needed")
        if array.device is not None and array.device != self.device.index:
            raise BindError(
                f"{name} lies on device {array.device}, the session's engine runs on device {self.device.index}",
                fix=f"open a session with device={array.device}, or copy the array",
            )
        if not known:
            self.wait_for_producers([array])
        return int(array.address)

    def wait_for_producers(self, arrays: Iterable[DeviceArray]) -> None:
        """Wait until what their producers have put on their current streams is done (decision 30).

        Their kernels may find no room beside the resident one, so if something is still pending, the stay is asked to
        end: otherwise they would wait for its grace.
        """
        ours = self.device_stream
        for stream in {each.order_before(ours) for each in arrays}:
            if not self.device.is_done(stream):
                self.residency.ask_to_leave()
                self.device.wait_for(stream)

    def unbind(self, binding: Binding) -> None:
        """Forget a binding. No slot that names it may be unfinished."""
        with self.residency.lock:
            if self.closed or binding.number < 0:
                return
            self.arena.release(binding.number)
            binding.number = -1
            if binding.opcode in self._programs:
                self._programs[binding.opcode].bindings -= 1
            for pool, address in binding.pieces:
                pool.put(address)
            binding.pieces.clear()
            binding.owners.clear()

    # --- items ----------------------------------------------------------------------------------------------------

    def publish(self, binding: Binding, first: int | None = None, count: int | None = None) -> int | None:
        """Publish an item: all of a binding, or elements [first, first + count). Its sequence; None: the ring is full."""
        slot = binding.slot
        if first is not None or count is not None:
            first = binding.base if first is None else first
            count = binding.base + binding.count - first if count is None else count
            slot = struct.pack(
                "<16I", 0, binding.opcode, 0, 2, binding.number, first & 0xFFFFFFFF, first >> 32, count & 0xFFFFFFFF,
                count >> 32, *[0] * 7,
            )  # fmt: skip
        return self.residency.publish(slot)

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

    def result(self, binding: Binding, sequence: int, count: int | None = None) -> ItemResult:
        """What a complete item over the whole binding delivered. Arrays are copies where the engine made them."""
        status, code, pc, element, _ = self.residency.collect_one(sequence)
        if status != Status.DONE:
            return ItemResult(fault=fault_of(code, pc, element))
        for array_, address in binding.copies_back:
            if array_.size:
                flat = array_ if array_.flags.c_contiguous else np.ascontiguousarray(array_)
                self.device.to_host(flat.ctypes.data, address, flat.nbytes)
                if flat is not array_:
                    array_[...] = flat
        found = ItemResult()
        found.outputs = [x.copy() if isinstance(x, np.ndarray) else x for x in binding.outputs]
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
            if not self.residency.resident:
                self.residency.finite(self.residency.blocks)
            self.wait(sequence)
            return self.result(binding, sequence)
        finally:
            self.unbind(binding)

    def dispatch(self, items: NDArray[Any], groups: int, width: int = THREADS) -> NDArray[Any]:
        """Finite dispatch: launch the interpreter for exactly these items; it leaves when none is left (decision 31).

        Args:
            items: SLOT_DTYPE.
            groups: blocks of the launch, at least 1. width: threads of a block, a multiple of 32 from 64 to 128.
        Returns:
            The records, in order.
        """
        if groups < 1 or width % 32 or not 64 <= width <= THREADS:
            raise ValueError(f"groups {groups}, width {width}: at least one group, of 64, 96 or 128 threads")
        with self.residency.paused():
            first = self.submit_batch(items)
            if first is None:
                raise ArenaFull(f"{len(items)} items do not fit into the ring", fix="dispatch fewer at a time")
            self.residency.finite(min(groups, 1024), width)
        self.wait(first, len(items))
        return self.completions(first, len(items))

    # --- state ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, the kernel is not on the GPU: for those who need it to themselves. Items wait in the ring."""
        with self.residency.paused():
            yield

    @property
    def device_stream(self) -> int:
        """Our stream that the work of other libraries is put before when we take their arrays."""
        return int(self.device.copies)

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


def fault_of(code: int, pc: int, element: int) -> Fault:
    """A record's fault."""
    return Fault(
        int(code),
        FAULT_REASONS.get(FaultCode(code), "fault"),
        None if pc == NO_PC else int(pc),
        None if element == NO_ELEMENT else int(element),
    )


def _size(value: Any) -> int:
    if isinstance(value, (np.ndarray, DeviceArray)):
        return int(value.size)
    shape = getattr(value, "shape", None)
    return math.prod(shape) if shape is not None else int(np.asarray(value).size)


def _address(value: Any) -> int:
    return int(value.ctypes.data) if isinstance(value, np.ndarray) else 0


def _host(value: Any, kind: np.dtype[Any], count: int, name: str) -> NDArray[Any]:
    flat = np.ascontiguousarray(value).reshape(-1)
    if flat.dtype != kind:
        if flat.dtype.itemsize != kind.itemsize or flat.dtype.kind == kind.kind:
            raise BindError(
                f"{name}: the array is {flat.dtype}, the program declares {kind}", fix=f"use .astype('{kind}')"
            )
        flat = flat.view(kind)
    if flat.size < count:
        raise BindError(f"{name}: the array has {flat.size} elements, {count} are needed")
    return flat


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
