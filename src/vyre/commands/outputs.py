"""Which result goes into which file, and what is kept of those that go into none.

Owns: the words of ``--out``. Leaves to others: writing whole files or none (vyre.stream.sink).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from vyre.errors import BindError
from vyre.program.opcodes import MemType
from vyre.stream.arrow import SUFFIXES
from vyre.stream.sink import STDOUT, Sink, Sinks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vyre.program.ir import Program
    from vyre.runtime.result import Result

KEPT: Final = 1_000
"""Elements of an output that are kept to be shown when nobody asked for a file."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file under its name, or leave what was there. Raises StreamError when the disk refuses."""
    import numpy as np

    with Sink(path, MemType.u8, format="raw") as sink:
        sink.write(np.frombuffer(data, np.uint8))


class Output:
    """One output or emit on its way: into a file, or its first elements into memory.

    Attributes:
        name, kind, dtype: of the declaration; kind is "output" or "emit".
        path: the file, "-" for standard output, None when only the first elements are kept.
        elements: how many came.
    """

    def __init__(self, name: str, kind: str, dtype: MemType, path: str | None) -> None:
        self.name, self.kind, self.dtype, self.path = name, kind, dtype, path
        self.elements = 0
        self._first: list[NDArray[Any]] = []

    def count(self, values: NDArray[Any]) -> None:
        """Count a part's elements, and keep the first ones where no file does."""
        if self.path is None and self.elements < KEPT:
            self._first.append(values[: KEPT - self.elements].copy())
        self.elements += values.size

    def first(self) -> list[Any]:
        """The elements that were kept, as Python's numbers; those of bf16 as the numbers that the bits mean."""
        import numpy as np

        parts = self._first
        if self.dtype is MemType.bf16:
            parts = [(part.astype(np.uint32) << 16).view(np.float32) for part in parts]
        return [value for part in parts for value in part.tolist()]

    def words(self, shown: int) -> str:
        """Length and first elements, or the file, for people."""
        if self.path is not None:
            return f"{self.elements:,} elements -> {self.path}"
        values = self.first()[:shown]
        dots = ", ..." if self.elements > len(values) else ""
        return f"{self.elements:,} elements{': ' if values else ''}{', '.join(map(repr, values))}{dots}"

    def as_json(self) -> dict[str, Any]:
        """The same for programs; ``values`` are the first elements, all of them where ``complete``."""
        found: dict[str, Any] = {"kind": self.kind, "dtype": self.dtype.name, "elements": self.elements}
        if self.path is not None:
            return {**found, "path": self.path}
        values = self.first()
        return {**found, "values": values, "complete": len(values) == self.elements}


class Outputs(dict[str, Output]):
    """An Output for each output and emit of a program, by name, in order. Leave its ``with`` well and files are there.

    Args:
        outs: ``NAME=PATH``, or a bare PATH when there is one output or emit, or when it is an Arrow file's: a table of all.
    Raises:
        BindError: a name that the program does not have, twice the same, or a bare path that could be several's.
        StreamError: a file that cannot be written.
    """

    def __init__(self, program: Program, outs: Sequence[str]) -> None:
        super().__init__()
        kinds = {s.name: ("output", s.dtype) for s in program.outputs}
        kinds |= {s.name: ("emit", s.dtype) for s in program.emits}
        paths: dict[str, str] = {}
        for out in outs:
            if not kinds:
                raise BindError(
                    f"--out {out}: {program.name} has no outputs and no emits",
                    fix="its results are accumulators, which are printed",
                )
            name, equals, path = out.partition("=")
            if not equals or not name.isidentifier():
                if len(kinds) != 1 and out.endswith(SUFFIXES):
                    paths |= dict.fromkeys(kinds, out)
                    continue
                if len(kinds) != 1:
                    raise BindError(
                        f"--out {out} does not say of what: {program.name} has {len(kinds)} outputs and emits",
                        fix=" ".join(f"--out {each}=PATH" for each in kinds) + ", or all to one that ends in .arrow",
                    )
                name, path = next(iter(kinds)), out
            if name not in kinds:
                raise BindError(
                    f"--out {out}: {program.name} has no output or emit {name!r}",
                    fix=f"it has {', '.join(kinds)}",
                )
            if name in paths:
                raise BindError(f"--out {name} is given twice")
            if path in paths.values() and not path.endswith(SUFFIXES):
                raise BindError(f"--out {name} and another go both to {path}")
            paths[name] = path
        for name, (kind, dtype) in kinds.items():
            self[name] = Output(name, kind, dtype, paths.get(name))
        self._paths = paths
        self._sinks: Sinks | None = None

    @property
    def fill_stdout(self) -> bool:
        """True when standard output carries elements, so that nothing else may be printed there."""
        return any(output.path == STDOUT for output in self.values())

    def write(self, part: Result) -> None:
        """Append what a part has of every output and emit."""
        arrays = {name: part[name] for name in self}
        for name, output in self.items():
            output.count(arrays[name])
        if self._sinks is not None:
            self._sinks.write(arrays)

    def __enter__(self) -> Self:
        self._sinks = Sinks(self._paths, {name: output.dtype for name, output in self.items()})
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._sinks is not None
        if kind is None:
            self._sinks.commit()
        else:
            self._sinks.abort()
