"""Loops of a Python function: while, for over range, break and continue.

Owns: when a round begins and ends, and how often. Leaves to others: what is in it (python_body).
"""

from __future__ import annotations

import ast
from typing import Final

from vyre.program.kinds import (
    BOOL,
    DEFAULT_KIND,
    I32,
    INTS,
    KIND_NAME,
    U32,
    U64,
    UNSIGNED,
    WEAK_INT,
    Refusal,
    code_of,
    constant_bits,
    promote,
)
from vyre.program.python_flow import has_jump, has_return, is_endless
from vyre.program.python_results import Loop, Results
from vyre.program.python_values import Buffer

_IF, _ELSE, _END, _LOOP, _BR_IF = (code_of(name) for name in ("if", "else", "end", "loop", "br_if"))
_EQZ: Final = code_of("i32.eqz")


class Loops(Results):
    """Loops: VIR0 has a do-while only, and no jumps."""

    def block(self, statements: list[ast.stmt]) -> None:
        """Statements in order; python_body says how."""
        raise NotImplementedError

    def enter(self, node: ast.While | ast.For) -> Loop:
        """Prepare a loop: where its constants go, and its flags."""
        if node.orelse:
            raise Refusal(
                "'else' of a loop has no meaning in a program", "set a variable in the loop and test it after"
            )
        if self.hoist is None:
            place: Buffer = []
            self.items.append(place)
            self.hoist = (place, self.scopes[-1])
        loop = Loop((node.lineno, node.col_offset))
        if has_jump(node.body, ast.Break) or has_return(node.body):
            loop.broken = self.flag()
        if loop.place in self.facts.guarded:
            loop.skip = self.flag()
        return loop

    def body_of(self, loop: Loop, statements: list[ast.stmt]) -> None:
        """One round: the statements, from a cleared flag on."""
        if loop.skip:
            self.set(loop.skip, False)
        self.loops.append(loop)
        self.block(statements)
        self.loops.pop()
        if self.known is not None:
            loop.rounds.append(self.known)

    def again(self, loop: Loop, node: ast.stmt, more: Buffer, condition: int) -> None:
        """Close a loop: go round again where it was not left and ``condition``, which ``more`` computes, holds."""
        self.node = node
        if not loop.broken:
            self.items += more
        elif self.is_eager(more):
            self.items += more
            condition = self.both(self.emit(_EQZ, BOOL, loop.broken), condition)
        else:
            result = self.emit(_EQZ, BOOL, loop.broken)
            self.pinned.add(result >> 4)
            self.open(_IF, result)
            self.items += more
            self.move(result, condition)
            self.close()
            condition = result
        self.append(_BR_IF, 0, (condition >> 4,))
        self.close()

    def while_loop(self, node: ast.While) -> None:
        """``while c: body`` is: if c, do body while c."""
        outer = self.hoist
        loop = self.enter(node)
        endless = is_endless(node)
        if not endless:
            self.open(_IF, self.condition(node.test))
        sure, known, emitted = self.sure, self.known, self.emitted
        self.node = node
        self.open(_LOOP)
        self.body_of(loop, node.body)
        self.node = node.test
        if not endless:
            self.known = meet(loop.rounds)
            with self.captured() as more:
                condition = self.condition(node.test) if loop.rounds else self.constant(BOOL, 0)
        else:
            more, condition = [], self.constant(BOOL, 1)
        self.again(loop, node, more, condition)
        if not endless:
            self.node = node
            self.close()
            self.sure, self.known = sure, known
        else:
            self.known = meet(loop.exits)
        self.emitted = emitted
        self.hoist = outer

    def for_loop(self, node: ast.For) -> None:
        """``for i in range(...)``: the rounds are counted as Python counts them, also at the ends of the type."""
        if not isinstance(node.target, ast.Name):
            self.node = node.target
            raise Refusal("a loop has one variable")
        name = node.target.id
        call = node.iter
        if not (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name | ast.Attribute)
            and self.thing(call.func) is range
        ):
            self.node = call
            raise Refusal("a loop runs over range(...)", "write for i in range(n)")
        if name in self.assigned or name in self.loop_variables or self.is_operand(name):
            self.node = node.target
            raise Refusal(f"{name!r} is assigned elsewhere too", "give the loop a variable of its own")
        if call.keywords or not 1 <= len(call.args) <= 3 or any(isinstance(arg, ast.Starred) for arg in call.args):
            self.node = call
            raise Refusal("range takes one to three arguments")
        outer = self.hoist
        loop = self.enter(node)
        values = [self.value(arg) for arg in call.args]
        self.node = call
        start, stop = (self.literal(0), values[0]) if len(values) == 1 else (values[0], values[1])
        step = values[2] if len(values) == 3 else self.literal(1)
        kind = promote(promote(start & 15, stop & 15, "range"), step & 15, "range")
        kind = DEFAULT_KIND.get(kind, kind)
        if kind not in INTS:
            raise Refusal(f"range of {KIND_NAME[kind]}", "cast it: i32(x) truncates, and traps outside i32")
        by = self.literals[step >> 4] if step & 15 == WEAK_INT else None
        first, last = (self.literals[v >> 4] if v & 15 == WEAK_INT else None for v in (start, stop))
        if isinstance(by, int):
            if by == 0:
                raise Refusal("range with a step of zero")
            some = isinstance(first, int) and isinstance(last, int) and (first < last if by > 0 else first > last)
            self.for_literal_step(loop, node, self.convert(start, kind), self.convert(stop, kind), by, some=some)
        else:
            ends = [self.convert(v, kind) for v in (start, stop, step)]
            self.for_any_step(loop, node, ends[0], ends[1], ends[2])
        self.hoist = outer

    def counter(self, start: int) -> int:
        """A register of its own that starts as ``start``."""
        value = self.register(start & 15)
        self.move(value, start)
        self.pinned.add(value >> 4)
        return value

    def kept(self, value: int) -> int:
        """``value`` where the body of a loop cannot change it."""
        if value >> 4 not in self.pinned or not self.is_variable(value):
            self.pinned.add(value >> 4)
            return value
        return self.counter(value)

    def is_variable(self, value: int) -> bool:
        """Whether the register is that of a variable, which a statement may write."""
        return any(variable.value >> 4 == value >> 4 for variable in self.variables.values())

    def round(self, loop: Loop, node: ast.For, value: int) -> None:
        """The body of a for loop, with its variable."""
        assert isinstance(node.target, ast.Name)
        name = node.target.id
        self.loop_variables[name] = value
        self.body_of(loop, node.body)
        del self.loop_variables[name]
        self.old_loops.add(name)

    def for_literal_step(self, loop: Loop, node: ast.For, start: int, stop: int, by: int, *, some: bool) -> None:
        """range(start, stop, literal). ``some``: there is at least one round."""
        kind = start & 15
        stop = self.kept(stop)
        at = self.counter(start)
        up = by > 0
        step = self.constant(kind, constant_bits(kind, abs(by)))
        self.node = node
        if not some:
            self.open(_IF, self.binary("<" if up else ">", at, stop))
        sure, known, emitted = self.sure, self.known, self.emitted
        self.open(_LOOP)
        self.round(loop, node, at)
        self.node = node
        with self.captured() as more:
            if abs(by) == 1:
                self.move(at, self.binary("+" if up else "-", at, step))
                condition = self.binary("<" if up else ">", at, stop)
            else:
                # What is left fits the unsigned type of this width, where at + step may not.
                left = self.binary("-", stop, at) if up else self.binary("-", at, stop)
                unsigned = U32 if kind in (I32, U32) else U64
                condition = self.binary(">", left & ~15 | unsigned, step & ~15 | unsigned)
                self.move(at, self.binary("+" if up else "-", at, step))
        self.again(loop, node, more, condition)
        self.after_for(loop, sure, known, emitted, some=some)

    def for_any_step(self, loop: Loop, node: ast.For, start: int, stop: int, step: int) -> None:
        """range with a step known at run time: the number of rounds is computed first. A step of zero traps."""
        kind = start & 15
        unsigned = U32 if kind in (I32, U32) else U64
        step = self.kept(step)
        zero = self.constant(kind, 0)
        if kind in UNSIGNED:
            some = self.binary("<", start, stop)
            span, size = self.binary("-", stop, start), step
        else:
            up = self.binary(">", step, zero)
            forth, back = self.binary("<", start, stop), self.binary(">", start, stop)
            some = self.emit(code_of("i32.select"), BOOL, forth, back, up)
            span = self.select(up, self.binary("-", stop, start), self.binary("-", start, stop))
            size = self.select(up, step, self.binary("-", zero, step))
        one = self.constant(unsigned, 1)
        span = self.binary("-", span & ~15 | unsigned, one)
        left = self.counter(self.binary("//", span, size & ~15 | unsigned))
        at = self.counter(start)
        self.node = node
        self.open(_IF, some)
        sure, known, emitted = self.sure, self.known, self.emitted
        self.open(_LOOP)
        self.round(loop, node, at)
        self.node = node
        with self.captured() as more:
            condition = self.binary("!=", left, self.constant(unsigned, 0))
            self.move(left, self.binary("-", left, one))
            self.move(at, self.binary("+", at, step))
        self.again(loop, node, more, condition)
        self.after_for(loop, sure, known, emitted, some=False)

    def after_for(
        self, loop: Loop, sure: frozenset[str], known: frozenset[str] | None, emitted: frozenset[str], *, some: bool
    ) -> None:
        """Close the if around a loop, and say which variables have a value after it."""
        if some:
            self.known = meet(loop.rounds + loop.exits)
        else:
            self.close()
            self.sure, self.known = sure, known
        self.emitted = emitted

    def jump(self, node: ast.Break | ast.Continue) -> None:
        """break and continue: set what the end of the loop and the guards look at."""
        loop = self.loops[-1]
        if self.known is not None:
            (loop.exits if isinstance(node, ast.Break) else loop.rounds).append(self.known)
        if isinstance(node, ast.Break):
            self.set(loop.broken, True)
        if loop.skip:
            self.set(loop.skip, True)
        self.known = None


def meet(sets: list[frozenset[str]]) -> frozenset[str] | None:
    """Variables known on every one of several paths; None where there is no path."""
    return frozenset.intersection(*sets) if sets else None
