"""The text of each handler.

Owns: how a handler of each kind is put together from templates. Leaves to others: names and groups (handlers), one element
(primitives), loops (skeleton), elementary functions (elementary).

A maker returns the handler's text and the bodies that it calls.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Final

from vyre import jit
from vyre.engines.cpu.abi import LANES
from vyre.engines.cpu.primitives import LLVM, Body, body, function, memory_body, trap
from vyre.engines.cpu.skeleton import BLOCK, Made, Text, per_lane
from vyre.engines.cpu.templates import fill
from vyre.errors import EngineUnavailable
from vyre.program.opcodes import MemType, Op
from vyre.ring import layout

Maker = Callable[[str], Made]
"""Called with the handler's symbol."""

_HEAVY: Final = frozenset(
    ["eqz", "eq", "ne", "lt", "gt", "le", "ge", "min", "max", "bitrev", "clz", "ctz", "rotl", "rotr"]
)
"""Verbs whose handlers compute more than they wait for memory."""
INTEGER: Final = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}
_PAGED: Final = {name: vars(layout)[name] for name in vars(layout) if name.startswith(("PAGED_", "REQUESTS_"))} | {
    "IO_REQUEST_BYTES": layout.IO_REQUEST_BYTES,
    "LOAD_MISS": int(layout.Opcode.LOAD_MISS),
}
_BYTES: Final = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "float": 4, "double": 8}


def fetch(x: str, type_: str) -> str:
    """Element text: %e.x := this lane of operand x."""
    return fill("skeletons", "fetch", x=x, T=type_, A=_BYTES[type_])


def fetch_mask() -> str:
    """Element text: %e.on := this lane is active."""
    return fill("skeletons", "fetch.mask")


def put(type_: str, masked: bool = False) -> str:
    """Element text: this lane of the result := %e.r."""
    return fill("skeletons", "put.masked" if masked else "put", T=type_, A=_BYTES[type_])


def put_past(type_: str) -> str:
    """Element text, wide only: this block of the result, which starts a cache line, := %e.r, not into the caches."""
    return fill("skeletons", "put.past", T=type_)


def call(result: str, to: str, symbol: str, *args: tuple[str, str]) -> str:
    """Element text: %e.<to> := the body ``symbol`` of (type, name) arguments."""
    return f'  %e.{to} = call {result} @"{symbol}"({", ".join(f"{t} %{n}" for t, n in args)})'


def elementwise(
    symbol: str,
    one: Body,
    args: tuple[str, ...],
    result: str,
    uniform: str = "",
    lanes: int = BLOCK,
    light: bool = True,
) -> Made:
    """result[i] := one(a[i], b[i], c[i]); operands named in ``uniform`` are the same for all lanes."""
    text = Text(symbol, lanes, light)
    text.bodies.append(one)
    element, values = [], []
    for x, type_ in zip("abc", args, strict=False):
        if x in uniform:
            text.uniform(x, type_)
            values.append((type_, f"u.{x}"))
        else:
            text.operand(x)
            element.append(fetch(x, type_))
            values.append((type_, f"e.{x}"))
    text.operand("d")
    element.append(call(result, "r", one.symbol, *values))
    if light:
        text.loop_past_caches("\n".join([*element, put(result)]), "\n".join([*element, put_past(result)]))
    else:
        text.loop("\n".join([*element, put(result)]))
    return text.leave()


def numeric(op: Op, uniform: str = "", canonical: bool = False) -> Maker:
    """A numeric instruction that does not trap."""
    assert op.result is not None
    args, result = tuple(LLVM[t] for t in op.args), LLVM[op.result]
    verb = op.name.partition(".")[2]
    light = verb.partition("_")[0] not in _HEAVY and "_sat_" not in verb
    return lambda symbol: elementwise(symbol, body(op, canonical), args, result, uniform, light=light)


def trapping(op: Op, masked: bool) -> Maker:
    """A numeric instruction that traps: the whole tile is checked, then computed up to the fault."""

    def make(symbol: str) -> Made:
        assert op.result is not None
        text, one, (bad, code) = Text(symbol), body(op), trap(op)
        text.bodies += [one, bad, code]
        if masked:
            text.section("mask")
        fetches, values = [], []
        for x, t in zip("abc", op.args, strict=False):
            text.operand(x)
            fetches.append(fetch(x, LLVM[t]))
            values.append((LLVM[t], f"e.{x}"))
        text.operand("d")
        loads = "\n".join(fetches)
        test = call("i1", "bad", bad.symbol, *values)
        if masked:
            test = call("i1", "is", bad.symbol, *values) + f"\n{fetch_mask()}\n  %e.bad = and i1 %e.is, %e.on"
        text.trap(loads, test, call("i32", "code", code.symbol, *values))
        result = LLVM[op.result]
        text.loop("\n".join([loads, call(result, "r", one.symbol, *values), put(result)]))
        return text.leave()

    return make


def unreachable(masked: bool) -> Maker:
    """Every active lane is bad."""

    def make(symbol: str) -> Made:
        text = Text(symbol)
        if masked:
            text.section("mask")
            text.trap(fetch_mask(), "  %e.bad = or i1 %e.on, false", "  %e.code = add i32 0, 1")
        else:
            text.trap("", "  %e.bad = or i1 true, true", "  %e.code = add i32 0, 1")
        return text.leave()

    return make


# --- moving bits ------------------------------------------------------------------------------------------------------


def copy(size: int) -> Maker:
    """d := a, bit for bit."""
    t = INTEGER[size]
    return lambda symbol: elementwise(symbol, memory_body("mov", t, t), (t,), t)


def blend(size: int, uniform: bool) -> Maker:
    """d := a in active lanes only."""
    t = INTEGER[size]

    def make(symbol: str) -> Made:
        text = Text(symbol)
        text.section("mask")
        one = memory_body("mov", t, t)
        text.bodies.append(one)
        text.operand("d")
        if uniform:
            text.uniform("a", t)
            element = call(t, "r", one.symbol, (t, "u.a"))
        else:
            text.operand("a")
            element = fetch("a", t) + "\n" + call(t, "r", one.symbol, (t, "e.a"))
        text.loop(f"{element}\n{fetch_mask()}\n{put(t, masked=True)}")
        return text.leave()

    return make


def select(size: int, uniform: str) -> Maker:
    """d := c != 0 ? a : b, bit for bit."""
    t = INTEGER[size]
    one = Body(f"body.select.{t}", function(f"body.select.{t}", (t, t, "i32"), t, fill("bodies", "select", T=t)))
    return lambda symbol: elementwise(symbol, one, (t, t, "i32"), t, uniform)


def splat(size: int) -> Maker:
    """All lanes of scratch operand d := the constant or parameter, whatever ctx.n is."""

    def make(symbol: str) -> Made:
        t = INTEGER[size]
        text = Text(symbol)
        text.operand("d")
        text.uniform("b", t)
        text.section("fill", T=t, A=size, lanes=BLOCK)
        return text.finish()

    return make


def index(symbol: str) -> Made:
    """d := global index of the element."""
    text = Text(symbol)
    text.operand("d")
    text.line("  %first.at = getelementptr i8, ptr %ctx, i64 8\n  %us.first = load i64, ptr %first.at, align 8")
    text.splat("first", "i64")
    steps = ", ".join(f"i64 {i}" for i in range(BLOCK))
    element = "  %e.r = add i64 %u.first, %e.lane\n" + put("i64")
    wide, single = per_lane(element, "each")
    wide = (
        f"  %each.v.i0 = insertelement <{BLOCK} x i64> poison, i64 %each.v.i, i64 0\n"
        f"  %each.v.is = shufflevector <{BLOCK} x i64> %each.v.i0, <{BLOCK} x i64> poison, <{BLOCK} x i32> zeroinitializer\n"
        f"  %each.v.lane = add <{BLOCK} x i64> %each.v.is, <{steps}>\n" + wide
    )
    text.loop_split(wide, "  %each.s.lane = add i64 %each.s.i, 0\n" + single)
    return text.leave()


def narrowing(dtype: MemType) -> str:
    """Which store section narrows to ``dtype``: same, 8, 16, bool, f16 or bf16."""
    if dtype.is_identity:
        return "same"
    if dtype in (MemType.bool, MemType.f16, MemType.bf16):
        return dtype.name
    return str(8 * dtype.size)


def _check_half(kind: str) -> None:
    """LLVM would call a helper that a process need not have, and end the process over it."""
    if kind == "f16" and platform.machine() == "x86_64" and not jit.host_has("f16c"):
        raise EngineUnavailable(
            "engine cpu converts f16 with F16C instructions, which this processor lacks",
            fix="store bf16 or f32, or take engine reference",
        )


def narrow_body(kind: str, size: int) -> tuple[Body, str, str]:
    """The body of a store of ``kind`` into ``size`` bytes, its argument and its result type."""
    _check_half(kind)
    result = INTEGER[size]
    arg = result if kind == "same" else "i32"
    return memory_body(f"store.{kind}", arg, result), arg, result


def load(dtype: MemType) -> Maker:
    """d := widened lane of input a."""
    arg, result = INTEGER[dtype.size], INTEGER[dtype.type.size]

    def make(symbol: str) -> Made:
        _check_half(dtype.name)
        return elementwise(symbol, memory_body(f"load.{dtype.name}", arg, result), (arg,), result)

    return make


def store(kind: str, size: int, masked: bool) -> Maker:
    """Lane of output d := narrowed a."""

    def make(symbol: str) -> Made:
        one, arg, result = narrow_body(kind, size)
        text = Text(symbol)
        text.bodies.append(one)
        if masked:
            text.section("mask")
        text.operand("a")
        text.operand("d")
        element = [fetch("a", arg), call(result, "r", one.symbol, (arg, "e.a"))]
        if masked:
            element.append(fetch_mask())
        text.loop("\n".join([*element, put(result, masked)]))
        return text.leave()

    return make


# --- control ----------------------------------------------------------------------------------------------------------

_MASKS: Final = fill("skeletons", "mask")
_OUTER: Final = f"  %outer.base = getelementptr i8, ptr %mask.base, i64 -{LANES}"


_STORE_MASK: Final = (
    "  %e.byte = zext i1 %e.in to i8\n  %e.to = getelementptr i8, ptr %mask.base, i64 %e.i\n"
    "  store i8 %e.byte, ptr %e.to, align 1"
)


def _set_mask() -> str:
    """Element text: the lane's mask := %e.in, and %e.acc gathers whether any is."""
    return _STORE_MASK + "\n  %e.acc.next = or i1 %e.acc, %e.in"


def branch(verb: str, nested: bool) -> Maker:
    """if: inner mask := outer and a != 0. else: inner := outer and not inner. loop: inner := outer.

    ``nested`` says that the outer mask is that of a block; otherwise all lanes are active outside.
    """

    def make(symbol: str) -> Made:
        text = Text(symbol)
        text.line(_MASKS)
        outer = ""
        if nested:
            text.line(_OUTER)
            outer = fetch("outer", "i8") + "\n  %e.out = icmp ne i8 %e.outer, 0\n"
        if verb == "if":
            text.operand("a")
            raw = fetch("a", "i32") + "\n  %e.raw = icmp ne i32 %e.a, 0"
        elif verb == "else":
            raw = fetch_mask() + "\n  %e.raw = icmp eq i8 %e.m, 0"
        else:
            raw = fetch_mask() + "\n  %e.raw = icmp eq i8 %e.m, %e.m"
        join = "\n  %e.in = and i1 %e.raw, %e.out\n" if nested else "\n  %e.in = or i1 %e.raw, false\n"
        text.reduce(outer + raw + join + _set_mask(), "i1", "false", "or", "mask")
        if verb == "loop":
            return text.leave()
        text.section("branch")
        return text.finish()

    return make


def compare_to_mask(op: Op, uniform: str, first: bool) -> Maker:
    """mask of a block that is about to open := the comparison, or itself and the comparison."""

    def make(symbol: str) -> Made:
        text, one = Text(symbol), body(op)
        text.bodies.append(one)
        text.line(_MASKS)
        element, values = [], []
        for x, t in zip("ab", op.args, strict=False):
            if x in uniform:
                text.uniform(x, LLVM[t])
                values.append((LLVM[t], f"u.{x}"))
            else:
                text.operand(x)
                element.append(fetch(x, LLVM[t]))
                values.append((LLVM[t], f"e.{x}"))
        element += [call("i32", "q", one.symbol, *values), "  %e.raw = icmp ne i32 %e.q, 0"]
        if first:
            element.append("  %e.in = or i1 %e.raw, false")
        else:
            element += [fetch_mask(), "  %e.in = and i1 %e.raw, %e.on"]
        text.loop("\n".join([*element, _STORE_MASK]))
        return text.leave()

    return make


def test(nested: bool) -> Maker:
    """if whose mask is there already, but for the outer one: on when any lane is in, else to the target."""

    def make(symbol: str) -> Made:
        text = Text(symbol)
        text.line(_MASKS)
        element = fetch_mask() + "\n"
        if nested:
            text.line(_OUTER)
            element += fetch("outer", "i8") + "\n  %e.out = icmp ne i8 %e.outer, 0\n  %e.in = and i1 %e.on, %e.out\n"
            text.reduce(element + _set_mask(), "i1", "false", "or", "mask")
        else:
            text.reduce(element + "  %e.acc.next = or i1 %e.acc, %e.on", "i1", "false", "or", "mask")
        text.section("branch")
        return text.finish()

    return make


def back_edge(symbol: str) -> Made:
    """br_if: who stays burns one fuel, or is a fault when there is none left; back when anyone stays."""
    text = Text(symbol)
    text.line(_MASKS)
    text.operand("a")
    text.section("fuel")
    text.splat("limit", "i64")
    stays = (
        fetch("a", "i32") + "\n" + fetch_mask() + "\n  %e.raw = icmp ne i32 %e.a, 0\n  %e.in = and i1 %e.raw, %e.on\n"
        + fetch("used", "i32")
    )  # fmt: skip
    test = "  %e.wide = zext i32 %e.used to i64\n  %e.out = icmp uge i64 %e.wide, %u.limit\n  %e.bad = and i1 %e.out, %e.in"
    text.trap(stays, test, "  %e.code = add i32 0, 6")
    burn = (
        "  %e.more = zext i1 %e.in to i32\n  %e.sum = add i32 %e.used, %e.more\n"
        "  %e.sum.at = getelementptr i32, ptr %used.base, i64 %e.i\n  store i32 %e.sum, ptr %e.sum.at, align 4\n"
    )
    text.reduce(stays + "\n" + burn + _set_mask(), "i1", "false", "or", "mask")
    text.section("branch.back")
    return text.finish()


# --- tables -----------------------------------------------------------------------------------------------------------


def _bounds(text: Text, masked: bool) -> None:
    """Trap lanes whose index a is not below the table's length."""
    test = "  %e.over = icmp uge i64 %e.a, %u.length"
    if masked:
        text.trap(
            fetch("a", "i64"), f"{test}\n{fetch_mask()}\n  %e.bad = and i1 %e.over, %e.on", "  %e.code = add i32 0, 5"
        )
    else:
        text.trap(fetch("a", "i64"), f"{test}\n  %e.bad = or i1 %e.over, false", "  %e.code = add i32 0, 5")


def gather_body(type_: str, masked: bool) -> Body:
    """value of ``type_`` at index a of the table; masked: zero, and no access, where the lane is not active."""
    size, symbol = _BYTES[type_], f"body.gather.{type_}" + (".masked" if masked else "")
    scalar = fill("results", "gather.masked" if masked else "gather", T=type_, A=size)

    def wide(lanes: int) -> str:
        mask = "%on" if masked else "splat (i1 true)"
        given = f", <{lanes} x i1> %on" if masked else ""
        text = fill("results", "gather.wide", T=type_, A=size, lanes=lanes, on=mask)
        args = f"ptr %table, <{lanes} x i64> %a{given}"
        return f'define internal <{lanes} x {type_}> @"{symbol}.v{lanes}"({args}) #1 {{\n{text}\n}}\n'

    given = ", i1 %on" if masked else ""
    head = f'define internal {type_} @"{symbol}"(ptr %table, i64 %a{given}) #1'
    return Body(symbol, f"{head} {{\n{scalar}\n}}\n", (_gather_declaration(type_),), wide)


def _gather_declaration(type_: str) -> Body:
    """The intrinsic as it was when alignment was an operand: later LLVMs rewrite the declared form, not an implied one."""
    return Body(
        f"declare.gather.{type_}",
        "",
        (),
        lambda lanes: fill("results", "gather.declare", T=type_, lanes=lanes) + "\n",
    )


def table_get(dtype: MemType, masked: bool) -> Maker:
    """d := widened element a of the table."""

    def make(symbol: str) -> Made:
        raw, result = INTEGER[dtype.size], INTEGER[dtype.type.size]
        _check_half(dtype.name)
        text = Text(symbol)
        one = gather_body(raw, masked)
        widening = memory_body("load.same" if dtype.is_identity else f"load.{dtype.name}", raw, result)
        text.bodies += [one, widening]
        if masked:
            text.section("mask")
        text.section("imm")
        text.section_of("results", "table")
        text.splat("length", "i64")
        text.operand("a")
        text.operand("d")
        _bounds(text, masked)
        args = [("ptr", "table"), ("i64", "e.a")] + ([("i1", "e.on")] if masked else [])
        element = [fetch("a", "i64")] + ([fetch_mask()] if masked else [])
        element += [
            call(raw, "raw", one.symbol, *args),
            call(result, "r", widening.symbol, (raw, "e.raw")),
            put(result),
        ]
        text.loop("\n".join(element))
        return text.leave()

    return make


def table_page(dtype: MemType, masked: bool) -> Maker:
    """The same of a table on disk, some of whose pages are in memory."""

    def make(symbol: str) -> Made:
        raw, result = INTEGER[dtype.size], INTEGER[dtype.type.size]
        _check_half(dtype.name)
        text = Text(symbol)
        widening = memory_body("load.same" if dtype.is_identity else f"load.{dtype.name}", raw, result)
        text.bodies.append(widening)
        if masked:
            text.section("mask")
        text.section("imm")
        text.section_of("results", "table")
        text.splat("length", "i64")
        text.operand("a")
        text.operand("d")
        _bounds(text, masked)
        on = fill("results", "paged.masked" if masked else "paged.all")
        values = {"n": text.n, "from": text.before, "on": on, "T": raw, "A": dtype.size, "R": result}
        values |= {"B": dtype.type.size, "widening": widening.symbol, "skipped": ", [ %asked, %one ]" if masked else ""}
        text.section_of("results", "paged", **values, **_PAGED)
        return text.finish()

    return make


def table_atomic(verb: str, size: int, masked: bool) -> Maker:
    """Element a of the table := verb of itself and b, atomically."""
    rmw = {"min_s": "min", "min_u": "umin", "max_s": "max", "max_u": "umax"}.get(verb, verb)

    def make(symbol: str) -> Made:
        text = Text(symbol)
        if masked:
            text.section("mask")
        text.section("imm")
        text.section_of("results", "table")
        text.splat("length", "i64")
        text.operand("a")
        text.operand("b")
        _bounds(text, masked)
        on = fill("results", "atomic.masked" if masked else "atomic.all")
        values = {"n": text.n, "from": text.before, "on": on, "rmw": rmw, "T": INTEGER[size], "A": size}
        text.section_of("results", "atomic", **values)
        return text.finish()

    return make
