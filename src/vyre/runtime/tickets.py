"""A ticket: work that was handed over, and its result when it is there.

Owns: waiting for one item from threads and from asyncio. Leaves to others: publishing (session), execution (engines).
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from vyre.engines.base import ItemResult
from vyre.errors import Cancelled, Fault, ProgramFault, StreamError, WaitTimeout
from vyre.program.opcodes import FaultCode
from vyre.runtime.result import Facts, Result

if TYPE_CHECKING:
    from vyre.runtime.loaded import Loaded
    from vyre.runtime.session import Session


class Ticket:
    """What ``submit`` gives. ``result()``, ``done()``, ``cancel()``, or ``await`` it; any thread may."""

    __slots__ = ("_deadline", "_item", "_loaded", "_raw", "_report", "_shape", "session")

    def __init__(
        self, session: Session, loaded: Loaded, item: Any, shape: tuple[int, ...], report: Facts, deadline_ns: int
    ) -> None:
        self.session = session
        self._loaded = loaded
        self._item = item
        self._shape = shape
        self._report = report
        self._deadline = deadline_ns
        self._raw: ItemResult | None = None

    def _start(self) -> bool:
        return bool(self._item.start(deadline_ns=self._deadline))

    def _discard(self) -> None:
        self._item.close()

    def _collected_or_collect(self, timeout_ns: int) -> bool:
        """True when the result is here; waits for at most timeout_ns."""
        if self._raw is not None:
            self.session._outstanding.pop(self, None)
            return True
        if not self._item.wait(timeout_ns):
            return self._raw is not None  # another thread may have collected it
        session = self.session
        with session._lock:
            if self._raw is None:
                operands = self._item.operands
                raw: ItemResult = self._item.result()
                if raw.fault is not None:
                    from vyre.runtime.faults import described

                    raw.fault = described(raw.fault, self._loaded, operands)
                self._raw = raw
                self._item.close()
        session._outstanding.pop(self, None)
        return True

    def done(self) -> bool:
        """True when ``result()`` will not wait. Never waits itself."""
        if self._raw is None and self.session.closed:
            return True
        return self._collected_or_collect(0)

    def cancel(self) -> None:
        """Ask that it end soon. ``result()`` then raises Cancelled, unless it was done before."""
        with self.session._lock:
            if self._raw is None and not self.session.closed:
                self._item.cancel()

    def result(self, timeout_s: float | None = None, *, on_fault: Literal["raise", "report"] = "raise") -> Result:
        """Wait for the result; running other work of the session meanwhile.

        Args:
            timeout_s: give up waiting after this. The item goes on; ask again.
        Raises:
            WaitTimeout: it is not there yet.
            ProgramFault: it trapped, or its deadline passed.
            Cancelled: it was cancelled.
            SessionClosed: the session was closed before it was done.
        """
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        slice_ns = 50_000_000 if timeout_s is None else min(50_000_000, max(0, int(timeout_s * 1e9)))
        while True:
            if self._raw is None and self.session.closed:
                raise self.session._closed_error()
            if self._collected_or_collect(slice_ns):
                break
            self.session._check_not_paused()
            if give_up is not None and time.monotonic() >= give_up:
                raise WaitTimeout(f"no result within {timeout_s} s; the item goes on", fix="wait again, or cancel() it")
        raw = self._raw
        assert raw is not None
        if raw.fault is not None and on_fault == "raise":
            raise_for(raw.fault)
        return Result(self._loaded.program, raw, self._report, self._shape)

    def __await__(self) -> Generator[Any, None, Result]:
        return self._wait().__await__()

    async def _wait(self) -> Result:
        if not self.done():
            import asyncio  # 25 ms that a process without it need not spend

            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(None, self._block)
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self.result()

    def _block(self) -> None:
        """Wait in a thread of asyncio's; returns when the result is there or the session is closed."""
        while not self.session.closed and not self._collected_or_collect(50_000_000):
            pass


def raise_for(fault: Fault) -> NoReturn:
    """The exception of a fault."""
    if fault.code == FaultCode.cancelled:
        raise Cancelled("the item was cancelled before it was done")
    if fault.code in (FaultCode.io_error, FaultCode.file_shrank):
        raise StreamError(str(fault))
    raise ProgramFault(fault)
