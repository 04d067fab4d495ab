"""gpu_programs: four real programs, interpreted, beside compiled kernels of the same arithmetic

Shows: query 6 of TPC-H (four columns, one sum), Black-Scholes call prices, a polynomial of 20 terms and the Mandelbrot set
(a loop of another length for each element), over arrays in device memory; the instructions that each executes per element.
Answers are compared with the compiled kernel's: bit for bit where both do the same operations, within the error of its own
library for exp, log and sqrt (vyre's are exact to half a unit in the last place).
Does not show: data in host memory or files, loading and binding, other cards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
from common_gpu import Report, main

import vyre
from vyre.engines.cuda.engine import CudaEngine
from vyre.ring.layout import Status
from vyre.runtime.programs import verified_of

clock = time.perf_counter
TERMS = 20
ROUNDS = 100


@vyre.program
def query6(
    shipdate: vyre.i32, discount: vyre.f64, quantity: vyre.f64, price: vyre.f64, *, start: vyre.i32, end: vyre.i32
):
    if start <= shipdate < end and 0.05 <= discount <= 0.07 and quantity < 24:
        vyre.sum(revenue=price * discount)


@vyre.program
def black_scholes(s: vyre.f32, k: vyre.f32, t: vyre.f32, *, rate: vyre.f32, sigma: vyre.f32):
    """Price of a European call; the normal distribution by Abramowitz and Stegun 26.2.17."""
    root = sigma * vyre.sqrt(t)
    d1 = (vyre.log(s / k) + (rate + 0.5 * sigma * sigma) * t) / root
    d2 = d1 - root
    k1 = 1 / (1 + 0.2316419 * abs(d1))
    n1 = (
        0.39894228
        * vyre.exp(-0.5 * d1 * d1)
        * (k1 * (0.31938153 + k1 * (-0.356563782 + k1 * (1.781477937 + k1 * (-1.821255978 + k1 * 1.330274429)))))
    )
    k2 = 1 / (1 + 0.2316419 * abs(d2))
    n2 = (
        0.39894228
        * vyre.exp(-0.5 * d2 * d2)
        * (k2 * (0.31938153 + k2 * (-0.356563782 + k2 * (1.781477937 + k2 * (-1.821255978 + k2 * 1.330274429)))))
    )
    c1 = vyre.where(d1 > 0, 1 - n1, n1)
    c2 = vyre.where(d2 > 0, 1 - n2, n2)
    return s * c1 - k * vyre.exp(-rate * t) * c2


@vyre.program
def mandelbrot(cr: vyre.f32, ci: vyre.f32, *, limit: vyre.i32):
    zr = 0.0 * cr
    zi = 0.0 * ci
    left = limit
    while zr * zr + zi * zi <= 4 and left > 0:
        zr, zi = zr * zr - zi * zi + cr, 2 * zr * zi + ci
        left -= 1
    return limit - left


POLYNOMIAL = "+".join(["1.0", *(f"x*({i}.5" for i in range(1, TERMS))]).replace("+x*(", "+x*(") + ")" * (TERMS - 1)

HEAD = (
    "const long long step = (long long)gridDim.x * blockDim.x, at = blockIdx.x * (long long)blockDim.x + threadIdx.x;"
)
NATIVE = {
    "query6": (
        'extern "C" __global__ void query6(const int* day, const double* disc, const double* qty, const double* price,'
        " double* out, long long n, int start, int end) {" + HEAD + "double sum = 0;"
        "for (long long i = at; i < n; i += step) { int d = day[i]; double c = disc[i];"
        " if (start <= d && d < end && 0.05 <= c && c <= 0.07 && qty[i] < 24) sum += price[i] * c; }"
        " for (int s = 16; s; s >>= 1) sum += __shfl_down_sync(~0u, sum, s);"
        " if ((threadIdx.x & 31) == 0) atomicAdd(out, sum); }"
    ),
    "black_scholes": (
        "__device__ float cnd(float d) { float k = 1 / (1 + 0.2316419f * fabsf(d));"
        " float n = 0.39894228f * expf(-0.5f * d * d) * (k * (0.31938153f + k * (-0.356563782f + k * (1.781477937f + k *"
        " (-1.821255978f + k * 1.330274429f))))); return d > 0 ? 1 - n : n; }"
        'extern "C" __global__ void black_scholes(const float* s, const float* k, const float* t, float* out, long long n,'
        " float rate, float sigma) {" + HEAD + "for (long long i = at; i < n; i += step) {"
        " float root = sigma * sqrtf(t[i]), d1 = (logf(s[i] / k[i]) + (rate + 0.5f * sigma * sigma) * t[i]) / root;"
        " out[i] = s[i] * cnd(d1) - k[i] * expf(-rate * t[i]) * cnd(d1 - root); } }"
    ),
    "polynomial": (
        'extern "C" __global__ void polynomial(const float* x, float* out, long long n) {' + HEAD +
        f"for (long long i = at; i < n; i += step) {{ float v = x[i], r = {TERMS - 1}.5f;"
        + "".join(f"r = __fadd_rn({i}.5f, __fmul_rn(v, r));" for i in range(TERMS - 2, 0, -1))
        + "out[i] = __fadd_rn(1.0f, __fmul_rn(v, r)); } }"
    ),
    "mandelbrot": (
        'extern "C" __global__ void mandelbrot(const float* cr, const float* ci, int* out, long long n, int limit) {'
        + HEAD + "for (long long i = at; i < n; i += step) { float a = cr[i], b = ci[i], x = 0.f * a, y = 0.f * b; int r = 0;"
        " while (__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)) <= 4.f && r < limit) {"
        " float u = __fadd_rn(__fsub_rn(__fmul_rn(x, x), __fmul_rn(y, y)), a);"
        " y = __fadd_rn(__fmul_rn(__fmul_rn(2.f, x), y), b); x = u; ++r; } out[i] = r; } }"
    ),
}  # fmt: skip


def bits(kind: str, *values: float) -> list[int]:
    return [int.from_bytes(np.asarray(v, kind).tobytes(), "little") for v in values]


def close(a: Any, b: Any) -> bool:
    """Prices of up to 100 in f32, whose compiled form uses approximate functions and contraction."""
    return bool(cupy.abs(a - b).max() < 2e-4)


def case(
    engine: CudaEngine,
    report: Report,
    name: str,
    program: Any,
    inputs: list[Any],
    params: list[int],
    native_params: tuple[Any, ...],
    out: Any,
    same: Callable[[Any, Any], bool],
    instructions: float,
) -> None:
    count = inputs[0].size
    summed = out is None
    ours = None if summed else cupy.empty_like(out)
    kernel = cupy.RawKernel(NATIVE[name], name, options=("--std=c++17",))
    opcode = engine.load(verified_of(program))
    binding = engine.bind(opcode, inputs, (), params, None if summed else [ours], count=count)
    took, native = [], []
    theirs = cupy.zeros(1, cupy.float64) if summed else out
    for _ in range(7):
        began = clock()
        sequence = engine.publish(binding)
        assert sequence is not None
        engine.wait(sequence)
        if summed:  # the last fold of its tiles is the host's
            ours = engine.result(binding, sequence).accumulators[0]
        took.append(clock() - began)
        if not summed:
            assert engine.completions(sequence, 1)["status"][0] == Status.DONE
        with engine.pause():
            if summed:
                theirs.fill(0)
            cupy.cuda.Device().synchronize()
            began = clock()
            kernel((132 * 8,), (256,), (*inputs, theirs, np.int64(count), *native_params))
            cupy.cuda.Device().synchronize()
            native.append(clock() - began)
    with engine.pause():
        assert same(ours, theirs), name
        cupy.cuda.Device().synchronize()
    middle = statistics.median(native)
    size = sum(a.nbytes for a in inputs) + (0 if summed else out.nbytes)
    report.add(
        f"gpu: {name}, interpreted, {count >> 20} Mi elements in device memory, times the compiled kernel's time",
        [t / middle for t in took], "x", "",
        {
            "interpreted ms": statistics.median(took) * 1e3, "compiled ms": middle * 1e3,
            "interpreted GB/s": size / statistics.median(took) / 1e9,
            "T instructions/s": instructions * count / statistics.median(took) / 1e12,
        },
    )  # fmt: skip
    engine.unbind(binding)


def executed(program: Any) -> int:
    """Instructions of a program without loops, elementary functions expanded."""
    from vyre.program.functions import inline

    return len(inline(verified_of(program).program)[0].code)


def run(engine: CudaEngine, report: Report) -> None:
    rng = cupy.random.default_rng(6)
    n = 1 << 26
    columns = [
        rng.integers(8_000, 10_600, n, dtype=cupy.int32), rng.integers(0, 11, n).astype(cupy.float64) / 100,
        rng.integers(1, 51, n).astype(cupy.float64), rng.random(n) * 104_100 + 900,
    ]  # fmt: skip
    case(
        engine, report, "query6", query6, columns, [8_766, 9_131], (np.int32(8_766), np.int32(9_131)), None,
        lambda a, b: abs(float(a) - float(b[0])) < 1e-9 * abs(float(a)), executed(query6),
    )  # fmt: skip
    del columns
    s, k = rng.random(n, dtype=cupy.float32) * 90 + 10, rng.random(n, dtype=cupy.float32) * 90 + 10
    t = rng.random(n, dtype=cupy.float32) * 9 + 0.25
    case(
        engine, report, "black_scholes", black_scholes, [s, k, t], bits("<f4", 0.02, 0.3),
        (np.float32(0.02), np.float32(0.3)), cupy.empty(n, cupy.float32), close, executed(black_scholes),
    )  # fmt: skip
    x = rng.random(n, dtype=cupy.float32) * 2 - 1
    polynomial = vyre.expression(POLYNOMIAL, {"x": vyre.f32})
    case(
        engine, report, "polynomial", polynomial, [x], [], (), cupy.empty(n, cupy.float32),
        lambda a, b: bool((a.view(cupy.uint32) == b.view(cupy.uint32)).all()), executed(polynomial),
    )  # fmt: skip
    side = 4096
    cr = cupy.tile(cupy.linspace(-2.1, 0.7, side, dtype=cupy.float32), side)
    ci = cupy.repeat(cupy.linspace(-1.2, 1.2, side, dtype=cupy.float32), side)
    rounds = cupy.empty(side * side, cupy.int32)
    # Ten operations, two comparisons and the branch in each round.
    with engine.pause():
        kernel = cupy.RawKernel(NATIVE["mandelbrot"], "mandelbrot")
        kernel((132 * 8,), (256,), (cr, ci, rounds, np.int64(side * side), np.int32(ROUNDS)))
        mean = float(rounds.mean())
    case(
        engine, report, "mandelbrot", mandelbrot, [cr, ci], bits("<i4", ROUNDS), (np.int32(ROUNDS),), rounds,
        lambda a, b: bool((a == b).all()), 14 * mean,
    )  # fmt: skip


if __name__ == "__main__":
    main(run, "gpu_programs.json", __doc__ or "")
