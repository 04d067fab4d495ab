"""Which handler of the kernel executes which instruction, and the C text of the numeric cases.

Numeric instructions get their case from the instruction table and a scalar body of the same name in
kernel/numeric.cuh; a body that is missing does not compile. Data, control and results have hand-written cases in
kernel/data.cuh and kernel/interpret.cuh.

Owns: handler numbers. Leaves to others: bodies (kernel/), records (lower).
"""

from __future__ import annotations

from typing import Final

from vyre.program.opcodes import OPCODES, Group, Op

_HAND_WRITTEN: Final = (
    "RETURN", "PAGE", "UNREACHABLE", "IF", "ELSE", "END", "LOOP", "BR_IF",
    "NOP", "POOL32", "POOL64", "PARAM32", "PARAM64", "INDEX", "SELECT32", "SELECT64",
    "STREAM_LOAD32", "STREAM_LOAD64", "STREAM_LOAD_NARROW",
    "STREAM_STORE32", "STREAM_STORE64", "STREAM_STORE_NARROW",
    "TABLE_GET32", "TABLE_GET64", "TABLE_GET_NARROW", "POOL_GET64", "TABLE_UPDATE32", "TABLE_UPDATE64",
    "ACC_SUM", "ACC_COUNT", "ACC_FLOAT_SUM32", "ACC_FLOAT_SUM64", "ACC_HISTOGRAM", "EMIT",
    "ACC_MIN_I32", "ACC_MIN_U32", "ACC_MIN_I64", "ACC_MIN_U64", "ACC_MIN_F32", "ACC_MIN_F64",
    "ACC_MAX_I32", "ACC_MAX_U32", "ACC_MAX_I64", "ACC_MAX_U64", "ACC_MAX_F32", "ACC_MAX_F64",
)  # fmt: skip

NUMERIC: Final[tuple[Op, ...]] = tuple(
    op for op in OPCODES if op.group is Group.numeric and ".reinterpret_" not in op.name
)
"""Instructions with a generated case. A reinterpretation changes no bit: it is a move."""


def _is_heavy(op: Op) -> bool:
    verb = op.name.partition(".")[2]
    if op.traps or verb.startswith("trunc_"):
        return True
    if verb in ("clz", "ctz", "popcnt", "bitrev", "bswap", "rotl", "rotr", "convert_i64_s", "convert_i64_u"):
        return True
    return op.name in ("f64.div", "f64.sqrt")


HEAVY: Final[frozenset[str]] = frozenset(op.name for op in NUMERIC if _is_heavy(op))
"""Instructions that are long or rare: from planes to planes, one element after another, in one out-of-line body. The
others work on eight elements at once in registers; their code is repeated eight times."""

HANDLERS: Final[dict[str, int]] = {
    name: i
    for i, name in enumerate(
        (
            *_HAND_WRITTEN,
            *(op.name.replace(".", "_") for op in NUMERIC if op.name not in HEAVY),
            *(op.name.replace(".", "_") for op in NUMERIC if op.name in HEAVY),
        )
    )
}


def _line(op: Op, prefix: str) -> str:
    assert op.result is not None
    name = op.name.replace(".", "_")
    shape = ("UNARY", "BINARY", "TERNARY")[len(op.args) - 1] + ("_TRAP" if op.traps else "")
    types = [op.result.name] + ([op.args[0].name] if len(op.args) == 3 else [t.name for t in op.args])
    return f"{prefix}{shape}({HANDLERS[name]}, {name}, {', '.join(types)})\n"


def light_cases() -> str:
    """C text: one line per instruction that works in registers, for the switch of kernel/interpret.cuh."""
    return "".join(_line(op, "") for op in NUMERIC if op.name not in HEAVY)


def heavy_cases() -> str:
    """C text: one line per other numeric instruction, for the switch of kernel/heavy.cuh."""
    return "".join(_line(op, "HEAVY_") for op in NUMERIC if op.name in HEAVY)


def heavy_labels() -> str:
    """C text: the case labels under which kernel/interpret.cuh calls them."""
    return " ".join(f"case {HANDLERS[op.name.replace('.', '_')]}:" for op in NUMERIC if op.name in HEAVY)
