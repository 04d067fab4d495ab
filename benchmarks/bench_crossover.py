"""crossover: from a formula never seen before to its answer, over 1 to 10^8 elements, ours and every peer's

Shows: who is first with the answer to a new formula of 16 operations, and from how many elements on somebody else is:
NumPy, which needs no preparation, at the small end, compiled loops at the large one. Each sample is a new formula; its
answer is compared. This is the picture on top of the README (``vyre bench --plot``).
Does not show: 10^9 elements, which do not fit this machine's memory beside their results; a formula that is used twice;
the first formula of a process. numba compiles one thread's loop, JAX and vyre use every core, numexpr two threads.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Bench, crossing, main, peer
from random_formulas import NUMPY, columns, for_numexpr, formula, function_of, numpy_code

import vyre

OPERATIONS = 16
_seeds = itertools.count(1_000_000)


def measure(bench: Bench) -> None:
    makers = _makers(bench)
    sizes = [1, 100, 10_000] if bench.quick else [10**k for k in range(9)] + [300_000, 3_000_000]
    points: dict[str, list[tuple[float, float]]] = {"vyre cpu": []}
    with vyre.open("cpu") as session, np.errstate(all="ignore"):

        def ours(text: str, x: dict[str, Any]) -> Callable[[], Any]:
            return lambda: session.evaluate(text, x)

        makers = {"vyre cpu": ours, **makers}
        everything = columns(max(sizes))
        warm = columns(64)
        for make in makers.values():  # what a process pays once: imports, thread pools, the instructions themselves
            for _ in range(2 if bench.quick else 3):
                make(formula(next(_seeds), OPERATIONS), warm)()
        for size in sorted(sizes):
            x = {name: column[:size] for name, column in everything.items()}
            taken = _samples(bench, makers, x, size)
            for name, found in taken.items():
                points.setdefault(name, []).append((size, float(f"{statistics.median(found):.4g}")))
    bench.note("seconds over elements: " + "; ".join(f"{n} {p}" for n, p in points.items()))
    _rows(bench, points)


def _samples(
    bench: Bench, makers: dict[str, Callable[..., Any]], x: dict[str, Any], size: int
) -> dict[str, list[float]]:
    """Seconds of each, taking turns. A first round over large columns is not counted: memory that the machine has not
    touched for long costs whoever comes first."""
    large = size >= 10**6
    rounds = 1 if bench.quick else 3 if size >= 10**8 else 5 if large else 21
    taken: dict[str, list[float]] = {name: [] for name in makers}
    for round_ in range(-1 if large else 0, rounds):
        names = list(makers)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            if name in ("JAX jit", "numba") and round_ >= 5:  # they compile for a tenth of a second and more
                continue
            text = formula(next(_seeds), OPERATIONS)
            call = makers[name](text, x)
            began = time.perf_counter()
            found = call()
            seconds = time.perf_counter() - began
            if round_ >= 0:
                taken[name].append(seconds)
            _compare(bench, name, text, np.asarray(found), x, size)
            del found
    return taken


def _compare(bench: Bench, name: str, text: str, found: Any, x: dict[str, Any], size: int) -> None:
    """The first 64 Ki elements with NumPy's: bit for bit, but for those that fuse operations."""
    part = slice(0, 1 << 16)
    expected = eval(numpy_code(text), {**NUMPY, **{k: v[part] for k, v in x.items()}})
    if name in ("JAX jit", "numba"):
        if not np.allclose(found[part], expected, rtol=1e-3, atol=1e-4, equal_nan=True):
            bench.note(f"{name}, {size:,} elements: differs by more than 1e-3 where a formula cancels")
    elif len(found) != size or not np.array_equal(found[part], expected, equal_nan=True):
        raise SystemExit(f"{name}: wrong answer for {text}")


def _makers(bench: Bench) -> dict[str, Callable[[str, dict[str, Any]], Callable[[], Any]]]:
    """For each peer: from a text and columns to what is timed. Nothing that reads the text lies outside, but NumPy's."""
    numexpr, jax, numba = peer("numexpr"), peer("jax"), peer("numba")
    found: dict[str, Callable[[str, dict[str, Any]], Callable[[], Any]]] = {}

    def by_numpy(text: str, x: dict[str, Any]) -> Callable[[], Any]:
        code, scope = numpy_code(text), {**NUMPY, **x}
        return lambda: eval(code, scope)

    found["NumPy"] = by_numpy
    if numexpr is None:
        bench.lacks("numexpr")
    else:
        numexpr.set_num_threads(2)

        def by_numexpr(text: str, x: dict[str, Any]) -> Callable[[], Any]:
            spelled, constants = for_numexpr(text)
            scope = {**x, **constants}
            return lambda: numexpr.evaluate(spelled, scope)

        found["numexpr"] = by_numexpr
    if jax is None:
        bench.lacks("JAX")
    else:

        def by_jax(text: str, x: dict[str, Any]) -> Callable[[], Any]:
            return lambda: jax.block_until_ready(jax.jit(function_of(text, jax.numpy))(*x.values()))

        found["JAX jit"] = by_jax
    if numba is None:
        bench.lacks("numba")
    else:

        def by_numba(text: str, x: dict[str, Any]) -> Callable[[], Any]:
            return lambda: numba.njit(function_of(text, np))(*x.values())

        found["numba"] = by_numba
    return found


def _rows(bench: Bench, points: dict[str, list[tuple[float, float]]]) -> None:
    ours = points["vyre cpu"]
    most = ours[-1][0]
    name = f"new formula of {OPERATIONS} operations: NumPy is slower from here on"
    at = crossing(ours, points["NumPy"])
    bench.add(name, [at if at is not None else most], "elements", points=points,
              reason="" if at is not None else "not up to the largest size measured")  # fmt: skip
    compiled = {n: crossing(points[n], ours) for n in ("JAX jit", "numba") if n in points}
    if compiled:
        first = min((at for at in compiled.values() if at is not None), default=None)
        bench.add(f"new formula of {OPERATIONS} operations: a compiled peer is faster from here on",
                  [first if first is not None else most], "elements",
                  peers={n: at for n, at in compiled.items() if at is not None},
                  reason="" if first is not None else "not up to the largest size measured")  # fmt: skip


if __name__ == "__main__":
    main(__doc__, measure)
