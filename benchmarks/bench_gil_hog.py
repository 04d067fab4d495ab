"""gil_hog: the sum of a file of float32 that the page cache holds, while a thread of the same Python computes

Shows: what a thread that never lets go of the GIL (an endless loop of plain Python) costs a stream with one worker: the
same run with it and without it, taking turns. The file is given several times, as one stream, so that opening the
stream, which is Python and does have to wait for its turns, is a small part. Beside it, with the same loop running:
threads of os.preadv and NumPy, and a mapped file and NumPy. Sums must agree in every bit between both runs of vyre.
Does not show: more workers than cores are free. On a machine of two cores the loop takes one of them, so two workers
would share the other.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Callable, Iterator

import numpy as np
from common import Bench, interleave, main, sum_by_preadv

import vyre


@contextlib.contextmanager
def hog() -> Iterator[None]:
    """A thread that holds the GIL for as long as the interpreter lets it."""
    done = threading.Event()
    began = threading.Event()

    def compute() -> None:
        began.set()
        count = 0
        while not done.is_set():
            count += 1

    thread = threading.Thread(target=compute)
    thread.start()
    began.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(bench: Bench) -> None:
    elements = (3 << 20) + 1_000 if bench.quick else 256 << 20
    times = 2 if bench.quick else 16
    folder = bench.folder(4 * elements)
    path = folder / "x.f32"
    rng = np.random.default_rng(3)
    with open(path, "wb") as f:
        for first in range(0, elements, 16 << 20):
            rng.random(min(16 << 20, elements - first), np.float32).tofile(f)
    column = vyre.raw([path] * times, vyre.f32)
    part = max(1, elements >> 21) << 18  # an eighth, in whole pieces: what others read: 5 ms a piece beside the loop
    program = vyre.expression("sum(x)", {"x": vyre.f32})
    fd = os.open(path, os.O_RDONLY)
    with vyre.open("cpu", workers=1) as session:

        def ours() -> float:
            return float(session.run(program, x=column, io="hot").value)

        plain: dict[str, Callable[[], float]] = {
            "vyre": ours,
            "preadv threads 1": lambda: sum_by_preadv(fd, part, 1),
            "preadv threads 2": lambda: sum_by_preadv(fd, part, 2),
            "mmap + NumPy": lambda: float(np.memmap(path, np.float32, "r")[:part].sum(dtype=np.float64)),
        }

        def beside_hog(call: Callable[[], float]) -> Callable[[], float]:
            def busy() -> float:
                with hog():
                    return call()

            return busy

        candidates: dict[str, Callable[[], float]] = {}
        for name, call in plain.items():
            candidates[name] = call
            candidates[f"{name}, hog"] = beside_hog(call)
        answers = {name: call() for name, call in candidates.items()}
        whole = np.memmap(path, np.float32, "r")
        expected = {True: times * float(whole.sum(dtype=np.float64)), False: float(whole[:part].sum(dtype=np.float64))}
        for name, answer in answers.items():
            ours_ = name.startswith("vyre")
            if abs(answer / expected[ours_] - 1) > 1e-6 or (ours_ and answer != answers["vyre"]):
                raise SystemExit(f"{name}: {answer!r}, NumPy {expected[ours_]!r}, vyre {answers['vyre']!r}")
        runs = interleave(candidates, bench.rounds(15))
    os.close(fd)
    size = {name: 4 * (elements * times if name.startswith("vyre") else part) for name in candidates}
    gb = {name: [size[name] / s / 1e9 for s in found] for name, found in runs.items()}
    peers = {
        name.removesuffix(", hog"): found for name, found in gb.items() if name.endswith("hog") and "vyre" not in name
    }
    bench.note(f"without the busy thread: {', '.join(f'{n} {statistics.median(gb[n]):.3g} GB/s' for n in plain)}")
    bench.add("hot file -> float32 sum beside a busy Python thread, 1 worker", gb["vyre, hog"], "GB/s", peers=peers)
    share = [a / b for a, b in zip(gb["vyre, hog"], gb["vyre"], strict=True)]
    bench.add(
        "rate beside a busy Python thread over the rate without it, 1 worker", share, "x", target=">= 0.9", must=True
    )


if __name__ == "__main__":
    main(__doc__, measure)
