"""Engines by name, for commands: the choice on the command line, and single items without a session's streams.

Owns: names, one item of one program on one engine. Leaves to others: engines (engines/), sessions (runtime).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vyre.engines.base import ItemResult
    from vyre.engines.conform import Execute
    from vyre.program.ir import Program

NAMES: Final = ("auto", "cpu", "cuda", "reference")


def engine_option(default: str = "auto") -> Callable[[Any], Any]:
    """The option ``--engine``."""
    return click.option("--engine", type=click.Choice(NAMES), default=default, show_default=True, help="who executes")


io_option: Final = click.option(
    "--io",
    type=click.Choice(("auto", "hot", "uring-direct", "uring", "pread")),
    default="auto",
    show_default=True,
    help="how files are read: auto asks the page cache, any other way is taken or refused",
)


@contextmanager
def executor(name: str) -> Iterator[Execute]:
    """A function that runs one item of a program on the engine ``name``, and what it is called for in conform.

    Raises:
        EngineUnavailable: it cannot run here; the message says what is missing.
    """
    import numpy as np

    from vyre.engines.base import Operands
    from vyre.runtime.api import open as open_session
    from vyre.stream.formats import numpy_dtype

    with open_session(name) as session:  # type: ignore[arg-type]
        last: list[Any] = [None, None]

        def execute(
            program: Program,
            inputs: Sequence[NDArray[Any]],
            params: Sequence[int],
            tables: Sequence[NDArray[Any]],
            first: int,
            count: int,
        ) -> ItemResult:
            if last[0] is not program:
                if last[1] is not None:
                    last[1].close()
                last[:] = program, session.load(program)
            operands = Operands(
                first,
                count,
                [np.ascontiguousarray(each) for each in inputs],
                [np.empty(count, numpy_dtype(s.dtype)) for s in program.outputs],
                [np.empty(count, numpy_dtype(s.dtype)) for s in program.emits],
                list(tables),
                list(params),
            )
            item = session.engine.item(last[1].opcode, operands)
            try:
                while not item.start(wake=False):  # pragma: no cover - nobody else uses this ring
                    pass
                while not item.wait(50_000_000):
                    pass
                return item.result()
            finally:
                item.close()

        yield execute
