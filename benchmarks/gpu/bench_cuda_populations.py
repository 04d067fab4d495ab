"""gpu_populations: 10,000 random formulas over 100,000 rows: verified, loaded, run, and each one's loss read

Shows: a generation of a search over formulas: packed arrays of instructions in, the sum of squared residuals of every
formula out; node evaluations and programs a second of load and run together, and of each alone. Beside, with the same
formulas and rows on the same machine: NumPy, torch and JAX eager, each operation a kernel; a JAX jit of each formula;
and an interpreter written in JAX for whole populations (registers in an array, all operations computed, one selected),
which compiles once, on random programs of the formulas' mean length. Our losses are compared with NumPy's.
Does not show: making the formulas; gplearn-CUDA and EvoGP, which are not installed where this was run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common_gpu import Report
from numpy.typing import NDArray

import vyre
from vyre.bench import schema
from vyre.program.ir import Accumulator, Instr, Program
from vyre.program.opcodes import BY_NAME, AccKind, MemType
from vyre.program.population import Population

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from random_formulas import NUMPY, formula, function_of, numpy_code

NAMES = ("a", "b", "c", "y")
STORE, MUL, SUM, RETURN = (BY_NAME[n].code for n in ("f32.store", "f32.mul", "f32.acc_sum", "return"))
CONTROL = ("load", "const", "store", "return", "acc_sum")


def loss(text: str) -> Program:
    """The sum of squared residuals of a formula: its difference to y, squared in f32, added up in f64."""
    program = vyre.expression(f"({text}) - y", dict.fromkeys(NAMES, vyre.f32)).program
    *body, store, end = program.code
    assert (store.op, end.op) == (STORE, RETURN)
    r = store.a
    code = (*body, Instr(MUL, r, r, r), Instr(SUM, a=r), end)
    return replace(program, outputs=(), accumulators=(Accumulator("loss", AccKind.sum, MemType.f64),), code=code)


def nodes_of(population: Population) -> int:
    """Operations of all programs: instructions that compute something."""
    plain = [op.code for op in BY_NAME.values() if not op.name.endswith(CONTROL)]
    return int(np.isin(population.code & np.uint64(0xFFFF), plain).sum())


def seconds(call: Callable[[], object], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def numpy_loss(code: Any, columns: dict[str, NDArray[Any]]) -> float:
    r = eval(code, {**NUMPY, **columns}) - columns["y"]
    return float(np.sum(r * r, dtype=np.float64))


def eager(module: Any, texts: list[str], columns: dict[str, Any], wait: Callable[[Any], Any], f64: Any) -> float:
    """Seconds a formula of a peer that runs one kernel per operation, all results waited for at the end."""
    extra = {"float32": float}  # of a float32 array, a Python number is a float32 constant
    functions = [function_of(t, module, extra) for t in texts]

    def once() -> None:
        found = []
        for f in functions:
            r = f(columns["a"], columns["b"], columns["c"]) - columns["y"]
            found.append((r * r).sum(dtype=f64))
        wait(found)

    once()
    return min(seconds(once, 3)) / len(texts)


class JaxInterpreter:
    """What one would write in JAX for a population: formulas as rows of [op, a, b], a scan over instructions."""

    BATCH = 32

    def __init__(self, jax: Any, columns: dict[str, NDArray[Any]], length: int) -> None:
        jnp = jax.numpy
        self.jax = jax
        rows = jnp.stack([jnp.asarray(columns[n]) for n in ("a", "b", "c")])
        y = jnp.asarray(columns["y"])

        def one(ops: Any, first: Any, second: Any, third: Any, constants: Any) -> Any:
            count = rows.shape[1]
            registers = jnp.zeros((length + 3, count), jnp.float32).at[:3].set(rows)

            def step(registers: Any, instruction: Any) -> Any:
                op, i, j, k, constant, at = instruction
                u, v, w = registers[i], registers[j], registers[k]
                all_ = jnp.stack(
                    [
                        jnp.full_like(u, constant), u + v, u - v, u * v, u / v, jnp.sqrt(u), jnp.abs(u),
                        jnp.where(w < v, u, registers[at]),
                    ]
                )  # fmt: skip
                return registers.at[at].set(all_[op]), None

            at = jnp.arange(3, 3 + length)
            registers, _ = jax.lax.scan(step, registers, (ops, first, second, third, constants, at))
            r = registers[2 + length] - y
            return jnp.sum((r * r).astype(jnp.float32))

        self.run = jax.jit(jax.vmap(one))


def peers(texts: list[str], columns: dict[str, NDArray[Any]], operations: float, names: list[str]) -> dict[str, float]:
    """Programs a second of each peer, from as many formulas as it takes to time it."""
    found: dict[str, float] = {}
    codes = [numpy_code(t) for t in texts[:40]]
    with np.errstate(all="ignore"):
        found["NumPy"] = 40 / min(seconds(lambda: [numpy_loss(c, columns) for c in codes], 2))
    try:
        if "torch" not in names:
            raise ImportError
        import torch

        class Torch:
            """torch under NumPy's names; constants stay Python floats of float32 values."""

            sqrt, abs, where, minimum, maximum = torch.sqrt, torch.abs, torch.where, torch.minimum, torch.maximum

        device = {n: torch.from_numpy(a).cuda() for n, a in columns.items()}
        scope = texts[:200]
        found["torch eager, GPU"] = 1 / eager(Torch, scope, device, lambda r: torch.stack(r).cpu(), torch.float64)
    except ImportError:
        pass
    try:
        if "jax" not in names:
            raise ImportError
        import jax

        jnp = jax.numpy
        near = {n: jnp.asarray(a) for n, a in columns.items()}
        found["JAX eager, GPU"] = 1 / eager(jnp, texts[:40], near, lambda r: jax.block_until_ready(r), jnp.float32)

        def compiled() -> None:
            for t in texts[:8]:
                f = function_of(t, jnp)
                whole = jax.jit(lambda a, b, c, y, f=f: jnp.sum((f(a, b, c) - y) ** 2))
                whole(near["a"], near["b"], near["c"], near["y"]).block_until_ready()

        found["JAX jit of each, GPU"] = 8 / min(seconds(compiled, 1))
        found["JAX interpreter, GPU"] = jax_interpreter(jax, columns, operations)
    except ImportError:
        pass
    return found


def jax_interpreter(jax: Any, columns: dict[str, NDArray[Any]], operations: float) -> float:
    """Programs a second of random programs of ``operations`` instructions; compiling is left out."""
    length = round(operations)
    machine = JaxInterpreter(jax, columns, length)
    rng = np.random.default_rng(1)
    shape = (machine.BATCH, length)
    most = np.arange(3, 3 + length)
    operands = [rng.integers(0, most, shape).astype(np.int32) for _ in range(3)]
    ops = rng.integers(1, 8, shape).astype(np.int32)
    constants = rng.random(shape, np.float32)
    given = [jax.numpy.asarray(x) for x in (ops, *operands, constants)]
    machine.run(*given).block_until_ready()
    return machine.BATCH / min(seconds(lambda: machine.run(*given).block_until_ready(), 5))


def run(session: vyre.Session, report: Report, n: int, rows: int, rounds: int, names: list[str]) -> None:
    texts = [formula(i, 8 + i % 17) for i in range(n)]
    rng = np.random.default_rng(7)
    columns = {name: rng.random(rows, np.float32) + np.float32(0.5) for name in NAMES}
    began = time.perf_counter()
    population = Population.of([loss(t) for t in texts])
    print(f"{n:,} formulas read and packed in {time.perf_counter() - began:.1f} s", flush=True)
    nodes = nodes_of(population)
    load, ran, both = [], [], []
    losses = np.empty(0)
    for _ in range(rounds):
        t0 = time.perf_counter()
        loaded = session.load_many(population)
        t1 = time.perf_counter()
        found = session.run_many(loaded, columns)
        t2 = time.perf_counter()
        losses = found["loss"]
        assert not found.faulted.any()
        loaded.close()
        load.append(t1 - t0)
        ran.append(t2 - t1)
        both.append(t2 - t0)
    with np.errstate(all="ignore"):
        for i in range(0, n, max(n // 60, 1)):
            want = numpy_loss(numpy_code(texts[i]), columns)
            np.testing.assert_allclose(losses[i], want, rtol=1e-9, err_msg=texts[i])
    with session.engine.pause():  # type: ignore[attr-defined]
        beside = peers(texts, columns, nodes / n, names)
    per_node = {k: v * nodes / n for k, v in beside.items()}
    what = f"gpu: population of {n:,} random formulas of 8 to 24 operations over {rows:,} rows"
    giga = 1e9
    report.add(
        f"{what}, loaded and run", [nodes * rows / s / giga for s in both], "G node evaluations/s", "",
        {k: v * rows / giga for k, v in per_node.items()},
    )  # fmt: skip
    report.add(f"{what}, loaded and run: programs", [n / s for s in both], "programs/s", "", beside)
    report.add(f"{what}, run only: programs", [n / s for s in ran], "programs/s", "", beside)
    best = max(beside, key=beside.__getitem__)
    report.add(
        f"{what}, loaded and run, times the best peer", [n / s / beside[best] for s in both], "x", ">= 10",
        {best: 1.0}, reason="gplearn-CUDA and EvoGP are not installed there",
    )  # fmt: skip
    report.add("gpu: load_many of 10,000 formulas, a program", [s / n * 1e6 for s in load], "us", "<= 3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_populations.json"))
    parser.add_argument("--commit", default=schema.commit(), help="where the checkout is not a git one")
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", default="torch,jax", help="which of them, besides NumPy")
    given = parser.parse_args()
    with vyre.open("cuda") as session:
        session.engine.wait_until_optimised()  # type: ignore[attr-defined]
        report = Report(session.engine, given.commit)  # type: ignore[arg-type]
        print((__doc__ or "").splitlines()[0])
        print(report.machine, report.commit)
        run(session, report, given.programs, given.rows, given.rounds, given.peers.split(","))
    schema.write(given.out, report.rows)


if __name__ == "__main__":
    main()
