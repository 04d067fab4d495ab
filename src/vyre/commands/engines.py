"""Engines by name, for commands that run single items without a session's streams.

Owns: names, and the words for an engine that is not to be had. Leaves to others: engines (engines/).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vyre.errors import BindError

if TYPE_CHECKING:
    from vyre.engines.conform import Execute

NAMES: Final = ("reference", "cpu", "cuda")


@contextmanager
def executor(name: str) -> Iterator[Execute]:
    """A function that runs one item of a program on the engine ``name``.

    Raises:
        BindError: no engine has that name.
        EngineUnavailable: it cannot run here; the message says what is missing.
    """
    if name not in NAMES:
        raise BindError(f"no engine is called {name!r}", fix=f"the engines are {', '.join(NAMES)}")
    if name == "reference":
        from vyre.engines.reference import execute

        yield execute
        return
    raise NotImplementedError
