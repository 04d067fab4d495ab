"""The text of the handlers of accumulators and emits.

Owns: sums and their order (decision 2), minima and maxima, counts, histograms, compaction. Leaves to others: everything else
about handlers (makers), and what the worker does with a tile's results.
"""

from __future__ import annotations

from typing import Final

from vyre import jit
from vyre.engines.cpu.makers import INTEGER, Maker, call, fetch, fetch_mask, narrow_body
from vyre.engines.cpu.primitives import LLVM, Body, body, nan_fix
from vyre.engines.cpu.skeleton import BLOCK, Made, Text, per_lane, widen
from vyre.engines.cpu.templates import fill
from vyre.program.opcodes import BY_NAME, Type

_LEAST: Final = {Type.i32: -(1 << 31), Type.i64: -(1 << 63)}
_GREATEST: Final = {Type.i32: (1 << 31) - 1, Type.i64: (1 << 63) - 1}
_INFINITY: Final = "0x7FF0000000000000"
_MINUS_INFINITY: Final = "0xFFF0000000000000"


def _open(symbol: str, masked: bool) -> Text:
    text = Text(symbol)
    if masked:
        text.section("mask")
    text.section("imm")
    text.section_of("results", "acc")
    text.operand("a")
    return text


def count(masked: bool) -> Maker:
    """accs[imm] += lanes where a != 0."""

    def make(symbol: str) -> Made:
        text = _open(symbol, masked)
        element = fetch("a", "i32") + "\n  %e.raw = icmp ne i32 %e.a, 0\n"
        if masked:
            element += fetch_mask() + "\n  %e.kept = and i1 %e.raw, %e.on\n"
        else:
            element += "  %e.kept = or i1 %e.raw, false\n"
        element += "  %e.one = zext i1 %e.kept to i32\n  %e.acc.next = add i32 %e.acc, %e.one"
        text.reduce(element, "i32", "0", "add", "lane")
        text.line("  %each.result = zext i32 %lane.result to i64")
        text.section_of("results", "acc.add")
        return text.leave()

    return make


def integer_sum(masked: bool) -> Maker:
    """accs[imm] += a."""

    def make(symbol: str) -> Made:
        text = _open(symbol, masked)
        element = fetch("a", "i64") + "\n"
        if masked:
            element += fetch_mask() + "\n  %e.part = select i1 %e.on, i64 %e.a, i64 0\n"
        else:
            element += "  %e.part = add i64 %e.a, 0\n"
        text.reduce(element + "  %e.acc.next = add i64 %e.acc, %e.part", "i64", "0", "add", "each")
        text.section_of("results", "acc.add")
        return text.leave()

    return make


def extreme(t: Type, verb: str, masked: bool) -> Maker:
    """accs[imm] := ``verb`` of itself and a. Verbs: min_s, min_u, max_s, max_u of integers, min and max of floats."""
    llvm, integer = LLVM[t], INTEGER[t.size]
    if t.is_float:
        identity = _INFINITY if verb == "min" else _MINUS_INFINITY
        reduce, intrinsic = {"min": ("fminimum", "minimum"), "max": ("fmaximum", "maximum")}[verb]
    else:
        identities = {"min_s": _GREATEST[t], "min_u": -1, "max_s": _LEAST[t], "max_u": 0}
        identity = str(identities[verb])
        reduce = intrinsic = {"min_s": "smin", "min_u": "umin", "max_s": "smax", "max_u": "umax"}[verb]

    def make(symbol: str) -> Made:
        text = _open(symbol, masked)
        one = body(BY_NAME[f"{t.name}.{verb}"])
        text.bodies.append(one)
        element = fetch("a", llvm) + "\n"
        value = "e.a"
        if masked:
            element += fetch_mask() + f"\n  %e.part = select i1 %e.on, {llvm} %e.a, {llvm} {identity}\n"
            value = "e.part"
        element += call(llvm, "acc.next", one.symbol, (llvm, "e.acc"), (llvm, value))
        text.reduce(element, llvm, identity, reduce, "each")
        if t.is_float:
            fix = nan_fix(t)
            text.bodies.append(fix)
            fixed = f'  %acc.fixed = call {llvm} @"{fix.symbol}"({llvm} %acc.best)'
        else:
            fixed = f"  %acc.fixed = or {llvm} %acc.best, 0"
        section = "acc.combine.64" if t.size == 8 else "acc.combine"
        text.section_of("results", section, T=llvm, I=integer, call=f"llvm.{intrinsic}.{t.name}", fix=fixed)
        return text.leave()

    return make


# --- float sums -------------------------------------------------------------------------------------------------------


def _tree(t: Type) -> Body:
    loads = "\n".join(fill("results", f"tree.load.{t.name}", j=j, offset=128 * j) for j in range(8))
    return Body(f"body.tree.{t.name}", fill("results", "tree", N=t.name, loads=loads) + "\n", (), lambda _: "")


def _widened(t: Type) -> str:
    """Element text: %e.x := f64 of %e.a."""
    return (
        "  %e.x = fpext float %e.a to double" if t is Type.f32 else "  %e.x = select i1 true, double %e.a, double %e.a"
    )


def sum_once(t: Type, masked: bool) -> Maker:
    """accs[imm] := the halving tree of a: for a sum that no element updates twice."""

    def make(symbol: str) -> Made:
        text = _open(symbol, masked)
        text.section_of("results", "sum.buffer")
        text.bodies.append(_tree(Type.f64))
        element = fetch("a", LLVM[t]) + "\n" + _widened(t) + "\n"
        if masked:
            element += fetch_mask() + "\n  %e.part = select i1 %e.on, double %e.x, double -0.0\n"
        else:
            text.section_of("results", "sum.whole", N=t.name)
            text.bodies.append(_tree(t))
            text.before = "copy"
            element += "  %e.part = select i1 true, double %e.x, double %e.x\n"
        element += "  %e.to = getelementptr double, ptr %buffer, i64 %e.i\n  store double %e.part, ptr %e.to, align 8"
        text.loop(element)
        text.section_of("results", "sum.pad", **{"from": text.before})
        return text.finish()

    return make


def sum_of_product(t: Type, masked: bool) -> Maker:
    """accs[imm] := the halving tree of a * b, each rounded on its own: a sum_once whose operand needs no tile."""

    def make(symbol: str) -> Made:
        text = _open(symbol, masked)
        text.operand("b")
        text.section_of("results", "sum.buffer")
        product = body(BY_NAME[f"{t.name}.mul"])
        text.bodies += [_tree(Type.f64), product]
        element = fetch("a", LLVM[t]) + "\n" + fetch("b", LLVM[t]) + "\n"
        element += call(LLVM[t], "p", product.symbol, (LLVM[t], "e.a"), (LLVM[t], "e.b")) + "\n"
        element += _widened(t).replace("%e.a", "%e.p") + "\n"
        if masked:
            element += fetch_mask() + "\n  %e.part = select i1 %e.on, double %e.x, double -0.0\n"
        else:
            element += "  %e.part = select i1 true, double %e.x, double %e.x\n"
        element += "  %e.to = getelementptr double, ptr %buffer, i64 %e.i\n  store double %e.part, ptr %e.to, align 8"
        text.loop(element)
        text.section_of("results", "sum.pad", **{"from": text.before})
        return text.finish()

    return make


def sum_update(t: Type, masked: bool) -> Maker:
    """Each element's own partial += a: for a sum that an element may update more than once."""

    def make(symbol: str) -> Made:
        text = Text(symbol)
        if masked:
            text.section("mask")
        text.section("imm")
        text.operand("a")
        text.section_of("results", "partials", x="d.base")
        element = fetch("a", LLVM[t]) + "\n" + _widened(t) + "\n"
        element += fetch("d", "double") + "\n"
        if masked:
            element += fetch_mask() + "\n  %e.sum = fadd double %e.d, %e.x\n"
            element += "  %e.r = select i1 %e.on, double %e.sum, double %e.d\n"
        else:
            element += "  %e.r = fadd double %e.d, %e.x\n"
        text.loop(element + "  store double %e.r, ptr %e.d.p, align 8")
        return text.leave()

    return make


def sum_open(symbol: str) -> Made:
    """Every element's partial := -0.0."""
    text = Text(symbol)
    text.section("imm")
    text.section_of("results", "partials", x="d.base")
    text.section_of("results", "partials.open", lanes=BLOCK)
    return text.finish()


def sum_close(symbol: str) -> Made:
    """accs[imm] := the halving tree of the partials."""
    text = Text(symbol)
    text.bodies.append(_tree(Type.f64))
    text.section("imm")
    text.section_of("results", "acc")
    text.section_of("results", "partials", x="buffer")
    text.section_of("results", "sum.pad", **{"from": "entry"})
    return text.finish()


# --- histograms and emits ---------------------------------------------------------------------------------------------


def histogram(masked: bool) -> Maker:
    """bins[imm][a] += 1; the number of bins is in OP_AUX. Traps an index beyond."""

    def make(symbol: str) -> Made:
        text = Text(symbol)
        text.section("imm")
        text.section("aux")
        text.line("  %us.aux = trunc i64 %aux to i32")
        text.splat("aux", "i32")
        text.operand("a")
        over = "  %e.over = icmp uge i32 %e.a, %u.aux"
        code = "  %e.code = add i32 0, 5"
        if masked:
            text.section("mask")
            text.trap(fetch("a", "i32"), f"{over}\n{fetch_mask()}\n  %e.bad = and i1 %e.over, %e.on", code)
            single = fill("results", "histogram.masked")
            text.section_of("results", "histogram.masked.loop", n=text.n, **{"from": text.before}, single=single)
        else:
            text.section_of("results", "histogram.copies")
            text.trap(fetch("a", "i32"), f"{over}\n  %e.bad = or i1 %e.over, false", code)
            counts = "\n".join(fill("results", "histogram.count", j=j, copy=256 * j) for j in range(4))
            single = fill("results", "histogram.single")
            text.section_of("results", "histogram", n=text.n, **{"from": text.before}, counts=counts, single=single)
        return text.finish()

    return make


_COMPRESS_LANES: Final = {1: 16, 2: 16, 4: 8, 8: 4}
"""Lanes that one compress instruction takes: never a vector that LLVM would have to split, which LLVM 22 does wrongly
(it stores the second half with an aligned store at any address)."""


def _can_compress(size: int) -> bool:
    """Whether this machine compresses vectors of ``size`` bytes in one instruction."""
    return jit.host_has("avx512vl") and (size >= 4 or jit.host_has("avx512vbmi2"))


def emit(kind: str, size: int, how: str) -> Maker:
    """Append narrowed lanes of a to the tile's segment. ``how``: all lanes, those of the mask, or those where b != 0."""

    def make(symbol: str) -> Made:
        one, arg, result = narrow_body(kind, size)
        text = Text(symbol, BLOCK if how == "all" else _COMPRESS_LANES[size])
        text.bodies.append(one)
        if how == "masked":
            text.section("mask")
        text.section("imm")
        text.section_of("results", "segment")
        text.operand("a")
        if how == "all":
            element = [fetch("a", arg), call(result, "r", one.symbol, (arg, "e.a"))]
            element += [f"  %e.r.p = getelementptr {result}, ptr %d.base, i64 %e.i"]
            element += [f"  store {result} %e.r, ptr %e.r.p, align {size}"]
            text.section_of("results", "segment.all")
            text.loop("\n".join(element))
            return text.leave()
        if how == "masked":
            on = fetch_mask()
        else:
            text.operand("b")
            on = fetch("b", "i32") + "\n  %e.on = icmp ne i32 %e.b, 0"
        element_text = "\n".join([fetch("a", arg), on, call(result, "r", one.symbol, (arg, "e.a"))])
        wide = widen(element_text, text.lanes).replace("%e.i", "%i").replace("%e.", "%w.")
        _, single = per_lane(element_text, "x")
        single = single.replace("%x.s.i", "%j").replace("%x.s.", "%s.")
        if _can_compress(size):
            text.section_of("results", "compact", lanes=text.lanes, T=result, N=result, A=size, wide=wide)
        else:
            text.section_of("results", "compact.none")
        text.section_of("results", "compact.rest", T=result, A=size, single=single)
        return text.finish()

    return make
