"""Facts about a verified program that engines use when they rewrite it: liveness, NaN fix-ups, blends.

All facts come from one backward pass over the structured code, repeated until loop headers no longer change (twice for
most loops). Sets of registers are ints, bit r for register r. Owns: the facts. Leaves to others: validity (verifier)
and what an engine makes of the facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from vyre.program.ir import Program
from vyre.program.opcodes import BY_NAME, OPCODES, Group, MemType, Nan, Op

# What an instruction does with the bits of a NaN in its operands: the rules of decision 7.
BLIND: Final = 0  # arithmetic, comparison, conversion: any NaN is as good as another
MOVES_A: Final = 1  # mov, abs, neg: the result has a's payload
MOVES_AB: Final = 2  # select
COPYSIGN: Final = 3  # moves a's payload and sees b's sign
SEES_A: Final = 4  # reinterpret: the bits become an integer
STORES: Final = 5  # seen when the memory type is the register's type; f16 and bf16 have one NaN
EMITS: Final = 6

_END: Final = BY_NAME["end"].code
_ELSE: Final = BY_NAME["else"].code
_IF: Final = BY_NAME["if"].code
_LOOP: Final = BY_NAME["loop"].code
_OPENERS: Final = frozenset([_IF, _LOOP])
_BR_IF: Final = BY_NAME["br_if"].code


def _rule(op: Op) -> int:
    verb = op.name.partition(".")[2]
    if not any(t.is_float for t in op.args):
        return BLIND
    if verb in ("mov", "abs", "neg"):
        return MOVES_A
    if verb == "select":
        return MOVES_AB
    if verb == "copysign":
        return COPYSIGN
    if verb.startswith("reinterpret"):
        return SEES_A
    return STORES if verb == "store" else EMITS if verb == "emit" else BLIND


RULES: Final = {
    op.code: (op.result is not None, op.nan is Nan.canonical, len(op.args), _rule(op), op.group is Group.control)
    for op in OPCODES
}
"""By opcode: has a result, makes the canonical NaN, operands, rule, is control."""
SHOWN: Final = frozenset((MemType.f32, MemType.f64))
"""Memory types in which a float's bits are seen as they are."""


class HasProgram(Protocol):
    """What is needed of ``vyre.program.verifier.Verified``."""

    @property
    def program(self) -> Program: ...


@dataclass(frozen=True, slots=True)
class Analysis:
    """Facts by pc; every list has one entry per instruction.

    Attributes:
        live_out: registers that the same element may still read after this instruction.
        held: registers whose old value some element needs that does not execute this instruction: it is in the other
            branch, or has left the loop. What an engine that runs many elements in step keeps is live_out | held.
        blend: this instruction writes a register that is held, so elements that do not execute it must keep theirs.
        canonical: this result must be the canonical NaN when it is a NaN, because someone may see its bits.
        max_live: size of the largest set live_out | held.
        has_blocks: the program has an if or a loop; without one, nothing is held or blended.
    """

    live_out: list[int]
    held: list[int]
    blend: list[bool]
    canonical: list[bool]
    max_live: int
    has_blocks: bool


def analyse(program: Program | HasProgram, results: int = 0) -> Analysis:
    """The facts of a valid program.

    Args:
        program: verified, or known to be valid.
        results: registers that are read, bits and all, after the last instruction: those of a fragment
            (program/functions.py). A program has none.
    """
    if not isinstance(program, Program):
        program = program.program
    code = program.code
    count = len(code)
    live_out = [0] * count
    held = [0] * count
    blend = [False] * count
    canonical = [False] * count
    if not any(instruction[0] in _OPENERS for instruction in code):
        max_live = _straight(program, results, live_out, canonical)
        return Analysis(live_out, held, blend, canonical, max_live, False)
    headers: dict[int, tuple[int, int]] = {}
    plan = RULES
    while True:
        changed = False
        frames: list[tuple[int, int, int, int, int]] = []
        live = seen = results  # read later by this element; and read in a way that shows a NaN's bits
        extra = 0  # read later by elements that are not here
        max_live = 0
        for pc in range(count - 1, -1, -1):
            op, dst, a, b, c, imm = code[pc]
            has_result, makes_nan, args, rule, control = plan[op]
            if control:
                if op == _END:
                    frames.append((live, seen, extra, -1, 0))
                    live_out[pc] = live
                    extra |= live
                    if pc and code[pc - 1].op == _BR_IF:
                        header = headers.get(code[pc - 1].imm - 1)
                        if header is not None:
                            live |= header[0]
                            seen |= header[1]
                    held[pc] = extra
                    continue
                if op == _ELSE:
                    join_live, join_seen, outer, _, _ = frames.pop()
                    frames.append((join_live, join_seen, outer, live, seen))
                    extra = outer | live
                    live, seen = join_live, join_seen
                elif op == _IF:
                    join_live, join_seen, extra, else_live, else_seen = frames.pop()
                    if else_live < 0:
                        live |= join_live
                        seen |= join_seen
                    else:
                        live |= else_live
                        seen |= else_seen
                elif op == _LOOP:
                    held[pc] = extra
                    _, _, outer, _, _ = frames.pop()
                    if headers.get(pc, (0, 0)) != (live, seen):
                        headers[pc] = (live, seen)
                        changed = True
                    live_out[pc] = live
                    extra = outer
                    continue
            live_out[pc] = live
            if extra:
                held[pc] = extra
                size = (live | extra).bit_count()
            else:
                size = live.bit_count()
            if size > max_live:
                max_live = size
            if has_result:
                bit = 1 << dst
                if live & bit:
                    live ^= bit
                if seen & bit:
                    seen ^= bit
                    if makes_nan:
                        canonical[pc] = True
                    elif rule == 1 or rule == 3:
                        seen |= 1 << a
                    elif rule == 2:
                        seen |= 1 << a | 1 << b
                if extra & bit:
                    blend[pc] = True
            if args:
                live |= 1 << a
                if args > 1:
                    live |= 1 << b
                    if args > 2:
                        live |= 1 << c
            if rule > 2:
                if rule == COPYSIGN:
                    seen |= 1 << b
                elif rule == SEES_A or _shows(program, rule, imm):
                    seen |= 1 << a
        if not changed:
            return Analysis(live_out, held, blend, canonical, max_live, True)


def _straight(program: Program, results: int, live_out: list[int], canonical: list[bool]) -> int:
    """The same for code without blocks, in half the time. Fills the lists and returns max_live."""
    code, plan = program.code, RULES
    live = seen = results
    max_live = 0
    pc = len(code)
    for op, dst, a, b, c, imm in reversed(code):
        pc -= 1
        live_out[pc] = live
        has_result, makes_nan, args, rule, _ = plan[op]
        if has_result:
            bit = 1 << dst
            if live & bit:
                live ^= bit
            if seen & bit:
                seen ^= bit
                if makes_nan:
                    canonical[pc] = True
                elif rule:
                    if rule == 2:
                        seen |= 1 << a | 1 << b
                    elif rule == 1 or rule == 3:
                        seen |= 1 << a
        if args:
            if args == 1:
                live |= 1 << a
            elif args == 2:
                live |= 1 << a | 1 << b
            else:
                live |= 1 << a | 1 << b | 1 << c
            if rule > 2:
                if rule == COPYSIGN:
                    seen |= 1 << b
                elif rule == SEES_A or _shows(program, rule, imm):
                    seen |= 1 << a
            size = live.bit_count()
            if size > max_live:
                max_live = size
    return max_live


def _shows(program: Program, rule: int, imm: int) -> bool:
    """Whether a float store or emit puts the register's bits into memory as they are."""
    stream = program.outputs[imm] if rule == STORES else program.emits[imm]
    return stream.dtype in SHOWN
