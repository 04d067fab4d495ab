"""gpu_latency: one tiny program from publish to result as Python sees it, while the kernel is resident and after

Shows: round trips of one Python thread, each result read and checked, by the engine's call and by a session's bound
program; a C++ host that drives the same kernel through the same ring; the same after the lease has lapsed; leaving for
other code and coming back; bytecode never seen before. Beside: a slot that does nothing (the protocol alone), a bare
ping-pong of one word, a launch and a graph from C++, CuPy, torch eager and torch's CUDA graph.
Does not show: load from several threads; Poisson arrivals (bench_cuda_load); Triton or torch.compile.
"""

from __future__ import annotations

import runpy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cupy
import numpy as np
from common_gpu import Report, chain, expected, main, native
from cpp_host import PING, Host, other_code

import vyre
from vyre.engines.cuda.bindings import Binding, slot_of
from vyre.engines.cuda.caller import Call
from vyre.engines.cuda.engine import CudaEngine
from vyre.program import bytecode
from vyre.program.verifier import verify
from vyre.ring.layout import Opcode

clock = time.perf_counter_ns
TRIPS, ROUNDS = 3_000, 5


def trips(
    engine: CudaEngine, call: Call, count: int, output: np.ndarray | None = None, want: float = 0.0
) -> np.ndarray:
    """Microseconds from publish to result, ``count`` times."""
    run, ring = engine.residency.call, engine.residency
    taken = np.empty(count)
    for i in range(count):
        if output is not None:
            output[0] = -1.0
        began = clock()
        if not run(call):
            assert call.sequence is not None
            ring.wait(call.sequence, 1, 5.0)
            ring.take(call)
        value = want if output is None else output[0]
        taken[i] = clock() - began
        if value != want:
            raise AssertionError(f"result {value}, expected {want}")
    return taken[count // 10 :] / 1000


def percentile(runs: list[np.ndarray], q: float) -> list[float]:
    return [float(np.percentile(r, q)) for r in runs]


def middle(runs: list[np.ndarray]) -> float:
    return statistics.median(percentile(runs, 50))


def timed(call: Any, count: int = 2000) -> float:
    taken = []
    for _ in range(count):
        began = clock()
        call()
        taken.append(clock() - began)
    return statistics.median(taken) / 1000


def others(engine: CudaEngine, host: Host, operations: int) -> dict[str, float]:
    """What one would write without us, the GPU to itself."""
    x, y = cupy.arange(32, dtype=cupy.float32), cupy.empty(32, cupy.float32)
    kernel = native(cupy, operations)
    size = np.int64(8)

    def cupy_once() -> None:
        kernel((1,), (32,), (x, y, size))
        cupy.cuda.get_current_stream().synchronize()

    found = {"CuPy RawKernel + sync": timed(cupy_once)}
    assert np.array_equal(cupy.asnumpy(y), expected(np.arange(32, dtype=np.float32), operations))
    stream = cupy.cuda.Stream(non_blocking=True)
    values = np.array([x.data.ptr, y.data.ptr, 8], np.uint64)
    pointers = np.array([values.ctypes.data + 8 * i for i in range(3)], np.uint64)
    found["C++ launch + sync"] = float(
        np.median(host.timed("launches", TRIPS, kernel.kernel.ptr, stream.ptr, pointers.ctypes.data))
    )
    with stream:
        stream.begin_capture()
        kernel((1,), (32,), (x, y, size))
        graph = stream.end_capture()
    found["C++ graph + sync"] = float(np.median(host.timed("graphs", TRIPS, graph.graphExec, stream.ptr)))
    word = engine.pinned_empty(64, np.uint64)
    word[:] = 0
    there = engine._pinned.device_address(word)
    assert there is not None
    ping = cupy.RawKernel(PING, "ping")
    with stream:
        ping((1,), (1,), (np.uint64(there), np.uint64(there + 256), np.uint64(TRIPS)))
    answered = host.timed("ping", TRIPS, word.ctypes.data, word.ctypes.data + 256)
    stream.synchronize()
    found["bare ping-pong of a word, C++"] = float(np.median(answered))
    found |= torch_peers(operations)
    return found


def torch_peers(operations: int) -> dict[str, float]:
    try:
        import torch
    except ImportError:
        return {}
    t = torch.arange(32, dtype=torch.float32, device="cuda")

    def body() -> Any:
        r = t
        for i in range(operations):
            r = r + 1.5 if i % 2 else r * 1.5
        return r

    def eager() -> None:
        body()
        torch.cuda.current_stream().synchronize()

    found = {"torch eager + sync": timed(eager, 500)}
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        r = body()

    def replay() -> None:
        graph.replay()
        torch.cuda.current_stream().synchronize()

    found["torch CUDA graph + sync"] = timed(replay)
    assert np.array_equal(r.cpu().numpy(), expected(np.arange(32, dtype=np.float32), operations))
    return found


def bound(engine: CudaEngine, operations: int, where: str) -> tuple[Binding, float]:
    x = np.arange(1, 33, dtype=np.float32)
    given = engine.pinned_empty(32, np.float32) if where == "host" else cupy.asarray(x)
    if where == "host":
        given[:] = x
    cupy.cuda.Device().synchronize()
    opcode = engine.load(verify(chain(operations)))
    return engine.bind(opcode, [given], count=32), float(expected(x, operations)[0])


def run(engine: CudaEngine, report: Report) -> None:
    host = Host()
    with engine.pause():
        peers = {n: others(engine, host, n) for n in (1, 16)}
    ring = engine.residency.ring_address
    nothing = slot_of(Opcode.NOP, 0, 0, 0)
    empty = Call(ring, nothing)
    for operations, targets in ((1, ("<= 4.5", "")), (16, ("<= 5.5", "<= 9"))):
        for where in ("device", "host"):
            binding, want = bound(engine, operations, where)
            call, output = Call(ring, binding.slot), binding.outputs[0]
            base, ours, theirs = [], [], []
            for _ in range(ROUNDS):
                base.append(trips(engine, empty, TRIPS))
                ours.append(trips(engine, call, TRIPS, output, want))
                theirs.append(host.drive(engine, binding.slot, TRIPS, output, want))
            beside = {"a C++ host, the same kernel": middle(theirs), "a slot that does nothing": middle(base)}
            name = f"gpu: {operations} op on 32 floats, input in {where} memory, publish to result"
            starred = where == "device"
            report.add(
                f"{name}, p50", percentile(ours, 50), "us", targets[0] if starred else "",
                {**beside, **peers[operations]}, must=starred,
            )  # fmt: skip
            report.add(
                f"{name}, p99", percentile(ours, 99), "us", targets[1] if starred else "",
                {n: statistics.median(percentile(r, 99)) for n, r in zip(beside, (theirs, base), strict=True)},
                must=starred and bool(targets[1]),
            )  # fmt: skip
            ratios = [float(np.median(a) / np.median(b)) for a, b in zip(ours, theirs, strict=True)]
            report.add(f"{name}, over a C++ host", ratios, "x", "<= 1.3" if starred else "", must=starred)
    with engine.pause():
        sessions(report)
    lapsed(engine, report, peers[1])
    leaving(engine, report, empty)
    never(engine, report)


def sessions(report: Report) -> None:
    """What users write: a bound program of a session."""
    import vyre

    x = np.arange(1, 33, dtype=np.float32)
    with vyre.open("cuda") as session:
        for where, given in (("host", x), ("device", cupy.asarray(x))):
            out = np.empty_like(x) if where == "host" else cupy.empty(32, cupy.float32)
            program = session.bind(chain(16), x=given, out=out)
            runs = []
            for _ in range(ROUNDS):
                taken = np.empty(TRIPS)
                for i in range(TRIPS):
                    began = clock()
                    program.run()
                    taken[i] = clock() - began
                runs.append(taken[TRIPS // 10 :] / 1000)
            assert np.array_equal(cupy.asnumpy(out), expected(x, 16))
            program.close()
            for q in (50, 99):
                report.add(
                    f"gpu: session.bind(16 ops on 32 floats in {where} memory).run(), p{q}", percentile(runs, q), "us"
                )


def lapsed(engine: CudaEngine, report: Report, peers: dict[str, float]) -> None:
    """The first item after the kernel has gone."""
    binding, want = bound(engine, 1, "device")
    call = Call(engine.residency.ring_address, binding.slot)
    taken = []
    for _ in range(400):
        engine.residency.leave()
        engine.device.wait_for(engine.device.stream)
        taken.append(float(trips(engine, call, 1, binding.outputs[0], want)[0]))
    report.add(
        "gpu: the same after the lease has lapsed, p50", taken, "us", f"<= {2 * peers['C++ launch + sync']:.3g}", peers
    )


def leaving(engine: CudaEngine, report: Report, empty: Call) -> None:
    """Asked to leave, other code loaded, back and serving."""
    cu, dev = engine.device.cu, engine.device
    cubin = other_code(dev.arch)
    for loads in (False, True):
        back = []
        for _ in range(200):
            trips(engine, empty, 20)
            began = clock()
            with engine.pause():
                if loads:
                    module = dev.call("load other code", cu.cuModuleLoadData(cubin))
                    dev.call("find it", cu.cuModuleGetFunction(module, b"other0"))
            trips(engine, empty, 1)
            back.append((clock() - began) / 1e6)
            if loads:
                with engine.pause():
                    dev.call("unload it", cu.cuModuleUnload(module))
        what = f"a module of {len(cubin) / 1024:.0f} KB loaded" if loads else "nothing loaded"
        report.add(f"gpu: asked to leave -> {what} -> back and serving, p50", back, "ms", "<= 0.3" if loads else "")


def never(engine: CudaEngine, report: Report) -> None:
    """Bytecode that this process has not seen: decoded, verified, rewritten, placed, bound, run, its result read."""
    x = engine.pinned_empty(32, np.float32)
    x[:] = np.arange(1, 33)
    files = [bytecode.encode(chain(16, 1.0 + i / 1024)) for i in range(400)]
    taken, parts = [], []
    for i, data in enumerate(files):
        t0 = clock()
        verified = verify(bytecode.decode(data))
        t1 = clock()
        opcode = engine.load(verified)
        t2 = clock()
        binding = engine.bind(opcode, [x])
        t3 = clock()
        sequence = engine.publish(binding)
        assert sequence is not None
        engine.wait(sequence)
        value = binding.outputs[0][0]
        t4 = clock()
        engine.completions(sequence, 1)
        assert value == expected(x[:1], 16, np.float32(1.0 + i / 1024))[0]
        taken.append((t4 - t0) / 1000)
        parts.append((t1 - t0, t2 - t1, t3 - t2, t4 - t3))
    middle = [statistics.median(p) / 1000 for p in zip(*parts, strict=True)]
    with engine.pause():
        cold, warm = never_peers()
    how = "decode and verify {:.0f}, rewrite and place {:.0f}, bind {:.0f}, publish to result {:.0f} us".format(*middle)
    report.add(
        "gpu: bytecode never seen before -> first result, 16 ops on 32 floats, p50", taken[20:], "us", "<= 60",
        {**cold, **warm}, must=True, reason=how,
    )  # fmt: skip
    report.add("gpu: the same, p99", [float(np.percentile(taken[20:], 99))], "us")
    by_session(report, files)
    by_function(report, cold)


def by_session(report: Report, files: list[bytes]) -> None:
    """The same as a user writes it: ``session.run(data, x=x)``, arrays in ordinary memory."""
    x = np.arange(1, 33, dtype=np.float32)
    taken = []
    with vyre.open("cuda") as session:
        for i, data in enumerate(files):
            began = clock()
            value = session.run(data, x=x).value
            taken.append((clock() - began) / 1000)
            assert value[0] == expected(x[:1], 16, np.float32(1.0 + i / 1024))[0]
    report.add("gpu: the same by session.run, arrays in ordinary memory, p50", taken[20:], "us")


def by_function(report: Report, cold: dict[str, float]) -> None:
    """A Python function of 16 operations that was never compiled: from its decoration to its first result."""
    x = np.arange(1, 33, dtype=np.float32)
    taken = []
    with vyre.open("cuda") as session, tempfile.TemporaryDirectory() as folder:
        for i in range(60):
            factor = np.float32(1.0 + i / 1024)
            body = "".join(f"    r = r {'+' if k % 2 else '*'} {factor!s}\n" for k in range(16))
            path = Path(folder) / f"new{i}.py"
            path.write_text(f"import vyre\n\n\ndef new{i}(x: vyre.f32):\n    r = x\n{body}    return r\n")
            function = runpy.run_path(str(path))[f"new{i}"]
            began = clock()
            value = session.run(vyre.program(function), x=x).value
            taken.append((clock() - began) / 1e6)
            assert value[0] == expected(x[:1], 16, factor)[0]
    report.add(
        "gpu: a Python function never compiled before -> first result, 16 ops on 32 floats, p50", taken[5:], "ms", "<= 2",
        {name: us / 1000 for name, us in cold.items()}, must=True,
    )  # fmt: skip


def never_peers() -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of peers: what they compile, each time something new; and operations one after another."""
    y, given = cupy.empty(32, cupy.float32), cupy.arange(32, dtype=cupy.float32)
    taken = []
    for i in range(5):
        began = clock()
        kernel = native(cupy, 16, f"cold{time.time_ns()}_{i}")
        kernel((1,), (32,), (given, y, np.int64(8)))
        cupy.cuda.Device().synchronize()
        taken.append((clock() - began) / 1000)
    cold = {"CuPy RawKernel, cold": statistics.median(taken)}

    def chained(value: Any) -> Any:
        for i in range(16):
            value = value + 1.5 if i % 2 else value * 1.5
        return value

    def cupy_once() -> None:
        chained(given)
        cupy.cuda.get_current_stream().synchronize()

    warm = {"CuPy eager, 16 launches": timed(cupy_once, 500)}
    try:
        import torch
    except ImportError:
        pass
    else:
        t = torch.arange(32, dtype=torch.float32, device="cuda")

        def torch_once() -> None:
            chained(t)
            torch.cuda.current_stream().synchronize()

        warm["torch eager, 16 launches"] = timed(torch_once, 500)
    try:
        import jax
    except ImportError:
        return cold, warm
    near = jax.numpy.asarray(np.arange(32, dtype=np.float32))
    taken = []
    for k in range(5):
        began = clock()
        jax.jit(lambda v, k=k: chained(v * (1.0 + k)))(near).block_until_ready()
        taken.append((clock() - began) / 1000)
    cold["JAX jit, cold"] = statistics.median(taken)
    return cold, warm


if __name__ == "__main__":
    main(run, "gpu_latency.json", __doc__ or "")
