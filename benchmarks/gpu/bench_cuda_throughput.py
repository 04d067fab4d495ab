"""gpu_throughput: interpreted instructions a second over big arrays

Shows: one program over arrays in device memory and in pinned host memory, beside a compiled kernel of the same
arithmetic and a bare interpreter.
Does not show: programs with control flow and other real ones (gpu_programs), tiny programs (gpu_tiny), other cards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import cupy
import numpy as np
from common_gpu import Report, chain, main, native
from probe import Probe

from vyre.engines.cuda.engine import CudaEngine
from vyre.program.verifier import verify
from vyre.ring.layout import Status

clock = time.perf_counter


def arrays(engine: CudaEngine, report: Report) -> None:
    count = 1 << 30  # so much that ramp and end of an item, some 40 us together, do not hide its speed
    x, y, z = cupy.empty(count, cupy.float32), cupy.empty(count, cupy.float32), cupy.empty(count, cupy.float32)
    x[:] = cupy.random.random(count, dtype=cupy.float32)
    cupy.cuda.Device().synchronize()

    def timed(work: Callable[[], None]) -> float:
        began = clock()
        work()
        cupy.cuda.Device().synchronize()
        return clock() - began

    shares = {1: ">= 0.93", 4: ">= 0.93", 10: ">= 0.7", 40: ""}
    for operations, share in shares.items():
        opcode = engine.load(verify(chain(operations)))
        binding = engine.bind(opcode, [x], outputs=[y], count=count)
        one_tile = engine.bind(opcode, [x], outputs=[y], count=1024)
        kernel = native(cupy, operations)
        probes = {cases: Probe(cupy, operations, cases) for cases in ((5, 60) if operations == 40 else ())}
        ours: list[float] = []
        theirs: list[float] = []
        bare: dict[int, list[float]] = {cases: [] for cases in probes}
        for _ in range(7):
            for bound in (one_tile, binding):  # with the first comes the kernel; what is timed finds it resident
                began = clock()
                sequence = engine.publish(bound)
                assert sequence is not None
                engine.wait(sequence)
                took = clock() - began
                assert engine.completions(sequence, 1)["status"][0] == Status.DONE
            ours.append(took)
            with engine.pause():
                for cases, probe in probes.items():
                    bare[cases].append(timed(lambda probe=probe: probe(x, z, count)))
                    assert bool((y == z).all())
                theirs.append(timed(lambda: kernel((132 * 8,), (256,), (x, z, np.int64(count // 4)))))
        with engine.pause():
            assert bool((y == z).all())
        took, native_took = statistics.median(ours), statistics.median(theirs)
        report.add(
            f"gpu: {operations} op per element over 4 GiB in device memory, bandwidth as a share of the native kernel",
            [native_took / t for t in ours], "x", share,
            {"interpreted GB/s": 8 * count / took / 1e9, "native GB/s": 8 * count / native_took / 1e9},
        )  # fmt: skip
        if operations == 40:
            probed = {cases: statistics.median(times) for cases, times in bare.items()}
            report.add(
                "gpu: interpreted instructions, 40 per element, data in device memory, NaN rule kept",
                [operations * count / t / 1e12 for t in ours], "T/s", ">= 4.5",
                {"native kernel": operations * count / native_took / 1e12}
                | {f"bare probe, {cases} cases": operations * count / t / 1e12 for cases, t in probed.items()},
            )  # fmt: skip
            report.add(
                "gpu: interpreted instructions, 40 per element, share of the faster bare probe",
                [min(probed.values()) / t for t in ours], "x", ">= 0.8",
            )  # fmt: skip
        engine.unbind(one_tile)
        engine.unbind(binding)


def pinned(engine: CudaEngine, report: Report) -> None:
    count = 1 << 26
    x = engine.pinned_empty(count, np.float32)
    x[:] = np.arange(count) % 1000
    y = cupy.empty(count, cupy.float32)
    cupy.cuda.Device().synchronize()
    reader = cupy.RawKernel(
        'extern "C" __global__ void reader(const float4* x, float4* y, long long n) { float s = 0;'
        "for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)"
        "{ float4 v = x[i]; s += v.x + v.y + v.z + v.w; } if (s == 12345.678f) y[0].x = s; }",
        "reader",
    )
    address = engine._pinned.device_address(x)
    for operations in (1, 100):
        binding = engine.bind(engine.load(verify(chain(operations, 1.0))), [x], outputs=[y], count=count)
        ours, theirs = [], []
        for _ in range(7):
            began = clock()
            sequence = engine.publish(binding)
            assert sequence is not None
            engine.wait(sequence)
            ours.append(clock() - began)
            assert engine.completions(sequence, 1)["status"][0] == Status.DONE
            with engine.pause():
                began = clock()
                reader((132 * 8,), (256,), (np.uint64(address), y, np.int64(count // 4)))
                cupy.cuda.Device().synchronize()
                theirs.append(clock() - began)
        if operations == 1:
            with engine.pause():
                assert np.array_equal(cupy.asnumpy(y), x)
        bare = statistics.median(theirs)
        report.add(
            f"gpu: pinned host memory, {operations} op per element, share of a kernel that only reads it",
            [bare / t for t in ours], "x", ">= 0.95",
            {"GB/s": 4 * count / statistics.median(ours) / 1e9, "reader GB/s": 4 * count / bare / 1e9}, must=True,
        )  # fmt: skip


def run(engine: CudaEngine, report: Report) -> None:
    arrays(engine, report)
    pinned(engine, report)


if __name__ == "__main__":
    main(run, "gpu_throughput.json", __doc__ or "", capacity=65_536)
