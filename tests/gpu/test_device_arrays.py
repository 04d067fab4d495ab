"""Arrays of torch, CuPy and JAX in GPU memory, through a session: used in place, always seen as they are. Needs a device."""

from __future__ import annotations

import numpy as np
import pytest

import vyre
from vyre.program.builder import Builder
from vyre.program.opcodes import Access, MemType, Type

torch = pytest.importorskip("torch")
try:
    _session = vyre.open("cuda")
except vyre.EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)

PLUS = vyre.expression("x + 1", {"x": vyre.f32})


class DlpackOnly:
    """A device array that has nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **given):
        return self.array.__dlpack__(**given)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.fixture(scope="module")
def session():
    yield _session
    _session.close()


def test_arrays_that_have_nothing_but_dlpack_are_read_and_written_in_place(session):
    cupy = pytest.importorskip("cupy")
    for make, value in ((torch.zeros(3000, device="cuda"), float), (cupy.zeros(3000, cupy.float32), float)):
        out = DlpackOnly(make)
        x = torch.arange(3000, dtype=torch.float32, device="cuda")
        result = session.run(PLUS, x=DlpackOnly(x), out=out)
        assert result["value"] is out
        assert value(make[2999]) == 3000.0


def test_work_on_a_side_stream_of_torch_is_waited_for(session):
    side = torch.cuda.Stream()
    x = torch.zeros(1 << 22, device="cuda")
    out = torch.empty_like(x)
    torch.cuda.synchronize()
    for i in range(20):
        with torch.cuda.stream(side):
            torch.cuda._sleep(2_000_000)
            x += 1
            session.run(PLUS, x=x, out=out)
            assert out[-1].item() == i + 2


def test_work_on_a_side_stream_of_cupy_is_waited_for(session):
    cupy = pytest.importorskip("cupy")
    x = cupy.zeros(1 << 22, cupy.float32)
    out = cupy.empty_like(x)
    with cupy.cuda.Stream(non_blocking=True):
        for i in range(20):
            for _ in range(10):
                x += 0.125
            x -= 0.25
            session.run(PLUS, x=x, out=out)
            assert float(out[-1]) == i + 2


def test_arrays_of_jax_are_read_once_they_are_there_and_never_written(session):
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU here")
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: y + 1, x))
    x = jax.numpy.zeros(1 << 20, "float32")
    for i in range(10):
        x = chain(x)
        result = session.run(PLUS, x=x)
        assert result.value[-1] == 200 * (i + 1) + 1
    with pytest.raises(vyre.BindError, match="out for value is read-only"):
        session.run(PLUS, x=x, out=x)


def test_a_tensor_with_gradients_is_refused_with_the_way_out(session):
    with pytest.raises(vyre.BindError) as caught:
        session.run(PLUS, x=torch.zeros(8, device="cuda", requires_grad=True))
    assert "detach()" in str(caught.value)


@pytest.mark.parametrize("kind", [MemType.bf16, MemType.f16])
def test_half_floats_of_torch_are_widened_exactly(session, kind):
    b = Builder("widen")
    b.input("x", kind)
    b.output("y", MemType.f32)
    b.op("f32.store", b.op("f32.load", imm=0), imm=0)
    x = torch.linspace(-4, 4, 999, device="cuda").to(torch.bfloat16 if kind is MemType.bf16 else torch.float16)
    out = torch.empty(999, device="cuda")
    session.run(b.build(), x=x, out=out)
    assert torch.equal(out, x.float())


def test_a_table_on_the_device_is_gathered_from_and_updated_in_place(session):
    b = Builder("count")
    x, t = b.input("x", MemType.i64), b.table("t", MemType.i32, Access.atomic)
    b.op("i32.table_add", b.op("i64.load", imm=x), b.const(Type.i32, 1), imm=t)
    table = torch.zeros(16, dtype=torch.int32, device="cuda")
    session.run(b.build(), x=torch.arange(1600, device="cuda") % 16, t=table)
    assert table.tolist() == [100] * 16


@pytest.mark.slow
def test_a_buffer_that_torch_rewrites_between_items_ten_thousand_times_is_always_seen(session):
    x = torch.zeros(4096, device="cuda")
    out = torch.empty_like(x)
    bound = session.bind(PLUS, x=x, out=out)
    for i in range(10_000):
        x.fill_(float(i))
        bound.run()
        if i % 16 == 0:
            assert out[0].item() == i + 1
            assert out[4095].item() == i + 1
        elif i % 16 == 1:
            torch.testing.assert_close(out, torch.full_like(out, i + 1.0), rtol=0, atol=0)


def test_a_host_buffer_rewritten_between_runs_is_always_seen(session):
    x = np.zeros(4096, np.float32)
    bound = session.bind(PLUS, x=x)
    for i in range(2_000):
        x[:] = i
        value = bound.run().value
        assert value[0] == value[4095] == i + 1
