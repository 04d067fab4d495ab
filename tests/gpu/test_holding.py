"""What must hold over a long time and next to others: leaks, killed processes, neighbours, sanitizers. Needs a device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.engines.cuda import engine as engine_module
from vyre.engines.cuda.compile import compile_kernel
from vyre.engines.cuda.engine import CudaEngine
from vyre.ring.layout import SLOT_DTYPE, Status
from vyre.store import Store

torch = pytest.importorskip("torch")
cupy = pytest.importorskip("cupy")
try:
    _session = vyre.open("cuda")
except vyre.EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)

HERE = Path(__file__).parent
PLUS = vyre.expression("x + 1", {"x": vyre.f32})


@pytest.fixture(scope="module")
def session():
    yield _session
    _session.close()


def resident_kib() -> int:
    """Memory of this process, pinned memory included."""
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmRSS"))
    return int(line.split()[1])


@pytest.mark.slow
def test_a_thousand_sessions_leave_no_memory_no_thread_and_no_file_behind(session):
    x = np.zeros(100, np.float32)
    seen = {}
    for i in range(1_000):
        with vyre.open("cuda", capacity=64) as each:
            assert each.run(PLUS, x=x).value[0] == 1
        if i in (50, 999):
            seen[i] = (
                torch.cuda.mem_get_info()[0],
                threading.active_count(),
                len(os.listdir("/proc/self/fd")),
                resident_kib(),
            )
    (free, threads, files, kib), (free_after, threads_after, files_after, kib_after) = seen[50], seen[999]
    assert free_after >= free - (2 << 20)
    assert threads_after <= threads
    assert files_after <= files
    assert kib_after <= kib + 20_000, "1,000 times the pinned memory would be gigabytes"


def test_neighbours_load_modules_capture_graphs_and_free_memory_while_a_session_is_busy(session):
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        x = np.zeros(2000, np.float32)
        try:
            while not stop.is_set():
                x = session.run(PLUS, x=x).value
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    longest = 0.0
    try:
        for i in range(6):
            began = time.monotonic()
            kernel = cupy.RawKernel(
                f'extern "C" __global__ void k{i}(float* x) {{ x[threadIdx.x] += {i}.0f; }}', f"k{i}"
            )
            x = cupy.zeros(32, cupy.float32)
            kernel((1,), (32,), (x,))  # loads a module while the session works
            assert float(x[31]) == i
            del x
            cupy.get_default_memory_pool().free_all_blocks()
            t = torch.zeros(1 << 18, device="cuda")
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                u = t + i
            graph.replay()
            torch.cuda.synchronize()
            assert u[5].item() == i
            del t, u, graph
            torch.cuda.empty_cache()
            longest = max(longest, time.monotonic() - began)
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert longest < 3.0


def test_sigkill_leaves_a_gpu_that_the_next_process_can_use_at_once():
    code = (
        "import numpy as np, time; from vyre.engines.cuda.engine import CudaEngine; from vyre.store import Store;"
        "from vyre.ring.layout import SLOT_DTYPE; e = CudaEngine(store=Store(), grace_s=60.0, stay_s=60.0, hard_s=90.0);"
        "e.submit_batch(np.zeros(1, SLOT_DTYPE)); e.wait(0); print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    child.kill()
    child.wait(20)
    child.stdout.close()
    use = "import numpy as np, vyre; assert vyre.open('cuda').run(vyre.expression('x + 1', {'x': vyre.f32}), x=[1.0]).value == 2"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", use], check=True, timeout=30)
    assert time.monotonic() - began < 15
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout
        assert str(child.pid) not in listed.split()


def test_the_quick_kernel_gives_the_bits_of_the_optimised_one(monkeypatch):
    from vyre.engines import differential

    def quick(arch: int, store: Store, blocks: int, quick_start: bool) -> tuple[bytes, None]:
        return compile_kernel(arch, store, blocks, quick=True), None

    monkeypatch.setattr(engine_module, "kernel_for", quick)
    with CudaEngine(store=Store()) as engine:
        found = {
            seed: differential.difference(seed, engine.execute, functions=bool(seed & 1)) for seed in range(1, 150)
        }
    assert {seed: text[:200] for seed, text in found.items() if text is not None} == {}


def test_a_first_start_serves_at_once_and_changes_to_the_optimised_kernel(tmp_path):
    code = (
        "import logging, time, numpy as np, vyre\n"
        "s = vyre.open('cuda'); f = vyre.expression('x + 1', {'x': vyre.f32}); x = np.zeros(1000, np.float32)\n"
        "assert s.engine.residency.chore is not None\n"
        "end = time.monotonic() + 60\n"
        "while s.engine.residency.chore is not None:\n"
        "    assert (s.run(f, x=x).value == 1).all() and time.monotonic() < end\n"
        "for _ in range(100): assert (s.run(f, x=x).value == 1).all()\n"
        "print(len(s.engine.device._modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"
    assert "compiling the kernel" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, str(HERE / "sanitized.py"), "3"],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "right" in done.stdout


def test_records_stay_right_over_many_batches_beside_a_neighbour_that_synchronises(session):
    stop = threading.Event()

    def neighbour() -> None:
        while not stop.is_set():
            torch.cuda.synchronize()

    thread = threading.Thread(target=neighbour)
    thread.start()
    try:
        engine = session.engine
        for _ in range(50):
            first = engine.submit_batch(np.zeros(200, SLOT_DTYPE))
            assert first is not None
            engine.wait(first, 200, 10)
            assert (engine.completions(first, 200)["status"] == Status.DONE).all()
    finally:
        stop.set()
        thread.join()
