"""What an engine takes and gives: operands in, an item's result out.

Owns: the values that cross between runtime and engines. Leaves to others: execution (reference, null, cpu, cuda),
joining of parts (runtime).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vyre.errors import Fault, StreamError
from vyre.program.verifier import Verified

if TYPE_CHECKING:
    from vyre.stream.plan import Plan
    from vyre.stream.source import Chunk


@dataclass(slots=True)
class ItemResult:
    """What one item delivered. A faulted item delivered nothing but its fault.

    Attributes:
        outputs: by declaration order, one array of ``count`` elements each, in memory type.
        emits: by declaration order, the kept elements in element order.
        accumulators: by declaration order, memory-type scalars as 0-d arrays, histograms as i64[bins]. Float sums
            are folded as decision 2 says, over this item alone.
        tile_sums: for each float sum (by accumulator index) f64[tiles], the halved tile results before any span is
            folded: what a stream folds over all its parts in order.
        fault: the lowest trapping element's, or None.
    """

    outputs: list[NDArray[np.generic]] = field(default_factory=list)
    emits: list[NDArray[np.generic]] = field(default_factory=list)
    accumulators: list[NDArray[np.generic]] = field(default_factory=list)
    tile_sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    fault: Fault | None = None


class FileRange(NamedTuple):
    """Elements of a stream that lie in a file: element ``origin`` of the item at byte ``offset`` of ``fd``.

    Where they are fields of rows, ``offset`` is that of the first row, ``width`` bytes lie from row to row (0: elements lie
    one behind the other), ``inside`` from the start of a row to its field.
    """

    fd: int
    offset: int
    width: int = 0
    inside: int = 0

    def from_element(self, skip: int, size: int) -> FileRange:
        """The same without its first ``skip`` elements of ``size`` bytes."""
        return self._replace(offset=self.offset + skip * (self.width or size))


class PagedTable(NamedTuple):
    """A table on disk, as an engine meets it (ring/layout.py has the blocks).

    Attributes:
        address: of the table's PAGED block.
        size: elements.
        requests: address of the list that gathers leave their requests in. One list for all tables of an item.
    """

    address: int
    size: int
    requests: int


@dataclass(slots=True)
class Operands:
    """What one item works on. Everything is in declaration order and stays alive and in place until the item ends.

    Attributes:
        origin: global index of element 0 of each operand, a multiple of 1,024.
        count: elements of each input and output.
        inputs: arrays of at least ``count`` elements in memory type, or ranges of files.
        outputs: arrays of ``count`` elements, written in place.
        emits: arrays with room for ``count`` elements.
        tables: 1-D arrays; atomic ones are updated in place. Or tables on disk, for a program that was loaded so.
        params: 64 bits each, in memory form.
    """

    origin: int
    count: int
    inputs: list[NDArray[Any] | FileRange]
    outputs: list[NDArray[Any]]
    emits: list[NDArray[Any]]
    tables: list[Any]
    params: list[int]


class Chunks(Protocol):
    """The chunks of a source through a program in an engine that has a way of its own for them, in order.

    ``take`` gives the next one with what it delivered, the error that kept it from being read, or None at the end. Its
    tile sums are valid until the next call.
    """

    @property
    def plan(self) -> Plan: ...

    def take(
        self, *, folded: bool, give_up: float | None, describe: Callable[[Fault, Operands], Fault] | None
    ) -> tuple[Chunk, ItemResult] | StreamError | None: ...

    def bytes_by_way(self) -> dict[str, int]: ...

    def copies(self) -> dict[str, int]: ...

    def waits(self) -> dict[str, float]: ...

    def reader_cpu_s(self) -> float: ...

    def close(self) -> None: ...


class Item(Protocol):
    """A program with its operands: what is published, once or again and again, but never twice at a time."""

    def start(self, *, deadline_ns: int = 0, wake: bool = True) -> bool:
        """Publish it. False: the ring is full and nothing was published.

        Args:
            deadline_ns: CLOCK_MONOTONIC time after which the engine may end it with FaultCode.deadline; 0 for none.
            wake: False when the caller waits at once, so that no worker need be woken for a small item.
        """
        ...

    def wait(self, timeout_ns: int) -> bool:
        """True once it is complete. May return early; runs other work meanwhile where the engine can."""
        ...

    def result(self) -> ItemResult:
        """What it delivered. Only after wait() said True, once per start(); frees the slot."""
        ...

    def cancel(self) -> None:
        """Ask that it end soon. It completes all the same, as DONE or as FAULT with FaultCode.cancelled."""
        ...

    def forget(self) -> None:
        """Let go of the operands, which ``retarget`` replaces before the next start: an idle item keeps no arrays."""
        ...

    def close(self) -> None:
        """Free the binding. Not while it is published and not complete."""
        ...


class Engine(Protocol):
    """Who executes: loads verified programs, binds operands, completes items."""

    name: str
    closed: bool

    def load(self, verified: Verified) -> int: ...

    def unload(self, opcode: int) -> None: ...

    def item(self, opcode: int, operands: Operands, *, stream: object = None) -> Item: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class PopulationResult:
    """What programs of one population delivered over the same inputs. Row i is program i's; a faulted one's is zeros.

    Attributes:
        outputs: by declaration order, [programs, count] in memory type.
        accumulators: by declaration order, [programs] in memory type. Float sums are folded as decision 2 says.
        faults: by index of the program: what stopped it.
    """

    outputs: list[Any] = field(default_factory=list)
    accumulators: list[NDArray[Any]] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)
