"""The preflight of cuFile: each obstacle by name, a driver that hangs, and compat mode called compat mode."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import vyre
from fake_gpu import fake_engine
from vyre.errors import StreamError
from vyre.runtime import selection
from vyre.stream import cufile

GOOD = {"step": "done", "version": 1150, "open_s": 0.48, "nvidia_fs": [0, 0], "status_flags": 0, "log": []}


def driver(devices: int = 1, status: int = 0):
    def count(found) -> int:
        found._obj.value = devices
        return status

    return lambda name: SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=count)


def no_driver(name: str):
    raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture
def root(tmp_path):
    """A machine with modules, but none of GPUDirect's."""
    for folder in ("proc", "dev", "etc"):
        (tmp_path / folder).mkdir()
    (tmp_path / "proc/modules").write_text("ext4 1 0 - Live 0x0\n")
    return tmp_path


def answering(answer: object) -> list[str]:
    return [sys.executable, "-c", f"print({json.dumps(answer)!r})"]


def ask(root, command, **more):
    return cufile.preflight(__file__, command=command, root=root, load=driver(), **more)


def test_without_a_driver_it_refuses_at_once_and_starts_no_process(root):
    since = time.monotonic()
    found = cufile.preflight(__file__, command=["/does/not/exist"], root=root, load=no_driver)
    assert (found.mode, "libcuda.so.1: cannot open" in str(found)) == ("refused", True)
    assert time.monotonic() - since < 1


def test_a_driver_without_a_device_is_told_from_none(root):
    assert "CUDA error 100" in str(cufile.preflight(__file__, root=root, load=driver(0, 100)))
    assert "has no device" in str(cufile.preflight(__file__, root=root, load=driver(0)))


def test_a_kernel_without_modules_is_never_asked_because_the_driver_open_would_not_return(root):
    (root / "proc/modules").unlink()
    assert "/proc/modules is missing" in str(ask(root, ["/does/not/exist"]))


def test_a_driver_open_that_hangs_ends_after_the_time_limit(root):
    since = time.monotonic()
    found = ask(root, [sys.executable, "-c", "while True: pass"], timeout_s=0.5)
    assert (found.mode, "within 0.5 s" in str(found)) == ("refused", True)
    assert time.monotonic() - since < 5


def test_a_process_that_dies_is_named_with_its_last_words(root):
    found = ask(root, [sys.executable, "-c", "import sys; sys.exit('no libcufile')"])
    assert "ended with code 1: no libcufile" in str(found)


def test_a_step_that_fails_is_named_with_the_log_and_with_what_the_machine_lacks(root):
    log = ["08-09 ERROR cufio:293 cuFileHandleRegister error, failed to get device"]
    found = ask(
        root, answering(GOOD | {"step": "register the file", "error": "HANDLE_NOT_REGISTERED (5027)", "log": log})
    )
    assert found.mode == "refused"
    assert found.causes[0] == "could not register the file: HANDLE_NOT_REGISTERED (5027)"
    assert "failed to get device" in found.causes[1]
    assert "nvidia_fs is not loaded" in found.causes[2]
    assert found.facts == ("cuFile 1150", "driver opened in 0.48 s", "no nvidia-fs")


def test_a_read_that_works_without_nvidia_fs_and_peer_to_peer_is_called_compat_mode(root):
    found = ask(root, answering(GOOD))
    assert (found.mode, "compat mode, through host memory" in str(found)) == ("compat", True)
    assert "does not ask for use_pci_p2pdma" in found.causes[-1]


@pytest.mark.parametrize("how", ["nvidia-fs", "p2p"])
def test_direct_needs_the_module_or_peer_to_peer_and_a_read_that_was_right(root, how):
    if how == "p2p":
        (root / "etc/cufile.json").write_text(
            '{ // "use_pci_p2pdma": false\n "properties": { "use_pci_p2pdma": true } }'
        )
    else:
        (root / "proc/modules").write_text("nvidia_fs 331776 0 - Live 0x0\n")
    assert ask(root, answering(GOOD)).mode == "direct"
    assert ask(root, answering(GOOD | {"step": "read", "error": "other bytes"})).mode == "refused"


def test_the_child_answers_where_nothing_is_installed(tmp_path):
    command = [sys.executable, "-I", "-S", str(cufile._CHILD), __file__, "4096"]  # -S: no site-packages
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["step"] == "import cuda.bindings.cufile"
    assert answer["error"].startswith("ModuleNotFoundError")


class FakeApi:
    """cuda.bindings.cufile over memory of the host."""

    FileHandleType = SimpleNamespace(OPAQUE_FD=1)

    def __init__(self, refuses: bool = False) -> None:
        self.open = 0
        self.handles: set[int] = set()
        self.refuses = refuses

    def Descr(self):
        found = SimpleNamespace(handle=SimpleNamespace(fd=-1))
        self.last = found
        found.ptr = 0
        return found

    def driver_open(self) -> None:
        self.open += 1

    def driver_close(self) -> None:
        self.open -= 1

    def handle_register(self, descriptor: int) -> int:
        if self.refuses:
            raise RuntimeError("HANDLE_NOT_REGISTERED (5027)")
        self.handles.add(self.last.handle.fd)
        return self.last.handle.fd

    def handle_deregister(self, handle: int) -> None:
        self.handles.remove(handle)

    def read(self, handle: int, address: int, count: int, offset: int, inside: int) -> int:
        with open(f"/proc/self/fd/{handle}", "rb", buffering=0) as f:  # cuFile aligns by itself
            data = os.pread(f.fileno(), min(count, 100_000), offset)  # short, as any read may be
        ctypes.memmove(address + inside, data, len(data))
        return len(data)


@pytest.fixture
def session(monkeypatch):
    engine = fake_engine(monkeypatch)
    engine.device.flush_remote_writes = lambda: None
    monkeypatch.setattr(selection, "_cuda", lambda *_, **__: (engine, "a stand-in"))
    with vyre.open("cuda", pool_bytes=1 << 20) as s:
        yield s


@pytest.mark.parametrize(("mode", "way"), [("direct", "cuFile GPUDirect"), ("compat", "cuFile compat mode")])
def test_a_stream_by_cufile_gives_the_same_bits_and_counts_its_bytes_as_what_they_were(
    session, tmp_path, monkeypatch, mode, way
):
    api = FakeApi()
    monkeypatch.setattr(cufile, "bindings", lambda: api)
    monkeypatch.setattr(cufile, "preflight", lambda path: cufile.Preflight(mode, ("no nvidia_fs",), ("cuFile 1150",)))
    x = np.arange(300_001, dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    result = session.run(vyre.expression("sum(x)", {"x": vyre.f32}), x=tmp_path / "x.npy", io="cufile", chunk=20_480)
    assert result.value == x.sum(dtype=np.float64)
    assert result.report.bytes_by_way == {way: x.nbytes}
    assert f"{way} (cuFile 1150; no nvidia_fs)" in result.report.notes[0]
    assert (api.open, api.handles) == (0, set())


def test_a_file_that_cufile_does_not_take_or_that_is_cut_ends_in_an_error(session, tmp_path, monkeypatch):
    monkeypatch.setattr(cufile, "preflight", lambda path: cufile.Preflight("compat", ()))
    np.arange(300_000, dtype=np.float32).tofile(tmp_path / "x")
    program, column = vyre.expression("sum(x)", {"x": vyre.f32}), vyre.raw(tmp_path / "x", vyre.f32)
    api = FakeApi(refuses=True)
    monkeypatch.setattr(cufile, "bindings", lambda: api)
    with pytest.raises(StreamError, match="does not take the file: HANDLE_NOT_REGISTERED"):
        session.run(program, x=column, io="cufile")
    assert api.open == 0
    api.refuses = False
    with session.stream(program, x=column, io="cufile", chunk=20_480) as stream:
        next(stream)
        os.truncate(tmp_path / "x", 4 * 280_000)
        with pytest.raises(StreamError, match="shrank while it was read"):
            list(stream)
    assert (api.open, api.handles) == (0, set())


def test_asked_for_by_name_without_hardware_it_is_refused_with_the_causes(session, tmp_path):
    np.arange(10, dtype=np.float32).tofile(tmp_path / "x")
    with pytest.raises(StreamError, match="cuFile refused: "):
        session.run(vyre.expression("sum(x)", {"x": vyre.f32}), x=vyre.raw(tmp_path / "x", vyre.f32), io="cufile")
