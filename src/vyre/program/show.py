"""One instruction as a listing writes it: what the listing, the verifier's errors and explanations share.

Owns: the spelling of an instruction. Total: an instruction that breaks rules is shown too, in the raw form where the
plain one would hide the fault. Leaves to others: whole listings (text).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vyre.program.ir import Instr, Program
from vyre.program.literals import show_bits
from vyre.program.opcodes import BY_CODE, Imm, Op, Type


def names_of(program: Program, imm: Imm) -> Sequence[str]:
    """The declared names that an immediate of this kind indexes; empty for constants and targets."""
    declared: Sequence[Any] = {
        Imm.input: program.inputs,
        Imm.output: program.outputs,
        Imm.param: program.params,
        Imm.table: program.tables,
        Imm.acc: program.accumulators,
        Imm.emit: program.emits,
    }.get(imm, ())
    return [entry.name for entry in declared]


def unused_fields(op: Op, instr: Instr) -> list[str]:
    """Names of the fields that this instruction does not use and that are not 0."""
    unused = ["dst"] if op.result is None else []
    unused += ["a", "b", "c"][len(op.args) :]
    unused += ["imm"] if op.imm is Imm.none else []
    return [name for name in unused if getattr(instr, name) != 0]


def show(program: Program, pc: int) -> str:
    """Instruction ``pc`` as the listing writes it, without indent; jump targets are left out.

    Operands in order: the register written, the declaration or constant that the immediate means, the registers read.
    """
    instr = program.code[pc]
    op = BY_CODE.get(instr.op)
    if op is None or unused_fields(op, instr):
        return raw(instr)
    operands = [] if op.result is None else [f"r{instr.dst}"]
    named = show_operand(program, op, instr)
    args = [f"r{reg}" for reg in instr[2 : 2 + len(op.args)]]
    if named is not None:
        args.insert(0, named)
    return f"{op.name} {', '.join(operands + args)}".rstrip()


def raw(instr: Instr) -> str:
    """The form that can say anything: ``raw code dst a b c imm``."""
    return f"raw {instr.op:#06x} {' '.join(str(value) for value in instr[1:])}"


def show_operand(program: Program, op: Op, instr: Instr) -> str | None:
    """What the immediate stands for: a name, a literal, ``#3`` where there is neither; None without an operand."""
    if op.imm in (Imm.none, Imm.target):
        return None
    imm = instr.imm
    if op.imm is Imm.const:
        type_ = op.result
        assert type_ is not None, "a constant has a type"
        if 0 <= imm < len(program.constants):
            bits = program.constants[imm]
            if 0 <= bits < 1 << (8 * type_.size):
                return show_bits(type_, bits)
        return f"#{imm}"
    names = names_of(program, op.imm)
    if 0 <= imm < len(names) and names.count(names[imm]) == 1:
        return str(names[imm])
    return f"#{imm}"


def place(program: Program, pc: int) -> str:
    """Where an instruction stands: its pc, its source line when there is one, and the instruction itself."""
    line = program.line_of(pc)
    source = printable(program.source)
    where = "" if line is None else f", {source}:{line}" if source else f", line {line}"
    return f"pc {pc}{where}, `{show(program, pc)}`"


def printable(text: str) -> str:
    """Foreign text as it may stand in a message: without what a terminal would obey."""
    return text if text.isprintable() else "".join(ch if ch.isprintable() else "?" for ch in text)


def type_name(type_: int) -> str:
    """Name of a type code; the code itself when there is no such type."""
    try:
        return Type(type_).name
    except ValueError:
        return f"type {type_}"
