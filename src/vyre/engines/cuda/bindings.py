"""Operands of one item as the kernel reads them: a descriptor in the arena, host arrays staged in pinned memory.

What does not lie in place already, results included, shares one piece of pinned memory.

Owns: what a binding looks like in the arena, staging. Leaves to others: memory (memory), what arrays say of themselves
(device_array), items (engine).
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import PagedTable
from vyre.engines.cuda import abi
from vyre.engines.cuda.caller import Call
from vyre.engines.cuda.driver import Device
from vyre.engines.cuda.memory import Pool
from vyre.engines.cuda.residency import Residency
from vyre.engines.device_array import DeviceArray, is_on_device
from vyre.errors import ArenaFull, BindError, Fault
from vyre.program.ir import Program
from vyre.program.opcodes import FAULT_REASONS, TILE, Access, AccKind, FaultCode, MemType
from vyre.ring.layout import NO_ELEMENT, NO_PC

NUMPY: Final[dict[MemType, np.dtype[Any]]] = {
    MemType.i32: np.dtype("<i4"), MemType.i64: np.dtype("<i8"), MemType.f32: np.dtype("<f4"),
    MemType.f64: np.dtype("<f8"), MemType.i8: np.dtype("i1"), MemType.u8: np.dtype("u1"), MemType.i16: np.dtype("<i2"),
    MemType.u16: np.dtype("<u2"), MemType.u32: np.dtype("<u4"), MemType.u64: np.dtype("<u8"),
    MemType.f16: np.dtype("<f2"), MemType.bf16: np.dtype("<u2"), MemType.bool: np.dtype("?"),
}  # fmt: skip
"""NumPy type of each memory type. bf16 has none of its own and travels as u16."""

_PATIENCE_S: Final = 20e-6
_GRAIN: Final = 128  # arrays of a piece start at multiples of it: no two of them share a sector of the bus
_NO_WORDS: Final[NDArray[np.uint64]] = np.empty(0, np.uint64)
_NO_SUMS: Final[NDArray[np.float64]] = np.empty((0, 0), np.float64)
_NO_COUNTS: Final[NDArray[np.uint32]] = np.empty((0, 0), np.uint32)
_U64: Final = np.dtype("<u8")
_U32: Final = np.dtype("<u4")
_F64: Final = np.dtype("<f8")


@dataclass(slots=True, eq=False)
class Binding:
    """A program with its operands, as the kernel reads it. Give it back with ``CudaEngine.unbind``.

    Attributes:
        number: what a slot names it by.
        outputs, emits: arrays that results are written to; the pinned ones of the engine or the caller's.
        inputs: the pinned copy of each input, None where it is used in place.
        call: its slot as ``CudaEngine.call`` publishes it, and the record that came back last; None before the first.
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
    call: Call | None = None


_SLOT: Final = struct.Struct("<16I").pack


def slot_of(opcode: int, binding: int, first: int, count: int) -> bytes:
    """A slot as it is published."""
    return _SLOT(
        0, opcode, 0, 2, binding, first & 0xFFFFFFFF, first >> 32, count & 0xFFFFFFFF, count >> 32, 0, 0, 0, 0, 0, 0, 0
    )


@cache
def _packer(count: int) -> Callable[..., bytes]:
    return struct.Struct(f"<{count}Q").pack


class _Own:
    """What a binding holds on to, while it is made."""

    __slots__ = ("copies_back", "owners", "pieces")

    def __init__(self) -> None:
        self.copies_back: list[tuple[NDArray[Any], int]] = []
        self.pieces: list[tuple[Pool, int]] = []
        self.owners: list[Any] = []


class Bindings:
    """Makes bindings and takes them back. The caller holds the engine's lock."""

    def __init__(self, device: Device, residency: Residency, pinned: Pool, device_pool: Pool) -> None:
        self.device = device
        self.residency = residency
        self.arena = residency.arena
        self.pinned = pinned
        self.device_pool = device_pool

    @property
    def stream(self) -> int:
        """Our stream that the work of other libraries is put before when we take their arrays."""
        return int(self.device.producers)

    def wait_for_producers(self, arrays: Iterable[DeviceArray]) -> None:
        """Wait until what their producers have put on their current streams is done (decision 30).

        Their kernels may find no room beside the resident one, so if something stays pending, the stay is asked to end:
        otherwise they would wait for its grace. Mostly what is pending is the event that orders us behind an idle stream.
        """
        ours, is_done = self.stream, self.device.is_done
        for stream in {each.order_before(ours) for each in arrays}:
            if is_done(stream):
                continue
            until = time.perf_counter() + _PATIENCE_S
            while not is_done(stream):
                if time.perf_counter() > until:
                    self.residency.ask_to_leave()
                    self.device.wait_for(stream)
                    break

    def bind(
        self,
        program: Program,
        opcode: int,
        unit: int,
        float_sums: tuple[int, ...],
        inputs: Sequence[Any],
        tables: Sequence[Any],
        params: Sequence[int],
        outputs: Sequence[Any] | None,
        count: int,
        base: int,
    ) -> Binding:
        """See ``CudaEngine.bind``.

        Args:
            unit: of the program's image.
        """
        # Two words per operand: address, then extent | dtype << 32. What is not in place lies in one piece of pinned memory;
        # `inside` are the positions of addresses that count from its start.
        words: list[int] = []
        inside: list[int] = []
        need = 0
        own = _Own()
        staged: list[Any] = []
        for (name, dtype), value in zip(program.inputs, inputs, strict=True):
            kind = NUMPY[dtype]
            plain = type(value) is np.ndarray and value.base is None
            address = None if plain else self.in_place(value, kind, count, name)
            if address is None:
                exact = plain and value.dtype is kind and value.ndim == 1 and value.size == count
                staged.append((need, value if exact else host_array(value, kind, count, name)))
                inside.append(len(words))
                words += (need, 1 | dtype << 32)
                need += count * kind.itemsize + _GRAIN - 1 & -_GRAIN
            else:
                near = 0 if isinstance(value, np.ndarray) else abi.IN_DEVICE_MEMORY
                words += (address, (address % 16 == 0) | (dtype | near) << 32)
                own.owners.append(value)
                staged.append(None)
        made: list[Any] = []
        for i, (name, dtype) in enumerate(program.outputs):
            kind = NUMPY[dtype]
            given = None if outputs is None else outputs[i]
            address = None if given is None else self.in_place(given, kind, count, name)
            if address is None:
                made.append((need, kind))
                inside.append(len(words))
                words += (need, 1 | dtype << 32)
                need += count * kind.itemsize + _GRAIN - 1 & -_GRAIN
            else:
                words += (address, (address % 16 == 0) | dtype << 32)
                own.owners.append(given)
                made.append(given)
        copies: list[tuple[int, NDArray[Any]]] = []
        if program.tables:
            for extent, held, place in self._tables(program, tables, own):
                if isinstance(place, np.ndarray):
                    copies.append((need, place))
                    inside.append(len(words))
                    words += (need, extent | held << 32)
                    need += place.nbytes + _GRAIN - 1 & -_GRAIN
                else:
                    words += (place, extent | held << 32)
        emits = []
        if program.emits:
            for _, dtype in program.emits:
                kind = NUMPY[dtype]
                emits.append((need, kind))
                inside.append(len(words))
                words += (need, dtype << 32)
                need += count * kind.itemsize + _GRAIN - 1 & -_GRAIN
        tiles = -(-count // TILE)
        accs = len(program.accumulators)
        at_sums, scratch = need, 0
        if accs:
            bins = self._histograms(program, words, own)
            at_sums += 8 * (accs + bins)
            if tiles > 1:
                scratch = self.device_pool.get(8 * accs)
                own.pieces.append((self.device_pool, scratch))
        at_counts = at_sums + 8 * len(float_sums) * tiles
        chunk, at = self.pinned.cut(at_counts + 4 * len(emits) * tiles + 1)
        own.pieces.append((self.pinned, chunk.address + at))
        mapped = chunk.device + at
        for i in inside:
            words[i] += mapped
        try:
            number = self.arena.place(
                _packer(8 + len(words) + len(params))(
                    abi.MAGIC_BINDING | opcode << 32, unit | tiles << 32, base, count, mapped + need, scratch,
                    mapped + at_sums, mapped + at_counts, *words, *params,
                )
            )  # fmt: skip
        except ArenaFull:
            self.put(own.pieces)
            raise
        for i, pair in enumerate(staged):
            if pair is not None:
                offset, flat = pair
                staged[i] = copy = chunk.array(at + offset, flat.dtype, count)
                copy[:] = flat
        for i, pair in enumerate(made):
            if type(pair) is tuple:
                made[i] = chunk.array(at + pair[0], pair[1], count)
        found = Binding(
            number, opcode, program, base, count, tiles, slot_of(opcode, number, base, count), made, [], _NO_WORDS,
            _NO_SUMS, _NO_COUNTS, float_sums, staged, own.copies_back, own.pieces, own.owners,
        )  # fmt: skip
        for offset, flat in copies:
            chunk.array(at + offset, flat.dtype, flat.size)[:] = flat
        if accs:
            found.results = chunk.array(at + need, _U64, (at_sums - need) // 8)
            if float_sums:
                sums = chunk.array(at + at_sums, _F64, len(float_sums) * tiles)
                found.tile_sums = sums.reshape(len(float_sums), tiles)
        if emits:
            found.emits = [chunk.array(at + offset, kind, count) for offset, kind in emits]
            found.emit_counts = chunk.array(at + at_counts, _U32, len(emits) * tiles).reshape(len(emits), tiles)
        return found

    def _tables(self, program: Program, tables: Sequence[Any], own: _Own) -> Iterator[tuple[int, int, Any]]:
        """Extent, memory type, and device address of each table, or the array that is to be copied."""
        for table, value in zip(program.tables, tables, strict=True):
            kind = NUMPY[table.dtype]
            extent = value.size if isinstance(value, PagedTable) else size_of(value)
            if extent > abi.MAX_TABLE:
                raise BindError(f"table {table.name} has {extent:,} elements, at most {abi.MAX_TABLE:,} fit")
            if isinstance(value, PagedTable):
                own.owners.append(value)
                yield extent, table.dtype | abi.PAGED, value.address
                continue
            atomic = table.access is Access.atomic
            # Atomics across the bus are none.
            in_host = atomic and isinstance(value, np.ndarray)
            address = None if in_host else self.in_place(value, kind, extent, table.name)
            if address is not None:
                own.owners.append(value)
                yield extent, table.dtype, address
                continue
            flat = host_array(value, kind, extent, table.name)
            if not atomic:
                yield extent, table.dtype, flat
                continue
            address = self.device_pool.get(max(flat.nbytes, 16))
            own.pieces.append((self.device_pool, address))
            if extent:
                self.device.to_device(address, flat.ctypes.data, flat.nbytes)
            own.copies_back.append((value, address))
            yield extent, table.dtype, address

    def _histograms(self, program: Program, words: list[int], own: _Own) -> int:
        """Words of all accumulators; how many bins there are."""
        bins = 0
        for acc in program.accumulators:
            address = 0
            if acc.kind is AccKind.histogram:
                address = self.device_pool.get(8 * acc.bins)
                own.pieces.append((self.device_pool, address))
                bins += acc.bins
            words += (address, acc.bins)
        return bins

    def in_place(self, value: Any, kind: np.dtype[Any], count: int, name: str) -> int | None:
        """Device address of an array that the kernel can use where it is, or None."""
        if isinstance(value, np.ndarray):
            if value.base is not None and value.flags.c_contiguous and value.dtype == kind and value.size >= count:
                return self.pinned.device_address(value)
            return None
        known = isinstance(value, DeviceArray)
        if not known and not is_on_device(value):
            return None
        array = value if known else DeviceArray(value, name, self.stream)
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

    def put(self, pieces: list[tuple[Pool, int]]) -> None:
        """Give pieces back."""
        for pool, address in pieces:
            pool.put(address)
        pieces.clear()


def fault_of(code: int, pc: int, element: int) -> Fault:
    """A record's fault."""
    return Fault(
        int(code),
        FAULT_REASONS.get(FaultCode(code), "fault"),
        None if pc == NO_PC else int(pc),
        None if element == NO_ELEMENT else int(element),
    )


def size_of(value: Any) -> int:
    """Elements of an array, wherever it lies."""
    if isinstance(value, (np.ndarray, DeviceArray)):
        return int(value.size)
    shape = getattr(value, "shape", None)
    return math.prod(shape) if shape is not None else int(np.asarray(value).size)


def host_array(value: Any, kind: np.dtype[Any], count: int, name: str) -> NDArray[Any]:
    """The first ``count`` elements of an array in host memory, flat.

    Raises:
        BindError: another type, or too few.
    """
    flat = np.ascontiguousarray(value).reshape(-1)
    if flat.dtype is not kind and flat.dtype != kind:
        if flat.dtype.itemsize != kind.itemsize or flat.dtype.kind == kind.kind:
            raise BindError(
                f"{name}: the array is {flat.dtype}, the program declares {kind}", fix=f"use .astype('{kind}')"
            )
        flat = flat.view(kind)
    if flat.size != count:
        if flat.size < count:
            raise BindError(f"{name}: the array has {flat.size} elements, {count} are needed")
        flat = flat[:count]
    return flat
