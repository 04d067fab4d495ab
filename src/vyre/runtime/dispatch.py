"""Finite dispatch: the same interpreter, launched for exactly these items, leaving when nothing is left (decision 31).

Owns: what a batch may be, and joining of its records and results. Leaves to others: geometry (vyre.geometry), workgroups
(engines), what may be bound (session).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vyre.cores import available_cores
from vyre.engines.base import ItemResult
from vyre.errors import BindError
from vyre.geometry import DispatchConfig, MegakernelLaunchGeometry
from vyre.ring.layout import SLOT_DTYPE
from vyre.runtime.batches import slots_of
from vyre.runtime.result import Facts, Result

if TYPE_CHECKING:
    from vyre.runtime.faults import OnFault
    from vyre.runtime.loaded import Bound
    from vyre.runtime.session import Session

Batch: TypeAlias = "Sequence[Bound] | Sequence[tuple[Any, dict[str, Any]]] | NDArray[Any]"
WIDTH_MAX = 256
"""Lanes of a group when no config says so: what the seed's planner is given for a device of unknown limits."""


def geometry_for(items: int, workers: int) -> DispatchConfig:
    """The standard geometry for so many items and workers."""
    return MegakernelLaunchGeometry.from_item_count(items, workers, WIDTH_MAX).dispatch_config()


def _workers(session: Session) -> int:
    """Workers wanted when no config says so: blocks that the GPU holds at once, or cores that this process may use."""
    engine: Any = session.engine
    return int(engine.residency.blocks) if engine.name == "cuda" else available_cores()


def dispatch(session: Session, batch: Batch, config: DispatchConfig | None, on_fault: OnFault) -> Any:
    """See ``Session.dispatch``."""
    if isinstance(batch, np.ndarray):
        return _records(session, slots_of(batch), config)
    bound, mine = _bound(session, batch)
    try:
        return _results(session, bound, config or geometry_for(len(bound), _workers(session)), on_fault)
    finally:
        for one in mine:
            one.close()


def _bound(session: Session, batch: Sequence[Any]) -> tuple[list[Bound], list[Bound]]:
    """The batch as bound programs, and those of them that were bound here."""
    from vyre.runtime.loaded import Bound

    bound: list[Bound] = []
    mine: list[Bound] = []
    try:
        for i, entry in enumerate(batch):
            if isinstance(entry, Bound):
                if entry.session is not session:
                    raise BindError(f"item {i} of the batch is bound in another session")
                if any(entry is other for other in bound):
                    raise BindError(f"item {i} of the batch is there twice", fix="bind the operands twice")
                bound.append(entry)
                continue
            try:
                program, operands = entry
            except (TypeError, ValueError):
                raise BindError(
                    f"item {i} of the batch is a {type(entry).__name__}",
                    fix="pass (program, {name: value}), what session.bind gave, or an array of slots",
                ) from None
            one = session.bind(program, operands)
            mine.append(one)
            bound.append(one)
    except BaseException:
        for one in mine:
            one.close()
        raise
    return bound, mine


def _groups(config: DispatchConfig) -> int:
    x, y, z = config.grid_override
    return max(1, x) * max(1, y) * max(1, z)


def _results(session: Session, bound: list[Bound], config: DispatchConfig, on_fault: OnFault) -> list[Result]:
    from vyre.engines.cpu.engine import CpuEngine
    from vyre.engines.cpu.items import CpuItem

    engine: Any = session.engine
    began = time.perf_counter()
    raws: list[ItemResult] = []
    notes: list[str] = []
    if isinstance(engine, CpuEngine):
        items: list[CpuItem] = [one._item for one in bound]
        slots = np.concatenate([item.prepared() for item in items]) if items else slots_of(b"")
        for item, record in zip(
            items, engine.dispatch(slots, _groups(config), timeout_s=config.timeout_s, owners=items), strict=True
        ):
            raws.append(item.collected_from(record))
    elif engine.name == "cuda":
        raws = _launched(session, [one._item for one in bound], config)
    else:  # every item runs, but by no launch of its own; the report says so
        notes.append(f"engine {engine.name} ran the items one after another, without a finite launch for them")
        raws = [session._execute(one._item, config.timeout_s) for one in bound]
    seconds = time.perf_counter() - began
    results = []
    for one, raw in zip(bound, raws, strict=True):
        operands = one._item.operands
        if raw.fault is not None:
            raw = session._fault(raw, one._loaded, operands, on_fault)
        facts: Facts = (engine.name, operands.count, operands.count * one._loaded._bytes, seconds, notes)
        results.append(Result(one._loaded.program, raw, facts, one._shape))
    return results


def _launched(session: Session, items: list[Any], config: DispatchConfig) -> list[ItemResult]:
    """Items of the GPU engine in launches of their own."""
    slots = [item.prepared() for item in items]
    ready = b"".join(slot for slot in slots if slot is not None)
    records = iter(_on_gpu(session, np.frombuffer(ready, SLOT_DTYPE), config))
    return [
        item.result() if slot is None else item.collected_from(next(records))
        for item, slot in zip(items, slots, strict=True)
    ]


def _on_gpu(session: Session, slots: NDArray[Any], config: DispatchConfig) -> NDArray[np.void]:
    engine: Any = session.engine
    found: NDArray[np.void] = engine.dispatch(
        slots, _groups(config), block_threads(config), timeout_s=config.timeout_s, make_room=session._reap
    )
    return found


def _records(session: Session, slots: NDArray[np.void], config: DispatchConfig | None) -> NDArray[np.void]:
    from vyre.engines.cpu.engine import CpuEngine

    engine: Any = session.engine
    config = config or geometry_for(len(slots), _workers(session))
    if isinstance(engine, CpuEngine):
        return engine.dispatch(slots, _groups(config), timeout_s=config.timeout_s)
    if engine.name == "cuda":
        return _on_gpu(session, slots, config)
    raise BindError(f"engine {engine.name} takes no slots, only programs with operands")


def block_threads(config: DispatchConfig) -> int:
    """Threads of a block for a geometry's group width: whole warps, 64 to 128, which is what the GPU's kernel is made for.

    A group of another width is covered all the same: workers loop over tickets.
    """
    return min(max(config.workgroup_override[0] // 32 * 32, 64), 128)
