"""Elementary functions: each body of program/functions.py as one handler.

Owns: turning a body's VIR0 code into LLVM IR over vectors, with registers instead of tiles between its instructions. Leaves
to others: the algorithms (program/functions.py) and what an instruction does to an element (primitives).

The bits are those of the body run instruction by instruction: the same primitives, none contracted. A branch is skipped
when no lane of a block takes it; else it is computed for all and selected, which bodies are written to allow.
"""

from __future__ import annotations

from typing import Final

from vyre.engines.cpu.makers import INTEGER, Maker, elementwise, gather_body
from vyre.engines.cpu.primitives import LLVM, Body, body
from vyre.engines.cpu.skeleton import Made
from vyre.program.analysis import analyse
from vyre.program.functions import BODIES, Function
from vyre.program.opcodes import BY_CODE, Group, Op, Type

LANES: Final = 16
"""Of one block: two 512-bit vectors of f64, in which most bodies compute. More would spill."""


def handler(op: Op) -> Maker:
    """The maker of a function instruction's handler."""

    def make(symbol: str) -> Made:
        assert op.result is not None
        one = function_body(BODIES[op.name])
        return elementwise(symbol, one, tuple(LLVM[t] for t in op.args), LLVM[op.result], lanes=LANES, light=False)

    return make


def function_body(function: Function) -> Body:
    """The body of a function instruction, over one element or over vectors."""
    symbol = f"body.{function.name}"
    scalar = _Translation(function, 1)
    text = _tables(function) + scalar.text(symbol)
    return Body(
        symbol, text, tuple(scalar.needs), lambda lanes: _Translation(function, lanes).text(f"{symbol}.v{lanes}")
    )


def _table_symbol(function: Function, number: int) -> str:
    return f"body.{function.name}.table{number}"


def _tables(function: Function) -> str:
    lines = []
    for i, (values, declared) in enumerate(zip(function.tables, function.program.tables, strict=True)):
        t = INTEGER[declared.dtype.size]
        items = ", ".join(f"{t} {value}" for value in values)
        lines.append(f'@"{_table_symbol(function, i)}" = private unnamed_addr constant [{len(values)} x {t}] [{items}]')
    return "\n".join(lines) + "\n"


class _Translation:
    """One body, for one number of lanes. ``lanes`` 1 is scalar."""

    def __init__(self, function: Function, lanes: int) -> None:
        self.function = function
        self.lanes = lanes
        self.lines: list[str] = []
        self.needs: list[Body] = []
        self.values: list[str | None] = [None] * len(function.program.registers)
        self.count = 0
        self.label = "entry"

    def type(self, llvm: str) -> str:
        return llvm if self.lanes == 1 else f"<{self.lanes} x {llvm}>"

    def literal(self, llvm: str, value: int) -> str:
        return str(value) if self.lanes == 1 else f"splat ({llvm} {value})"

    def new(self, text: str) -> str:
        """A new value computed by ``text``."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def use(self, register: int) -> str:
        value = self.values[register]
        assert value is not None, f"{self.function.name}: register {register} is read before it is written"
        return value

    def text(self, symbol: str) -> str:
        function, program = self.function, self.function.program
        for register in range(len(function.args)):
            self.values[register] = f"%{'abc'[register]}"
        canonical = analyse(program, 1 << function.result_register).canonical
        blocks: list[tuple[str, str, str, list[str | None], int]] = []
        for pc, instr in enumerate(program.code):
            op = BY_CODE[instr.op]
            if op.name == "if":
                blocks.append(self._open(instr.a))
            elif op.name == "end":
                self._close(*blocks.pop())
            elif op.name == "return":
                break
            else:
                assert op.result is not None, f"{function.name}: no handler for {op.name} in a body"
                self.values[instr.dst] = self._compute(op, instr[2:5], instr.imm, canonical[pc])
        result = self.type(LLVM[function.result])
        names = ", ".join(f"{self.type(LLVM[t])} %{x}" for t, x in zip(function.args, "abc", strict=False))
        lines = "\n".join(["entry:", *self.lines])
        value = self.use(function.result_register)
        return f'define internal {result} @"{symbol}"({names}) #1 {{\n{lines}\n  ret {result} {value}\n}}\n'

    def _call(self, one: Body, result: str, args: str) -> str:
        self.needs.append(one)
        suffix = "" if self.lanes == 1 else f".v{self.lanes}"
        return self.new(f'call {self.type(result)} @"{one.symbol}{suffix}"({args})')

    def _compute(self, op: Op, registers: tuple[int, ...], imm: int, canonical: bool) -> str:
        assert op.result is not None
        result = LLVM[op.result]
        verb = op.name.partition(".")[2]
        if op.group is Group.numeric:
            args = zip(op.args, registers, strict=False)
            return self._call(
                body(op, canonical), result, ", ".join(f"{self.type(LLVM[t])} {self.use(r)}" for t, r in args)
            )
        if verb == "const":
            return self._bits(op.result, self.literal(INTEGER[op.result.size], self.function.program.constants[imm]))
        if verb == "mov":
            return self.use(registers[0])
        if verb == "select":
            a, b, c = (self.use(r) for r in registers)
            q = self.new(f"icmp ne {self.type('i32')} {c}, {self.literal('i32', 0)}")
            return self.new(f"select {self.type('i1')} {q}, {self.type(result)} {a}, {self.type(result)} {b}")
        assert verb == "table_get", f"{self.function.name}: no handler for {op.name} in a body"
        declared = self.function.program.tables[imm].dtype
        assert declared.is_identity, f"{self.function.name}: table {imm} is not of a compute type"
        raw = INTEGER[declared.size]
        table = f'ptr @"{_table_symbol(self.function, imm)}"'
        value = self._call(gather_body(raw, False), raw, f"{table}, {self.type('i64')} {self.use(registers[0])}")
        return self._bits(op.result, value)

    def _bits(self, t: Type, value: str) -> str:
        """A value of type ``t`` from the integer of its bits."""
        integer = INTEGER[t.size]
        if t.is_float:
            return self.new(f"bitcast {self.type(integer)} {value} to {self.type(LLVM[t])}")
        return self.new(f"or {self.type(integer)} {value}, {self.literal(integer, 0)}")

    def _open(self, register: int) -> tuple[str, str, str, list[str | None], int]:
        """Into a branch: what is needed to leave it."""
        mask = self.new(f"icmp ne {self.type('i32')} {self.use(register)}, {self.literal('i32', 0)}")
        any_ = mask
        if self.lanes > 1:
            any_ = self.new(f"call i1 @llvm.vector.reduce.or.v{self.lanes}i1({self.type('i1')} {mask})")
        self.count += 1
        number = self.count
        self.lines.append(f"  br i1 {any_}, label %then{number}, label %join{number}\nthen{number}:")
        before, self.label = self.label, f"then{number}"
        return mask, before, self.label, list(self.values), number

    def _close(self, mask: str, before: str, _: str, old: list[str | None], number: int) -> None:
        """Out of a branch: lanes that took it have the new values."""
        chosen: list[tuple[int, str, str, str]] = []
        for register, (was, now) in enumerate(zip(old, self.values, strict=True)):
            if was is None:
                self.values[register] = None  # nobody can read it behind the branch
            elif now != was:
                t = self.type(LLVM[self.function.program.registers[register]])
                new = self.new(f"select {self.type('i1')} {mask}, {t} {now}, {t} {was}")
                chosen.append((register, t, new, was))
        self.lines.append(f"  br label %join{number}\njoin{number}:")
        for register, t, new, was in chosen:
            self.values[register] = self.new(f"phi {t} [ {new}, %{self.label} ], [ {was}, %{before} ]")
        self.label = f"join{number}"
