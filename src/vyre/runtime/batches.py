"""Slots by hand: publish, many at once, and their records (decision 21). What tickets and streams do not need.

Owns: what a caller's words must be before they become slots. Leaves to others: the ring (vyre.ring), what opcodes do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vyre.errors import BindError, RingFull, WaitTimeout
from vyre.ring.layout import ARG_WORDS, RECORD_BYTES, RECORD_DTYPE, SLOT_BYTES, SLOT_DTYPE, SLOT_WORDS, Priority

if TYPE_CHECKING:
    from vyre.engines.cpu.engine import CpuEngine
    from vyre.runtime.session import Session

FIRST_ARGUMENT = SLOT_WORDS - ARG_WORDS


def slots_of(items: Any) -> NDArray[np.void]:
    """Slots from u32[n, 16], from an array of slots, or from bytes.

    Raises:
        BindError: another shape or type, or bytes that are no whole number of slots.
    """
    if isinstance(items, (bytes, bytearray, memoryview)):
        return _decoded(items, SLOT_DTYPE, SLOT_BYTES, "slots")
    a = np.asarray(items)
    if a.dtype == SLOT_DTYPE:
        return np.ascontiguousarray(a.reshape(-1))
    if a.dtype != np.uint32 or a.ndim != 2 or a.shape[1] != SLOT_WORDS:
        raise BindError(f"a batch is u32[n, {SLOT_WORDS}], not {a.dtype}{list(a.shape)}")
    return np.ascontiguousarray(a).view(SLOT_DTYPE).reshape(-1)


def records_of(data: bytes | bytearray | memoryview) -> NDArray[np.void]:
    """Completion records from bytes.

    Raises:
        BindError: they are no whole number of records.
    """
    return _decoded(data, RECORD_DTYPE, RECORD_BYTES, "completion records")


def _decoded(data: Any, dtype: np.dtype[Any], size: int, what: str) -> NDArray[Any]:
    view = memoryview(data).cast("B")
    if view.nbytes % size:
        raise BindError(f"{view.nbytes} bytes are no whole number of {what} of {size} bytes")
    return np.frombuffer(bytes(view), dtype).copy()


def slot_of(opcode: int, args: Sequence[int] | NDArray[Any], priority: int) -> NDArray[np.void]:
    """One slot: opcode and up to 12 argument words; the others are zero.

    Raises:
        BindError: more words than there are, or one that does not fit u32.
    """
    words = np.zeros(SLOT_WORDS, np.uint32)
    given = list(args)
    if len(given) > ARG_WORDS:
        raise BindError(f"{len(given)} argument words given, a slot has {ARG_WORDS}")
    if not 0 <= opcode <= 0xFFFF_FFFF:
        raise BindError(f"opcode {opcode} does not fit a word")
    for i, word in enumerate(given):
        if not 0 <= int(word) <= 0xFFFF_FFFF:
            raise BindError(f"argument word {i} = {word} does not fit u32")
        words[FIRST_ARGUMENT + i] = int(word)
    try:
        words[3] = Priority(priority)
    except ValueError:
        raise BindError(f"priority {priority} is none of 0 to {max(Priority)}") from None
    words[1] = opcode
    return words.view(SLOT_DTYPE)


def ring_engine(session: Session) -> CpuEngine:
    """The session's engine, when it has a ring that takes slots by hand."""
    from vyre.engines.cpu.engine import CpuEngine

    engine = session.engine
    if engine.closed:
        raise session._closed_error()
    if not isinstance(engine, CpuEngine):
        raise BindError(f"engine {engine.name} takes no slots by hand", fix="use run, submit or stream")
    return engine


def submit(session: Session, items: NDArray[np.void], timeout_s: float | None) -> int:
    """Publish all of them or none, waiting until there is room."""
    engine = ring_engine(session)
    if len(items) > engine.ring.capacity:
        raise BindError(
            f"{len(items)} items are more than the ring's {engine.ring.capacity} slots", fix="publish fewer"
        )
    give_up = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        first = engine.submit(engine.ring, items, wake=len(items))
        if first is not None:
            return first
        if engine.closed:
            raise session._closed_error()
        session._reap()
        if give_up is not None and time.monotonic() >= give_up:
            raise RingFull(
                f"no {len(items)} slots of the session's ring became free in {timeout_s} s",
                fix="read completions, or open with a larger capacity",
            )


def completions(session: Session, first: int, n: int, timeout_s: float | None) -> NDArray[np.void]:
    """Wait for n items from ``first`` on, read their records and free their slots."""
    engine = ring_engine(session)
    ring = engine.ring
    if n < 0 or first < 0 or first + n > ring.published or n > ring.capacity:
        raise BindError(f"completions {first} to {first + n} were asked for; {ring.published} were published")
    give_up = None if timeout_s is None else time.monotonic() + timeout_s
    while engine.wait(ring, first, n, 50_000_000) < n:
        if engine.closed:
            raise session._closed_error()
        if give_up is not None and time.monotonic() >= give_up:
            raise WaitTimeout(f"items {first} to {first + n} were not all complete within {timeout_s} s")
    return engine.collect(ring, first, n)
