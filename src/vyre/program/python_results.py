"""Local variables and results of a Python function: ``v = x``, ``return v``, ``vyre.sum(name=x)`` and its like.

Owns: one kind per variable, what a result is declared as. Leaves to others: expressions (python_values), control
(python_loops, python_body), types of accumulators (results).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from types import FunctionType
from typing import Final

from vyre.program import types as surface
from vyre.program.kinds import (
    BOOL,
    CONST,
    FLOATS,
    I32,
    KIND_MEMORY,
    KIND_NAME,
    KIND_TYPE,
    MEMORY_KIND,
    STORE,
    U32,
    UNSIGNED,
    WEAK_INT,
    Refusal,
    code_of,
)
from vyre.program.opcodes import MAX_HISTOGRAM_BINS, Access, AccKind, MemType
from vyre.program.python_values import Declared, Values, Variable, scalar_annotation
from vyre.program.results import accumulation

_NARROW: Final = (MemType.i8, MemType.u8, MemType.i16, MemType.u16, MemType.f16, MemType.bf16)


@dataclass
class Facts:
    """What one pass tells the next.

    Attributes:
        kinds: of each variable, and of each output as ``return NAME``.
        guarded: loops (their line and column; the function is (0, 0)) in which a flag guards statements.
        late: whether return stores into variables, to be handed over at the end.
        pinned: kinds of variables that only ever get literals.
        settled: nothing is left to be found out; the next pass counts.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    pinned: dict[str, int] = field(default_factory=dict)
    guarded: set[tuple[int, int]] = field(default_factory=set)
    late: bool = False
    settled: bool = False


@dataclass
class Loop:
    """A loop that is being compiled; the function itself is one that is never repeated."""

    place: tuple[int, int]
    broken: int = 0  # flag: leave the loop
    skip: int = 0  # flag: go to the end of this round
    exits: list[frozenset[str]] = field(default_factory=list)  # variables known at each break
    rounds: list[frozenset[str]] = field(default_factory=list)  # and at each continue


class Results(Values):
    """Variables and results of one pass over the statements."""

    def __init__(self, function: FunctionType, tree: ast.FunctionDef, declared: Declared, facts: Facts):
        super().__init__(function, declared)
        self.tree = tree
        self.facts = facts
        self.final = facts.settled
        self.found: dict[str, int] = dict(facts.pinned)
        self.lines: dict[str, int] = {}
        self.guarded: set[tuple[int, int]] = set()
        self.late = facts.late
        self.loops: list[Loop] = [Loop((0, 0))]
        self.outputs: dict[str, MemType] = {}
        self.accumulators: dict[str, tuple[AccKind, MemType, int]] = {}
        self.emits: dict[str, MemType] = {}
        self.updates: dict[str, str] = {}
        self.emitted: frozenset[str] = frozenset()
        self.return_type: MemType | None = None

    def flag(self) -> int:
        """A bool that is false at the start of where it is made."""
        value = self.register(BOOL)
        self.pinned.add(value >> 4)
        self.set(value, False)
        return value

    def set(self, flag: int, to: bool) -> None:
        """Set a flag. Its constant is written straight: no other register holds it."""
        self.append(CONST[BOOL], flag >> 4, (), int(to))

    def annotate(self, node: ast.AnnAssign, name: str) -> None:
        """``v: vyre.f32 = x``: the variable's type, and a value that is a literal or has it already."""
        memory = self.scalar(node.annotation)
        if memory in _NARROW:
            self.node = node.annotation
            raise Refusal(f"{memory.name} is a type of memory only", "use i32, u32 or f32 for variables")
        self.found[name] = MEMORY_KIND[memory]
        if node.value is not None:
            value = self.value(node.value)
            self.node = node.target
            self.assign(name, value)

    def scalar(self, node: ast.expr) -> MemType:
        """The scalar type that an annotation names."""
        self.node = node
        return scalar_annotation(self, node)

    def assign(self, name: str, value: int) -> int:
        """Make ``value`` the variable's; the value that now stands for it."""
        if name in self.loop_variables or name in self.old_loops:
            raise Refusal(f"{name!r} is the variable of a loop", "use another name")
        if name in self.declared.tables:
            raise Refusal(f"{name!r} is a table", "use another name")
        kind = value & 15
        line = getattr(self.node, "lineno", 0)
        if self.final:
            wanted = self.facts.kinds[name]
            if kind < WEAK_INT and kind != wanted:
                where = f" (line {self.lines[name]})" if name in self.lines else ""
                raise Refusal(
                    f"{shown(name)} is {KIND_NAME[wanted]}{where}, and {KIND_NAME[kind]} is assigned",
                    f"one type per variable: cast one, for instance vyre.{KIND_NAME[wanted]}(...)",
                )
            value = self.convert(value, wanted)
        else:
            self.join(name, kind)
            wanted = self.found[name]
            if wanted >= WEAK_INT:
                wanted = self.facts.kinds.get(name, wanted)
        if kind < WEAK_INT:
            self.lines.setdefault(name, line)
        variable = self.variables.get(name)
        if variable is None:
            variable = self.variables[name] = Variable(self.register(wanted), line)
            self.pinned.add(variable.value >> 4)
        variable.value = variable.value & ~15 | wanted
        self.sure |= {name}
        if self.known is not None:
            self.known |= {name}
        if not self.final:
            return value
        self.move(variable.value, value)
        return variable.value

    def checked(self, name: str, value: int) -> int:
        """``value``, unless another return gave another type."""
        kind, wanted = value & 15, self.facts.kinds[name]
        if kind < WEAK_INT and kind != wanted:
            raise Refusal(
                f"{KIND_NAME[kind]} is returned, another return gives {KIND_NAME[wanted]}",
                f"cast one, for instance vyre.{KIND_NAME[wanted]}(...)",
            )
        return value

    def join(self, name: str, kind: int) -> None:
        """Remember the kind of one value of ``name``: the first that is no literal's counts."""
        before = self.found.setdefault(name, kind)
        if before >= WEAK_INT:
            self.found[name] = kind if kind < WEAK_INT else max(kind, before)

    def is_operand(self, name: str) -> bool:
        """Whether the signature declares the name."""
        return name in self.declared.inputs or name in self.declared.params or name in self.declared.tables

    def returned(self, node: ast.Return) -> None:
        """``return v``, ``return {"a": x}``, ``return``."""
        if len(self.loops) > 1:
            self.late = True
        if node.value is not None:
            self.deliver(node.value)
        elif any(isinstance(other, ast.Return) and other.value is not None for other in ast.walk(self.tree)):
            raise Refusal("return without a value, where another returns one", "return a value on every path")
        for loop in self.loops:
            if loop.broken:
                self.set(loop.broken, True)
            if loop.skip:
                self.set(loop.skip, True)
        self.known = None

    def deliver(self, node: ast.expr) -> None:
        """Values for the outputs."""
        if isinstance(node, ast.Dict):
            pairs: dict[str, ast.expr] = {}
            for key, element in zip(node.keys, node.values, strict=True):
                self.node = key or node
                if not (isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isidentifier()):
                    raise Refusal("the key of an output is no name", 'write return {"name": value}')
                if key.value in pairs:
                    raise Refusal(f"two outputs are named {key.value!r}")
                pairs[key.value] = element
            if not pairs:
                raise Refusal("an empty dict has no outputs", "write return without a value")
        else:
            pairs = {"value": node}
        if self.outputs and pairs.keys() != self.outputs.keys():
            self.node = node
            raise Refusal(
                f"outputs {', '.join(pairs)}; another return has {', '.join(self.outputs)}", "return the same names"
            )
        done = {name: self.narrowed(element) for name, element in pairs.items()}
        for name, (value, memory) in done.items():
            self.node = pairs[name]
            memory = memory or (self.return_type if name == "value" else None)
            key_name = f"return {name}"
            if memory is not None:
                self.found[key_name] = MEMORY_KIND[memory]
                kind = value & 15
                source = pairs[name]
                if isinstance(source, ast.Name) and self.found.get(source.id, 0) >= WEAK_INT:
                    self.join(source.id, MEMORY_KIND[memory])  # a counter from 0 is what the result is declared as
                if (
                    self.final
                    and kind < WEAK_INT
                    and kind != MEMORY_KIND[memory]
                    and not (kind == U32 and MEMORY_KIND[memory] == I32 and memory in _NARROW)
                ):
                    raise Refusal(
                        f"{KIND_NAME[kind]} is returned, {memory.name} is declared", f"cast it: vyre.{memory.name}(...)"
                    )
                if kind == U32 and MEMORY_KIND[memory] == I32:
                    value = value & ~15 | I32
            if self.facts.late:
                value = self.assign(key_name, value)
            elif self.final:
                value = self.convert(self.checked(key_name, value), self.facts.kinds[key_name])
            else:
                self.join(key_name, value & 15)
            self.declare_output(name, memory or KIND_MEMORY[self.facts.kinds.get(key_name, I32) if self.final else I32])
            if not self.facts.late and self.final:
                self.store(name, value)

    def declare_output(self, name: str, memory: MemType) -> None:
        """An output, of the same type at every return."""
        if not self.final:
            self.outputs.setdefault(name, memory)
        elif self.outputs.setdefault(name, memory) is not memory:
            raise Refusal(
                f"output {name!r} is {self.outputs[name].name} at another return, {memory.name} here", "cast one"
            )
        self.unique(name, "output")

    def store(self, name: str, value: int) -> None:
        """Write an output of this element."""
        self.append(STORE[value & 15], 0, (value >> 4,), list(self.outputs).index(name))

    def narrowed(self, node: ast.expr) -> tuple[int, MemType | None]:
        """A result's value, and its type where it is cast to one of memory only: vyre.u8(x), vyre.f16(x)."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and len(node.args) == 1:
            self.node = node.func
            if not (
                isinstance(node.func, ast.Name) and (node.func.id in self.assigned or self.is_operand(node.func.id))
            ):
                callee = self.thing(node.func)
                if isinstance(callee, surface.ScalarType) and callee.memory in _NARROW:
                    kind = MEMORY_KIND[callee.memory]
                    value = self.value(node.args[0])
                    self.node = node
                    if kind == I32 and value & 15 in FLOATS:
                        return self.cast(value, callee.name), callee.memory  # by way of i64, as the cast elsewhere
                    return self.cast(value, KIND_NAME[kind]), callee.memory
        return self.value(node), None

    def result(self, call: ast.Call) -> None:
        """``vyre.sum(name=x)`` and its like, and updates of tables."""
        self.node = call.func
        callee = self.thing(call.func)
        self.node = call
        name = _RESULTS.get(id(callee))
        if name is None:
            self.value(call)
            self.node = call
            raise Refusal(
                "the value of this call is not used", "assign it, return it, or give it to vyre.sum(name=...)"
            )
        if name in surface.UPDATES:
            self.update(name.removeprefix("table_"), call)
            return
        named: dict[str, ast.expr] = {}
        for keyword in call.keywords:
            if keyword.arg is None:
                raise Refusal("'**' in a call has no meaning in a program", "write the names out")
            named[keyword.arg] = keyword.value
        bins = self.bins(named.pop("bins", None)) if name == "histogram" else 0
        if call.args or not named:
            raise Refusal(f"vyre.{name}() names its result", f"write vyre.{name}(result=...)")
        for result, node in named.items():
            if name == "emit":
                self.emit_value(result, node)
            else:
                self.accumulate(AccKind[name], result, node, bins)

    def bins(self, node: ast.expr | None) -> int:
        """The number of a histogram's bins: a constant."""
        if node is None:
            raise Refusal("a histogram says how many bins it has", "write vyre.histogram(h=i, bins=256)")
        value = self.value(node)
        self.node = node
        bins = self.literals[value >> 4] if value & 15 == WEAK_INT else None
        if not isinstance(bins, int) or not 0 < bins <= MAX_HISTOGRAM_BINS:
            raise Refusal(
                f"bins is no constant of 1 to {MAX_HISTOGRAM_BINS}", "write the number, or name it outside the function"
            )
        return bins

    def unique(self, name: str, what: str) -> None:
        """Refuse a result whose name another kind of result has."""
        for other, names in (("output", self.outputs), ("accumulator", self.accumulators), ("emit", self.emits)):
            if other != what and name in names:
                raise Refusal(f"{name!r} is the name of an {other} too", "give each result a name of its own")

    def accumulate(self, keep: AccKind, name: str, node: ast.expr, bins: int) -> None:
        """One accumulator of a result statement."""
        value = self.value(node)
        self.node = node
        self.unique(name, "accumulator")
        op, value, dtype = accumulation(self, keep, value)
        declared = self.accumulators.setdefault(name, (keep, dtype, bins))
        if self.final and declared != (keep, dtype, bins):
            was = f"{declared[0].name} of {declared[1].name}" + (f", {declared[2]} bins" if declared[2] else "")
            raise Refusal(f"accumulator {name!r} is a {was} elsewhere", "give it another name, or cast the value")
        self.append(op, 0, (value >> 4,), list(self.accumulators).index(name))

    def emit_value(self, name: str, node: ast.expr) -> None:
        """One stream of ``vyre.emit``."""
        if len(self.loops) > 1:
            raise Refusal(
                "emit in a loop: an element emits at most once", "set a variable in the loop and emit after it"
            )
        value, memory = self.narrowed(node)
        self.node = node
        self.unique(name, "emit")
        if name in self.emitted:
            raise Refusal(f"{name!r} is emitted twice on one path", "an element emits at most once: use if and else")
        self.emitted |= {name}
        value = self.strong(value)
        memory = memory or KIND_MEMORY[value & 15]
        if self.final and self.emits.setdefault(name, memory) is not memory:
            raise Refusal(f"emit {name!r} is {self.emits[name].name} elsewhere, {memory.name} here", "cast one")
        self.emits.setdefault(name, memory)
        self.append(code_of(f"{KIND_TYPE[value & 15].name}.emit"), 0, (value >> 4,), list(self.emits).index(name))

    def update(self, verb: str, call: ast.Call) -> None:
        """``vyre.table_add(t, i, v)`` and its like."""
        if call.keywords or len(call.args) != 3:
            raise Refusal(f"vyre.table_{verb}() takes a table, an index and a value")
        first = call.args[0]
        name = first.id if isinstance(first, ast.Name) else ""
        table = self.declared.tables.get(name)
        if table is None:
            self.node = first
            raise Refusal(f"{ast.unparse(first)!r} is no table", "declare it: t: vyre.atomic[vyre.i64]")
        if table.access is not Access.atomic:
            self.node = first
            raise Refusal(f"table {name!r} is read-only", "declare it: t: vyre.atomic[vyre.i64]")
        if self.updates.setdefault(name, verb) != verb:
            raise Refusal(
                f"table {name!r} is updated by table_{self.updates[name]} elsewhere",
                "use one table for each kind of update",
            )
        place = self.position(self.value(call.args[1]))
        value = self.value(call.args[2])
        self.node = call.args[2]
        kind = MEMORY_KIND[table.memory]
        if value & 15 < WEAK_INT and value & 15 != kind:
            raise Refusal(
                f"the value is {KIND_NAME[value & 15]}, the table {KIND_NAME[kind]}",
                f"cast it: vyre.{KIND_NAME[kind]}(...)",
            )
        value = self.convert(value, kind)
        self.node = call
        sign = ("_u" if kind in UNSIGNED else "_s") if verb in ("min", "max") else ""
        op = code_of(f"{KIND_TYPE[kind].name}.table_{verb}{sign}")
        self.append(op, 0, (place >> 4, value >> 4), self.slot(name))


def shown(name: str) -> str:
    """A variable's name as a person knows it."""
    return f"output {name.removeprefix('return ')!r}" if name.startswith("return ") else repr(name)


_RESULTS: Final = {id(getattr(surface, name)): name for name in (*surface.RESULTS, *surface.UPDATES)}
