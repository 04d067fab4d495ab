"""Streams under asyncio: the same parts, an event loop that goes on, and nothing left behind when a task is cancelled."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.errors import ProgramFault, SessionClosed, StreamError

N = 300_001


@vyre.program
def double(x: vyre.f64) -> vyre.f64:
    vyre.sum(total=x)
    return x * 2


@vyre.program
def divide(k: vyre.i32) -> vyre.i32:
    return 1000 // k


@vyre.program
def slow(k: vyre.i32, *, turns: vyre.i32) -> vyre.i32:
    left = turns + k * 0
    while left > 0:
        left -= 1
    return left


@pytest.fixture(scope="module", params=["cpu", "reference"])
def session(request: pytest.FixtureRequest) -> Iterator[vyre.Session]:
    with vyre.open(request.param) as found:
        yield found


@pytest.fixture(scope="module")
def cpu() -> Iterator[vyre.Session]:
    with vyre.open("cpu", workers=2) as found:
        yield found


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(1).random(N))
    k = np.ones(N, np.int32)
    k[200_000] = 0
    np.save("k.npy", k)


def descriptors() -> list[str]:
    """Files of this test that are open."""
    found = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    return [path for path in found if path.endswith(".npy")]


def drivers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vyre-stream")]


@pytest.mark.parametrize("io", ["hot", "pread", "auto"])
def test_the_parts_and_totals_are_those_of_a_plain_loop(session: vyre.Session, io: str) -> None:
    async def main() -> tuple[list[bytes], float]:
        async with session.stream(double, "x.npy", chunk=20_000, io=io) as stream:
            parts = [part.value.tobytes() async for part in stream]
            assert stream.done == N
            assert [part async for part in stream] == []
            return parts, stream.total()["total"]

    with session.stream(double, "x.npy", chunk=20_000, io=io) as stream:
        plain = [part.value.tobytes() for part in stream]
        right = stream.total()["total"]
    assert asyncio.run(main()) == (plain, right)
    assert (descriptors(), drivers()) == ([], [])


def test_the_event_loop_goes_on_while_a_part_is_waited_for(cpu: vyre.Session) -> None:
    np.zeros(1024 * 64, np.int32).tofile("zeros")

    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        async for _ in cpu.stream(slow, k=vyre.raw("zeros", "i32"), turns=20_000):
            pass
        ticking.cancel()
        return ticks

    began = time.monotonic()
    ticks = asyncio.run(main())
    assert ticks > (time.monotonic() - began) / 0.001 / 20


def test_two_streams_and_a_ticket_go_on_side_by_side(cpu: vyre.Session) -> None:
    async def total() -> float:
        async with cpu.stream(double, "x.npy", chunk=20_000) as stream:
            async for _ in stream:
                pass
            return float(stream.total()["total"])

    async def main() -> list[float]:
        ticket = cpu.submit(double, x=np.load("x.npy"))
        one, two, three = await asyncio.gather(total(), total(), ticket)
        return [one, two, float(three["total"])]

    assert len(set(asyncio.run(main()))) == 1


@pytest.mark.parametrize("io", ["hot", "pread", "auto"])
def test_cancelling_the_task_ends_reads_and_work_and_gives_everything_back_within_a_second(
    cpu: vyre.Session, io: str
) -> None:
    with open("zeros", "wb") as file:
        file.truncate(1 << 30)
    streams = []

    async def main() -> float:
        async def consume() -> None:
            async for _ in streams[0]:
                pass

        streams.append(cpu.stream(slow, k=vyre.raw("zeros", "i32"), turns=50_000, io=io))
        task = asyncio.ensure_future(consume())
        await asyncio.sleep(0.2)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert streams[0]._closed
        assert streams[0]._pool.lent == 0
        return time.monotonic() - began

    assert asyncio.run(main()) < 1.0
    assert (descriptors(), drivers()) == ([], [])
    assert cpu.run(double, "x.npy").value.size == N


def test_a_time_limit_of_asyncio_cancels_a_stream(cpu: vyre.Session) -> None:
    with open("zeros", "wb") as file:
        file.truncate(1 << 30)

    async def main() -> None:
        async with asyncio.timeout(0.1), cpu.stream(slow, k=vyre.raw("zeros", "i32"), turns=50_000) as stream:
            async for _ in stream:
                pass

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert time.monotonic() - began < 1.5


def test_leaving_the_loop_early_closes_the_stream_at_the_end_of_the_block(cpu: vyre.Session) -> None:
    async def main() -> None:
        async with cpu.stream(double, "x.npy", chunk=1024) as stream:
            async for _ in stream:
                break
        assert stream._closed
        with cpu.stream(double, "x.npy", chunk=1024) as stream:
            async for _ in stream:
                break
        assert stream._closed

    asyncio.run(main())
    gc.collect()
    assert (descriptors(), drivers()) == ([], [])


def test_a_fault_and_a_file_that_shrinks_are_raised_after_the_parts_before_them(cpu: vyre.Session) -> None:
    async def faulty() -> int:
        done = 0
        async with cpu.stream(divide, "k.npy", chunk=10_000) as stream:
            for _ in range(200_000 // 10_240):
                done += (await anext(stream)).value.size
            with pytest.raises(ProgramFault):
                await anext(stream)
        return done

    async def shrinking() -> int:
        async with cpu.stream(double, "x.npy", chunk=1024, io="pread") as stream:
            await anext(stream)
            os.truncate("x.npy", 128 + 8 * (N - 1))
            with pytest.raises(StreamError, match="shrank"):
                async for _ in stream:
                    pass
            return stream.done

    assert asyncio.run(faulty()) == 200_000 // 10_240 * 10_240
    assert asyncio.run(shrinking()) == N // 1024 * 1024


def test_a_caller_who_is_slow_holds_reading_back(cpu: vyre.Session) -> None:
    async def main() -> int:
        async with cpu.stream(double, "x.npy", chunk=1024, io="pread") as stream:
            out = 0
            for _ in range(10):
                await anext(stream)
                await asyncio.sleep(0.01)
                out = max(out, len(stream._items) + len(stream._finished))
            return out

    assert asyncio.run(main()) <= 128


def test_a_session_that_closes_ends_the_wait(cpu: vyre.Session) -> None:
    with open("zeros", "wb") as file:
        file.truncate(1 << 30)

    async def main() -> None:
        session = vyre.open("cpu")
        stream = session.stream(slow, k=vyre.raw("zeros", "i32"), turns=100_000)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        session.close()
        with pytest.raises(SessionClosed):
            await waiting

    asyncio.run(main())
