"""``vyre demo``: the main job on one screen: data, two programs over it, answers checked, figures.

Owns: the order of events and the table. Leaves to others: data and right answers (demo_data), execution (vyre.open).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vyre.commands import exits, show
from vyre.commands.engines import engine_option, io_option, session_for_files
from vyre.errors import StreamError

if TYPE_CHECKING:
    from vyre.commands.demo_data import Answers
    from vyre.program.ir import Program
    from vyre.runtime.result import Report
    from vyre.runtime.session import Session

DEFAULT_ROWS = 10_000_000


class Ran(NamedTuple):
    """One run of one program over the data set: its results, its report, and what the checks say ("" where all is well)."""

    program: str
    results: dict[str, Any]
    report: Report
    wrong: str


@click.command()
@click.option(
    "--rows", type=click.IntRange(min=1), default=DEFAULT_ROWS, show_default=True, metavar="N", help="28 bytes each"
)
@click.option(
    "--dir",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="keep the data set there  [default: the cache directory]",
)
@engine_option()
@io_option
@click.option("--remove", is_flag=True, help="remove the data sets and do nothing else")
@click.option("--json", "json_", is_flag=True, help="print JSON")
@click.pass_context
def command(ctx: click.Context, rows: int, root: Path | None, engine: str, io: str, remove: bool, json_: bool) -> None:
    """Write a data set of the shape of TPC-H's lineitem, once; stream query 6 and a byte histogram over it; check
    both answers against NumPy; print engine, way of the bytes, speed and time to the first result."""
    home = root if root is not None else _home()
    if remove:
        _remove(home)
        return
    from vyre.commands import demo_data

    folder = _write(home, rows, again="" if root is None else f" --dir {root}")
    opened = time.perf_counter()
    from vyre.programs import SHIPPED
    from vyre.stream.formats import Column

    columns = {name: str(path) for name, path in demo_data.columns_of(folder).items()}
    with session_for_files(engine, io) as (session, choice):
        ready_s = time.perf_counter() - opened
        show.note(f"engine:   {choice}")
        query, bytes_ = SHIPPED["q6"]({}), SHIPPED["histogram"]({})
        whole = {"x": Column(list(columns.values()), "u8", format="raw")}
        queries = [_run(session, query, columns) for _ in range(2)]
        counts = [_run(session, bytes_, whole) for _ in range(2)]
    with show.progress("checking against NumPy", bytes_=True) as bar:
        right = demo_data.answers(folder, bar)
    ran = [_check_q6(each, right) for each in queries] + [_check_histogram(each, right) for each in counts]
    if json_:
        show.as_json(
            {
                "rows": rows,
                "folder": folder,
                "ready_s": ready_s,
                "runs": [
                    {"program": r.program, "results": r.results, "report": r.report.as_dict(), "wrong": r.wrong}
                    for r in ran
                ],
            }
        )
    else:
        _print(ran, right, ready_s, folder)
    if any(each.wrong for each in ran):
        ctx.exit(exits.FAILED.code)


def _home() -> Path:
    from vyre.store import platform_cache_dir

    cache = platform_cache_dir()
    if cache is None:
        raise StreamError("this user has no cache directory (HOME is not set)", fix="name a folder with --dir")
    return cache / "demo"


def _remove(home: Path) -> None:
    """Remove every data set below ``home``, complete or not, and nothing else that may lie there."""
    found = [path for pattern in ("lineitem-*-*", ".writing-lineitem-*") for path in home.glob(pattern)]
    size = sum(file.stat().st_size for path in found for file in path.iterdir())
    for path in found:
        shutil.rmtree(path)
    if home.is_dir() and not any(home.iterdir()):
        home.rmdir()
    click.echo(f"removed {len(found)} data sets from {home}, {show.size(size)}")


def _write(home: Path, rows: int, again: str) -> Path:
    from vyre.commands import demo_data

    folder = demo_data.folder_of(home, rows)
    size = rows * demo_data.ROW_BYTES
    if folder.is_dir():
        show.note(f"data set: {folder} ({show.size(size)}, written before)")
    else:
        show.note(f"data set: {folder} ({show.size(size)}, being written)")
        with show.progress("writing", size, bytes_=True) as bar:
            demo_data.write(home, rows, bar)
    show.note(f"          remove it with: vyre demo --remove{again}")
    return folder


def _run(session: Session, program: Program, columns: dict[str, Any]) -> tuple[dict[str, Any], Report]:
    """One program over its columns: its accumulators by name, and the report."""
    with session.stream(program, columns) as stream:
        for _ in show.parts(stream, program.name):
            pass
        total = stream.total()
    return {a.name: total[a.name] for a in program.accumulators}, stream.report


def _check_q6(ran: tuple[dict[str, Any], Report], right: Answers) -> Ran:
    results, report = ran
    revenue, orders = float(results["revenue"]), int(results["orders"])
    wrong = ""
    if orders != right.orders:
        wrong = f"q6 chose {orders:,} orders, NumPy {right.orders:,}"
    elif not abs(revenue - right.revenue) <= right.bound:
        wrong = f"q6's revenue is {revenue!r}, NumPy's {right.revenue!r}: further apart than {right.bound:.1e}"
    elif revenue.hex() != right.folded.hex():
        wrong = f"q6's revenue is {revenue.hex()}, the prescribed order of addition gives {right.folded.hex()}"
    return Ran("q6", results, report, wrong)


def _check_histogram(ran: tuple[dict[str, Any], Report], right: Answers) -> Ran:
    results, report = ran
    differ = int((results["counts"] != right.counts).sum())
    return Ran("histogram", results, report, f"{differ} of 256 counts differ from NumPy's" if differ else "")


def _print(ran: list[Ran], right: Answers, ready_s: float, folder: Path) -> None:
    rows = []
    for i, each in enumerate(ran):
        report = each.report
        rows.append(
            (
                each.program + (", again" if i % 2 else ""),
                report.engine,
                ", ".join(report.bytes_by_way),
                show.size(report.bytes),
                show.seconds(report.first_result_s),
                show.seconds(report.seconds),
                show.number(report.gb_per_s),
                "WRONG" if each.wrong else "right",
            )
        )
    show.table(
        "",
        ("program", "engine", "way of the bytes", "bytes", "first result", "all", "GB/s", "answer"),
        rows,
        right=(3, 4, 5, 6),
    )
    query, count = ran[0], ran[2]
    click.echo()
    click.echo(
        f"q6         revenue {float(query.results['revenue']):,.4f} from {int(query.results['orders']):,} orders; NumPy, "
        f"adding in another order, {right.revenue:,.4f}:\n"
        f"           they may differ by {right.bound:.1e}. Bit for bit what the prescribed order gives: "
        f"{'no' if query.wrong else 'yes'}."
    )
    counts = count.results["counts"]
    click.echo(
        f"histogram  {int(counts.sum()):,} bytes counted, {int(counts[0]):,} of them zero; 256 counts "
        f"{'differ from' if count.wrong else 'equal'} NumPy's."
    )
    click.echo(f"engine     ready after {show.seconds(ready_s)}; compiled the first time, later taken from the cache.")
    for note in dict.fromkeys(note for each in (ran[0], ran[2]) for note in each.report.notes):
        click.echo(f"bytes      {note.replace(f'{folder}/', '')}")
    for each in ran:
        if each.wrong:
            show.note(f"error: {each.wrong}")
