"""How the tile form treats each instruction: one small record per opcode, computed once.

Owns: the classification. Leaves to others: what handlers exist (handlers) and the rewriting itself (tileform).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vyre.engines.cpu.handlers import COMMUTE, SWAP, catalogue, variants
from vyre.engines.cpu.makers import narrowing
from vyre.program.opcodes import BY_NAME, OPCODES, Group, Imm, MemType, Nan, Op, Type

# Kinds of treatment.
COMPUTE: Final = 0  # a numeric instruction or function that does not trap
TRAPPING: Final = 1
LOAD: Final = 2
STORE: Final = 3
CONST: Final = 4
PARAM: Final = 5
MOV: Final = 6
SELECT: Final = 7
TABLE_GET: Final = 8
INDEX: Final = 9
ATOMIC: Final = 10
ACC: Final = 11
EMIT: Final = 12
IF: Final = 13
ELSE: Final = 14
END: Final = 15
LOOP: Final = 16
BR_IF: Final = 17
UNREACHABLE: Final = 18
NOTHING: Final = 19
RETURN: Final = 20


class Plan(NamedTuple):
    """Treatment of one opcode.

    Attributes:
        kind: one of the constants above.
        args: number of register operands.
        size: bytes of the result, 0 without one.
        same: all operands are as wide as the result, so it may take the place of one that dies here.
        names: handler for vector operands: plain and with the NaN fix-up.
        uniform_b: the same with uniform b; "" where there is none.
        uniform_a: the same with uniform a.
        uniform_c: the same with uniform c.
        swap: a uniform a goes by ``uniform_a`` with the other operand in a's place.
        sizes: bytes of each operand.
        op: the instruction.
    """

    kind: int
    args: int
    size: int
    same: bool
    names: tuple[str, str]
    uniform_b: tuple[str, str]
    uniform_a: tuple[str, str]
    uniform_c: tuple[str, str]
    swap: bool
    sizes: tuple[int, ...]
    op: Op


_CONTROL: Final = {
    "unreachable": UNREACHABLE, "nop": NOTHING, "loop": LOOP, "if": IF, "else": ELSE, "end": END, "br_if": BR_IF,
    "return": RETURN,
}  # fmt: skip
_NONE: Final = ("", "")


def _kind(op: Op) -> int:
    if op.group is Group.control:
        return _CONTROL[op.name]
    if op.group in (Group.numeric, Group.function):
        return TRAPPING if op.traps else COMPUTE
    if op.imm is Imm.acc:
        return ACC
    if op.imm is Imm.emit:
        return EMIT
    if op.imm is Imm.table:
        return TABLE_GET if op.result else ATOMIC
    if op.name == "index":
        return INDEX
    verb = op.name.partition(".")[2]
    return {"const": CONST, "mov": MOV, "select": SELECT, "load": LOAD, "store": STORE, "param": PARAM}[verb]


def _both(name: str, op: Op) -> tuple[str, str]:
    fixed = op.nan is Nan.canonical and op.group is Group.numeric
    return (name, name + ".canonical") if fixed else (name, name)


def _plan(op: Op) -> Plan:
    kind = _kind(op)
    size = op.result.size if op.result is not None else 0
    sizes = tuple(t.size for t in op.args)
    names, b, a, c, swap = _NONE, _NONE, _NONE, _NONE, False
    if kind == COMPUTE:
        names = _both(op.name, op)
        if op.group is Group.numeric:
            prefix, _, verb = op.name.partition(".")
            forms = variants(op)
            stem, _, sign = verb.partition("_")
            if ".vs" in forms:
                b = _both(op.name + ".vs", op)
                if verb in COMMUTE:
                    a, swap = b, True
                elif stem in SWAP and op.result is Type.i32:
                    other = f"{prefix}.{SWAP[stem]}{'_' + sign if sign else ''}"
                    a, swap = (other + ".vs", other + ".vs"), True
                elif ".sv" in forms:
                    a = _both(op.name + ".sv", op)
            elif ".vvs" in forms:
                b, c = _both(op.name + ".vsv", op), _both(op.name + ".vvs", op)
    elif kind == TRAPPING:
        names = (op.name, op.name)
    elif kind == SELECT:
        name = f"select.{size}"
        names, b, a = (name, name), (name + ".vs",) * 2, (name + ".sv",) * 2
    elif kind == ATOMIC:
        name = f"{op.name.partition('.')[2]}.{op.args[1].size}"
        names = (name, name)
    return Plan(kind, len(op.args), size, all(s == size for s in sizes), names, b, a, c, swap, sizes, op)


PLANS: Final = {op.code: _plan(op) for op in OPCODES}
KINDS: Final = {code: plan.kind for code, plan in PLANS.items()}
AND: Final = BY_NAME["i32.and"].code
SUM_OF: Final = {BY_NAME[f"{t}.mul"].code: BY_NAME[f"{t}.acc_sum"].code for t in ("f32", "f64")}
"""A product and the sum that may take it without a tile between them."""
COMPARES: Final = frozenset(op.code for op in OPCODES if f"{op.name}.mask" in catalogue())
"""Instructions that can go straight into the mask of the block that they decide."""
CONST_BYTES: Final = 100
OTHER: Final = 200


def _fast(plan: Plan) -> Fast:
    kind = plan.kind
    if kind == CONST:
        kind = CONST_BYTES + plan.size
    elif kind == COMPUTE and (not plan.same or plan.args > 2):
        kind = OTHER
    b = plan.uniform_b if plan.uniform_b[0] else None
    a = plan.uniform_a if plan.uniform_a[0] else None
    return plan.size == 4, plan.args == 2, plan.names, b, a, plan.swap, kind


Fast = tuple[bool, bool, tuple[str, str], tuple[str, str] | None, tuple[str, str] | None, bool, int]
"""Of a plan, what the lowering of a straight program needs: 4-byte lanes, two operands, handlers, with uniform b, with uniform
a, swap; and 0 for an instruction that is treated on the spot, CONST_BYTES + size for a constant, else the kind."""
FAST: Final = {code: _fast(plan) for code, plan in PLANS.items()}
assert PLANS[BY_NAME["f32.sub"].code].uniform_a[0] == "f32.sub.sv"


def store_name(dtype: MemType, masked: bool) -> str:
    """Handler that narrows into memory of ``dtype``."""
    if dtype.is_identity:
        return f"{'blend' if masked else 'copy'}.{dtype.size}"
    return f"store.{narrowing(dtype)}" + (".masked" if masked else "")


def emit_name(dtype: MemType, how: str) -> str:
    """Handler that appends to an emit of ``dtype``; ``how``: all, masked or flagged."""
    return f"emit.{8 * dtype.size if dtype.is_identity else narrowing(dtype)}.{how}"
