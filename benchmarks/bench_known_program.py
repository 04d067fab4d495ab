"""known_program: a program that is resident already, on one element, from the call to the result seen in Python

Shows: what is left when nothing has to be read, verified or lowered: the way through Python, the ring and back. Each
answer is read and compared; the input changes before every call.
Does not show: many elements (bench_formulas), many slots at a time (bench_ring_batch), a new formula
(bench_first_result). A sleeping engine is not woken here: the waiting thread runs small items itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Bench, main, peer

import vyre

TEXT = "a + b"


def measure(bench: Bench) -> None:
    numexpr = peer("numexpr")
    if numexpr is None:
        bench.lacks("numexpr")
    a, b, out = (np.ones(1, np.float32) for _ in range(3))
    program = vyre.expression(TEXT, dict.fromkeys("ab", vyre.f32))
    with vyre.open("cpu") as session:
        bound = session.bind(program, a=a, b=b, out=out)
        candidates: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
            "bound": (bound.run, lambda _: float(out[0])),
            "by name": (lambda: session.run(program, a=a, b=b), lambda r: float(r.value[0])),
            "evaluate": (lambda: session.evaluate(TEXT, {"a": a, "b": b}), lambda r: float(r[0])),
            "NumPy": (lambda: a + b, lambda r: float(r[0])),
        }
        if numexpr is not None:
            numexpr.evaluate(TEXT)
            candidates["numexpr re_evaluate"] = (numexpr.re_evaluate, lambda r: float(r[0]))
        medians: dict[str, list[float]] = {name: [] for name in candidates}
        slowest: dict[str, list[float]] = {name: [] for name in candidates}
        calls = 200 if bench.quick else 4_000
        clock = time.perf_counter_ns
        for round_ in range(bench.rounds(15)):
            for name, (call, answer) in candidates.items():
                taken = []
                for i in range(calls):
                    a[0] = value = (i + round_) % 1_000
                    began = clock()
                    found = call()
                    taken.append(clock() - began)
                    if answer(found) != value + 1:
                        raise SystemExit(f"{name}: {answer(found)} for {value} + 1")
                taken.sort()
                medians[name].append(taken[calls // 2] / 1e3)
                slowest[name].append(taken[calls * 99 // 100] / 1e3)
        bound.close()
    others = {name: found for name, found in medians.items() if name in ("NumPy", "numexpr re_evaluate")}
    bench.add("known program, 1 element, bound: p50", medians["bound"], "us", target="<= 1.5", peers=others)
    bench.add("known program, 1 element, bound: p99", slowest["bound"], "us",
              peers={name: statistics.median(slowest[name]) for name in others})  # fmt: skip
    bench.add("known program, 1 element, run(...) by name: p50", medians["by name"], "us", target="<= 5", peers=others)
    bench.add("known formula, 1 element, evaluate(text): p50", medians["evaluate"], "us", peers=others)


if __name__ == "__main__":
    main(__doc__, measure)
