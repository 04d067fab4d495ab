"""Results of a run in files: whole under their name or not there, whatever ends the run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.stream.formats import numpy_dtype
from vyre.stream.sink import Sinks, TableSink

pa = pytest.importorskip("pyarrow")

X = np.random.default_rng(1).random(300_000)
NAMES = ["r.npy", "r.arrow", "r.arrows", "r.bin"]

BOTH = """
import vyre

@vyre.program
def both(x: vyre.f64) -> dict[str, float]:
    if x > 0.5:
        vyre.emit(row=vyre.index(), value=x)
    return {"twice": x * 2, "half": x / 2}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    Path("both.py").write_text(BOTH)
    return tmp_path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here (needs root)")
    yield mount
    subprocess.run(["umount", mount], check=True)


def vyre_run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "vyre.cli", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def load(path: str) -> np.ndarray:
    if path.endswith(".npy"):
        return np.load(path)
    if path.endswith(".bin"):
        return np.fromfile(path)
    open_ = pa.ipc.open_stream if path.endswith(".arrows") else pa.ipc.open_file
    with pa.memory_map(path) as file:
        return open_(file).read_all().column("value").to_numpy().copy()


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_what_its_name_says_and_nothing_is_left_beside_it(name: str) -> None:
    before = set(os.listdir())
    done = vyre_run("x*2", "x.npy", "--out", name, "--chunk", 50_000)
    assert done.returncode == 0, done.stderr
    assert load(name).tobytes() == (X * 2).tobytes()
    assert set(os.listdir()) - before == {name}
    with vyre.open("cpu") as session:
        session.run(vyre.expression("x*2", types={"x": "f64"}), "x.npy", out=name, chunk=70_000)
        assert load(name).tobytes() == (X * 2).tobytes()


def test_an_arrow_result_is_an_input_again() -> None:
    assert vyre_run("x*2", "x.npy", "--out", "r.arrow").returncode == 0
    with vyre.open("cpu") as session:
        again = session.run(vyre.expression("value/2", types={"value": "f64"}), value="r.arrow")
    assert again.value.tobytes() == X.tobytes()


@pytest.mark.parametrize("memory", [m for m in MemType if m is not MemType.bf16])
def test_every_type_but_bf16_goes_into_arrow_and_comes_back(memory: MemType) -> None:
    values = np.arange(10).astype(numpy_dtype(memory))
    with TableSink("t.arrow", [("v", memory)]) as sink:
        sink.write({"v": values})
        sink.write({"v": values[:0]})
        sink.write({"v": values[::3]})
    with pa.memory_map("t.arrow") as file:
        column = pa.ipc.open_file(file).read_all().column("v")
        assert column.null_count == 0
        assert np.array_equal(column.to_numpy(), np.concatenate([values, values[::3]]))
    with pytest.raises(BindError, match="no type whose values are bf16"):
        TableSink("b.arrow", [("v", MemType.bf16)])
    assert "b.arrow" not in os.listdir()
    assert not [name for name in os.listdir() if name.endswith(".partial")]


def test_all_outputs_of_a_program_are_the_columns_of_one_arrow_file() -> None:
    done = vyre_run(
        "both.py:both",
        "x.npy",
        "--out",
        "twice=t.arrow",
        "--out",
        "half=t.arrow",
        "--out",
        "row=e.arrow",
        "--out",
        "value=e.arrow",
    )
    assert done.returncode == 0, done.stderr
    with pa.memory_map("t.arrow") as file:
        table = pa.ipc.open_file(file).read_all()
        assert table.column_names == ["twice", "half"]
        assert table["half"].to_numpy().tobytes() == (X / 2).tobytes()
    with pa.memory_map("e.arrow") as file:
        table = pa.ipc.open_file(file).read_all()
        assert table["row"].to_numpy().tolist() == np.flatnonzero(X > 0.5).tolist()
    one = vyre.expression("x*2", types={"x": "f64"})
    with vyre.open("cpu") as session:
        session.run(one, "x.npy", out=Path("one.arrow"))
    assert load("one.arrow").tobytes() == (X * 2).tobytes()
    done = vyre_run("both.py:both", "x.npy", "--out", "all.arrow")
    assert done.returncode != 0
    assert b"columns of one table have one length" in done.stderr
    done = vyre_run("both.py:both", "x.npy", "--out", "twice=t.npy", "--out", "half=t.npy")
    assert b"go both to t.npy" in done.stderr
    assert "all.arrow" not in os.listdir()
    with pytest.raises(BindError, match="cannot both go there"):
        Sinks({"a": "t.npy", "b": "t.npy"}, {"a": MemType.f64, "b": MemType.f64})


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_said_and_leaves_neither_a_result_nor_a_part_of_one(small: Path, name: str) -> None:
    done = vyre_run("x*2", "x.npy", "--out", small / name)
    assert done.returncode == 5
    assert b"ENOSPC); nothing was left under that name" in done.stderr
    assert b"make room" in done.stderr
    assert b"Traceback" not in done.stderr
    assert os.listdir(small) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fills_with_the_last_bytes_leaves_nothing_either(small: Path, name: str) -> None:
    (small / "filler").write_bytes(bytes(900 << 10))
    left = os.statvfs(small)
    (small / "more").write_bytes(bytes(left.f_bavail * left.f_frsize - 8192))
    done = vyre_run("x*2", "x.npy", "--out", small / name)
    assert done.returncode == 5
    assert sorted(os.listdir(small)) == ["filler", "more"]


@pytest.mark.parametrize("words", [("--out", "/dev/full"), ("--out", "-")])
def test_a_device_without_room_is_an_error_and_stays_a_device(words: tuple[str, str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vyre.cli", "run", "x*2", "x.npy", *words],
            stdout=full if words[1] == "-" else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode == 5
    assert b"ENOSPC" in done.stderr
    assert not os.path.isfile("/dev/full")


def test_a_pipe_whose_reader_leaves_ends_the_run_with_a_sentence() -> None:
    command = f"{sys.executable} -m vyre.cli run 'x*2' x.npy --out - | head -c 8 | od -An -tf8; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert done.stdout.split()[-1] == b"5"
    assert b"standard output: cannot be written" in done.stderr
    assert b"ended early" in done.stderr
    assert b"Traceback" not in done.stderr


def test_standard_output_gets_the_elements_alone() -> None:
    done = vyre_run("x*2", "x.npy", "--out", "-")
    assert done.returncode == 0
    assert done.stdout == (X * 2).tobytes()
    assert b"engine cpu" in done.stderr


@pytest.mark.parametrize("name", ["r.npy", "r.arrow"])
def test_ctrl_c_in_the_middle_leaves_what_was_there_and_nothing_new(name: str) -> None:
    with open("zeros.f64", "wb") as file:
        file.truncate(64 << 30)  # sparse: more than anybody waits for
    Path(name).write_bytes(b"old")
    before = sorted(os.listdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "vyre.cli", "run", "x*2", "zeros.f64", "--type", "x=f64", "--out", name],
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 30
    while not any(entry.endswith(".partial") and os.stat(entry).st_size > 1 << 20 for entry in os.listdir()):
        assert time.monotonic() < until
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert time.monotonic() - began < 2
    assert process.returncode == 130
    assert b"interrupted" in said
    assert sorted(os.listdir()) == before
    assert Path(name).read_bytes() == b"old"


def test_a_fault_in_the_middle_leaves_no_result() -> None:
    k = np.ones(300_000, np.int32)
    k[250_000] = 0
    np.save("k.npy", k)
    for name in NAMES:
        done = vyre_run("7//k", "k.npy", "--out", name, "--chunk", 10_000)
        assert done.returncode == 1
        assert name not in os.listdir()
    assert not [entry for entry in os.listdir() if entry.endswith(".partial")]
    with vyre.open("cpu") as session:
        found = session.run(
            vyre.expression("7//k", types={"k": "i32"}), "k.npy", out="r.arrow", chunk=10_000, on_fault="report"
        )
    assert found.fault is not None
    assert "r.arrow" not in os.listdir()


def test_an_arrow_result_that_cannot_be_written_raises_the_error_of_the_disk(small: Path) -> None:
    sink = TableSink(small / "t.arrow", [("v", MemType.f64)])
    for _ in range(10):
        sink.write({"v": X[:10_000]})
    with pytest.raises(StreamError, match="ENOSPC"):
        sink.write({"v": X})
    assert os.listdir(small) == []


def test_a_terminal_sees_bytes_a_second_and_the_time_left_while_a_file_streams_and_a_pipe_sees_nothing() -> None:
    with open("zeros.f64", "wb") as file:
        file.truncate(8 << 30)
    command = [sys.executable, "-m", "vyre.cli", "run", "max(x)", "zeros.f64", "--type", "x=f64"]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(theirs)
    seen = b""
    try:
        while block := os.read(ours, 1 << 16):
            seen += block
    except OSError:  # the other side has gone
        pass
    os.close(ours)
    assert process.wait(30) == 0, seen
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen.decode())
    assert re.search(r"\d\.\d/8\.6 GB +\d+(\.\d+)? [GM]B/s +0:00:0\d", text), text
    piped = subprocess.run(command, capture_output=True, timeout=60)
    assert b"\x1b" not in piped.stderr + piped.stdout
    assert b"0:00:0" not in piped.stderr
