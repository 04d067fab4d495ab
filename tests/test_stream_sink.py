"""Results on disk: complete under their name, or not there."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.stream.formats import numpy_dtype
from vyre.stream.sink import Sink


@pytest.mark.parametrize("memory", [m for m in MemType if m is not MemType.bf16])
@pytest.mark.parametrize("announced", [True, False])
def test_an_npy_result_is_what_numpy_loads_whether_its_length_was_known_or_not(tmp_path, memory, announced):
    parts = [np.arange(n).astype(numpy_dtype(memory)) for n in (0, 3, 1000, 1)]
    with Sink(tmp_path / "r.npy", memory, count=1004 if announced else None) as sink:
        for part in parts:
            sink.write(part)
        assert os.listdir(tmp_path) != ["r.npy"]
    assert os.listdir(tmp_path) == ["r.npy"]
    loaded = np.load(tmp_path / "r.npy")
    assert loaded.dtype == numpy_dtype(memory)
    assert loaded.tobytes() == np.concatenate(parts).tobytes()


def test_raw_results_and_strided_parts_and_bf16_bits_are_written_as_they_are(tmp_path):
    with Sink(tmp_path / "r.bin", MemType.f32) as sink:
        sink.write(np.arange(10, dtype="f4")[::3])
        sink.write(np.arange(6, dtype="f4").reshape(2, 3).T)
    assert np.fromfile(tmp_path / "r.bin", "f4").tolist() == [0, 3, 6, 9, 0, 3, 1, 4, 2, 5]
    with Sink(tmp_path / "b", MemType.bf16) as sink:
        sink.write(np.array([0x3F80], "u2"))
    assert (tmp_path / "b").read_bytes() == b"\x80\x3f"
    with pytest.raises(BindError, match="no bf16"):
        Sink(tmp_path / "b.npy", MemType.bf16)
    assert sorted(os.listdir(tmp_path)) == ["b", "r.bin"]


def test_an_error_leaves_the_old_file_as_it_was_and_nothing_beside_it(tmp_path):
    def fail():
        with Sink(tmp_path / "r.npy", MemType.f64) as sink:
            sink.write(np.zeros(1000))
            raise RuntimeError

    (tmp_path / "r.npy").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        fail()
    sink = Sink(tmp_path / "r.npy", MemType.f64)
    assert len(os.listdir(tmp_path)) == 2
    sink.abort()
    assert os.listdir(tmp_path) == ["r.npy"]
    assert (tmp_path / "r.npy").read_bytes() == b"old"
    for use in (lambda: sink.write(np.zeros(1)), sink.commit):
        with pytest.raises(StreamError, match="after commit or abort"):
            use()


def test_a_full_disk_is_an_error_that_says_where_and_leaves_nothing_under_the_name(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here (needs root)")
    try:
        sink = Sink(mount / "r.npy", MemType.u8)
        for _ in range(10):
            sink.write(np.zeros(100_000, "u1"))
        with pytest.raises(StreamError, match=r"ENOSPC\); nothing was left.*\n.*make room") as caught:
            sink.write(np.zeros(100_000, "u1"))
        assert caught.value.errno == errno.ENOSPC
        assert "after 1000000 elements" in str(caught.value)
        assert os.listdir(mount) == []
    finally:
        subprocess.run(["umount", mount], check=True)


def test_dev_full_is_an_error_and_stays_a_device():
    with pytest.raises(StreamError, match="ENOSPC"), Sink("/dev/full", MemType.u8) as sink:
        sink.write(np.zeros(10, "u1"))
    assert not os.path.isfile("/dev/full")
    with Sink("/dev/null", MemType.u8) as sink:
        sink.write(np.zeros(10, "u1"))
    assert not os.path.isfile("/dev/null")


def test_a_file_size_limit_is_an_error_like_a_full_disk(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StreamError, match="EFBIG"), Sink(tmp_path / "r", MemType.u8) as sink:
            sink.write(np.zeros(200_000, "u1"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_standard_output_takes_raw_results_and_npy_ones_of_known_length():
    script = """
import numpy as np, sys
from vyre.program.opcodes import MemType
from vyre.stream.sink import Sink
print("before")
with Sink("-", MemType.i32, format=sys.argv[1], count=3) as sink: sink.write(np.arange(3, dtype="i4"))
print("after")
"""
    out = subprocess.run([sys.executable, "-c", script, "raw"], capture_output=True, check=True).stdout
    assert out == b"before\n" + np.arange(3, dtype="i4").tobytes() + b"after\n"
    out = subprocess.run([sys.executable, "-c", script, "npy"], capture_output=True, check=True).stdout
    assert out[7:13] == b"\x93NUMPY"
    assert len(out) == 7 + 128 + 12 + 6
    with pytest.raises(BindError, match="must know before"):
        Sink("/dev/null", MemType.i32, format="npy")


def test_a_closed_pipe_is_an_error_without_a_traceback_of_ours():
    script = """
import numpy as np, sys
from vyre.errors import StreamError
from vyre.program.opcodes import MemType
from vyre.stream.sink import Sink
try:
    with Sink("-", MemType.u8) as sink:
        while True: sink.write(np.zeros(1 << 16, "u1"))
except StreamError as error:
    print(error, file=sys.stderr)
    sys.exit(5)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=10) == 5
    text = process.stderr.read()
    process.stderr.close()
    assert "standard output: cannot be written" in text
    assert "EPIPE" in text
    assert "ended early" in text


def test_results_that_cannot_begin_say_why(tmp_path):
    for path, words in [
        (tmp_path / "no" / "r", r"ENOENT.*\n.*create the directory"),
        (tmp_path, r"EISDIR.*\n.*name a file"),
        ("a\0b", "null"),
    ]:
        with pytest.raises(StreamError, match=words):
            Sink(path, MemType.u8)
    with pytest.raises(BindError, match="unknown"):
        Sink(tmp_path / "r", MemType.u8, format="csv")
    assert os.listdir(tmp_path) == []


def test_counts_and_types_that_were_announced_are_kept(tmp_path):
    with pytest.raises(StreamError, match="2 elements written where 3"), Sink(tmp_path / "r", MemType.u8, count=3) as s:
        s.write(np.zeros(2, "u1"))
    with pytest.raises(BindError, match="more than the 3"), Sink(tmp_path / "r", MemType.u8, count=3) as s:
        s.write(np.zeros(4, "u1"))
    with pytest.raises(BindError, match="float64 in a result of u8"), Sink(tmp_path / "r", MemType.u8) as s:
        s.write(np.zeros(4))
    assert os.listdir(tmp_path) == []


def test_a_result_may_replace_the_file_it_was_computed_from_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "a").write_bytes(b"input")
    (tmp_path / "link").symlink_to("a")
    with open(tmp_path / "a", "rb") as source, Sink(tmp_path / "link", MemType.u8) as sink:
        sink.write(np.frombuffer(source.read(), "u1") + np.uint8(1))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_bytes() == b"joqvu"
