"""The words of ``vyre run`` that name files, as columns.

Owns: NAME=PATH, commas between paths, the column behind a colon, which name a bare path has. Leaves to others: what
lies in the files (vyre.stream).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vyre.errors import BindError, StreamError

if TYPE_CHECKING:
    from vyre.program.ir import Program
    from vyre.program.opcodes import MemType
    from vyre.stream.formats import Column


def columns_of(inputs: Sequence[str]) -> tuple[dict[str, Column], Column | None]:
    """Columns by name, and the one without a name. ``x=a,b`` is two files, unless a file of the name ``a,b`` is there.

    ``PATH:COLUMN`` takes one column of a file that has several, by name or index, unless PATH:COLUMN is itself a file.

    Raises:
        BindError: some words have a name and others none, or the files of one name have different columns.
    """
    named: dict[str, list[str]] = {}
    bare: list[str] = []
    for each in inputs:
        name, equals, paths = each.partition("=")
        if equals and name.isidentifier():
            named.setdefault(name, []).extend([paths] if Path(paths).exists() else paths.split(","))
        else:
            bare.append(each)
    if named and bare:
        raise BindError(f"{bare[0]!r} has no name, others have one", fix="write NAME=PATH for each input")
    return {name: _column(words) for name, words in named.items()}, _column(bare) if bare else None


def _column(words: Sequence[str]) -> Column:
    from vyre.stream.formats import Column

    paths, fields = zip(*(_split(word) for word in words), strict=True)
    if len(set(fields)) > 1:
        listed = ", ".join(words)
        raise BindError(f"{listed}: files of one input give the same column", fix="write it behind each of the paths")
    return Column(paths, field=fields[0])


def _split(word: str) -> tuple[str, str | None]:
    path, colon, field = word.rpartition(":")
    if not colon or not path or not field or "/" in field or Path(word).exists():
        return word, None
    return path, field


def types_of(columns: Mapping[str, Column]) -> dict[str, MemType]:
    """Types that files say themselves, for programs that take their types from their inputs."""
    from vyre.stream.source import type_in_files

    found = {}
    for name, column in columns.items():
        try:
            dtype = type_in_files(name, column)
        except (StreamError, BindError):
            continue  # the same file is opened again, and refused in full words, when it is bound
        if dtype is not None:
            found[name] = dtype
    return found


def with_names(program: Program, named: Mapping[str, Column], bare: Column | None) -> dict[str, Column]:
    """The columns of a program's inputs: those that were named, or the bare one, which is the only input's.

    Files that have named columns give each input the column of its name.

    Raises:
        BindError: bare paths could be several inputs'.
    """
    from vyre.stream.source import has_names

    if bare is None:
        return dict(named)
    inputs = [stream.name for stream in program.inputs]
    if len(inputs) != 1 and not (inputs and bare.field is None and has_names(bare)):
        raise BindError(
            f"{bare.paths[0]!r} has no name, and {program.name} has {len(inputs)} inputs",
            fix=f"write {' '.join(f'{name}=PATH' for name in inputs)}" if inputs else "leave the paths out",
        )
    return dict.fromkeys(inputs, bare)
