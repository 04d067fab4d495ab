"""LLVM IR templates of the CPU engine: named sections of the .ll files beside this module.

Owns: reading and filling in. Leaves to others: which sections make a handler (handlers), and their text (the files).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from string import Template
from typing import Final

from vyre.engines.cpu import abi

_ABI: Final = {name: value for name, value in vars(abi).items() if name.isupper()}


@cache
def _sections(file: str) -> dict[str, Template]:
    """Sections of ``file``.ll: a line ``;; name`` opens one; other lines that start with ``;`` are comments."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in files(__package__).joinpath(f"{file}.ll").read_text(encoding="utf-8").splitlines():
        if line.startswith(";; "):
            lines = found.setdefault(line[3:].strip(), [])
            assert not lines, f"section {line!r} of {file}.ll is there twice"
        elif line and not line.startswith(";"):
            lines.append(line)
    return {name: Template("\n".join(text)) for name, text in found.items()}


def fill(file: str, section: str, **values: object) -> str:
    """Text of one section with every $NAME replaced by ``values`` or by the constant of abi.py.

    Raises:
        KeyError: no such section, or a $NAME without a value: a bug of ours.
    """
    return _sections(file)[section].substitute(_ABI, **values)


def has(file: str, section: str) -> bool:
    """Whether ``file``.ll has the section."""
    return section in _sections(file)
