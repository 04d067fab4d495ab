"""A bare interpreter to measure ours against: accumulator form, warp-uniform decode, and nothing around it.

Eight elements a lane, one operand from a file of eight registers in shared memory, the other and the result in
registers; stream loads and stores are instructions too. No NaN rule, no wide registers, no control flow, no traps, no
ragged ends, no items: what an interpreter on this card could reach at best. With 60 cases its switch is as large as a
small instruction set makes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LOAD, STORE, RETURN, ADD, MUL = range(5)
REGISTERS, THREADS = 8, 128
_ARITHMETIC = (
    "__fadd_rn(a[j], b[j])", "__fmul_rn(a[j], b[j])", "__fsub_rn(a[j], b[j])", "__fsub_rn(b[j], a[j])",
    "fminf(a[j], b[j])", "fmaxf(a[j], b[j])", "a[j] < b[j] ? 1.0f : 0.0f", "a[j] > b[j] ? 1.0f : 0.0f",
    "b[j]", "fabsf(a[j])", "-a[j]", "floorf(a[j])", "ceilf(a[j])", "truncf(a[j])", "rintf(a[j])",
)  # fmt: skip


def _source(cases: int) -> str:
    bodies = [*_ARITHMETIC[:2]]
    if cases > 5:
        bodies = [*_ARITHMETIC]
        for i in range(cases - 3 - len(_ARITHMETIC)):  # integer work on the same bits; each body is another one
            verb = ("+", "-", "^", "&", "|", "*")[i % 6]
            bodies.append(f"__int_as_float((__float_as_int(a[j]) {verb} __float_as_int(b[j])) ^ {i + 1})")
    switch = "".join(
        f'case {ADD + i}: {{ _Pragma("unroll") for (int j = 0; j < 8; ++j) a[j] = {body}; }} break;\n'
        for i, body in enumerate(bodies)
    )
    return (
        """
extern "C" __global__ void __launch_bounds__(128) probe(const float4* x, float4* y, long long n, const uint2* code, int length) {
  extern __shared__ __align__(16) float4 file[];  // [register][half][thread], then the code
  uint2* program = (uint2*)(file + 8 * 2 * 128);
  for (int i = threadIdx.x; i < length; i += blockDim.x) program[i] = code[i];
  for (int i = 0; i < 16; ++i) file[i * 128 + threadIdx.x] = make_float4(1.5f, 1.5f, 1.5f, 1.5f);
  __syncthreads();
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll) {
    float a[8];
    for (int pc = 0;; ++pc) {
      const uint2 r = program[pc];
      const float4 p = file[r.y * 256 + threadIdx.x], q = file[r.y * 256 + 128 + threadIdx.x];
      const float b[8] = {p.x, p.y, p.z, p.w, q.x, q.y, q.z, q.w};
      switch (__shfl_sync(0xffffffffu, r.x, 0)) {
        case 0: {
          const float4 u = x[i], v = x[i + 128];
          a[0] = u.x; a[1] = u.y; a[2] = u.z; a[3] = u.w; a[4] = v.x; a[5] = v.y; a[6] = v.z; a[7] = v.w;
        } break;
        case 1:
          y[i] = make_float4(a[0], a[1], a[2], a[3]);
          y[i + 128] = make_float4(a[4], a[5], a[6], a[7]);
          break;
        case 2: goto over;
"""
        + switch
        + """
      }
    }
  over:;
  }
}
"""
    )


class Probe:
    """The probe for ``operations`` multiplications and additions in turn, as common_gpu.chain has them.

    Args:
        cases: of the switch: 5 has just what is needed.
    """

    def __init__(self, cupy: Any, operations: int, cases: int) -> None:
        self._kernel = cupy.RawKernel(_source(cases), "probe", options=("--fmad=false", "--jump-table-density=10"))
        body = [(MUL if i % 2 == 0 else ADD, i % REGISTERS) for i in range(operations)]
        code = np.array([(LOAD, 0), *body, (STORE, 0), (RETURN, 0)], np.uint32)
        self._code = cupy.asarray(code)
        self._bytes = REGISTERS * 2 * 16 * THREADS + code.nbytes
        self._kernel.max_dynamic_shared_size_bytes = self._bytes
        self._blocks = 132 * 6

    def __call__(self, x: Any, y: Any, count: int) -> None:
        """y = chain(x), both float32 on the device, ``count`` a multiple of 1,024."""
        self._kernel(
            (self._blocks,), (THREADS,), (x, y, np.int64(count // 4), self._code, np.int32(self._code.shape[0])),
            shared_mem=self._bytes,
        )  # fmt: skip
