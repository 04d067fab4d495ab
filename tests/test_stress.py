"""Every call of a session at once: six threads, rings that are too small, answers checked, nothing left behind."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.errors import ArenaFull, Cancelled, ProgramFault, RingFull, WaitTimeout


@vyre.program
def several(x: vyre.f32, *, k: vyre.f32 = 2.0):
    vyre.sum(total=x)
    vyre.count(big_ones=x > 500.0)
    if x > 500.0:
        vyre.emit(big=x)
    return x * k


@vyre.program
def slow(x: vyre.i32, *, turns: vyre.i32):
    left = turns + x * 0
    while left > 0:
        left -= 1
    return left


N = 200_000
BASE = (np.arange(N) % 1_000).astype(np.float32)
TOTALS = np.concatenate([[0.0], np.cumsum(BASE, dtype=np.float64)])
LENGTHS = (1, 5, 1_000, 1_024, 1_025, 70_000, N - 1)


class Mix:
    """One thread's calls; ``wrong`` is shared by all."""

    def __init__(self, session: vyre.Session, path: Path, seed: int, until: float, wrong: list[object]) -> None:
        self.session, self.path, self.until, self.wrong = session, path, until, wrong
        self.choose = random.Random(seed)
        self.calls = [getattr(self, name) for name in dir(self) if name.startswith("do_")]

    def __call__(self) -> None:
        try:
            while time.monotonic() < self.until and not self.wrong:
                self.choose.choice(self.calls)(self.choose.choice(LENGTHS), self.choose.randrange(1, 9))
        except BaseException as error:
            self.wrong.append(error)

    def check(self, r: vyre.Result, n: int, k: int) -> None:
        v = BASE[:n]
        fine = np.array_equal(r["value"], v * np.float32(k)) and r["total"] == TOTALS[n]
        if not (fine and np.array_equal(r["big"], v[v > 500]) and r["big_ones"] == (v > 500).sum()):
            self.wrong.append((n, k))

    def do_run(self, n: int, k: int) -> None:
        self.check(self.session.run(several, x=BASE[:n], k=k), n, k)

    def do_submit(self, n: int, k: int) -> None:
        self.check(self.session.submit(several, x=BASE[:n], k=k).result(), n, k)

    def do_submit_many(self, n: int, k: int) -> None:
        n %= 5_000
        tickets = [self.session.submit(several, x=BASE[:n], k=k) for _ in range(20)]
        for ticket in self.choose.sample(tickets, 20):
            self.check(ticket.result(), n, k)

    def do_abandon(self, n: int, k: int) -> None:
        self.session.submit(several, x=BASE[:n], k=k)

    def do_cancel(self, n: int, k: int) -> None:
        ticket = self.session.submit(several, x=BASE, k=k)
        time.sleep(self.choose.choice([0, 1e-4, 1e-3]))
        ticket.cancel()
        try:
            self.check(ticket.result(), N, k)
        except Cancelled:
            pass

    def do_bind(self, n: int, k: int) -> None:
        bound = self.session.bind(several, x=BASE[:n], k=k)
        for _ in range(3):
            self.check(bound.run(), n, k)
        bound.close()

    def do_time_out(self, n: int, k: int) -> None:
        x = np.zeros(20_000, np.int32)
        limit_s = self.choose.random() / 100
        try:
            if k % 2:
                self.session.run(slow, x=x, turns=1_000, timeout_s=limit_s)
            else:
                self.session.submit(slow, x=x, turns=1_000, timeout_s=limit_s).result()
        except (WaitTimeout, RingFull, ProgramFault):
            pass

    def do_stream(self, n: int, k: int) -> None:
        chunk, io = self.choose.choice([8_192, 50_000, None]), self.choose.choice(["auto", "pread", "uring"])
        try:
            self.check(self.session.run(several, x=self.path, k=k, chunk=chunk, io=io), N, k)
            for _ in self.session.stream(several, x=self.path, k=k, chunk=8_192):
                break
        except ArenaFull:  # all rings are with the other threads
            pass

    def do_dispatch(self, n: int, k: int) -> None:
        for r in self.session.dispatch([(several, {"x": BASE[:n], "k": k})] * 3):
            self.check(r, n, k)

    def do_evaluate(self, n: int, k: int) -> None:
        if not np.array_equal(self.session.evaluate(f"x * 2 + {k}", {"x": BASE[:n]}), BASE[:n] * 2 + k):
            self.wrong.append(("evaluate", n, k))


@pytest.mark.parametrize(("workers", "capacity"), [(2, 64), (1, 4), (3, 1)])
def test_any_mix_of_calls_from_six_threads_gives_right_answers_and_ends(tmp_path, workers, capacity):
    np.save(tmp_path / "x.npy", BASE)
    wrong: list[object] = []
    with vyre.open("cpu", workers=workers, capacity=capacity) as session:
        until = time.monotonic() + 1.5
        mixes = [Mix(session, tmp_path / "x.npy", 10 * capacity + i, until, wrong) for i in range(6)]
        threads = [threading.Thread(target=mix) for mix in mixes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong
        assert len(session._outstanding) <= capacity
        mixes[0].do_run(1_000, 3)
        assert not wrong
        assert session.engine._memory.in_use == workers
