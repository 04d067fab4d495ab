"""Which handler of the kernel executes which instruction, and the C text of the numeric cases.

Numeric instructions get their case from the instruction table and a scalar body of the same name in
kernel/numeric.cuh; a body that is missing does not compile. Data, control and results have hand-written cases in
kernel/data.cuh and kernel/interpret.cuh.

Owns: handler numbers. Leaves to others: bodies (kernel/), records (lower).
"""

from __future__ import annotations

from typing import Final

from vyre.program.opcodes import OPCODES, Group, Op, Type

_HAND_WRITTEN: Final = (
    "RETURN", "PAGE", "UNREACHABLE", "IF", "ELSE", "END", "LOOP", "BR_IF",
    "NOP", "POOL32", "POOL64", "PARAM32", "PARAM64", "INDEX", "SELECT32", "SELECT64",
    "STREAM_LOAD32", "STREAM_LOAD64", "STREAM_LOAD_NARROW",
    "STREAM_STORE32", "STREAM_STORE64", "STREAM_STORE_NARROW",
    "TABLE_GET32", "TABLE_GET64", "TABLE_GET_NARROW", "POOL_GET64", "TABLE_UPDATE32", "TABLE_UPDATE64", "HEAVY",
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
FIRST_LIGHT: Final = len(_HAND_WRITTEN)
FIRST_HEAVY: Final = len(_HAND_WRITTEN) + len(NUMERIC) - len(HEAVY)
assert [HANDLERS[f"f32_{verb}"] - HANDLERS["f32_add"] for verb in ("add", "sub", "mul")] == [0, 1, 2], (
    "lone.cuh tests a range"
)
assert FIRST_HEAVY <= 256, "a handler of the main switch is a byte; heavy ones are named in another field"


def _line(op: Op, prefix: str, suffix: str = "", number: int = -1) -> str:
    assert op.result is not None
    name = op.name.replace(".", "_")
    number = HANDLERS[name] if number < 0 else number
    shape = ("UNARY", "BINARY", "TERNARY")[len(op.args) - 1] + ("_TRAP" if op.traps else "")
    types = [op.result.name] + ([op.args[0].name] if len(op.args) == 3 else [t.name for t in op.args])
    return f"{prefix}{shape}{suffix}({number}, {name}, {', '.join(types)})\n"


_POPULAR: Final = tuple(
    name
    for name in (op.name for op in NUMERIC)
    if name in {f"{t}.{verb}" for t in ("f32", "f64") for verb in ("add", "sub", "mul", "fma", "lt", "gt")}
    or name
    in ("f32.div", "f32.min", "f32.max", "i32.add", "i32.sub", "i32.mul", "i32.and", "i64.add", "f64.promote_f32")
)
_OTHERS: Final = (
    "STREAM_LOAD32", "STREAM_LOAD64", "STREAM_STORE32", "STREAM_STORE64", "RETURN", "SELECT32", "SELECT64",
    "IF", "ELSE", "END", "LOOP", "BR_IF",
)  # fmt: skip
_PLAIN: Final = tuple(op.name.replace(".", "_") for op in NUMERIC if op.name not in HEAVY)
_FIXED: Final = ("f32.add", "f32.sub", "f32.mul", "f32.div", "f32.fma", "f32.min", "f32.max")
LOADS, STORES, FIXES = 1, 2, 4  # forms: operand a is loaded first; the result is stored; its NaN is made canonical
_FORMS: Final = {0: "", LOADS: "_A", STORES: "_S", LOADS | STORES: "_A_S", FIXES: "_F", LOADS | FIXES: "_A_F"}
_MORE: Final = tuple((name, form) for name in _POPULAR for form in (LOADS, STORES, LOADS | STORES)) + tuple(
    (name, form) for name in _FIXED for form in (FIXES, LOADS | FIXES)
)

HOT: Final[dict[tuple[int, int], int]] = {
    **{(HANDLERS[name], 0): 1 + i for i, name in enumerate((*_PLAIN, *_OTHERS))},
    **{
        (HANDLERS[name.replace(".", "_")], form): 1 + len(_PLAIN) + len(_OTHERS) + i
        for i, (name, form) in enumerate(_MORE)
    },
}
"""Short cut of a (handler, form): its number in the first switch, where nothing is tested before or after it. A record
without one has 0 there and goes the long way. A form that fixes NaN looks by itself whether the result is stored."""
assert max(HOT.values()) <= 255, "a short cut is a byte"


def short_cut(handler: int, form: int) -> int:
    """Number of the short cut that a record of this handler and form (LOADS | STORES | FIXES) takes, 0 for none."""
    return HOT.get((handler, form & ~STORES if form & FIXES else form), 0)


def hot_cases() -> str:
    """C text: the short cuts, for the first switch of kernel/interpret.cuh; 0 goes the long way."""
    ops = {op.name: op for op in NUMERIC}
    lines = [
        _line(op, "HOT_", "", HOT[HANDLERS[op.name.replace(".", "_")], 0]) for op in NUMERIC if op.name not in HEAVY
    ]
    for name, form in _MORE:
        lines.append(_line(ops[name], "HOT_", _FORMS[form], HOT[HANDLERS[name.replace(".", "_")], form]))
    lines += [f"case {HOT[HANDLERS[name], 0]}: {{ SHORT_{name} }} continue;\n" for name in _OTHERS]
    lines.append("default: break;\n")
    return "".join(lines)


def light_cases() -> str:
    """C text: one line per instruction that works in registers, for the switch of kernel/interpret.cuh.

    Numbers that nobody has get a case too, so that the compiler need not check the range of a byte.
    """
    unused = " ".join(f"case {n}:" for n in range(FIRST_HEAVY, 256))
    return "".join(_line(op, "") for op in NUMERIC if op.name not in HEAVY) + unused + " break;\n"


def _is_narrow(op: Op) -> bool:
    assert op.result is not None
    return op.name not in HEAVY and all(t in (Type.i32, Type.f32) for t in (op.result, *op.args))


NARROW: Final[frozenset[str]] = frozenset(
    ("NOP", "POOL32", "PARAM32", "SELECT32", "STREAM_LOAD32", "STREAM_STORE32", "RETURN")
) | frozenset(op.name.replace(".", "_") for op in NUMERIC if _is_narrow(op))
"""Handlers that kernel/narrow.cuh has."""


def narrow_cases() -> str:
    """C text: one line per light instruction of 32-bit values, for the switch of kernel/narrow.cuh."""
    return "".join(
        _line(op, "NARROW_APART_" if op.name in ("f32.div", "f32.sqrt") else "NARROW_")
        for op in NUMERIC
        if _is_narrow(op)
    )


def heavy_cases() -> str:
    """C text: one line per other numeric instruction, for the switch of kernel/heavy.cuh."""
    return "".join(_line(op, "HEAVY_") for op in NUMERIC if op.name in HEAVY)
