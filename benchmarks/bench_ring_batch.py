"""ring_batch: slots a second from Python in batches of 256, with every completion record read and checked

Shows: the ring. A batch is published by one call, executed, waited for and collected; its records are compared with the
sequences and the status that they must have, and with the CPU engine also the 256 outputs, in each batch.
Does not show: what building a slot costs in Python (slots are made once), or work inside programs.
"""

from __future__ import annotations

import time

import numpy as np
from common import Bench, main

import vyre
from vyre.engines.base import Operands
from vyre.engines.cpu.engine import CpuEngine
from vyre.engines.cpu.engine import item as slot
from vyre.ring.layout import Status

BATCH = 256


def measure(bench: Bench) -> None:
    program = vyre.expression("a + a", {"a": vyre.f32})
    for engine_name, target in (("null", ">= 10"), ("cpu", ">= 5")):
        with vyre.open(engine_name) as session:  # type: ignore[arg-type]
            engine = session.engine
            assert isinstance(engine, CpuEngine)
            opcode = session.load(program).opcode
            x = np.arange(BATCH, dtype=np.float32)
            y = np.empty(BATCH, np.float32)
            items = [
                engine.item(opcode, Operands(0, 1, [x[i : i + 1]], [y[i : i + 1]], [], [], [])) for i in range(BATCH)
            ]
            slots = np.concatenate([slot(opcode, item.number, 0, 1) for item in items])
            runs = [
                _slots_per_s(bench, engine, slots, x, y, executes=engine_name == "cpu") / 1e6
                for _ in range(bench.rounds(15))
            ]
            what = "null engine" if engine_name == "null" else "CPU engine, 1 operation on 1 element"
            bench.add(f"slots from Python, batches of 256: {what}", runs, "M/s", target=target)
            for item in items:
                item.close()


def _slots_per_s(
    bench: Bench, engine: CpuEngine, slots: np.ndarray, x: np.ndarray, y: np.ndarray, *, executes: bool
) -> float:
    """Batches one after the other for a while; every record, and every output, compared."""
    batches = 20 if bench.quick else 3_000
    ring = engine.ring
    expected = np.arange(1, BATCH + 1, dtype=np.uint64)
    done = np.full(BATCH, int(Status.DONE), np.uint32)
    doubled, changed = x + x, np.float32(1)
    wrong = 0
    began = time.perf_counter()
    for _ in range(batches):
        if executes:
            x += changed
            doubled = x + x
        first = engine.submit(ring, slots)
        assert first is not None, "the ring is larger than a batch"
        ready = engine.wait(ring, first, BATCH, 1_000_000_000)
        while ready < BATCH:
            ready += engine.wait(ring, first + ready, BATCH - ready, 1_000_000_000)
        records = engine.collect(ring, first, BATCH)
        right = (records["sequence_plus_1"] == expected + first) & (records["status"] == done)
        wrong += BATCH - int(np.count_nonzero(right))
        if executes:
            wrong += BATCH - int(np.count_nonzero(y == doubled))
    seconds = time.perf_counter() - began
    if wrong:
        raise SystemExit(f"{wrong} records or outputs are wrong")
    return batches * BATCH / seconds


if __name__ == "__main__":
    main(__doc__, measure)
