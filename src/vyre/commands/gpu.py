"""What ``vyre doctor`` says about the GPU: driver, devices, packages, the kept kernel, and one live ping-pong.

Owns: the questions. Leaves to others: the engine (engines/cuda), the table (doctor). ``driver`` is the driver library
as ctypes loads it, so that each answer can be told without a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib import metadata
from typing import Any, Final

from vyre.commands.findings import Finding

PINGS: Final = 200
OLDEST_DRIVER: Final = {12: (12, 0), 13: (13, 0)}
"""CUDA version that the driver must have for each extra: 525 and 580."""
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute


def load_driver() -> Any:
    """The driver library, or None."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def findings(driver: Any) -> Iterator[Finding]:
    """Driver and devices, packages, engine. What hangs on something that is missing is left out."""
    if driver is None:
        yield Finding("GPU driver", "missing", "no NVIDIA driver (libcuda.so.1); the cpu engine is the default")
        return
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    yield Finding("GPU driver", "ok", f"for CUDA {cuda[0]}.{cuda[1]} and older")
    if code or not count.value:
        yield Finding("GPU", "missing", f"the driver is here, a device is not (CUDA error {code})")
        return
    for i in range(count.value):
        yield _device(driver, i)
    extra = 13 if cuda >= OLDEST_DRIVER[13] else 12
    missing = []
    for finding in _packages(extra):
        yield finding
        missing += [finding.about] if finding.state == "missing" else []
    if not missing:
        yield from _engine()


def _device(driver: Any, index: int) -> Finding:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    values = []
    for attribute in (_MAJOR, _MINOR, _MULTIPROCESSORS):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        values.append(value.value)
    major, minor, multiprocessors = values
    words = (
        f"{name.value.decode(errors='replace')}, compute capability {major}.{minor}, {multiprocessors} multiprocessors, "
        f"{size.value / 2**30:.0f} GiB"
    )
    if (major, minor) < (7, 5):
        return Finding(f"GPU {index}", "limited", f"{words}; engine cuda needs 7.5")
    return Finding(f"GPU {index}", "ok", words)


def _packages(extra: int) -> Iterator[Finding]:
    """The Python packages of the extra that fits the driver."""
    fix = f"pip install 'vyre-runtime[cuda{extra}]'"
    try:
        version = metadata.version("cuda-bindings")
    except metadata.PackageNotFoundError:
        yield Finding("cuda packages", "missing", "cuda-bindings is not installed", fix)
        return
    major = int(version.partition(".")[0])
    nvrtc = "nvidia-cuda-nvrtc" + ("-cu12" if major == 12 else "")
    words = f"cuda-bindings {version}"
    if major > extra:
        yield Finding("cuda packages", "missing", f"{words} needs a newer driver than this one", fix)
        return
    try:
        yield Finding("cuda packages", "ok", f"{words}, {nvrtc} {metadata.version(nvrtc)}")
    except metadata.PackageNotFoundError:
        from vyre.engines.cuda.compile import nvrtc as load
        from vyre.errors import EngineUnavailable

        try:
            load()
            yield Finding("cuda packages", "ok", f"{words}, NVRTC from elsewhere on this machine")
        except EngineUnavailable as error:
            yield Finding("cuda packages", "missing", f"{words}; {error.message}", f"pip install {nvrtc}")


def _engine() -> Iterator[Finding]:
    """Open it, run four elements, and play ping-pong with the resident kernel."""
    import statistics
    import time

    import numpy as np

    from vyre.commands import show
    from vyre.errors import VyreError
    from vyre.programs import stats
    from vyre.runtime.api import open as open_session

    start = time.perf_counter()
    try:
        with open_session("cuda") as session:
            result = session.run(stats(), {"x": np.arange(4.0)})
            took = time.perf_counter() - start
            if float(result["sum"]) != 6.0:
                yield Finding("engine cuda", "missing", f"{session.choice}: gave a wrong answer")
                return
            yield Finding("engine cuda", "ok", f"{session.choice}; opened and answered in {show.seconds(took)}")
            engine: Any = session.engine
            times = [engine.ping(0.2)]
            if times[0] is not None:
                times += [engine.ping(0.2) for _ in range(PINGS - 1)]
            seen = [t for t in times if t is not None]
            if len(seen) < len(times):
                yield Finding(
                    "live ping-pong",
                    "limited",
                    f"{len(times) - len(seen)} of {len(times)} slots that were published while the kernel was there were not "
                    "answered in 0.2 s: sessions work in finite launches",
                )
            else:
                words = f"{statistics.median(seen) * 1e6:.1f} us from publish to record, median of {len(seen)}"
                yield Finding("live ping-pong", "ok", f"{words}; {max(seen) * 1e6:.0f} us the slowest")
    except VyreError as error:
        yield Finding("engine cuda", "missing", error.message, error.fix)
