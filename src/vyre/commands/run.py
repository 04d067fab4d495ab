"""``vyre run``: a program over files, its results as a table, as JSON or as files.

Owns: what the words of the command line mean. Leaves to others: programs (programs), execution (vyre.open), files that
are written (outputs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from vyre.commands import show
from vyre.commands.engines import engine_option, io_option, session_for_files
from vyre.errors import BindError, StreamError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vyre.commands.outputs import Outputs
    from vyre.program.ir import Program, Table
    from vyre.program.verifier import Verified
    from vyre.runtime.result import Report
    from vyre.stream.formats import Column

SHOWN: Final = 6
BINS_SHOWN: Final = 16


@click.command()
@click.argument("program", metavar="P")
@click.argument("inputs", nargs=-1, metavar="[NAME=PATH[:COLUMN][,PATH...]]...")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="value of a parameter")
@click.option("--type", "types", multiple=True, metavar="NAME=TYPE", help="type of an expression's input or parameter")
@click.option(
    "--out",
    "outs",
    multiple=True,
    metavar="[NAME=]PATH",
    help="write an output or emit there: .npy or .arrow by its name, else raw; - is standard output",
)
@engine_option()
@click.option("--chunk", type=click.IntRange(min=1), metavar="N", help="elements handed over at a time")
@io_option
@click.option("--elements", type=click.IntRange(min=0), metavar="N", help="how many, for a program without inputs")
@click.option("--json", "json_", is_flag=True, help="print JSON")
def command(
    program: str,
    inputs: tuple[str, ...],
    params: tuple[str, ...],
    types: tuple[str, ...],
    outs: tuple[str, ...],
    engine: str,
    chunk: int | None,
    io: str,
    elements: int | None,
    json_: bool,
) -> None:
    """Run program P over files: .npy, uncompressed Arrow IPC, or raw elements of the program's type.

    Several paths of one NAME are one stream, a directory is its files. With one input, NAME= may be left out. Of a file
    with several columns, x=points.npy:3 or x=trades.npy:price takes one; without it, each input takes the column of its
    name.
    """
    from vyre.commands import programs
    from vyre.commands.inputs import columns_of, types_of, with_names
    from vyre.commands.outputs import Outputs
    from vyre.program.verifier import verify
    from vyre.stream.formats import Column

    known = programs.parse_types(types)
    values = _params(params)
    named, bare = columns_of(inputs)
    if program != "histogram":  # which counts bytes, whatever they mean
        if bare is not None and (name := programs.only_input(program, values)):
            named, bare = {name: bare}, None
        known = {**types_of(named), **known}
    built = programs.load(program, known, params=values)
    verified = verify(built)
    columns = with_names(verified.program, named, bare)
    if program == "histogram":
        columns = {name: Column(_whole(column), "u8", format="raw") for name, column in columns.items()}
    with Outputs(verified.program, outs) as outputs:
        report, results = _execute(verified, columns, values, outputs, engine, io, chunk, elements)
    if json_:
        click.echo(show.to_json(_as_json(verified.program, outputs, results, report)), err=outputs.fill_stdout)
        return
    if not outputs.fill_stdout:
        _print(verified.program, outputs, results)
    show.note(str(report))


def _execute(
    verified: Verified,
    columns: Mapping[str, Column],
    params: Mapping[str, Any],
    outputs: Outputs,
    engine: str,
    io: str,
    chunk: int | None,
    elements: int | None,
) -> tuple[Report, dict[str, Any]]:
    """Run the columns through the program, part by part; the report, and the accumulators' values by name."""
    program = verified.program
    named: dict[str, Any] = {**columns, **params}
    for table in program.tables:
        if table.name in columns:
            named[table.name] = _table(table, _whole(columns[table.name]))
    with session_for_files(engine, io) as (session, choice):
        if not program.inputs:
            if elements is None:
                raise BindError(f"{program.name} has no inputs, so nothing says how long to run", fix="--elements N")
            result = session.run(verified, named, elements=elements)
            outputs.write(result)
            return _with_choice(result.report, choice), {a.name: result[a.name] for a in program.accumulators}
        if elements is not None:
            raise BindError(f"--elements {elements}: {program.name} has inputs, which say how long they are")
        with session.stream(verified, named, chunk=chunk) as stream:
            for part in show.parts(stream, program.name):
                outputs.write(part)
            total = stream.total()
        return _with_choice(stream.report, choice), {a.name: total[a.name] for a in program.accumulators}


def _whole(column: Column) -> tuple[str, ...]:
    """The paths of a column whose files are taken whole."""
    if column.field is not None:
        raise BindError(f"{column.paths[0]}:{column.field} names a column, but the whole file is taken here")
    return column.paths


def _with_choice(report: Report, choice: str) -> Report:
    report.notes.append(choice)
    return report


def _table(table: Table, paths: Sequence[str]) -> NDArray[Any]:
    """A table's elements, read into memory: .npy, or raw elements of its type."""
    import numpy as np

    from vyre.program.opcodes import Access
    from vyre.stream.formats import numpy_dtype

    if table.access is Access.atomic:
        raise BindError(
            f"table {table.name} is updated by the program, and a command line has no array to update",
            fix=f"run it from Python: vyre.run(program, ..., {table.name}=array)",
        )
    if len(paths) != 1:
        raise BindError(f"table {table.name} is one file, not {len(paths)}")
    try:
        if paths[0].endswith(".npy"):
            return np.asarray(np.load(paths[0], allow_pickle=False))
        return np.fromfile(paths[0], numpy_dtype(table.dtype))
    except ValueError as error:
        raise StreamError(f"{paths[0]}: {error}") from None


def _params(given: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name.isidentifier():
            raise BindError(f"--param {each!r} is not NAME=VALUE")
        if name in values:
            raise BindError(f"--param {name} is given twice")
        values[name] = _value(name, text)
    return values


def _value(name: str, text: str) -> bool | int | float:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (lambda t: int(t, 0), float):
        try:
            value: int | float = kind(text)
            return value
        except ValueError:
            continue
    raise BindError(f"--param {name}: {text!r} is no number", fix="write an integer, a float, true or false")


def _as_json(program: Program, outputs: Outputs, results: Mapping[str, Any], report: Any) -> dict[str, Any]:
    return {
        "program": program.name,
        "results": {**{name: output.as_json() for name, output in outputs.items()}, **results},
        "report": report.as_dict(),
    }


def _print(program: Program, outputs: Outputs, results: Mapping[str, Any]) -> None:
    rows: list[tuple[str, str, str]] = []
    for name, output in outputs.items():
        rows.append((name, f"{output.kind} {output.dtype.name}", output.words(SHOWN)))
    histograms = []
    for accumulator in program.accumulators:
        value = results[accumulator.name]
        kind = f"{accumulator.kind.name} {accumulator.dtype.name}"
        if accumulator.bins:
            histograms.append((accumulator.name, value))
            rows.append((accumulator.name, kind, f"{accumulator.bins:,} bins, {int(value.sum()):,} counted"))
        else:
            rows.append((accumulator.name, kind, _text(value)))
    show.table("", ("result", "", "value"), rows)
    for name, counts in histograms:
        _print_histogram(name, counts)


def _text(value: Any) -> str:
    plain = value.item() if hasattr(value, "item") else value
    return f"{plain:,}" if isinstance(plain, int) and not isinstance(plain, bool) else repr(plain)


def _print_histogram(name: str, counts: NDArray[np.int64]) -> None:
    order = (-counts).argsort(kind="stable")[:BINS_SHOWN]
    rows = [(f"{int(i):,}", f"{int(counts[i]):,}") for i in order if counts[i]]
    left = int((counts != 0).sum()) - len(rows)
    more = f", {left:,} more with --json" if left > 0 else ""
    click.echo()
    show.table(f"{name}: most frequent bins{more}", ("bin", "count"), rows, right=(0, 1))
