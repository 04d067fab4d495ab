"""``vyre demo``: the data set is written once and whole, the answers are checked for good reason, figures are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from vyre.cli import main
from vyre.commands import demo, demo_data
from vyre.engines.reference import execute
from vyre.errors import StreamError
from vyre.programs import q6

ENGINES = ("reference", "cpu")
ROWS = 30_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_data.write(tmp_path_factory.mktemp("demo"), ROWS)


def vyre_demo(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["demo", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_columns_have_the_shape_of_lineitem(folder: Path) -> None:
    columns = {name: np.load(path) for name, path in demo_data.columns_of(folder).items()}
    assert {name: (a.dtype, a.shape) for name, a in columns.items()} == {
        "shipdate": (np.int32, (ROWS,)),
        "discount": (np.float64, (ROWS,)),
        "quantity": (np.float64, (ROWS,)),
        "price": (np.float64, (ROWS,)),
    }
    assert 8_036 <= columns["shipdate"].min() < 8_050
    assert 10_540 < columns["shipdate"].max() <= 10_561
    assert set(columns["discount"]) == {k / 100 for k in range(11)}
    assert set(columns["quantity"]) == set(range(1, 51))
    cents = columns["price"] * 100
    assert np.abs(cents - cents.round()).max() < 1e-6
    assert columns["price"].min() >= 900


def test_rows_are_the_same_whatever_is_made_before_them_and_differ_from_chunk_to_chunk() -> None:
    first, again = demo_data.make_rows(0, 1_000), demo_data.make_rows(0, 1_000)
    other = demo_data.make_rows(demo_data.CHUNK, 1_000)
    for name in demo_data.COLUMNS:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()


def test_a_data_set_is_written_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = demo_data.write(tmp_path, 5_000, lambda done, total: seen.append((done, total)))
    assert seen == [(5_000 * 28, 5_000 * 28)]
    stamps = [path.stat().st_mtime_ns for path in folder.iterdir()]
    assert demo_data.write(tmp_path, 5_000) == folder
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == stamps
    assert list(tmp_path.iterdir()) == [folder]


def test_a_writer_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo_data.write(tmp_path, 5_000, stop)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"MB free, the data set needs .* MB") as error:
        demo_data.write(tmp_path, 10**12)
    assert "--rows" in error.value.fix
    assert list(tmp_path.iterdir()) == []


def test_the_expected_fold_is_the_references_bit_for_bit(folder: Path) -> None:
    columns = [np.load(path) for path in demo_data.columns_of(folder).values()]
    result = execute(q6(), columns, [8_766, 9_131], [], 0, ROWS)
    right = demo_data.answers(folder)
    assert float(result.accumulators[0]).hex() == right.folded.hex()
    assert int(result.accumulators[1]) == right.orders > 0
    assert abs(right.revenue - right.folded) <= right.bound
    assert right.counts.sum() == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_demo_prints_engine_way_speed_and_checked_answers(tmp_path: Path, engine: str) -> None:
    result = vyre_demo("--rows", ROWS, "--dir", tmp_path, "--engine", engine)
    assert result.exit_code == 0, result.output
    q6_row = next(line for line in result.stdout.splitlines() if line.startswith("q6 "))
    assert engine in q6_row
    assert q6_row.split()[-1] == "right"
    assert "GB/s" in result.stdout
    assert "first result" in result.stdout
    assert "Bit for bit what the prescribed order gives: yes" in result.stdout
    assert "256 counts equal NumPy's" in result.stdout
    assert str(tmp_path) in result.stderr
    assert f"remove it with: vyre demo --remove --dir {tmp_path}" in result.stderr
    again = vyre_demo("--rows", ROWS, "--dir", tmp_path, "--engine", engine, "--json")
    assert "written before" in again.stderr
    answer = json.loads(again.stdout)
    assert [each["program"] for each in answer["runs"]] == ["q6", "q6", "histogram", "histogram"]
    assert {each["wrong"] for each in answer["runs"]} == {""}
    assert answer["runs"][0]["report"]["elements"] == ROWS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"orders": 1}, "orders"),
        ({"revenue": 1.0}, "further apart"),
        ({"folded": 1.0}, "prescribed order"),
    ],
)
def test_a_wrong_answer_of_query_6_is_found(folder: Path, change: dict[str, Any], says: str) -> None:
    right = demo_data.answers(folder)
    results = {"revenue": right.folded, "orders": right.orders}
    assert demo._check_q6((results, None), right).wrong == ""  # type: ignore[arg-type]
    assert says in demo._check_q6((results, None), right._replace(**change)).wrong  # type: ignore[arg-type]


def test_a_wrong_count_and_a_nan_are_found(folder: Path) -> None:
    right = demo_data.answers(folder)
    counts = right.counts.copy()
    counts[7] += 1
    assert "1 of 256 counts" in demo._check_histogram(({"counts": counts}, None), right).wrong  # type: ignore[arg-type]
    results = {"revenue": float("nan"), "orders": right.orders}
    assert demo._check_q6((results, None), right).wrong  # type: ignore[arg-type]


def test_a_wrong_answer_ends_in_1_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = demo_data.answers
    monkeypatch.setattr(demo_data, "answers", lambda *a: answers(*a)._replace(orders=7))
    result = vyre_demo("--rows", 2_000, "--dir", tmp_path, "--engine", "reference")
    assert result.exit_code == 1
    assert "WRONG" in result.stdout
    assert "error: q6 chose" in result.stderr


def test_remove_takes_away_data_sets_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = tmp_path / "vyre" / "demo"
    demo_data.write(home, 1_000)
    (home / ".writing-lineitem-5-1-77").mkdir()
    (home / "mine.txt").write_text("mine")
    assert "removed 2 data sets" in vyre_demo("--remove").stdout
    assert [path.name for path in home.iterdir()] == ["mine.txt"]
    (home / "mine.txt").unlink()
    vyre_demo("--remove")
    assert not home.exists()
    assert "removed 0 data sets" in vyre_demo("--remove").stdout


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = vyre_demo("--rows", 10, "--dir", tmp_path / "file" / "x", "--engine", "reference")
    assert result.exit_code == 5
    assert "fix: choose another folder with --dir" in result.stderr
