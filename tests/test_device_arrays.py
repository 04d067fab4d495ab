"""Arrays in device memory, as their producers describe them: fakes of DLPack and of the CUDA array interface."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vyre
from vyre.engines.base import Operands
from vyre.engines.cuda.bindings import Bindings
from vyre.engines.cuda.items import CudaItem
from vyre.engines.device_array import DeviceArray, _Tensor, _Versioned, is_on_device
from vyre.errors import BindError
from vyre.program.ir import Access, Stream, Table
from vyre.program.opcodes import MemType
from vyre.runtime.operands import on_device, output_on_device, table_on_device

OURS = 77  # the number of our stream
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Dlpack:
    """A producer that speaks DLPack alone, of version 1 or from before it."""

    def __init__(
        self,
        shape: tuple[int, ...] = (6,),
        code: int = 2,
        bits: int = 32,
        *,
        strides: tuple[int, ...] | None = None,
        version: int = 1,
        read_only: bool = False,
        address: int = 0x1000,
        where: tuple[int, int] = (2, 0),
        lanes: int = 1,
    ) -> None:
        self.where, self.version, self.read_only, self.streams = where, version, read_only, []
        n = len(shape)
        self._shape = (ctypes.c_int64 * n)(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * n)(*strides)
        self._tensor = _Tensor(address, where[0], where[1], n, code, bits, lanes, self._shape, self._strides, 16)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.where

    def __dlpack__(self, **given: Any) -> Any:
        if self.version == 0 and "max_version" in given:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.streams.append(given["stream"])
        if self.version == 0 or "max_version" not in given:
            return _new(ctypes.addressof(self._tensor), b"dltensor", None)
        self._versioned = _Versioned(self.version, 0, None, None, int(self.read_only), self._tensor)
        return _new(ctypes.addressof(self._versioned), b"dltensor_versioned", None)


def interface(**changed: Any) -> Any:
    """A producer that speaks the array interface alone."""
    given = {"shape": (6,), "typestr": "<f4", "data": (0x2000, False), "version": 3, "stream": 5, **changed}
    return SimpleNamespace(__cuda_array_interface__=given)


def stream(dtype: MemType = MemType.f32) -> Stream:
    return Stream("x", dtype)


@pytest.mark.parametrize("version", [0, 1])
def test_an_array_that_speaks_dlpack_alone_is_read_where_it_lies(version):
    value = Dlpack((2, 3), version=version)
    a = DeviceArray(value, "x", OURS)
    assert (a.address, a.memtype, a.shape, a.size, a.device) == (0x1010, MemType.f32, (2, 3), 6, 0)
    assert a.owner is value
    assert value.streams == [OURS], "its producer puts its work before what comes on our stream"


@pytest.mark.parametrize(
    ("code", "bits", "memtype"),
    [(0, 8, "i8"), (0, 64, "i64"), (1, 16, "u16"), (2, 16, "f16"), (2, 64, "f64"), (4, 16, "bf16"), (6, 8, "bool")],
)
def test_every_memory_type_has_its_name_in_dlpack(code, bits, memtype):
    assert DeviceArray(Dlpack(code=code, bits=bits), "x", OURS).memtype is MemType[memtype]


def test_the_array_interface_is_read_and_its_stream_waited_for():
    a = DeviceArray(interface(), "x", OURS)
    assert (a.address, a.memtype, a.size, a.read_only) == (0x2000, MemType.f32, 6, False)
    assert a.order_before(OURS) == 5
    assert DeviceArray(interface(stream=None), "x", OURS).order_before(OURS) == 0


def test_who_names_a_stream_is_waited_for_there_and_who_speaks_dlpack_puts_an_event_before_ours():
    both = Dlpack()
    both.__cuda_array_interface__ = interface().__cuda_array_interface__
    a = DeviceArray(both, "x", OURS)
    assert (a.address, both.streams) == (0x2000, [])
    assert a.order_before(OURS) == 5
    del both.__cuda_array_interface__["stream"]
    assert a.order_before(OURS) == OURS
    assert both.streams == [OURS]


def test_torch_is_asked_for_its_current_stream(monkeypatch):
    class Tensor(Dlpack):
        pass

    torch = SimpleNamespace(
        Tensor=Tensor, cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=40 + device))
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    value = Tensor(where=(2, 1))
    a = DeviceArray(value, "x", OURS)
    value.streams.clear()
    assert a.order_before(OURS) == 41
    assert value.streams == []


def test_what_the_array_interface_cannot_name_is_read_by_dlpack():
    both = Dlpack(code=4, bits=16)
    both.__cuda_array_interface__ = interface(typestr="<V2").__cuda_array_interface__
    assert DeviceArray(both, "x", OURS).memtype is MemType.bf16
    with pytest.raises(BindError, match="a device array of <V2, which no memory type holds"):
        DeviceArray(interface(typestr="<V2"), "x", OURS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Dlpack((2, 3), strides=(1, 2)), "must be contiguous"),
        (interface(shape=(3,), strides=(8,)), "must be contiguous"),
        (Dlpack(code=5, bits=64), "DLPack type 5 with 64 bits, which no memory type holds"),
        (Dlpack(lanes=2), "which no memory type holds"),
        (Dlpack(version=2), "speaks version 2 of DLPack"),
    ],
)
def test_what_cannot_be_used_in_place_is_refused_with_its_name(value, words):
    with pytest.raises(BindError, match=words) as caught:
        DeviceArray(value, "input x", OURS)
    assert caught.value.message.startswith("input x")


def test_strides_of_axes_that_have_one_element_do_not_matter():
    assert DeviceArray(Dlpack((1, 6, 1), strides=(99, 1, 7)), "x", OURS).size == 6
    assert DeviceArray(interface(shape=(1, 6), strides=(400, 4)), "x", OURS).size == 6


def test_a_producer_that_refuses_is_quoted_and_the_way_out_named():
    class Grad(Dlpack):
        def __dlpack__(self, **given: Any) -> Any:
            raise BufferError("Can't export tensors that require gradient")

        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")

    with pytest.raises(BindError, match="requires grad") as caught:
        DeviceArray(Grad(), "x", OURS)
    assert "detach()" in caught.value.fix


def test_host_arrays_are_not_taken_for_device_arrays():
    assert not is_on_device(np.zeros(3))
    assert not is_on_device(Dlpack(where=(1, 0)))
    assert is_on_device(Dlpack())
    assert is_on_device(Dlpack(where=(13, 1)))
    assert is_on_device(interface())


def test_engines_of_the_host_refuse_device_memory_that_speaks_dlpack_alone():
    with vyre.open("reference") as session, pytest.raises(BindError, match="input x lies in device memory"):
        session.run(vyre.expression("x + 1", {"x": vyre.f32}), x=Dlpack())


def test_types_must_be_those_that_the_program_declares():
    assert on_device("input", stream(), Dlpack(), OURS).size == 6
    assert on_device("input", stream(MemType.bf16), Dlpack(code=1, bits=16), OURS).size == 6, "as bits, like NumPy"
    with pytest.raises(BindError, match="input x is a device array of bf16; the program has u16"):
        on_device("input", stream(MemType.u16), Dlpack(code=4, bits=16), OURS)
    with pytest.raises(BindError, match="input x is a device array of f64; the program has f32"):
        on_device("input", stream(), Dlpack(bits=64), OURS)


def test_outputs_must_be_writable_as_long_as_the_inputs_and_clear_of_the_others():
    x = DeviceArray(Dlpack(), "x", OURS)
    others = {"input x": x}
    same = output_on_device(stream(), Dlpack(), 6, OURS, others)
    assert same.address == x.address, "in place over an input"
    with pytest.raises(BindError, match="read-only"):
        output_on_device(stream(), Dlpack(read_only=True), 6, OURS, others)
    with pytest.raises(BindError, match="read-only"):
        output_on_device(stream(), interface(data=(0x9000, True)), 6, OURS, others)
    with pytest.raises(BindError, match="has 5 elements, the inputs have 6"):
        output_on_device(stream(), Dlpack((5,)), 6, OURS, others)
    with pytest.raises(BindError, match="overlaps input x"):
        output_on_device(stream(), Dlpack(address=0x1004), 6, OURS, others)
    with pytest.raises(BindError, match="overlaps table t"):
        output_on_device(stream(), Dlpack(), 6, OURS, {"table t": x})


def test_tables_that_are_updated_must_be_writable_and_all_have_one_dimension():
    atomic = Table("t", MemType.i32, Access.atomic)
    assert table_on_device(atomic, Dlpack(code=0), OURS).size == 6
    with pytest.raises(BindError, match="updated in place"):
        table_on_device(atomic, Dlpack(code=0, read_only=True), OURS)
    with pytest.raises(BindError, match="2 dimensions"):
        table_on_device(atomic, Dlpack((2, 3), code=0), OURS)


class Driver:
    """As much of a Device as waiting needs."""

    def __init__(self, pending: set[int]) -> None:
        self.pending, self.waited, self.index, self.producers = pending, [], 0, OURS

    def is_done(self, stream: int) -> bool:
        return stream not in self.pending

    def wait_for(self, stream: int) -> None:
        self.waited.append(stream)


def fake_engine(pending: set[int]) -> Any:
    engine = object.__new__(Bindings)
    engine.device = Driver(pending)
    engine.residency = SimpleNamespace(asked=0)
    engine.residency.ask_to_leave = lambda: setattr(engine.residency, "asked", engine.residency.asked + 1)
    return engine


def test_the_stay_is_asked_to_end_when_a_producer_still_works_and_only_then():
    arrays = [DeviceArray(Dlpack(), "x", OURS), DeviceArray(interface(), "y", OURS)]
    idle = fake_engine(set())
    idle.wait_for_producers(arrays)
    assert (idle.device.waited, idle.residency.asked) == ([], 0)
    busy = fake_engine({5})
    busy.wait_for_producers(arrays)
    assert (busy.device.waited, busy.residency.asked) == ([5], 1)


def test_an_array_on_another_device_is_refused():
    engine = fake_engine(set())
    with pytest.raises(BindError, match="x lies on device 1, the session's engine runs on device 0") as caught:
        engine.in_place(Dlpack(where=(2, 1)), np.dtype("<f4"), 6, "x")
    assert "device=1" in caught.value.fix


def test_each_start_waits_for_the_producers_anew():
    value = Dlpack()
    waited: list[list[DeviceArray]] = []
    engine = SimpleNamespace(
        bind=lambda *_: SimpleNamespace(
            inputs=[None], outputs=[], slot=bytes(64), copies_back=[], program=SimpleNamespace(accumulators=())
        ),
        program=lambda _: SimpleNamespace(inputs=[stream()]),
        residency=SimpleNamespace(start=lambda *_: True, ring_address=0),
        wait_for_producers=waited.append,
    )
    a = DeviceArray(value, "x", OURS)
    item = CudaItem(engine, 0x1_0000, Operands(0, 6, [a], [], [], [], []))  # type: ignore[arg-type, list-item]
    assert item.start()
    assert item.start()
    assert waited == [[a], [a]]
