"""What a program is written with: the types it annotates with and the functions it may call.

To a type checker the scalar types are ``float``, ``int`` and ``bool``, so that arithmetic and comparisons inside a
program check under ``mypy --strict``. At run time they are ``ScalarType`` values and the functions raise: a program
is compiled from its source (``vyre.program.python``), never called.

Owns: the names users see and their spelling in other libraries. Leaves to others: what they compile to (lower).
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Generic, NoReturn, TypeAlias, TypeVar, overload

from vyre.errors import CompileError
from vyre.program.opcodes import Access, MemType

__all__ = [
    "abs", "atomic", "bf16", "bitrev", "bits", "bool_", "bswap", "ceil", "clz", "copysign", "cos", "count",
    "ctz", "emit", "exp", "f16", "f32", "f64", "floor", "fma", "fmod", "from_bits", "histogram", "i16", "i32",
    "i32_sat", "i64", "i64_sat", "i8", "index", "log", "max", "min", "nearest", "popcount", "pow", "rotl",
    "rotr", "sin", "sqrt", "sum", "table", "table_add", "table_and", "table_max", "table_min", "table_or",
    "table_xor", "tanh", "trunc", "u16", "u32", "u32_sat", "u64", "u64_sat", "u8", "where",
]  # fmt: skip

_Number = TypeVar("_Number", bound=float)


def _outside(name: str) -> NoReturn:
    raise CompileError(
        f"vyre.{name} was called outside a program: it has a meaning only in the source that @vyre.program compiles",
        fix="put the call into a function under @vyre.program; on arrays use NumPy or vyre.evaluate",
    )


class ScalarType:
    """One scalar type: an annotation (``x: vyre.f32``), a cast inside a program (``vyre.f32(x)``), a value of ``types``."""

    __slots__ = ("memory", "name")

    def __init__(self, name: str, memory: MemType) -> None:
        self.name = name
        self.memory = memory

    def __call__(self, *_: object) -> NoReturn:
        _outside(self.name)

    def __repr__(self) -> str:
        return f"vyre.{self.name}"

    def __reduce__(self) -> str:
        return self.name  # pickles by reference to this module


class TableType:
    """``vyre.table[T]`` or ``vyre.atomic[T]`` at run time: a table's element type and how the program uses it."""

    __slots__ = ("access", "memory")

    def __init__(self, memory: MemType, access: Access) -> None:
        self.memory = memory
        self.access = access

    def __repr__(self) -> str:
        return f"vyre.{'table' if self.access is Access.read else 'atomic'}[vyre.{self.memory.name}]"


if TYPE_CHECKING:
    i8: TypeAlias = int
    u8: TypeAlias = int
    i16: TypeAlias = int
    u16: TypeAlias = int
    i32: TypeAlias = int
    u32: TypeAlias = int
    i64: TypeAlias = int
    u64: TypeAlias = int
    f16: TypeAlias = float
    bf16: TypeAlias = float
    f32: TypeAlias = float
    f64: TypeAlias = float
    bool_: TypeAlias = builtins.bool

    class table(Generic[_Number]):
        """A read-only table: ``t[i]`` gathers. The index is compared unsigned with the length; beyond it is a trap."""

        def __getitem__(self, index: int) -> _Number: ...

    class atomic(Generic[_Number]):
        """A table that the program updates (``vyre.table_add`` and its like) and does not read."""

else:
    i8 = ScalarType("i8", MemType.i8)
    u8 = ScalarType("u8", MemType.u8)
    i16 = ScalarType("i16", MemType.i16)
    u16 = ScalarType("u16", MemType.u16)
    i32 = ScalarType("i32", MemType.i32)
    u32 = ScalarType("u32", MemType.u32)
    i64 = ScalarType("i64", MemType.i64)
    u64 = ScalarType("u64", MemType.u64)
    f16 = ScalarType("f16", MemType.f16)
    bf16 = ScalarType("bf16", MemType.bf16)
    f32 = ScalarType("f32", MemType.f32)
    f64 = ScalarType("f64", MemType.f64)
    bool_ = ScalarType("bool_", MemType.bool)

    class table:
        """A read-only table: ``t[i]`` gathers. The index is compared unsigned with the length; beyond it is a trap."""

        def __class_getitem__(cls, item: object) -> TableType:
            return TableType(memory_type(item), Access.read)

    class atomic:
        """A table that the program updates (``vyre.table_add`` and its like) and does not read."""

        def __class_getitem__(cls, item: object) -> TableType:
            memory = memory_type(item)
            if memory not in (MemType.i32, MemType.u32, MemType.i64, MemType.u64):
                raise CompileError(
                    f"an atomic table holds i32, u32, i64 or u64, not {memory.name}", fix="use vyre.atomic[vyre.i64]"
                )
            return TableType(memory, Access.atomic)


SPELLINGS: Final[dict[str, MemType]] = {m.name: m for m in MemType} | {
    "bool_": MemType.bool,
    "int8": MemType.i8,
    "uint8": MemType.u8,
    "int16": MemType.i16,
    "uint16": MemType.u16,
    "int32": MemType.i32,
    "uint32": MemType.u32,
    "int64": MemType.i64,
    "uint64": MemType.u64,
    "float16": MemType.f16,
    "bfloat16": MemType.bf16,
    "float32": MemType.f32,
    "float64": MemType.f64,
    "float": MemType.f64,
    "int": MemType.i64,
}
"""Every name of a type that is understood: vyre's, NumPy's, and Python's bool, int and float."""


def memory_type(what: object) -> MemType:
    """The memory type that ``what`` names.

    Args:
        what: vyre.f32 and its like, a MemType, a NumPy dtype or scalar type, bool, int, float, or any of their names.
    Raises:
        CompileError: it names no such type, or one in the other byte order.
    """
    if isinstance(what, ScalarType):
        return what.memory
    if isinstance(what, MemType):
        return what
    name = what if isinstance(what, str) else getattr(what, "__name__", None) or getattr(what, "name", None)
    found = SPELLINGS.get(name) if isinstance(name, str) else None
    if found is None or getattr(what, "isnative", True) is False:
        raise CompileError(
            f"{what!r} is not a type of vyre",
            fix="use vyre.f32, f64, i32, u32, i64, u64, i8, u8, i16, u16, f16, bf16 or bool",
        )
    return found


def infer_types(arrays: Mapping[str, object]) -> dict[str, MemType]:
    """The memory type of each array, for an expression over them.

    Args:
        arrays: by name; anything with a ``dtype``, or a Python bool, int or float (bool, i64, f64).
    Raises:
        CompileError: an array's dtype is not a type of vyre, or it has none.
    """
    found = {}
    for name, value in arrays.items():
        dtype = getattr(value, "dtype", type(value))
        memory = _BY_DTYPE.get(dtype)
        if memory is None:
            spelling = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or dtype
            memory = SPELLINGS.get(str(spelling).lower())  # Float32 is Polars'
            if memory is None or getattr(dtype, "isnative", True) is False:
                raise CompileError(
                    f"argument {name!r} has dtype {dtype}, which is not a type of vyre",
                    fix="convert it first, for instance with numpy.asarray(x, dtype=numpy.float32)",
                )
            _BY_DTYPE[dtype] = memory
        found[name] = memory
    return found


_BY_DTYPE: Final[dict[object, MemType]] = {}  # dtypes met so far: a dtype's name takes NumPy a microsecond


# --- results: statements --------------------------------------------------------------------------------------


def sum(**results: float) -> None:
    """``vyre.sum(revenue=x)``: add x to the accumulator revenue. Floats add in f64, integers in i64 or u64."""
    _outside("sum")


def count(**results: builtins.bool) -> None:
    """``vyre.count(hits=cond)``: add one to hits where cond is true."""
    _outside("count")


def histogram(*, bins: int, **results: int) -> None:
    """``vyre.histogram(h=i, bins=256)``: add one to bin i of h; an index outside 0..bins-1 is a trap."""
    _outside("histogram")


def emit(**values: float) -> None:
    """``vyre.emit(row=vyre.index(), z=z)``: append to the result arrays row and z, in element order."""
    _outside("emit")


@overload
def min(a: _Number, b: _Number, /, *more: _Number) -> _Number: ...
@overload
def min(**results: float) -> None: ...
def min(*values: float, **results: float) -> float | None:
    """``vyre.min(a, b)`` is the smaller (NaN if either is); ``vyre.min(low=x)`` keeps the smallest x in low."""
    _outside("min")


@overload
def max(a: _Number, b: _Number, /, *more: _Number) -> _Number: ...
@overload
def max(**results: float) -> None: ...
def max(*values: float, **results: float) -> float | None:
    """``vyre.max(a, b)`` is the larger (NaN if either is); ``vyre.max(high=x)`` keeps the largest x in high."""
    _outside("max")


def table_add(table: atomic[_Number], index: int, value: _Number) -> None:
    """Add value to element ``index`` of an atomic table, wrapping."""
    _outside("table_add")


def table_and(table: atomic[_Number], index: int, value: _Number) -> None:
    """Element ``index`` of an atomic table := itself & value."""
    _outside("table_and")


def table_or(table: atomic[_Number], index: int, value: _Number) -> None:
    """Element ``index`` of an atomic table := itself | value."""
    _outside("table_or")


def table_xor(table: atomic[_Number], index: int, value: _Number) -> None:
    """Element ``index`` of an atomic table := itself ^ value."""
    _outside("table_xor")


def table_min(table: atomic[_Number], index: int, value: _Number) -> None:
    """Element ``index`` of an atomic table := the smaller of itself and value."""
    _outside("table_min")


def table_max(table: atomic[_Number], index: int, value: _Number) -> None:
    """Element ``index`` of an atomic table := the larger of itself and value."""
    _outside("table_max")


# --- functions: values ----------------------------------------------------------------------------------------


def index() -> int:
    """Index of this element in the whole stream, i64."""
    _outside("index")


def where(condition: builtins.bool, a: _Number, b: _Number) -> _Number:
    """a where condition, else b; both are evaluated."""
    _outside("where")


def sqrt(x: float) -> float:
    """Square root, correctly rounded. f32, f64."""
    _outside("sqrt")


def exp(x: float) -> float:
    """e to the power x. f32 within 0.51 ulp, f64 within 1."""
    _outside("exp")


def log(x: float) -> float:
    """Natural logarithm. f32 within 0.51 ulp, f64 within 1."""
    _outside("log")


def sin(x: float) -> float:
    """Sine of x radians. f32 within 0.51 ulp, f64 within 2."""
    _outside("sin")


def cos(x: float) -> float:
    """Cosine of x radians. f32 within 0.51 ulp, f64 within 2."""
    _outside("cos")


def tanh(x: float) -> float:
    """Hyperbolic tangent. f32 only, within 0.51 ulp."""
    _outside("tanh")


def pow(x: float, y: float) -> float:
    """x to the power y. f32 only, within 0.51 ulp."""
    _outside("pow")


def fmod(x: float, y: float) -> float:
    """x - y * trunc(x / y), exact: C's fmod. ``%`` is the flooring one."""
    _outside("fmod")


def fma(a: float, b: float, c: float) -> float:
    """a * b + c with one rounding. f32, f64."""
    _outside("fma")


def copysign(x: float, y: float) -> float:
    """x with the sign of y."""
    _outside("copysign")


def floor(x: float) -> float:
    """Greatest integral value <= x, as a float."""
    _outside("floor")


def ceil(x: float) -> float:
    """Least integral value >= x, as a float."""
    _outside("ceil")


def trunc(x: float) -> float:
    """Nearest integral value towards zero, as a float."""
    _outside("trunc")


def nearest(x: float) -> float:
    """Nearest integral value, ties to even, as a float (NumPy's rint)."""
    _outside("nearest")


def abs(x: _Number) -> _Number:
    """Magnitude; the least negative integer stays itself."""
    _outside("abs")


def popcount(x: int) -> int:
    """Number of one bits."""
    _outside("popcount")


def clz(x: int) -> int:
    """Leading zero bits; the width for 0."""
    _outside("clz")


def ctz(x: int) -> int:
    """Trailing zero bits; the width for 0."""
    _outside("ctz")


def rotl(x: int, count: int) -> int:
    """x rotated left by count modulo its width."""
    _outside("rotl")


def rotr(x: int, count: int) -> int:
    """x rotated right by count modulo its width."""
    _outside("rotr")


def bitrev(x: int) -> int:
    """Bits in reverse order."""
    _outside("bitrev")


def bswap(x: int) -> int:
    """Bytes in reverse order."""
    _outside("bswap")


def bits(x: float) -> int:
    """The bits of an f32 as u32, of an f64 as u64."""
    _outside("bits")


def from_bits(x: int) -> float:
    """The f32 with the bits of an i32 or u32, the f64 with those of an i64 or u64."""
    _outside("from_bits")


def i32_sat(x: float) -> int:
    """x truncated to i32, saturating; NaN gives 0. ``vyre.i32(x)`` traps instead."""
    _outside("i32_sat")


def u32_sat(x: float) -> int:
    """x truncated to u32, saturating; NaN gives 0. ``vyre.u32(x)`` traps instead."""
    _outside("u32_sat")


def i64_sat(x: float) -> int:
    """x truncated to i64, saturating; NaN gives 0. ``vyre.i64(x)`` traps instead."""
    _outside("i64_sat")


def u64_sat(x: float) -> int:
    """x truncated to u64, saturating; NaN gives 0. ``vyre.u64(x)`` traps instead."""
    _outside("u64_sat")


TYPES: Final = ("f32", "f64", "i32", "i64", "u32", "u64", "i8", "u8", "i16", "u16", "f16", "bf16", "bool_")
RESULTS: Final = ("sum", "count", "histogram", "emit", "min", "max")
UPDATES: Final = ("table_add", "table_and", "table_or", "table_xor", "table_min", "table_max")
FUNCTIONS: Final = (
    "index", "where", "min", "max", "sqrt", "exp", "log", "sin", "cos", "tanh", "pow", "fmod", "fma", "copysign", "floor",
    "ceil", "trunc", "nearest", "abs", "popcount", "clz", "ctz", "rotl", "rotr", "bitrev", "bswap", "bits", "from_bits",
    "i32_sat", "u32_sat", "i64_sat", "u64_sat",
)  # fmt: skip
"""Functions of values, by the name that ``lower`` knows them under."""
