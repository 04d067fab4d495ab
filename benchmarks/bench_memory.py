"""memory: the most memory that all processes of a stream hold at a time, however large the file

Shows: what a stream of a sparse file of 64 GiB adds to the resident memory that the process had just before it was opened
(VmHWM after it was reset), beyond the pool that its chunks are read into. Then the peak of the resident memory (VmHWM) of a fresh Python that streams a sparse file of 16 GiB, and a real one, to
the sum and the extremes of its float32; processes that it starts are added. Beside it np.fromfile over a smaller file,
which takes the file's size and what Python and NumPy need.
Does not show: the page cache, which belongs to nobody and is given back on demand. A sparse file has no blocks on the
disk: it shows memory and not speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from common import Bench, drop_from_cache, main

STREAM = """
import json, sys, vyre
path, io = sys.argv[1:]
x = vyre.raw(path, vyre.f32)
program = vyre.expression("sum(x)", {"x": vyre.f32})
with vyre.open("cpu") as session:
    result = session.run(program, x=x, io=io)
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0])
    print(json.dumps({"sum": float(result.value), "peak_kib": peak, "seconds": result.report.seconds,
                      "ways": result.report.bytes_by_way, "bytes": result.report.bytes}))
"""
ADDED = """
import json, sys, vyre
path, io = sys.argv[1:]
program = vyre.expression("sum(x)", {"x": vyre.f32})
def kib(what):
    return int(open("/proc/self/status").read().split(what)[1].split()[0])
with vyre.open("cpu") as session:
    session.load(program)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = kib("VmRSS:")
    with session.stream(program, x=vyre.raw(path, vyre.f32), io=io) as stream:
        pool = stream.plan.pool_bytes if not stream.plan.all_hot else 0
        result = stream.run_to_end()
    print(json.dumps({"sum": float(result.value), "peak_kib": kib("VmHWM:") - before - pool // 1024, "pool_kib": pool // 1024,
                      "seconds": result.report.seconds, "ways": result.report.bytes_by_way, "bytes": result.report.bytes}))
"""
FROMFILE = """
import json, sys, numpy
total = float(numpy.fromfile(sys.argv[1], numpy.float32).sum(dtype=numpy.float64))
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(json.dumps({"sum": total, "peak_kib": peak}))
"""


class Descendants:
    """Peaks of the processes that a process starts, seen by looking every few milliseconds."""

    def __init__(self, root: int) -> None:
        self.peaks: dict[int, int] = {}
        self._root = root
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            waiting = [self._root]
            while waiting:
                for tasks in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
                    try:
                        children = [int(c) for c in tasks.read_text().split()]
                    except OSError:
                        continue
                    waiting += children
                    for child in children:
                        self._note(child)

    def _note(self, child: int) -> None:
        try:
            status = Path(f"/proc/{child}/status").read_text()
            self.peaks[child] = int(status.split("VmHWM:")[1].split()[0])
        except (OSError, IndexError):
            pass

    def stop(self) -> int:
        """Their peaks together, in KiB."""
        self._done.set()
        self._thread.join()
        return sum(self.peaks.values())


def run(script: str, *arguments: str) -> dict[str, float]:
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    children = Descendants(process.pid)
    output, _ = process.communicate()
    others = children.stop()
    if process.returncode:
        raise SystemExit(f"the stream ended with exit code {process.returncode}")
    found: dict[str, float] = json.loads(output)
    found["peak_kib"] += others
    return found


def _added(bench: Bench, folder: Path, size: int) -> None:
    """What a stream adds to what the process had when it began, without the pool."""
    path = folder / "long.f32"
    with open(path, "wb") as f:
        f.truncate(size)
    try:
        found = run(ADDED, str(path), "auto")
    finally:
        os.unlink(path)
    if found["sum"] != 0.0 or found["bytes"] != size:
        raise SystemExit(f"a sparse file of {size} bytes: sum {found['sum']!r} over {found['bytes']} bytes")
    ways = ", ".join(found["ways"])  # type: ignore[arg-type]
    bench.note(
        f"a sparse file of {size / (1 << 30):.3g} GiB: pool {found['pool_kib'] / 1024:.1f} MiB, {ways}, "
        f"{size / found['seconds'] / 1e9:.1f} GB/s"
    )
    row = f"memory added by a stream of a sparse file of {size >> 30} GiB, the pool not counted"
    bench.add(row, [max(0.0, found["peak_kib"] / 1024)], "MiB", target="<= 50", must=True)


def measure(bench: Bench) -> None:
    small = 64 << 20 if bench.quick else 1 << 30
    real_bytes = 64 << 20 if bench.quick else 3 << 30
    sparse_bytes = 256 << 20 if bench.quick else 16 << 30
    folder = bench.folder(real_bytes + small)
    _added(bench, folder, 256 << 20 if bench.quick else 64 << 30)
    sparse = folder / "sparse.f32"
    with open(sparse, "wb") as f:
        f.truncate(sparse_bytes)
    real = folder / "real.f32"
    part = np.arange(1 << 20, dtype=np.float32) / np.float32(1 << 20)
    with open(real, "wb") as f:
        for _ in range(real_bytes >> 22):
            part.tofile(f)
    expected = float(part.sum(dtype=np.float64)) * (real_bytes >> 22)
    little = folder / "little.f32"
    with open(little, "wb") as f:
        for _ in range(small >> 22):
            part.tofile(f)
    beside = run(FROMFILE, str(little))
    peer = {f"np.fromfile of {small >> 20} MiB": beside["peak_kib"] / 1024}
    os.unlink(little)
    for what, path, io, want in (
        (f"a sparse file of {sparse_bytes >> 30} GiB, hot", sparse, "hot", 0.0),
        (f"a sparse file of {sparse_bytes >> 30} GiB, cold", sparse, "auto", 0.0),
        (f"a real file of {real_bytes >> 30} GiB, hot", real, "hot", expected),
        (f"a real file of {real_bytes >> 30} GiB, cold", real, "auto", expected),
    ):
        peaks = []
        for _ in range(1 if io == "auto" or bench.quick else 2):
            if io == "auto":
                drop_from_cache(path)
            began = time.perf_counter()
            found = run(STREAM, str(path), io)
            if abs(found["sum"] - want) > 1e-9 * want:
                raise SystemExit(f"{what}: sum {found['sum']!r}, not {want!r}")
            peaks.append(found["peak_kib"] / 1024)
            ways = ", ".join(f"{count / 1e9:.1f} GB {way}" for way, count in dict(found["ways"]).items())  # type: ignore[call-overload]
            bench.note(f"{what}: {ways}, {found['bytes'] / found['seconds'] / 1e9:.1f} GB/s, "
                       f"{time.perf_counter() - began:.1f} s with start and end")  # fmt: skip
        bench.add(f"peak memory, {what}", peaks, "MiB", target="<= 250", peers=peer, must=True)


if __name__ == "__main__":
    main(__doc__, measure)
