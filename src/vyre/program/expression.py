"""``vyre.expression(text)``: one formula in numexpr's spelling, from text to program without Python's eval.

The grammar is Python's for expressions of names, numbers, operators and calls of known functions; there is nothing
else in it, so a stranger's text can compute and can do nothing else. It is read by one loop over tokens with explicit
stacks (operator precedence parsing), which emits each instruction as soon as its operands are known: no tree, no
recursion that a text could drive. Python's own parser would take longer than this whole module does, because it makes
an object for every node.

Equal subexpressions are computed once. Bounds: MAX_TEXT characters, MAX_DEPTH open parentheses, ``max_instructions``.

Owns: the grammar, places in the text, common subexpressions. Leaves to others: types and instructions (lower), many
values into 64 registers (builder), arrays (runtime).
"""

from __future__ import annotations

import keyword
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import length_hint
from typing import Any, Final, NoReturn

from vyre.errors import CompileError, VerifyError
from vyre.program.builder import fit_registers
from vyre.program.compiled import CompiledFunction
from vyre.program.ir import Accumulator, Instr, Param, Program, Stream, packed
from vyre.program.kinds import (
    ARITY,
    BINARY,
    CONST,
    F64,
    FLOATS,
    KIND_MEMORY,
    KIND_NAME,
    KIND_TYPE,
    LOAD,
    MEMORY_KIND,
    PARAM,
    STORE,
    UNARY,
    WEAK_FLOAT,
    WEAK_INT,
    Refusal,
    code_of,
)
from vyre.program.lower import Lowering
from vyre.program.opcodes import DEFAULT_FUEL, MAX_CODE, MAX_REGISTERS, AccKind, MemType, Type
from vyre.program.results import accumulation
from vyre.program.types import ScalarType, memory_type

MAX_TEXT: Final = 1 << 16
MAX_DEPTH: Final = 200
_MAX_NUMBER: Final = 64  # characters of one number
_MAX_NAME: Final = 255  # and of a name, as in VIR0

_TOKEN: Final = re.compile(
    r"[-+(),]|[A-Za-z_]\w*|0[xXbBoO]\w+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\*\*|//|<<|>>|[<>=!]=|\S", re.ASCII
)
_scan: Final = _TOKEN.findall

# An operator on the stack: precedence, what it is, its table (a call: number of values before its arguments), its
# symbol, and the least precedence to its left that is applied before it.
_BINARY, _UNARY, _CHAIN, _PAREN, _CALL, _COMMA, _CLOSE, _END, _BOTTOM = range(9)
_Entry = tuple[int, int, Any, str, int]
_COMPARE: Final = 4


def _operators() -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    levels = ((1, "or"), (2, "and"), (5, "|"), (6, "^"), (7, "&"), (8, "<< >>"), (9, "+ -"), (10, "* / // %"))
    for level, symbols in levels:
        for symbol in symbols.split():
            found[symbol] = (level, _BINARY, BINARY[symbol], symbol, level)
    for symbol in ("<", ">", "<=", ">=", "==", "!="):
        found[symbol] = (_COMPARE, _BINARY, BINARY[symbol], symbol, _COMPARE + 1)  # a chain: the loop sees to it
    found["**"] = (12, _BINARY, BINARY["**"], "**", 13)  # from the right: what is before it waits
    found[")"] = (0, _CLOSE, None, ")", 1)
    found[","] = (0, _COMMA, None, ",", 1)
    found[""] = (0, _END, None, "", 1)
    return found


OPERATORS: Final = _operators()
ALIASES: Final = {
    "rint": "nearest", "round": "nearest", "minimum": "min", "maximum": "max", "absolute": "abs", "double": "f64",
    "float": "f64", "int": "i64",
}  # fmt: skip
REDUCTIONS: Final = {"sum": AccKind.sum, "min": AccKind.min, "max": AccKind.max, "count": AccKind.count}
_STARTS: Final[dict[str, _Entry]] = (
    {name: (0, _CALL, None, ALIASES.get(name, name), 0) for name in (*ARITY, *ALIASES, *REDUCTIONS)}
    | {s: (11, _UNARY, None, s, 0) for s in ("-", "+", "~")}
    | {"not": (3, _UNARY, None, "not", 0), "(": (0, _PAREN, None, "(", 0)}
)
_AND_CHAIN: Final[_Entry] = (_COMPARE, _CHAIN, None, "chain", 0)
_FLOOR: Final[_Entry] = (-1, _BOTTOM, None, "", 0)
_ONLY: Final = "an expression has names, numbers, operators and calls of known functions, nothing else"
_FIXES: Final = {"if": "write where(condition, a, b)", "else": "write where(condition, a, b)", "=": "compare with =="}
_REGISTER_TYPE: Final = [KIND_TYPE.get(kind, Type.i32) for kind in range(10)]
_FLOAT_KINDS: Final = frozenset(FLOATS)
_RETURN: Final = code_of("return")
_EXACT: Final = 1 << 53  # integers below are the same in f64
_F32_MAX: Final = 3.4028234663852886e38
_INFINITY: Final = float("inf")
_pack_f32, _pack_f64 = struct.Struct("<f").pack, struct.Struct("<d").pack
_int_of_4, _int_of_8 = struct.Struct("<I").unpack, struct.Struct("<Q").unpack
_new: Final = tuple.__new__  # a NamedTuple's own constructor is Python code and costs twice as much


Types = tuple[tuple[str, object], ...]


class _Quick:
    read: Callable[[str, Types, tuple[str, ...], str, int], Program | None] | None = None


quick: Final = _Quick()
"""What may read a text before the reader below is asked: native code, once an engine is in use. It takes text, types,
parameters, name and fuel, and gives the very program that this module gives, or None where it does not: also for every
text that is to be refused. None where no such engine was opened."""


class _Emitter(Lowering):
    """Straight-line code in which every value has a register of its own and equal instructions are merged."""

    __slots__ = ("code", "pool", "registers", "seen")

    def __init__(self) -> None:
        self.literals = []
        self.code: list[tuple[int, int, int, int, int, int]] = []
        self.registers: list[Type] = []
        self.seen: dict[tuple[int, ...], int] = {}
        self.pool: dict[int, int] = {}

    def emit(self, op: int, kind: int, a: int = 0, b: int = 0, c: int = 0, imm: int = 0) -> int:
        key = (op, a >> 4, b >> 4, c >> 4, imm) if c or imm else (op, a >> 4, b >> 4)
        value = self.seen.get(key)
        if value is None:
            registers = self.registers
            dst = len(registers)
            registers.append(_REGISTER_TYPE[kind])
            value = self.seen[key] = dst << 4 | kind
            self.code.append((op, dst, a >> 4, b >> 4, c >> 4, imm))
        return value & ~15 | kind  # one instruction may stand for i32, u32 and bool: each asker keeps his type

    def convert(self, value: int, kind: int) -> int:
        if value & 15 >= WEAK_INT and kind in _FLOAT_KINDS:
            weak = self.literals[value >> 4]
            if type(weak) is float or (type(weak) is int and -_EXACT < weak < _EXACT):
                if kind == F64:
                    return self.constant(kind, _int_of_8(_pack_f64(weak))[0])
                if -_F32_MAX <= weak <= _F32_MAX:
                    return self.constant(kind, _int_of_4(_pack_f32(weak))[0])
        return super().convert(value, kind)

    def constant(self, kind: int, bits: int) -> int:
        key = (kind, bits)
        value = self.seen.get(key)
        if value is None:
            pool = self.pool
            index = pool.get(bits)
            if index is None:
                index = pool[bits] = len(pool)
            registers = self.registers
            dst = len(registers)
            registers.append(_REGISTER_TYPE[kind])
            value = self.seen[key] = dst << 4 | kind
            self.code.append((CONST[kind], dst, 0, 0, 0, index))
        return value


class _Compiler:
    """One text on its way to a program. Not reused."""

    __slots__ = ("emitter", "inputs", "names", "params", "reduction", "text", "tokens", "types", "uniform")

    def __init__(self, text: str, types: Mapping[str, object] | None, params: Sequence[str]) -> None:
        self.text = text
        self.types = types
        self.params = params
        self.emitter = _Emitter()
        self.inputs: list[Stream] = []
        self.uniform: list[Param] = []
        self.names: dict[str, int] = {}
        self.tokens: list[str] = []
        self.reduction: AccKind | None = None

    def value(self) -> int:
        """Read the text; the value of the whole. Emits everything but what becomes of it.

        Raises:
            CompileError: with line and column of the token to blame.
        """
        emitter = self.emitter
        code, registers, seen, names = emitter.code, emitter.registers, emitter.seen, self.names
        literals = emitter.literals
        tokens = self.tokens = _scan(self.text)
        tokens.append("")
        rest = iter(tokens)
        # The operator on top of the stack and the value on top of the other are kept in variables.
        stack: list[_Entry] = []
        top = _FLOOR
        values: list[int] = []
        value: int | None = None
        wants_value = True
        depth = 0
        try:
            for token in rest:
                if wants_value:
                    value = names.get(token)
                    if value is not None:
                        wants_value = False
                        continue
                    if "0" <= token < ":" and "." in token and len(token) <= _MAX_NUMBER:
                        number = float(token)  # the token's pattern has seen to it that this is one
                        if number != _INFINITY:
                            literals.append(number)
                            value = names[token] = len(literals) - 1 << 4 | WEAK_FLOAT
                            wants_value = False
                            continue
                    entry = _STARTS.get(token)
                    if entry is None or (entry[1] == _CALL and tokens[_passed(tokens, rest)] != "("):
                        at = _passed(tokens, rest) - 1
                        if token == ")" and top[1] == _CALL and tokens[at - 1] == "(":
                            value = emitter.call(top[3], [])
                            top = stack.pop()
                            depth -= 1
                        else:
                            value = self._operand(token)
                        wants_value = False
                        continue
                    if entry[1] == _UNARY:
                        if top[0] > entry[0] and entry[3] == "not":
                            raise Refusal("'not' after an operator that binds tighter", "put it in parentheses")
                    else:
                        depth += 1
                        if depth > MAX_DEPTH:
                            raise Refusal(f"more than {MAX_DEPTH} open parentheses")
                        if entry[1] == _CALL:
                            entry = (0, _CALL, len(values), entry[3], 0)
                            next(rest)
                    stack.append(top)
                    top = entry
                    continue

                assert value is not None
                entry = OPERATORS.get(token)
                if entry is None:
                    raise Refusal(*self._unexpected(token))
                least = entry[4]
                while top[0] >= least:
                    what = top[1]
                    if what == _BINARY:
                        a = values.pop()
                        hit = top[2][(a & 15) << 4 | value & 15]
                        if hit is None:
                            # A number beside a float takes its type: the next most frequent case.
                            kind = a & 15 if value & 15 >= WEAK_INT else value & 15 if a & 15 >= WEAK_INT else 0
                            hit = top[2][17 * kind] if kind in _FLOAT_KINDS else None
                            if hit is None:
                                value = emitter.binary(top[3], a, value)
                                top = stack.pop()
                                continue
                            if a & 15 == kind:
                                value = emitter.convert(value, kind)
                            else:
                                a = emitter.convert(a, kind)
                        op, kind = hit
                        a >>= 4
                        b = value >> 4
                        key = (op, a, b)
                        value = seen.get(key)
                        if value is None:  # emit(), written out: this is the path of nearly every operator
                            dst = len(registers)
                            registers.append(_REGISTER_TYPE[kind])
                            value = seen[key] = dst << 4 | kind
                            code.append((op, dst, a, b, 0, 0))
                        else:
                            value = value & ~15 | kind
                    elif what == _UNARY:
                        value = emitter.unary(top[3], value)
                    else:
                        value = emitter.both(values.pop(), value)
                    top = stack.pop()
                what = entry[1]
                if what == _BINARY:
                    if top[0] == _COMPARE == entry[0]:
                        # a < b before another comparison: remember its truth, and keep b for the next.
                        truth = emitter.binary(top[3], values.pop(), value)
                        top = stack.pop()
                        if top is _AND_CHAIN:
                            truth = emitter.both(values.pop(), truth)
                            top = stack.pop()
                        values.append(truth)
                        stack.append(top)
                        top = _AND_CHAIN
                    values.append(value)
                    stack.append(top)
                    top = entry
                    wants_value = True
                elif what == _CLOSE:
                    if top[1] == _CALL:
                        first = top[2]
                        ops = UNARY.get(top[3]) if len(values) == first else None
                        op_code = ops.get(value & 15) if ops is not None else None
                        if op_code is not None:
                            value = emitter.emit(op_code, value & 15, value)
                        else:
                            args = [*values[first:], value]
                            del values[first:]
                            ends = len(stack) == 1 and not tokens[_passed(tokens, rest)]
                            value = self._call(top[3], args, outermost=ends)
                    elif top[1] != _PAREN:
                        top = _FLOOR
                        raise Refusal("')' without '('")
                    top = stack.pop()
                    depth -= 1
                elif what == _COMMA:
                    if top[1] != _CALL:
                        top = _FLOOR
                        raise Refusal("',' outside a call", _ONLY)
                    values.append(value)
                    wants_value = True
                elif top is not _FLOOR:
                    top = _FLOOR
                    raise Refusal("the text ends before ')'")
        except Refusal as refusal:
            at = _passed(tokens, rest) - 1
            self._refuse(at if wants_value else self._place(at, top), refusal)
        assert value is not None
        return value

    def _call(self, name: str, args: list[int], *, outermost: bool) -> int:
        keep = REDUCTIONS.get(name)
        if keep is None or (len(args) != 1 and name in ARITY):
            return self.emitter.call(name, args)
        if len(args) != 1:
            raise Refusal(f"{name}() takes 1 argument, not {len(args)}")
        if not outermost:
            raise Refusal(
                f"{name}() of one argument is a reduction over all elements", "it must be the whole expression"
            )
        self.reduction = keep
        return args[0]

    def _operand(self, token: str) -> int:
        """A name or a number met for the first time."""
        types = self.types
        what = MemType.f64 if types is None and token.isidentifier() else types.get(token) if types else None
        if what is not None and token not in _KEYWORDS and len(token) <= _MAX_NAME:
            memory = what if type(what) is MemType else what.memory if type(what) is ScalarType else memory_type(what)
            kind = MEMORY_KIND[memory]
            emitter = self.emitter
            dst = len(emitter.registers)
            emitter.registers.append(_REGISTER_TYPE[kind])
            if token in self.params:
                if memory is not KIND_MEMORY[kind]:
                    raise Refusal(f"parameter {token!r} is {memory.name}", f"make it {KIND_NAME[kind]}")
                emitter.code.append((PARAM[kind], dst, 0, 0, 0, len(self.uniform)))
                self.uniform.append(_new(Param, (token, memory, None)))
            else:
                emitter.code.append((LOAD[kind], dst, 0, 0, 0, len(self.inputs)))
                self.inputs.append(_new(Stream, (token, memory)))
            value = dst << 4 | kind
        elif token[:1].isdigit() or (token[:1] == "." and len(token) > 1):
            value = self.emitter.literal(_number(token))
        elif token == "True" or token == "False":
            value = self.emitter.literal(token == "True")
        elif not token:
            raise Refusal("the text ends where a value is needed")
        elif token in _STARTS:
            raise Refusal(f"{token!r} is a function", f"call it: {token}(...)")
        elif token.isidentifier() and token not in _KEYWORDS:
            known = ", ".join(sorted(map(str, types or ()))[:20]) or "none"
            raise Refusal(f"unknown name {token[:60]!r}", f"names with a type: {known}; functions are called")
        else:
            raise Refusal(*self._unexpected(token))
        self.names[token] = value
        return value

    def _unexpected(self, token: str) -> tuple[str, str]:
        if token == "(":
            return "only a known function can be called", f"known: {', '.join(sorted({*ARITY, *REDUCTIONS}))}"
        return f"unexpected {token[:40]!r}" if token else "the text ends here", _FIXES.get(token, _ONLY)

    def _place(self, at: int, top: _Entry) -> int:
        """The token to blame when applying ``top`` failed at token ``at``: its operator, or the name that is called."""
        if top[1] not in (_BINARY, _UNARY, _CALL):
            return at
        depth = 0
        for i in range(at - 1, -1, -1):
            token = self.tokens[i]
            if token == ")":
                depth += 1
            elif token == "(" and depth:
                depth -= 1
            elif token == "(":
                return i - 1 if top[1] == _CALL else at
            elif not depth and token == top[3] and top[1] != _CALL:
                before = self.tokens[i - 1] if i else "("
                if (before in _STARTS or (before in OPERATORS and before != ")")) == (top[1] == _UNARY):
                    return i
        return at

    def _refuse(self, at: int, refusal: Refusal) -> NoReturn:
        """Raise the refusal at token ``at``, whose column is looked for only now."""
        found = next((m.start() for i, m in enumerate(_TOKEN.finditer(self.text)) if i == at), len(self.text))
        raise CompileError(f"{_position(self.text, found)}: {refusal.reason}", fix=refusal.fix) from None

    def program(self, name: str, fuel: int, value: int) -> Program:
        """The program that stores ``value``, or reduces it."""
        emitter = self.emitter
        outputs: tuple[Stream, ...] = ()
        accumulators: tuple[Accumulator, ...] = ()
        if self.reduction is not None:
            try:
                op, value, dtype = accumulation(emitter, self.reduction, value)
            except Refusal as refusal:
                self._refuse(0, refusal)
            accumulators = (Accumulator("value", self.reduction, dtype),)
        else:
            if value & 15 >= WEAK_INT:
                try:
                    value = emitter.strong(value)
                except Refusal as refusal:
                    self._refuse(0, refusal)
            kind = value & 15
            op = STORE[kind]
            outputs = (_new(Stream, ("value", KIND_MEMORY[kind])),)
        code = emitter.code
        code.append((op, 0, value >> 4, 0, 0, 0))
        code.append((_RETURN, 0, 0, 0, 0, 0))
        program = Program.__new__(Program)
        # A frozen dataclass sets thirteen fields through object.__setattr__, which takes longer than all the loads.
        program.__dict__.update(
            name=name, inputs=tuple(self.inputs), outputs=outputs, params=tuple(self.uniform), tables=(),
            accumulators=accumulators, emits=(), registers=tuple(emitter.registers), constants=tuple(emitter.pool),
            fuel=fuel, source="", lines=(),
        )  # fmt: skip
        if len(emitter.registers) <= MAX_REGISTERS:  # engines want it packed, and nobody may ever look at it otherwise
            program.__dict__["_packed"] = packed(code)
        else:
            program.__dict__["code"] = tuple(map(_new, repeat(Instr), code))
        return program


def _passed(tokens: list[str], rest: Iterator[str]) -> int:
    """How many tokens an iterator over them has given."""
    return len(tokens) - length_hint(rest)


def _position(text: str, offset: int) -> str:
    line = text.count("\n", 0, offset) + 1
    return f"<expression>:{line}:{offset - text.rfind(chr(10), 0, offset)}"


def _number(token: str) -> int | float:
    """The value of a number as Python writes it.

    Raises:
        Refusal: it is no number, or one beyond 64 bits or the range of f64.
    """
    if len(token) > _MAX_NUMBER:
        raise Refusal(f"a number of {len(token)} characters", f"write it with at most {_MAX_NUMBER}")
    try:
        value = int(token, 0) if token.isdigit() or token[1:2] in "xXbBoO" else float(token)
    except ValueError:
        raise Refusal(f"{token!r} is no number", "leading zeros and suffixes are not understood") from None
    if isinstance(value, int) and value >= 1 << 64:
        raise Refusal(f"integer literal {token} is beyond 64 bits", "write a float literal")
    if value == float("inf"):
        raise Refusal(f"literal {token} is beyond the range of f64")
    return value


def compile_expression(
    text: str,
    types: Mapping[str, object] | None = None,
    *,
    params: Sequence[str] = (),
    max_instructions: int | None = None,
    fuel: int = DEFAULT_FUEL,
    name: str = "expression",
) -> Program:
    """The program of an expression, not yet verified and never cached. See ``expression`` for the arguments."""
    if not isinstance(text, str):
        raise CompileError(f"<expression>:1:1: the text is {type(text).__name__}, not str")
    if len(text) > MAX_TEXT:
        raise CompileError(f"<expression>:1:1: {len(text)} characters; at most {MAX_TEXT}", fix="split the expression")
    if not text.isascii():
        offset = next(i for i, ch in enumerate(text) if not ch.isascii())
        raise CompileError(
            f"{_position(text, offset)}: character {text[offset]!a} is not ASCII",
            fix="write names, numbers and operators in ASCII",
        )
    program = None
    if quick.read is not None and types is not None:
        program = quick.read(text, tuple(types.items()), tuple(params), name, fuel)
    if program is None:
        compiler = _Compiler(text, types, params)
        program = compiler.program(name, fuel, compiler.value())
    count = program.instructions
    most = MAX_CODE if max_instructions is None else max_instructions
    if count > most:
        raise CompileError(f"<expression>:1:1: {count} instructions; at most {most}", fix="write a shorter expression")
    if len(program.registers) > MAX_REGISTERS:
        try:
            program = fit_registers(program)
        except VerifyError as error:
            raise CompileError(
                f"<expression>:1:1: {error.message}", fix="nest less deeply: a + b + c needs fewer than a + (b + c)"
            ) from None
    return program


def expression(
    text: str,
    types: Mapping[str, object] | None = None,
    *,
    params: Sequence[str] = (),
    max_instructions: int | None = None,
    fuel: int | None = None,
    name: str = "expression",
) -> CompiledFunction:
    """Compile a formula in numexpr's spelling, such as ``2*a + where(b > 0, sqrt(b), 0)``. It is never evaluated.

    Operators are Python's (``& | ~ ^`` on bools are logic, on integers bits; comparisons chain), functions are those
    of ``vyre``, types follow docs/guide.md. The result is the output ``value``; ``sum(x)``, ``min(x)``, ``max(x)`` and
    ``count(x)`` around the whole are reductions to the accumulator ``value``.

    Args:
        text: at most 65,536 characters of ASCII.
        types: the type of each name: vyre.f32 and its like, NumPy dtypes, or their names. Names that the text does
            not use are not declared. None: every name is f64.
        params: which of the names are parameters instead of streams.
        max_instructions: refuse a longer program; None: what VIR0 allows.
        fuel: for the program's header; an expression has no loops.
    Raises:
        CompileError: with line and column, whatever the text is: a stranger's text cannot do anything else.
    """
    limit = DEFAULT_FUEL if fuel is None else fuel
    try:
        key = (text, None if types is None else tuple(types.items()), tuple(params), max_instructions, limit, name)
        found = _CACHE.get(key)
    except (TypeError, AttributeError):  # types that do not hash, or are no mapping
        key, found = None, None
    if found is None:
        program = compile_expression(
            text, types, params=params, max_instructions=max_instructions, fuel=limit, name=name
        )
        found = CompiledFunction(program, text)
        if key is not None and len(text) <= _CACHED_TEXT:
            if len(_CACHE) >= _CACHED:
                _CACHE.clear()
            _CACHE[key] = found
    return found


_KEYWORDS: Final = frozenset(keyword.kwlist)
_CACHED: Final = 512
_CACHED_TEXT: Final = 4_096
_CACHE: Final[dict[object, CompiledFunction]] = {}
"""Expressions seen before. Cleared when full: a stranger's texts cannot fill memory."""
