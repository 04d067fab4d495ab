"""The documentation names things that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_each_decision_has_a_number_of_its_own_which_its_page_carries() -> None:
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        assert page.read_text(encoding="utf-8").startswith(f"# {int(page.name[:4])}. "), page.name


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w/]+(?:\.py|/))`", text))
    assert len(names) > 30
    known = [str(path.relative_to(ROOT / "src/vyre")) for path in (ROOT / "src/vyre").rglob("*.py")]
    known += [f"{path.relative_to(ROOT / 'src/vyre')}/" for path in (ROOT / "src/vyre").rglob("*") if path.is_dir()]
    missing = [name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in known)]
    assert not missing


def test_the_two_commands_of_the_readme_are_those_of_ci() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/vyre demo\n" in readme
    assert "python3 -m venv .venv && .venv/bin/pip install -q '.[dev]' && .venv/bin/pytest\n" in readme
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for step in ("python3 -m venv .venv", ".venv/bin/pip install -q '.[dev]'", ".venv/bin/pytest"):
        assert step in ci
