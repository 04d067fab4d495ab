"""Which engine a session gets, and one line that says so (decision 16)."""

from __future__ import annotations

import sys
from typing import Any, Final

from vyre.engines.base import Engine
from vyre.errors import EngineUnavailable

PING_S: Final = 0.2
"""A slot that is published while the kernel is there must be answered in this time, or the session works in finite
launches (decision 31): some virtual machines and displays' watchdogs let no kernel and host talk while both run."""
NAMES = ("auto", "cpu", "cuda", "null", "reference")


def make_engine(
    name: str,
    *,
    device: int = 0,
    workers: int | None = None,
    capacity: int | None = None,
    resident: bool = True,
    idle_s: float | None = None,
    stay_s: float | None = None,
    store: bool = True,
) -> tuple[Engine, str]:
    """An engine by name and a line that names it and says why.

    Raises:
        EngineUnavailable: it cannot run here; the message says what is missing.
        ValueError: no engine has that name.
    """
    if name not in NAMES:
        raise ValueError(f"engine {name!r} is unknown; one of {', '.join(NAMES)}")
    if name == "reference":
        from vyre.engines.immediate import ReferenceEngine

        return ReferenceEngine(), "engine reference, as asked"
    options: dict[str, Any] = {"workers": workers, "resident": resident}
    if capacity is not None:
        options["capacity"] = capacity
    why = "as asked"
    if name in ("auto", "cuda"):
        gpu, reason = _cuda(device, idle_s, stay_s, capacity, resident, required=name == "cuda")
        if gpu is not None:
            return gpu, f"engine cuda, {reason}"
        why = reason
    if sys.platform != "linux":
        raise EngineUnavailable(
            f"engine {name if name != 'auto' else 'cpu'} runs on Linux, this is {sys.platform}",
            fix="open with engine='reference', which runs everywhere, slowly",
        )
    from vyre.store import Store

    options["store"] = Store() if store else None
    if name == "null":
        from vyre.engines.null import NullEngine

        return NullEngine(**options), "engine null, as asked: nothing is executed"
    from vyre.engines.cpu.engine import CpuEngine

    engine = CpuEngine(**options)
    return engine, f"engine cpu with {engine.workers} workers, {why}"


def _cuda(
    device: int, idle_s: float | None, stay_s: float | None, capacity: int | None, resident: bool, *, required: bool
) -> tuple[Engine | None, str]:
    """The GPU engine and why, or None and what is missing."""
    try:
        from vyre.engines.cuda.items import SessionCudaEngine
        from vyre.store import Store

        options: dict[str, Any] = {"resident": resident, "store": Store(), "quick_start": True}
        if idle_s is not None:
            options["grace_s"] = idle_s
        if stay_s is not None:
            options["stay_s"] = stay_s
        if capacity is not None:
            options["capacity"] = capacity
        engine = SessionCudaEngine(device, **options)
    except EngineUnavailable as error:
        if required:
            raise
        return None, f"because there is no GPU to use: {error.message}"
    why = "as asked" if required else "because there is a GPU"
    if resident and engine.ping(PING_S) is None:
        engine.make_finite()
        why += (
            f"; in finite launches, because a slot published while the kernel was there was not answered in {PING_S} s"
        )
    return engine, f"device {device}, {why}"
