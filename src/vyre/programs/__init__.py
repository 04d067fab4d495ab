"""Programs that ship: ``stats``, ``histogram`` and ``q6``, by name on the command line, by import in Python.

Owns: the programs. Each takes the types of its inputs, because a listing has no type parameters, and gives a Program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vyre.errors import BindError
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import AccKind, MemType, Type

__all__ = ["SHIPPED", "histogram", "q6", "stats"]

_UNSIGNED: Final = (MemType.u8, MemType.u16, MemType.u32, MemType.u64)


def stats(types: Mapping[str, MemType] | None = None) -> Program:
    """Count, sum, least, greatest and sum of squares of one column ``x`` of any type; f64 where nothing is said.

    Integer sums are 64 bits wide and wrap. Sums of floats, and of all squares, are f64. A NaN makes sum, min and max
    NaN.
    """
    dtype = _only("stats", "x", types, MemType.f64)
    b = Builder("stats")
    x = b.op(f"{dtype.type.name}.load", imm=b.input("x", dtype))
    one = b.const(Type.i32, 1)
    b.op("acc_count", one, imm=b.accumulator("count", AccKind.count, MemType.i64))
    float_ = dtype.type.is_float
    unsigned = dtype in (MemType.u32, MemType.u64)
    suffix = "" if float_ else "_u" if unsigned else "_s"
    kept = dtype if dtype.is_identity else MemType[dtype.type.name]

    if float_:
        b.op(f"{dtype.type.name}.acc_sum", x, imm=b.accumulator("sum", AccKind.sum, MemType.f64))
        wide = x if dtype.type is Type.f64 else b.op("f64.promote_f32", x)
    else:
        sum_ = b.accumulator("sum", AccKind.sum, MemType.u64 if dtype in _UNSIGNED else MemType.i64)
        b.op("i64.acc_sum", x if dtype.type is Type.i64 else b.op(f"i64.extend_i32{suffix}", x), imm=sum_)
        wide = b.op(f"f64.convert_{dtype.type.name}{suffix}", x)
    b.op(f"{dtype.type.name}.acc_min{suffix}", x, imm=b.accumulator("min", AccKind.min, kept))
    b.op(f"{dtype.type.name}.acc_max{suffix}", x, imm=b.accumulator("max", AccKind.max, kept))
    squares = b.accumulator("sum_of_squares", AccKind.sum, MemType.f64)
    b.op("f64.acc_sum", b.op("f64.mul", wide, wide), imm=squares)
    return b.build()


def histogram(types: Mapping[str, MemType] | None = None) -> Program:
    """How often each byte value occurs in ``x``, a stream of u8: 256 counts named ``counts``.

    On the command line it takes any files as the bytes that they are, headers included.
    """
    _only("histogram", "x", types, MemType.u8, fixed=True)
    b = Builder("histogram")
    x = b.op("i32.load", imm=b.input("x", MemType.u8))
    b.op("acc_histogram", x, imm=b.accumulator("counts", AccKind.histogram, MemType.i64, 256))
    return b.build()


def q6(types: Mapping[str, MemType] | None = None) -> Program:
    """TPC-H query 6 over columns of its lineitem: revenue of the orders shipped in a year, within a discount range.

    Inputs shipdate (i32, days since 1970), discount, quantity, price (f64); parameters ``start`` and ``end``, days,
    by default the year 1994. Accumulators ``revenue``, the sum of price * discount, and ``orders``, how many.

    Source:
        TPC Benchmark H, revision 3.0, section 2.4.6, with DATE 1994-01-01, DISCOUNT 0.06 and QUANTITY 24.
    """
    declared = {"shipdate": MemType.i32, "discount": MemType.f64, "quantity": MemType.f64, "price": MemType.f64}
    for name, dtype in (types or {}).items():
        if declared.get(name) is not dtype:
            expected = ", ".join(f"{n} {t.name}" for n, t in declared.items())
            raise BindError(f"q6 has no input {name!r} of type {dtype.name}", fix=f"its inputs are {expected}")
    b = Builder("q6")
    shipdate = b.op("i32.load", imm=b.input("shipdate", MemType.i32))
    discount = b.op("f64.load", imm=b.input("discount", MemType.f64))
    quantity = b.op("f64.load", imm=b.input("quantity", MemType.f64))
    price = b.op("f64.load", imm=b.input("price", MemType.f64))
    start = b.op("i32.param", imm=b.param("start", MemType.i32, 8_766))
    end = b.op("i32.param", imm=b.param("end", MemType.i32, 9_131))
    conditions = [
        b.op("i32.ge_s", shipdate, start),
        b.op("i32.lt_s", shipdate, end),
        b.op("f64.ge", discount, b.const(Type.f64, 0.05)),
        b.op("f64.le", discount, b.const(Type.f64, 0.07)),
        b.op("f64.lt", quantity, b.const(Type.f64, 24.0)),
    ]
    chosen = conditions[0]
    for condition in conditions[1:]:
        chosen = b.op("i32.and", chosen, condition)
    b.if_(chosen)
    b.op("f64.acc_sum", b.op("f64.mul", price, discount), imm=b.accumulator("revenue", AccKind.sum, MemType.f64))
    b.end()
    b.op("acc_count", chosen, imm=b.accumulator("orders", AccKind.count, MemType.i64))
    return b.build()


def _only(
    program: str, name: str, types: Mapping[str, MemType] | None, default: MemType, *, fixed: bool = False
) -> MemType:
    given = dict(types or {})
    dtype = given.pop(name, default)
    if given:
        raise BindError(f"{program} has no input {next(iter(given))!r}", fix=f"its one input is {name!r}")
    if fixed and dtype is not default:
        raise BindError(f"{program} takes {default.name}, not {dtype.name}", fix=f"give a file of {default.name}")
    return dtype


SHIPPED: Final[dict[str, Callable[[Mapping[str, MemType]], Program]]] = {
    "stats": stats,
    "histogram": histogram,
    "q6": q6,
}
