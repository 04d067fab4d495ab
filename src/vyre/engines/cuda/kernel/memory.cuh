// Streams, tables and emits: how one lane reaches its elements. Plain accesses; the item's acquire fence came before.
#pragma once
#include "frame.cuh"
#include "numeric.cuh"

struct Operand { u64 address; u32 extent, dtype; };

D Operand stream_of(const Frame& f, u32 i) {
  uint4 d = i < IO_IN_SHARED ? get128(f.io_at + 16 * i) : ((const uint4*)f.operands)[i];
  Operand o = {join(d.x, d.y), d.z, d.w & 0xFF};
  return o;
}
D Operand operand_of(const Frame& f, u32 i) {
  uint4 d = ((const uint4*)f.operands)[i];
  Operand o = {join(d.x, d.y), d.z, d.w};
  return o;
}

// Bring the tile that begins at `element` of the inputs that lie in device memory into the second-level cache.
D_CALL void fetch_ahead(const Frame& f, u64 element, u32 lane) {
  const u64 left = f.end - element;
  for (u32 i = 0; i < f.inputs; ++i) {
    uint4 d = i < IO_IN_SHARED ? get128(f.io_at + 16 * i) : ((const uint4*)f.operands)[i];
    if (!(d.w & IN_DEVICE_MEMORY)) continue;
    const u32 kind = d.w & 0xFF;
    const u32 shift = kind == MEM_I64 || kind == MEM_F64 || kind == MEM_U64 ? 3 : kind == MEM_I32 || kind == MEM_F32 || kind == MEM_U32 ? 2 : kind == MEM_I8 || kind == MEM_U8 || kind == MEM_BOOL ? 0 : 1;
    const u32 bytes = (u32)(left < TILE ? left : TILE) << shift;
    const u64 p = join(d.x, d.y) + ((element - f.base) << shift);
    for (u32 at = 32 * lane; at < bytes; at += 1024) asm volatile("prefetch.global.L2 [%0];" ::"l"(p + at));
  }
}

// One table element of any memory type, widened; the index is in range. Rare types share this out-of-line body.
D_CALL u64 gather_narrow(u64 address, u64 i, u32 dtype) {
  switch (dtype) {
    case MEM_I8: return (u32)(i32)((const i8*)address)[i];
    case MEM_U8: return ((const u8*)address)[i];
    case MEM_BOOL: return ((const u8*)address)[i] != 0;
    case MEM_I16: return (u32)(i32)((const i16*)address)[i];
    case MEM_U16: return ((const u16*)address)[i];
    case MEM_F16: return bits(widen_f16(((const u16*)address)[i]));
    default: return bits(widen_bf16(((const u16*)address)[i]));
  }
}

D_CALL void store_narrow(u64 address, u64 i, u32 dtype, u32 lo, u32 hi) {
  switch (dtype) {
    case MEM_I8: case MEM_U8: ((u8*)address)[i] = (u8)lo; break;
    case MEM_BOOL: ((u8*)address)[i] = lo != 0; break;
    case MEM_I16: case MEM_U16: ((u16*)address)[i] = (u16)lo; break;
    case MEM_F16: ((u16*)address)[i] = narrow_f16(as_f32(lo)); break;
    case MEM_BF16: ((u16*)address)[i] = narrow_bf16(as_f32(lo)); break;
    case MEM_I64: case MEM_U64: case MEM_F64: ((u64*)address)[i] = join(lo, hi); break;
    default: ((u32*)address)[i] = lo;
  }
}

// Atomic tables keep no old value, so these are reductions; at device scope, for tables are in device memory.
D_CALL void update32(u64 at, u32 verb, u32 v) {
  u32* p = (u32*)at;
  switch (verb) {
    case 0: atomicAdd(p, v); break;
    case 1: atomicAnd(p, v); break;
    case 2: atomicOr(p, v); break;
    case 3: atomicXor(p, v); break;
    case 4: atomicMin((i32*)p, (i32)v); break;
    case 5: atomicMin(p, v); break;
    case 6: atomicMax((i32*)p, (i32)v); break;
    default: atomicMax(p, v);
  }
}
D_CALL void update64(u64 at, u32 verb, u64 v) {
  u64* p = (u64*)at;
  switch (verb) {
    case 0: atomicAdd(p, v); break;
    case 1: atomicAnd(p, v); break;
    case 2: atomicOr(p, v); break;
    case 3: atomicXor(p, v); break;
    case 4: atomicMin((i64*)p, (i64)v); break;
    case 5: atomicMin(p, v); break;
    case 6: atomicMax((i64*)p, (i64)v); break;
    default: atomicMax(p, v);
  }
}
