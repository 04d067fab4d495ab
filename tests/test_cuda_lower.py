"""Rewriting for the GPU, without one: every program has an image, and an image keeps what the kernel relies on."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from vyre.engines.cuda import abi
from vyre.engines.cuda.handlers import FIXES, HANDLERS, HOT
from vyre.engines.cuda.lower import identity_key, lower, value_of_key
from vyre.program.builder import Builder
from vyre.program.opcodes import AccKind, MemType, Type
from vyre.program.random import random_program

HEADER = struct.Struct("<16I")
WARP_BYTES = 7_800  # shared memory of a warp on the smallest card that is accepted


def records(image) -> np.ndarray:
    head = dict(zip(abi.PROGRAM_HEADER.names, HEADER.unpack_from(image.data), strict=True))
    return np.frombuffer(image.data, np.uint32, 4 * head["records"], len(image.data) - 16 * head["records"]).reshape(
        -1, 4
    )


@pytest.mark.parametrize("functions", [False, True])
def test_every_random_program_fits_a_warp_and_names_only_planes_and_slots_it_has(functions):
    for seed in range(1, 250):
        image = lower(random_program(seed, functions=functions))
        head = dict(zip(abi.PROGRAM_HEADER.names, HEADER.unpack_from(image.data), strict=True))
        assert image.shared_bytes <= WARP_BYTES
        for x, y, z, w in records(image).tolist():
            for flag, place in (("PLACE_A", z & 0xFFFF), ("PLACE_B", y), ("PLACE_C", w & 0xFFFF), ("PLACE_D", z >> 16)):
                if x & abi.FLAGS[flag]:
                    limit = head["slots"] if place & abi.UNIFORM else head["planes"]
                    assert place & ~abi.UNIFORM < limit, (seed, flag)
            assert (x >> 8 & 0xFF) < len(HANDLERS)


def test_a_chain_stays_in_the_accumulator_and_takes_short_cuts():
    b = Builder("chain")
    b.input("x", MemType.f32)
    b.output("y", MemType.f32)
    r = b.op("f32.load", imm=0)
    c = b.const(Type.f32, 1.5)
    for _ in range(10):
        r = b.op("f32.add", r, c)
    b.op("f32.store", r, imm=0)
    image = lower(b.build())
    assert image.planes == 0, "nothing is stored"
    shorts = (records(image)[:, 0] & 0xFF).tolist()
    add = HOT[HANDLERS["f32_add"], 0]
    assert shorts[1:10] == [add] * 9
    assert shorts[10] == HOT[HANDLERS["f32_add"], FIXES], "the last one makes its NaN canonical: somebody sees it"


@pytest.mark.parametrize("dtype", [MemType.i32, MemType.u32, MemType.i64, MemType.u64, MemType.f32, MemType.f64])
@pytest.mark.parametrize("kind", [AccKind.min, AccKind.max])
def test_keys_of_accumulators_come_back_as_values(kind, dtype):
    bits = {4: 32, 8: 64}[dtype.size]
    identity = value_of_key(kind, dtype, identity_key(kind, dtype))
    if dtype in (MemType.f32, MemType.f64):
        want = np.array(np.inf if kind is AccKind.min else -np.inf, f"<f{dtype.size}")
    else:
        info = np.iinfo(dtype.name.replace("i", "int") if dtype.name[0] == "i" else dtype.name.replace("u", "uint"))
        want = np.array(info.max if kind is AccKind.min else info.min, info.dtype)
    assert identity == int.from_bytes(want.tobytes(), "little")
    assert identity < 1 << bits


def test_an_image_can_be_read_back_in_words():
    from vyre.engines.cuda.show import SHARED_OF_WARP, lanes_for, records_of

    b = Builder("words")
    b.input("x", MemType.f32)
    b.output("y", MemType.f32)
    x = b.op("f32.load", imm=0)
    r = b.op("f32.mul", x, b.const(Type.f32, 2.5))
    b.op("f32.store", b.op("f32.add", r, x), imm=0)
    image = lower(b.build())
    told = [(r.pc, r.handler, r.operands) for r in records_of(image)]
    assert told == [
        (0, "STREAM_LOAD32", "input 0, -> p0"),
        (2, "f32_mul", "#0x40200000"),
        (3, "f32_add", "p0"),
        (4, "STREAM_STORE32", "output 0"),
        (5, "RETURN", ""),
    ]
    assert lanes_for(image, SHARED_OF_WARP) == 32


def test_a_program_with_many_live_values_leaves_fewer_lanes_to_a_warp():
    from vyre.engines.cuda.show import SHARED_OF_WARP, lanes_for

    b = Builder("wide")
    for i in range(30):
        b.input(f"x{i}", MemType.f64)
    b.output("y", MemType.f64)
    values = [b.op("f64.load", imm=i) for i in range(30)]
    total = values[0]
    for v in values[1:]:
        total = b.op("f64.mul", total, v)
    for v in values:
        total = b.op("f64.add", total, v)
    b.op("f64.store", total, imm=0)
    image = lower(b.build())
    lanes = lanes_for(image, SHARED_OF_WARP)
    assert lanes < 32
    assert image.planes * 32 * lanes <= SHARED_OF_WARP < image.planes * 32 * 2 * lanes + image.shared_bytes


def test_every_record_of_random_programs_has_a_name():
    from vyre.engines.cuda.show import records_of

    for seed in range(1, 60):
        assert all(r.handler != "?" for r in records_of(lower(random_program(seed, functions=True))))
