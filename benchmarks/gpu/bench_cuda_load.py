"""gpu_load: tiny programs that arrive at random moments: offered load against the time from due to done

Shows: Poisson arrivals of one program, 16 operations on 32 floats in device memory, each item handed over as soon as it
is due; p50, p99 and p99.9 of the time from when it was due to when its result was seen. Ours from a C++ host (one slot an
item) and from Python (one call, or one batch for all that are due). Beside, from C++ and as native code: a launch per item, a CUDA graph
whose node is updated per item, and a finite dispatch of all that are due (one launch, a block each, then the next).
Does not show: several programs, several threads of hosts, items of many sizes. A method that cannot keep up has no point.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
from bench_cuda_latency import bound
from common_gpu import Report, expected, main
from cpp_host import REPORTS, Arguments, Host, reporting

from vyre.engines.cuda.caller import Call
from vyre.engines.cuda.engine import CudaEngine
from vyre.ring.layout import SLOT_DTYPE, Status

LOADS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
SECONDS, ITEMS, ROUNDS = 0.12, 400_000, 3
BOUND_US = 50.0  # a load is borne when 99 of 100 results are there in this time
OPERATIONS = 16
Method = Callable[[np.ndarray], np.ndarray]


def arrivals(load: float, seed: int) -> np.ndarray:
    """When items are due: nanoseconds from the start, f64."""
    n = int(min(max(load * SECONDS, 1_000), ITEMS))
    return np.cumsum(np.random.default_rng(seed).exponential(1e9 / load, n))


def from_python(engine: CudaEngine, slot: bytes, due: np.ndarray) -> np.ndarray:
    """Microseconds from due to done: one call for an item that is alone, a batch for all that are due otherwise."""
    n, ring = len(due), engine.residency
    call = Call(ring.ring_address, slot)
    items = np.repeat(np.frombuffer(slot, SLOT_DTYPE), ring.capacity)
    delay = np.empty(n)
    times = due.tolist()
    clock = time.perf_counter_ns
    published = done = 0
    base = ring.published
    began = clock()
    while done < n:
        now = clock() - began
        if published < n and times[published] <= now:
            if published == done and (published + 1 == n or times[published + 1] > now):
                if not ring.call(call):
                    assert call.sequence is not None
                    ring.wait(call.sequence, 1, 5.0)
                    ring.take(call)
                delay[done] = clock() - began - times[done]
                assert call.is_done
                published = done = done + 1
                continue
            to = min(int(np.searchsorted(due, now, "right")), done + ring.capacity)
            if to > published and engine.submit_batch(items[: to - published]) is not None:
                published = to
        found = 0
        if published > done and ring.is_done(base + done):
            found = ring._completed(base + done, published - done)
            now = clock() - began
            delay[done : done + found] = now - due[done : done + found]
            records = engine.completions(base + done, found)
            assert (records["status"] == Status.DONE).all()
            done += found
        elif published > done:
            ring.look()
        if now > 2e10:
            raise RuntimeError("the load was not borne")
    return delay / 1000


def peers(host: Host, engine: CudaEngine) -> dict[str, Method]:
    """Native code; each gives microseconds from due to done. Only inside engine.pause()."""
    kernel = reporting(cupy, OPERATIONS)
    x, y = cupy.arange(1, 33, dtype=cupy.float32), cupy.empty(32, cupy.float32)
    reports = engine.pinned_empty(REPORTS, np.uint64)
    mapped = engine._pinned.device_address(reports)
    assert mapped is not None
    stream = cupy.cuda.Stream(non_blocking=True)
    arguments = Arguments(x.data.ptr, y.data.ptr, 32, mapped, 0)
    given = (x, y, np.uint64(32), np.uint64(mapped), np.uint64(0))
    kernel((1,), (32,), given, stream=stream)
    stream.synchronize()
    assert np.array_equal(cupy.asnumpy(y), expected(np.arange(1, 33, dtype=np.float32), OPERATIONS))
    function = kernel.kernel.ptr
    graph, node, executable = one_node(engine, function, given)
    memory = (reports.ctypes.data, mapped)

    def method(name: str, *first: Any) -> Method:
        def call(n: int, due: int, delay: int) -> int:
            return int(getattr(host.library, name)(*first, stream.ptr, arguments, *memory, n, due, delay))

        def run(due: np.ndarray) -> np.ndarray:
            reports[:] = 0
            try:
                return host.arrivals(name, due, call)
            finally:
                stream.synchronize()

        return run

    methods = {
        "launch per item, C++": method("arrive_launch", function),
        "finite dispatch per micro-batch, C++": method("arrive_batches", function),
    }
    if executable:
        methods["CUDA graph with node update, C++"] = method("arrive_graph", executable, node, function)
    methods["keep"] = lambda _, held=(graph, given, kernel): np.empty(0)  # what the pointers point to
    return methods


def one_node(engine: CudaEngine, function: int, given: tuple[Any, ...]) -> tuple[Any, int, int]:
    """A graph of one kernel node: graph, node and executable as numbers."""
    cu, call = engine.device.cu, engine.device.call
    graph = call("make a graph", cu.cuGraphCreate(0))
    params = cu.CUDA_KERNEL_NODE_PARAMS()
    params.func = cu.CUfunction(function)
    params.gridDimX = params.gridDimY = params.gridDimZ = params.blockDimY = params.blockDimZ = 1
    params.blockDimX = 32
    params.sharedMemBytes = 0
    values = np.array([given[0].data.ptr, given[1].data.ptr, *(int(v) for v in given[2:])], np.uint64)
    pointers = np.array([values.ctypes.data + 8 * i for i in range(len(values))], np.uint64)
    params.kernelParams = pointers.ctypes.data
    node = call("add a node", cu.cuGraphAddKernelNode(graph, [], 0, params))
    executable = call("instantiate", cu.cuGraphInstantiate(graph, 0))
    return (graph, node, executable), int(node), int(executable)


def borne(points: dict[float, list[np.ndarray]], q: float) -> list[tuple[float, float]]:
    """(items a second, microseconds) at a percentile, medians of the rounds."""
    return [(load, statistics.median(float(np.percentile(r, q)) for r in runs)) for load, runs in points.items()]


def run(engine: CudaEngine, report: Report) -> None:
    host = Host()
    binding, want = bound(engine, OPERATIONS, "device")
    slot = binding.slot
    binding.outputs[0][:] = 0
    ours: dict[str, Method] = {
        "vyre, C++ host": lambda due: host.arrive_ring(engine, slot, due),
        "vyre, Python host": lambda due: from_python(engine, slot, due),
    }
    found: dict[str, dict[float, list[np.ndarray]]] = {}

    def measure(methods: dict[str, Method]) -> None:
        for name, method in methods.items():
            if name == "keep":
                continue
            points = found.setdefault(name, {})
            for load in LOADS:
                try:
                    runs = [method(arrivals(load, seed)) for seed in range(ROUNDS)]
                except RuntimeError as error:
                    print(f"{name} at {load:,} a second: {error}")
                    break
                points[load] = runs
                if np.median(runs[-1]) > 5_000:
                    break  # it falls behind; more load only makes the queue longer

    measure(ours)
    assert binding.outputs[0][0] == want
    with engine.pause():
        measure(peers(host, engine))
    curves = {f"{name}, p{q:g}": borne(points, q) for name, points in found.items() for q in (50, 99, 99.9)}
    best = {n: max((load for load, us in curves[f"{n}, p99"] if us <= BOUND_US), default=0) / 1e6 for n in found}
    for name, points in found.items():
        lines = [f"{load / 1e6:g}M {'/'.join(f'{float(np.percentile(np.concatenate(r), q)):.1f}' for q in (50, 99, 99.9))}" for load, r in points.items()]  # fmt: skip
        print(f"{name}: {'; '.join(lines)}")
    for name in ours:
        report.add(
            f"gpu: Poisson arrivals, 16 ops on 32 floats, items a second with p99 within {BOUND_US:.0f} us, {name}",
            [best[name]], "M items/s", "", {n: v for n, v in best.items() if n != name},
            points=curves if name == "vyre, C++ host" else None,
        )  # fmt: skip


if __name__ == "__main__":
    main(run, "gpu_load.json", __doc__ or "")
