// The interpreter for any program: passes of one warp over up to 256 elements each.
//
// Accumulator form: an instruction's first operand is what the last one left, its second comes from shared memory, and a
// store happens only for values that are needed again. There is one accumulator of 32 and one of 64 bits. All lanes
// decode the same record. Control is structured: a lane has one bit per element for "alive" (did not trap) and "active"
// (on this path).
#pragma once
#include "heavy.cuh"
#include "stop.cuh"

// A parameter that has no uniform slot. Out of line: a loop that looks at global memory, like one with an atomic in shared
// memory, gets a YIELD from the compiler, which costs the interpreter 50 cycles an instruction.
#define PARAMETERS ((const u64*)(f.operands + 16ull * (f.io + f.tables + f.emits + f.accumulators)))
D_CALL u64 parameter_of(u32 base_at, u32 i) {
  const Frame& f = SHARED(Frame, base_at);
  return is_inline(f.item.flags, i) ? inline_parameter(f.item.sequence, i) : PARAMETERS[i];
}

#define ACC_i32(j) a[j]
#define ACC_i64(j) w[j]
#define ACC_f32(j) as_f32(a[j])
#define ACC_f64(j) as_f64(w[j])
#define SET_i32(j, x) a[j] = (u32)(x)
#define SET_i64(j, x) w[j] = (x)
#define SET_f32(j, x) a[j] = bits(x)
#define SET_f64(j, x) w[j] = bits(x)
#define FROM_i32(x) (x)
#define FROM_i64(x) (x)
#define FROM_f32(x) as_f32(x)
#define FROM_f64(x) as_f64(x)
#define BITS_i32 u32
#define BITS_f32 u32
#define BITS_i64 u64
#define BITS_f64 u64

#define EACH _Pragma("unroll") for (u32 j = 0; j < 8; ++j)
#define UNARY(ID, NAME, R, A) case ID: { EACH SET_##R(j, NAME(ACC_##A(j))); } break;
// A narrow operand b was fetched before the jump, a wide one is fetched here.
#define BINARY(ID, NAME, R, A, B) case ID: { SECOND_##B EACH SET_##R(j, NAME(ACC_##A(j), FROM_##B(b[j]))); } break;
#define SECOND_i32
#define SECOND_f32
#define SECOND_i64 u64 b[8]; read8(b, OPERAND_B, STEP(r.y));
#define SECOND_f64 SECOND_i64
#define TERNARY(ID, NAME, R, A)                                                                  \
  case ID: {                                                                                     \
    SECOND_##A                                                                                   \
    BITS_##A c[8];                                                                               \
    read8(c, PLACE_AT(r.w & 0xFFFF), STEP(r.w));                                                 \
    EACH SET_##R(j, NAME(ACC_##A(j), FROM_##A(b[j]), FROM_##A(c[j])));                           \
  } break;

// Short cuts: records that need nothing before or after, and the popular ones that load or store their accumulator.
#define HOT_UNARY(ID, NAME, R, A) case ID: { EACH SET_##R(j, NAME(ACC_##A(j))); } continue;
#define HOT_BINARY(ID, NAME, R, A, B) case ID: { SECOND_##B EACH SET_##R(j, NAME(ACC_##A(j), FROM_##B(b[j]))); } continue;
#define HOT_TERNARY(ID, NAME, R, A)                                                              \
  case ID: {                                                                                     \
    SECOND_##A                                                                                   \
    BITS_##A c[8];                                                                               \
    read8(c, PLACE_AT(r.w & 0xFFFF), STEP(r.w));                                                 \
    EACH SET_##R(j, NAME(ACC_##A(j), FROM_##A(b[j]), FROM_##A(c[j])));                           \
  } continue;
#define TAKE(T) read8(REGISTER_##T, PLACE_AT(r.z & 0xFFFF), STEP(r.z));
#define KEEP(T) if (mine) write8(REGISTER_##T, PLACE_AT(r.z >> 16), half);
#define REGISTER_i32 a
#define REGISTER_f32 a
#define REGISTER_i64 w
#define REGISTER_f64 w
#define HOT_UNARY_A(ID, NAME, R, A) case ID: { TAKE(A) EACH SET_##R(j, NAME(ACC_##A(j))); } continue;
#define HOT_UNARY_S(ID, NAME, R, A) case ID: { EACH SET_##R(j, NAME(ACC_##A(j))); KEEP(R) } continue;
#define HOT_UNARY_A_S(ID, NAME, R, A) case ID: { TAKE(A) EACH SET_##R(j, NAME(ACC_##A(j))); KEEP(R) } continue;
#define HOT_BINARY_A(ID, NAME, R, A, B) case ID: { SECOND_##B TAKE(A) EACH SET_##R(j, NAME(ACC_##A(j), FROM_##B(b[j]))); } continue;
#define HOT_BINARY_S(ID, NAME, R, A, B) case ID: { SECOND_##B EACH SET_##R(j, NAME(ACC_##A(j), FROM_##B(b[j]))); KEEP(R) } continue;
#define HOT_BINARY_A_S(ID, NAME, R, A, B) case ID: { SECOND_##B TAKE(A) EACH SET_##R(j, NAME(ACC_##A(j), FROM_##B(b[j]))); KEEP(R) } continue;
#define HOT_BINARY_F(ID, NAME, R, A, B) case ID: { SECOND_##B EACH SET_##R(j, NAME(ACC_##A(j), FROM_##B(b[j]))); } goto canonical;
#define HOT_BINARY_A_F(ID, NAME, R, A, B) case ID: { SECOND_##B TAKE(A) EACH SET_##R(j, NAME(ACC_##A(j), FROM_##B(b[j]))); } goto canonical;
#define THIRD(A) BITS_##A c[8]; read8(c, PLACE_AT(r.w & 0xFFFF), STEP(r.w));
#define HOT_TERNARY_A(ID, NAME, R, A) case ID: { SECOND_##A THIRD(A) TAKE(A) EACH SET_##R(j, NAME(ACC_##A(j), FROM_##A(b[j]), FROM_##A(c[j]))); } continue;
#define HOT_TERNARY_S(ID, NAME, R, A) case ID: { SECOND_##A THIRD(A) EACH SET_##R(j, NAME(ACC_##A(j), FROM_##A(b[j]), FROM_##A(c[j]))); KEEP(R) } continue;
#define HOT_TERNARY_A_S(ID, NAME, R, A) case ID: { SECOND_##A THIRD(A) TAKE(A) EACH SET_##R(j, NAME(ACC_##A(j), FROM_##A(b[j]), FROM_##A(c[j]))); KEEP(R) } continue;
#define HOT_TERNARY_F(ID, NAME, R, A) case ID: { SECOND_##A THIRD(A) EACH SET_##R(j, NAME(ACC_##A(j), FROM_##A(b[j]), FROM_##A(c[j]))); } goto canonical;
#define HOT_TERNARY_A_F(ID, NAME, R, A) case ID: { SECOND_##A THIRD(A) TAKE(A) EACH SET_##R(j, NAME(ACC_##A(j), FROM_##A(b[j]), FROM_##A(c[j]))); } goto canonical;
// Streams in whole vectors. `whole` is the same in all lanes: every element of the pass exists and all streams are aligned.
#define STREAM_AT(shift) (stream_of(f, base_at, r.w & 0xFFFF).address + (opaque(first) << shift))
#define SHORT_STREAM_LOAD32                                                                      \
  if (!whole) break;                                                                             \
  const u64 p = STREAM_AT(2);                                                                    \
  uint4 u = load_stream(p), v = load_stream(p + half);                                           \
  a[0] = u.x; a[1] = u.y; a[2] = u.z; a[3] = u.w; a[4] = v.x; a[5] = v.y; a[6] = v.z; a[7] = v.w;
#define SHORT_STREAM_LOAD64                                                                      \
  if (!whole) break;                                                                             \
  const u64 p = STREAM_AT(3);                                                                    \
  ulonglong2 t = load_stream_pair(p), u = load_stream_pair(p + 16);                              \
  ulonglong2 v = load_stream_pair(p + 2 * half), x = load_stream_pair(p + 2 * half + 16);        \
  w[0] = t.x; w[1] = t.y; w[2] = u.x; w[3] = u.y; w[4] = v.x; w[5] = v.y; w[6] = x.x; w[7] = x.y;
#define SHORT_STREAM_STORE32                                                                     \
  if (!whole) break;                                                                             \
  const u64 p = STREAM_AT(2);                                                                    \
  if (mine) {                                                                                    \
    store_stream(p, make_uint4(a[0], a[1], a[2], a[3]));                                         \
    store_stream(p + half, make_uint4(a[4], a[5], a[6], a[7]));                                  \
  }
#define SHORT_STREAM_STORE64                                                                     \
  if (!whole) break;                                                                             \
  const u64 p = STREAM_AT(3);                                                                    \
  if (mine) {                                                                                    \
    store_stream_pair(p, w[0], w[1]);                                                            \
    store_stream_pair(p + 16, w[2], w[3]);                                                       \
    store_stream_pair(p + 2 * half, w[4], w[5]);                                                 \
    store_stream_pair(p + 2 * half + 16, w[6], w[7]);                                            \
  }
#define SHORT_RETURN goto over;
#define SHORT_SELECT32 u32 c[8]; read8(c, PLACE_AT(r.w & 0xFFFF), STEP(r.w)); EACH a[j] = c[j] ? a[j] : b[j];
#define SHORT_SELECT64                                                                           \
  u64 b[8];                                                                                      \
  u32 c[8];                                                                                      \
  read8(b, OPERAND_B, STEP(r.y));                                                                \
  read8(c, PLACE_AT(r.w & 0xFFFF), STEP(r.w));                                                   \
  EACH w[j] = c[j] ? w[j] : b[j];
// Blocks, when their condition is in the accumulator: straight to their case of the second switch.
#define SHORT_IF goto at_if;
#define SHORT_ELSE goto at_else;
#define SHORT_END goto at_end;
#define SHORT_LOOP goto at_loop;
#define SHORT_BR_IF goto at_br_if;

#define OPERAND_B (r.y + (r.y & 1) * (column - 1))
#define TRAP(j, code)                                                                            \
  {                                                                                              \
    u64 packed = (opaque(first) + ELEMENT_OF_LANE(j)) << 20 | (u64)(r.w >> 16) << 4 | (code);                              \
    worst = packed < worst ? packed : worst;                                                     \
    trapped |= 1u << (j);                                                                        \
  }
#define CATCH                                                                                    \
  if (trapped) {                                                                                 \
    keep_fault(base_at, worst);                                                                  \
    alive &= ~trapped;                                                                           \
    active &= ~trapped;                                                                          \
  }
#define GO(target)                                                                               \
  {                                                                                              \
    u32 to = (target);                                                                           \
    if (to / WINDOW != page) { page = to / WINDOW; load_page(f, base_at, page, lane); }          \
    code = f.code_at + to % WINDOW * 16;                                                         \
    next = get_two(code);                                                                        \
  }
#define TARGET (r.z >> 16 | r.w << 16)

// Passes over elements [from, to): at least one, and more while `to` is not reached and nothing trapped.
D void interpret(u32 base_at, u64 from, u64 to) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31, width = f.width;
  const bool mine = lane < width;
  const u32 column = (lane & (width - 1)) * 16, half = width * 16;
  u32 page = f.page;
  u32 a[8];
  u64 w[8];
  EACH { asm("" : "=r"(a[j])); asm("" : "=l"(w[j])); }  // nothing reads them before they are written
  for (u64 pass = from;;) {
    const u64 first = pass + (lane & (width - 1)) * 4;
    u32 alive = mine ? 0xFF : 0;
    // Blocks and traps make it false: a short store knows no mask.
    bool whole = f.aligned;
    if (pass + 8 * width > f.end) {
      const i64 left = (i64)(f.end - first);
      const i32 here = left > 2 * TILE ? 2 * TILE : left < 0 ? 0 : (i32)left;
      // Elements that exist, of each half of the pass.
      const u32 alive_low = (1u << min(here, 4)) - 1, alive_high = (1u << min(max(here - (i32)(half / 4), 0), 4)) - 1;
      alive &= alive_low | alive_high << 4;
      whole = false;
    }
    whole = __shfl_sync(FULL, (u32)whole, 0);
    u32 active = alive, spins = 0;
    u32 stack = f.stack_at + 2 * lane;
    fetch_ahead(base_at, pass + 8 * width, 8 * width, lane);
    if (page != 0) { page = 0; load_page(f, base_at, 0, lane); }
    u32 code = f.code_at;
    uint2 next = get_two(code);
    for (;;) {
      // What the jump needs was fetched one record ahead; operands arrive while it is under way. The shuffle says that
      // the word is the same in all lanes, so that branches need no convergence barriers.
      const uint2 rest = get_two(code + 8);
      const uint4 r = make_uint4(__shfl_sync(FULL, next.x, 0), next.y, rest.x, rest.y);
      code += 16;
      next = get_two(code);
      u32 b[8];
      read8(b, OPERAND_B, STEP(r.y));
      switch (r.x & 0xFF) {
#ifndef QUICK  // a record with a short cut names its handler too
#include "hot_cases.cuh"
#endif
      }
      if (r.x & (LOAD_A32 | LOAD_A64)) {
        u32 o = r.z & 0xFFFF;
        if (r.x & LOAD_A32) read8(a, PLACE_AT(o), STEP(o));
        else read8(w, PLACE_AT(o), STEP(o));
      }
      switch (r.x >> 8 & 0xFF) {
#include "light_cases.cuh"
#include "data.cuh"
        case H_HEAVY: {
          u32 trapped = heavy(base_at, r, active, first);
          alive &= ~trapped;
          active &= ~trapped;
          read8(a, PLACE_AT(r.z >> 16), half);  // one of the two is the result, the other is not read before it is written
          read8(w, PLACE_AT(r.z >> 16), half);
        } break;
        case H_RETURN: goto over;
        case H_PAGE: GO((page + 1) * WINDOW) continue;
        case H_UNREACHABLE: {
          u32 trapped = 0;
          u64 worst = NO_FAULT;
          EACH if (active >> j & 1) TRAP(j, FAULT_UNREACHABLE);
          CATCH
        } break;
        case H_IF: at_if: {
          u32 taken = 0;
          EACH taken |= (a[j] != 0) << j;
          taken &= active;
          put16(stack, (active | (active & ~taken) << 8));
          stack += 64;
          active = taken;
          if (!__any_sync(FULL, taken)) GO(TARGET)
          continue;
        }
        case H_ELSE: at_else: {
          active = (get16(stack - 64) >> 8) & alive;
          if (!__any_sync(FULL, active)) GO(TARGET)
          continue;
        }
        case H_END: at_end: {
          stack -= 64;
          active = get16(stack) & 0xFF & alive;
          continue;
        }
        case H_LOOP: at_loop: {
          put16(stack, active);
          stack += 64;
          continue;
        }
        case H_BR_IF: at_br_if: {
          u32 taken = 0;
          EACH taken |= (a[j] != 0) << j;
          taken &= active;
          if (__any_sync(FULL, taken)) {
            if ((++spins & 0xFFF) == 0) {
              const u64 asked = why_stop(base_at);
              if (__any_sync(FULL, asked != NO_FAULT)) {
                if (asked != NO_FAULT) keep_fault(base_at, asked);
                return;
              }
            }
            u32 burnt[8], at = f.plane_at + f.fuel_plane * 2 * half + column, trapped = 0;
            u64 worst = NO_FAULT;
            read8(burnt, at, half);
            EACH if (taken >> j & 1) { if (burnt[j] >= f.fuel) TRAP(j, FAULT_OUT_OF_FUEL) else burnt[j] += 1; }
            if (mine) write8(burnt, at, half);
            taken &= ~trapped;
            CATCH
            if (__any_sync(FULL, taken)) { active = taken; GO(TARGET) }
          }
          continue;
        }
      }
      if (r.x & (FIX_NAN32 | FIX_NAN64 | STORE32 | STORE64)) {
        if (r.x & FIX_NAN32) EACH { if (ACC_f32(j) != ACC_f32(j)) a[j] = NAN32; }
        if (r.x & FIX_NAN64) EACH { if (ACC_f64(j) != ACC_f64(j)) w[j] = NAN64; }
        u32 at = PLACE_AT(r.z >> 16);
        if ((r.x & BLEND) && active != 0xFF) {
          if (r.x & STORE32) EACH if (active >> j & 1) put32(place32(at, half, j), a[j]);
          if (r.x & STORE64) EACH if (active >> j & 1) put64(place64(at, half, j), w[j]);
        } else if (mine) {
          if (r.x & STORE32) write8(a, at, half);
          if (r.x & STORE64) write8(w, at, half);
        }
      }
      continue;
    canonical:
      EACH { if (ACC_f32(j) != ACC_f32(j)) a[j] = NAN32; }
      if (r.x & STORE32) { KEEP(f32) }
    }
  over:
    __syncwarp();
    pass += 8 * width;
    if (pass >= to || f.fault >> 20 < pass) return;
  }
}
