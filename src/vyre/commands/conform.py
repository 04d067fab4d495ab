"""``vyre conform``: a case file on an engine, every case alone, over more than a tile, and among others."""

from __future__ import annotations

from pathlib import Path

import click

from vyre.commands import exits, show
from vyre.commands.engines import engine_option, executor

SHOWN = 50


@click.command()
@click.argument("cases", type=click.Path(dir_okay=False, path_type=Path), metavar="CASES.json")
@engine_option("cpu", "who executes")
@click.option("--json", "json_", is_flag=True, help="print JSON; the closing line goes to standard error")
@click.pass_context
def command(ctx: click.Context, cases: Path, engine: str, json_: bool) -> None:
    """Run a file of conformance cases; the last line is 'N passed, N failed', exit 1 when one failed.

    Each case runs alone, repeated over 1,025 elements, and mixed with others of its instruction in one item.
    """
    from vyre.engines.conform import run_cases

    with cases.open("rb"):  # an unreadable file is an I/O error, whatever is in it
        pass
    with executor(engine) as execute, show.progress(f"conform on {engine}") as bar:
        report = run_cases(cases, execute, progress=bar)
    if json_:
        failures = [
            {"case": f.case.index, "op": f.case.op.name, "setting": f.setting, "got": f.got, "text": str(f)}
            for f in report.failures
        ]
        show.as_json({"engine": engine, "passed": report.passed, "failed": report.failed, "failures": failures})
    else:
        for failure in report.failures[:SHOWN]:
            click.echo(str(failure))
        if len(report.failures) > SHOWN:
            click.echo(f"... and {len(report.failures) - SHOWN:,} more; --json lists them all")
    click.echo(report.line, err=json_)
    if report.failed:
        ctx.exit(exits.FAILED.code)
