"""gpu_neighbours: what a session costs its neighbours: a torch training step beside it, synchronize, power, polling

Shows: a training step of a small network and ``torch.cuda.synchronize()`` in the same process, beside no session, an idle
one, one that gets a tiny item every two milliseconds, and one that always has work, for longest stays of 1 to 20 ms; what
that session gets done meanwhile; power and bus traffic of a kernel that waits for work.
Does not show: neighbours in other processes, larger networks, other cards.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator

import cupy
import numpy as np
import torch
from common_gpu import Report, chain, main

from vyre.engines.cuda.engine import CudaEngine
from vyre.program.verifier import verify
from vyre.store import Store

STAYS_MS = (1, 2, 5, 10, 20)
STEPS = 150
BIG = 1 << 25
OPERATIONS = 200
NOTHING = struct.pack("<16I", 0, 0, 0, 2, *[0] * 12)
clock = time.perf_counter


def training() -> Callable[[], None]:
    net = torch.nn.Sequential(
        torch.nn.Linear(1024, 2048),
        torch.nn.ReLU(),
        torch.nn.Linear(2048, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 10),
    ).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, y = torch.randn(512, 1024, device="cuda"), torch.randint(0, 10, (512,), device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        torch.cuda.synchronize()

    return step


def timed(call: Callable[[], None], count: int = STEPS, limit_s: float = 0.6) -> np.ndarray:
    """Milliseconds of each call: so many, or as many as go into the time."""
    taken: list[float] = []
    end = clock() + limit_s
    while len(taken) < count and clock() < end:
        began = clock()
        call()
        taken.append((clock() - began) * 1e3)
    return np.array(taken)


@contextlib.contextmanager
def busy(engine: CudaEngine, x: cupy.ndarray, y: cupy.ndarray) -> Iterator[list[int]]:
    """Always two items of some milliseconds in the ring; the thread that feeds it sleeps, so that it holds no lock."""
    opcode = engine.load(verify(chain(OPERATIONS)))
    bindings = [engine.bind(opcode, [x], outputs=[y]) for _ in range(2)]
    done, stop = [0], threading.Event()

    def feed() -> None:
        ring = engine.residency
        sequences = [engine.publish(b) for b in bindings]
        while not stop.is_set():
            time.sleep(0.0003)
            for i, binding in enumerate(bindings):
                sequence = sequences[i]
                assert sequence is not None
                if ring.is_done(sequence):
                    engine.completions(sequence, 1)
                    done[0] += 1
                    sequences[i] = engine.publish(binding)
                ring.look()
        for sequence in sequences:
            assert sequence is not None
            engine.wait(sequence, 1, 30)
            engine.completions(sequence, 1)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def lightly(engine: CudaEngine) -> Iterator[None]:
    """A slot that does nothing, every two milliseconds: the kernel stays for its grace and leaves."""
    stop = threading.Event()

    def feed() -> None:
        while not stop.is_set():
            sequence = engine.residency.publish(NOTHING)
            assert sequence is not None
            time.sleep(0.002)
            engine.wait(sequence, 1, 30)
            engine.completions(sequence, 1)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def p(runs: np.ndarray, q: float) -> float:
    return float(np.percentile(runs, q))


class Nvml:
    """Power and PCIe traffic, read only."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libnvidia-ml.so.1")
        self._lib.nvmlInit_v2()
        self._handle = ctypes.c_void_p()
        self._lib.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._handle))

    def watts(self) -> float | None:
        value = ctypes.c_uint()
        return None if self._lib.nvmlDeviceGetPowerUsage(self._handle, ctypes.byref(value)) else value.value / 1e3

    def mb_per_s(self) -> float | None:
        """Both ways together, over the last 20 ms."""
        total = 0
        for direction in (0, 1):
            value = ctypes.c_uint()
            if self._lib.nvmlDeviceGetPcieThroughput(self._handle, direction, ctypes.byref(value)):
                return None
            total += value.value
        return total / 1e3


def sampled(read: Callable[[], float | None], seconds: float) -> list[float]:
    found, end = [], clock() + seconds
    while clock() < end:
        value = read()
        if value is not None:
            found.append(value)
        time.sleep(0.05)
    return found or [0.0]


def idle_cost(report: Report) -> None:
    nvml = Nvml()
    time.sleep(1.0)
    away, quiet = sampled(nvml.watts, 1.0), sampled(nvml.mb_per_s, 0.5)
    with CudaEngine(store=Store(), grace_s=8.0, stay_s=8.0) as engine:
        sequence = engine.residency.publish(NOTHING)
        assert sequence is not None
        engine.wait(sequence)
        engine.completions(sequence, 1)
        time.sleep(1.0)
        there, traffic = sampled(nvml.watts, 1.5), sampled(nvml.mb_per_s, 0.5)
        assert engine.residency.is_here, "the kernel waited all the time"
        engine.residency.leave()
    report.add(
        "gpu: power while the kernel waits for work", there, "W", "",
        {"the context without it": statistics.median(away)},
    )  # fmt: skip
    report.add(
        "gpu: bus traffic while the kernel waits for work, as NVML counts it", traffic, "MB/s", "",
        {"the context without it": statistics.median(quiet)},
        reason="a look is 96 bytes: 64 of the next slot, 32 of the control line; one look at a time",
    )  # fmt: skip


def run(engine: CudaEngine, report: Report) -> None:
    step, none, sync_none = BEFORE
    x, y = cupy.ones(BIG, cupy.float32), cupy.empty(BIG, cupy.float32)
    cupy.cuda.Device().synchronize()
    idle = timed(step)
    curves: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, stay: float, value: float) -> None:
        curves.setdefault(name, []).append((stay, value))

    shown = {}
    for stay in STAYS_MS:
        with CudaEngine(store=Store(), stay_s=stay / 1e3) as each:
            with lightly(each):
                light = timed(step)
            with busy(each, x, y) as done:
                before, began = done[0], clock()
                beside = timed(step)
                sync = timed(torch.cuda.synchronize)
                rate = (done[0] - before) / (clock() - began)
        shown[stay] = (beside, sync, light, rate)
        for name, runs in (
            ("step beside a busy session", beside),
            ("synchronize beside it", sync),
            ("step beside light use", light),
        ):
            for q in (50, 99):
                note(f"{name}, p{q}, ms", stay, p(runs, q))
        note("items of the busy session a second", stay, rate)
        print(
            f"stay {stay} ms: step p50 {p(beside, 50):.2f} p99 {p(beside, 99):.2f}, synchronize p50 {p(sync, 50):.2f} p99 "
            f"{p(sync, 99):.2f}, light step p50 {p(light, 50):.2f} p99 {p(light, 99):.2f} ms; {rate:.0f} items/s", flush=True,
        )  # fmt: skip
    alone = timed(step)
    beside, sync, light, rate = shown[10]
    base = {
        "no session, p50": p(none, 50),
        "idle session at the end, p50": p(alone, 50),
        "idle session, p50": p(idle, 50),
    }
    report.add(
        "gpu: torch training step beside a busy session, stays of 10 ms", beside.tolist(), "ms", "",
        {**base, "beside light use, p50": p(light, 50), "p99": p(beside, 99)}, points=curves,
        reason="both want the whole GPU; the step waits for the stays in between its kernels",
    )  # fmt: skip
    report.add(
        "gpu: torch.cuda.synchronize() beside a busy session, stays of 10 ms", sync.tolist(), "ms", "",
        {"no session, p50": p(sync_none, 50), "p99": p(sync, 99), "stays of 1 ms, p99": p(shown[1][1], 99)},
    )  # fmt: skip
    idle_cost(report)


def before() -> tuple[Callable[[], None], np.ndarray, np.ndarray]:
    """The step, and what it takes while there is no session yet."""
    step = training()
    timed(step, 50)
    return step, timed(step), timed(torch.cuda.synchronize)


if __name__ == "__main__":
    BEFORE = before()
    main(run, "gpu_neighbours.json", __doc__ or "")
