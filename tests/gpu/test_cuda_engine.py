"""The GPU engine on a device: bits, residency, ordering, faults, neighbours. Says why when there is no device."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from narrow_programs import narrow_program

from vyre.engines import differential, reference
from vyre.engines.conform import run_cases
from vyre.engines.cuda.bindings import NUMPY
from vyre.engines.cuda.engine import CudaEngine
from vyre.errors import EngineUnavailable, SessionClosed, WaitTimeout
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import AccKind, FaultCode, MemType, Type
from vyre.program.random import compare, random_inputs
from vyre.program.verifier import verify
from vyre.ring.layout import SLOT_DTYPE, Opcode, Status
from vyre.store import Store

DATA = Path(__file__).parent.parent / "data"
try:
    _engine = CudaEngine(store=Store(), hard_s=10.0)
except EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)


@pytest.fixture(scope="module")
def engine():
    yield _engine
    _engine.close()


def scale(factor: float, then: int = 0) -> Program:
    """y = x * factor, and ``then`` additions of 1."""
    b = Builder("scale")
    b.input("x", MemType.f32)
    b.output("y", MemType.f32)
    r = b.op("f32.mul", b.op("f32.load", imm=0), b.const(Type.f32, factor))
    one = b.const(Type.f32, 1.0)
    for _ in range(then):
        r = b.op("f32.add", r, one)
    b.op("f32.store", r, imm=0)
    return b.build()


def endless(fuel: int) -> Program:
    b = Builder("endless")
    b.input("x", MemType.i32)
    b.output("y", MemType.i32)
    x = b.op("i32.load", imm=0)
    one = b.const(Type.i32, 1)
    b.loop()
    b.br_if(one)
    b.end()
    b.op("i32.store", x, imm=0)
    program = b.build()
    return Program(**{**{f: getattr(program, f) for f in program.__dataclass_fields__}, "fuel": fuel})


def control(opcode: int, word: int = 0, operand: int = 0, new: int = 0) -> np.ndarray:
    slot = np.zeros(1, SLOT_DTYPE)
    slot["opcode"], slot["binding"], slot["first_low"], slot["first_high"] = opcode, word, operand, new
    return slot


def run_all(engine: CudaEngine, items: np.ndarray) -> np.ndarray:
    first = engine.submit_batch(items)
    assert first is not None
    engine.wait(first, len(items), 30)
    return engine.completions(first, len(items))


# --- bits -----------------------------------------------------------------------------------------------------------


def test_scalar_cases_pass_in_every_setting(engine):
    report = run_cases(DATA / "scalar_ops_sample.json", engine.execute)
    assert [str(f) for f in report.failures] == []


@pytest.mark.parametrize("functions", [False, True])
def test_random_programs_give_the_bits_of_the_reference(engine, functions):
    count = int(os.environ.get("VYRE_GPU_PROGRAMS", "400"))
    found = {}
    for seed in range(1, count + 1):
        difference = differential.difference(seed, engine.execute, functions=functions)
        if difference is not None:
            found[seed] = difference[:300]
    assert found == {}


@pytest.mark.parametrize("skew", [0, 1], ids=["aligned", "unaligned"])
def test_programs_of_32_bit_values_give_the_bits_of_the_reference(engine, skew):
    """With at least a tile of elements, so that the interpreter for them runs; ends of any length, arrays at any place."""
    found = {}
    for seed in range(1, 301):
        program = verify(narrow_program(seed)).program
        rng = random.Random(seed)
        count = rng.choice((1024, 1025, 1536, 2047, 3000, 5 * 1024, 20_001))
        first = rng.choice((0, 7 * 1024, 1 << 40))
        inputs, params, tables = random_inputs(program, seed, count)
        expected = reference.execute(program, inputs, params, tables, first, count)
        placed = []
        for x in inputs:
            placed.append(engine.pinned_empty(count + skew, x.dtype)[skew:])
            placed[-1][:] = x
        outputs = [engine.pinned_empty(count + skew, NUMPY[y.dtype])[skew:] for y in program.outputs]
        binding = engine.bind(engine.load(program), placed, tables, params, outputs, count, first)
        sequence = engine.publish(binding)
        engine.wait(sequence, 1, 10)
        difference = compare(expected, engine.result(binding, sequence), (tables, tables))
        if difference is not None:
            found[seed] = difference[:300]
        engine.unbind(binding)
        engine.unload(binding.opcode)
    assert found == {}


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 5_000, 1 << 20, (1 << 20) + 3])
def test_a_float_sum_has_one_value_whoever_adds(engine, count):
    b = Builder("total")
    b.input("x", MemType.f64)
    b.accumulator("s", AccKind.sum, MemType.f64)
    b.op("f64.acc_sum", b.op("f64.load", imm=0), imm=0)
    program = b.build()
    from vyre.engines import reference

    x = np.random.default_rng(count).normal(size=count) * 10.0 ** np.arange(count).astype(float).clip(0, 12)
    want = reference.execute(program, [x], [], [], 0, count)
    for _ in range(3):
        got = engine.execute(program, [x], [], [], 0, count)
        assert got.accumulators[0].tobytes() == want.accumulators[0].tobytes()


def test_one_buffer_rewritten_between_items_is_always_seen(engine):
    opcode = engine.load(verify(scale(2.0)))
    x = engine.pinned_empty(4096, np.float32)
    binding = engine.bind(opcode, [x])
    for i in range(10_000):
        x[:] = i
        sequence = engine.publish(binding)
        engine.wait(sequence)
        engine.completions(sequence, 1)
        y = binding.outputs[0]
        assert y[0] == 2 * i
        assert y[4095] == 2 * i
    engine.unbind(binding)


# --- residency ------------------------------------------------------------------------------------------------------


def test_nothing_is_lost_or_run_twice_over_random_pauses_and_lapses(engine):
    rng = random.Random(1)
    before = int(engine.session_words[7])
    relaunches = engine.residency.relaunches
    total = 0
    while total < 10_000:
        n = rng.choice((1, 1, 2, 7, 33, 500))
        first = engine.submit_batch(np.repeat(control(Opcode.ATOMIC_ADD, 7, 1), n))
        assert first is not None
        if rng.random() < 0.1:
            time.sleep(rng.choice((0.0005, 0.001, 0.003, 0.012)))
        if rng.random() < 0.1:
            engine.residency.leave()
        engine.wait(first, n, 10)
        engine.completions(first, n)
        total += n
    assert int(engine.session_words[7]) - before == total
    assert engine.residency.relaunches > relaunches + 10


def test_a_ring_of_1024_slots_drains_a_million_items():
    with CudaEngine(store=Store(), capacity=1024) as small:
        items = np.repeat(control(Opcode.ATOMIC_ADD, 3, 1), 1000)
        for _ in range(1000):
            records = run_all(small, items)
            assert (records["status"] == Status.DONE).all()
        assert int(small.session_words[3]) == 1_000_000


def test_a_full_ring_refuses_and_keeps_every_slot():
    with CudaEngine(store=Store(), capacity=8) as small:
        assert small.submit_batch(np.repeat(control(Opcode.NOP), 9)) is None
        first = small.submit_batch(np.repeat(control(Opcode.NOP), 8))
        assert first == 0
        assert small.submit_batch(control(Opcode.NOP)) is None
        small.wait(0, 8, 10)
        small.completions(0, 8)
        assert small.submit_batch(control(Opcode.NOP)) == 8


def test_big_items_go_on_after_the_stay():
    with CudaEngine(store=Store(), stay_s=0.0005) as short:
        opcode = short.load(verify(scale(1.0, then=200)))
        x = short.pinned_empty(32 << 20, np.float32)
        x[:] = np.arange(x.size)
        binding = short.bind(opcode, [x])
        before = short.residency.relaunches
        sequence = short.publish(binding)
        short.wait(sequence, 1, 30)
        assert short.completions(sequence, 1)["status"][0] == Status.DONE
        assert short.residency.relaunches > before + 1
        want = np.arange(x.size, dtype=np.float32)
        for _ in range(200):
            want = want + np.float32(1)
        assert np.array_equal(binding.outputs[0], want)


def test_inside_pause_nothing_runs_and_afterwards_everything_does(engine):
    with engine.pause():
        sequence = engine.submit_batch(control(Opcode.NOP))
        with pytest.raises(WaitTimeout):
            engine.wait(sequence, 1, 0.05)
    engine.wait(sequence, 1, 10)
    engine.completions(sequence, 1)


def test_finite_dispatch_covers_every_item_with_any_grid(engine):
    opcode = engine.load(verify(scale(3.0)))
    x = engine.pinned_empty(2048, np.float32)
    x[:] = np.arange(2048)
    binding = engine.bind(opcode, [x])
    items = np.repeat(np.frombuffer(binding.slot, SLOT_DTYPE), 300)
    for groups, width in ((1, 64), (1, 128), (7, 96), (64, 128)):
        records = engine.dispatch(items, groups, width)
        assert (records["status"] == Status.DONE).all()
        assert np.array_equal(binding.outputs[0], x * 3)


def test_an_engine_opened_and_closed_again_and_again_leaks_nothing():
    torch = pytest.importorskip("torch")
    store = Store()
    free = None
    for i in range(20):
        with CudaEngine(store=store, capacity=64, arena_bytes=1 << 20) as each:
            run_all(each, control(Opcode.NOP))
        if i == 2:
            free = torch.cuda.mem_get_info()[0]
    assert free is not None
    assert torch.cuda.mem_get_info()[0] >= free - (4 << 20)


def test_a_killed_process_leaves_the_gpu_free():
    code = (
        "import numpy as np, time; from vyre.engines.cuda.engine import CudaEngine; from vyre.store import Store;"
        "from vyre.ring.layout import SLOT_DTYPE; e = CudaEngine(store=Store(), grace_s=5.0, stay_s=5.0);"
        "e.submit_batch(np.zeros(1, SLOT_DTYPE)); print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    child.kill()
    child.wait(10)
    child.stdout.close()
    with CudaEngine(store=Store()) as again:
        assert run_all(again, control(Opcode.NOP))["status"][0] == Status.DONE


# --- order ----------------------------------------------------------------------------------------------------------


def test_a_fence_orders_increments_before_a_check(engine):
    before = int(engine.session_words[9])
    fence = control(Opcode.BATCH_FENCE)
    batch = np.concatenate([np.repeat(control(Opcode.ATOMIC_ADD, 9, 1), 50), fence, control(Opcode.LOAD_U32, 9), fence])
    for i in range(200):
        records = run_all(engine, np.concatenate([batch] * 10))
        seen = records["value"][51::53] - before
        assert seen.tolist() == [50 * (10 * i + k + 1) for k in range(10)]


def test_compare_and_swap_increments_total(engine):
    run_all(engine, control(Opcode.STORE_U32, 11, 0))
    for value in range(0, 1000, 10):
        ladder = np.concatenate(
            [
                x
                for k in range(10)
                for x in (control(Opcode.COMPARE_SWAP, 11, value + k, value + k + 1), control(Opcode.BATCH_FENCE))
            ]
        )
        records = run_all(engine, ladder)
        assert records["value"][::2].tolist() == list(range(value, value + 10))
    assert int(engine.session_words[11]) == 1000


# --- faults ---------------------------------------------------------------------------------------------------------


def test_an_endless_loop_ends_while_others_go_on(engine):
    loop = engine.load(verify(endless(200_000)))
    x = engine.pinned_empty(2048, np.int32)
    stuck = engine.bind(loop, [x])
    sequence = engine.publish(stuck)
    t0 = time.monotonic()
    run_all(engine, np.repeat(control(Opcode.NOP), 100))
    others = time.monotonic() - t0
    engine.wait(sequence, 1, 60)
    record = engine.completions(sequence, 1)[0]
    whole = time.monotonic() - t0
    assert (record["status"], record["code"], record["element"]) == (Status.FAULT, FaultCode.out_of_fuel, 0)
    assert others < whole


def test_an_opcode_without_a_handler_is_a_fault_with_its_opcode(engine):
    for opcode in (0x1_FFFF, 0x3FFF_FFFF, 9, int(Opcode.DFA_STEP)):
        record = run_all(engine, control(opcode))[0]
        assert (record["status"], record["code"], record["opcode"]) == (Status.FAULT, FaultCode.unknown_opcode, opcode)


def test_a_binding_that_is_not_there_or_of_another_program_is_a_fault(engine):
    one, two = (engine.load(verify(scale(f))) for f in (1.0, 2.0))
    binding = engine.bind(one, [np.zeros(10, np.float32)])
    slot = np.frombuffer(binding.slot, SLOT_DTYPE).copy()
    slot["opcode"] = two
    assert run_all(engine, slot)["code"][0] == FaultCode.bad_binding
    slot["opcode"], slot["binding"] = one, 0xFFFF_FFF0
    assert run_all(engine, slot)["code"][0] == FaultCode.bad_binding
    slot["binding"], slot["count_low"] = binding.number, 11
    assert run_all(engine, slot)["code"][0] == FaultCode.bad_binding


# --- neighbours -----------------------------------------------------------------------------------------------------


def test_torch_synchronises_allocates_frees_and_captures_beside_a_busy_engine(engine):
    torch = pytest.importorskip("torch")
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            run_all(engine, np.repeat(control(Opcode.ATOMIC_ADD, 20, 1), 64))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        x = torch.zeros(1 << 20, device="cuda")
        graph = torch.cuda.CUDAGraph()
        for i in range(50):
            x += 1
            t0 = time.monotonic()
            torch.cuda.synchronize()
            assert time.monotonic() - t0 < 1.0
            y = torch.ones(1000 + i, device="cuda") * i
            assert y.sum().item() == (1000 + i) * i
            del y
            torch.cuda.empty_cache()
        with torch.cuda.graph(graph):
            z = x * 2
        graph.replay()
        torch.cuda.synchronize()
        assert z[0].item() == 100
    finally:
        stop.set()
        thread.join()


def test_arrays_of_torch_and_cupy_are_used_where_they_are(engine):
    torch = pytest.importorskip("torch")
    cupy = pytest.importorskip("cupy")
    opcode = engine.load(verify(scale(2.0)))
    x, y = torch.arange(5000, device="cuda", dtype=torch.float32), cupy.empty(5000, cupy.float32)
    for i in range(200):
        x += 1
        binding = engine.bind(opcode, [x], outputs=[y])
        sequence = engine.publish(binding)
        engine.wait(sequence)
        engine.completions(sequence, 1)
        assert float(y[4999]) == 2 * (4999 + i + 1)
        engine.unbind(binding)


def test_ten_thousand_programs_are_one_batch():
    with CudaEngine(store=Store(), capacity=16_384) as large:
        x = large.pinned_empty(32, np.float32)
        x[:] = np.arange(32)
        bindings = [large.bind(large.load(verify(scale(float(i), then=i % 5))), [x]) for i in range(10_000)]
        records = run_all(large, np.frombuffer(b"".join(b.slot for b in bindings), SLOT_DTYPE))
        assert (records["status"] == Status.DONE).all()
        for i in range(0, 10_000, 37):
            assert np.array_equal(bindings[i].outputs[0], x * np.float32(i) + np.float32(i % 5)), i


def test_a_closed_engine_says_so():
    closed = CudaEngine(store=Store(), capacity=64)
    closed.close()
    with pytest.raises(SessionClosed):
        closed.load(verify(scale(1.0)))
    gc.collect()
