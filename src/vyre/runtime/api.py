"""The functions of ``import vyre``: open, run and evaluate, on a session that is opened when first needed.

Owns: the default session. Leaves to others: everything else (session).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vyre.engines.device_array import is_on_device
from vyre.runtime.faults import OnFault
from vyre.runtime.programs import ProgramLike
from vyre.runtime.result import Result
from vyre.runtime.session import EngineName, Session

_lock = threading.Lock()
_defaults: dict[str, Session] = {}


def open(
    engine: EngineName = "auto",
    *,
    device: int = 0,
    workers: int | None = None,
    pool_bytes: int | None = None,
    io: str = "auto",
    capacity: int | None = None,
    resident: bool = True,
    idle_s: float | None = None,
    stay_s: float | None = None,
    store: bool = True,
) -> Session:
    """Open a session: an engine that stays until ``close()``. Use it in a ``with``.

    Args:
        engine: "auto" takes cuda where there is one, else cpu; "cpu", "cuda", "null" and "reference" take that one.
        device: number of the GPU.
        workers: threads that execute at the same time; None takes what affinity and cgroup allow.
        pool_bytes: memory that streams read cold files into.
        io: how streams read files: "auto", "hot", "uring-direct", "uring" or "pread"; on the GPU "mapped" and "cufile" too.
        capacity: slots of the session's ring, a power of two up to 1,048,576.
        resident: False keeps no thread: items run in waiting threads and by ``dispatch``; on the GPU the kernel is launched
            for what is there and leaves when that is done.
        idle_s, stay_s: the GPU lease's grace and longest stay.
        store: False keeps compiled code in this process only.
    Raises:
        EngineUnavailable: that engine cannot run here; the message says what is missing.
    """
    return Session(
        engine,
        device=device,
        workers=workers,
        pool_bytes=pool_bytes,
        io=io,
        capacity=capacity,
        resident=resident,
        idle_s=idle_s,
        stay_s=stay_s,
        store=store,
    )


def default_session(engine: EngineName = "auto") -> Session:
    """The session that one-off calls share; one per engine, closed when the process ends.

    "auto" is cpu here, also beside a GPU: a single call over host arrays does not pay for the way there. Calls over
    device arrays ask for cuda themselves (decision 16).
    """
    if engine == "auto":
        engine = "cpu"
    found = _defaults.get(engine)
    if found is not None and not found.closed:
        return found
    with _lock:
        found = _defaults.get(engine)
        if found is None or found.closed:
            found = _defaults[engine] = Session(engine)
        return found


def run(
    program: ProgramLike,
    inputs: Any = None,
    /,
    *,
    engine: EngineName = "auto",
    out: Any = None,
    elements: int | None = None,
    timeout_s: float | None = None,
    on_fault: OnFault = "raise",
    chunk: int | None = None,
    io: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **named: Any,
) -> Result:
    """Run a program over arrays or files on the default session. Arguments as for ``Session.run``.

    Args:
        engine: "auto" takes cuda when an input lies in device memory, else cpu.
    """
    if engine == "auto" and any(in_device_memory(a) for a in (inputs, *values_of(inputs), *named.values())):
        engine = "cuda"
    return default_session(engine).run(
        program,
        inputs,
        out=out,
        elements=elements,
        timeout_s=timeout_s,
        on_fault=on_fault,
        chunk=chunk,
        io=io,
        progress=progress,
        **named,
    )


def evaluate(text: str, /, *, engine: EngineName = "auto", out: Any = None, **arrays: Any) -> Any:
    """Compute an expression over arrays: ``evaluate("2*a + where(b > 0, sqrt(b), 0)", a=a, b=b)``.

    numexpr's spelling, decision 12's types: the dtypes of the arrays are those of the expression's names; Python
    numbers are parameters. Never executed by Python.

    Returns:
        An array of the shape of the inputs; a scalar for a reduction (``sum(...)``, ``min(...)``, ``max(...)``).
    Raises:
        CompileError: the text is not an expression that can be compiled; says where.
        BindError: arrays of different lengths or of types that there are none of.
    """
    if engine == "auto" and any(in_device_memory(a) for a in arrays.values()):
        engine = "cuda"
    session = default_session(engine)
    return session.evaluate(text, arrays, out=out)


def in_device_memory(value: Any) -> bool:
    """True for arrays of a GPU: torch, CuPy, JAX and whatever else speaks DLPack or the CUDA array interface."""
    return type(value) is not np.ndarray and is_on_device(value)


def values_of(inputs: Any) -> Iterable[Any]:
    """The values of a mapping, nothing of anything else."""
    return inputs.values() if isinstance(inputs, Mapping) else ()
