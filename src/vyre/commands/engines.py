"""Engines by name, for commands: the choice on the command line, and single items without a session's streams.

Owns: names, one item of one program on one engine. Leaves to others: engines (engines/), sessions (runtime).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vyre.engines.base import ItemResult
    from vyre.engines.conform import Execute
    from vyre.program.ir import Program
    from vyre.runtime.session import Session

NAMES: Final = ("auto", "cpu", "cuda", "reference")


def engine_option(
    default: str = "auto", help: str = "who executes; auto takes cpu, because the data lies in files"
) -> Callable[[Any], Any]:
    """The option ``--engine``."""
    return click.option("--engine", type=click.Choice(NAMES), default=default, show_default=True, help=help)


io_option: Final = click.option(
    "--io",
    type=click.Choice(("auto", "hot", "uring-direct", "uring", "pread", "mapped", "cufile")),
    default="auto",
    show_default=True,
    help="how files are read: auto asks the page cache, any other way is taken or refused; mapped, cufile: engine cuda",
)


@contextmanager
def session_for_files(engine: str, io: str = "auto") -> Iterator[tuple[Session, str]]:
    """A session for work whose data lies in files, and the line that names its engine and says why.

    ``auto`` follows the data (decision 16): files are read by the host, so it takes the cpu engine, and the reference
    where that does not run.

    Raises:
        EngineUnavailable: it cannot run here; the message says what is missing.
    """
    from vyre.runtime.api import open as open_session

    if engine != "auto":
        with open_session(engine, io=io) as session:  # type: ignore[arg-type]
            yield session, session.choice
        return
    here = sys.platform == "linux"
    with open_session("cpu" if here else "reference", io=io) as session:
        why = "because the data lies in files" if here else f"because the cpu engine does not run on {sys.platform}"
        yield session, f"{session.choice.removesuffix(', as asked')}, {why}"


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
