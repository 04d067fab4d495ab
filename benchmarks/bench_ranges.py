"""ranges: the sum of 20,000 random ranges of 64 to 256 KiB out of 200 files that are in no cache of this machine

Shows: random access at a depth: vyre takes the ranges as one column and keeps 8 MiB and more of reads in flight. Beside it
fio, which replays the very same list of reads with io_uring and O_DIRECT, 32 in flight, and does nothing with the bytes,
and os.preadv with O_DIRECT in 8 and in 32 threads, which add the numbers up with NumPy. The page cache is emptied before
each; answers are compared. Ranges begin and end at blocks of 4,096 bytes, as fio's do.
Does not show: ranges that do not (vyre reads those through the page cache), nor a disk of its own: read the figures beside
each other. vyre's time has the opening of 20,000 ranges in it, fio's has not its reading of the list.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import Bench, drop_from_cache, interleave, main

import vyre

BLOCK = 4096
LONGEST = 256 << 10
DEPTH = 32

Place = tuple[str, int, int]


def measure(bench: Bench) -> None:
    count, files, size = (200, 8, 2 << 20) if bench.quick else (20_000, 200, 16 << 20)
    folder = bench.folder(files * size)
    rng = np.random.default_rng(11)
    paths = [folder / f"{at:03}.f32" for at in range(files)]
    for path in paths:
        rng.random(size // 4, np.float32).tofile(path)
    places: list[Place] = []
    for _ in range(count):
        length = int(rng.integers(16, LONGEST // BLOCK + 1)) * BLOCK
        offset = int(rng.integers(0, (size - length) // BLOCK + 1)) * BLOCK
        places.append((str(paths[rng.integers(files)]), offset, length))
    arrays = {str(path): np.fromfile(path, np.float32) for path in paths}
    expected = sum(float(arrays[path][at // 4 : (at + n) // 4].sum(dtype=np.float64)) for path, at, n in places)
    arrays.clear()
    total = sum(length for _, _, length in places)
    direct = _direct(paths[0])
    if not direct:
        bench.lacks("O_DIRECT", "this file system has none: everything goes through the page cache")
    program = vyre.expression("sum(x)", {"x": vyre.f32})
    ways: set[str] = set()

    def cold() -> None:
        for path in paths:
            drop_from_cache(path)

    with vyre.open("cpu") as session:

        def ours() -> float:
            result = session.run(program, x=vyre.ranges(places, vyre.f32), io="uring-direct" if direct else "pread")
            ways.update(result.report.bytes_by_way)
            return float(result.value)

        candidates: dict[str, Callable[[], float]] = {
            "vyre": ours,
            "preadv threads 8": lambda: _threads(places, direct, 8),
            "preadv threads 32": lambda: _threads(places, direct, 32),
        }
        for name, call in candidates.items():
            cold()
            found = call()
            if abs(found / expected - 1) > 1e-9:
                raise SystemExit(f"{name}: {found!r}, NumPy {expected!r}")
        fio = shutil.which("fio")
        if fio is None or bench.quick or not direct:
            bench.lacks("fio", "not installed" if fio is None else "not in the quick version, nor without O_DIRECT")
            fio = None
        log = folder / "reads.log"
        _write_log(log, paths, places)
        runs: dict[str, list[float]] = {name: [] for name in candidates}
        fio_rates: list[float] = []
        for turn in range(bench.rounds(15)):
            names = list(candidates)
            for name in names[turn % 3 :] + names[: turn % 3]:
                cold()
                runs[name] += interleave({name: candidates[name]}, 1)[name]
            if fio is not None:
                cold()
                fio_rates.append(_fio(fio, log, folder))
    gb = {name: [total / s / 1e9 for s in found] for name, found in runs.items()}
    beside: dict[str, list[float]] = {name: found for name, found in gb.items() if name != "vyre"}
    if fio_rates:
        beside["fio"] = fio_rates
    bench.note(f"{count:,} ranges, {total / 1e9:.2f} GB; vyre read: {', '.join(sorted(ways))}")
    bench.add(f"{count:,} random ranges of 64 to 256 KiB -> float32 sum", gb["vyre"], "GB/s", peers=beside)
    if fio_rates:
        share = [mine / theirs for mine, theirs in zip(gb["vyre"], fio_rates, strict=True)]
        bench.add("random ranges: rate over fio's of the same round, 32 in flight", share, "x", target=">= 0.9")


def _direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _threads(places: list[Place], direct: bool, threads: int) -> float:
    """Each thread takes the next range, reads it, and adds its numbers up."""
    fds = {
        path: os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0)) for path in {path for path, _, _ in places}
    }
    left = iter(places)
    sums: list[float] = []

    def work() -> None:
        buffer = mmap.mmap(-1, LONGEST)
        numbers = np.frombuffer(buffer, np.float32)
        view = memoryview(buffer)
        mine = 0.0
        for path, offset, length in left:
            os.preadv(fds[path], [view[:length]], offset)
            mine += float(numbers[: length // 4].sum(dtype=np.float64))
        sums.append(mine)

    started = [threading.Thread(target=work) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    for fd in fds.values():
        os.close(fd)
    return sum(sums)


def _write_log(log: Path, paths: list[Path], places: list[Place]) -> None:
    lines = ["fio version 2 iolog", *(f"{path} add" for path in paths), *(f"{path} open" for path in paths)]
    lines += [f"{path} read {offset} {length}" for path, offset, length in places]
    lines += [f"{path} close" for path in paths]
    log.write_text("\n".join(lines) + "\n")


def _fio(fio: str, log: Path, folder: Path) -> float:
    """GB/s of the reads in the log."""
    done = subprocess.run(
        [
            fio, "--name=replay", f"--read_iolog={log}", "--replay_no_stall=1", "--readonly", "--direct=1",
            "--ioengine=io_uring", f"--iodepth={DEPTH}", "--bsrange=64k-256k", "--output-format=json",
        ],
        capture_output=True, text=True, check=True, cwd=folder,
    )  # fmt: skip
    read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return float(read["bw_bytes"]) / 1e9


if __name__ == "__main__":
    main(__doc__, measure)
