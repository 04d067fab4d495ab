"""Small items of plain programs, which the poller runs itself from the second time on. Needs a device."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vyre.engines import reference
from vyre.engines.cuda.bindings import slot_of
from vyre.engines.cuda.engine import CudaEngine
from vyre.engines.cuda.handlers import HEAVY, NUMERIC
from vyre.errors import EngineUnavailable
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import MemType, Type
from vyre.program.random import NASTY, compare, random_inputs
from vyre.program.verifier import verify
from vyre.ring.layout import FLAG_INLINE_PARAMS, SLOT_DTYPE, Opcode, Status
from vyre.store import Store

try:
    _engine = CudaEngine(store=Store(), hard_s=10.0)
except EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)

KINDS = {Type.i32: MemType.i32, Type.i64: MemType.i64, Type.f32: MemType.f32, Type.f64: MemType.f64}


@pytest.fixture(scope="module")
def engine():
    yield _engine
    _engine.close()


def plain(seed: int) -> Program:
    """A random program without blocks, tables, traps and results other than streams."""
    rng = random.Random(f"plain {seed}")
    b = Builder("plain")
    known: dict[Type, list[int]] = {t: [] for t in KINDS}
    for i, (t, memory) in enumerate(KINDS.items()):
        b.input(f"in{i}", memory)
        known[t].append(b.op(f"{t.name}.load", imm=i))
        b.param(f"p{i}", memory)
        known[t].append(b.op(f"{t.name}.param", imm=i))
        known[t].append(b.bits(t, rng.choice(NASTY[t])))
    known[Type.i64].append(b.op("index"))
    names = [op for op in NUMERIC if op.name not in HEAVY]
    for _ in range(rng.randint(1, 25)):
        if rng.random() < 0.1:
            t = rng.choice(list(KINDS))
            made = b.op(f"{t.name}.select", rng.choice(known[t]), rng.choice(known[t]), rng.choice(known[Type.i32]))
            known[t].append(made)
            continue
        op = rng.choice(names)
        # The newest value more often than not: what the accumulator holds.
        made = b.op(op.name, *(rng.choice(known[t][-3:]) for t in op.args))
        assert op.result is not None
        known[op.result].append(made)
    for i, (t, memory) in enumerate(KINDS.items()):
        b.output(f"out{i}", memory)
        b.op(f"{t.name}.store", known[t][-1], imm=i)
    return b.build()


def runs(seed: int) -> Program:
    """Long runs of f32's add, sub and mul by constants, parameters and registers, broken here and there."""
    rng = random.Random(f"runs {seed}")
    b = Builder("runs")
    b.input("x", MemType.f32)
    b.param("p", MemType.f32)
    b.output("y", MemType.f32)
    x = b.op("f32.load", imm=0)
    others = [x, b.op("f32.param", imm=0), *(b.const(Type.f32, rng.uniform(-2, 2)) for _ in range(5))]
    r = x
    for _ in range(rng.choice((1, 2, 3, 4, 5, 8, 16, 31, 32, 33, 40, 80))):
        verb = rng.choice(("add", "sub", "mul", "add", "sub", "mul", "add", "sub", "mul", "min", "neg"))
        r = b.op("f32.neg", r) if verb == "neg" else b.op(f"f32.{verb}", r, rng.choice(others))
        if rng.random() < 0.05:
            others.append(r)  # a value that is needed again is stored
    b.op("f32.store", r, imm=0)
    return b.build()


@pytest.mark.parametrize("made", [plain, runs])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 9, 16, 17, 31, 32, 33])
def test_small_items_give_the_bits_of_the_reference_again_and_again(engine, count, made):
    for seed in range(60):
        program = verify(made(seed)).program
        first = random.Random(seed).choice((0, 1024, 1 << 40))
        inputs, params, _ = random_inputs(program, seed, count)
        expected = reference.execute(program, inputs, params, [], first, count)
        opcode = engine.load(verify(program))
        binding = engine.bind(opcode, inputs, (), params, None, count, first)
        for turn in range(4):
            for output in binding.outputs:
                output.view(np.uint8)[:] = 0xAA
            sequence = engine.publish(binding)
            engine.wait(sequence, 1, 10)
            difference = compare(expected, engine.result(binding, sequence), ([], []))
            assert difference is None, f"seed {seed}, turn {turn}: {difference}"
        engine.unbind(binding)
        engine.unload(opcode)


def scale(factor: float) -> Program:
    b = Builder("scale")
    b.input("x", MemType.f32)
    b.output("y", MemType.f32)
    b.op("f32.store", b.op("f32.mul", b.op("f32.load", imm=0), b.const(Type.f32, factor)), imm=0)
    return b.build()


def once(engine, binding, first=None, count=None):
    sequence = engine.publish(binding, first, count)
    engine.wait(sequence, 1, 10)
    return engine.completions(sequence, 1)[0]


def test_programs_and_bindings_that_take_turns_never_see_each_others_operands(engine):
    bindings = []
    for factor in (2.0, 3.0):
        opcode = engine.load(verify(scale(factor)))
        for offset in (0, 100):
            x = engine.pinned_empty(32, np.float32)
            x[:] = np.arange(32) + offset
            bindings.append((factor, x, engine.bind(opcode, [x])))
    rng = random.Random(3)
    for turn in range(3_000):
        factor, x, binding = rng.choice(bindings) if turn % 3 else bindings[0]
        x[:] += 1
        binding.outputs[0][:] = -1
        assert once(engine, binding)["status"] == Status.DONE
        assert np.array_equal(binding.outputs[0], x * np.float32(factor))


def test_control_items_that_come_alone_are_not_taken_for_the_program_that_came_before(engine):
    opcode = engine.load(verify(scale(2.0)))
    x = engine.pinned_empty(32, np.float32)
    x[:] = np.arange(32)
    binding = engine.bind(opcode, [x])
    nothing = slot_of(Opcode.NOP, 0, 0, 0)
    add = slot_of(Opcode.ATOMIC_ADD, 11, 1, 0)
    before = int(engine.session_words[11])
    for _ in range(200):
        for data in (nothing, nothing, add, nothing):
            sequence = engine.residency.publish(data)
            engine.wait(sequence, 1, 10)
            assert engine.completions(sequence, 1)["status"][0] == Status.DONE
        binding.outputs[0][:] = -1
        once(engine, binding)
        once(engine, binding)
        assert np.array_equal(binding.outputs[0], x * 2)
    assert int(engine.session_words[11]) - before == 200


def test_a_program_loaded_in_the_place_of_another_is_the_one_that_runs(engine):
    x = engine.pinned_empty(32, np.float32)
    x[:] = np.arange(32)
    for factor in range(1, 200):
        opcode = engine.load(verify(scale(float(factor))))
        binding = engine.bind(opcode, [x])
        for _ in range(3):
            binding.outputs[0][:] = -1
            once(engine, binding)
            assert np.array_equal(binding.outputs[0], x * np.float32(factor))
        engine.unbind(binding)
        engine.unload(opcode)


def test_a_slot_that_brings_its_own_parameters_leaves_the_bound_ones_to_the_others(engine):
    b = Builder("by")
    b.input("x", MemType.f32)
    b.param("p", MemType.f32)
    b.output("y", MemType.f32)
    b.op("f32.store", b.op("f32.mul", b.op("f32.load", imm=0), b.op("f32.param", imm=0)), imm=0)
    opcode = engine.load(verify(b.build()))
    x = engine.pinned_empty(32, np.float32)
    x[:] = np.arange(32)
    binding = engine.bind(opcode, [x], (), [int(np.float32(2).view(np.uint32))])
    own = np.frombuffer(binding.slot, SLOT_DTYPE).copy()
    own["flags"] |= FLAG_INLINE_PARAMS
    own["inline"][0][0] = int(np.float32(3).view(np.uint32))
    rng = random.Random(5)
    for _ in range(500):
        brings = rng.random() < 0.4
        binding.outputs[0][:] = -1
        sequence = engine.residency.publish(own.tobytes() if brings else binding.slot)
        engine.wait(sequence, 1, 10)
        assert engine.completions(sequence, 1)["status"][0] == Status.DONE
        assert np.array_equal(binding.outputs[0], x * (3 if brings else 2))


def test_a_part_of_a_small_binding_leaves_the_rest_alone_and_the_whole_still_runs(engine):
    opcode = engine.load(verify(scale(2.0)))
    x = engine.pinned_empty(32, np.float32)
    x[:] = np.arange(32) + 1
    binding = engine.bind(opcode, [x])
    for count in (32, 32, 7, 32, 0, 32, 31, 1, 32):
        binding.outputs[0][:] = -1
        assert once(engine, binding, 0, count)["status"] == Status.DONE
        want = np.where(np.arange(32) < count, x * 2, -1)
        assert np.array_equal(binding.outputs[0], want)
    assert once(engine, binding, 1024, 32)["status"] == Status.FAULT
    assert once(engine, binding, 0, 33)["status"] == Status.FAULT
    binding.outputs[0][:] = -1
    once(engine, binding)
    assert np.array_equal(binding.outputs[0], x * 2)


def test_small_items_over_many_stays_and_laps_of_a_small_ring_are_all_right():
    with CudaEngine(store=Store(), capacity=16, stay_s=0.0005, grace_s=0.0002) as small:
        opcode = small.load(verify(scale(2.0)))
        x = small.pinned_empty(32, np.float32)
        binding = small.bind(opcode, [x])
        before = small.residency.relaunches
        for i in range(20_000):
            x[:] = i
            assert once(small, binding)["status"] == Status.DONE
            assert binding.outputs[0][0] == binding.outputs[0][31] == 2 * i
        assert small.residency.relaunches > before + 20
