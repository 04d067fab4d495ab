"""What a result statement keeps of a value: the instruction, the operand it takes, and what the result will be.

Owns: types of accumulators. Leaves to others: their names and declarations (front ends).
"""

from __future__ import annotations

from typing import Final

from vyre.program.kinds import (
    BOOL,
    FLOATS,
    I32,
    I64,
    KIND_MEMORY,
    KIND_NAME,
    KIND_TYPE,
    U32,
    U64,
    UNSIGNED,
    Refusal,
    code_of,
)
from vyre.program.lower import Lowering
from vyre.program.opcodes import MAX_HISTOGRAM_BINS, AccKind, MemType

_WIDE: Final = {BOOL: I64, I32: I64, U32: U64}
_COUNT, _HISTOGRAM = code_of("acc_count"), code_of("acc_histogram")


def accumulation(lowering: Lowering, keep: AccKind, value: int) -> tuple[int, int, MemType]:
    """How ``value`` enters an accumulator: instruction, operand, type of the result.

    Sums of floats are f64, of signed integers and bools i64, of unsigned ones u64; min and max keep the type.

    Raises:
        Refusal: a type that this accumulator does not take.
    """
    value = lowering.strong(value)
    kind = value & 15
    if keep is AccKind.count:
        if kind != BOOL:
            raise Refusal(f"count of {KIND_NAME[kind]}", "count takes a condition: x != 0; to add numbers use sum")
        return _COUNT, value, MemType.i64
    if keep is AccKind.histogram:
        return _HISTOGRAM, _bin(lowering, value), MemType.i64
    if keep is AccKind.sum:
        if kind in _WIDE:
            value = lowering.cast(value, KIND_NAME[_WIDE[kind]])
            kind = value & 15
        result = MemType.f64 if kind in FLOATS else KIND_MEMORY[kind]
        return code_of(f"{KIND_TYPE[kind].name}.acc_sum"), value, result
    if kind == BOOL:
        raise Refusal(f"{keep.name} of bool", "bool is no number here: write i32(x)")
    sign = "" if kind in FLOATS else "_u" if kind in UNSIGNED else "_s"
    return code_of(f"{KIND_TYPE[kind].name}.acc_{keep.name}{sign}"), value, KIND_MEMORY[kind]


def _bin(lowering: Lowering, value: int) -> int:
    """The i32 index of a histogram's bin. A 64-bit one is held at a value that no histogram has, before it is cut."""
    kind = value & 15
    if kind in FLOATS:
        raise Refusal(f"a histogram's index is {KIND_NAME[kind]}", "cast it: i32(x) truncates, and traps outside i32")
    if kind in (I64, U64):
        value = lowering.binary("min", value & ~15 | U64, lowering.constant(U64, MAX_HISTOGRAM_BINS))
        value = lowering.cast(value, "u32")
    return value
