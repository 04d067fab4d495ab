// A lone small item, one element a lane: what the poller runs between seeing a slot and writing its record.
//
// The general interpreter spends eight elements' work a lane and a jump into a large switch on 32 elements. Here a lane
// has one element, the next two records are under way while one runs, and runs of f32's add, sub and mul need no jump.
// Only straight programs come here (`is_lone`): no trap, no block, no accumulator, no emit, no table; so every lane that
// has an element is active all the time. Register planes are the same memory in another order: element e of a 32-bit
// plane at 4 e, of a 64-bit pair of planes at 8 e; nothing else reads them while the item runs.
#pragma once
#include "item.cuh"

#define LONE 32u  // elements that such an item has at most

// A mark in a record's first word that only this file reads: add, sub or mul of f32 with nothing before or after it, so
// that what follows cannot change its operand; the low half of its last word, which has no operand c, then says how many
// such records there are from here on.
#define LONE_RUN (1u << 28)
#define LONE_RUN_MIN 3

// Whether the program that the frame is set up for runs here; then its runs are marked. All lanes.
D_CALL bool is_lone(u32 base_at) {
  Frame& f = SHARED(Frame, base_at);
  if (!(f.program_flags & PROGRAM_QUICK) || f.record_count > WINDOW || f.elements > LONE || f.io > IO_IN_SHARED) return false;
  bool plain = true;
  for (u32 i = threadIdx.x & 31; i < f.record_count; i += 32) {
    const u32 handler = get32(f.code_at + 16 * i) >> 8 & 0xFF;
    switch (handler) {
      case H_RETURN: case H_NOP: case H_POOL32: case H_POOL64: case H_PARAM32: case H_PARAM64: case H_INDEX:
      case H_SELECT32: case H_SELECT64: case H_STREAM_LOAD32: case H_STREAM_LOAD64: case H_STREAM_STORE32:
      case H_STREAM_STORE64:
        break;
      default: plain = plain && handler >= FIRST_LIGHT && handler < FIRST_HEAVY;
    }
  }
  if (!__all_sync(FULL, plain)) return false;
  const u32 lane = threadIdx.x & 31;
  for (u32 from = 0; from < f.record_count; from += 32) {
    const u32 at = f.code_at + 16 * (from + lane);
    uint4 r = make_uint4(0, 0, 0, 0);
    if (from + lane < f.record_count) r = get128(at);
    const bool bare = (r.x >> 8 & 0xFF) - F32_ADD < 3 &&
                      !(r.x & (LOAD_A32 | LOAD_A64 | FIX_NAN32 | FIX_NAN64 | STORE32 | STORE64));
    const u32 run = __ffs((int)~(__ballot_sync(FULL, bare) >> lane)) - 1;  // zeros are shifted in: at most up to lane 31
    if (bare && run >= LONE_RUN_MIN) put128(at, make_uint4(r.x | LONE_RUN, r.y, r.z, (r.w & 0xFFFF0000u) | run));
  }
  __syncwarp();
  return true;
}

#undef UNARY
#undef BINARY
#undef TERNARY
#define LONE_A_i32 a
#define LONE_A_i64 w
#define LONE_A_f32 as_f32(a)
#define LONE_A_f64 as_f64(w)
#define LONE_SET_i32(x) a = (u32)(x)
#define LONE_SET_i64(x) w = (x)
#define LONE_SET_f32(x) a = bits(x)
#define LONE_SET_f64(x) w = bits(x)
#define LONE_B_i32 b
#define LONE_B_f32 as_f32(b)
#define LONE_B_i64 get64(r.y + (r.y & 1) * (8 * column - 1))
#define LONE_B_f64 as_f64(LONE_B_i64)
#define LONE_AT(o, size) (base_at + (o) + ((o) & 1) * ((size) * column - 1))
#define LONE_C_i32 get32(LONE_AT(r.w & 0xFFFF, 4))
#define LONE_C_i64 get64(LONE_AT(r.w & 0xFFFF, 8))
#define LONE_C_f32 as_f32(LONE_C_i32)
#define LONE_C_f64 as_f64(LONE_C_i64)
#define UNARY(ID, NAME, R, A) case ID: LONE_SET_##R(NAME(LONE_A_##A)); break;
#define BINARY(ID, NAME, R, A, B) case ID: LONE_SET_##R(NAME(LONE_A_##A, LONE_B_##B)); break;
#define TERNARY(ID, NAME, R, A) case ID: LONE_SET_##R(NAME(LONE_A_##A, LONE_B_##A, LONE_C_##A)); break;
// One record q of a run; both results cost less than a jump.
#define LONE_STEP(q, y)                                                                                       \
  {                                                                                                           \
    const u32 h = (q).x >> 8 & 0xFF;                                                                          \
    const f32 sum = __fadd_rn(as_f32(a), as_f32((y) ^ (h == F32_ADD + 1 ? 0x80000000u : 0u)));                \
    a = bits(h == F32_MUL ? __fmul_rn(as_f32(a), as_f32(y)) : sum);                                           \
  }
#define LONE_OPERAND(q) get32((q).y + ((q).y & 1) * (4 * column - 1))
#define LONE_STREAM(T) ((T*)get64(IO_AT + 16 * (r.w & 0xFFFF)) + element)

// The whole binding that the frame is set up for, which `is_lone`: its elements are the frame's.
D void run_lone(u32 base_at) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31, count = (u32)f.elements;
  const u32 column = lane & (8 * f.width - 1);  // planes have room for 8 * width elements, at least `count`
  const bool mine = lane < count;
  const u64 element = f.base + lane;
  u32 code = f.code_at, a = 0;
  u64 w = 0;
  // The word that decides where to go passes through a shuffle, which says that it is the same in all lanes.
  uint4 r = get128(code), n = get128(code + 16);
  r.x = __shfl_sync(FULL, r.x, 0);
  for (;;) {
    if (r.x & LONE_RUN) {
      u32 left = __shfl_sync(FULL, r.w & 0xFFFF, 0);
#pragma unroll 1
      for (; left >= 4; left -= 4, code += 64) {
        const uint4 q0 = get128(code), q1 = get128(code + 16), q2 = get128(code + 32), q3 = get128(code + 48);
        const u32 y0 = LONE_OPERAND(q0), y1 = LONE_OPERAND(q1), y2 = LONE_OPERAND(q2), y3 = LONE_OPERAND(q3);
        LONE_STEP(q0, y0) LONE_STEP(q1, y1) LONE_STEP(q2, y2) LONE_STEP(q3, y3)
      }
#pragma unroll 1
      for (; left; --left, code += 16) {
        const uint4 q = get128(code);
        const u32 y = LONE_OPERAND(q);
        LONE_STEP(q, y)
      }
      r = get128(code);
      n = get128(code + 16);
      r.x = __shfl_sync(FULL, r.x, 0);
      if (r.x & LONE_RUN) continue;  // a run ends where the next 32 records begin
    }
    const u32 then = __shfl_sync(FULL, n.x, 0);
    code += 16;
    const uint4 later = get128(code + 16);  // at most one record behind the code's end, which is memory of the frame
    const u32 b = get32(r.y + (r.y & 1) * (4 * column - 1));
    if (r.x & LOAD_A32) a = get32(LONE_AT(r.z & 0xFFFF, 4));
    if (r.x & LOAD_A64) w = get64(LONE_AT(r.z & 0xFFFF, 8));
    switch (r.x >> 8 & 0xFF) {
#include "light_cases.cuh"
      case H_RETURN: return;
      case H_POOL32: a = (u32)((const u64*)f.pool)[r.w & 0xFFFF]; break;
      case H_POOL64: w = ((const u64*)f.pool)[r.w & 0xFFFF]; break;
      case H_PARAM32: a = (u32)PARAMETERS[r.w & 0xFFFF]; break;
      case H_PARAM64: w = PARAMETERS[r.w & 0xFFFF]; break;
      case H_INDEX: w = element; break;
      case H_SELECT32: a = LONE_C_i32 ? a : b; break;
      case H_SELECT64: { const u64 other = LONE_B_i64; w = LONE_C_i32 ? w : other; } break;
      case H_STREAM_LOAD32: if (mine) a = *LONE_STREAM(const u32); break;
      case H_STREAM_LOAD64: if (mine) w = *LONE_STREAM(const u64); break;
      case H_STREAM_STORE32: if (mine) *LONE_STREAM(u32) = a; break;
      case H_STREAM_STORE64: if (mine) *LONE_STREAM(u64) = w; break;
      default: break;
    }
    if (r.x & (FIX_NAN32 | FIX_NAN64 | STORE32 | STORE64)) {
      if ((r.x & FIX_NAN32) && as_f32(a) != as_f32(a)) a = NAN32;
      if ((r.x & FIX_NAN64) && as_f64(w) != as_f64(w)) w = NAN64;
      if (mine && (r.x & STORE32)) put32(LONE_AT(r.z >> 16, 4), a);
      if (mine && (r.x & STORE64)) put64(LONE_AT(r.z >> 16, 8), w);
    }
    r = n;
    r.x = then;
    n = later;
  }
}
