"""Items of the CPU engine: operands in, a slot published, a result out.

Owns: how arrays and file ranges become descriptors, how a record becomes an ItemResult. Leaves to others: which arrays
(runtime), execution (worker).
"""

from __future__ import annotations

import struct
from array import array
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import FileRange, ItemResult, Operands, PagedTable
from vyre.engines.cpu.addresses import address_of, table_at
from vyre.engines.cpu.engine import MEMORY, WAIT_SLICE_NS, BindingBlock, CpuEngine, file_kind
from vyre.errors import BindError, Fault
from vyre.program.ir import Program
from vyre.program.opcodes import FAULT_REASONS, FaultCode, MemType
from vyre.ring.layout import NO_ELEMENT, NO_PC, RECORD_BYTES, SEQUENCE_NONE, SLOT_BYTES, SLOT_DTYPE, Priority, Status
from vyre.ring.memory import Ring

_DTYPES: Final[dict[MemType, np.dtype[Any]]] = {
    MemType.i32: np.dtype("<i4"), MemType.u32: np.dtype("<u4"), MemType.i64: np.dtype("<i8"),
    MemType.u64: np.dtype("<u8"), MemType.f32: np.dtype("<f4"), MemType.f64: np.dtype("<f8"),
}  # fmt: skip
_EMPTY: Final[list[Any]] = []  # shared by results that have none; never changed
_NO_SUMS: Final[dict[int, NDArray[np.float64]]] = {}
_NORMAL: Final = int(Priority.NORMAL)
_SLOT: Final = 9  # words before the slot, and before the record
RECORD: Final = _SLOT + SLOT_BYTES // 8
_FRAME: Final = array(
    "Q", (0, 0, 0, WAIT_SLICE_NS, 0, SEQUENCE_NONE, 0, 0, 0, 0, _NORMAL << 32, *(0,) * (6 + RECORD_BYTES // 8))
)
_STATUS: Final = RECORD + 1  # and the fault's code above it
assert len(_FRAME) == RECORD + RECORD_BYTES // 8
_aim: Final = struct.Struct("<IQQ").pack_into  # binding, first element, count
_AIM_AT: Final = 8 * _SLOT + 16
assert [SLOT_DTYPE.fields[name][1] for name in ("binding", "first_low", "count_low")] == [16, 20, 28]  # type: ignore[index]
_NOTHING: Final = Operands(0, 0, [], [], [], [], [])
_DONE: Final = int(Status.DONE)
_LATE: Final = 16  # what the native call answers when the time is over


class CpuItem:
    """See vyre.engines.base.Item."""

    __slots__ = (
        "_block",
        "_call",
        "_capacity",
        "_elements",
        "_frame_address",
        "_image",
        "_operands",
        "_program",
        "_result",
        "_ring",
        "_words",
        "engine",
        "number",
        "opcode",
    )  # fmt: skip

    def __init__(self, engine: CpuEngine, ring: Ring, opcode: int, operands: Operands) -> None:
        self.engine = engine
        self.opcode = opcode
        self._ring = ring
        self._image = engine.image(opcode)
        self._program: Program = self._image.program
        self._operands = operands
        self._result: ItemResult | None = None
        self._capacity = self._elements = operands.count
        self.number, self._block = self._bind(operands)
        # One array for the frame (worker.call), the slot of u32 words, and the record.
        words = self._words = _FRAME[:]
        at = self._frame_address = words.buffer_info()[0]
        words[0] = engine.address
        words[1] = ring.address
        words[2] = at + 8 * _SLOT
        words[4] = at + 8 * RECORD
        words[_SLOT] = opcode << 32
        _aim(words, _AIM_AT, self.number, operands.origin, operands.count)
        self._call = engine.natives.call

    @property
    def sequence(self) -> int | None:
        """Of the slot that is published and whose record was not collected; native code keeps it (worker.call)."""
        found = self._words[5]
        return None if found == SEQUENCE_NONE else found

    def _bind(self, operands: Operands) -> tuple[int, BindingBlock]:
        if not self._image.in_place:
            _refuse_in_place(self._program, operands)
        return self.engine.bind(
            self.opcode,
            origin=operands.origin,
            elements=operands.count,
            inputs=_inputs(operands),
            outputs=[address_of(a) for a in operands.outputs],
            emits=[address_of(a) for a in operands.emits] if operands.emits else (),
            tables=[table_at(t) for t in operands.tables] if operands.tables else (),
            params=operands.params,
            owners=operands,
            requests=_requests(operands) if operands.tables else 0,
        )

    def retarget(self, operands: Operands) -> None:
        """The same program over other operands. Not while it is published."""
        self._operands = operands
        self._result = None
        if operands.count > self._capacity:
            number = self.number
            self.number, self._block = self._bind(operands)
            self.engine.unbind(number)
            self._capacity = operands.count
        else:
            self._block.retarget(operands)
        self._elements = operands.count
        _aim(self._words, _AIM_AT, self.number, operands.origin, operands.count)

    @property
    def operands(self) -> Operands:
        return self._operands

    def forget(self) -> None:
        """Let go of the operands: an idle binding keeps nobody's arrays alive. ``retarget`` before the next start."""
        self._operands = self._block._owners = _NOTHING
        self._result = None

    def start(self, *, deadline_ns: int = 0, wake: bool = True) -> bool:
        if self._block.bins:
            self._block.clear_bins()
        frame = self._words
        frame[6] = deadline_ns
        frame[7] = 1 if wake or deadline_ns else 0
        return bool(self.engine.natives.start(self._frame_address))

    def wait(self, timeout_ns: int) -> bool:
        sequence = self._words[5]
        if sequence == SEQUENCE_NONE:
            # Not published, or its record was taken; and if an interrupt came before that was read, it can be read now.
            return self._words[8] != 0
        return self.engine.wait(self._ring, sequence, 1, timeout_ns) == 1

    def call(self) -> bool:
        """start() and the first wait() in one native call. False: not done within WAIT_SLICE_NS, or the ring is full.

        True: complete and collected; ``collected()`` has the result. After False look at ``sequence``: None when full.
        """
        if self._block.bins:
            self._block.clear_bins()
        status = self._call(self._frame_address)
        return bool(status and status != _LATE)

    def result(self) -> ItemResult:
        if self._words[5] != SEQUENCE_NONE:
            self.engine.natives.take(self._frame_address)
        else:
            assert self._words[8], "result before start"
        found = self.collected()
        self._words[8] = 0
        return found

    def prepared(self) -> NDArray[np.void]:
        """The slot, for a caller who publishes it himself."""
        if self._block.bins:
            self._block.clear_bins()
        return np.frombuffer(self._words, SLOT_DTYPE, 1, 8 * _SLOT)

    def collected_from(self, record: np.void) -> ItemResult:
        """The result, from a record that the caller read himself."""
        self._words[RECORD:] = array("Q", record.tobytes())  # as long as what it replaces, so that nothing moves
        return self.collected()

    def collected(self) -> ItemResult:
        """The result whose record was collected last."""
        if self._words[_STATUS] & 0xFFFF_FFFF != _DONE:
            return ItemResult(fault=self._fault())
        if self._result is not None:
            return self._result
        program, block, operands = self._program, self._block, self._operands
        result = ItemResult(operands.outputs, _EMPTY, _EMPTY, _NO_SUMS, None)
        if not (program.emits or program.accumulators):
            self._result = result  # outputs alone are the same each time
            return result
        if program.emits:
            result.emits = [a.reshape(-1)[:n] for a, n in zip(operands.emits, block.emitted, strict=True)]
        if program.accumulators:
            result.accumulators = self._accumulators()
            if self._image.float_sums:
                tiles = (self._elements + 1023) >> 10
                assert block.tile_results is not None
                sums = block.tile_results[:tiles].view(np.float64)
                result.tile_sums = {i: sums[:, i].copy() for i in self._image.float_sums}
        return result

    def _faulted(self) -> bool:
        return self._words[_STATUS] & 0xFFFF_FFFF != _DONE

    def _accumulators(self) -> list[NDArray[np.generic]]:
        found: list[NDArray[np.generic]] = []
        bits = np.array(self._block.results, np.uint64)
        for i, acc in enumerate(self._program.accumulators):
            if acc.bins:
                found.append(self._block.bins[i].copy())
            else:
                dtype = _DTYPES[acc.dtype]
                one: NDArray[Any] = bits[i : i + 1].view(dtype)[:1]
                found.append(one.reshape(()))
        return found

    def _fault(self) -> Fault:
        record = self._words[RECORD:]
        code = record[1] >> 32
        pc = record[2] & 0xFFFF_FFFF
        element = record[3]
        reason = FAULT_REASONS.get(FaultCode(code), f"fault {code}")
        errno = record[4]
        return Fault(
            code=code,
            reason=reason,
            pc=None if pc == NO_PC else pc,
            element=None if element == NO_ELEMENT else element,
            operands={"requests" if code == FaultCode.load_miss else "errno": errno} if errno else {},
        )

    @property
    def ticks(self) -> tuple[int, int]:
        """(started, finished) on the engine clock, of the record collected last."""
        return self._words[RECORD + 5], self._words[RECORD + 6]

    def cancel(self) -> None:
        sequence = self.sequence
        if sequence is not None:
            self.engine.natives.cancel(self._ring.address, sequence)

    def close(self) -> None:
        if self.number >= 0:
            self.engine.unbind(self.number)
            self.number = -1

    def __del__(self) -> None:
        # Dropped without close(). While it is published its binding stays where the workers find it.
        frame = getattr(self, "_words", None)  # not there when an interrupt came before it
        if getattr(self, "number", -1) >= 0 and (frame is None or frame[5] == SEQUENCE_NONE):
            self.close()


def _refuse_in_place(program: Program, operands: Operands) -> None:
    """For the rare program that stores more early than there is room to hold back."""
    for stream, out in zip(program.outputs, operands.outputs, strict=True):
        for other, a in zip(program.inputs, operands.inputs, strict=True):
            if isinstance(a, np.ndarray) and np.may_share_memory(out, a):
                raise BindError(
                    f"program {program.name} writes {stream.name} before it has read all of {other.name}, so they cannot "
                    "be the same memory",
                    fix="give the output memory of its own",
                )


def _requests(operands: Operands) -> int:
    return next((t.requests for t in operands.tables if isinstance(t, PagedTable)), 0)


def _inputs(operands: Operands) -> list[tuple[int, int, int]]:
    return [
        (file_kind(a), a.fd, a.offset) if isinstance(a, FileRange) else (MEMORY, address_of(a), 0)
        for a in operands.inputs
    ]
