// Fixed-width types and bit views. Owns nothing else; no header of the toolkit is needed, so compiling stays short.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;

#define D static __device__ __forceinline__
#define D_CALL static __device__ __noinline__
#define FULL 0xFFFFFFFFu

D u64 join(u32 lo, u32 hi) { return (u64)hi << 32 | lo; }
D u32 low(u64 x) { return (u32)x; }
D u32 high(u64 x) { return (u32)(x >> 32); }
D u32 bits(f32 x) { return __float_as_uint(x); }
D u64 bits(f64 x) { return (u64)__double_as_longlong(x); }
D f32 as_f32(u32 x) { return __uint_as_float(x); }
D f64 as_f64(u64 x) { return __longlong_as_double((i64)x); }

// The same value, but the compiler does not know it: what is computed from it stays where it is needed, and takes no
// register in between.
D u64 opaque(u64 x) { asm volatile("" : "+l"(x)); return x; }
D u32 opaque(u32 x) { asm volatile("" : "+r"(x)); return x; }

#define NAN32 0x7FC00000u
#define NAN64 0x7FF8000000000000ull
