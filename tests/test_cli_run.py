"""``vyre run``: words of the command line to operands, results to table, JSON and files, faults to lines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from vyre.cli import main
from vyre.program.opcodes import MemType
from vyre.stream.formats import numpy_dtype

ENGINES = ("reference", "cpu")


def vyre(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run(*arguments: object) -> dict[str, Any]:
    """``vyre run ... --json``, parsed."""
    result = vyre("run", *arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with x.npy and y.npy, 5,000 doubles each, and the same x in two raw halves."""
    monkeypatch.chdir(tmp_path)
    x = np.arange(5_000, dtype=np.float64) / 4
    np.save("x.npy", x)
    np.save("y.npy", x[::-1].copy())
    x[:2_000].tofile("half1.f64")
    x[2_000:].tofile("half2.f64")
    return tmp_path


@pytest.mark.parametrize("engine", ENGINES)
def test_stats_over_a_file_that_needs_no_name(engine: str) -> None:
    answer = run("stats", "x.npy", "--engine", engine)
    x = np.load("x.npy")
    assert answer["results"] == {
        "count": 5_000, "sum": x.sum(), "min": 0.0, "max": x[-1], "sum_of_squares": (x * x).sum(),
    }  # fmt: skip
    assert answer["report"]["engine"] == engine
    assert sum(answer["report"]["bytes_by_way"].values()) == 40_000


@pytest.mark.parametrize("dtype", [t for t in MemType if t is not MemType.bf16], ids=lambda t: t.name)
def test_stats_takes_the_type_that_the_file_says(dtype: MemType) -> None:
    x = np.array([3, 1, 2], numpy_dtype(dtype))
    np.save("t.npy", x)
    results = run("stats", "t.npy", "--engine", "reference")["results"]
    expected = [3, int(x.sum()), int(x.min()), int(x.max()), int((x.astype(np.int64) ** 2).sum())]
    assert list(results.values()) == expected


def test_several_files_of_one_name_are_one_stream_in_the_order_given() -> None:
    whole = run("stats", "x.npy", "--engine", "reference")["results"]
    for words in (["x=half1.f64,half2.f64"], ["x=half1.f64", "x=half2.f64"], ["half1.f64", "half2.f64"]):
        assert run("stats", *words, "--engine", "reference")["results"] == whole
    Path("folder").mkdir()
    Path("half1.f64").rename("folder/a")
    Path("half2.f64").rename("folder/b")
    assert run("stats", "folder", "--engine", "reference")["results"] == whole


def test_a_path_with_a_comma_or_an_equals_sign_is_found() -> None:
    Path("half1.f64").rename("a,b.f64")
    assert run("stats", "x=a,b.f64", "--engine", "reference")["results"]["count"] == 2_000


@pytest.mark.parametrize("engine", ENGINES)
def test_an_expression_takes_its_types_from_its_files(engine: str) -> None:
    np.save("i.npy", np.arange(5_000, dtype=np.int32))
    run("2*x + i*k", "x=x.npy", "i=i.npy", "--param", "k=0.5", "--out", "r.npy", "--engine", engine)
    result = np.load("r.npy")
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, 2 * np.load("x.npy") + np.load("i.npy") * 0.5)


def test_an_expression_over_raw_files_asks_for_nothing_when_types_are_given() -> None:
    answer = run("x + 1", "x=half1.f64", "--type", "x=f64", "--engine", "reference")
    assert answer["results"]["value"]["elements"] == 2_000
    assert answer["results"]["value"]["values"][:3] == [1.0, 1.25, 1.5]
    assert answer["results"]["value"]["complete"] is False
    assert len(answer["results"]["value"]["values"]) == 1_000


@pytest.mark.parametrize("engine", ENGINES)
def test_histogram_counts_the_bytes_of_any_file(engine: str) -> None:
    answer = run("histogram", "x.npy", "--engine", engine)
    expected = np.bincount(np.frombuffer(Path("x.npy").read_bytes(), np.uint8), minlength=256)
    assert answer["results"]["counts"] == expected.tolist()
    table = vyre("run", "histogram", "x.npy", "--engine", engine).stdout
    assert f"256 bins, {expected.sum():,} counted" in table
    assert "most frequent bins" in table


@pytest.mark.parametrize("chunk", [1, 1_024, 5_000, 10**9])
def test_the_result_does_not_depend_on_the_chunk(chunk: int) -> None:
    whole = run("stats", "x.npy", "--engine", "reference")["results"]
    assert run("stats", "x.npy", "--engine", "reference", "--chunk", chunk)["results"] == whole


def test_a_function_of_a_file_is_run_with_its_parameters() -> None:
    Path("mine.py").write_text(
        "import vyre\n\n\n"
        "@vyre.program\n"
        "def big(x: vyre.f64, *, limit: vyre.f64):\n"
        "    vyre.count(n=x > limit)\n"
        "    if x > limit:\n"
        "        vyre.emit(big=x)\n"
    )
    answer = run("mine.py:big", "x.npy", "--param", "limit=1249", "--out", "big.npy", "--engine", "reference")
    assert answer["results"]["n"] == 3
    assert answer["results"]["big"] == {"kind": "emit", "dtype": "f64", "elements": 3, "path": "big.npy"}
    assert np.load("big.npy").tolist() == [1249.25, 1249.5, 1249.75]


def test_a_fault_names_file_line_element_and_operands_and_shows_the_line() -> None:
    Path("mine.py").write_text("import vyre\n\n\n@vyre.program\ndef f(x: vyre.i32):\n    return 100 // (x - 7)\n")
    np.arange(2_000, dtype=np.int32).tofile("i.raw")
    result = vyre("run", "mine.py:f", "i.raw", "--out", "r.npy", "--engine", "reference")
    assert result.exit_code == 1
    message, line, *_ = result.stderr.splitlines()
    assert "mine.py:6: integer divide by zero" in message
    assert "element 7" in message
    assert line == "    return 100 // (x - 7)"
    assert not Path("r.npy").exists(), "a faulted run leaves no file"
    assert not [p for p in Path().iterdir() if p.name.startswith(".r.npy")]


@pytest.mark.parametrize("text", ["sqrt(x)", "x*2+1e3", "where(x > 1, x, 0.5)", "(x > 1) & (x < 9) | ~(x == 5)"])
def test_the_one_name_of_an_expression_takes_the_bare_paths_and_their_type(text: str) -> None:
    np.save("f.npy", np.arange(10, dtype=np.float32))
    answer = run(text, "f.npy", "--engine", "reference")
    assert answer["results"]["value"]["elements"] == 10
    assert answer["results"]["value"]["dtype"] in ("f32", "bool")


def test_a_fault_of_a_listing_shows_its_line_also_when_it_was_assembled() -> None:
    Path("t.vir").write_text(
        "input x i32\noutput y i32\n    i32.load r0, x\n    i32.const r1, 7\n    i32.sub r2, r0, r1\n"
        "    i32.const r3, 100\n    i32.div_s r4, r3, r2  ; here\n    i32.store y, r4\n    return\n"
    )
    np.arange(2_000, dtype=np.int32).tofile("i.raw")
    assert vyre("asm", "t.vir").exit_code == 0
    for program in ("t.vir", "t.virb"):
        result = vyre("run", program, "i.raw")
        assert result.exit_code == 1, result.output
        message, line, *_ = result.stderr.splitlines()
        assert message.startswith("error: t.vir:7: integer divide by zero (pc 4, element 7")
        assert line == "    i32.div_s r4, r3, r2  ; here"


def test_an_endless_loop_ends_out_of_fuel() -> None:
    Path("loop.vir").write_text(
        "fuel 100000\ninput x f64\noutput y f64\n    f64.load r0, x\n    i32.const r1, 1\n    loop\n    br_if r1\n    end\n"
        "    f64.store y, r0\n    return\n"
    )
    result = vyre("run", "loop.vir", "half1.f64")
    assert result.exit_code == 1
    assert "loop.vir:7: out of fuel" in result.stderr


def test_raw_output_and_standard_output_get_the_elements_alone() -> None:
    run("x*2", "x.npy", "--out", "r.raw", "--engine", "reference")
    expected = (np.load("x.npy") * 2).tobytes()
    assert Path("r.raw").read_bytes() == expected
    command = [sys.executable, "-m", "vyre.cli", "run", "x*2", "x.npy", "--out", "-", "--engine", "reference"]
    piped = subprocess.run(command, capture_output=True, timeout=60)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == expected


def test_an_empty_file_gives_the_identities() -> None:
    Path("empty.f64").touch()
    results = run("stats", "empty.f64", "--engine", "reference")["results"]
    assert results == {"count": 0, "sum": 0.0, "min": "inf", "max": "-inf", "sum_of_squares": 0.0}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("stats", "missing.npy"), 5, "missing.npy"),
        (("stats",), 2, "input x"),
        (("stats", "z=x.npy"), 2, "stats has no input 'z'"),
        (("q6", "x.npy"), 2, "q6 has 4 inputs"),
        (("stats", "x.npy", "y=y.npy"), 2, "has no name, others have one"),
        (("q6", "shipdate=x.npy", "discount=x.npy", "quantity=x.npy", "price=x.npy"), 2, "'shipdate' of type f64"),
        (("x*k", "x=x.npy", "--param", "k=abc"), 2, "'abc' is no number"),
        (("x*k", "x=x.npy", "--param", "k"), 2, "not NAME=VALUE"),
        (("x*k", "x=x.npy", "--param", "k=1", "--param", "k=2"), 2, "given twice"),
        (("x*k", "x=x.npy"), 3, "unknown name 'k'"),
        (("x+y", "x=x.npy", "y=half1.f64", "--type", "y=f64"), 2, "5000"),
        (("stats", "x.npy", "--out", "r.npy"), 2, "its results are accumulators"),
        (("x*2", "x.npy", "--out", "z=r.npy"), 2, "no output or emit 'z'"),
        (("x*2", "x.npy", "--out", "missing/r.npy"), 5, "missing/r.npy: cannot be written"),
        (("x*2", "x.npy", "--out", "/dev/full"), 5, "No space left"),
        (("stats", "x.npy", "--chunk", "0"), 2, "--chunk"),
        (("stats", "x.npy", "--engine", "gpu"), 2, "'gpu' is not one of"),
        (("stats", "x.npy", "--io", "fast"), 2, "'fast' is not one of"),
        (("stats", "x.npy", "--elements", "5"), 2, "has inputs"),
        (("stats", "x.npy", "--engine", "cuda"), (0, 4), ""),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) and v and isinstance(v[0], str) else "",
)
def test_what_does_not_fit_is_refused_in_words(words: tuple[str, ...], code: int | tuple[int, ...], says: str) -> None:
    engine = () if "--engine" in words else ("--engine", "reference")
    result = vyre("run", *words, *engine)
    assert result.exit_code in (code if isinstance(code, tuple) else (code,)), result.output
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert not Path("r.npy").exists()


def test_a_file_cut_inside_an_element_is_refused_with_what_is_left_over() -> None:
    Path("cut.f64").write_bytes(Path("half1.f64").read_bytes()[:-3])
    result = vyre("run", "stats", "cut.f64", "--engine", "reference")
    assert result.exit_code == 5
    assert "5 left over" in result.stderr


def test_ctrl_c_in_the_middle_of_a_stream_ends_within_a_second_with_a_clear_message(here: Path) -> None:
    with open("sparse.f64", "wb") as file:
        file.truncate(64 << 30)
    command = [sys.executable, "-m", "vyre.cli", "run", "stats", "sparse.f64", "--engine", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(2.5)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - start < 1.0
    assert process.returncode == 130, stderr
    assert stderr.strip().endswith("interrupted")
    assert "Traceback" not in stderr


def test_results_go_to_standard_output_and_everything_else_to_standard_error() -> None:
    result = vyre("run", "stats", "x.npy", "--engine", "reference")
    assert result.stdout.splitlines()[0].split() == ["result", "value"]
    assert "engine reference: 5,000 elements" in result.stderr
    assert "engine reference" not in result.stdout


def test_a_column_of_a_file_with_several_is_named_behind_a_colon_or_by_its_input() -> None:
    points = np.random.default_rng(1).random((300, 4))
    np.save("points.npy", points)
    trades = np.zeros(300, [("price", "f8"), ("size", "i4"), ("x", "f4")])
    trades["price"], trades["size"], trades["x"] = points[:, 0], np.arange(300), 1
    np.save("trades.npy", trades)
    assert run("max(x)", "points.npy:2")["results"] == {"value": points[:, 2].max()}
    assert run("max(a-b)", "a=points.npy:2", "b=points.npy:0")["results"] == {
        "value": (points[:, 2] - points[:, 0]).max()
    }
    assert run("max(x)", "trades.npy:price")["results"] == {"value": points[:, 0].max()}
    assert run("max(x)", "x=trades.npy:price,trades.npy:price")["report"]["elements"] == 600
    answer = run("sum(x)", "trades.npy")  # the column of the input's name
    assert answer["results"] == {"value": 300.0}
    assert answer["report"]["copies"] == {"fields taken out of rows": 300 * 4}
    Path("both.py").write_text(
        "import vyre\n@vyre.program\ndef both(price: vyre.f64, size: vyre.i32) -> None:\n    vyre.sum(total=price * size)\n"
    )
    total = run("both.py:both", "trades.npy")["results"]["total"]
    assert total == run("sum(price*size)", "price=trades.npy:price", "size=trades.npy:1")["results"]["value"]
    Path("odd:name").write_bytes(points[:, 1].tobytes())
    assert run("max(x)", "odd:name", "--type", "x=f64")["results"] == {"value": points[:, 1].max()}


def test_columns_that_are_not_there_are_refused_with_those_that_are() -> None:
    np.save("points.npy", np.ones((300, 4)))
    for words, say in [
        (("max(x)", "points.npy:9", "--type", "x=f64"), "the columns are 0 to 3"),
        (("max(x)", "points.npy:1", "points.npy:2"), "files of one input give the same column"),
        (("q6", "points.npy"), "has no name, and q6 has 4 inputs"),
        (("histogram", "points.npy:1"), "the whole file is taken here"),
    ]:
        result = vyre("run", *words)
        assert result.exit_code != 0
        assert say in " ".join(result.stderr.split())
