"""The schema of measured figures, and what ``vyre bench`` makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vyre.bench.schema import Row, machine, read, spread, write
from vyre.cli import main
from vyre.commands.bench import BEGIN, END, page_block, readme_block
from vyre.errors import BindError, StreamError

ROOT = Path(__file__).parent.parent


def row(name: str = "latency", value: float = 1.2, target: str = "<= 1.5", **more: Any) -> Row:
    fields = {"unit": "us", "peer": {"NumPy": 1.8}, "machine": "a box", "commit": "abc", "spread": 0.03}
    return Row(name, value, target=target, **{**fields, **more})


def test_rows_come_back_from_their_file_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(), row("other", must=True, reason="because", points={"vyre": [[1, 0.5]]})]
    write(tmp_path / "deep" / "a.json", rows)
    assert read(tmp_path / "deep") == rows
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "a.json"]


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [("<= 1.5", 1.5, True), ("<= 1.5", 1.51, False), (">= 0.9", 0.9, True), (">= 0.9", 0.89, False), ("", 7, None)],
)
def test_a_target_is_met_or_missed_or_not_there(target: str, value: float, met: bool | None) -> None:
    assert row(value=value, target=target).met is met


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("target", "< 1"),
        ("target", "<= fast"),
        ("value", "1"),
        ("value", True),
        ("unit", ""),
        ("peer", {"NumPy": "1"}),
        ("spread", None),
        ("must", 1),
        ("loaded", 1),
        ("machine", None),
    ],
)
def test_a_field_that_breaks_the_schema_is_refused_with_row_field_and_value(field: str, bad: Any) -> None:
    with pytest.raises(BindError, match=f"result 'latency': {field} is"):
        row(**{field: bad})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nonsense", StreamError),
        ("{}", BindError),
        ("[1]", BindError),
        ('[{"row": "x"}]', BindError),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused_by_its_name(tmp_path: Path, text: str, error: type) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(error, match=r"bad\.json"):
        read(tmp_path)


def test_one_name_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [row()])
    write(tmp_path / "b.json", [row()])
    with pytest.raises(BindError, match="'latency' is also in another file"):
        read(tmp_path)


def test_the_committed_results_keep_the_schema() -> None:
    read(ROOT / "benchmarks" / "results")


def test_spread_is_half_the_quartile_distance_over_the_median() -> None:
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(1 / 3)
    assert spread([1, 2]) == 0


def test_the_machine_is_one_line_that_names_its_cores() -> None:
    assert "cores" in machine()
    assert "\n" not in machine()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        row("fast", 1.0, "<= 1.5", must=True),
        row("slow", 9.0, "<= 1.5", reason="the disk | is slow"),
        row("stated", 3.0, ""),
    ]
    write(tmp_path / "results" / "a.json", rows)
    return tmp_path / "results"


def test_bench_prints_every_figure_with_its_verdict_and_reason(results: Path) -> None:
    run = CliRunner().invoke(main, ["bench", "--results", str(results)])
    assert run.exit_code == 0, run.output
    lines = {line.split()[0]: line for line in run.stdout.splitlines() if line}
    assert "met" in lines["fast"]
    assert "NumPy 1.80" in lines["fast"]
    assert "MISSED" in lines["slow"]
    assert "slow: the disk | is slow" in run.stdout
    assert "a box; commit abc" in run.stdout


def test_bench_check_fails_only_when_a_required_row_is_missed(results: Path) -> None:
    run = CliRunner().invoke(main, ["bench", "--check", "--results", str(results)])
    assert (run.exit_code, run.stderr) == (0, "1 met, 1 missed (0 of them required)\n")
    write(results / "b.json", [row("required", 9.0, "<= 1.5", must=True)])
    run = CliRunner().invoke(main, ["bench", "--check", "--results", str(results)])
    assert (run.exit_code, run.stderr) == (1, "1 met, 2 missed (1 of them required)\n")


def test_a_figure_from_a_loaded_machine_is_marked_in_the_table_and_in_the_readme(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [row(loaded=True, must=True), row("other")])
    assert "±3 % †" in CliRunner().invoke(main, ["bench", "--results", str(tmp_path)]).stdout
    block = readme_block(read(tmp_path))
    assert block.count("±3 % †") == 1
    assert "† taken while other processes used the machine." in block


def test_bench_prints_json_for_programs(results: Path) -> None:
    run = CliRunner().invoke(main, ["bench", "--json", "--results", str(results)])
    assert [each["met"] for each in json.loads(run.stdout)] == [True, False, None]


def test_bench_without_results_says_where_it_looked(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["bench", "--results", str(tmp_path / "nowhere")])
    assert run.exit_code == 5
    assert f"no folder {tmp_path / 'nowhere'}" in run.stderr
    assert "fix: run this in a checkout" in run.stderr


def test_the_readme_block_is_put_between_its_markers_and_nothing_else_changes(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    Path("docs").mkdir()
    Path("docs/figures.md").write_text(f"{BEGIN}\n{END}\n")
    run = CliRunner().invoke(main, ["bench", "--readme", "--write", "--results", str(results)])
    assert run.exit_code == 0, run.output
    text = Path("README.md").read_text()
    assert text.startswith("before\n" + BEGIN)
    assert text.endswith(END + "\nafter\n")
    assert "old" not in text
    page = Path("docs/figures.md").read_text()
    assert "the disk | is slow" in page
    assert "the disk | is slow" not in text  # README has what has to be met
    assert "| fast * | 1.00 us | <= 1.5 | met | NumPy 1.80 | ±3 % |" in text


def test_the_readme_and_its_page_carry_the_figures_that_were_measured() -> None:
    rows = read(ROOT / "benchmarks" / "results")
    assert readme_block(rows) in (ROOT / "README.md").read_text()
    assert page_block(rows) in (ROOT / "docs" / "figures.md").read_text()


def test_the_picture_is_drawn_from_rows_with_points(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = {"vyre cpu": [[1, 1e-4], [1000, 2e-4]], "NumPy": [[1, 1e-5], [1000, 1e-3]]}
    other = row("another thing", points={"seconds by batch": [[1, 1e-9]]})  # no series of ours: another picture's
    write(tmp_path / "a.json", [row(points=points), other])
    run = CliRunner().invoke(main, ["bench", "--results", str(tmp_path), "--plot", str(tmp_path / "new.svg")])
    assert run.exit_code == 0, run.output
    picture = (tmp_path / "new.svg").read_text()
    assert "<svg" in picture
    assert "by batch" not in picture


def test_the_picture_has_a_place_of_its_own_when_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r" / "a.json", [row(points={"vyre cpu": [[1, 1e-4]]})])
    assert CliRunner().invoke(main, ["bench", "--results", "r", "--plot"]).exit_code == 0
    assert Path("docs/new-formula.svg").exists()
    block = CliRunner().invoke(main, ["bench", "--results", "r", "--readme"]).stdout
    assert "](docs/new-formula.svg)" in block


def test_nothing_to_draw_is_said(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = CliRunner().invoke(main, ["bench", "--results", str(results), "--plot", str(tmp_path / "x.svg")])
    assert run.exit_code == 5
    assert "no result has points" in run.stderr


def test_measuring_outside_a_checkout_or_what_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["bench", "--run"]).exit_code == 5
    Path("benchmarks").mkdir()
    Path("benchmarks/bench_thing.py").write_text(
        "import json, sys\n"
        "row = dict(row='r', value=1, unit='x', target='', peer={}, machine='m', commit='c', spread=0)\n"
        "assert sys.argv[1] == '--out'\n"
        "open(sys.argv[2], 'w').write(json.dumps([row]))\n"
    )
    run = CliRunner().invoke(main, ["bench", "--run", "nothing"])
    assert (run.exit_code, "there are thing" in run.stderr) == (2, True)
    Path("benchmarks/results").mkdir()
    run = CliRunner().invoke(main, ["bench", "--run", "thing", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)[0]["row"] == "r"
