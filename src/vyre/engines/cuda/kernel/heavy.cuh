// Long or rare numeric instructions: from planes to planes, element after element, so that each has its code once.
#pragma once
#include "memory.cuh"

// Operand fields: bit 0 says that the place is a plane (this lane's column) and not a uniform slot (the same for all).
#define PLACE_AT(o) (base_at + (o) + ((o) & 1) * (column - 1))
#define STEP(o) (((o) & 1) * half)
// Element j of this lane, counted from its first.
#define ELEMENT_OF_LANE(j) ((j) < 4 ? (j) : half / 4 + (j) - 4)
#define ELEMENT(j) (opaque(first) + ELEMENT_OF_LANE(j))

#define SCALAR_i32(at, step) get32(place32(at, step, j))
#define SCALAR_i64(at, step) get64(place64(at, step, j))
#define SCALAR_f32(at, step) as_f32(SCALAR_i32(at, step))
#define SCALAR_f64(at, step) as_f64(SCALAR_i64(at, step))
#define WRITE_i32(x) put32(place32(d_at, half, j), (u32)(x))
#define WRITE_i64(x) put64(place64(d_at, half, j), x)
#define WRITE_f32(x) { f32 x_ = (x); put32(place32(d_at, half, j), x_ != x_ ? NAN32 : bits(x_)); }
#define WRITE_f64(x) { f64 x_ = (x); put64(place64(d_at, half, j), x_ != x_ ? NAN64 : bits(x_)); }
#define HEAVY_UNARY(ID, NAME, R, A) case ID: { WRITE_##R(NAME(SCALAR_##A(a_at, a_step))); } break;
#define HEAVY_BINARY(ID, NAME, R, A, B) case ID: { WRITE_##R(NAME(SCALAR_##A(a_at, a_step), SCALAR_##B(b_at, b_step))); } break;
#define HEAVY_UNARY_TRAP(ID, NAME, R, A) case ID: { WRITE_##R(NAME(SCALAR_##A(a_at, a_step), trap)); } break;
#define HEAVY_BINARY_TRAP(ID, NAME, R, A, B) case ID: { WRITE_##R(NAME(SCALAR_##A(a_at, a_step), SCALAR_##B(b_at, b_step), trap)); } break;

// The lowest trap stays. Out of line, as parameter_of in interpret.cuh.
D_CALL void keep_fault(u32 base_at, u64 packed) { atomicMin(&SHARED(Frame, base_at).fault, packed); }

// The elements of this lane that trapped. Results of elements that are not active keep their old value.
D_CALL u32 heavy(u32 base_at, uint4 r, u32 active, u64 first) {  // first: global index of this lane's element 0
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31, width = f.width;
  const u32 column = (lane & (width - 1)) * 16, half = width * 16;
  const u32 a = r.z & 0xFFFF, a_at = PLACE_AT(a), a_step = STEP(a);
  const u32 b_at = r.y + (r.y & 1) * (column - 1), b_step = STEP(r.y);
  const u32 d_at = PLACE_AT(r.z >> 16);
  u32 trapped = 0;
#pragma unroll 1
  for (u32 j = 0; j < 8; ++j) {
    if (!(active >> j & 1)) continue;
    u32 trap = 0;
    switch (r.w & 0xFFFF) {
#include "heavy_cases.cuh"
      default: break;
    }
    if (trap) {
      atomicMin(&f.fault, ELEMENT(j) << 20 | (u64)(r.w >> 16) << 4 | trap);
      trapped |= 1u << j;
    }
  }
  __syncwarp();
  return trapped;
}
