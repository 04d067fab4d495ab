// The interpreter: one pass of one warp over up to 256 elements.
//
// Accumulator form: an instruction's first operand is what the last one left, its second comes from shared memory, and a
// store happens only for values that are needed again. There is one accumulator of 32 and one of 64 bits. All lanes
// decode the same record. Control is structured: a lane has one bit per element for "alive" (did not trap) and "active"
// (on this path).
#pragma once
#include "heavy.cuh"

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
#define BINARY(ID, NAME, R, A, B)                                                                \
  case ID: {                                                                                     \
    BITS_##B b[8];                                                                               \
    read8(b, OPERAND_B, STEP(r.y));                                                              \
    EACH SET_##R(j, NAME(ACC_##A(j), FROM_##B(b[j])));                                           \
  } break;
#define TERNARY(ID, NAME, R, A)                                                                  \
  case ID: {                                                                                     \
    BITS_##A b[8], c[8];                                                                         \
    read8(b, OPERAND_B, STEP(r.y));                                                              \
    read8(c, PLACE_AT(r.w & 0xFFFF), STEP(r.w));                                                 \
    EACH SET_##R(j, NAME(ACC_##A(j), FROM_##A(b[j]), FROM_##A(c[j])));                           \
  } break;

#define OPERAND_B (r.y + (r.y & 1) * (column - 1))
#define TRAP(j, code)                                                                            \
  {                                                                                              \
    u64 packed = ELEMENT(j) << 20 | (u64)(r.w >> 16) << 4 | (code);                              \
    worst = packed < worst ? packed : worst;                                                     \
    trapped |= 1u << (j);                                                                        \
  }
#define CATCH                                                                                    \
  if (trapped) {                                                                                 \
    atomicMin(&f.fault, worst);                                                                  \
    alive &= ~trapped;                                                                           \
    active &= ~trapped;                                                                          \
  }
#define GO(target)                                                                               \
  {                                                                                              \
    u32 to = (target);                                                                           \
    if (to / WINDOW != page) { page = to / WINDOW; load_page(f, base_at, page, lane); }          \
    code = f.code_at + to % WINDOW * 16;                                                         \
    next = SHARED(uint4, code);                                                                  \
  }
#define TARGET (r.z >> 16 | r.w << 16)

D_CALL void interpret(u32 base_at) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31, width = f.width;
  const bool mine = lane < width;
  const u32 column = (lane & (width - 1)) * 16, half = width * 16;
  const u64 first = f.pass + (lane & (width - 1)) * 4;
  u32 alive = 0;
  if (mine) EACH if (ELEMENT(j) < f.end) alive |= 1u << j;
  u32 active = alive, page = f.page, spins = 0;
  u32 stack = f.stack_at + 2 * lane;
  if (page != 0) { page = 0; load_page(f, base_at, 0, lane); }
  u32 code = f.code_at;
  uint4 next = SHARED(uint4, code);
  u32 a[8];
  u64 w[8];
  EACH { a[j] = 0; w[j] = 0; }
  for (;;) {
    const uint4 r = next;
    code += 16;
    next = SHARED(uint4, code);
    if (r.x & (LOAD_A32 | LOAD_A64)) {
      u32 o = r.z & 0xFFFF;
      if (r.x & LOAD_A32) read8(a, PLACE_AT(o), STEP(o));
      else read8(w, PLACE_AT(o), STEP(o));
    }
    switch (r.x & 0xFFFF) {
#include "light_cases.cuh"
#include "data.cuh"
      HEAVY_LABELS {
        u32 trapped = heavy(base_at, r, active);
        alive &= ~trapped;
        active &= ~trapped;
        read8(a, PLACE_AT(r.z >> 16), half);  // one of the two is the result, the other is not read before it is written
        read8(w, PLACE_AT(r.z >> 16), half);
      } break;
      case H_RETURN: return;
      case H_PAGE: GO((page + 1) * WINDOW) continue;
      case H_UNREACHABLE: {
        u32 trapped = 0;
        u64 worst = NO_FAULT;
        EACH if (active >> j & 1) TRAP(j, FAULT_UNREACHABLE);
        CATCH
      } break;
      case H_IF: {
        u32 taken = 0;
        EACH taken |= (a[j] != 0) << j;
        taken &= active;
        SHARED(u16, stack) = (u16)(active | (active & ~taken) << 8);
        stack += 64;
        active = taken;
        if (!__any_sync(FULL, taken)) GO(TARGET)
        continue;
      }
      case H_ELSE: {
        active = (SHARED(u16, stack - 64) >> 8) & alive;
        if (!__any_sync(FULL, active)) GO(TARGET)
        continue;
      }
      case H_END: {
        stack -= 64;
        active = SHARED(u16, stack) & 0xFF & alive;
        continue;
      }
      case H_LOOP: {
        SHARED(u16, stack) = (u16)active;
        stack += 64;
        continue;
      }
      case H_BR_IF: {
        u32 taken = 0;
        EACH taken |= (a[j] != 0) << j;
        taken &= active;
        if (__any_sync(FULL, taken)) {
          if ((++spins & 0xFFF) == 0 && __any_sync(FULL, now_ns() > f.deadline)) {
            if (lane == 0) atomicMin(&f.fault, REFUSED(FAULT_DEADLINE));
            return;
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
      default: __builtin_unreachable();
    }
    if (r.x & (FIX_NAN32 | FIX_NAN64 | STORE32 | STORE64)) {
      if (r.x & FIX_NAN32) EACH { if (ACC_f32(j) != ACC_f32(j)) a[j] = NAN32; }
      if (r.x & FIX_NAN64) EACH { if (ACC_f64(j) != ACC_f64(j)) w[j] = NAN64; }
      u32 at = PLACE_AT(r.z >> 16);
      if ((r.x & BLEND) && active != 0xFF) {
        if (r.x & STORE32) EACH if (active >> j & 1) SHARED(u32, place32(at, half, j)) = a[j];
        if (r.x & STORE64) EACH if (active >> j & 1) SHARED(u64, place64(at, half, j)) = w[j];
      } else if (mine) {
        if (r.x & STORE32) write8(a, at, half);
        if (r.x & STORE64) write8(w, at, half);
      }
    }
  }
}
