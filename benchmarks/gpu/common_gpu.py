"""What the benchmarks of the GPU engine share: programs, the machine's line, rows. Needs a device and CuPy."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vyre.bench import schema
from vyre.engines.cuda.engine import CudaEngine
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import MemType, Type

FACTOR = np.float32(1.5)


def chain(operations: int, factor: float = 1.5) -> Program:
    """y = x, multiplied by a constant and added to it in turn: ``operations`` instructions between load and store."""
    b = Builder("chain")
    b.input("x", MemType.f32)
    b.output("y", MemType.f32)
    r = b.op("f32.load", imm=0)
    c = b.const(Type.f32, factor)
    for i in range(operations):
        r = b.op("f32.add" if i % 2 else "f32.mul", r, c)
    b.op("f32.store", r, imm=0)
    return b.build()


def expected(x: np.ndarray, operations: int, factor: np.float32 = FACTOR) -> np.ndarray:
    r = x.copy()
    with np.errstate(all="ignore"):
        for i in range(operations):
            r = r + factor if i % 2 else r * factor
    return r


def native(cupy: object, operations: int, name: str = "native") -> object:
    """The same arithmetic as one compiled kernel, without contraction."""
    body = "".join("r=__fadd_rn(r,1.5f);" if i % 2 else "r=__fmul_rn(r,1.5f);" for i in range(operations))
    source = (
        f'extern "C" __global__ void {name}(const float4* x, float4* y, long long n) {{'
        "for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)"
        "{ float4 v = x[i]; float* p = (float*)&v; for (int k = 0; k < 4; ++k) { float r = p[k];" + body + "p[k] = r; }"
        "y[i] = v; } }"
    )
    return cupy.RawKernel(source, name)  # type: ignore[attr-defined]


class Report:
    """Rows of one benchmark, printed as they come."""

    def __init__(self, engine: CudaEngine, commit: str) -> None:
        dev = engine.device
        driver = dev.call("version", dev.cu.cuDriverGetVersion())
        self.machine = f"{schema.machine()}, 1x {dev.name}, CUDA driver {driver // 1000}.{driver % 1000 // 10}"
        self.commit = commit
        self.rows: list[schema.Row] = []

    def add(
        self,
        row: str,
        runs: Sequence[float],
        unit: str,
        target: str = "",
        peers: Mapping[str, float] | None = None,
        *,
        must: bool = False,
        reason: str = "",
        points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    ) -> None:
        value = statistics.median(runs)
        found = schema.Row(
            row, float(f"{value:.4g}"), unit, target, {k: float(f"{v:.4g}") for k, v in (peers or {}).items()},
            self.machine, self.commit, round(schema.spread(runs), 4), must, reason, dict(points or {}),
        )  # fmt: skip
        self.rows.append(found)
        verdict = {True: "met", False: "MISSED", None: ""}[found.met]
        print(f"{row}: {found.value} {unit} {target} {verdict} beside {dict(found.peer)}", flush=True)


def main(run: Callable[[CudaEngine, Report], None], default: str, doc: str, **options: object) -> None:
    from vyre.store import Store

    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results") / default)
    parser.add_argument("--commit", default=schema.commit(), help="where the checkout is not a git one")
    given = parser.parse_args()
    with CudaEngine(store=Store(), **options) as engine:  # type: ignore[arg-type]
        report = Report(engine, given.commit)
        print(doc.splitlines()[0])
        print(report.machine, report.commit)
        run(engine, report)
    schema.write(given.out, report.rows)
