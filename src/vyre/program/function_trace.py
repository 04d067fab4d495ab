"""Writing a function's body as Python expressions: each operation on a ``Value`` appends one VIR0 instruction.

Owns: the notation, and the choice of registers for a body. Leaves to function_bodies.py what is computed, to
functions.py how a body is handed out and inlined.

The code that comes out has the shape that engines like: all constants first, each in a register of its own that is
written nowhere else; argument registers are never written; the result register is written by the last instruction only;
``if`` without ``else``; no loops (a loop would burn the fuel of the program that calls).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vyre.program.functions import Function
from vyre.program.ir import Instr, Program, Table
from vyre.program.opcodes import BY_CODE, BY_NAME, CANONICAL_NAN, Access, Group, MemType, Type

I32, I64, F32, F64 = Type.i32, Type.i64, Type.f32, Type.f64
_MASK = {I32: 0xFFFF_FFFF, I64: 0xFFFF_FFFF_FFFF_FFFF}


def bits_of(t: Type, value: float) -> int:
    """The bit pattern of ``value`` as a constant of type ``t``; every NaN becomes the canonical one."""
    if not t.is_float:
        return int(value) & _MASK[t]
    if value != value:
        return CANONICAL_NAN[t]
    code = "<I" if t is F32 else "<Q"
    return int(struct.unpack(code, struct.pack("<f" if t is F32 else "<d", value))[0])


class Value:
    """A virtual register of a body under construction. Operators append instructions of its type.

    A plain number on either side becomes a constant of the same type. ``>>`` is the unsigned shift; comparisons are methods,
    because ``==`` of two values would otherwise not be a question about the values.
    """

    __slots__ = ("body", "number", "type")

    def __init__(self, body: Body, number: int, type_: Type) -> None:
        self.body, self.number, self.type = body, number, type_

    def _two(self, verb: str, other: Value | float) -> Value:
        return self.body.op(f"{self.type.name}.{verb}", self, other)

    def __add__(self, other: Value | float) -> Value:
        return self._two("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._two("sub", other)

    def __rsub__(self, other: float) -> Value:
        return self.body.const(self.type, other) - self

    def __mul__(self, other: Value | float) -> Value:
        return self._two("mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._two("div", other)

    def __and__(self, other: Value | int) -> Value:
        return self._two("and", other)

    def __or__(self, other: Value | int) -> Value:
        return self._two("or", other)

    def __xor__(self, other: Value | int) -> Value:
        return self._two("xor", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self._two("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        return self._two("shr_u", other)

    def __getattr__(self, verb: str) -> Unary:
        """Any other instruction of this type: ``x.min(y)``, ``x.trunc()``, ``i.shr_s(52)``, ``x.lt(0.0)``."""
        if verb.startswith("_"):
            raise AttributeError(verb)
        return Unary(self, verb)

    def to(self, name: str) -> Value:
        """A conversion by its full name: ``x.to("i64.reinterpret_f64")``."""
        return self.body.op(name, self)


class Unary:
    """An instruction name bound to its first operand."""

    __slots__ = ("value", "verb")

    def __init__(self, value: Value, verb: str) -> None:
        self.value, self.verb = value, verb

    def __call__(self, *others: Value | float) -> Value:
        return self.value.body.op(f"{self.value.type.name}.{self.verb}", self.value, *others)


class Body:
    """One function body under construction."""

    def __init__(self, name: str) -> None:
        declared = BY_NAME[name]
        assert declared.group is Group.function
        assert declared.result is not None
        self.name, self.args, self.result = name, declared.args, declared.result
        self._types: list[Type] = list(self.args)
        self._code: list[tuple[str, int | None, tuple[int, ...], int]] = []
        self._constants: dict[tuple[Type, int], int] = {}
        self._tables: list[tuple[MemType, tuple[int, ...]]] = []

    def arguments(self) -> list[Value]:
        """The operands of the instruction."""
        return [Value(self, i, t) for i, t in enumerate(self.args)]

    def const(self, t: Type, value: float) -> Value:
        """A constant; equal bits share a register."""
        key = (t, bits_of(t, value))
        if key not in self._constants:
            self._constants[key] = self._new(t)
        return Value(self, self._constants[key], t)

    def table(self, dtype: MemType, values: Sequence[int]) -> int:
        """Declare a table of bit patterns and return its index."""
        self._tables.append((dtype, tuple(values)))
        return len(self._tables) - 1

    def op(self, name: str, *args: Value | float, imm: int = 0) -> Value:
        """Append one instruction into a new register."""
        declared = BY_NAME[name]
        assert declared.group is not Group.function, name
        assert declared.result is not None, name
        numbers = []
        for arg, t in zip(args, declared.args, strict=True):
            value = arg if isinstance(arg, Value) else self.const(t, arg)
            assert value.type is t, f"{name} takes {t.name}, not {value.type.name}"
            numbers.append(value.number)
        result = self._new(declared.result)
        self._code.append((name, result, tuple(numbers), imm))
        return Value(self, result, declared.result)

    def get(self, table: int, index: Value) -> Value:
        """Gather from a constant table; ``index`` (i64) must be in range for every argument of the function."""
        t = self._tables[table][0].type
        return self.op(f"{t.name}.table_get", index, imm=table)

    def assign(self, target: Value, value: Value) -> None:
        """Make ``target``, computed before the ``if`` that is open, hold ``value``, computed inside it, from here on.

        The instruction that computed ``value`` then writes ``target``, so ``target``'s old value must not be read after it.
        """
        assert target.type is value.type
        start = next(i for i in range(len(self._code) - 1, -1, -1) if self._code[i][1] == value.number)
        for i in range(start, len(self._code)):
            name, dst, args, imm = self._code[i]
            assert i == start or target.number not in args, "the old value is read after the new one was computed"
            args = args if i == start else tuple(target.number if a == value.number else a for a in args)
            self._code[i] = (name, target.number if dst == value.number else dst, args, imm)
        value.number = target.number

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """An ``if`` without ``else``; the lanes where ``condition`` is 0 skip what is written inside."""
        self._code.append(("if", None, (condition.number,), 0))
        yield
        self._code.append(("end", None, (), 0))

    def _new(self, t: Type) -> int:
        self._types.append(t)
        return len(self._types) - 1

    def finish(self, result: Value) -> Function:
        """Allocate registers and make the body immutable. ``result`` must be the newest value, outside any ``if``."""
        assert self._code[-1][1] == result.number, "the result must be computed last"
        registers, place = self._allocate(result.number)
        pool = sorted(self._constants.items(), key=lambda item: item[1])
        code = [Instr(BY_NAME[f"{t.name}.const"].code, place[n], imm=i) for i, ((t, _), n) in enumerate(pool)]
        opened: list[int] = []
        for name, dst, args, imm in self._code:
            if name == "if":
                opened.append(len(code))
            elif name == "end":
                start = opened.pop()
                code[start] = code[start]._replace(imm=len(code))
            a, b, c = ([place[n] for n in args] + [0, 0, 0])[:3]
            code.append(Instr(BY_NAME[name].code, 0 if dst is None else place[dst], a, b, c, imm))
        code.append(Instr(BY_NAME["return"].code))
        program = Program(
            name=self.name.replace(".", "_"),
            tables=tuple(Table(f"{self.name}.{i}", t, Access.read) for i, (t, _) in enumerate(self._tables)),
            registers=tuple(registers),
            constants=tuple(bits for (_, bits), _ in pool),
            code=tuple(code),
        )
        return Function(
            self.name, self.args, self.result, program, place[result.number], tuple(v for _, v in self._tables)
        )

    def _allocate(self, result: int) -> tuple[list[Type], dict[int, int]]:
        """Registers: arguments, then constants, then by live range (without loops, first to last mention is exact enough)."""
        last: dict[int, int] = {}
        for pc, (_, dst, args, _) in enumerate(self._code):
            for number in args if dst is None else (*args, dst):
                last[number] = pc
        place = {i: i for i in range(len(self.args))}
        registers = list(self.args)
        for (t, _), number in sorted(self._constants.items(), key=lambda item: item[1]):
            place[number] = len(registers)
            registers.append(t)
        fixed = len(registers)
        free: dict[Type, list[int]] = {t: [] for t in Type}
        for pc, (_, dst, args, _) in enumerate(self._code):
            for number in {*args, *(() if dst is None else (dst,))}:
                if last[number] == pc and number != dst and place[number] >= fixed:
                    free[self._types[number]].append(place[number])
            if dst is not None and dst not in place:
                t = self._types[dst]
                if free[t] and dst != result:
                    place[dst] = free[t].pop()
                else:
                    place[dst] = len(registers)
                    registers.append(t)
        return registers, place


def fma(a: Value | float, b: Value | float, c: Value | float) -> Value:
    """a * b + c with one rounding."""
    value = next(v for v in (a, b, c) if isinstance(v, Value))
    return value.body.op(f"{value.type.name}.fma", a, b, c)


def select(condition: Value, then: Value | float, otherwise: Value | float, t: Type = F64) -> Value:
    """``then`` where ``condition`` is not 0, else ``otherwise``: both are computed."""
    return condition.body.op(f"{t.name}.select", then, otherwise, condition)


def horner(x: Value, coefficients: Sequence[float]) -> Value:
    """The polynomial with these coefficients, constant term first: one fma each but the last."""
    result: Value | float = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        result = fma(result, x, c)
    assert isinstance(result, Value)
    return result


def count_ops(function: Function) -> tuple[int, int]:
    """Base instructions of one call: those that every element executes, and those behind an ``if``. Constants, ``end`` and
    ``return`` are no work and not counted; ``if`` is."""
    counts, depth = [0, 0], 0
    for instr in function.program.code[function.constants :]:
        name = BY_CODE[instr.op].name
        if name not in ("end", "return"):
            counts[min(depth, 1)] += 1
        depth += (name == "if") - (name == "end")
    return counts[0], counts[1]
