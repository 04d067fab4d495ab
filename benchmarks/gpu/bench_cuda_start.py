"""gpu_start: from nothing to the first result on the GPU, in a new process

Shows: ``vyre.open`` to the first result with an empty store of compiled kernels and with a kept one, beside the first
kernel of CuPy and the first tensor of torch, each in a process of its own that imports nothing else before; when the
optimised kernel has taken over after an empty store.
Does not show: a driver that is not loaded yet, files that are not in the page cache, more than one GPU.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from common_gpu import Report, main

from vyre.engines.cuda.engine import CudaEngine

OURS = """
import time; began = time.perf_counter()
import vyre
s = vyre.open("cuda")
opened = time.perf_counter() - began
y = s.run(vyre.expression("2*x + 1", {"x": vyre.f32}), x=[1.0, 2.0, 3.0]).value
took = time.perf_counter() - began
assert y.tolist() == [3.0, 5.0, 7.0]
waited = 0.0
if WAIT:
    assert s.engine.wait_until_optimised()
    waited = time.perf_counter() - began
print(took, opened, waited)
"""
CUPY = """
import time; began = time.perf_counter()
import cupy
x = cupy.asarray([1.0, 2.0, 3.0], cupy.float32)
y = cupy.empty_like(x)
k = cupy.RawKernel('extern "C" __global__ void k(const float* x, float* y) { y[threadIdx.x] = 2.f * x[threadIdx.x] + 1.f; }', "k")
k((1,), (3,), (x, y))
y = cupy.asnumpy(y)
took = time.perf_counter() - began
assert y.tolist() == [3.0, 5.0, 7.0]
print(took)
"""
TORCH = """
import time; began = time.perf_counter()
import torch
x = torch.zeros(1, device="cuda")
torch.cuda.synchronize()
took = time.perf_counter() - began
print(took)
"""


def child(code: str, **environment: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return [float(word) for word in done.stdout.split()]


def run(engine: CudaEngine, report: Report) -> None:
    cold, swapped, warm, opened, cupy_cold, cupy_warm, torch = ([] for _ in range(7))
    warm_code, cold_code = OURS.replace("WAIT", "0"), OURS.replace("WAIT", "1")
    child(warm_code)
    for code in (warm_code, warm_code, cold_code):  # the last waits for the optimised kernel
        with tempfile.TemporaryDirectory() as folder:
            took, _, until = child(code, XDG_CACHE_HOME=folder)
            cold.append(took)
            swapped.append(until)
            cupy_cold += child(CUPY, CUPY_CACHE_DIR=folder)
    for _ in range(4):
        took, until, _ = child(warm_code)
        warm.append(took)
        opened.append(until)
        cupy_warm += child(CUPY)
        torch += child(TORCH)
    middle = {
        "CuPy RawKernel": statistics.median(cupy_warm),
        "torch.zeros(1, device='cuda')": statistics.median(torch),
    }
    report.add(
        "gpu: new process, vyre.open to first result, empty store", cold, "s", "<= 3",
        {"CuPy RawKernel, empty cache": statistics.median(cupy_cold)},
        reason=f"with a kernel that compiles quickly; the optimised one serves after {swapped[-1]:.1f} s",
    )  # fmt: skip
    report.add("gpu: new process, vyre.open to first result, kept kernel", warm, "s", "<= 0.6", middle)


if __name__ == "__main__":
    main(run, "gpu_start.json", __doc__ or "")
