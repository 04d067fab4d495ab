// Streams, tables and emits: how one lane reaches its elements. Plain accesses; the item's acquire fence came before.
#pragma once
#include "frame.cuh"
#include "numeric.cuh"

struct Operand { u64 address; u32 extent, dtype; };

// Logarithm of the bytes of one element.
D u32 shift_of(u32 dtype) {
  return dtype == MEM_I64 || dtype == MEM_F64 || dtype == MEM_U64 ? 3
       : dtype == MEM_I32 || dtype == MEM_F32 || dtype == MEM_U32 ? 2
       : dtype == MEM_I8 || dtype == MEM_U8 || dtype == MEM_BOOL ? 0 : 1;
}
// A stream as the warp keeps it: its address is that of the element with global index 0, wherever that would be.
D uint4 from_zero(const Frame& f, uint4 d) {
  const u64 address = join(d.x, d.y) - (f.base << shift_of(d.w & 0xFF));
  return make_uint4(low(address), high(address), d.z, d.w);
}
D uint4 descriptor_of(const Frame& f, u32 base_at, u32 i) {
  return i < IO_IN_SHARED ? get128(IO_AT + 16 * i) : from_zero(f, ((const uint4*)f.operands)[i]);
}
D Operand stream_of(const Frame& f, u32 base_at, u32 i) {
  uint4 d = descriptor_of(f, base_at, i);
  Operand o = {join(d.x, d.y), d.z, d.w & 0xFF};
  return o;
}
D Operand operand_of(const Frame& f, u32 i) {
  uint4 d = ((const uint4*)f.operands)[i];
  Operand o = {join(d.x, d.y), d.z, d.w};
  return o;
}

// Whole vectors of streams: 16 bytes a lane, known to be in global memory. Plain loads all the same: coherent, not through
// the read-only path.
D uint4 load_stream(u64 p) { uint4 v; asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p)); return v; }
D ulonglong2 load_stream_pair(u64 p) { ulonglong2 v; asm volatile("ld.global.v2.u64 {%0, %1}, [%2];" : "=l"(v.x), "=l"(v.y) : "l"(p)); return v; }
D void store_stream(u64 p, uint4 v) { asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
D void store_stream_pair(u64 p, u64 x, u64 y) { asm volatile("st.global.v2.u64 [%0], {%1, %2};" ::"l"(p), "l"(x), "l"(y) : "memory"); }

// Bring `most` elements of the inputs that lie in device memory into the second-level cache: those from `element` on or,
// behind the warp's range, from where it goes on.
D void fetch_ahead(u32 base_at, u64 element, u32 most, u32 lane) {
  const Frame& f = SHARED(Frame, base_at);
  if (element >= f.upto) element = f.then;
  const u64 end = f.end;
  if (element >= end) return;
  const u32 count = (u32)(end - element < most ? end - element : most);
#if __CUDA_ARCH__ >= 900
  for (u32 i = lane; i < f.inputs; i += 32) {
    const uint4 d = descriptor_of(f, base_at, i);
    if (!(d.w & IN_DEVICE_MEMORY)) continue;
    const u32 shift = shift_of(d.w & 0xFF), bytes = (count << shift) & ~15u;
    const u64 p = (join(d.x, d.y) + (element << shift)) & ~15ull;
    if (bytes) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
  }
#else
  for (u32 i = 0; i < f.inputs; ++i) {
    const uint4 d = descriptor_of(f, base_at, i);
    if (!(d.w & IN_DEVICE_MEMORY)) continue;
    const u32 shift = shift_of(d.w & 0xFF), bytes = count << shift;
    const u64 p = join(d.x, d.y) + (element << shift);
    for (u32 at = 32 * lane; at < bytes; at += 1024) asm volatile("prefetch.global.L2 [%0];" ::"l"(p + at));
  }
#endif
}

D u32 narrow_shift(u32 dtype) { return dtype == MEM_I8 || dtype == MEM_U8 || dtype == MEM_BOOL ? 0 : 1; }

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

// Where the element that begins `offset` bytes behind the first of a table on disk is in memory, 0 when its page is not:
// then a request for it is on the host's list. `block` is the table's PAGED block, in host memory like the pages; nothing of
// it changes while the item runs, and the item's acquire fence came before. The list is read behind the item's record,
// which is released after it.
D_CALL u64 page_address(u64 block, u64 offset) {
  const u64* p = (const u64*)block;
  const u64 byte = offset + p[PAGED_BASE / 8], shift = p[PAGED_SHIFT / 8], page = byte >> shift;
  ((volatile u8*)p[PAGED_USED / 8])[page] = 1;
  const u64 frame = ((const u64*)p[PAGED_FRAMES / 8])[page];
  if (frame) return frame + (byte & ((1ull << shift) - 1));
  // Counted in device memory: a read-modify-write across the bus is none. One lane asks for all that want this page.
  const u32 want = __match_any_sync(__activemask(), page);
  if ((threadIdx.x & 31) != (u32)__ffs((int)want) - 1) return 0;
  u64* list = (u64*)p[PAGED_REQUESTS / 8];
  const u64 number = add_gpu((u64*)p[PAGED_COUNT / 8], 1ull);
  if (number < list[REQUESTS_CAPACITY / 8]) {
    uint4* request = (uint4*)((u64)list + REQUESTS_ENTRIES + number * IO_REQUEST_BYTES);
    const u64 from = page << shift;
    request[0] = make_uint4(OPCODE_LOAD_MISS, (u32)p[PAGED_HANDLE / 8], low(from), high(from));
    request[1] = make_uint4(1u << shift, 0, 0, 0);
  }
  return 0;
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
