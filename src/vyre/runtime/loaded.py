"""A program resident in a session, and one with its operands fixed.

Owns: ``Loaded`` and ``Bound``. Leaves to others: loading, executing and letting go (session), operands (arguments).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vyre.program import ir
from vyre.program.verifier import Verified
from vyre.runtime.faults import OnFault
from vyre.runtime.result import Facts, Result
from vyre.stream.formats import numpy_dtype

if TYPE_CHECKING:
    from vyre.runtime.session import Session


@lru_cache(1_024)
def _taken(
    inputs: tuple[ir.Stream, ...],
    outputs: tuple[ir.Stream, ...],
    params: tuple[ir.Param, ...],
    tables: tuple[ir.Table, ...],
) -> tuple[tuple[tuple[str, np.dtype[Any], ir.Stream], ...], tuple[np.dtype[Any], ...], frozenset[str], int]:
    """What calls are checked against: inputs with their dtypes, dtypes of outputs, all names, bytes of one element."""
    taken = tuple((s.name, numpy_dtype(s.dtype), s) for s in inputs)
    names = frozenset([*(s.name for s in inputs), *(p.name for p in params), *(t.name for t in tables)])
    return taken, tuple(numpy_dtype(s.dtype) for s in outputs), names, sum(dtype.itemsize for _, dtype, _ in taken)


class Loaded:
    """A program resident in a session. Close it, or let the session do so.

    Attributes:
        program: the program.
        opcode: what slots call it.
    """

    __slots__ = (
        "_bytes",
        "_dtypes",
        "_idle",
        "_inputs",
        "_names",
        "_paged",
        "_plain",
        "opcode",
        "program",
        "session",
        "verified",
    )

    def __init__(self, session: Session, verified: Verified, opcode: int) -> None:
        self.session = session
        self.verified = verified
        self.program = verified.program
        self.opcode = opcode
        self._idle: list[Any] = []
        self._paged: dict[frozenset[int], int] | None = None
        program = self.program
        takes = _taken(program.inputs, program.outputs, program.params, program.tables)
        self._inputs, self._dtypes, self._names, self._bytes = takes
        self._plain = bool(program.inputs) and not (program.params or program.tables or program.emits)

    def close(self) -> None:
        """Forget the program. Nothing that uses it may be unfinished."""
        self.session._unload(self)

    def paged(self, tables: frozenset[int]) -> int:
        """Opcode of the same program with these tables on disk."""
        load = getattr(self.session.engine, "load_paged", None)
        if load is None:  # an engine that sees it by the binding
            return self.opcode
        known = self._paged = {} if self._paged is None else self._paged
        opcode = known.get(tables)
        if opcode is None:
            opcode = known[tables] = int(load(self.verified, tables))
        return opcode

    def _free(self) -> None:
        if self.opcode < 0:
            return
        opcode, self.opcode = self.opcode, -1
        if self._paged and not self.session.engine.closed:
            for variant in self._paged.values():
                self.session.engine.unload(variant)
        while self._idle:
            self._idle.pop().close()
        if not self.session.engine.closed:
            self.session.engine.unload(opcode)

    def __del__(self) -> None:
        if getattr(self, "opcode", -1) >= 0:
            self._free()

    def __repr__(self) -> str:
        return f"<vyre program {self.program.name} resident as {self.opcode:#x}>"


class Bound:
    """A program with its operands, to be run again and again: the fast path. Not for two threads at a time.

    ``run()`` reads the inputs as they are then and writes the same outputs each time.
    """

    __slots__ = ("_item", "_loaded", "_report", "_shape", "session")

    def __init__(self, session: Session, loaded: Loaded, item: Any, shape: tuple[int, ...], report: Facts) -> None:
        self.session = session
        self._loaded = loaded
        self._item = item
        self._shape = shape
        self._report = report

    def run(self, *, timeout_s: float | None = None, on_fault: OnFault = "raise") -> Result:
        """Hand it over, wait, and give its results.

        Raises:
            ProgramFault: it trapped (unless on_fault is "report").
            SessionClosed, WaitTimeout: as for a ticket.
        """
        session = self.session
        if session.engine.closed:
            raise session._closed_error()
        try:
            raw = session._execute(self._item, timeout_s)
        except BaseException:
            session._settle(self._item)
            raise
        if raw.fault is not None:
            session._fault(raw, self._loaded, self._item.operands, on_fault)
        return Result(self._loaded.program, raw, self._report, self._shape)

    def close(self) -> None:
        """Give the binding back."""
        self._item.close()
