// The interpreter for programs of 32-bit values without control flow, traps or results other than streams: one pass of
// one warp over 512 elements.
//
// What a record costs besides its arithmetic is the way to its case, and it is the same for any number of elements. So
// here a lane has sixteen, in the registers that the general interpreter keeps for 64-bit values. Which programs these
// are is seen from their records when a warp is set up for one (tile.cuh); the records are placed for it by load_page.
#pragma once
#include "interpret.cuh"

#define SIXTEEN _Pragma("unroll") for (u32 j = 0; j < 16; ++j)
#define VECTORS _Pragma("unroll") for (u32 v = 0; v < 4; ++v)
#define PLANE_STEP (NARROW_PASS / 4 * 4)  // bytes from one vector of a plane to the lane's next
#define FOUR(p) u32 p##4[4] = {p.x, p.y, p.z, p.w};
#define GET_FOUR make_uint4(a[4 * v], a[4 * v + 1], a[4 * v + 2], a[4 * v + 3])
#define PUT_FOUR(p) a[4 * v] = p.x; a[4 * v + 1] = p.y; a[4 * v + 2] = p.z; a[4 * v + 3] = p.w;
#define WITHIN _Pragma("unroll") for (u32 k = 0; k < 4; ++k)

// A record's key is its handler, and OF_VALUE when operand b is the same for all elements: then it is in the record.
#define OF_VALUE 256u
#define NARROW_UNARY(ID, NAME, R, A) case ID: { SIXTEEN SET_##R(j, NAME(ACC_##A(j))); } break;
#define NARROW_BINARY(ID, NAME, R, A, B)                                                         \
  case ID: VECTORS {                                                                             \
    const uint4 q = get128(b_at + v * PLANE_STEP);                                               \
    FOUR(q)                                                                                      \
    WITHIN SET_##R(4 * v + k, NAME(ACC_##A(4 * v + k), FROM_##B(q4[k])));                        \
  } break;                                                                                       \
  case ID | OF_VALUE: { SIXTEEN SET_##R(j, NAME(ACC_##A(j), FROM_##B(r.y))); } break;
#define NARROW_TERNARY(ID, NAME, R, A)                                                           \
  case ID: VECTORS {                                                                             \
    const uint4 q = get128(b_at + v * PLANE_STEP), s = get128(c_at + v * c_step);                \
    FOUR(q) FOUR(s)                                                                              \
    WITHIN SET_##R(4 * v + k, NAME(ACC_##A(4 * v + k), FROM_##A(q4[k]), FROM_##A(s4[k])));       \
  } break;                                                                                       \
  case ID | OF_VALUE: VECTORS {                                                                  \
    const uint4 s = get128(c_at + v * c_step);                                                   \
    FOUR(s)                                                                                      \
    WITHIN SET_##R(4 * v + k, NAME(ACC_##A(4 * v + k), FROM_##A(r.y), FROM_##A(s4[k])));         \
  } break;
// Division and square root are long: their code is there once, for four elements.
#define NARROW_APART_UNARY(ID, NAME, R, A)                                                       \
  case ID: VECTORS {                                                                             \
    const uint4 q = NAME##_4(GET_FOUR);    \
    PUT_FOUR(q)                                                                                  \
  } break;
#define NARROW_APART_BINARY(ID, NAME, R, A, B)                                                   \
  case ID: case ID | OF_VALUE: VECTORS {                                                         \
    uint4 q = make_uint4(r.y, r.y, r.y, r.y);                                                    \
    if (!(r.x & OF_VALUE)) q = get128(b_at + v * PLANE_STEP);                                    \
    q = NAME##_4(GET_FOUR, q);             \
    PUT_FOUR(q)                                                                                  \
  } break;
D_CALL uint4 f32_sqrt_4(uint4 x) {
  return make_uint4(bits(f32_sqrt(as_f32(x.x))), bits(f32_sqrt(as_f32(x.y))), bits(f32_sqrt(as_f32(x.z))), bits(f32_sqrt(as_f32(x.w))));
}
D_CALL uint4 f32_div_4(uint4 x, uint4 y) {
  return make_uint4(bits(f32_div(as_f32(x.x), as_f32(y.x))), bits(f32_div(as_f32(x.y), as_f32(y.y))),
                    bits(f32_div(as_f32(x.z), as_f32(y.z))), bits(f32_div(as_f32(x.w), as_f32(y.w))));
}

#define NEAR_STREAM (near_stream(base_at, r.w & 0xFFFF) + (opaque(first) << 2))
#define CHOICE(b) SET_i32(4 * v + k, s4[k] ? a[4 * v + k] : b)

D u64 near_stream(u32 base_at, u32 i) { const uint2 d = get_two(IO_AT + 16 * i); return join(d.x, d.y); }

// All passes over elements [from, to).
D void interpret_narrow(u32 base_at, u64 from, u64 to) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31, column = lane * 16;
  u32 a[16];
  SIXTEEN { asm("" : "=r"(a[j])); }  // nothing reads them before they are written
  for (u64 pass = from; pass < to; pass += NARROW_PASS) {
    const u64 first = pass + lane * 4;
    u32 alive = 0xFFFF;
    bool whole = f.aligned;
    if (pass + NARROW_PASS > f.end) {
      const i64 left = (i64)(f.end - first);
      alive = 0;
      VECTORS alive |= ((1u << max(min((i32)min(left, (i64)TILE) - (i32)(v * NARROW_PASS / 4), 4), 0)) - 1) << 4 * v;
      whole = false;
    }
    whole = __shfl_sync(FULL, (u32)whole, 0);
    fetch_ahead(base_at, pass + NARROW_PASS, NARROW_PASS, lane);
    u32 code = f.code_at;
    uint2 next = get_two(code);
    for (;;) {
      const uint2 rest = get_two(code + 8);
      const uint4 r = make_uint4(__shfl_sync(FULL, next.x, 0), next.y, rest.x, rest.y);
      code += 16;
      next = get_two(code);
      const u32 b_at = r.y + column;
      if (r.x & LOAD_A32) {
        const u32 o = r.z & 0xFFFF, at = PLACE_AT(o), step = (o & 1) * PLANE_STEP;
        VECTORS {
          const uint4 q = get128(at + v * step);
          PUT_FOUR(q)
        }
      }
#define c_at PLACE_AT(r.w & 0xFFFF)
#define c_step ((r.w & 1) * PLANE_STEP)
      switch (r.x & 0x1FF) {
#include "narrow_cases.cuh"
        case H_NOP: break;
        case H_POOL32: { u32 x = (u32)((const u64*)f.pool)[r.w & 0xFFFF]; SIXTEEN a[j] = x; } break;
        case H_PARAM32: { u32 x = (u32)parameter_of(base_at, r.w & 0xFFFF); SIXTEEN a[j] = x; } break;
        case H_SELECT32: VECTORS {
          const uint4 q = get128(b_at + v * PLANE_STEP), s = get128(c_at + v * c_step);
          FOUR(q) FOUR(s)
          WITHIN CHOICE(q4[k]);
        } break;
        case H_SELECT32 | OF_VALUE: VECTORS {
          const uint4 s = get128(c_at + v * c_step);
          FOUR(s)
          WITHIN CHOICE(r.y);
        } break;
        case H_STREAM_LOAD32: {
          const u64 p = NEAR_STREAM;
          if (whole) {
            VECTORS {
              const uint4 q = load_stream(p + v * PLANE_STEP);
              PUT_FOUR(q)
            }
          } else {
            SIXTEEN if (alive >> j & 1) a[j] = *(const u32*)(p + j / 4 * PLANE_STEP + j % 4 * 4);
          }
        } break;
        case H_STREAM_STORE32: {
          const u64 p = NEAR_STREAM;
          if (whole) {
            VECTORS store_stream(p + v * PLANE_STEP, GET_FOUR);
          } else {
            SIXTEEN if (alive >> j & 1) *(u32*)(p + j / 4 * PLANE_STEP + j % 4 * 4) = a[j];
          }
        } break;
        case H_RETURN: goto over;
        default: break;
      }
      if (r.x & (FIX_NAN32 | STORE32)) {
        if (r.x & FIX_NAN32) SIXTEEN { if (ACC_f32(j) != ACC_f32(j)) a[j] = NAN32; }
        if (r.x & STORE32) {
          const u32 at = PLACE_AT(r.z >> 16);
          VECTORS put128(at + v * PLANE_STEP, GET_FOUR);
        }
      }
    }
  over:;
  }
}
