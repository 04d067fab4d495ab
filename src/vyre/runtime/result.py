"""What a run gives back: values by name, and a report of how it went.

Owns: ``Result``, ``Report`` and the fold of a stream's parts. Leaves to others: where the values come from (engines).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vyre.errors import Fault, ProgramFault

if TYPE_CHECKING:
    from vyre.engines.base import ItemResult
    from vyre.program.ir import Program


@dataclass(slots=True)
class Report:
    """How a run went.

    Attributes:
        engine: name of the engine that executed it.
        elements: elements of each input.
        bytes_by_way: bytes of the inputs by the way they took ("in memory", "worker page cache", ...).
        seconds: from the call to the result; for a stream from its first chunk on.
        first_result_s: for a stream, from the call to the first part; otherwise the same as ``seconds``.
        notes: what cost something or was not done as one might expect, one line each.
        copies: bytes that were copied on the host after they had come in, by reason; reading through the page cache
            copies every byte once besides, which the way says.
        waits: for a stream of files, seconds that the reader slept by what it waited for: "storage" (reads were out and
            no chunk was with the engine) or "engine" (all memory was with it); neither bounds the other where both are
            short. Filled in where a pump reads.
        reader_cpu_s: processor seconds of the pump that read the files, known at the end.
    """

    engine: str
    elements: int = 0
    bytes_by_way: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    first_result_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    copies: dict[str, int] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    reader_cpu_s: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes of all inputs."""
        return sum(self.bytes_by_way.values())

    @property
    def copied_bytes(self) -> int:
        """Bytes that a processor copied: once each on the ways through the page cache, and what ``copies`` has."""
        from vyre.stream.plan import Rung

        copying = {rung.value for rung in Rung if rung.copies}
        return sum(n for way, n in self.bytes_by_way.items() if way in copying) + sum(self.copies.values())

    @property
    def gb_per_s(self) -> float:
        """Bytes of the inputs over seconds, in 10**9 bytes a second."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Every attribute and what follows from them, for JSON."""
        return {**asdict(self), "bytes": self.bytes, "copied_bytes": self.copied_bytes, "gb_per_s": self.gb_per_s}

    def __str__(self) -> str:
        ways = ", ".join(f"{n:,} bytes {way}" for way, n in self.bytes_by_way.items()) or "no input bytes"
        line = f"engine {self.engine}: {self.elements:,} elements, {ways}, {self.seconds * 1e3:.3f} ms"
        copies = [f"copied once more: {n:,} bytes {what}" for what, n in self.copies.items()]
        waits = [f"waited for {what}: {seconds * 1e3:.1f} ms" for what, seconds in self.waits.items() if seconds > 1e-3]
        return "\n".join([line, *copies, *waits, *self.notes])


Facts: TypeAlias = tuple[str, int, int, float, list[str]]
"""A report that nobody has asked for yet: engine, elements, bytes in memory, seconds, notes."""


def report_of(facts: Facts) -> Report:
    """The report of a run over arrays."""
    engine, elements, size, seconds, notes = facts
    return Report(engine, elements, {"in memory": size} if size else {}, seconds, seconds, notes)


class Result:
    """Outputs, emits and accumulators of one run, by name. The arrays are the caller's.

    ``r["name"]`` gives one; ``r.value`` and ``numpy.asarray(r)`` the only one there is, or the one named ``value``.
    Accumulators are NumPy scalars, histograms i64 arrays.
    """

    __slots__ = ("_item", "_program", "_report", "_shape", "_values")

    def __init__(
        self, program: Program, item: ItemResult, report: Report | Facts, shape: tuple[int, ...] | None = None
    ) -> None:
        self._program = program
        self._item = item
        self._shape = shape
        self._values: dict[str, Any] | None = None
        self._report = report

    @property
    def fault(self) -> Fault | None:
        """What stopped the run, when it was to be reported instead of raised."""
        return self._item.fault

    @property
    def report(self) -> Report:
        """How the run went."""
        if isinstance(self._report, tuple):
            self._report = report_of(self._report)
        return self._report

    @classmethod
    def of(cls, program: Program, values: dict[str, Any], report: Report) -> Result:
        """A result of given values; names that are not among them are not there."""
        from vyre.engines.base import ItemResult

        found = cls(program, ItemResult(), report)
        found._values = values
        return found

    def _all(self) -> dict[str, Any]:
        if self._values is None:
            if self.fault is not None:
                raise ProgramFault(self.fault)
            program, item = self._program, self._item
            values: dict[str, Any] = {}
            for stream, a in zip(program.outputs, item.outputs, strict=True):
                if isinstance(a, np.ndarray):
                    values[stream.name] = a if self._shape is None else a.reshape(self._shape)
                else:  # in device memory: the caller's own array
                    values[stream.name] = a.owner
            for stream, a in zip(program.emits, item.emits, strict=True):
                values[stream.name] = a
            for acc, a in zip(program.accumulators, item.accumulators, strict=True):
                values[acc.name] = a if acc.bins else a[()]
            self._values = values
        return self._values

    def __getitem__(self, name: str) -> Any:
        values = self._all()
        try:
            return values[name]
        except KeyError:
            raise KeyError(
                f"program {self._program.name} has no result {name!r}; it has {', '.join(values) or 'none'}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in list(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> list[str]:
        """Names of the results, in order of declaration."""
        if self._values is not None:
            return list(self._values)
        p = self._program
        return [s.name for s in (*p.outputs, *p.emits)] + [a.name for a in p.accumulators]

    def items(self) -> list[tuple[str, Any]]:
        """(name, value) of each result."""
        return list(self._all().items())

    @property
    def value(self) -> Any:
        """The only result, or the one named ``value``."""
        found, program = self._item.outputs, self._program
        if self._values is None and len(found) == 1 and not (program.accumulators or program.emits):
            only = found[0]  # the common case, without a dict
            if type(only) is np.ndarray and self._item.fault is None:
                return only if self._shape is None or only.shape == self._shape else only.reshape(self._shape)
        values = self._all()
        if len(values) == 1:
            return next(iter(values.values()))
        if "value" in values:
            return values["value"]
        raise KeyError(
            f"program {self._program.name} has {len(values)} results and none is named value; it has {', '.join(values)}"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.value, dtype=dtype, copy=True) if copy else np.asarray(self.value, dtype=dtype)

    def __repr__(self) -> str:
        if self.fault is not None:
            return f"<vyre result of {self._program.name}: {self.fault}>"
        return f"<vyre result of {self._program.name}: {', '.join(self.keys())}>"
