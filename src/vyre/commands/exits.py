"""Exit codes of the command line, and which error ends in which.

Owns: the codes; docs/cli.md is printed from this table. Leaves to others: what the errors say.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import vyre.errors as errors


class Exit(NamedTuple):
    """One exit code: its number, what it means, and the errors that end in it."""

    code: int
    meaning: str
    errors: tuple[type[BaseException], ...] = ()


OK: Final = Exit(0, "all is well")
FAILED: Final = Exit(1, "the program faulted, or cases, checks or targets failed", (errors.ProgramFault,))
USAGE: Final = Exit(
    2,
    "the command line, a path's contents, a name or a parameter does not fit",
    (errors.BindError, errors.BackendError),
)
REFUSED: Final = Exit(3, "the program was refused: its source, listing or bytecode is at fault", (errors.ProgramError,))
ENGINE: Final = Exit(
    4,
    "the engine is not to be had here, or gave no answer (lost, closed, full, timed out)",
    (
        errors.EngineUnavailable,
        errors.DeviceLost,
        errors.SessionClosed,
        errors.RingFull,
        errors.ArenaFull,
        errors.WaitTimeout,
        errors.Cancelled,
    ),
)
IO: Final = Exit(5, "a file or pipe could not be read or written", (errors.StreamError, OSError))
INTERRUPTED: Final = Exit(130, "interrupted (Ctrl-C)", (KeyboardInterrupt,))

EXITS: Final = (OK, FAILED, USAGE, REFUSED, ENGINE, IO, INTERRUPTED)


def exit_of(error: BaseException) -> Exit | None:
    """The exit that ``error`` ends in, or None when it is none that anybody raised on purpose: a bug of ours."""
    for kind in type(error).__mro__:  # the most special class decides: WaitTimeout is a TimeoutError is an OSError
        for exit in EXITS:
            if kind in exit.errors:
                return exit
    return USAGE if isinstance(error, errors.VyreError) else None
