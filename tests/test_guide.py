"""The guide's code blocks and the examples do what they say."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from vyre.stream.arrow import SUFFIXES
from vyre.stream.plan import Io, Rung

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", ["guide", "bytes"])
def test_the_blocks_of_a_page_run_in_order(tmp_path, monkeypatch, name):
    if name == "bytes":
        pytest.importorskip("pyarrow")
    page = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", page)
    assert len(blocks) >= 7
    script = tmp_path / f"{name}.py"
    script.write_text("\n\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")


def test_the_page_about_bytes_names_every_way_in_every_io_and_every_suffix():
    page = (ROOT / "docs/bytes.md").read_text(encoding="utf-8")
    assert [rung.value for rung in Rung if f"| `{rung.value}` |" not in page] == []
    for rung in Rung:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{rung.value}` |"))
        assert row.split("|")[4].strip().startswith("1" if rung.copies else "0"), row
    assert [suffix for suffix in (".npy", *SUFFIXES) if f"`{suffix}`" not in page] == []
    assert [io for io in get_args(Io) if f'io="{io}"' not in page] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_checks_its_answer(example, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")


def test_the_examples_pass_mypy_strict():
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", *map(str, EXAMPLES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
