"""How commands show things: tables for people, JSON for programs, notes and progress on standard error.

Owns: the look of the output. Results go to standard output, all else to standard error, so that a pipe gets the
result alone. rich is imported when the first table is drawn.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from rich.console import Console

    from vyre.runtime.result import Result
    from vyre.runtime.streaming import Stream

BAR_AFTER_S = 0.3


def console(*, stderr: bool = False) -> Console:
    """A rich console on the terminal that ``sys.stdout`` (or ``sys.stderr``) is now."""
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that is being handled: the command line has words for it

    stream: IO[str] = sys.stderr if stderr else sys.stdout
    return _Console(file=stream, highlight=False, soft_wrap=False, emoji=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Print a table on standard output: by rich on a terminal, and of the same form, but never folded, into a pipe.

    Args:
        title: line above it, "" for none.
        columns: headings; all "" for a table without a heading.
        rows: cells; anything, as ``str``. Markup in them is shown, not obeyed.
        right: indices of the columns that are aligned right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(title, columns, cells, right)
    else:
        click.echo("\n".join(_lines(title, columns, cells, right)))


def _lines(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> Iterator[str]:
    """Importing rich takes longer than many a program runs; in a pipe nobody sees its colours."""
    widths = [max([len(name), *(len(row[i]) for row in rows)]) for i, name in enumerate(columns)]

    def line(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "   ".join(padded).rstrip()

    if title:
        yield title
    if any(columns):
        yield line(columns)
        yield "─" * (sum(widths) + 3 * (len(widths) - 1))
    for row in rows:
        yield line(row)


def _rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False, show_edge=False)
    for i, name in enumerate(columns):
        drawn.add_column(Text(name), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    screen = console()
    if title:
        screen.print(Text(title, style="bold"), soft_wrap=True)
    screen.print(drawn)


def plain(value: Any) -> Any:
    """``value`` as JSON has it: NumPy values as Python's, bytes as hex, NaN and infinities as strings."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def to_json(value: Any) -> str:
    """``value`` as one JSON document."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def as_json(value: Any) -> None:
    """Print ``value`` as one JSON document on standard output."""
    click.echo(to_json(value))


def note(text: str) -> None:
    """One line on standard error: what is going on, not the result."""
    click.echo(text, err=True)


def number(value: float, digits: int = 3) -> str:
    """A number for people: ``digits`` significant digits, thousands apart, never an exponent for common sizes."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 9)}f}" if abs(value) >= 1e-6 else f"{value:.{digits}g}"


def seconds(value: float) -> str:
    """A time for people, in the unit that fits: 1.53 s, 12.0 ms, 4.80 us."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= scale or unit == "us":
            return f"{number(value / scale)} {unit}"
    raise AssertionError


def size(count: float) -> str:
    """Bytes for people: 312 B, 4.70 MB, 1.20 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{int(count)} B"


class Bar(Protocol):
    """A progress bar, or its stand-in where nobody watches."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """Show that ``done`` of ``total`` bytes (or rows) are done, counted from the start."""


@contextmanager
def progress(what: str, total: int | None = None, *, bytes_: bool = False) -> Iterator[Bar]:
    """A progress bar on standard error while the block runs; nothing at all when that is no terminal.

    It appears only when the work has taken ``BAR_AFTER_S``, so that short work flashes nothing.

    Args:
        what: the words before the bar.
        total: how much there is to do, None while unknown.
        bytes_: show sizes and a rate in bytes.
    """
    if not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    began = time.monotonic()
    with ExitStack() as stack:
        update: Bar | None = None

        known = total

        def watch(done: int, total: int | None = None) -> None:
            nonlocal update
            if update is None and time.monotonic() - began > BAR_AFTER_S:
                update = _bar(stack, what, bytes_)
            if update is not None:
                update(done, known if total is None else total)

        yield watch


def parts(stream: Stream, what: str) -> Iterator[Result]:
    """The parts of a stream, one after the other, beside a progress bar: bytes, bytes a second, time left."""
    with progress(what, bytes_=True) as bar:
        size, count = stream.source.bytes, max(1, stream.source.count)
        for part in stream:
            yield part
            bar(size * stream.done // count, size)


def _bar(stack: ExitStack, what: str, bytes_: bool) -> Bar:
    from rich import progress as rich

    columns: list[rich.ProgressColumn] = [rich.TextColumn("{task.description}"), rich.BarColumn()]
    columns += [rich.DownloadColumn(), rich.TransferSpeedColumn()] if bytes_ else [rich.MofNCompleteColumn()]
    columns += [rich.TimeRemainingColumn()]
    bar = stack.enter_context(rich.Progress(*columns, console=console(stderr=True), transient=True))
    task = bar.add_task(what, total=None)
    return lambda done, total=None: bar.update(task, completed=done, total=total)
