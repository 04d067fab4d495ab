"""Says whether a program is valid, in one pass: the only gate between a stranger's bytes and an engine.

Owns: the rules of VIR0 and their check. Engines take a ``Verified`` and check nothing again. Leaves to others: how a
refusal is put into words (refusal), how bytes become a program (bytecode).

The pass is written for speed, because a program that is seen for the first time waits for it: types are small
integers, an instruction's needs are one precomputed tuple, and a check that fails says nothing - refusal.py then
finds out what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

from vyre.errors import VerifyError
from vyre.program import bytecode
from vyre.program.ir import Accumulator, Instr, Param, Program, Stream, Table
from vyre.program.opcodes import (
    MAX_BLOCK_DEPTH,
    MAX_CODE,
    MAX_CONSTANTS,
    MAX_HISTOGRAM_BINS,
    MAX_OPERANDS,
    MAX_REGISTERS,
    OPCODES,
    Access,
    AccKind,
    Imm,
    MemType,
    Type,
)
from vyre.program.words import made_of_words

RULES: Final[dict[str, str]] = {
    "limit": f"At most {MAX_REGISTERS} registers, {MAX_CODE} instructions, {MAX_CONSTANTS} constants, and {MAX_OPERANDS} "
    "inputs, outputs, parameters, tables, accumulators and emits each.",
    "fuel": "Fuel is 1 to 2**32 - 1.",
    "name": "The program and each declaration have a name that is an identifier of at most 255 characters.",
    "duplicate": "No two of inputs, parameters and tables have one name, and no two of outputs, emits and accumulators.",
    "declaration": "A declaration's memory type is one that its kind allows: parameters bool, i32, u32, i64, u64, f32, "
    "f64; atomic tables i32, u32, i64, u64; sums i64, u64, f64; min and max i32, u32, i64, u64, f32, f64; counts and "
    f"histograms i64. A histogram has 1 to {MAX_HISTOGRAM_BINS} bins, anything else none. A default fits its type, "
    "with zeros above.",
    "lines": "The line map is sorted by pc, each pc is that of an instruction and once there, each line is 1 to 2**32 - 1.",
    "opcode": "Each code is one of the table.",
    "unused": "Fields that an instruction does not use are 0.",
    "register": "Each register is declared.",
    "type": "A register has exactly the type that the instruction reads or writes.",
    "unassigned": "A register is read only where every path to the instruction has assigned it. A loop's body runs at "
    "least once; unreachable ends no path.",
    "constant": "A constant is an entry of the pool; i32 and f32 ones have zeros above their 32 bits.",
    "operand": "An immediate names a declaration of the right kind.",
    "dtype": "The declaration's memory type is one for this instruction: loads, stores, parameters, gathers and emits go "
    "by the compute type that it widens to; min and max also by signedness; accumulators by kind.",
    "access": "A table is either read (table_get) or atomic (all other table instructions).",
    "order": "A program updates an atomic table with one kind of instruction only: an add among exclusive ors, or a max "
    "among mins, would leave the order of elements in the table.",
    "control": "Blocks are closed in the order they were opened. br_if stands right before the end of a loop, and each "
    "loop has it there.",
    "target": "Immediates of if, else, loop and br_if are the targets that the block structure gives.",
    "depth": f"At most {MAX_BLOCK_DEPTH} blocks are open at one point.",
    "emit": "On any path an emit stream is emitted to at most once, and never in a loop.",
    "store": "Every output is stored on every path to the end.",
    "return": "return is the last instruction and stands nowhere else.",
}

# Shapes: which of the checks below an instruction goes through.
BINARY, UNARY, CONST, GET, PUT, EMIT, STORE, TERNARY, GATHER, UPDATE, PLAIN, CONTROL, UNKNOWN = range(13)

_SPACE: Final = {imm: i for i, imm in enumerate((Imm.input, Imm.output, Imm.param, Imm.table, Imm.acc, Imm.emit))}
_ANY_INTEGER: Final = {Type.i32: (MemType.i32, MemType.u32), Type.i64: (MemType.i64, MemType.u64)}
PARAM_TYPES: Final = frozenset(
    (MemType.bool, MemType.i32, MemType.u32, MemType.i64, MemType.u64, MemType.f32, MemType.f64)
)
ATOMIC_TYPES: Final = frozenset((MemType.i32, MemType.u32, MemType.i64, MemType.u64))
ACC_TYPES: Final = {
    AccKind.sum: frozenset((MemType.i64, MemType.u64, MemType.f64)),
    AccKind.min: ATOMIC_TYPES | {MemType.f32, MemType.f64},
    AccKind.max: ATOMIC_TYPES | {MemType.f32, MemType.f64},
    AccKind.count: frozenset((MemType.i64,)),
    AccKind.histogram: frozenset((MemType.i64,)),
}


def _key(group: int, dtype: MemType) -> int:
    """One number for a table's access or an accumulator's kind together with its memory type."""
    return group << 8 | dtype


def accepted(name: str, imm: Imm) -> frozenset[int]:
    """What an instruction's declaration may be: memory types; for tables and accumulators with access or kind."""
    if imm is Imm.none or imm is Imm.const or imm is Imm.target:
        return frozenset()
    prefix, _, verb = name.rpartition(".")
    if imm is Imm.table:
        type_ = Type[prefix]
        if verb == "table_get":
            return frozenset(_key(Access.read, m) for m in MemType if m.type is type_)
        return frozenset(_key(Access.atomic, m) for m in _signed(type_, verb))
    if imm is Imm.acc:
        what = verb.split("_")[1]
        if what == "sum":
            return frozenset(
                _key(AccKind.sum, m) for m in ((MemType.i64, MemType.u64) if prefix == "i64" else (MemType.f64,))
            )
        if what in ("count", "histogram"):
            return frozenset((_key(AccKind[what], MemType.i64),))
        type_ = Type[prefix]
        dtypes = (MemType(type_),) if type_.is_float else _signed(type_, verb)
        return frozenset(_key(AccKind[what], m) for m in dtypes)
    return frozenset(m for m in MemType if m.type is Type[prefix])


def _signed(type_: Type, verb: str) -> tuple[MemType, ...]:
    signed, unsigned = _ANY_INTEGER[type_]
    return (signed,) if verb.endswith("_s") else (unsigned,) if verb.endswith("_u") else (signed, unsigned)


def _shape(name: str, imm: Imm, result: Type | None, args: int) -> int:
    if imm is Imm.target or name in ("end", "return"):
        return CONTROL
    if imm is Imm.const:
        return CONST
    if imm is Imm.none:
        return PLAIN if not args else (UNARY, BINARY, TERNARY)[args - 1]
    if imm is Imm.output:
        return STORE
    if imm is Imm.emit:
        return EMIT
    if result is not None:
        return GATHER if args else GET
    return UPDATE if args == 2 else PUT


_Need = tuple[int, int, int, int, int, int, frozenset[int]]
"""Shape; types of dst, a, b, c as numbers, 0 for an unused one; where the immediate's declaration is; what fits."""
NEEDS: Final[dict[int, _Need]] = {
    op.code: (
        _shape(op.name, op.imm, op.result, len(op.args)),
        int(op.result or 0),
        *(int(t) for t in (*op.args, 0, 0, 0)[:3]),  # type: ignore[misc]
        _SPACE.get(op.imm, 0),
        accepted(op.name, op.imm),
    )
    for op in OPCODES
}
_UNKNOWN: Final[_Need] = (UNKNOWN, 0, 0, 0, 0, 0, frozenset())
_CODES: Final = {op.name: op.code for op in OPCODES}
IF, ELSE, END, LOOP, BR_IF, RETURN = (_CODES[n] for n in ("if", "else", "end", "loop", "br_if", "return"))


class _Quick:
    check: Callable[[Program], bool] | None = None


quick: Final = _Quick()
"""What may say yes before ``check_code`` is asked: native code of an engine that is in use. It says True only of code that
keeps every rule, given that the declarations do; False means nothing. None where no such engine was opened."""


class Verified:
    """A program that keeps every rule. Compares, hashes and pickles by identity; unpickling verifies again.

    Attributes:
        program: the program.
        identity: BLAKE2b-256 over code and declarations without names; computed when first asked for.
    """

    __slots__ = ("_identity", "_program")
    _program: Program
    _identity: bytes | None

    def __init__(self, program: Program) -> None:
        check_declarations(program)
        if quick.check is None or not quick.check(program):
            check_code(program)
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_identity", None)

    @property
    def program(self) -> Program:
        return self._program

    @property
    def identity(self) -> bytes:
        found = self._identity
        if found is None:
            found = bytecode.identity(self._program)
            object.__setattr__(self, "_identity", found)
        return found

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Verified is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Verified is immutable: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Verified) and self.identity == other.identity)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return _restore, (bytecode.encode(self._program),)

    def __repr__(self) -> str:
        return f"<Verified {self._program.name} {self.identity.hex()[:12]}>"


def _restore(data: bytes) -> Verified:
    return Verified(bytecode.decode(data))


def verify(program: Program | Verified) -> Verified:
    """Check every rule of VIR0.

    Returns:
        The program in the wrapping that engines take; the same object when it is one already.
    Raises:
        VerifyError: the first rule broken, with its slug in ``rule`` (a key of RULES) and the place in ``pc``.
    """
    return program if isinstance(program, Verified) else Verified(program)


def check_declarations(program: Program) -> None:
    """Check all rules but those of the code itself.

    Raises:
        VerifyError: see verify().
    """
    registers, constants = program.registers, program.constants
    fine = (
        len(registers) <= MAX_REGISTERS
        and program.instructions <= MAX_CODE
        and len(constants) <= MAX_CONSTANTS
        and 0 < program.fuel < 1 << 32
        and _is_name(program.name)
    )
    if not made_of_words(program):
        fine = fine and (not registers or set(map(type, registers)) == _TYPE_CLASS)
        fine = fine and (not constants or (min(constants) >= 0 and max(constants) < 1 << 64))
    declared = (
        program.inputs, program.outputs, program.params, program.tables, program.accumulators, program.emits
    )  # fmt: skip
    seen = tuple(map(id, declared))
    if seen not in _known:
        fine = fine and _keep_the_rules(*declared)
        if fine and all(type(entries) is tuple for entries in declared):
            entries = [entry for kind in declared for entry in kind]
            if set(map(type, entries)) <= _ENTRY_CLASSES and {type(entry.name) for entry in entries} <= {str}:
                if len(_known) >= _KNOWN_MAX:
                    _known.clear()
                _known[seen] = declared
    if program.lines:
        before, end = -1, program.instructions
        for pc, line in program.lines:
            fine = fine and before < pc < end and 0 < line < 1 << 32
            before = pc
    if not fine:
        from vyre.program.refusal import refuse_declarations

        raise refuse_declarations(program)


def _keep_the_rules(
    inputs: tuple[Stream, ...], outputs: tuple[Stream, ...], params: tuple[Param, ...], tables: tuple[Table, ...],
    accumulators: tuple[Accumulator, ...], emits: tuple[Stream, ...],
) -> bool:  # fmt: skip
    """Whether these declarations do."""
    fine = len(inputs) <= MAX_OPERANDS >= len(outputs)
    names = []
    for stream in (*inputs, *outputs, *emits):
        names.append(stream.name)
        fine = fine and type(stream.dtype) is MemType
    taken, given = len({e.name for e in inputs}), len({e.name for e in outputs})
    fine = fine and taken == len(inputs) and given == len(outputs)
    if params or tables:
        fine = fine and len(params) <= MAX_OPERANDS >= len(tables)
        others = [p.name for p in params] + [t.name for t in tables]
        names += others
        fine = fine and len({*(e.name for e in inputs), *others}) == len(inputs) + len(others)
        for param in params:
            fine = fine and type(param.dtype) is MemType and param.dtype in PARAM_TYPES
            if fine and param.default is not None:
                bits = 1 if param.dtype is MemType.bool else 8 * param.dtype.size
                fine = 0 <= param.default < 1 << bits
        for table in tables:
            fine = fine and type(table.dtype) is MemType and type(table.access) is Access
            fine = fine and (table.access is Access.read or table.dtype in ATOMIC_TYPES)
    if accumulators or emits:
        fine = fine and len(accumulators) <= MAX_OPERANDS >= len(emits)
        others = [a.name for a in accumulators]
        names += others
        others += [e.name for e in emits]
        fine = fine and len({*(e.name for e in outputs), *others}) == len(outputs) + len(others)
        for acc in accumulators:
            fine = fine and type(acc.dtype) is MemType and type(acc.kind) is AccKind
            fine = fine and acc.dtype in ACC_TYPES[acc.kind]
            fine = fine and (1 <= acc.bins <= MAX_HISTOGRAM_BINS if acc.kind is AccKind.histogram else acc.bins == 0)
    return fine and all(map(_is_name, names))


def _is_name(name: str) -> bool:
    return name.isidentifier() and len(name) <= 255


_KNOWN_MAX: Final = 1_024
_known: Final[dict[tuple[int, ...], tuple[object, ...]]] = {}
"""Declarations that keep the rules, by identity: they are immutable, and kept, so that nothing else can have it. Readers
give programs with the same declarations the same objects. Cleared when full."""
_ENTRY_CLASSES: Final = {Stream, Param, Table, Accumulator}
_TYPE_CLASS: Final = {Type}
_INSTR_CLASS: Final = {Instr}


def check_code(program: Program) -> None:
    """Check the rules of the code, for any number of registers; the declarations must have passed.

    Raises:
        VerifyError: see verify().
    """
    code = program.code
    constants = program.constants
    declared = dict(enumerate(map(int, program.registers)))
    spaces: tuple[dict[int, int], ...] = (
        {i: e.dtype for i, e in enumerate(program.inputs)},
        {i: e.dtype for i, e in enumerate(program.outputs)},
        {i: e.dtype for i, e in enumerate(program.params)} if program.params else {},
        {i: e.access << 8 | e.dtype for i, e in enumerate(program.tables)} if program.tables else {},
        {i: e.kind << 8 | e.dtype for i, e in enumerate(program.accumulators)} if program.accumulators else {},
        {i: e.dtype for i, e in enumerate(program.emits)} if program.emits else {},
    )
    have: dict[int, int] = {}  # registers assigned on every path to here, with their types
    stored = emitted = loops = 0  # outputs stored on every path, emits on any path: bit masks; open loops
    updates: dict[int, int] = {}  # the instruction that updates a table
    stack: list[Any] = []  # open blocks: opcode, pc, imm, and what to go back to or merge with
    needs, count = NEEDS.get, len(constants)
    pc = 0
    for pc, (op, dst, a, b, c, imm) in enumerate(code):
        shape, td, ta, tb, tc, space, fits = needs(op, _UNKNOWN)
        if shape == BINARY:
            if have.get(a) != ta or have.get(b) != tb or declared.get(dst) != td or c or imm:
                break
            have[dst] = td
        elif shape == UNARY:
            if have.get(a) != ta or declared.get(dst) != td or b or c or imm:
                break
            have[dst] = td
        elif shape == CONST:
            # Types of 32 bits have odd codes.
            if not 0 <= imm < count or (td & 1 and constants[imm] >> 32) or declared.get(dst) != td or a or b or c:
                break
            have[dst] = td
        elif shape == GET:
            if spaces[space].get(imm) not in fits or declared.get(dst) != td or a or b or c:
                break
            have[dst] = td
        elif shape == STORE:
            if have.get(a) != ta or spaces[1].get(imm) not in fits or dst or b or c:
                break
            stored |= 1 << imm
        elif shape == TERNARY:
            if have.get(a) != ta or have.get(b) != tb or have.get(c) != tc or declared.get(dst) != td or imm:
                break
            have[dst] = td
        elif shape == GATHER:
            if have.get(a) != ta or spaces[3].get(imm) not in fits or declared.get(dst) != td or b or c:
                break
            have[dst] = td
        elif shape == PUT:
            if have.get(a) != ta or spaces[space].get(imm) not in fits or dst or b or c:
                break
        elif shape == UPDATE:
            if have.get(a) != ta or have.get(b) != tb or spaces[3].get(imm) not in fits or dst or c:
                break
            if updates.setdefault(imm, op) != op:
                break
        elif shape == EMIT:
            if have.get(a) != ta or spaces[5].get(imm) not in fits or dst or b or c or loops or emitted >> imm & 1:
                break
            emitted |= 1 << imm
        elif shape == CONTROL:
            if dst or b or c:
                break
            if op == IF:
                if have.get(a) != ta or len(stack) >= MAX_BLOCK_DEPTH:
                    break
                stack.append((IF, pc, imm, have.copy(), stored, emitted))
            elif op == BR_IF:
                if have.get(a) != ta or not stack or stack[-1][0] != LOOP or imm != stack[-1][1] + 1:
                    break
                if pc + 1 >= len(code) or code[pc + 1][0] != END:
                    break
            elif a:
                break
            elif op == LOOP:
                if len(stack) >= MAX_BLOCK_DEPTH:
                    break
                stack.append((LOOP, pc, imm))
                loops += 1
            elif op == ELSE:
                if not stack or stack[-1][0] != IF or stack[-1][2] != pc + 1:
                    break
                _, _, _, before, stored_before, emitted_before = stack.pop()
                stack.append((ELSE, pc, imm, have, stored, emitted))
                have, stored, emitted = before, stored_before, emitted_before
            elif op == END:
                if imm or not stack or stack[-1][2] != pc:
                    break
                block = stack[-1]
                if block[0] == LOOP:
                    if code[pc - 1][0] != BR_IF:
                        break
                    loops -= 1
                elif block[0] == IF:
                    have, stored = block[3], block[4]  # what the branch did may not have happened
                else:
                    other = block[3]
                    have = {reg: t for reg, t in have.items() if reg in other}
                    stored &= block[4]
                    emitted |= block[5]
                stack.pop()
            else:  # return
                if imm or stack or pc != len(code) - 1 or stored != (1 << len(program.outputs)) - 1:
                    break
                if set(map(type, code)) != _INSTR_CLASS:
                    break
                return
        elif shape != PLAIN or a or b or c or imm or (declared.get(dst) != td if td else dst):
            break
        elif td:
            have[dst] = td
    else:
        pc = len(code)
    from vyre.program.refusal import refuse_code

    raise refuse_code(program, pc, have, stack, emitted, loops, stored)


__all__ = ["RULES", "Verified", "VerifyError", "verify"]
