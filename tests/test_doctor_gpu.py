"""What ``vyre doctor`` says about a GPU, told by a stand-in for the driver library."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest

import vyre
from vyre.commands import gpu


class Driver:
    """As much of libcuda as the doctor asks."""

    def __init__(self, version: int = 13_000, devices: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.version, self.devices, self.capability = version, devices, capability

    def cuInit(self, flags: int) -> int:
        return 0 if self.devices else 100

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.devices
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, out: Any, size: int, device: Any) -> int:
        out.value = b"NVIDIA Imagined"
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:
        out._obj.value = 80 << 30
        return 0

    def cuDeviceGetAttribute(self, out: Any, kind: int, device: Any) -> int:
        out._obj.value = {75: self.capability[0], 76: self.capability[1], 16: 132}[kind]
        return 0


def told(driver: Any) -> dict[str, tuple[str, str, str]]:
    return {f.about: (f.state, f.words, f.fix) for f in gpu.findings(driver)}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {"cuda-bindings": "13.0.1", "nvidia-cuda-nvrtc": "13.0.88"}

    def version(name: str) -> str:
        if name not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(gpu.metadata, "version", version)
    return found


def test_without_a_driver_nothing_else_is_asked():
    assert told(None) == {
        "GPU driver": ("missing", "no NVIDIA driver (libcuda.so.1); the cpu engine is the default", "")
    }


def test_a_driver_without_a_device_says_so():
    found = told(Driver(devices=0))
    assert found["GPU driver"][0] == "ok"
    assert found["GPU"] == ("missing", "the driver is here, a device is not (CUDA error 100)", "")


def test_devices_are_named_with_what_counts_of_them(packages, monkeypatch):
    monkeypatch.setattr(gpu, "_engine", lambda: iter(()))
    found = told(Driver(devices=2))
    assert found["GPU driver"][1] == "for CUDA 13.0 and older"
    assert found["GPU 1"][1] == "NVIDIA Imagined, compute capability 9.0, 132 multiprocessors, 80 GiB"
    assert found["cuda packages"] == ("ok", "cuda-bindings 13.0.1, nvidia-cuda-nvrtc 13.0.88", "")
    assert told(Driver(capability=(7, 0)))["GPU 0"][0] == "limited"


@pytest.mark.parametrize(("driver", "extra"), [(13_000, "cuda13"), (12_080, "cuda12")])
def test_missing_bindings_come_with_the_command_for_this_driver(packages, driver, extra):
    del packages["cuda-bindings"]
    found = told(Driver(version=driver))
    assert found["cuda packages"] == (
        "missing",
        "cuda-bindings is not installed",
        f"pip install 'vyre-runtime[{extra}]'",
    )
    assert "engine cuda" not in found, "what hangs on it is left out"


def test_bindings_that_are_too_new_for_the_driver_are_not_used(packages):
    state, words, fix = told(Driver(version=12_040))["cuda packages"]
    assert (state, fix) == ("missing", "pip install 'vyre-runtime[cuda12]'")
    assert "needs a newer driver" in words


def test_the_engine_is_opened_and_plays_ping_pong(packages, monkeypatch):
    monkeypatch.setattr(gpu, "PINGS", 3)
    monkeypatch.setattr("vyre.runtime.api.open", lambda _: Imagined([3e-6, 4e-6, 9e-6]))
    found = told(Driver())
    assert found["engine cuda"][0] == "ok"
    assert found["live ping-pong"][:2] == (
        "ok",
        "4.0 us from publish to record, median of 3; 9 us the slowest",
    )


def test_a_kernel_that_hears_nothing_while_it_runs_is_limited(packages, monkeypatch):
    monkeypatch.setattr("vyre.runtime.api.open", lambda _: Imagined([None]))
    state, words, _ = told(Driver())["live ping-pong"]
    assert state == "limited"
    assert "sessions work in finite launches" in words


class Imagined:
    """A session on a GPU whose ping-pongs take these times."""

    choice = "engine cuda, device 0, as asked"

    def __init__(self, times: list[float | None]) -> None:
        self.engine = self
        self._times = iter(times)
        self._session = vyre.Session("reference")

    def run(self, program: Any, inputs: Any) -> Any:
        return self._session.run(program, inputs)

    def ping(self, timeout_s: float) -> float | None:
        return next(self._times)

    def __enter__(self) -> Imagined:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
