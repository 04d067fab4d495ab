"""first_result: a formula never seen before, from its text or its bytecode to its first result on 1,024 float32

Shows: what one new formula costs, everything included: reading, verifying, lowering, publishing, executing, waiting.
Each sample is another formula with other constants; every answer is compared with NumPy's, bit for bit.
Does not show: the first formula of a process (bench_startup) or of a machine, whose instructions are compiled once and
kept; many elements (bench_crossover); elementary functions. NumPy is timed from Python code that is already compiled:
it has no text to read. JAX and numba compile, and are paid back only by many elements.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from common import Bench, crossing, main, peer
from random_formulas import NUMPY, columns, for_numexpr, formula, function_of, numpy_code

import vyre

COUNT = 1_024
_seeds = itertools.count(1)


def same(found: Any, expected: Any, text: str) -> None:
    if not np.array_equal(np.asarray(found), expected, equal_nan=True):
        raise SystemExit(f"wrong answer for {text}")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def fresh(operations: int) -> Iterator[tuple[str, Any]]:
    """Formulas without end, none of them twice, each with its NumPy code."""
    for seed in _seeds:
        text = formula(seed, operations)
        yield text, numpy_code(text)


def measure(bench: Bench) -> None:
    numexpr, jax, numba = peer("numexpr"), peer("jax"), peer("numba")
    for name, module in (("numexpr", numexpr), ("JAX", jax), ("numba", numba)):
        if module is None:
            bench.lacks(name)
    x = columns(COUNT)
    with vyre.open("cpu") as session, np.errstate(all="ignore"):
        for operations in (16, 26):
            runs: dict[str, list[float]] = {}
            formulas = fresh(operations)
            for text, _ in itertools.islice(formulas, 5 if bench.quick else 60):  # the instructions themselves, once
                session.evaluate(text, x)

            for round_ in range(bench.rounds(20, 2)):
                _block(bench, session, runs, formulas, x, round_, (numexpr, jax, numba))
            milliseconds = {name: [1e3 * s for s in found] for name, found in runs.items()}
            peers = {name: found for name, found in milliseconds.items() if name not in ("text", "bytecode")}
            for way, target in (("text", "<= 0.15"), ("bytecode", "<= 0.1")):
                name = f"new formula, {operations} operations: {way} -> result on 1,024 f32"
                bench.add(name, milliseconds[way], "ms", target=target, peers=peers, must=True)
        _crossover(bench, session)


def _block(
    bench: Bench, session: Any, runs: dict[str, list[float]], formulas: Iterator[tuple[str, Any]], x: dict[str, Any],
    round_: int, peers: tuple[Any, Any, Any],
) -> None:  # fmt: skip
    """Some new formulas by each way, taking turns from block to block. Answers are compared behind the clock."""
    numexpr, jax, numba = peers
    given = list(itertools.islice(formulas, 2 if bench.quick else 10))
    expected = [eval(code, {**NUMPY, **x}) for _, code in given]

    def block(name: str, calls: Sequence[Callable[[], Any]], texts: Sequence[str], answers: Sequence[Any]) -> None:
        found = [timed(call) for call in calls]
        runs.setdefault(name, []).extend(seconds for seconds, _ in found)
        for (_, answer), right, text in zip(found, answers, texts, strict=True):
            if name not in ("JAX", "numba"):  # they may fuse and so round differently
                same(answer, right, text)
            elif not np.allclose(np.asarray(answer), right, rtol=1e-3, atol=1e-4, equal_nan=True):
                bench.note(f"{name} differs from NumPy by more than 1e-3 where a formula cancels")

    texts = [text for text, _ in given]
    block("text", [lambda text=text: session.evaluate(text, x) for text in texts], texts, expected)
    others = list(itertools.islice(formulas, len(given)))
    programs = []
    for text, code in others:
        used = {name: x[name] for name in "abc" if name in code.co_names}
        programs.append((vyre.encode(vyre.expression(text, dict.fromkeys(used, vyre.f32)).program), used))
    block(
        "bytecode",
        [lambda code=code, used=used: session.run(code, used).value for code, used in programs],
        [text for text, _ in others],
        [eval(code, {**NUMPY, **x}) for _, code in others],
    )
    scope = {**NUMPY, **x}
    block("NumPy", [lambda code=code: eval(code, scope) for _, code in given], texts, expected)
    if numexpr is not None:
        spelled = [for_numexpr(text) for text in texts]
        calls = [lambda text=text, k=k: numexpr.evaluate(text, {**x, **k}) for text, k in spelled]
        block("numexpr", calls, texts, expected)
    if jax is not None and round_ < bench.rounds(3, 1):
        traced = [jax.jit(function_of(text, jax.numpy)) for text in texts]
        calls = [lambda f=f: jax.block_until_ready(f(*x.values())) for f in traced]
        block("JAX", calls, texts, expected)
    if numba is not None and round_ < bench.rounds(2, 0):
        jitted = [numba.njit(function_of(text, np)) for text in texts]
        block("numba", [lambda f=f: f(*x.values()) for f in jitted[:5]], texts[:5], expected[:5])


def _crossover(bench: Bench, session: Any) -> None:
    """Elements from which on NumPy is slower than a new formula here."""
    ours, theirs = [], []
    formulas = fresh(26)
    for exponent in range(8, 13 if bench.quick else 21, 2):
        x = columns(1 << exponent)
        a, b = [], []
        for _ in range(bench.rounds(15)):
            text, code = next(formulas)
            scope = {**NUMPY, **x}
            seconds, expected = timed(lambda: eval(code, scope))
            b.append(seconds)
            seconds, found = timed(lambda: session.evaluate(text, x))
            a.append(seconds)
            same(found, expected, text)
        ours.append((1 << exponent, float(np.median(a))))
        theirs.append((1 << exponent, float(np.median(b))))
    at = crossing(ours, theirs)
    bench.note(
        "NumPy eager is slower than a new formula of 26 operations "
        + (f"from {at:,.0f} elements on" if at else "nowhere up to the largest size here")
        + "; where compiled peers overtake: bench_crossover"
    )


if __name__ == "__main__":
    main(__doc__, measure)
