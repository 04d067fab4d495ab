"""A stream's pump at work beside Python that does not help, files that change, devices that fail, processes that die."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pytest

import vyre
from vyre.errors import StreamError
from vyre.stream import frames as f
from vyre.stream import reader as reader_module
from vyre.stream import uring
from vyre.stream.syscalls import direct_alignment

REFUSED = uring.available()
real = pytest.mark.skipif(REFUSED is not None, reason=f"no io_uring here: {REFUSED}")
WAYS = ["hot", "pread", pytest.param("uring", marks=real), pytest.param("uring-direct", marks=real)]
N = 40 * 65_536


@vyre.program
def total(x: vyre.f32):
    vyre.sum(total=x)
    vyre.count(seen=x == x)


@vyre.program
def same(x: vyre.f32):
    return x


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(3).random(N, np.float32)


@pytest.fixture
def path(data, tmp_path):
    data.tofile(tmp_path / "x.f32")
    return tmp_path / "x.f32"


def open_stream(session, program, path, io, **options):
    with open(path, "rb") as file:
        if io == "uring-direct" and direct_alignment(file.fileno()) is None:
            pytest.skip("no direct I/O on this file system")
    return session.stream(program, x=vyre.raw(path, vyre.f32), io=io, chunk=65_536, **options)


def eventually(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.005)


@pytest.mark.parametrize("io", WAYS)
def test_chunks_are_read_run_and_collected_while_nobody_asks_for_them(path, data, io):
    with vyre.open("cpu", workers=1) as session, open_stream(session, total, path, io) as stream:
        words = [stream._own.reader.frame_words(at) for at in range(stream._own.reader.frames)]
        eventually(lambda: all(word[0] & 0xFFFF_FFFF == f.DONE for word in words))
        assert len(words) == 40
        assert stream.done == 0
        for _ in stream:
            pass
        assert stream.total()["seen"] == N
        assert stream.total()["total"] == vyre.run(total, x=data)["total"]


@pytest.mark.parametrize("io", WAYS)
def test_parts_with_outputs_wait_for_the_caller_and_memory_is_bounded_by_that(path, data, io):
    with vyre.open("cpu", workers=1, pool_bytes=4 << 20) as session, open_stream(session, same, path, io) as stream:
        reader = stream._own.reader
        eventually(lambda: reader.stalls > 0 and reader.stall_s > 0)
        assert reader.frames < 40
        assert stream._own._pool.bytes <= 4 << 20
        parts = [part["value"] for part in stream]
    assert np.concatenate(parts).tobytes() == data.tobytes()
    assert len({part.ctypes.data for part in parts}) == len(parts), "two parts share memory"
    assert stream.report.waits["engine"] > 0


@pytest.mark.parametrize("io", WAYS)
def test_a_file_that_grows_or_is_replaced_or_unlinked_meanwhile_is_read_as_it_was_opened(path, data, io):
    with vyre.open("cpu", workers=1) as session, open_stream(session, total, path, io) as stream:
        next(stream)
        with open(path, "ab") as file:
            file.write(bytes(100))
        path.unlink()
        np.zeros(10, np.float32).tofile(path)
        for _ in stream:
            pass
        assert stream.total()["seen"] == N
        assert any("was changed while it was read" in note for note in stream.report.notes)


@pytest.mark.parametrize("io", WAYS)
def test_chunks_that_cannot_be_read_are_left_out_only_where_partial_results_were_asked_for(path, data, io):
    with vyre.open("cpu", workers=1, pool_bytes=1 << 20) as session:
        for partial in (True, False):
            stream = open_stream(session, same, path, io, partial=partial)
            os.truncate(path, 4 * (20 * 65_536 + 10))  # outputs that nobody has taken hold the pump up long before
            parts = []
            if partial:
                parts += list(stream)
                assert [lost.first for lost in stream.lost] == [65_536 * at for at in range(20, 40)]
                assert "shrank" in stream.lost[0].error.message
                assert stream.done == N
                assert sum("were left out" in note for note in stream.report.notes) == 20
            else:
                with pytest.raises(StreamError, match="shrank"):
                    parts += stream
                assert stream.lost == []
                assert next(stream, None) is None
            assert np.concatenate([part["value"] for part in parts]).tobytes() == data[: 20 * 65_536].tobytes()
            data.tofile(path)


@pytest.mark.parametrize("io", ["hot", "pread", pytest.param("uring-direct", marks=real)])
def test_eio_costs_the_chunks_that_it_struck_where_partial_results_were_asked_for(data, tmp_path, io):
    """ext4 on a loop device whose backing file is cut while it is mounted."""
    disk, mount = tmp_path / "disk", tmp_path / "mnt"
    mount.mkdir()
    with open(disk, "wb") as file:
        file.truncate(24 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", disk], capture_output=True)
    if made.returncode or subprocess.run(["mount", "-o", "loop", disk, mount], capture_output=True).returncode:
        pytest.skip("cannot mount a loop device here (needs root and /dev/loop*)")
    try:
        with vyre.open("cpu", workers=1) as session:  # so that the way is trusted on this device
            data[:2048].tofile(mount / "good.f32")
            session.run(total, x=vyre.raw(mount / "good.f32", vyre.f32), io=io)
        path = mount / "x.f32"
        data.tofile(path)
        subprocess.run(["sync", "-f", mount], check=True)
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.truncate(disk, 8 << 20)
        subprocess.run(["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"], check=False)
        with vyre.open("cpu", workers=1) as session:
            stream = session.stream(total, x=vyre.raw(path, vyre.f32), io=io, chunk=65_536, partial=True)
            seen = sum(int(part["seen"]) for part in stream)
            assert stream.lost
            assert {lost.error.errno for lost in stream.lost} == {errno.EIO}
            assert seen + sum(lost.count for lost in stream.lost) == N == stream.done
            assert stream.total()["seen"] == seen
            with pytest.raises(StreamError, match="EIO"):
                session.run(total, x=vyre.raw(path, vyre.f32), io=io, chunk=65_536)
    finally:
        subprocess.run(["umount", mount], check=False)


def test_a_process_that_is_killed_in_the_middle_of_a_stream_leaves_nothing_behind(path, tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import vyre
            with vyre.open("cpu", workers=2) as session:
                while True:
                    with session.stream(vyre.expression("sum(x)", {{"x": vyre.f32}}), x=vyre.raw({str(path)!r}, vyre.f32),
                                        io="auto", chunk=4096) as stream:
                        next(stream)
                        print("go", flush=True)
            """
        )
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(script) not in left
    os.unlink(path)


def test_a_pump_that_does_not_end_is_left_alone_with_all_that_it_may_write_into(path, monkeypatch):
    """As when a device never answers: closing gives up after a while, and neither pool nor ring is used again."""
    monkeypatch.setattr(reader_module, "CLOSE_TIMEOUT_S", 0.05)
    with vyre.open("cpu", workers=1, pool_bytes=4 << 20) as session:
        stream = open_stream(session, same, path, "pread")
        next(stream)
        reader, pool = stream._own.reader, stream._own._pool
        assert pool.bytes > 0
        hidden = reader._pump.tables
        with monkeypatch.context() as patch:
            # Closing looks at a state that nobody writes, and asks nobody to end.
            still = SimpleNamespace(words=memoryview(bytearray(f.PUMP_BYTES)).cast("Q"), address=hidden.address)
            patch.setattr(reader._pump, "tables", still)
            began = time.monotonic()
            stream.close()
            assert time.monotonic() - began < 2
        assert reader.abandoned
        assert pool.retired
        assert pool.bytes == 0
        hidden.words[f.P_STOP // 8] = 1  # now it may
        reader_module._ABANDONED.remove(reader._pump)
        reader._pump.stop()


@pytest.mark.parametrize("io", WAYS)
def test_a_process_that_ends_with_an_open_stream_ends_quietly_and_soon(path, tmp_path, io):
    script = tmp_path / "open.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import vyre
            session = vyre.open("cpu", workers=1)
            stream = session.stream(vyre.expression("sum(x)", {{"x": vyre.f32}}), x=vyre.raw({str(path)!r}, vyre.f32),
                                    io={io!r}, chunk=4096)
            next(stream)
            """
        )
    )
    with open(path, "rb") as file:
        if io == "uring-direct" and direct_alignment(file.fileno()) is None:
            pytest.skip("no direct I/O on this file system")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stream_of_a_sparse_file_adds_its_pool_and_little_more(tmp_path):
    """1 GiB: what the process holds at most, over what it held just before the stream was opened."""
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    script = tmp_path / "memory.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import re, vyre
            def kib(what):
                return int(re.search(what + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1])
            program = vyre.expression("sum(x)", {{"x": vyre.f32}})
            with vyre.open("cpu", workers=2) as session:
                session.load(program)
                open("/proc/self/clear_refs", "w").write("5")
                before = kib("VmRSS")
                with session.stream(program, x=vyre.raw({str(path)!r}, vyre.f32)) as stream:
                    pool = 0 if stream.plan.all_hot else stream.plan.pool_bytes
                    assert stream.run_to_end().value == 0
                print(kib("VmHWM") - before - pool // 1024)
            """
        )
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    if "clear_refs" in done.stderr:
        pytest.skip("the peak of the memory cannot be reset here")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50 * 1024
    assert re.fullmatch(r"-?\d+\n", done.stdout)
