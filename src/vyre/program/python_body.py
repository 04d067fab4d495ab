"""Statements of a Python function: assignment, branches, loops, results.

The body is compiled in passes until nothing new is learned: which kind each variable has (a variable that only ever
got literals takes the kind of what is assigned to it elsewhere), and where jumps need flags. Only the last pass counts.

``break``, ``continue`` and an early ``return`` are nesting where one branch of an ``if`` always jumps and the other
never does: what follows moves into the other branch. Elsewhere they set a flag, and what follows is guarded by it.

Owns: local variables, loops, results. Leaves to others: expressions (python_values), the signature (python).
"""

from __future__ import annotations

import ast
from typing import Final

from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.kinds import BOOL, CONST, I32, KIND_TYPE, WEAK_INT, Refusal, code_of
from vyre.program.opcodes import BY_CODE, MAX_BLOCK_DEPTH
from vyre.program.python_flow import Flow, assigned_names, flow, nodes_of
from vyre.program.python_loops import Loops
from vyre.program.python_results import Facts
from vyre.program.python_values import Buffer, Item, Variable, words

_IF, _ELSE, _END, _LOOP, _BR_IF = (code_of(name) for name in ("if", "else", "end", "loop", "br_if"))
_EQZ: Final = code_of("i32.eqz")
_DEEP: Final = MAX_BLOCK_DEPTH // 2  # blocks inside each other, from which on jumps no longer nest what follows


class Body(Loops):
    """One pass over the statements."""

    def run(self) -> None:
        """Compile the body into ``items``."""
        self.assigned = assigned_names(self.tree)
        for name in self.assigned & (self.declared.inputs.keys() | self.declared.params.keys()):
            self.variables[name] = Variable(self.operand(name), self.first_line)
            self.found[name] = self.operand(name) & 15
            self.sure |= {name}
            self.known = (self.known or frozenset()) | {name}
        statements = self.tree.body
        first = statements[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            statements = statements[1:]
        if (0, 0) in self.facts.guarded:
            self.loops[0].skip = self.flag()
        self.block(statements)
        returns = [node for node in nodes_of(self.tree) if isinstance(node, ast.Return) and node.value is not None]
        if returns and flow(statements) is not Flow.jumps:
            self.node = returns[0]
            raise Refusal("not every path returns a value", "return a value at the end too")
        if self.facts.late:
            for name in self.outputs:
                self.store(name, self.variables[f"return {name}"].value)
                self.zeroed.add(f"return {name}")
        for name in sorted(self.zeroed):
            value = self.variables[name].value
            self.prologue.append(Item(CONST.get(value & 15, CONST[I32]), value >> 4, (), 0, self.first_line))

    def block(self, statements: list[ast.stmt]) -> None:
        """Statements in order; what can be jumped over is nested or, where that is deep already, guarded."""
        for number, statement in enumerate(statements):
            rest = statements[number + 1 :]
            self.node = statement
            one = flow([statement])
            if isinstance(statement, ast.If) and rest and self.depth < _DEEP:
                a, b = flow(statement.body), flow(statement.orelse)
                if a is Flow.jumps and b is Flow.falls:
                    self.branch(statement, statement.body, statement.orelse + rest)
                    return
                if b is Flow.jumps and a is Flow.falls:
                    self.branch(statement, statement.body + rest, statement.orelse)
                    return
            self.statement(statement)
            if one is Flow.jumps:
                return
            if one is Flow.maybe and rest:
                self.guard(rest)
                return

    def guard(self, rest: list[ast.stmt]) -> None:
        """What follows a statement that may have jumped. Where it is deep, piece by piece, each up to the next jump."""
        loop = self.loops[-1]
        self.guarded.add(loop.place)
        if len(self.loops) == 1:
            self.late = True
        sure = self.sure
        while rest:
            jumps = [number for number, statement in enumerate(rest, 1) if flow([statement]) is not Flow.falls]
            count = jumps[0] if jumps and self.depth >= _DEEP else len(rest)
            self.node = first = rest[0]
            self.open(_IF, self.emit(_EQZ, BOOL, loop.skip or self.constant(BOOL, 0)))
            self.block(rest[:count])
            self.node = first
            self.close()
            self.sure = sure
            rest = rest[count:]

    def branch(self, statement: ast.If, body: list[ast.stmt], orelse: list[ast.stmt]) -> None:
        """``if``: the two branches, and what is known after both."""
        condition = self.condition(statement.test)
        self.node = statement
        sure, known, emitted = self.sure, self.known, self.emitted
        self.open(_IF, condition)
        start = len(self.items)
        self.block(body)
        sure_a, known_a, emitted_a = self.sure, self.known, self.emitted
        self.sure, self.known, self.emitted = sure, known, emitted
        if orelse:
            self.node = orelse[0]
            if len(self.items) == start:  # nothing in the first branch: the other one is the only one
                del self.items[start - 1]
                self.append(_IF, 0, (self.emit(_EQZ, BOOL, condition) >> 4,))
            else:
                self.otherwise()
            self.block(orelse)
        self.close()
        self.sure &= sure_a
        self.known = known_a if self.known is None else self.known if known_a is None else self.known & known_a
        self.emitted |= emitted_a

    def statement(self, node: ast.stmt) -> None:
        """One statement."""
        match node:
            case ast.If():
                self.branch(node, node.body, node.orelse)
            case ast.Assign(targets=targets):
                value: int | None = None
                for target in targets:
                    value = self.assign_target(target, node.value, value)
            case ast.AnnAssign(target=ast.Name(id=name)):
                self.annotate(node, name)
            case ast.AugAssign(target=ast.Name(id=name)):
                load = ast.copy_location(ast.Name(name, ast.Load()), node.target)
                self.assign(name, self.value(ast.copy_location(ast.BinOp(load, node.op, node.value), node)))
            case ast.Return():
                self.returned(node)
            case ast.While():
                self.while_loop(node)
            case ast.For():
                self.for_loop(node)
            case ast.Break() | ast.Continue():
                self.jump(node)
            case ast.Pass():
                pass
            case ast.Expr(value=ast.Call() as call):
                self.result(call)
            case ast.AnnAssign() | ast.AugAssign():
                raise Refusal("only a plain name can be assigned", "for a table use vyre.table_add(t, i, v)")
            case ast.Expr():
                raise Refusal(
                    "an expression that does nothing", "assign it, return it, or give it to vyre.sum(name=...)"
                )
            case _:
                raise Refusal(
                    f"{words(node)} has no meaning in a program", "see the list of what compiles in docs/guide.md"
                )

    def assign_target(self, target: ast.expr, source: ast.expr, value: int | None) -> int | None:
        """One target of an assignment; the value, for the next target."""
        if isinstance(target, ast.Name):
            value = self.value(source) if value is None else value
            self.node = target
            return self.assign(target.id, value)
        if isinstance(target, ast.Tuple) and isinstance(source, ast.Tuple) and len(target.elts) == len(source.elts):
            values = []
            for element in source.elts:
                one = self.value(element)
                if one & 15 < WEAK_INT and one >> 4 in self.pinned:  # a variable could change before it is used
                    copy = self.register(one & 15)
                    self.pinned.add(copy >> 4)
                    self.move(copy, one)
                    one = copy
                values.append(one)
            for element, one in zip(target.elts, values, strict=True):
                self.assign_target(element, source, one)
            return None
        raise Refusal(
            "only plain names can be assigned, or as many names as values", "for a table use vyre.table_add(t, i, v)"
        )

    def learned(self) -> Facts:
        """What the next pass starts from."""
        facts = self.facts
        kinds = facts.kinds if self.final else dict(self.found)
        return Facts(kinds, facts.pinned, self.guarded | facts.guarded, self.late, facts.settled)

    def program(self, name: str, fuel: int) -> Program:
        """The finished program, not yet verified."""
        builder = Builder(name, fuel=fuel, source=self.function.__code__.co_filename)
        for stream, dtype in self.declared.inputs.items():
            builder.input(stream, dtype)
        for param, (dtype, default) in self.declared.params.items():
            builder.param(param, dtype, default)
        for table, kind in self.declared.tables.items():
            builder.table(table, kind.memory, kind.access)
        for output, dtype in self.outputs.items():
            builder.output(output, dtype)
        for result, (keep, dtype, bins) in self.accumulators.items():
            builder.accumulator(result, keep, dtype, bins)
        for result, dtype in self.emits.items():
            builder.emit_stream(result, dtype)
        for type_ in self.registers:
            builder.reg(type_)
        replay(builder, self.items)
        return builder.build()


def replay(builder: Builder, items: Buffer) -> None:
    """Append buffered instructions to a builder, which knows jump targets and the constant pool."""
    controls = {_ELSE: builder.else_, _END: builder.end, _LOOP: builder.loop}
    constants = {code: KIND_TYPE[kind] for kind, code in CONST.items()}
    for item in items:
        if not isinstance(item, Item):
            replay(builder, item)
            continue
        builder.at(item.line)
        if item.op in controls:
            controls[item.op]()
        elif item.op == _IF:
            builder.if_(item.args[0])
        elif item.op == _BR_IF:
            builder.br_if(item.args[0])
        elif item.op in constants:
            builder.bits(constants[item.op], item.imm, dst=item.dst)
        else:
            builder.op(BY_CODE[item.op].name, *item.args, imm=item.imm, dst=item.dst)
