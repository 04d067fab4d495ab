"""What compute-sanitizer runs: items of every kind in finite launches. ``python sanitized.py [programs]`` by itself, too.

A sanitizer makes the kernel fifty times slower, and racecheck reserves most shared memory for itself: one block a
multiprocessor.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import vyre
from vyre.engines import differential
from vyre.engines.conform import run_cases
from vyre.engines.cuda.items import SessionCudaEngine
from vyre.program.builder import Builder
from vyre.program.opcodes import Access, AccKind, MemType, Type
from vyre.program.verifier import verify
from vyre.ring.layout import SLOT_DTYPE, Opcode, Status
from vyre.store import Store

DATA = Path(__file__).parent.parent / "data"


def everything() -> Builder:
    """Streams, a table of each kind, accumulators, an emit under a branch."""
    b = Builder("everything")
    x, y = b.input("x", MemType.f64), b.output("y", MemType.f32)
    read, atomic = b.table("read", MemType.f32, Access.read), b.table("atomic", MemType.i32, Access.atomic)
    total = b.accumulator("total", AccKind.sum, MemType.f64)
    least = b.accumulator("least", AccKind.min, MemType.f64)
    bins = b.accumulator("bins", AccKind.histogram, MemType.i64, 16)
    row = b.emit_stream("row", MemType.f64)
    v = b.op("f64.load", imm=x)
    index = b.op("index")
    place = b.op("i64.and", index, b.const(Type.i64, 15))
    b.op("i32.table_add", place, b.const(Type.i32, 1), imm=atomic)
    b.op("f64.acc_sum", v, imm=total)
    b.op("f64.acc_min", v, imm=least)
    b.op("acc_histogram", b.op("i32.wrap_i64", place), imm=bins)
    b.if_(b.op("f64.gt", v, b.const(Type.f64, 0.0)))
    b.op("f64.emit", v, imm=row)
    b.end()
    b.op("f32.store", b.op("f32.table_get", place, imm=read), imm=y)
    return b


def main(programs: int) -> None:
    with SessionCudaEngine(0, store=Store(), resident=False, hard_s=300.0, capacity=1024, blocks=1) as engine:
        report = run_cases(DATA / "scalar_ops_sample.json", engine.execute)
        assert not report.failures, report.failures[:3]
        for seed in range(1, programs + 1):
            found = differential.difference(seed, engine.execute, functions=bool(seed & 1))
            assert found is None, found
        program = verify(everything().build())
        for count in (1, 1024, 20_000):
            x = np.linspace(-1, 1, count)
            table = np.zeros(16, np.int32)
            result = engine.execute(program, [x], [], [np.arange(16, dtype=np.float32), table], 0, count)
            assert result.fault is None
            assert int(table.sum()) == count
        adds = np.zeros(300, SLOT_DTYPE)
        adds["opcode"], adds["first_low"] = Opcode.ATOMIC_ADD, 1
        fence = np.zeros(1, SLOT_DTYPE)
        fence["opcode"] = Opcode.BATCH_FENCE
        records = engine.dispatch(np.concatenate([adds, fence, adds]), 7, 96)
        assert (records["status"] == Status.DONE).all()
        assert int(engine.session_words[0]) == 600
    print(f"vyre {vyre.__version__}: {programs} random programs, {report.passed} cases, every kind of item: right")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
