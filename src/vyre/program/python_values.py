"""Expressions of a Python function: each node of the syntax tree becomes a value and the instructions that make it.

Instructions are collected in buffers before they reach a builder, for two reasons: the right side of ``and`` may run
only where it is needed, which is decided after it is seen; and constants of a loop belong before it.

Owns: names and what they stand for, conditional evaluation. Leaves to others: statements (python_body), types and
operators (lower).
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from vyre.program import types as surface
from vyre.program.kinds import (
    BOOL,
    CONST,
    DEFAULT_KIND,
    FLOATS,
    I64,
    KIND_NAME,
    KIND_TYPE,
    MEMORY_KIND,
    MOV,
    U32,
    U64,
    WEAK_INT,
    Refusal,
    code_of,
    constant_bits,
    promote,
)
from vyre.program.lower import Lowering
from vyre.program.opcodes import BY_CODE, MAX_BLOCK_DEPTH, Access, Group, MemType, Type

EAGER_INSTRUCTIONS: Final = 24
"""Up to so many instructions without traps or elementary functions are computed also where they are not needed."""

_OPERATOR: Final[dict[type[ast.AST], str]] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
    ast.Lt: "<", ast.Gt: ">", ast.LtE: "<=", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.USub: "-", ast.UAdd: "+", ast.Invert: "~", ast.Not: "not",
}  # fmt: skip
_EQZ: Final = code_of("i32.eqz")
_IF, _ELSE, _END, _LOOP, _BR_IF = (code_of(name) for name in ("if", "else", "end", "loop", "br_if"))
_STATEMENTS: Final = {getattr(surface, name): name for name in (*surface.RESULTS, *surface.UPDATES)}
_FUNCTIONS: Final[dict[Callable[..., Any], str]] = {getattr(surface, name): name for name in surface.FUNCTIONS} | {
    builtins.abs: "abs", builtins.min: "min", builtins.max: "max", builtins.pow: "pow", builtins.bool: "bool",
    builtins.float: "f64", builtins.int: "i64",
}  # fmt: skip
_MATH_NAMES: Final = {"rint": "nearest", "maximum": "max", "minimum": "min", "fabs": "abs", "round": "nearest"}


class Item(NamedTuple):
    """An instruction in a buffer. For a constant ``imm`` is its bits; control instructions have no targets yet."""

    op: int
    dst: int
    args: tuple[int, ...]
    imm: int
    line: int


Buffer = list["Item | Buffer"]  # a buffer within is a place that is filled later


@dataclass
class Variable:
    """A local variable: one register, one kind."""

    value: int
    line: int


@dataclass
class Declared:
    """What the function's signature declares, by name."""

    inputs: dict[str, MemType] = field(default_factory=dict)
    params: dict[str, tuple[MemType, int | None]] = field(default_factory=dict)
    tables: dict[str, surface.TableType] = field(default_factory=dict)


class Values(Lowering):
    """One pass over a function's body: registers, buffers, and the value of every expression."""

    def __init__(self, function: FunctionType, declared: Declared) -> None:
        super().__init__()
        self.function = function
        self.declared = declared
        self.node: ast.AST = ast.Pass(lineno=1, col_offset=0)
        self.registers: list[Type] = []
        self.pinned: set[int] = set()  # registers that are not the result of one expression only
        self.prologue: Buffer = []
        self.items: Buffer = [self.prologue]
        self.scopes: list[dict[tuple[int, int], int]] = [{}]
        self.hoist: tuple[Buffer, dict[tuple[int, int], int]] | None = None
        self.depth = 0
        self.variables: dict[str, Variable] = {}
        self.loop_variables: dict[str, int] = {}
        self.operands: dict[str, int] = {}
        self.tables_used: set[str] = set()
        self.sure: frozenset[str] = frozenset()
        self.known: frozenset[str] | None = frozenset()
        self.zeroed: set[str] = set()
        self.assigned: frozenset[str] = frozenset()
        self.old_loops: set[str] = set()

    # --- registers and buffers --------------------------------------------------------------------------------

    def register(self, kind: int) -> int:
        """A new register for a value of ``kind``; the value."""
        self.registers.append(KIND_TYPE.get(kind, Type.i64))
        return (len(self.registers) - 1) << 4 | kind

    def append(self, op: int, dst: int = 0, args: tuple[int, ...] = (), imm: int = 0) -> None:
        """Append an instruction on registers."""
        self.items.append(Item(op, dst, args, imm, getattr(self.node, "lineno", 1)))

    def emit(self, op: int, kind: int, a: int = 0, b: int = 0, c: int = 0, imm: int = 0) -> int:
        row = BY_CODE[op]
        args = (a >> 4, b >> 4, c >> 4)[: len(row.args)]
        value = 0
        if row.result is not None:
            value = self.register(kind)
        self.append(op, value >> 4, args, imm)
        return value

    def constant(self, kind: int, bits: int) -> int:
        """A constant: looked up in the blocks around, made before the outermost loop around."""
        key = (kind, bits)
        for scope in self.scopes:
            if key in scope:
                return scope[key]
        value = self.register(kind)
        self.pinned.add(value >> 4)
        items, scope = self.hoist or (self.items, self.scopes[-1])
        items.append(Item(CONST[kind], value >> 4, (), bits, getattr(self.node, "lineno", 1)))
        scope[key] = value
        return value

    def move(self, target: int, value: int) -> None:
        """Make register ``target`` hold ``value``: by writing it there in the first place, where that is possible."""
        last = self.items[-1] if self.items else None
        source = value >> 4
        if isinstance(last, Item) and last.dst == source and source not in self.pinned and BY_CODE[last.op].result:
            self.items[-1] = last._replace(dst=target >> 4)
        elif source != target >> 4:
            self.append(MOV[target & 15], target >> 4, (source,))

    @contextmanager
    def captured(self) -> Iterator[Buffer]:
        """Collect what is emitted inside in a buffer of its own."""
        outer, self.items = self.items, []
        self.scopes.append({})
        try:
            yield self.items
        finally:
            self.items = outer
            self.scopes.pop()

    def open(self, op: int, condition: int = 0) -> None:
        """Open an if or a loop."""
        self.depth += 1
        if self.depth > MAX_BLOCK_DEPTH:
            raise Refusal(f"more than {MAX_BLOCK_DEPTH} blocks inside each other", "join conditions with and, or")
        self.append(op, 0, (condition >> 4,) if op == _IF else ())
        self.scopes.append({})

    def otherwise(self) -> None:
        """Begin the else of the open if."""
        self.append(_ELSE)
        self.scopes[-1] = {}

    def close(self) -> None:
        """Close the innermost open block."""
        self.append(_END)
        self.scopes.pop()
        self.depth -= 1

    def is_eager(self, items: Buffer) -> bool:
        """Whether a buffer may run where its value is not needed: it is short and cannot trap."""
        if len(items) > EAGER_INSTRUCTIONS:
            return False
        rows = [BY_CODE[item.op] if isinstance(item, Item) else None for item in items]
        return all(
            row is not None and not row.traps and row.group not in (Group.function, Group.control, Group.result)
            for row in rows
        )

    # --- names ------------------------------------------------------------------------------------------------

    def outside(self, name: str) -> object:
        """What a name means outside the function: in its closure, its module, or builtins.

        Raises:
            Refusal: there is no such name.
        """
        function = self.function
        if name in function.__code__.co_freevars and function.__closure__:
            try:
                return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents
            except ValueError:
                raise Refusal(f"{name!r} has no value yet when the program is compiled", "assign it before") from None
        if name in function.__globals__:
            return function.__globals__[name]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise Refusal(f"unknown name {name!r}", "assign it first, or make it an argument")

    def thing(self, node: ast.expr) -> object:
        """The Python object that a dotted name stands for. Nothing is run but look-ups in modules.

        Raises:
            Refusal: it is no dotted name, or there is no such object.
        """
        if isinstance(node, ast.Name):
            return self.outside(node.id)
        if isinstance(node, ast.Attribute):
            base = self.thing(node.value)
            if not isinstance(base, ModuleType):
                raise Refusal(f"attribute {node.attr!r} of {type(base).__name__}", "only names in modules are captured")
            try:
                return getattr(base, node.attr)
            except AttributeError:
                raise Refusal(f"module {base.__name__} has no {node.attr!r}") from None
        raise Refusal("only a name can stand here")

    def captured_number(self, value: object, what: str) -> int:
        """The value of a number from outside the function, as it is now."""
        dtype = getattr(value, "dtype", None)
        if dtype is not None and getattr(value, "ndim", 1) == 0 and hasattr(value, "item"):
            memory = surface.SPELLINGS.get(str(dtype))
            if memory is not None:
                kind = MEMORY_KIND[memory]
                return self.constant(kind, constant_bits(kind, value.item()))
        elif isinstance(value, bool | int | float):
            number = value if isinstance(value, bool) else int(value) if isinstance(value, int) else float(value)
            return self.literal(number)
        raise Refusal(
            f"{what} is {_article(type(value).__name__)}: only numbers are captured from outside",
            "pass arrays as inputs or tables, and changing numbers as parameters",
        )

    def read(self, name: str) -> int:
        """The value of a name in an expression."""
        if name in self.loop_variables:
            return self.loop_variables[name]
        if name in self.assigned:
            if self.known is not None and name not in self.known:
                raise Refusal(f"{name!r} may have no value here", "assign it on every path before")
            variable = self.variables.get(name)
            if variable is None:
                raise Refusal(f"{name!r} has no value here", "assign it before")
            if name not in self.sure:
                self.zeroed.add(name)  # never read so, but the verifier cannot know
            if variable.value & 15 >= WEAK_INT:
                return self.unknown(variable.value & 15)
            return variable.value
        if name in self.declared.inputs or name in self.declared.params:
            return self.operand(name)
        if name in self.declared.tables:
            raise Refusal(f"table {name!r} without an index", f"write {name}[i]")
        if name in self.old_loops:
            raise Refusal(f"{name!r} is known only inside its loop", "assign it to another variable in the loop")
        return self.captured_number(self.outside(name), name)

    def operand(self, name: str) -> int:
        """The value of an input or parameter: loaded once, at the start."""
        if name not in self.operands:
            memory = self.declared.inputs.get(name)
            kind = MEMORY_KIND[memory if memory is not None else self.declared.params[name][0]]
            value = self.operands[name] = self.register(kind)
            self.pinned.add(value >> 4)
            verb = "load" if memory is not None else "param"
            self.prologue.append(
                Item(code_of(f"{KIND_TYPE[kind].name}.{verb}"), value >> 4, (), self.slot(name), self.first_line)
            )
        return self.operands[name]

    @property
    def first_line(self) -> int:
        """The line that the prologue belongs to."""
        return self.function.__code__.co_firstlineno

    def slot(self, name: str) -> int:
        """Index of an input, parameter or table among its kind."""
        kinds: tuple[Mapping[str, object], ...] = (self.declared.inputs, self.declared.params, self.declared.tables)
        return next(list(kind).index(name) for kind in kinds if name in kind)

    # --- expressions ------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> int:
        """The value of an expression; its instructions are appended."""
        self.node = node
        match node:
            case ast.Constant(value=bool() | int() | float() as number):
                return self.literal(number)
            case ast.Constant():
                raise Refusal(f"a {type(node.value).__name__} has no meaning in a program", "only numbers are values")
            case ast.Name():
                return self.read(node.id)
            case ast.Attribute():
                return self.captured_number(self.thing(node), ast.unparse(node))
            case ast.UnaryOp():
                value = self.value(node.operand)
                self.node = node
                return self.unary(_OPERATOR[type(node.op)], value)
            case ast.BinOp():
                if type(node.op) not in _OPERATOR:
                    raise Refusal("matrix multiplication is not for numbers")
                a, b = self.value(node.left), self.value(node.right)
                self.node = node
                return self.binary(_OPERATOR[type(node.op)], a, b)
            case ast.BoolOp():
                symbol = "and" if isinstance(node.op, ast.And) else "or"
                rest: list[Callable[[], int]] = [lambda n=n: self.value(n) for n in node.values[1:]]  # type: ignore[misc]
                return self.short_circuit(node, symbol, self.value(node.values[0]), rest)
            case ast.Compare():
                return self.comparison(node)
            case ast.IfExp():
                return self.choice(node)
            case ast.Call():
                return self.call_of(node)
            case ast.Subscript():
                return self.gather(node)
        raise Refusal(f"{words(node)} has no meaning in a program", "see the list of what compiles in docs/guide.md")

    def condition(self, node: ast.expr) -> int:
        """A bool value, for if and while."""
        value = self.value(node)
        self.node = node
        if value & 15 != BOOL:
            raise Refusal(f"the condition is {KIND_NAME[value & 15]}, not bool", "compare it: x != 0")
        return value

    def comparison(self, node: ast.Compare) -> int:
        """``a < b < c``: b is evaluated once, c only where a < b, unless that makes no difference."""
        for op in node.ops:
            if type(op) not in _OPERATOR:
                raise Refusal(f"'{words(op)}' has no meaning in a program", "compare numbers with == < <= > >= !=")
        left = self.value(node.left)
        right = self.value(node.comparators[0])
        self.node = node
        truth = self.binary(_OPERATOR[type(node.ops[0])], left, right)
        ends = [right]

        def link(op: ast.cmpop, operand: ast.expr) -> int:
            ends.append(self.value(operand))
            self.node = node
            return self.binary(_OPERATOR[type(op)], ends[-2], ends[-1])

        rest: list[Callable[[], int]] = [
            lambda op=op, operand=operand: link(op, operand)  # type: ignore[misc]
            for op, operand in zip(node.ops[1:], node.comparators[1:], strict=True)
        ]
        return self.short_circuit(node, "and", truth, rest)

    def short_circuit(self, node: ast.AST, symbol: str, first: int, rest: list[Callable[[], int]]) -> int:
        """``a and b``, ``a or b``: b runs where it is needed only, unless it is short and cannot trap."""
        if not rest:
            return first
        with self.captured() as items:
            second = rest[0]()
            if len(rest) > 1:
                self.node = node
                second = self.short_circuit(node, symbol, second, rest[1:])
        self.node = node
        for value in (first, second):
            if value & 15 != BOOL:
                raise Refusal(f"'{symbol}' takes bool, not {KIND_NAME[value & 15]}", "compare it: x != 0")
        if self.is_eager(items):
            self.items += items
            return self.binary(symbol, first, second)
        result = self.register(BOOL)
        self.pinned.add(result >> 4)
        self.append(MOV[BOOL], result >> 4, (first >> 4,))
        self.open(_IF, first if symbol == "and" else self.emit(_EQZ, BOOL, first))
        self.items += items
        self.append(MOV[BOOL], result >> 4, (second >> 4,))
        self.close()
        return result

    def choice(self, node: ast.IfExp) -> int:
        """``a if c else b``: a select where both are short and cannot trap, otherwise branches."""
        condition = self.condition(node.test)
        with self.captured() as items_a:
            a = self.value(node.body)
        with self.captured() as items_b:
            b = self.value(node.orelse)
        self.node = node
        if self.is_eager(items_a) and self.is_eager(items_b):
            self.items += items_a
            self.items += items_b
            return self.where(condition, a, b)
        kind = promote(a & 15, b & 15, "a choice")
        kind = DEFAULT_KIND.get(kind, kind)
        result = self.register(kind)
        self.pinned.add(result >> 4)
        self.open(_IF, condition)
        self.items += items_a
        self.append(MOV[kind], result >> 4, (self.convert(a, kind) >> 4,))
        self.otherwise()
        self.items += items_b
        self.append(MOV[kind], result >> 4, (self.convert(b, kind) >> 4,))
        self.close()
        return result

    def call_of(self, node: ast.Call) -> int:
        """A call of a function of values."""
        if isinstance(node.func, ast.Name) and (node.func.id in self.assigned or node.func.id in self.operands):
            raise Refusal(f"{node.func.id!r} is a number, not a function")
        self.node = node.func
        callee = self.thing(node.func)
        self.node = node
        if isinstance(callee, surface.ScalarType):
            name: str | None = callee.memory.name
        else:
            name = _FUNCTIONS.get(callee) if callable(callee) and _hashable(callee) else None
        if name is None:
            self.refuse_call(node, callee)
        if node.keywords:
            what = " is a statement" if name in ("min", "max") else " takes no named arguments"
            raise Refusal(f"{name}({node.keywords[0].arg}=...){what}", "in an expression, give the values by position")
        args = []
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                raise Refusal("'*' in a call has no meaning in a program", "write the arguments out")
            args.append(self.value(arg))
        self.node = node
        return self.call(name, args)  # type: ignore[arg-type]

    def refuse_call(self, node: ast.Call, callee: object) -> None:
        """Say why something cannot be called."""
        if _hashable(callee) and callee in _STATEMENTS:
            raise Refusal(
                f"vyre.{_STATEMENTS[callee]}() is a statement, it has no value", "put it on a line of its own"
            )
        text = ast.unparse(node.func)
        last = text.rpartition(".")[2]
        near = _MATH_NAMES.get(last, last)
        fix = (
            f"use vyre.{near}"
            if near in surface.FUNCTIONS
            else "write its statements here; only functions of vyre are called"
        )
        raise Refusal(f"{text}() cannot be called in a program", fix)

    def gather(self, node: ast.Subscript) -> int:
        """``t[i]`` of a read-only table."""
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        table = self.declared.tables.get(name)
        if table is None or name in self.assigned:
            raise Refusal(f"{ast.unparse(node.value)!r} is no table", "declare it: t: vyre.table[vyre.f32]")
        if table.access is not Access.read:
            raise Refusal(f"table {name!r} is atomic: it is updated, not read", "use vyre.table[...] for one to read")
        if isinstance(node.slice, ast.Slice | ast.Tuple):
            raise Refusal("a table has one index and no slices", f"write {name}[i]")
        place = self.position(self.value(node.slice))
        self.node = node
        self.tables_used.add(name)
        kind = MEMORY_KIND[table.memory]
        return self.emit(code_of(f"{KIND_TYPE[kind].name}.table_get"), kind, place, imm=self.slot(name))

    def position(self, value: int) -> int:
        """The i64 register of a table's index. A negative one is beyond every table, so it traps."""
        kind = value & 15
        if kind == BOOL or kind in FLOATS:
            raise Refusal(f"the index is {KIND_NAME[kind]}", "cast it: i32(x) truncates, and traps outside i32")
        if kind == WEAK_INT:
            literal = self.literals[value >> 4]
            if isinstance(literal, int) and literal < 0:
                raise Refusal(f"index {literal}: a table does not count from its end", "use an index from 0 on")
        if kind == U64:
            return value & ~15 | I64
        return self.cast(value, "u64" if kind == U32 else "i64") & ~15 | I64


def _hashable(thing: object) -> bool:
    try:
        hash(thing)
    except TypeError:
        return False
    return True


def _article(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def words(node: ast.AST) -> str:
    """What a person calls a kind of syntax: ListComp -> 'list comp'."""
    name = type(node).__name__
    return _SYNTAX.get(name, "".join(f" {ch.lower()}" if ch.isupper() else ch for ch in name).strip())


_SYNTAX: Final = {
    "ListComp": "a list comprehension", "SetComp": "a set comprehension", "DictComp": "a dict comprehension",
    "GeneratorExp": "a generator", "Lambda": "lambda", "JoinedStr": "an f-string", "NamedExpr": "':='",
    "Await": "await", "Yield": "yield", "YieldFrom": "yield", "List": "a list", "Tuple": "a tuple", "Dict": "a dict",
    "Set": "a set", "Starred": "'*'", "In": "in", "NotIn": "not in", "Is": "is", "IsNot": "is not",
    "FunctionDef": "a function inside", "AsyncFunctionDef": "async def", "ClassDef": "a class inside",
    "Delete": "del", "With": "with", "AsyncWith": "async with", "AsyncFor": "async for", "Raise": "raise",
    "Try": "try", "TryStar": "try", "Assert": "assert", "Import": "import", "ImportFrom": "import",
    "Global": "global", "Nonlocal": "nonlocal", "Match": "match",
}  # fmt: skip


def scalar_annotation(values: Values, node: ast.expr) -> MemType:
    """The memory type that an annotation names.

    Raises:
        Refusal: it is no scalar type.
    """
    thing = annotation(values, node)
    if isinstance(thing, surface.ScalarType):
        return thing.memory
    if thing is bool:
        return MemType.bool
    spelled = (
        {int: "vyre.i64 or vyre.i32", float: "vyre.f64 or vyre.f32"}.get(thing) if isinstance(thing, type) else None
    )
    raise Refusal(
        f"{ast.unparse(node)} is no scalar type", f"write {spelled or 'vyre.f32, vyre.i32 or another of vyre'}"
    )


def annotation(values: Values, node: ast.expr) -> object:
    """The object that an annotation names, also one written as a string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            parsed: ast.expr = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            raise Refusal(f"annotation {node.value!r} cannot be read") from None
        return annotation(values, parsed)
    if isinstance(node, ast.Subscript):
        outer = values.thing(node.value)
        if outer is surface.table or outer is surface.atomic:
            return outer[annotation(values, node.slice)]
        raise Refusal(f"{ast.unparse(node)} is no type of a program", "write vyre.table[vyre.f32]")
    return values.thing(node)
