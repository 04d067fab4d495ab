"""``vyre bench``: what was measured, against its targets and its peers. Measuring is done by benchmarks/bench_*.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vyre.commands import exits, show
from vyre.errors import EngineUnavailable, StreamError

if TYPE_CHECKING:
    from vyre.bench.schema import Row

BEGIN: Final = "<!-- figures: printed by `vyre bench --readme`, do not edit -->"
END: Final = "<!-- end of figures -->"
PICTURE: Final = "docs/new-formula.svg"
README: Final = Path("README.md")
PAGE: Final = Path("docs/figures.md")
"""Every figure; README.md carries those that have to be met."""
LOADED: Final = "† taken while other processes used the machine."


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--run", is_flag=True, help="measure first: run benchmarks/bench_NAME.py, all of them without a NAME")
@click.option("--check", is_flag=True, help="say met or missed for every target; exit 1 when a required one is missed")
@click.option("--readme", is_flag=True, help=f"print the figures that README.md carries; {PAGE} has all")
@click.option("--write", is_flag=True, help=f"with --readme: put them into ./README.md and ./{PAGE}")
@click.option(
    "--plot",
    is_flag=False,
    flag_value=PICTURE,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="[FILE]",
    help=f"draw the picture on top of the README  [default file: {PICTURE}]",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results"),
    show_default=True,
    help="folder of the result files",
)
@click.option("--json", "json_", is_flag=True, help="print JSON")
@click.pass_context
def command(
    ctx: click.Context,
    names: tuple[str, ...],
    run: bool,
    check: bool,
    readme: bool,
    write: bool,
    plot: Path | None,
    results: Path,
    json_: bool,
) -> None:
    """Print, check or draw the figures in benchmarks/results, losses included.

    Without options: a table of every figure beside its target and its peers.
    """
    from dataclasses import asdict

    from vyre.bench import schema

    if names and not run:
        raise click.UsageError("names choose what --run measures; without --run they have no meaning")
    if write and not readme:
        raise click.UsageError("--write belongs to --readme")
    if run:
        _measure(names, results)
    rows = schema.read(results)
    if plot is not None:
        from vyre.bench.plot import draw

        draw(rows, plot)
        show.note(f"drew {plot}")
    if readme:
        if write:
            _put_into(README, readme_block(rows))
            _put_into(PAGE, page_block(rows))
        else:
            click.echo(readme_block(rows))
    elif json_:
        show.as_json([{**asdict(row), "met": row.met} for row in rows])
    elif plot is None:
        show.table("", ("what", "value", "target", "", "beside", "spread"), [_cells(row) for row in rows], right=(1, 2))
        _footnotes(rows)
    if check:
        missed = [row for row in rows if row.met is False]
        required = [row for row in missed if row.must]
        met = sum(row.met is True for row in rows)
        show.note(f"{met} met, {len(missed)} missed ({len(required)} of them required)")
        ctx.exit(exits.FAILED.code if required else exits.OK.code)


def _measure(names: Sequence[str], results: Path) -> None:
    folder = Path("benchmarks")
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}
    if not scripts:
        raise StreamError(f"no benchmarks/bench_*.py below {Path.cwd()}", fix="run this in a checkout of the project")
    for name in names:
        if name not in scripts:
            raise click.UsageError(f"no benchmark is called {name!r}; there are {', '.join(scripts)}")
    for name in names or scripts:
        show.note(f"measuring {name} ...")
        done = subprocess.run([sys.executable, str(scripts[name]), "--out", str(results / f"{name}.json")])
        if done.returncode:
            raise EngineUnavailable(f"{scripts[name]} ended with exit code {done.returncode}")


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    beside = ", ".join(f"{name} {show.number(value)}" for name, value in row.peer.items())
    star = " *" if row.must else ""
    return (
        row.row + star,
        f"{show.number(row.value)} {row.unit}",
        row.target,
        verdict,
        beside,
        f"±{100 * row.spread:.0f} %" + (" †" if row.loaded else ""),
    )


def _footnotes(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.reason:
            click.echo(f"{row.row}: {row.reason}")
    for place in dict.fromkeys((row.machine, row.commit) for row in rows):
        click.echo(f"{place[0]}; commit {place[1]}")
    if any(row.must for row in rows):
        click.echo("* has to be met")
    if any(row.loaded for row in rows):
        click.echo(LOADED)


def readme_block(rows: Sequence[Row]) -> str:
    """The figures that have to be met, as Markdown between two markers, under the picture."""
    picture = [f"![A new formula: time to its answer]({PICTURE})", ""] if any(row.points for row in rows) else []
    rest = ["", f"All {len(rows)} figures, the losses among them: [{PAGE}]({PAGE})."] if rows else []
    return _block([row for row in rows if row.must], picture, rest)


def page_block(rows: Sequence[Row]) -> str:
    """Every figure, likewise, for a page of its own."""
    return _block(rows, [], [])


def _block(rows: Sequence[Row], before: Sequence[str], behind: Sequence[str]) -> str:
    """A pipe inside a cell is escaped."""
    lines = [BEGIN, "", *before, "| what | value | target | | beside | spread |", "|---|---:|---:|---|---|---:|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in rows]
    lines += ["", *(f"- {row.row}: {row.reason}" for row in rows if row.reason)]
    places = dict.fromkeys((row.machine, row.commit) for row in rows)
    lines += ["", *(f"Measured on {machine}; commit {commit}." for machine, commit in places)]
    if any(row.loaded for row in rows):
        lines += ["", LOADED]
    if not rows and not before:
        lines = [BEGIN, "", "Nothing has been measured yet."]
    return "\n".join([*lines, *behind, "", END])


def _put_into(path: Path, block: str) -> None:
    text = path.read_text(encoding="utf-8")
    start, end = text.find(BEGIN), text.find(END)
    if not 0 <= start < end:
        raise StreamError(f"{path}: has no block between the markers", fix=f"put these two lines in:\n{BEGIN}\n{END}")
    path.write_text(text[:start] + block + text[end + len(END) :], encoding="utf-8")
    show.note(f"wrote the figures into {path}")
