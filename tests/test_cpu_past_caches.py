"""Outputs that are larger than the caches are written around them: when that happens, and that it changes no bit."""

from __future__ import annotations

import numpy as np
import pytest

import vyre
from vyre.commands.engines import executor
from vyre.engines import differential
from vyre.engines.cpu import handlers, image, state
from vyre.engines.cpu.abi import CTX_STREAM, PTR_OUTPUTS
from vyre.engines.cpu.tileform import lower
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import MemType

F32 = MemType.f32


def streamed(session: vyre.Session) -> bool:
    """Whether some worker's last claim wrote around the caches."""
    memory = session.engine._memory
    words, step = memory.workers.words, state.WORKER_BYTES // 8
    return any(words[i * step + (state.W_CONTEXT + CTX_STREAM) // 8] for i in range(memory.blocks))


def forwarded() -> Program:
    """y := a + b, z := y * y, where y's handler writes the output that the other reads."""
    b = Builder("forwarded")
    a, c = (b.op("f32.load", imm=b.input(name, F32)) for name in "ab")
    y = b.op("f32.add", a, c)
    b.op("f32.store", y, imm=b.output("y", F32))
    b.op("f32.store", b.op("f32.mul", y, y), imm=b.output("z", F32))
    return b.build()


@pytest.fixture
def tiny_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_CACHE_BYTES", 1)


@pytest.mark.parametrize("skew", [0, 1, 5, 15])
@pytest.mark.parametrize("count", [1, 1000, 1024, 200_003])
@pytest.mark.parametrize("text", ["a + b", "a * 2.5", "-a", "(a + b) * a - b"])
def test_results_are_the_same_wherever_an_output_lies(tiny_cache: None, text: str, count: int, skew: int) -> None:
    rng = np.random.default_rng(count)
    a, b = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
    a[:: max(count // 7, 1)] = np.nan
    room = np.full(count + 64, 7, np.float32)
    start = (-room.ctypes.data // 4) % 16 + skew
    program = vyre.expression(text, {name: vyre.f32 for name in "ab" if name in text})
    operands = {name: x for name, x in (("a", a), ("b", b)) if name in text}
    with vyre.open("cpu", workers=2) as session:
        session.bind(program, **operands, out=room[start : start + count]).run()
        assert streamed(session)
    with vyre.open("reference") as session:
        expected = np.empty(count, np.float32)
        session.bind(program, **operands, out=expected).run()
    assert room[start : start + count].tobytes() == expected.tobytes()
    assert (room[:start] == 7).all()
    assert (room[start + count :] == 7).all()


def test_random_programs_give_the_bits_of_the_reference(tiny_cache: None) -> None:
    with executor("cpu") as execute:
        failures: dict[int, str] = {}
        differential.run(range(9000, 9150), execute, on_failure=failures.__setitem__)
        assert failures == {}


def test_an_output_in_the_memory_of_an_input_stays_in_the_caches(tiny_cache: None) -> None:
    a = np.arange(5000, dtype=np.float32)
    expected = a + a
    with vyre.open("cpu", workers=1) as session:
        session.bind(vyre.expression("a + a", {"a": vyre.f32}), a=a, out=a).run()
        assert not streamed(session)
    assert a.tobytes() == expected.tobytes()


def test_operands_that_fit_the_cache_stay_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_CACHE_BYTES", 16 * 1200)
    with vyre.open("cpu", workers=1) as session:
        for count, around in ((1000, False), (1200, False), (2400, True)):
            a = np.ones(count, np.float32)
            out = np.empty_like(a)
            session.bind(vyre.expression("a * 2.5", {"a": vyre.f32}), a=a, out=out).run()
            assert streamed(session) is around
            assert (out == 2.5).all()


def test_a_program_that_reads_an_output_again_never_writes_around_the_caches(tiny_cache: None) -> None:
    form = lower(forwarded())
    records = np.frombuffer(form.body, "<u4").reshape(-1, 16)
    assert (records[:, 3:6] >= PTR_OUTPUTS).any(), "the program no longer shows what it is for"
    assert form.reads_outputs
    assert image._elements_in_cache(form.reads_outputs, 16) == image._NEVER


def test_where_the_cache_is_not_known_nothing_is_written_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_CACHE_BYTES", 0)
    assert image._elements_in_cache(False, 12) == image._NEVER


def test_light_handlers_have_a_loop_that_writes_around_the_caches_and_no_other_has() -> None:
    for name in ("f32.add.canonical", "f32.mul.vs.canonical", "i64.add", "copy.4"):
        assert "!nontemporal" in handlers.source(name)
    for name in ("f32.lt", "f32.sin", "store.8", "blend.4"):
        assert "!nontemporal" not in handlers.source(name).replace("!2 =", "")
