"""formulas: 4 Mi float32, ten fixed formulas of 1 to 30 operations, one thread: the engine against its roof in C

Shows: how much of the time is interpretation. Each formula runs in the engine, in the same interpreter written in C and
compiled for this processor (c/tile_interpreter.c, which is given the engine's own records), in numexpr and in NumPy,
taking turns; and compiled: a fused loop by numba, JAX's jit. Answers of the interpreters are compared bit for bit.
Does not show: elementary functions, doubles, blocks and loops, data in the cache, or what compiling cost. JAX uses the
threads that it likes. Constants are float32 scalars to numexpr, to which a literal would be a double.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Bench, arena, compiled, geometric_mean, interleave, main, peer
from random_formulas import NUMPY, columns, for_numexpr, function_of, numpy_code

import vyre
from vyre.engines.cpu.abi import OP_BYTES
from vyre.engines.cpu.handlers import shared
from vyre.engines.cpu.tileform import lower
from vyre.store import Store

FORMULAS = {
    1: "a + b",
    2: "a*b + c",
    3: "a + (b - a)*c",
    4: "sqrt(a*a + b*b)",
    6: "minimum(maximum(a*2.5 + b, 0.25), 1.75)*c + a",
    8: "where(a > b, a*c, b - c) / (a*a + 1.5) - c",
    12: "a*(0.5 + a*(1.25 + a*(2.125 + a*(3.5 + a*(0.75 + a*1.5))))) - b",
    16: "sqrt((a - 0.25)*(a - 0.25) + (b - 0.5)*(b - 0.75)*(b - 0.5) + (c - 0.125)*c) + abs(a*b - c)*0.5",
    20: "(a*(1.5 + b*(0.25 + c*(2.75 + a*0.125))) - c*(0.5 + b)) / (1.25 + a*a + b) + (a - b)*(b - c)*(c - a)",
    30: "sqrt(a*a + b*b + c*c)*(0.5 + a*(0.75 + b*(0.125 + c*1.75))) + where(a < c, a*b*1.5, b*c - a*0.25)"
    " - (a - 0.5)*(b - 0.25) + minimum(a, b)*maximum(b, c)*a",
}
_RAISED = "where(a*2.5 + b > 0.25, a*2.5 + b, 0.25)"
FOR_NUMEXPR = {  # its minimum and maximum are doubles; equal subexpressions it computes once
    6: f"where({_RAISED} < 1.75, {_RAISED}, 1.75)*c + a",
    30: FORMULAS[30].replace("minimum(a, b)", "where(a < b, a, b)").replace("maximum(b, c)", "where(b > c, b, c)"),
}


class CInterpreter:
    """c/tile_interpreter.c with a program."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._c.handler.restype = ctypes.c_void_p
        self._c.op_bytes.restype = ctypes.c_size_t
        assert self._c.op_bytes() == struct.calcsize("QIIIII4x"), "records of another shape"

    def program(self, expression: Any, x: dict[str, Any], out: Any) -> Callable[[], None]:
        """The records that the engine runs for an expression, in C's form, bound to arrays."""
        handlers = shared(Store())
        form = lower(expression.verified, handlers)
        names = {address: name for name, address in handlers.addresses.items()}
        parts = []
        for records in (form.prologue, form.body):
            made = bytearray()
            for fn, dst, a, b, c, imm in struct.iter_unpack(f"<QIIIIQ{OP_BYTES - 32}x", records):
                address = self._c.handler(names[fn].encode())
                if not address:
                    raise SystemExit(f"c/tile_interpreter.c has no {names[fn]}")
                made += struct.pack("QIIIII4x", address, dst, a, b, c, imm & 0xFFFF_FFFF)
            parts.append(ctypes.create_string_buffer(bytes(made), len(made)))
        inputs = (ctypes.c_void_p * len(x))(*(column.ctypes.data for column in x.values()))
        arguments = (
            *parts,
            inputs,
            ctypes.c_uint64(len(x)),
            ctypes.c_void_p(out.ctypes.data),
            ctypes.c_uint64(len(out)),
        )
        run, keep = self._c.run, (parts, x, out)

        def call() -> None:
            if run(*arguments):
                raise MemoryError
            assert keep

        return call


def operations(expression: Any) -> int:
    """Records of a tile but the last, which is ``return``: one for each operation, and for each operand that is no
    vector or constant the engine can take as it is."""
    return len(lower(expression.verified, shared(Store())).body) // OP_BYTES - 1


def numba_loop(numba: Any, text: str, x: dict[str, Any], out: Any) -> Callable[[], None]:
    """One loop over all elements, as a person would write it and LLVM vectorise it."""
    where = numba.njit(lambda q, u, v: u if q else v)
    scalar = function_of(text, np, {"where": where, "minimum": min, "maximum": max, "abs": abs})
    inner = numba.njit(scalar)

    @numba.njit
    def loop(a: Any, b: Any, c: Any, out: Any) -> None:
        for i in range(len(out)):
            out[i] = inner(a[i], b[i], c[i])

    every = [x.get(name, next(iter(x.values()))) for name in "abc"]
    loop(*every, out)
    return lambda: loop(*every, out)


def measure(bench: Bench) -> None:
    numexpr, jax, numba = peer("numexpr"), peer("jax"), peer("numba")
    for name, module in (("numexpr", numexpr), ("JAX", jax), ("numba", numba)):
        if module is None:
            bench.lacks(name)
    library = compiled("tile_interpreter.c", bench.folder())
    if library is None:
        bench.lacks("C interpreter", "no C compiler here")
    c = CInterpreter(library) if library else None
    if numexpr is not None:
        numexpr.set_num_threads(1)
    n = (1 << 16) + 5 if bench.quick else 4 << 20
    *places, out = arena(4, n)
    every = dict(zip("abc", places, strict=True))
    for name, column in columns(n).items():
        every[name][:] = column
    wanted = {k: FORMULAS[k] for k in (1, 8, 30)} if bench.quick else FORMULAS
    ratios: dict[str, dict[int, list[float]]] = {}
    with vyre.open("cpu", workers=1) as one, vyre.open("cpu", workers=2) as two, np.errstate(all="ignore"):
        for count, text in wanted.items():
            code = numpy_code(text)
            x = {name: every[name] for name in "abc" if name in code.co_names}
            expression = vyre.expression(text, dict.fromkeys(x, vyre.f32))
            if operations(expression) != count:
                raise SystemExit(f"{text} has {operations(expression)} operations, not {count}")
            runs = _one(bench, count, text, code, x, out, expression, (one, two), c, numexpr, jax, numba)
            for name, found in runs.items():
                if name not in ("vyre",):
                    ratios.setdefault(name, {})[count] = [b / a for a, b in zip(runs["vyre"], found, strict=False)]
    peers = {n: f"{geometric_mean([statistics.median(v) for v in r.values()]):.3g} x" for n, r in ratios.items()}
    bench.note("their time over ours, geometric means: " + ", ".join(f"{n} {v}" for n, v in peers.items()))

    def ratio(name: str, which: list[int] | None = None) -> list[float]:
        """Geometric means over the formulas, one for each round."""
        by_formula = ratios[name]
        chosen = which or list(by_formula)
        return [geometric_mean(column) for column in zip(*(by_formula[k] for k in chosen), strict=False)]

    if "C" in ratios:
        least = min(ratios["C"], key=lambda k: statistics.median(ratios["C"][k]))
        bench.add("ten formulas, 1 thread: speed over the C interpreter, geometric mean", ratio("C"), "x",
                  target=">= 0.9", must=True)  # fmt: skip
        bench.add(f"the same, least of the ten ({least} operations)", ratios["C"][least], "x")
    if "numexpr" in ratios:
        bench.add("ten formulas, 1 thread: speed over numexpr, geometric mean", ratio("numexpr"), "x",
                  target=">= 4", must=True)  # fmt: skip
    bench.add("1 operation, 1 thread: speed over NumPy", ratio("NumPy", [1]), "x", target=">= 0.95", must=True)
    _second_thread(bench, 30 if bench.quick else 20, every, out)
    for name in ("JAX jit", "numba"):
        if name in ratios:
            bench.add(f"ten formulas: speed over {name}, geometric mean", ratio(name), "x",
                      reason="compiled: the roof; compiling is not in it")  # fmt: skip


def _second_thread(bench: Bench, count: int, every: dict[str, Any], out: Any) -> None:
    """What a second worker gains, beside what a bare loop in C gains from a second thread in the same rounds."""
    text = FORMULAS[count]
    x = {name: every[name] for name in "abc" if name in numpy_code(text).co_names}
    library = compiled("two_threads.c", bench.folder())
    with vyre.open("cpu", workers=1) as one, vyre.open("cpu", workers=2) as two:
        expression = vyre.expression(text, dict.fromkeys(x, vyre.f32))
        bound = [session.bind(expression, x, out=out) for session in (one, two)]
        candidates: dict[str, Callable[[], Any]] = {"1": bound[0].run, "2": bound[1].run}
        if library is not None:
            bare = ctypes.CDLL(str(library))
            candidates |= {"bare 1": bare.one, "bare 2": bare.two}
        for call in candidates.values():
            call()
        runs = interleave(candidates, bench.rounds(41))
        for each in bound:
            each.close()
    gains = [a / b for a, b in zip(runs["1"], runs["2"], strict=True)]
    reason = "" if len(os.sched_getaffinity(0)) >= 2 else "one core only"
    beside = {}
    if library is not None:
        beside = {"a bare loop in C": [2 * a / b for a, b in zip(runs["bare 1"], runs["bare 2"], strict=True)]}
    name = f"{count} operations: 2 threads over 1"
    bench.add(name, gains, "x", target=">= 1.8", peers=beside, must=True, reason=reason)
    if beside:
        shares = [a / b for a, b in zip(gains, beside["a bare loop in C"], strict=True)]
        bench.add(f"{name}, share of what a bare loop in C gains", shares, "x")


def _one(
    bench: Bench, count: int, text: str, code: Any, x: dict[str, Any], out: Any, expression: Any, sessions: tuple[Any, Any],
    c: CInterpreter | None, numexpr: Any, jax: Any, numba: Any,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each way to compute one formula, its answers compared. One row."""
    n = len(out)
    bound = [each.bind(expression, x, out=out) for each in sessions]
    candidates: dict[str, Callable[[], Any]] = {"vyre": bound[0].run, "vyre, 2 threads": bound[1].run}
    if c is not None:
        candidates["C"] = c.program(expression, x, out)
    if numexpr is not None:
        spelled, constants = for_numexpr(FOR_NUMEXPR.get(count, text))
        scope = {**x, **constants}
        candidates["numexpr"] = lambda: numexpr.evaluate(spelled, scope, out=out)
    names = {**NUMPY, **x}
    candidates["NumPy"] = (lambda: np.add(x["a"], x["b"], out=out)) if count == 1 else (lambda: eval(code, names))
    if jax is not None:
        traced = jax.jit(function_of(text, jax.numpy))
        there = [jax.device_put(x.get(name, next(iter(x.values())))) for name in "abc"]
        candidates["JAX jit"] = lambda: jax.block_until_ready(traced(*there))
    if numba is not None:
        candidates["numba"] = numba_loop(numba, text, x, out)
    expected = eval(code, names)
    for name, call in candidates.items():
        out[:] = 0
        call()
        if name in ("vyre", "vyre, 2 threads", "C", "numexpr") and not np.array_equal(
            out.view(np.uint32), expected.view(np.uint32)
        ):
            raise SystemExit(f"{name} gives another answer than NumPy for {text}")
    runs = interleave(candidates, bench.rounds(11))
    for one in bound:
        one.close()
    milliseconds = {name: [1e3 * s for s in found] for name, found in runs.items()}
    bench.add(
        f"formula of {count} operations on {n:,} f32, 1 thread", milliseconds.pop("vyre"), "ms", peers=milliseconds
    )
    return runs


if __name__ == "__main__":
    main(__doc__, measure)
