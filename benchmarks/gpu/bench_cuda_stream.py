"""gpu_stream: a file of float32 -> four operations -> its sum on the GPU: hot, hot and read in place, cold

Shows: hot files on a disk and in memory through copier threads into registered memory, beside the fastest of several
numbers of C threads that only read the same file into the same pinned memory; the same files read in place, beside a bare
kernel that reads the same registered mapping; a cold file beside C threads with O_DIRECT (and fio where it is); and what
one would write with torch, CuPy or NumPy. All take turns; answers are compared.
Does not show: GPUDirect (no such machine), disks faster than this one, several GPUs. Peers that take seconds a GiB read
the first eighth of the file. The C threads fill pinned memory of two sizes: 512 MiB, more than the processor's cache, which
is what the target means, and 64 MiB, as much as vyre's pool, where they are faster than the bus, so that nobody who brings
the bytes to the GPU can keep up with them.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common_gpu import Report, main

import vyre
from vyre.engines.cuda.engine import CudaEngine
from vyre.stream.plan import Rung
from vyre.stream.pool import Pool

GIB = 1 << 30
SIZE = 2 * GIB
SHARE = 8  # slow peers read so much less
ROUNDS = 15
THREADS = (12, 16)
PINNED = (64 << 20, 512 << 20)
BUS = "kernel that only reads pinned memory"
clock = time.perf_counter


@vyre.program
def four(x: vyre.f32):
    vyre.sum(total=(x * 1.5 + 0.25) * x - 2.0)


def c_threads(folder: Path) -> Callable[[int, int, int, int, int, int], int] | None:
    """preadv_threads of benchmarks/c, or None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "preadv_threads.so"
    source = Path(__file__).parent.parent / "c" / "preadv_threads.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-pthread", "-o", library, source], check=True)
    found = ctypes.CDLL(str(library)).preadv_threads
    found.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    return found  # type: ignore[no-any-return]


def take_turns(candidates: dict[str, tuple[float, Callable[[], object]]], rounds: int) -> dict[str, list[float]]:
    """GB/s of each: bytes and the call that moves them."""
    names = list(candidates)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            size, call = candidates[name]
            began = clock()
            call()
            rates[name].append(size / (clock() - began) / 1e9)
    return rates


def median(runs: list[float]) -> float:
    return float(np.median(runs))


class Bench:
    """A session beside the engine that common_gpu opened, a file twice, and what reads it."""

    def __init__(self, report: Report, folder: Path) -> None:
        import cupy

        self.report = report
        self.cupy = cupy
        self.session = vyre.open("cuda")
        self.session.engine.wait_until_optimised()  # type: ignore[attr-defined]
        self.threads = c_threads(folder)
        self.files = {"disk": folder / "x.f32", "tmpfs": Path("/dev/shm") / f"vyre-bench-{os.getpid()}.f32"}
        block = np.random.default_rng(7).random(min(SIZE // 4, 16 << 20), np.float32)
        for path in self.files.values():
            with open(path, "wb") as f:
                for _ in range(SIZE // block.nbytes):
                    block.tofile(f)
        exact = (block * np.float32(1.5) + np.float32(0.25)) * block - np.float32(2)
        self.want = float(exact.sum(dtype=np.float64)) * (SIZE // block.nbytes)
        self.pinned = {size: Pool(size) for size in PINNED}
        for pool in self.pinned.values():
            pool.reserve(pool.limit)
            for address, size in pool.pieces():
                self.session.engine.device.register(address, size)
        self.reader = cupy.RawKernel(
            'extern "C" __global__ void reader(const uint4* x, unsigned long long n, unsigned* out) { unsigned s = 0;'
            "for (unsigned long long i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull) { uint4 v;"
            'asm volatile("ld.relaxed.sys.global.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x),"=r"(v.y),"=r"(v.z),"=r"(v.w)'
            ': "l"(x + i)); s += v.x + v.y + v.z + v.w; } if (s == 12345) *out = s; }', "reader",
        )  # fmt: skip
        self.out = cupy.zeros(1, cupy.uint32)
        time.sleep(0.2)  # a file written to just before is not trusted to stay the same

    def close(self) -> None:
        self.session.close()
        for path in self.files.values():
            path.unlink()

    def run(self, path: Path, **more: object) -> vyre.Result:
        result = self.session.run(four, x=vyre.raw(path, vyre.f32), **more)
        assert abs(result["total"] / self.want - 1) < 1e-9, (result["total"], self.want)
        return result

    def ours(self, path: Path, io: str) -> tuple[float, Callable[[], object]]:
        return SIZE, lambda: self.run(path, io=io)

    def cpu(self, what: str, path: Path, io: str) -> None:
        """A row of processor time, all threads together."""
        runs = []
        for _ in range(5):
            began = time.process_time()
            self.run(path, io=io)
            runs.append((time.process_time() - began) / (SIZE / GIB) * 1e3)
        self.report.add(f"{what}: processor time", runs, "ms/GiB")

    def copying(self, path: Path) -> dict[str, tuple[float, Callable[[], object]]]:
        """Threads in C that only read, for each size of the pinned memory and number of threads."""
        if self.threads is None:
            return {}
        read = self.threads
        fd = os.open(path, os.O_RDONLY)
        found: dict[str, tuple[float, Callable[[], object]]] = {}
        for size, pool in self.pinned.items():
            address = pool.pieces()[0][0]
            for n in THREADS:

                def call(address: int = address, size: int = size, n: int = n) -> None:
                    assert read(fd, SIZE, 1 << 20, address, size, n) == 0

                found[f"{n} threads of preadv into {size >> 20} MiB pinned"] = SIZE, call
        return found

    def bare(self, address: int, size: int) -> tuple[float, Callable[[], object]]:
        """The kernel that only reads, over memory that is registered."""
        stream = self.cupy.cuda.Stream(non_blocking=True)
        arguments = (np.uint64(address), np.uint64(size // 16), self.out)

        def call() -> None:
            with stream:
                self.reader((264,), (256,), arguments)
            stream.synchronize()

        return size, call

    def slow(self, path: Path) -> dict[str, tuple[float, Callable[[], object]]]:
        cupy, elements = self.cupy, SIZE // SHARE // 4
        found: dict[str, tuple[float, Callable[[], object]]] = {}

        def finish(x: object) -> None:
            float(((x * np.float32(1.5) + np.float32(0.25)) * x - np.float32(2)).sum(dtype="float64"))  # type: ignore[operator]

        def plain() -> None:
            with open(path, "rb", buffering=0) as f:
                finish(cupy.asarray(np.frombuffer(f.read(4 * elements), np.float32)))

        found["read + cupy.asarray"] = SIZE / SHARE, plain
        found["np.fromfile + cupy.asarray"] = (
            SIZE / SHARE, lambda: finish(cupy.asarray(np.fromfile(path, np.float32, elements))),
        )  # fmt: skip
        try:
            import torch
        except ImportError:
            print("torch is not installed here")
        else:

            def torch_way() -> None:
                x = torch.from_file(str(path), size=elements, dtype=torch.float32).cuda()
                float(((x * 1.5 + 0.25) * x - 2.0).sum(dtype=torch.float64))

            found["torch.from_file + cuda()"] = SIZE / SHARE, torch_way
        try:
            import kvikio
        except ImportError:
            print("kvikio is not installed here")
        else:

            def kvikio_way() -> None:
                x = cupy.empty(elements, cupy.float32)
                with kvikio.CuFile(str(path), "r") as f:
                    f.read(x)
                finish(x)

            found["kvikio + CuPy"] = SIZE / SHARE, kvikio_way
        return found


def hot(bench: Bench) -> None:
    pool = bench.pinned[PINNED[1]]
    for where, path in bench.files.items():
        bench.run(path, io="hot")
        candidates = {
            "vyre": bench.ours(path, "hot"),
            **bench.copying(path),
            BUS: bench.bare(pool.pieces()[0][0], PINNED[1]),
            **(bench.slow(path) if where == "disk" else {}),
        }
        rates = take_turns(candidates, ROUNDS)
        ours = rates.pop("vyre")
        peers = {name: median(runs) for name, runs in rates.items()}
        bench.report.add(f"hot file on {where} -> 4 operations -> sum", ours, "GB/s", peers=peers)
        bus = [a / b for a, b in zip(ours, rates[BUS], strict=True)]
        bench.report.add(f"hot file on {where}: share of the bus", bus, "x", peers={BUS: peers[BUS]})
        for size in PINNED:
            names = [name for name in rates if f"into {size >> 20} MiB" in name]
            if names:
                best = max(names, key=lambda name: peers[name])
                bench.report.add(
                    f"hot file on {where}: share of the best preadv threads into {size >> 20} MiB pinned",
                    [a / b for a, b in zip(ours, rates[best], strict=True)], "x",
                    ">= 0.9" if size == PINNED[1] else "", {best: peers[best]}, must=size == PINNED[1],
                )  # fmt: skip
        bench.cpu(f"hot file on {where}", path, "hot")


def in_place(bench: Bench) -> None:
    for where, path in bench.files.items():
        try:
            began = clock()
            result = bench.run(path, io="mapped")
            first_s = clock() - began
        except vyre.StreamError as error:
            print(f"{where}: not read in place: {error.message}")
            continue
        print("\n".join(result.report.notes))
        assert list(result.report.bytes_by_way) == [Rung.MAPPED.value]
        status = path.stat()
        mapping = bench.session.engine.mapped._files[status.st_dev, status.st_ino]
        rates = take_turns(
            {"vyre": bench.ours(path, "auto"), "bare": bench.bare(mapping.address, SIZE)}, ROUNDS
        )  # fmt: skip
        ours = rates["vyre"]
        share = [a / b for a, b in zip(ours, rates["bare"], strict=True)]
        peers = {"bare kernel reading the same mapping": median(rates["bare"])}
        bench.report.add(f"registered file on {where}, read in place -> 4 operations -> sum", ours, "GB/s", peers=peers)
        bench.report.add(f"registered file on {where}: share of a bare kernel", share, "x", ">= 0.95", peers)
        bench.cpu(f"registered file on {where}, read in place", path, "auto")
        bench.report.add(
            f"file on {where}, read in place, registering included", [SIZE / first_s / 1e9], "GB/s",
            reason="one run: it stays registered afterwards",
        )  # fmt: skip


def cold(bench: Bench) -> None:
    path, part = bench.files["disk"].with_name("cold.f32"), GIB // 4  # pages of a registered file cannot be dropped
    x = np.random.default_rng(9).random(part // 4, np.float32)
    with open(path, "wb") as f:
        x.tofile(f)
        f.flush()
        os.fsync(f.fileno())
    want = float(((x * np.float32(1.5) + np.float32(0.25)) * x - np.float32(2)).sum(dtype=np.float64))
    fd = os.open(path, os.O_RDONLY)
    pool = bench.pinned[PINNED[0]]

    def drop() -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def ours() -> None:
        result = bench.session.run(four, x=vyre.raw(path, vyre.f32))
        assert abs(result["total"] / want - 1) < 1e-9
        ways.update(result.report.bytes_by_way)
        notes.update(result.report.notes)

    ways: set[str] = set()
    notes: set[str] = set()
    candidates: dict[str, tuple[float, Callable[[], object]]] = {"vyre": (part, ours)}
    if bench.threads is not None:
        direct, read = os.open(path, os.O_RDONLY | os.O_DIRECT), bench.threads
        candidates["8 threads of preadv O_DIRECT in C"] = (
            part, lambda: read(direct, part, 1 << 20, pool.pieces()[0][0], PINNED[0], 8),
        )  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(ROUNDS):
        for name in list(candidates)[:: 1 if i % 2 else -1]:
            drop()
            size, call = candidates[name]
            began = clock()
            call()
            rates[name].append(size / (clock() - began) / 1e9)
    print("cold:", ", ".join(sorted(ways)), *sorted(notes), sep="\n  ")
    ours_ = rates.pop("vyre")
    peers = {name: median(runs) for name, runs in rates.items()}
    bench.report.add(
        "cold file -> 4 operations -> sum", ours_, "GB/s", peers=peers, reason="fio is not on this machine"
    )
    for name, runs in rates.items():
        bench.report.add(
            "cold file: share of threads of preadv with O_DIRECT",
            [a / b for a, b in zip(ours_, runs, strict=True)], "x", ">= 0.9", {name: peers[name]},
        )  # fmt: skip


def run(engine: CudaEngine, report: Report) -> None:
    engine.close()  # this benchmark has a session of its own
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as folder:
        bench = Bench(report, Path(folder))
        try:
            hot(bench)
            in_place(bench)
            cold(bench)
        finally:
            bench.close()
            gc.collect()


if __name__ == "__main__":
    main(run, "gpu_stream.json", __doc__)
