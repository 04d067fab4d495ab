"""The C++ host of host.cpp, compiled when it is asked for, and the kernels that it launches beside ours.

Owns: building and calling it. Leaves to others: rows (bench_cuda_latency, bench_cuda_load).
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vyre.engines.cuda.bindings import slot_of
from vyre.engines.cuda.engine import CudaEngine
from vyre.ring.layout import Opcode

SOURCE = Path(__file__).with_name("host.cpp")
REPORTS = 4096  # words that peers report into
_LOOK = ctypes.CFUNCTYPE(None)
_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_uint64

PING = r"""
extern "C" __global__ void ping(volatile unsigned long long* word, unsigned long long* reply, unsigned long long n) {
  unsigned long long began, t, v;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began));
  for (unsigned long long i = 1; i <= n; ++i) {
    do {
      asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(word) : "memory");
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
      if (t - began > 2000000000ull) return;
    } while (v != i);
    asm volatile("st.release.sys.global.u64 [%0], %1;" :: "l"(reply), "l"(i) : "memory");
  }
}
"""


def reporting(cupy: Any, operations: int) -> Any:
    """Native code of the same operations on 32 floats, one block each, that reports a number into host memory."""
    body = "".join("r=__fadd_rn(r,1.5f);" if i % 2 else "r=__fmul_rn(r,1.5f);" for i in range(operations))
    source = (
        'extern "C" __global__ void reporting(const float* x, float* y, unsigned long long n, unsigned long long* report,'
        "unsigned long long value) { if (threadIdx.x < n) { float r = x[threadIdx.x];" + body + "y[threadIdx.x] = r; }"
        "__threadfence_system(); __syncthreads(); if (threadIdx.x == 0) *(volatile unsigned long long*)(report + blockIdx.x)"
        " = value + blockIdx.x; }"
    )
    return cupy.RawKernel(source, "reporting")


def other_code(arch: int) -> bytes:
    """A cubin that somebody else might load."""
    from vyre.engines.cuda.compile import nvrtc

    source = "".join(
        f'extern "C" __global__ void other{i}(float* x) {{ x[threadIdx.x] = sinf(x[threadIdx.x]) * {i}.5f; }}\n'
        for i in range(8)
    )
    module = nvrtc()
    program = module.nvrtcCreateProgram(source.encode(), b"other.cu", 0, [], [])[1]
    options = [f"--gpu-architecture=sm_{arch}".encode()]
    assert int(module.nvrtcCompileProgram(program, len(options), options)[0]) == 0
    cubin = b" " * module.nvrtcGetCUBINSize(program)[1]
    module.nvrtcGetCUBIN(program, cubin)
    return cubin


class Arguments(ctypes.Structure):
    """Of ``reporting``."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("x", "y", "n", "report", "value")]


class Host:
    """Calls of host.cpp. Each gives microseconds, one per round trip or item.

    Raises:
        RuntimeError: a result was wrong, or the driver refused something.
    """

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp())
        built = folder / "host.so"
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-o", str(built), str(SOURCE), "-ldl"], check=True)
        self.library = lib = ctypes.CDLL(str(built))
        ring = (_ADDRESS, _ADDRESS, _COUNT)
        peers = (Arguments, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _ADDRESS)
        for name, kinds in (
            ("drive", (*ring, _ADDRESS, ctypes.c_float, _ADDRESS, _LOOK)),
            ("ping", (_ADDRESS, _ADDRESS, _COUNT, _ADDRESS)),
            ("launches", (_ADDRESS, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS)),
            ("graphs", (_ADDRESS, _ADDRESS, _COUNT, _ADDRESS)),
            ("arrive_ring", (*ring, _ADDRESS, _ADDRESS, _LOOK)),
            ("arrive_launch", (_ADDRESS, _ADDRESS, *peers)),
            ("arrive_graph", (_ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, *peers)),
            ("arrive_batches", (_ADDRESS, _ADDRESS, *peers)),
        ):
            function = getattr(lib, name)
            function.argtypes, function.restype = kinds, _COUNT

    def drive(self, engine: CudaEngine, slot: bytes, n: int, result: np.ndarray | None, want: float) -> np.ndarray:
        """Round trips over the engine's own ring. Nobody else may publish meanwhile."""
        tell(engine)
        ring = engine.residency
        taken = np.empty(n)
        where = None if result is None else result.ctypes.data
        kept = self.library.drive(
            ring.ring_address, slot_address(slot), n, where, want, taken.ctypes.data, _LOOK(ring.look)
        )
        if kept > n:
            raise RuntimeError("the C++ host saw a wrong result")
        free_all(engine)
        return taken[kept // 10 : kept] / 1000

    def timed(self, name: str, n: int, *arguments: Any) -> np.ndarray:
        """``ping``, ``launches`` or ``graphs``."""
        taken = np.empty(n)
        done = getattr(self.library, name)(*arguments, n, taken.ctypes.data)
        if done != n:
            raise RuntimeError(f"{name} stopped after {done} of {n}")
        return taken[n // 10 :] / 1000

    def arrivals(self, name: str, due_ns: np.ndarray, call: Callable[..., int]) -> np.ndarray:
        """Microseconds from when each item was due to its result. ``call(n, due, delay)`` drives it."""
        delay = np.empty(len(due_ns))
        done = call(len(due_ns), due_ns.ctypes.data, delay.ctypes.data)
        if done != len(due_ns):
            raise RuntimeError(f"{name} did {done} of {len(due_ns)} items")
        return delay / 1000

    def arrive_ring(self, engine: CudaEngine, slot: bytes, due_ns: np.ndarray) -> np.ndarray:
        tell(engine)
        ring = engine.residency

        def call(n: int, due: int, delay: int) -> int:
            return int(self.library.arrive_ring(ring.ring_address, slot_address(slot), n, due, delay, _LOOK(ring.look)))

        try:
            return self.arrivals("ring", due_ns, call)
        finally:
            free_all(engine)


def slot_address(slot: bytes) -> int:
    """Where a slot's bytes are; they stay there as long as the object lives."""
    return ctypes.cast(ctypes.c_char_p(slot), _ADDRESS).value or 0


def tell(engine: CudaEngine) -> None:
    """The C++ host knows nothing of updates: have the kernel told of programs and bindings that are new."""
    sequence = engine.residency.publish(slot_of(Opcode.NOP, 0, 0, 0))
    assert sequence is not None
    engine.wait(sequence, 1, 5.0)
    engine.completions(sequence, 1)


def free_all(engine: CudaEngine) -> None:
    """The C++ host does not mark slots as taken, and its records were seen: nothing is outstanding."""
    engine.wait(engine.residency.published - 1, 1, 5.0)
