"""Programs that gather from tables on disk: run, serve what was missing, run again (decision 34).

Elements go in windows, one item each. An item that met pages which are not in memory ends with FaultCode.load_miss and
leaves its requests; they are read, and the whole window is run again: no registers are saved, and such a program writes
no tables, so nothing is done twice. A window that wants more pages than there are frames is cut; the smallest is a
tile. A page that the window has wanted stays until it is over, so it comes to its end.

Owns: windows and rounds. Leaves to others: pages (stream/disk_table), items (session), the fold of totals (streaming).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vyre.engines.base import ItemResult, Operands, PagedTable
from vyre.errors import BindError, Fault, StreamError, WaitTimeout
from vyre.program.opcodes import TILE, Access, FaultCode
from vyre.runtime.arguments import operands_of
from vyre.runtime.result import Facts, Result
from vyre.stream.disk_table import CAPABILITIES, DiskTable, Requests
from vyre.stream.formats import is_file

if TYPE_CHECKING:
    from vyre.runtime.faults import OnFault
    from vyre.runtime.loaded import Loaded
    from vyre.runtime.session import Session

FIRST_WINDOW: Final = 64 * TILE
LONGEST_WINDOW: Final = 1024 * TILE


def run_paged(
    session: Session,
    loaded: Loaded,
    named: Mapping[str, Any],
    out: Any,
    elements: int | None,
    timeout_s: float | None,
    on_fault: OnFault,
) -> Result:
    """``Session.run`` with tables on disk; inputs are arrays.

    Raises:
        BindError: the program writes tables, or a tile of it needs more pages at once than a table has frames.
        StreamError: a page could not be read.
        As for ``Session.run``.
    """
    began = time.perf_counter()
    give_up = None if timeout_s is None else time.monotonic() + timeout_s
    for table in loaded.program.tables:
        if table.access is Access.atomic:
            raise BindError(
                f"program {loaded.program.name} writes table {table.name}, and is run again where pages of another table "
                "are missing",
                fix="pass the table on disk as an array (numpy.load, numpy.memmap)",
            )
    with contextlib.ExitStack() as own:
        tables: dict[int, DiskTable] = {}
        for number, table in enumerate(loaded.program.tables):
            value = named.get(table.name)
            if isinstance(value, DiskTable):
                if value.closed:
                    raise BindError(f"table {table.name}: {value.name} was closed", fix="open it again")
                if value.dtype is not table.dtype:
                    raise BindError(
                        f"table {table.name} is {table.dtype.name}, and {value.name} was opened as {value.dtype.name}"
                    )
                tables[number] = value
            elif is_file(value):
                assert value is not None
                tables[number] = own.enter_context(
                    DiskTable(value, table.dtype, pool_bytes=session.pool_bytes, io=_io(session.io))
                )
        # In one order, so that two runs over the same tables do not wait for each other.
        for one in sorted(set(tables.values()), key=id):
            own.enter_context(one.lock)
        notes: list[str] = []
        counter, whole = _shared(session, tables.values())
        if whole:
            notes += [f"{t.name}: read into memory whole, {whole}" for t in tables.values()]
            arrays = {loaded.program.tables[n].name: t.array() for n, t in tables.items()}
            result = session.run(
                loaded, {**named, **arrays}, out=out, elements=elements, timeout_s=timeout_s, on_fault=on_fault
            )
            result.report.notes += notes
            return result
        requests = min(tables.values(), key=id).requests  # any of them: all their locks are held
        paged = {
            loaded.program.tables[n].name: PagedTable(t.address, t.size, requests.address) for n, t in tables.items()
        }
        operands, shape = operands_of(loaded, {**named, **paged}, out, elements, notes, None)
        run = _Run(session, loaded, operands, tables, requests, counter, give_up)
        try:
            raw = run.to_the_end()
        finally:
            run.close()
        before = time.perf_counter() - began
        notes += [run.note(t) for t in dict.fromkeys(tables.values())]
        if raw.fault is not None:
            raw = session._fault(raw, loaded, operands, on_fault)
        facts: Facts = (session.engine.name, operands.count, operands.count * loaded._bytes, before, notes)
        return Result(loaded.program, raw, facts, shape)


def _shared(session: Session, tables: Iterable[DiskTable]) -> tuple[int, str]:
    """Let the engine see the tables' pages: where it counts requests (0: in the list), and why it cannot, if it cannot."""
    engine: Any = session.engine
    if not getattr(engine, "takes_paged_tables", False):
        return 0, f"engine {engine.name} knows no pages"
    counter = 0
    try:
        if hasattr(engine, "share_pages"):
            for table in tables:
                counter = engine.share_pages(table)
    except StreamError as error:  # memory that the device does not take
        return 0, error.message
    return counter, ""


def _io(io: str) -> str:
    return io if io in ("uring", "uring-direct", "pread") else "auto"


class _Run:
    """One run over all windows."""

    def __init__(
        self,
        session: Session,
        loaded: Loaded,
        operands: Operands,
        tables: dict[int, DiskTable],
        requests: Requests,
        counter: int,
        give_up: float | None,
    ) -> None:
        self.session = session
        self.loaded = loaded
        self.operands = operands
        self.tables = set(tables.values())
        self.requests = requests
        self.give_up = give_up
        self.opcode = loaded.paged(frozenset(tables))
        self.counter = counter
        self.item: Any = None
        self.windows = self.rounds = 0
        self.read: dict[DiskTable, int] = dict.fromkeys(self.tables, 0)

    def note(self, table: DiskTable) -> str:
        """One line for the report."""
        return (
            f"{table.name}: {self.read[table]:,} pages of {table.page_bytes >> 10} KiB read by {table.way}, "
            f"{self.rounds:,} rounds for {self.windows:,} windows"
        )

    def to_the_end(self) -> ItemResult:
        """All windows, in order. A fault ends it: of the windows before, nothing but what they wrote is left."""
        from vyre.runtime.totals import Totals

        whole = self.operands
        totals = Totals(self.loaded.program)
        emits: list[list[Any]] = [[] for _ in whole.emits]
        first, window = 0, FIRST_WINDOW
        while first < whole.count or (first == 0 == whole.count):
            count = min(window, whole.count - first)
            raw, most = self._window(first, count)
            if raw is None:
                window = max(TILE, count // 2 // TILE * TILE)
                continue
            if raw.fault is not None:
                return raw
            totals.add(first, raw)
            for found, kept in zip(emits, raw.emits, strict=True):
                found.append(kept.copy())
            first += count
            if most < 0.25 and window < LONGEST_WINDOW:
                window *= 2
            if whole.count == 0:
                break
        joined = [np.concatenate(found) if found else e[:0] for found, e in zip(emits, whole.emits, strict=True)]
        return ItemResult(whole.outputs, joined, totals.values(), {}, None)

    def _window(self, first: int, count: int) -> tuple[ItemResult | None, float]:
        """One window until nothing is missing: its result, and the largest share of a table's frames that was read.

        None in place of the result: it wants more pages than there are frames, and is longer than a tile.
        """
        whole = self.operands
        part = Operands(
            whole.origin + first,
            count,
            [a.reshape(-1)[first : first + count] if isinstance(a, np.ndarray) else a for a in whole.inputs],
            [a.reshape(-1)[first : first + count] for a in whole.outputs],
            [a[:count] for a in whole.emits],
            whole.tables,
            whole.params,
        )
        if self.item is None:
            self.item = self.session.engine.item(self.opcode, part)
        else:
            self.item.retarget(part)
        self.windows += 1
        for table in self.tables:
            table.use(self.requests, self.counter)
        while True:
            self.rounds += 1
            self.requests.clear()
            left = None if self.give_up is None else self.give_up - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeout(f"no result in time; element {first:,} of {whole.count:,} was reached")
            raw = self.session._execute(self.item, left)
            if raw.fault is None or raw.fault.code != FaultCode.load_miss:
                return raw, max(t.wanted / t.frames for t in self.tables)
            wanted, wrong = CAPABILITIES.check(self.requests.take(int(raw.fault.operands["requests"])))
            if wrong is not None or not self.tables.issuperset(wanted):
                why = wrong or "a request names a table of another program"
                return ItemResult(fault=Fault(int(FaultCode.rights), why)), 0.0
            for table in wanted:
                if table.wanted > table.frames:
                    if count > TILE:
                        self.windows -= 1
                        return None, 0.0
                    raise BindError(
                        f"program {self.loaded.program.name}: elements {first:,} to {first + count - 1:,} need more than "
                        f"the {table.frames:,} pages of {table.name} that memory has room for",
                        fix=f"vyre.disk_table(path, pool_bytes=...) of more than {table.frames * table.page_bytes:,} bytes",
                    )
            for table, pages in wanted.items():
                table.fetch(pages)
                self.read[table] += len(pages)

    def close(self) -> None:
        """End what may still run, and give the binding back."""
        if self.item is not None:
            self.session._abandon(self.item)
            self.item = None
