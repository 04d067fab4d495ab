"""Columns of many ranges: the bytes of each, in the order given, on every way, and the errors of those that cannot be."""

from __future__ import annotations

import os

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, StreamError
from vyre.stream import uring
from vyre.stream.syscalls import direct_alignment

REFUSED = uring.available()
real = pytest.mark.skipif(REFUSED is not None, reason=f"no io_uring here: {REFUSED}")
WAYS = ["auto", "hot", "pread", pytest.param("uring", marks=real), pytest.param("uring-direct", marks=real)]


@vyre.program
def copied(x: vyre.f32):
    vyre.sum(total=x)
    return x


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranges")
    rng = np.random.default_rng(7)
    arrays = [rng.random(500_000, np.float32) for _ in range(3)]
    for at, array in enumerate(arrays):
        array.tofile(folder / f"{at}.f32")
    return [(str(folder / f"{at}.f32"), array) for at, array in enumerate(arrays)]


def some(files, seed, unit, count=400):
    """Ranges of up to 64 units each, and what they hold."""
    rng = np.random.default_rng(seed)
    places, parts = [], []
    for _ in range(count):
        path, array = files[rng.integers(len(files))]
        units = array.nbytes // unit
        size = int(rng.integers(0, 64))
        first = int(rng.integers(0, units - size))
        places.append((path, first * unit, size * unit))
        parts.append(array[first * unit // 4 : (first + size) * unit // 4])
    return places, np.concatenate(parts)


@pytest.mark.parametrize("io", WAYS)
@pytest.mark.parametrize("unit", [4, 512, 4096])
@pytest.mark.parametrize("chunk", [1024, 20_000, None])
def test_ranges_give_their_elements_in_the_order_given(files, io, unit, chunk):
    places, expected = some(files, unit, unit)
    with open(files[0][0], "rb") as file:
        if io == "uring-direct" and direct_alignment(file.fileno()) is None:
            pytest.skip("no direct I/O on this file system")
    with vyre.open("cpu", workers=2, io=io) as session:
        result = session.run(copied, x=vyre.ranges(places, vyre.f32), chunk=chunk)
    assert np.asarray(result["value"]).tobytes() == expected.tobytes()
    assert result.report.bytes == expected.nbytes
    if io == "uring-direct" and unit == 4096:
        assert list(result.report.bytes_by_way) == ["io_uring O_DIRECT registered"]


@real
def test_ranges_beside_blocks_are_counted_in_the_plan(files):
    path = files[0][0]
    with open(path, "rb") as file:
        if direct_alignment(file.fileno()) is None:
            pytest.skip("no direct I/O on this file system")
    column = vyre.ranges([(path, 4, 8), (path, 8192, 4096)])
    with (
        vyre.open("cpu", workers=1) as session,
        session.stream(copied, x=column, io="uring-direct", chunk=1024) as stream,
    ):
        assert "x: 1 of 2 ranges do not begin and end at blocks of 4096 bytes" in stream.plan.explain()


def test_many_columns_may_have_ranges_of_their_own(files):
    first, a = some(files, 1, 4, 50)
    second, b = some(files, 2, 4, 50)
    n = min(a.size, b.size) * 4

    def cut(places):
        found, left = [], n
        for path, offset, size in places:
            found.append((path, offset, min(size, left)))
            left -= found[-1][2]
        return found

    @vyre.program
    def added(x: vyre.f32, y: vyre.f32):
        return x + y

    result = vyre.run(added, x=vyre.ranges(cut(first)), y=vyre.ranges(cut(second)))
    assert result.value.tobytes() == (a[: n // 4] + b[: n // 4]).tobytes()


def test_ranges_that_cannot_be_are_refused_by_number(files):
    path, array = files[0]
    with pytest.raises(BindError, match="range 1: offset -4"):
        vyre.ranges([(path, 0, 4), (path, -4, 4)])
    with pytest.raises(BindError, match="no ranges"):
        vyre.ranges([])
    with pytest.raises(
        StreamError, match=r"range 1 of 'x', 8 bytes from offset 1999996, reach beyond its 2000000 bytes"
    ):
        vyre.run(copied, x=vyre.ranges([(path, 0, 4), (path, array.nbytes - 4, 8)]))
    with pytest.raises(StreamError, match="range 0 of 'x', 6 bytes from offset 0, are no whole number of f32 elements"):
        vyre.run(copied, x=vyre.ranges([(path, 0, 6)]))
    with pytest.raises(BindError, match=r"declared f32"):
        vyre.run(copied, x=vyre.ranges([(path, 0, 8)], vyre.f64))
    with pytest.raises(StreamError, match="no-such-file"):
        vyre.run(copied, x=vyre.ranges([("no-such-file", 0, 8)]))


def test_each_file_is_open_once_however_many_ranges_it_has(files):
    places, _ = some(files, 3, 4, 2_000)
    before = len(os.listdir("/proc/self/fd"))
    with vyre.open("cpu", workers=1) as session:
        opened = len(os.listdir("/proc/self/fd"))
        with session.stream(copied, x=vyre.ranges(places), io="pread") as stream:
            next(stream)
            assert len(os.listdir("/proc/self/fd")) - opened == len(files)
    assert len(os.listdir("/proc/self/fd")) == before
