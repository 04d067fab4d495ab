"""One element of each numeric instruction as an LLVM function, from templates/bodies.ll.

Owns: which body an instruction has and with what types. Leaves to others: the bodies' text (bodies.ll), loops over lanes
(handlers), and instructions that touch memory, masks or other lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from vyre.engines.cpu.templates import fill, has
from vyre.program.opcodes import Group, Op, Type

LLVM: Final = {Type.i32: "i32", Type.i64: "i64", Type.f32: "float", Type.f64: "double"}
_INTEGER: Final = {Type.i32: "i32", Type.i64: "i64", Type.f32: "i32", Type.f64: "i64"}
_COMPARES: Final = ("eq", "ne", "lt", "gt", "le", "ge")
_LIMITS: Final = {  # trunc to integer: (predicate, exclusive or inclusive lower bound, exclusive upper bound)
    (Type.i32, "s", Type.f32): ("oge", "-2147483648.0", "2147483648.0"),
    (Type.i32, "s", Type.f64): ("ogt", "-2147483649.0", "2147483648.0"),
    (Type.i32, "u", Type.f32): ("ogt", "-1.0", "4294967296.0"),
    (Type.i32, "u", Type.f64): ("ogt", "-1.0", "4294967296.0"),
    (Type.i64, "s", Type.f32): ("oge", "-9223372036854775808.0", "9223372036854775808.0"),
    (Type.i64, "s", Type.f64): ("oge", "-9223372036854775808.0", "9223372036854775808.0"),
    (Type.i64, "u", Type.f32): ("ogt", "-1.0", "18446744073709551616.0"),
    (Type.i64, "u", Type.f64): ("ogt", "-1.0", "18446744073709551616.0"),
}


class Body(NamedTuple):
    """An LLVM function of one element.

    Attributes:
        symbol: its name, local to the module.
        text: its definition.
        needs: bodies that it calls.
        wide: makes the same over vectors of so many lanes; None when widening the text does.
    """

    symbol: str
    text: str
    needs: tuple[Body, ...] = ()
    wide: Callable[[int], str] | None = None


def function(symbol: str, args: tuple[str, ...], result: str, text: str, value: str = "%r") -> str:
    """An LLVM function around straight-line ``text`` over %a, %b, %c that computes ``value``."""
    names = ", ".join(f"{t} %{n}" for t, n in zip(args, "abc", strict=False))
    return f'define internal {result} @"{symbol}"({names}) #1 {{\n{text}\n  ret {result} {value}\n}}\n'


def section_of(op: Op) -> tuple[str, dict[str, str]]:
    """Section of bodies.ll for a numeric instruction, and what its $NAMES stand for.

    Raises:
        KeyError: the instruction has no body of one element.
    """
    prefix, _, verb = op.name.partition(".")
    assert op.group is Group.numeric, op.name
    t = op.args[0]
    values = types(t, op.result)
    kind = "float" if t.is_float else "int"
    stem, _, sign = verb.partition("_")
    if stem in _COMPARES and op.result is Type.i32 and len(op.args) == 2:
        if t.is_float:
            predicate = ("u" if stem == "ne" else "o") + stem
        else:
            predicate = sign + stem
        return f"{kind}.compare", {**values, "P": predicate}
    if has("bodies", f"{prefix}.{verb}"):
        return f"{prefix}.{verb}", values
    if has("bodies", f"{kind}.{verb}"):
        return f"{kind}.{verb}", values
    for name in ("wrap", "demote", "promote", "reinterpret"):
        if stem == name:
            return name, values
    for name in ("trunc_sat", "trunc", "convert", "extend"):
        if verb.startswith(name + "_"):
            if name.startswith("trunc"):
                values.update(_limits(op))
            return f"{name}_{verb[-1]}", values
    raise KeyError(op.name)


def _limits(op: Op) -> dict[str, str]:
    """What a truncation to integer accepts, and what it saturates to."""
    assert op.result is not None
    sign, bits = op.name[-1], 8 * op.result.size
    p, low, high = _LIMITS[op.result, sign, op.args[0]]
    least, greatest = (-(1 << bits - 1), (1 << bits - 1) - 1) if sign == "s" else (0, -1)
    return {"P": p, "LOW": low, "HIGH": high, "LEAST": str(least), "GREATEST": str(greatest)}


def types(t: Type, result: Type | None) -> dict[str, str]:
    """The $NAMES of bodies.ll for operands of type ``t``."""
    bits = 8 * t.size
    r = result if result is not None else t
    return {
        "T": LLVM[t], "R": LLVM[r], "I": _INTEGER[t], "N": t.name, "W": str(bits), "MASK": str(bits - 1),
        "LEAST": str(-(1 << (bits - 1))),
    }  # fmt: skip


def body(op: Op, canonical: bool = False) -> Body:
    """One element of a numeric instruction; ``canonical`` turns a NaN result into the canonical one."""
    section, values = section_of(op)
    assert op.result is not None
    args, result = tuple(LLVM[t] for t in op.args), LLVM[op.result]
    plain = Body(f"body.{op.name}", function(f"body.{op.name}", args, result, fill("bodies", section, **values)))
    if not canonical:
        return plain
    fix = nan_fix(op.result)
    names = ", ".join(f"{t} %{n}" for t, n in zip(args, "abc", strict=False))
    text = f'  %x = call {result} @"{plain.symbol}"({names})\n  %r = call {result} @"{fix.symbol}"({result} %x)'
    symbol = f"{plain.symbol}.canonical"
    return Body(symbol, function(symbol, args, result, text), (plain, fix))


def nan_fix(t: Type) -> Body:
    """NaN to canonical NaN."""
    symbol = f"body.canonical.{t.name}"
    return Body(symbol, function(symbol, (LLVM[t],), LLVM[t], fill("bodies", "canonical", **types(t, t))))


def trap(op: Op) -> tuple[Body, Body]:
    """For a numeric instruction that traps: i1 of an element being bad, and i32 fault code of a bad element."""
    values = types(op.args[0], op.result)
    verb = op.name.partition(".")[2]
    if verb.startswith("trunc"):
        values.update(_limits(op))
        sections = "trunc.trap", "trunc.code"
    else:
        name = "div_s" if verb == "div_s" else "zero"
        sections = f"int.{name}.trap", f"int.{name}.code"
    args = tuple(LLVM[t] for t in op.args)
    bad, code = (fill("bodies", section, **values) for section in sections)
    return (
        Body(f"body.{op.name}.trap", function(f"body.{op.name}.trap", args, "i1", bad, "%bad")),
        Body(f"body.{op.name}.code", function(f"body.{op.name}.code", args, "i32", code, "%code")),
    )


def memory_body(section: str, arg: str, result: str) -> Body:
    """A load, store or move of bits: sections ``load.*``, ``store.*`` and ``mov`` of bodies.ll."""
    symbol = f"body.{section}.{arg}"
    return Body(symbol, function(symbol, (arg,), result, fill("bodies", section, T=arg, R=result)))


def gather(bodies: Iterable[Body]) -> list[Body]:
    """``bodies`` and all they call, each once, callees first."""
    found: dict[str, Body] = {}

    def visit(one: Body) -> None:
        if one.symbol not in found:
            for needed in one.needs:
                visit(needed)
            found[one.symbol] = one

    for one in bodies:
        visit(one)
    return list(found.values())
