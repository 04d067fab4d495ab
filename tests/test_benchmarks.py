"""Every benchmark runs in its tiny version: its paths work, its answers are checked, its rows keep the schema.

Says nothing about speed. Peers that are not installed are left out, as for any user.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vyre.bench.schema import read

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("bench_*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_tiny_version_checks_its_answers_and_writes_rows_of_the_schema(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--out", str(tmp_path / "results" / "x.json")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "results")
    assert rows
    assert all(row.value > 0 for row in rows)
    assert script.stem.removeprefix("bench_") in done.stdout.splitlines()[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_opens_with_what_it_shows_and_what_it_does_not(script: Path) -> None:
    opening = script.read_text().split('"""')[1]
    assert "\nShows: " in opening
    assert "\nDoes not show: " in opening


def test_there_is_a_benchmark_for_every_row_that_is_asked_for() -> None:
    assert {path.stem.removeprefix("bench_") for path in SCRIPTS} >= {
        "first_result", "known_program", "ring_batch", "formulas", "query6", "hot_sum", "cold_sum", "memory", "startup",
        "gil_hog", "ranges",
        "crossover",
    }  # fmt: skip
