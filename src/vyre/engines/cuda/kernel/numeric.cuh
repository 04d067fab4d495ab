// One scalar body per numeric instruction of VIR0, named as in program/opcodes.py with '.' as '_'.
//
// Compiled without contraction, without flush to zero, with correctly rounded division and square root. A float body may
// return any NaN: the interpreter makes it canonical where the program's analysis says that someone may see it.
// Trapping bodies take `u32& trap` and set it to a fault code.
#pragma once
#include "types.cuh"
#include "vir0.cuh"

#define INTEGERS(T, U, S, B)                                                                    \
  D i32 T##_eqz(U a) { return a == 0; }                                                         \
  D i32 T##_eq(U a, U b) { return a == b; }                                                     \
  D i32 T##_ne(U a, U b) { return a != b; }                                                     \
  D i32 T##_lt_s(U a, U b) { return (S)a < (S)b; }                                              \
  D i32 T##_lt_u(U a, U b) { return a < b; }                                                    \
  D i32 T##_gt_s(U a, U b) { return (S)a > (S)b; }                                              \
  D i32 T##_gt_u(U a, U b) { return a > b; }                                                    \
  D i32 T##_le_s(U a, U b) { return (S)a <= (S)b; }                                             \
  D i32 T##_le_u(U a, U b) { return a <= b; }                                                   \
  D i32 T##_ge_s(U a, U b) { return (S)a >= (S)b; }                                             \
  D i32 T##_ge_u(U a, U b) { return a >= b; }                                                   \
  D U T##_add(U a, U b) { return a + b; }                                                       \
  D U T##_sub(U a, U b) { return a - b; }                                                       \
  D U T##_mul(U a, U b) { return a * b; }                                                       \
  D U T##_and(U a, U b) { return a & b; }                                                       \
  D U T##_or(U a, U b) { return a | b; }                                                        \
  D U T##_xor(U a, U b) { return a ^ b; }                                                       \
  D U T##_shl(U a, U b) { return a << (b & (B - 1)); }                                          \
  D U T##_shr_s(U a, U b) { return (U)((S)a >> (b & (B - 1))); }                                \
  D U T##_shr_u(U a, U b) { return a >> (b & (B - 1)); }                                        \
  D U T##_rotl(U a, U b) { return a << (b & (B - 1)) | a >> (-b & (B - 1)); }                   \
  D U T##_rotr(U a, U b) { return a >> (b & (B - 1)) | a << (-b & (B - 1)); }                   \
  D U T##_min_s(U a, U b) { return (S)a < (S)b ? a : b; }                                       \
  D U T##_min_u(U a, U b) { return a < b ? a : b; }                                             \
  D U T##_max_s(U a, U b) { return (S)a > (S)b ? a : b; }                                       \
  D U T##_max_u(U a, U b) { return a > b ? a : b; }                                             \
  D U T##_div_u(U a, U b, u32& trap) {                                                          \
    if (b == 0) { trap = FAULT_DIVIDE_BY_ZERO; return 0; }                                      \
    return a / b;                                                                               \
  }                                                                                             \
  D U T##_rem_u(U a, U b, u32& trap) {                                                          \
    if (b == 0) { trap = FAULT_DIVIDE_BY_ZERO; return 0; }                                      \
    return a % b;                                                                               \
  }                                                                                             \
  D U T##_div_s(U a, U b, u32& trap) {                                                          \
    if (b == 0) { trap = FAULT_DIVIDE_BY_ZERO; return 0; }                                      \
    if (b == (U)-1) {                                                                           \
      if (a == (U)1 << (B - 1)) { trap = FAULT_OVERFLOW; return 0; }                            \
      return (U)0 - a;                                                                          \
    }                                                                                           \
    return (U)((S)a / (S)b);                                                                    \
  }                                                                                             \
  D U T##_rem_s(U a, U b, u32& trap) {                                                          \
    if (b == 0) { trap = FAULT_DIVIDE_BY_ZERO; return 0; }                                      \
    if (b == (U)-1) return 0;                                                                   \
    return (U)((S)a % (S)b);                                                                    \
  }

INTEGERS(i32, u32, i32, 32)
INTEGERS(i64, u64, i64, 64)

D u32 i32_clz(u32 a) { return (u32)__clz((int)a); }
D u32 i32_ctz(u32 a) { return a == 0 ? 32u : (u32)__clz((int)__brev(a)); }
D u32 i32_popcnt(u32 a) { return (u32)__popc(a); }
D u32 i32_bitrev(u32 a) { return __brev(a); }
D u32 i32_bswap(u32 a) { return __byte_perm(a, 0, 0x0123); }
D u64 i64_clz(u64 a) { return (u64)__clzll((i64)a); }
D u64 i64_ctz(u64 a) { return a == 0 ? 64ull : (u64)__clzll((i64)__brevll(a)); }
D u64 i64_popcnt(u64 a) { return (u64)__popcll(a); }
D u64 i64_bitrev(u64 a) { return __brevll(a); }
D u64 i64_bswap(u64 a) { return join(i32_bswap(high(a)), i32_bswap(low(a))); }
D u32 i32_extend8_s(u32 a) { return (u32)(i32)(i8)a; }
D u32 i32_extend16_s(u32 a) { return (u32)(i32)(i16)a; }
D u64 i64_extend8_s(u64 a) { return (u64)(i64)(i8)a; }
D u64 i64_extend16_s(u64 a) { return (u64)(i64)(i16)a; }
D u64 i64_extend32_s(u64 a) { return (u64)(i64)(i32)a; }
D u32 i32_wrap_i64(u64 a) { return (u32)a; }
D u64 i64_extend_i32_s(u32 a) { return (u64)(i64)(i32)a; }
D u64 i64_extend_i32_u(u32 a) { return a; }

// a = b holds for -0 and +0 alone among different bits: `or` keeps the minus of min, `and` the plus of max.
#define FLOATS(T, F, U, AS, SIGN)                                                               \
  D i32 T##_eq(F a, F b) { return a == b; }                                                     \
  D i32 T##_ne(F a, F b) { return a != b; }                                                     \
  D i32 T##_lt(F a, F b) { return a < b; }                                                      \
  D i32 T##_gt(F a, F b) { return a > b; }                                                      \
  D i32 T##_le(F a, F b) { return a <= b; }                                                     \
  D i32 T##_ge(F a, F b) { return a >= b; }                                                     \
  D F T##_abs(F a) { return AS(bits(a) & ~SIGN); }                                              \
  D F T##_neg(F a) { return AS(bits(a) ^ SIGN); }                                               \
  D F T##_copysign(F a, F b) { return AS((bits(a) & ~SIGN) | (bits(b) & SIGN)); }               \
  D F T##_min(F a, F b) { return a != a ? a : b != b ? b : a == b ? AS(bits(a) | bits(b)) : a < b ? a : b; } \
  D F T##_max(F a, F b) { return a != a ? a : b != b ? b : a == b ? AS(bits(a) & bits(b)) : a > b ? a : b; }

FLOATS(f32, f32, u32, as_f32, 0x80000000u)
FLOATS(f64, f64, u64, as_f64, 0x8000000000000000ull)

D f32 f32_add(f32 a, f32 b) { return __fadd_rn(a, b); }
D f32 f32_sub(f32 a, f32 b) { return __fsub_rn(a, b); }
D f32 f32_mul(f32 a, f32 b) { return __fmul_rn(a, b); }
D f32 f32_div(f32 a, f32 b) { return __fdiv_rn(a, b); }
D f32 f32_sqrt(f32 a) { return __fsqrt_rn(a); }
D f32 f32_ceil(f32 a) { return ceilf(a); }
D f32 f32_floor(f32 a) { return floorf(a); }
D f32 f32_trunc(f32 a) { return truncf(a); }
D f32 f32_nearest(f32 a) { return rintf(a); }
D f32 f32_fma(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
D f64 f64_add(f64 a, f64 b) { return __dadd_rn(a, b); }
D f64 f64_sub(f64 a, f64 b) { return __dsub_rn(a, b); }
D f64 f64_mul(f64 a, f64 b) { return __dmul_rn(a, b); }
D f64 f64_div(f64 a, f64 b) { return __ddiv_rn(a, b); }
D f64 f64_sqrt(f64 a) { return __dsqrt_rn(a); }
D f64 f64_ceil(f64 a) { return ceil(a); }
D f64 f64_floor(f64 a) { return floor(a); }
D f64 f64_trunc(f64 a) { return trunc(a); }
D f64 f64_nearest(f64 a) { return rint(a); }
D f64 f64_fma(f64 a, f64 b, f64 c) { return __fma_rn(a, b, c); }

D f32 f32_convert_i32_s(u32 a) { return __int2float_rn((i32)a); }
D f32 f32_convert_i32_u(u32 a) { return __uint2float_rn(a); }
D f32 f32_convert_i64_s(u64 a) { return __ll2float_rn((i64)a); }
D f32 f32_convert_i64_u(u64 a) { return __ull2float_rn(a); }
D f64 f64_convert_i32_s(u32 a) { return __int2double_rn((i32)a); }
D f64 f64_convert_i32_u(u32 a) { return __uint2double_rn(a); }
D f64 f64_convert_i64_s(u64 a) { return __ll2double_rn((i64)a); }
D f64 f64_convert_i64_u(u64 a) { return __ull2double_rn(a); }
D f32 f32_demote_f64(f64 a) { return __double2float_rn(a); }
D f64 f64_promote_f32(f32 a) { return (f64)a; }

// Limits: the largest float below the first value whose truncation does not fit, and that value.
#define TRUNCATE(NAME, F, R, S, LOWEST, ABOVE, LEAST, MOST)                                     \
  D R NAME(F a, u32& trap) {                                                                    \
    if (a != a) { trap = FAULT_INVALID_CONVERSION; return 0; }                                  \
    if (!(a > LOWEST && a < ABOVE)) { trap = FAULT_OVERFLOW; return 0; }                        \
    return (R)(S)a;                                                                             \
  }
#define TRUNCATE_SAT(NAME, F, R, S, LOWEST, ABOVE, LEAST, MOST)                                 \
  D R NAME(F a) {                                                                               \
    if (a != a) return 0;                                                                       \
    if (!(a > LOWEST)) return (R)LEAST;                                                         \
    if (!(a < ABOVE)) return (R)MOST;                                                           \
    return (R)(S)a;                                                                             \
  }
#define TRUNCATIONS(X, SAT)                                                                     \
  X(i32_trunc_##SAT##f32_s, f32, u32, i32, -2147483904.0f, 2147483648.0f, 0x80000000u, 0x7FFFFFFFu) \
  X(i32_trunc_##SAT##f32_u, f32, u32, u32, -1.0f, 4294967296.0f, 0u, 0xFFFFFFFFu)               \
  X(i32_trunc_##SAT##f64_s, f64, u32, i32, -2147483649.0, 2147483648.0, 0x80000000u, 0x7FFFFFFFu) \
  X(i32_trunc_##SAT##f64_u, f64, u32, u32, -1.0, 4294967296.0, 0u, 0xFFFFFFFFu)                 \
  X(i64_trunc_##SAT##f32_s, f32, u64, i64, -9223373136366403584.0f, 9223372036854775808.0f, 0x8000000000000000ull, 0x7FFFFFFFFFFFFFFFull) \
  X(i64_trunc_##SAT##f32_u, f32, u64, u64, -1.0f, 18446744073709551616.0f, 0ull, 0xFFFFFFFFFFFFFFFFull) \
  X(i64_trunc_##SAT##f64_s, f64, u64, i64, -9223372036854777856.0, 9223372036854775808.0, 0x8000000000000000ull, 0x7FFFFFFFFFFFFFFFull) \
  X(i64_trunc_##SAT##f64_u, f64, u64, u64, -1.0, 18446744073709551616.0, 0ull, 0xFFFFFFFFFFFFFFFFull)
#define NOTHING
TRUNCATIONS(TRUNCATE, )
TRUNCATIONS(TRUNCATE_SAT, sat_)

// Memory types that registers do not have.
D f32 widen_f16(u16 h) {
  f32 r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
  return r != r ? as_f32(NAN32) : r;
}
D u16 narrow_f16(f32 a) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(a));
  return a != a ? (u16)0x7E00 : h;
}
D f32 widen_bf16(u16 h) {
  f32 r = as_f32((u32)h << 16);
  return r != r ? as_f32(NAN32) : r;
}
D u16 narrow_bf16(f32 a) {
  u32 b = bits(a);
  return a != a ? (u16)0x7FC0 : (u16)((b + 0x7FFFu + (b >> 16 & 1)) >> 16);
}

// Order-preserving keys of accumulators: unsigned minimum and maximum of keys are those of the values.
D u64 key_u32(u32 a) { return a; }
D u64 key_i32(u32 a) { return a ^ 0x80000000u; }
D u64 key_u64(u64 a) { return a; }
D u64 key_i64(u64 a) { return a ^ 0x8000000000000000ull; }
D u64 key_f32(u32 b) { return (b >> 31) ? (u32)~b : (b | 0x80000000u); }
D u64 key_f64(u64 b) { return (b >> 63) ? ~b : (b | 0x8000000000000000ull); }
