"""Puts the verifier's refusals into words: place, rule, value, and the way out when there is one.

Owns: the sentences. Leaves to others: the decision (verifier): by the time this module runs, a rule is known to be
broken, and it only has to find which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vyre.errors import VerifyError
from vyre.program.ir import Instr, Program
from vyre.program.opcodes import (
    BY_CODE,
    MAX_BLOCK_DEPTH,
    MAX_CODE,
    MAX_CONSTANTS,
    MAX_HISTOGRAM_BINS,
    MAX_OPERANDS,
    MAX_REGISTERS,
    Access,
    AccKind,
    Imm,
    MemType,
    Op,
    Type,
)
from vyre.program.show import names_of, place, show, type_name, unused_fields
from vyre.program.verifier import ACC_TYPES, ATOMIC_TYPES, BR_IF, ELSE, END, IF, LOOP, PARAM_TYPES, RETURN, accepted


def refuse_declarations(program: Program) -> VerifyError:
    """The first rule that the declarations break."""
    kinds: dict[str, Sequence[Any]] = {
        "input": program.inputs,
        "output": program.outputs,
        "param": program.params,
        "table": program.tables,
        "accumulator": program.accumulators,
        "emit": program.emits,
    }
    sizes = {"registers": (len(program.registers), MAX_REGISTERS), "instructions": (len(program.code), MAX_CODE)}
    sizes["constants"] = (len(program.constants), MAX_CONSTANTS)
    sizes |= {f"{kind}s": (len(entries), MAX_OPERANDS) for kind, entries in kinds.items()}
    for what, (count, most) in sizes.items():
        if count > most:
            return VerifyError(f"program: {count} {what}; at most {most}", rule="limit")
    if not 0 < program.fuel < 1 << 32:
        return VerifyError(f"program: fuel {program.fuel}; fuel is 1 to {(1 << 32) - 1}", rule="fuel")
    for reg, type_ in enumerate(program.registers):
        if type(type_) is not Type:
            return VerifyError(f"register r{reg}: {type_!r} is no type", rule="declaration")
    for index, bits in enumerate(program.constants):
        if not 0 <= bits < 1 << 64:
            return VerifyError(f"constant #{index}: {bits} is no pattern of 64 bits", rule="constant")
    for what, name in [("program", program.name)] + [(kind, e.name) for kind, es in kinds.items() for e in es]:
        if not (isinstance(name, str) and name.isidentifier() and len(name) <= 255):
            shown = repr(name) if len(str(name)) <= 60 else f"{str(name)[:60]!r}... ({len(str(name))} characters)"
            return VerifyError(
                f"{what} {shown}: a name is an identifier of at most 255 characters",
                rule="name",
                fix="use letters, digits and underscores, not starting with a digit",
            )
    for side in (("input", "param", "table"), ("output", "accumulator", "emit")):
        seen: dict[str, str] = {}
        for kind in side:
            for entry in kinds[kind]:
                if entry.name in seen:
                    return VerifyError(
                        f"{kind} {entry.name}: the name is that of {_an(seen[entry.name])} too",
                        rule="duplicate",
                        fix="rename one of them",
                    )
                seen[entry.name] = kind
    for kind, entries in kinds.items():
        for entry in entries:
            wrong = _wrong_declaration(kind, entry)
            if wrong:
                return VerifyError(f"{kind} {entry.name}: {wrong}", rule="declaration")
    before = -1
    for at, (pc, line) in enumerate(program.lines):
        if not before < pc < len(program.code) or not 0 < line < 1 << 32:
            return VerifyError(
                f"entry {at} of the line map, pc {pc} line {line}: pcs rise and are below {len(program.code)}, lines "
                f"are 1 to {(1 << 32) - 1}",
                rule="lines",
            )
        before = pc
    raise AssertionError("a rule of the declarations is broken, but which one is not known here")


def _wrong_declaration(kind: str, entry: Any) -> str:
    dtype = entry.dtype
    if type(dtype) is not MemType:
        return f"{dtype!r} is no memory type"
    if kind == "param":
        if dtype not in PARAM_TYPES:
            return f"{dtype.name} is no parameter type; it is one of {_names(PARAM_TYPES)}"
        bits = 1 if dtype is MemType.bool else 8 * dtype.size
        if entry.default is not None and not 0 <= entry.default < 1 << bits:
            return f"default {entry.default:#x} does not fit the {bits} bits of {dtype.name}"
    if kind == "table":
        if type(entry.access) is not Access:
            return f"{entry.access!r} is no access"
        if entry.access is Access.atomic and dtype not in ATOMIC_TYPES:
            return f"an atomic table of {dtype.name}; it is one of {_names(ATOMIC_TYPES)}"
    if kind == "accumulator":
        if type(entry.kind) is not AccKind:
            return f"{entry.kind!r} is no accumulator kind"
        if dtype not in ACC_TYPES[entry.kind]:
            return f"{entry.kind.name} of {dtype.name}; it is one of {_names(ACC_TYPES[entry.kind])}"
        if entry.kind is AccKind.histogram and not 1 <= entry.bins <= MAX_HISTOGRAM_BINS:
            return f"{entry.bins} bins; a histogram has 1 to {MAX_HISTOGRAM_BINS}"
        if entry.kind is not AccKind.histogram and entry.bins != 0:
            return f"{entry.bins} bins; only a histogram has bins"
    return ""


def _an(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _names(dtypes: frozenset[MemType]) -> str:
    return ", ".join(m.name for m in sorted(dtypes))


def refuse_code(
    program: Program, pc: int, have: Mapping[int, int], stack: Sequence[Any], emitted: int, loops: int, stored: int
) -> VerifyError:
    """The rule that instruction ``pc`` breaks, given what the verifier knew when it came there."""
    code = program.code
    if pc >= len(code) or type(code[pc]) is not Instr:
        return _no_return(program, pc)
    instr = code[pc]
    op = BY_CODE.get(instr.op)
    at = place(program, pc)

    def no(rule: str, why: str, fix: str = "") -> VerifyError:
        return VerifyError(f"{at}: {why}", rule=rule, pc=pc, fix=fix)

    if op is None:
        return no("opcode", f"{instr.op:#06x} is no instruction's code")
    unused = unused_fields(op, instr)
    if unused:
        return no("unused", f"{op.name} does not use field {unused[0]}, which is {getattr(instr, unused[0])} and not 0")
    for reg, want in zip(instr[2:], op.args, strict=False):
        wrong = _wrong_register(program, reg, want, "reads")
        if wrong:
            return no(*wrong)
        if reg not in have:
            return no(
                "unassigned",
                f"r{reg} is not assigned on every path to here",
                "assign it before the if or loop, or in both branches",
            )
    if op.result is not None:
        wrong = _wrong_register(program, instr.dst, op.result, "writes")
        if wrong:
            return no(*wrong)
    if op.imm is Imm.const:
        return no(*_wrong_constant(program, op, instr.imm))
    if op.imm not in (Imm.none, Imm.target):
        wrong = _wrong_operand(program, op, instr.imm)
        if wrong:
            return no(*wrong)
    if op.imm is Imm.emit:
        name = program.emits[instr.imm].name
        if loops:
            return no("emit", f"emit to {name} in a loop", "keep the value in a register and emit it after the loop")
        return no("emit", f"a path to here has already emitted to {name}", "emit once, or declare a second emit")
    if op.imm is Imm.table:
        name = program.tables[instr.imm].name
        earlier = next(show(program, i) for i, other in enumerate(code) if _updates(other) and other.imm == instr.imm)
        return no("order", f"table {name} is updated by `{earlier}` too", "use one table for each kind of update")
    rule, why, fix = _wrong_control(program, pc, stack, stored)
    return no(rule, why, fix)


def _no_return(program: Program, pc: int) -> VerifyError:
    if not program.code:
        return VerifyError(
            "pc 0: the program has no instructions; the last one is return", rule="return", pc=0, fix="append return"
        )
    if any(type(instr) is not Instr for instr in program.code):
        return VerifyError(f"program {program.name}: instructions are Instr, not plain tuples", rule="opcode", pc=pc)
    last = len(program.code) - 1
    return VerifyError(
        f"{place(program, last)}: the last instruction is not return", rule="return", pc=last, fix="append return"
    )


def _updates(instr: Instr) -> bool:
    op = BY_CODE.get(instr.op)
    return op is not None and op.imm is Imm.table and op.result is None


_Wrong = tuple[str, str, str]


def _wrong_register(program: Program, reg: int, want: Type, verb: str) -> _Wrong | None:
    count = len(program.registers)
    if not 0 <= reg < count:
        declared = f"r0 to r{count - 1} are" if count else "none is"
        return "register", f"r{reg} is not declared; {declared}", ""
    if program.registers[reg] != want:
        is_ = type_name(program.registers[reg])
        return "type", f"r{reg} is {is_}, but the instruction {verb} {want.name}", ""
    return None


def _wrong_constant(program: Program, op: Op, imm: int) -> _Wrong:
    if not 0 <= imm < len(program.constants):
        return "constant", f"constant #{imm} of a pool of {len(program.constants)}", ""
    assert op.result is not None, "a constant has a type"
    bits = program.constants[imm]
    return "constant", f"constant #{imm} is {bits:#018x}; {op.result.name} has zeros above bit 31", ""


def _wrong_operand(program: Program, op: Op, imm: int) -> _Wrong | None:
    names = names_of(program, op.imm)
    if not 0 <= imm < len(names):
        return "operand", f"#{imm}, but the program has {len(names)} {op.imm.value}", ""
    fits = accepted(op.name, op.imm)
    if op.imm is Imm.table:
        table = program.tables[imm]
        if table.access << 8 | table.dtype in fits:
            return None
        get = op.name.endswith("table_get")
        if get != (table.access is Access.read):
            can = "it is read by table_get only" if table.access is Access.read else "it is not read by the program"
            return (
                "access",
                f"table {table.name} is {table.access.name}: {can}",
                f"declare table {table.name} otherwise",
            )
        return "dtype", f"table {table.name} is {table.dtype.name}; {op.name} takes {_low(fits)}", ""
    if op.imm is Imm.acc:
        acc = program.accumulators[imm]
        if acc.kind << 8 | acc.dtype in fits:
            return None
        kinds = {AccKind(key >> 8).name for key in fits}
        return (
            "dtype",
            f"accumulator {acc.name} is {acc.kind.name} {acc.dtype.name}; {op.name} takes {kinds.pop()} {_low(fits)}",
            "",
        )
    entries: Sequence[Any] = {
        Imm.input: program.inputs,
        Imm.output: program.outputs,
        Imm.param: program.params,
        Imm.emit: program.emits,
    }[op.imm]
    entry = entries[imm]
    if entry.dtype in fits:
        return None
    kind = {Imm.input: "input", Imm.output: "output", Imm.param: "param", Imm.emit: "emit"}[op.imm]
    verb = op.name.partition(".")[2]
    return (
        "dtype",
        f"{kind} {entry.name} is {entry.dtype.name}; {op.name} takes {_low(fits)}",
        f"use {entry.dtype.type.name}.{verb}",
    )


def _low(fits: frozenset[int]) -> str:
    return _names(frozenset(MemType(key & 0xFF) for key in fits))


_WORDS = {IF: "if", ELSE: "else", LOOP: "loop"}


def _wrong_control(program: Program, pc: int, stack: Sequence[Any], stored: int) -> _Wrong:
    code = program.code
    instr = code[pc]
    if instr.op in (IF, LOOP) and len(stack) >= MAX_BLOCK_DEPTH:
        return "depth", f"{len(stack)} blocks are open already; at most {MAX_BLOCK_DEPTH}", "join conditions"
    if instr.op == BR_IF:
        if not stack or stack[-1][0] != LOOP or pc + 1 >= len(code) or code[pc + 1].op != END:
            return "control", "br_if stands elsewhere than right before the end of a loop", "use an if in the loop"
        return "target", f"goes to {instr.imm}, but its loop's body starts at {stack[-1][1] + 1}", ""
    if instr.op == ELSE:
        if not stack or stack[-1][0] != IF:
            return "control", "else without an open if", ""
        return "target", f"the if at pc {stack[-1][1]} goes to {stack[-1][2]}, but its else branch is at {pc + 1}", ""
    if instr.op == END:
        if not stack:
            return "control", "end without an open block", ""
        block = stack[-1]
        if block[2] != pc:
            return "target", f"the {_WORDS[block[0]]} at pc {block[1]} goes to {block[2]}, but its end is at {pc}", ""
        return "control", "the loop has no br_if right before its end", "end a loop that runs once with a false br_if"
    assert instr.op == RETURN, "all other rules were looked at"
    if pc != len(code) - 1:
        return "return", f"return before the last instruction, pc {len(code) - 1}", "use if and else to skip the rest"
    if stack:
        return "control", f"the {_WORDS[stack[-1][0]]} at pc {stack[-1][1]} has no end", ""
    missing = [output.name for i, output in enumerate(program.outputs) if not stored >> i & 1]
    return (
        "store",
        f"output {missing[0]} is not stored on every path",
        "store it in both branches, or once before the if",
    )
