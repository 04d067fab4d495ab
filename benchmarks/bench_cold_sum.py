"""cold_sum: the sum of a file of float32 that is in no cache of this machine, read around the page cache

Shows: whether the disk is kept busy while tiles are added up. vyre streams with io_uring and O_DIRECT; beside it fio (the
same file, 1 MiB reads, 8 in flight, nothing done with the bytes) and os.preadv with O_DIRECT in one thread. They take
turns, the page cache is emptied of the file before each, and the answers are compared.
Does not show: how fast vyre could be on a faster disk. A disk that is shared or throttled, as in a virtual machine, is
what is measured here; read the figures beside each other and never alone. A host's own cache cannot be emptied.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
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

        def ours() -> float:
            drop_from_cache(path)
            result = session.run(program, x=column, io="uring-direct" if direct else "pread")
            ways.update(result.report.bytes_by_way)
            return float(result.value)

        candidates: dict[str, Callable[[], float]] = {"vyre": ours, "preadv": lambda: _preadv(path, direct)}
        for name, call in candidates.items():
            found = call()
            if abs(found / expected - 1) > 1e-9:
                raise SystemExit(f"{name}: {found!r}, NumPy {expected!r}")
        fio_seconds: list[float] = []
        runs: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(bench.rounds(7)):
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


def _direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _preadv(path: Path, direct: bool) -> float:
    """One thread: read a piece, add it up, read the next."""
    drop_from_cache(path)
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    buffer = mmap.mmap(-1, PIECE)
    numbers = np.frombuffer(buffer, np.float32)
    total = 0.0
    at = 0
    while got := os.preadv(fd, [buffer], at):
        total += float(numbers[: got // 4].sum(dtype=np.float64))
        at += got
    os.close(fd)
    return total


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
