"""The first start of the GPU engine on a machine: which kernel is compiled by whom, and when it is changed."""

from __future__ import annotations

import logging
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vyre
from fake_gpu import open_fake
from vyre.engines.cuda import cold, engine
from vyre.engines.cuda.cold import Successor, kernel_for
from vyre.engines.cuda.compile import compile_kernel, kept_kernel
from vyre.store import Store


class Compiler:
    """In NVRTC's place: a cubin is its own description."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[bool, bytes] = {}
        self.compiled: list[bool] = []
        self.ended: int | None = None
        self.launched: list[list[str]] = []
        monkeypatch.setattr(cold, "kept_kernel", lambda arch, store, blocks, quick=False: self.kept.get(quick))
        monkeypatch.setattr(cold, "compile_kernel", self.compile)
        monkeypatch.setattr(cold, "can_be_quick", lambda: True)
        monkeypatch.setattr(subprocess, "Popen", self.launch)

    def compile(self, arch: int, store: Store | None, blocks: int, quick: bool = False) -> bytes:
        self.compiled.append(quick)
        return b"quick" if quick else b"optimised"

    def launch(self, command: list[str], **_: Any) -> Any:
        self.launched.append(command)
        return SimpleNamespace(poll=lambda: self.ended)

    def finish(self) -> None:
        self.kept[False], self.ended = b"optimised", 0


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(monkeypatch)


def test_a_second_start_compiles_nothing_and_says_nothing(compiler, tmp_path, caplog):
    compiler.kept[False] = b"optimised"
    assert kernel_for(90, Store(tmp_path), 5, True) == (b"optimised", None)
    assert (compiler.compiled, compiler.launched, caplog.text) == ([], [], "")


def test_a_first_start_serves_with_a_quick_kernel_while_another_process_compiles(compiler, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        kernel, successor = kernel_for(90, Store(tmp_path), 5, True)
    assert kernel == b"quick"
    assert compiler.compiled == [True]
    assert "compiling the kernel for sm_90 quickly" in caplog.text
    assert len(compiler.launched) == 1
    assert successor is not None
    clock = iter(range(100)).__next__
    assert successor.arrived(clock) is None
    compiler.finish()
    assert successor.arrived(clock) == b"optimised"
    assert successor.arrived(clock) is None
    assert successor.is_over


def test_a_compilation_that_fails_leaves_the_quick_kernel_in_place(compiler, tmp_path):
    _, successor = kernel_for(90, Store(tmp_path), 5, True)
    compiler.ended = 1
    assert successor.arrived() is None
    assert successor.is_over


@pytest.mark.parametrize("why", ["no store", "an old NVRTC", "no interpreter", "nobody wants it"])
def test_where_there_can_be_no_successor_the_optimised_kernel_is_compiled_at_once(compiler, tmp_path, monkeypatch, why):
    if why == "an old NVRTC":
        monkeypatch.setattr(cold, "can_be_quick", lambda: False)
    if why == "no interpreter":
        monkeypatch.setattr(cold.sys, "executable", "")
    assert kernel_for(90, None if why == "no store" else Store(tmp_path), 5, why != "nobody wants it") == (
        b"optimised",
        None,
    )
    assert compiler.compiled == [False]
    assert compiler.launched == []


def test_the_kernel_is_changed_between_two_stays_and_nothing_is_lost(monkeypatch):
    loaded: list[bytes] = []
    left: list[bool] = []

    class Arriving:
        kernel: bytes | None = None
        is_over = False

        def arrived(self) -> bytes | None:
            kernel, self.kernel = self.kernel, None
            return kernel

    successor = Arriving()

    def fake_load(self: Any, cubin: bytes, *_: Any) -> None:
        loaded.append(cubin)
        left.append(self.idle())

    monkeypatch.setattr("fake_gpu.FakeDevice.load", fake_load)
    with open_fake(monkeypatch) as session:
        plus = vyre.expression("x + 1", {"x": vyre.i32})
        session.engine.residency.chore = engine._replacing(session.engine.device, successor, 1024)
        for i in range(200):
            if i == 50:
                successor.kernel, successor.is_over = b"optimised", True
            assert session.run(plus, x=[i]).value == [i + 1]
        give_up = time.monotonic() + 5
        while session.engine.residency.chore is not None:
            assert time.monotonic() < give_up
            time.sleep(0.005)
        assert (loaded, left) == ([b"", b"optimised"], [True, True])
        assert session.run(plus, x=[7]).value == [8]


def test_the_process_that_compiles_is_one_that_runs(tmp_path):
    successor = Successor(12, Store(tmp_path), 5)  # no NVRTC knows sm_12: it ends at once, and nothing is kept
    assert successor._process.wait(60) == 1
    assert successor.arrived() is None
    assert successor.is_over
    assert not any(Path(tmp_path).iterdir())


def test_the_quick_kernel_compiles_and_is_kept_apart_from_the_optimised_one(tmp_path):
    store = Store(tmp_path)
    quick = compile_kernel(90, store, quick=True)
    assert b"vyre_resident" in quick
    assert kept_kernel(90, store, quick=True) == quick
    assert kept_kernel(90, store) is None
