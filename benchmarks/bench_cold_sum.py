"""cold_sum: the sum of a file of float32 that is in no cache of this machine, read around the page cache

Shows: whether the disk is kept busy while tiles are added up. vyre streams with io_uring and O_DIRECT; beside it fio (the
same file, 1 MiB reads, 8 in flight, nothing done with the bytes) and os.preadv with O_DIRECT in one thread. They take
turns, the page cache is emptied of the file before each, and the answers are compared.
Does not show: how fast vyre could be on a faster disk. A disk that is shared or throttled, as in a virtual machine, is
what is measured here; read the figures beside each other and never alone. A host's own cache cannot be emptied.
The processor time of vyre's pump and the copies of each byte are counted in the same runs.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import Bench, drop_from_cache, interleave, main

import vyre

PIECE = 1 << 20


def measure(bench: Bench) -> None:
    elements = 2 << 20 if bench.quick else 256 << 20
    folder = bench.folder(4 * elements)
    path = folder / "x.f32"
    rng = np.random.default_rng(5)
    with open(path, "wb") as f:
        for _ in range(elements >> 20):
            rng.random(1 << 20, np.float32).tofile(f)
    expected = float(np.fromfile(path, np.float32).sum(dtype=np.float64))
    drop_from_cache(path)
    program = vyre.expression("sum(x)", {"x": vyre.f32})
    column = vyre.raw(path, vyre.f32)
    ways: set[str] = set()
    direct = _direct(path)
    if not direct:
        bench.lacks("O_DIRECT", "this file system has none: everything goes through the page cache")
    fio = shutil.which("fio")
    if fio is None or bench.quick:
        bench.lacks("fio", "not installed" if fio is None else "not in the quick version")
    with vyre.open("cpu") as session:
        pump_us: list[float] = []
        copied: list[float] = []

        def ours() -> float:
            drop_from_cache(path)
            result = session.run(program, x=column, io="uring-direct" if direct else "pread")
            report = result.report
            ways.update(report.bytes_by_way)
            pump_us.append(report.reader_cpu_s * 1e6 / (report.bytes / (1 << 20)))
            through_cache = sum(count for way, count in report.bytes_by_way.items() if "page cache" in way)
            copied.append((through_cache + sum(report.copies.values())) / report.bytes)
            return float(result.value)

        preadv_us: list[float] = []

        def plain() -> float:
            total, seconds = _preadv(path, direct)
            preadv_us.append(seconds * 1e6 / (4 * elements / (1 << 20)))
            return total

        candidates: dict[str, Callable[[], float]] = {"vyre": ours, "preadv": plain}
        for name, call in candidates.items():
            found = call()
            if abs(found / expected - 1) > 1e-9:
                raise SystemExit(f"{name}: {found!r}, NumPy {expected!r}")
        fio_seconds: list[float] = []
        runs: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(bench.rounds(15)):
            for name, found_runs in interleave(candidates, 1).items():
                runs[name] += found_runs
            if fio is not None and not bench.quick:
                drop_from_cache(path)
                fio_seconds.append(4 * elements / _fio(fio, path, direct))
    gb = {name: [4 * elements / s / 1e9 for s in found] for name, found in runs.items()}
    beside = {"preadv O_DIRECT" if direct else "preadv": gb["preadv"]}
    if fio_seconds:
        beside["fio"] = [4 * elements / s / 1e9 for s in fio_seconds]
    bench.note("vyre read: " + ", ".join(sorted(ways)))
    bench.add("cold file -> float32 sum", gb["vyre"], "GB/s", peers=beside, reason="the disk's speed, whoever reads")
    if fio_seconds:
        share = [ours / theirs for ours, theirs in zip(gb["vyre"], beside["fio"], strict=True)]
        bench.add("cold file -> float32 sum: rate over fio's of the same round", share, "x", target=">= 0.9")
    beside_us = {f"reads of preadv{' O_DIRECT' if direct else ''}": preadv_us}
    target = "<= 6" if direct else ""
    reason = (
        "nearly all of it is the kernel's; the target comes from a machine where preadv took 17 to 22 us"
        if direct
        else ""
    )
    name = "processor time of the pump, cold, 1 MiB reads"
    bench.add(name, pump_us, "us/MiB", target=target, peers=beside_us, reason=reason)
    if direct:
        bench.note(f"CPU copies of each byte: {max(copied):.3g} (0 is direct, 1 through the page cache)")


def _direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _preadv(path: Path, direct: bool) -> tuple[float, float]:
    """One thread: read a piece, add it up, read the next. The sum, and the processor seconds of the reads."""
    drop_from_cache(path)
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    buffer = mmap.mmap(-1, PIECE)
    numbers = np.frombuffer(buffer, np.float32)
    total = seconds = 0.0
    at = 0
    while True:
        began = time.thread_time()
        got = os.preadv(fd, [buffer], at)
        seconds += time.thread_time() - began
        if not got:
            break
        total += float(numbers[: got // 4].sum(dtype=np.float64))
        at += got
    os.close(fd)
    return total, seconds


def _fio(fio: str, path: Path, direct: bool) -> float:
    """Bytes a second of sequential reads."""
    done = subprocess.run(
        [
            fio, "--name=read", f"--filename={path}", "--readonly", "--rw=read", "--bs=1M", "--iodepth=8",
            "--ioengine=io_uring", f"--direct={int(direct)}", "--output-format=json", "--invalidate=1",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["bw_bytes"])


if __name__ == "__main__":
    main(__doc__, measure)
