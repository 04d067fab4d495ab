"""The Python side of formula: its facts, its memory, tables of names, and a program from what native code left.

Owns: workspaces and tables. Leaves to others: which instruction does what (program/kinds), the grammar (program/expression).
"""

from __future__ import annotations

import ctypes
import keyword
import platform
import struct
from array import array
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from vyre import jit
from vyre.errors import CompileError
from vyre.kept import kept_ir
from vyre.native import Unit
from vyre.program import expression, kinds
from vyre.program import formula_layout as f
from vyre.program.formula import formula, read_formula
from vyre.program.ir import Accumulator, Param, Program, Stream
from vyre.program.lower import Lowering
from vyre.program.opcodes import AccKind, MemType, Type
from vyre.program.results import accumulation
from vyre.program.types import memory_type
from vyre.program.words import P_CODE, P_CONSTANTS, P_INPUTS, P_PARAMS, P_REGISTERS, P_WORDS, remember

_Native = Callable[[int, int, bytes, int, bytes], int]
_Names = tuple[bytes, list[Any], dict[bytes, tuple[Any, ...]]]
_TABLES: Final = 256  # tables of names that are kept

_ROWS: Final = {
    "/": f.R_DIVIDE, "<<": f.R_SHIFT, ">>": f.R_SHIFT + 1, "rotl": f.R_SHIFT + 2, "rotr": f.R_SHIFT_LAST, "//": f.R_FLOOR,
    "%": f.R_FLOOR_LAST, "copysign": f.R_COPYSIGN, "**": f.R_POWER, "and": f.R_AND, "or": f.R_OR, "-": f.R_SUBTRACT,
    "*": f.R_MULTIPLY, "^": f.R_XOR, "max": f.R_MAX,
}  # fmt: skip
_ROW: Final = _ROWS | {s: f.R_FIRST_FREE + i for i, s in enumerate(s for s in kinds.BINARY if s not in _ROWS)}
_WHAT: Final = {expression.OPERATORS[s][1]: what for s, what in (("+", f.BINARY), (")", f.CLOSE), (",", f.COMMA))}
_FOLDS: Final = ("min", "max", "fmod", "copysign", "rotl", "rotr")
_CASTS: Final = ("f32", "f64", "i32", "u32", "i64", "u64")
_WORDS: Final = {"where": f.FN_WHERE, "abs": f.FN_ABS, "pow": f.FN_POWER, "fma": f.FN_FMA, "index": f.FN_INDEX}


@cache
def _facts() -> array[int]:
    """The table that native code reads."""
    words = array("Q", bytes(f.FACT_BYTES))

    def put(at: int, word: int) -> None:
        words[at // 8] = word

    for c in range(128):
        symbol = chr(c)
        if symbol in " \t\n\r\f\v":
            class_ = f.C_SPACE
        elif symbol.isalpha() or symbol == "_":
            class_ = f.C_LETTER
        else:
            class_ = f.C_DIGIT if symbol.isdigit() else f.C_POINT if symbol == "." else f.C_OTHER
        put(f.T_CHARS + 8 * c, class_)
    for symbol, (level, what, _, _, least) in expression.OPERATORS.items():
        entry = level + 1 | _WHAT.get(what, 0) << f.E_WHAT | _ROW.get(symbol, 0) << f.E_ROW | least + 1 << f.E_LEAST
        if len(symbol) == 1:
            put(f.T_CHARS + 8 * ord(symbol), f.C_OTHER | entry << 8)
        elif symbol and not symbol.isidentifier():
            assert symbol[1] in ("=", symbol[0])
            put((f.T_EQUALS if symbol[1] == "=" else f.T_DOUBLE) + 8 * ord(symbol[0]), entry)
    for power in range(f.EXPONENT_MAX + 1):
        put(f.T_POWERS + 8 * power, _f64_bits(10.0**power))
    for symbol, row in _ROW.items():
        for index, hit in enumerate(kinds.BINARY[symbol]):
            if hit is not None:
                assert index >> 4 == index & 15, f"{symbol} takes two operands of one kind"
                put(f.T_ROWS + f.ROW_BYTES * row + 8 * (index & 15), hit[0] | hit[1] << 16)
    _one_operand(put)
    for (a, b), kind in kinds.PROMOTE.items():
        put(f.T_PROMOTE + 8 * (a << 4 | b), kind)
    for (a, b), op in kinds.CAST.items():
        put(f.T_CAST + 8 * (a << 4 | b), f.CAST_FREE if op is None else op)
    for kind, type_ in kinds.KIND_TYPE.items():
        at = f.T_KINDS + f.KIND_BYTES * kind
        put(at + f.K_TYPE, type_)
        put(at + f.K_STORED, kinds.KIND_MEMORY[kind])
        tables = ((f.K_CONST, kinds.CONST), (f.K_LOAD, kinds.LOAD), (f.K_PARAM, kinds.PARAM), (f.K_STORE, kinds.STORE))
        for offset, table_ in (*tables, (f.K_SELECT, kinds.SELECT)):
            put(at + offset, table_[kind])
        if kind in kinds.FLOATS:
            put(at + f.K_NEGATE, kinds.code_of(f"{type_.name}.neg"))
            put(at + f.K_FMA, kinds.code_of(f"{type_.name}.fma"))
    return words


class _Probe(Lowering):
    """Answers with the kind of what would be emitted."""

    def emit(self, op: int, kind: int, a: int = 0, b: int = 0, c: int = 0, imm: int = 0) -> int:
        return kind


def _one_operand(put: Callable[[int, int], None]) -> None:
    """Functions, and the rows of those that are one instruction."""
    for kind in kinds.FLOATS:
        put(f.T_ONE + f.ROW_BYTES * f.ONE_ABS + 8 * kind, kinds.code_of(f"{kinds.KIND_NAME[kind]}.abs"))
    put(f.T_ONE + f.ROW_BYTES * f.ONE_BOTH + 8 * kinds.BOOL, kinds.code_of("i32.and"))
    put(f.T_ONE + f.ROW_BYTES * f.ONE_NOT + 8 * kinds.BOOL, kinds.code_of("i32.eqz"))
    put(f.T_ONE + f.ROW_BYTES * f.ONE_INDEX + 8 * kinds.I64, kinds.INDEX)
    found: dict[str, tuple[int, int]] = {name: (what, 0) for name, what in _WORDS.items()}
    for i, (name, ops) in enumerate(kinds.UNARY.items()):
        row = f.ONE_FIRST_FREE + i
        assert row < f.FUNCTIONS_MAX
        found[name] = (f.FN_ROUND if name in kinds.ROUNDINGS else f.FN_ONE, row)
        for kind, op in ops.items():
            put(f.T_ONE + f.ROW_BYTES * row + 8 * kind, op)
    for name in _FOLDS:
        found[name] = (f.FN_FOLD, _ROW[name] | kinds.ARITY[name][1] << f.D_MOST)
    for row, (name, keep) in enumerate(expression.REDUCTIONS.items()):
        what, detail = found.get(name, (f.FN_REDUCE, 0))
        found[name] = (what, detail | row + 1 << f.D_REDUCES)
        for kind in kinds.KIND_TYPE:
            try:
                op, value, memory = accumulation(_Probe(), keep, kind)
            except kinds.Refusal:
                continue
            word = op | memory << 16 | (value & 15) << 32 | keep << 40
            put(f.T_REDUCE + f.ROW_BYTES * row + 8 * kind, word)
    for name in _CASTS:
        found[name] = (f.FN_CAST, kinds.NAMED_KIND[name])
    spellings = {**{name: name for name in found}, **{a: n for a, n in expression.ALIASES.items() if n in found}}
    assert len(spellings) < f.FUNCTIONS_MAX
    at = f.T_FUNCTIONS
    for spelling, name in spellings.items():
        if len(spelling) <= 8:
            for i, word in enumerate((int.from_bytes(spelling.encode(), "little"), *found[name])):
                put(at + 8 * i, word)
            at += f.FN_BYTES


def _f64_bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def _names(types: expression.Types, params: tuple[str, ...]) -> _Names:
    """The table of names for native code, the declaration of each, and room for ``_chosen``. Nothing where they are too many."""
    rows: list[tuple[bytes, int]] = []
    declared: list[Any] = []
    for name, what in types:
        if not isinstance(name, str) or not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
            continue
        try:
            memory = memory_type(what)
        except CompileError:
            continue  # refused only where the text uses it
        kind = kinds.MEMORY_KIND[memory]
        is_param = name in params
        if len(name) > 255 or (is_param and memory is not kinds.KIND_MEMORY[kind]):
            continue
        rows.append((name.encode(), kind | memory << 8 | is_param << 16))
        declared.append(Param(name, memory, None) if is_param else Stream(name, memory))
    if len(rows) > f.NAMES_MAX:
        return b"", [], {}
    words = [len(rows)]
    rest = f.N_NAMES + f.NAME_BYTES * len(rows)
    for name_bytes, info in rows:
        words += (int.from_bytes(name_bytes[:8], "little"), len(name_bytes), info, rest)
        rest += len(name_bytes)
    return struct.pack(f"<{len(words)}Q", *words) + b"".join(name for name, _ in rows), declared, {}


class Reader:
    """Reads formulas natively. Thread-safe.

    Args:
        store: where compiled code is kept.
    """

    def __init__(self, store: jit.ObjectStore | None) -> None:
        self._native = _compiled(store)
        self._tables: dict[tuple[expression.Types, tuple[str, ...]], _Names] = {}
        self._workspaces: list[tuple[ctypes.Array[ctypes.c_char], int, memoryview]] = []

    def read(self, text: str, types: expression.Types, params: tuple[str, ...], name: str, fuel: int) -> Program | None:
        """The program of a text; None when Python is to read it."""
        key = (types, params)
        try:
            names = self._tables.get(key)
        except TypeError:  # types that do not hash
            return None
        if names is None:
            if len(self._tables) >= _TABLES:
                self._tables.clear()
            names = self._tables[key] = _names(types, params)
        if not names[0] or len(text) > f.TEXT_MAX:
            return None
        try:
            memory = self._workspaces.pop()
        except IndexError:
            memory = _workspace()
        program = None
        if self._native(memory[1], _facts_address(), text.encode(), len(text), names[0]):
            program = _program(memory[2], names, name, fuel)
        self._workspaces.append(memory)
        return program


def _program(words: memoryview, names: _Names, name: str, fuel: int) -> Program:
    """What native code left, as a program."""
    n_code, n_constants, n_inputs, n_outputs, _, _, n_accs, n_params, n_registers = words[_COUNTS].tolist()
    at = _FIRST + n_constants
    last = at + n_inputs + n_outputs + 2 * n_accs + n_params + n_registers
    program = Program.__new__(Program)
    # As the dataclass would do, which being frozen takes a call for each field.
    program.__dict__.update(
        name=name,
        inputs=_chosen(names, words[_INPUTS : _INPUTS + n_inputs]),
        outputs=_OUTPUTS[words[_KIND]] if n_outputs else (),
        params=_chosen(names, words[_PARAMS : _PARAMS + n_params]) if n_params else (),
        tables=(), accumulators=_reduction(words[last - n_registers - 1]) if n_accs else (), emits=(),
        registers=tuple([_TYPES[t] for t in words[last - n_registers : last]]),
        constants=tuple(words[_FIRST:at]),
        fuel=fuel, source="", lines=(),
        _packed=words[_CODE : _CODE + n_code].tobytes(),
    )  # fmt: skip
    remember(program, words[_START:last].tobytes())
    return program


@cache
def _reduction(word: int) -> tuple[Accumulator, ...]:
    """The accumulator of a whole, from its kind << 8 | memory type."""
    return (Accumulator("value", AccKind(word >> 8), MemType(word & 0xFF)),)


def _chosen(names: _Names, numbers: memoryview) -> tuple[Any, ...]:
    """The declarations of these names: the same object each time, so that they are verified once."""
    _, declared, made = names
    key = numbers.tobytes()
    found = made.get(key)
    if found is None:
        if len(made) >= _TABLES:
            made.clear()
        found = made[key] = tuple([declared[i] for i in numbers])
    return found


_START: Final = f.A_WORDS // 8
_COUNTS: Final = slice(_START, _START + P_WORDS // 8)
_FIRST: Final = _START + P_WORDS // 8
_CODE, _INPUTS, _PARAMS, _KIND = f.A_CODE // 8, f.A_INPUTS // 8, f.A_PARAMS // 8, f.S_KIND // 8
_TYPES: Final = [Type(i) if i in list(Type) else Type.i32 for i in range(max(Type) + 1)]
_OUTPUTS: Final = [
    (Stream("value", kinds.KIND_MEMORY[kind]),) if kind in kinds.KIND_MEMORY else () for kind in range(kinds.F64 + 1)
]
assert (P_CODE, P_CONSTANTS, P_INPUTS, P_PARAMS, P_REGISTERS) == (0, 8, 16, 56, 64)


@cache
def _facts_address() -> int:
    return _facts().buffer_info()[0]


def _workspace() -> tuple[ctypes.Array[ctypes.c_char], int, memoryview]:
    memory = (ctypes.c_char * f.WORKSPACE_BYTES)()
    return memory, ctypes.addressof(memory), memoryview(memory).cast("B").cast("Q")


def _compiled(store: jit.ObjectStore | None) -> _Native:
    """read_formula."""
    names = [read_formula.__name__]
    arch = platform.machine()
    addresses = jit.compile_ir(kept_ir(lambda: Unit("read", formula), arch, names, store), names, store)
    word = ctypes.c_uint64
    # It is over sooner than giving up the GIL and taking it back would be.
    kind = ctypes.PYFUNCTYPE(word, word, word, ctypes.c_char_p, word, ctypes.c_char_p)
    native: _Native = kind(addresses[names[0]])
    return native
