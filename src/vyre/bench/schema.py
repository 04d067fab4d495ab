"""One schema for every figure: benchmarks/results/*.json is read and written here and nowhere else.

A result file is a JSON list of rows; a row is one figure:

    row      what was measured, a short name; unique over all files
    value    the figure, a number
    unit     of value, targets and peers: "ms", "GB/s", "x", "M slots/s", ...
    target   "<= 0.15", ">= 0.9", or "" for a figure that is stated without a target
    peer     {"NumPy": 0.034, "numexpr": 0.72}: the same thing by others, in the same run; may be empty
    machine  one line: processor, cores, memory, system
    commit   of the code that was measured, with "+" behind it when the tree was not clean
    spread   half the distance of the middle half of the runs, as a share of value: 0.03 is +-3 %

and, where they help:

    must     true for a row that has to be met before the work counts as done
    loaded   true when other processes used the machine meanwhile: the figure says less than it could
    reason   why a target was missed, or what the figure does not show
    points   {"vyre cpu": [[1, 0.00009], ...], "NumPy": ...}: [elements, seconds] for the picture
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from vyre.errors import BindError, StreamError

RESULTS: Final = Path("benchmarks/results")


@dataclass(frozen=True)
class Row:
    """One figure. Fields as in the schema above.

    Raises:
        BindError: a field breaks the schema; the message names row, field and value.
    """

    row: str
    value: float
    unit: str
    target: str
    peer: Mapping[str, float]
    machine: str
    commit: str
    spread: float
    must: bool = False
    reason: str = ""
    points: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    loaded: bool = False

    def __post_init__(self) -> None:
        def refuse(name: str, rule: str) -> None:
            raise BindError(f"result {self.row!r}: {name} is {getattr(self, name)!r}, it must be {rule}")

        for name in ("row", "unit", "target", "machine", "commit", "reason"):
            if not isinstance(getattr(self, name), str):
                refuse(name, "text")
        for name in ("value", "spread"):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int | float):
                refuse(name, "a number")
        if not self.row or not self.unit:
            refuse("row" if not self.row else "unit", "not empty")
        if not isinstance(self.peer, Mapping) or not all(isinstance(v, int | float) for v in self.peer.values()):
            refuse("peer", "a mapping from names to numbers")
        for name in ("must", "loaded"):
            if not isinstance(getattr(self, name), bool):
                refuse(name, "true or false")
        self.bound()

    def bound(self) -> tuple[str, float] | None:
        """The target as ("<=" or ">=", number), None when there is none."""
        if not self.target:
            return None
        sign, _, number = self.target.partition(" ")
        try:
            if sign not in ("<=", ">="):
                raise ValueError
            return sign, float(number)
        except ValueError:
            raise BindError(
                f"result {self.row!r}: target is {self.target!r}, it must be '<= NUMBER', '>= NUMBER' or ''"
            ) from None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        bound = self.bound()
        if bound is None:
            return None
        return self.value <= bound[1] if bound[0] == "<=" else self.value >= bound[1]


_FIELDS: Final = {each.name for each in fields(Row)}
_NEEDED: Final = {"row", "value", "unit", "target", "peer", "machine", "commit", "spread"}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write one result file, replacing what was there whole."""
    text = json.dumps([{k: v for k, v in asdict(row).items() if k in _NEEDED or v} for row in rows], indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def read(folder: Path = RESULTS) -> list[Row]:
    """Rows of every ``*.json`` in a folder, files in order of their names.

    Raises:
        StreamError: a file cannot be read or is no JSON, or the folder is not there.
        BindError: a row breaks the schema, or two rows have one name.
    """
    if not folder.is_dir():
        raise StreamError(
            f"no folder {folder} with results",
            fix="run this in a checkout of the project, or name the folder with --results",
        )
    found: dict[str, Row] = {}
    for path in sorted(folder.glob("*.json")):
        for row in _read_file(path):
            if row.row in found:
                raise BindError(f"{path}: row {row.row!r} is also in another file", fix="row names are unique")
            found[row.row] = row
    return list(found.values())


def _read_file(path: Path) -> list[Row]:
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StreamError(f"{path}: not JSON: {error}") from None
    if not isinstance(given, list):
        raise BindError(f"{path}: must be a list of rows")
    rows = []
    for i, each in enumerate(given):
        if not isinstance(each, dict) or not _NEEDED <= each.keys() <= _FIELDS:
            keys = each.keys() if isinstance(each, dict) else set()
            wrong = sorted(_NEEDED - keys) or sorted(keys - _FIELDS)
            raise BindError(f"{path}: row {i} lacks or does not know: {', '.join(wrong)}")
        try:
            rows.append(Row(**each))
        except BindError as error:
            raise BindError(f"{path}: {error.message}", fix=error.fix) from None
    return rows


def machine() -> str:
    """This machine in one line: processor, cores that this process may use, memory, system."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        memory = 0.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{model}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def commit() -> str:
    """The commit of the checkout that the working directory is in, "+" behind it when it is not clean; or "unknown"."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks", ":!benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if dirty.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def spread(runs: Sequence[float]) -> float:
    """Half the distance between the quartiles of ``runs``, as a share of their median; 0 for fewer than three."""
    if len(runs) < 3:
        return 0.0
    ordered = sorted(runs)

    def quantile(q: float) -> float:
        at = q * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (at - low)

    middle = quantile(0.5)
    return (quantile(0.75) - quantile(0.25)) / 2 / abs(middle) if middle else 0.0
