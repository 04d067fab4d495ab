// A warp's private shared memory: frame, code window, uniform slots, block stack, accumulators, register planes.
//
// A plane holds 32 bits of one register for all elements of a pass: 8 elements a lane as two vectors of four, so that
// every access is 16 bytes a lane without bank conflicts. A 64-bit register is two planes. `width` lanes (32, 16, .. 1)
// carry elements: the widest for which the program's planes fit, chosen per item from its live set.
#pragma once
#include "order.cuh"
#include "vir0.cuh"

extern __shared__ __align__(16) unsigned char shared_bytes[];
// Places in shared memory are 32-bit addresses of the shared window, kept as such: a pointer would be rebuilt from the
// block's rank at each use. Hot accesses go through these functions, which keep their order among each other.
D u32 shared_address() { return (u32)__cvta_generic_to_shared(shared_bytes); }
#define SHARED(T, at) (*(T*)(shared_bytes + ((at) - shared_address())))
D uint4 get128(u32 at) { uint4 v; asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at)); return v; }
D ulonglong2 get_pair(u32 at) { ulonglong2 v; asm volatile("ld.shared.v2.u64 {%0, %1}, [%2];" : "=l"(v.x), "=l"(v.y) : "r"(at)); return v; }
D u64 get64(u32 at) { u64 v; asm volatile("ld.shared.u64 %0, [%1];" : "=l"(v) : "r"(at)); return v; }
D uint2 get_two(u32 at) { uint2 v; asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at)); return v; }
D u32 get32(u32 at) { u32 v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at)); return v; }
D u32 get16(u32 at) { u16 v; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at)); return v; }
D void put128(u32 at, uint4 v) { asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)); }
D void put_pair(u32 at, u64 x, u64 y) { asm volatile("st.shared.v2.u64 [%0], {%1, %2};" ::"r"(at), "l"(x), "l"(y)); }
D void put64(u32 at, u64 v) { asm volatile("st.shared.u64 [%0], %1;" ::"r"(at), "l"(v)); }
D void put32(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v)); }
D void put16(u32 at, u32 v) { asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"((u16)v)); }
// The kernel's argument, copied once per block: out-of-line functions would read a parameter through local windows.
#define launch (*(Launch*)shared_bytes)

#define OWED 8

struct Item { u64 sequence, first, count, started; u32 opcode, binding, flags; };

struct Frame {
  Item item;             // what this warp works on
  u64 owed[OWED];        // items done whose records are written but not yet released
  u32 owed_count, defers;
  u64 program, binding;  // device addresses
  u64 acc;               // of the accumulators' descriptors; those of emits follow
  u64 base, elements;    // global index of position 0; elements behind it
  u64 end;               // global index behind the item's last element
  u64 upto, then;        // where the range ends that the warp is at, and where it goes on afterwards (NOWHERE: unknown)
  // Of a big item's share: units drawn (at and next: tag << CURSOR_BITS | unit), tiles done, the lowest trap of all warps.
  u64 drawn[2], job_first, job_tiles, job_units, mine, lowest, closing;
  u32 shift, part;
  u64 fault;             // lowest trap so far, NO_FAULT when none
  u64 deadline;          // device clock at which a tile's loops are stopped
  u64 results, tile_sums, emit_counts, scratch, heap;
  u64 operands;          // device address of the operand array
  u64 pool;              // device address of constants reached by index
  u64 records;           // device address of the code
  u32 code_at, slot_at, stack_at, lane_at, kept_at, plane_at;
  u32 width, page, record_count, fuel, fuel_plane;
  u32 narrow;            // interpret_narrow does this program
  u32 aligned;           // every stream of 32- or 64-bit elements can be accessed in vectors
  u32 inputs, io, tables, accumulators, emits, float_sums, sum_plane, slots, constant_slots, tiles;
  u32 program_flags, set_up;  // set_up: 1 when the frame holds item.opcode's program and item.binding
};
static_assert(sizeof(Frame) <= FRAME_BYTES, "abi.FRAME_BYTES");
#define IO_AT (base_at + FRAME_BYTES)  // descriptors of streams lie right behind the frame
#define REFUSED(code) (1ull << 63 | (code))  // an engine's refusal: above every trap, no place
#define NO_FAULT 0xFFFFFFFFFFFFFFFFull
#define NOWHERE 0xFFFFFFFFFFFFFFFFull

// 32-bit registers: two vectors of four elements. 64-bit ones: four vectors of two, so that 64-bit arithmetic finds its
// register pairs where a load puts them.
D void read8(u32* v, u32 at, u32 step) {
  uint4 p = get128(at), q = get128(at + step);
  v[0] = p.x; v[1] = p.y; v[2] = p.z; v[3] = p.w;
  v[4] = q.x; v[5] = q.y; v[6] = q.z; v[7] = q.w;
}
D void write8(const u32* v, u32 at, u32 step) {
  put128(at, make_uint4(v[0], v[1], v[2], v[3]));
  put128(at + step, make_uint4(v[4], v[5], v[6], v[7]));
}
D void read8(u64* v, u32 at, u32 step) {
#pragma unroll
  for (u32 k = 0; k < 4; ++k) {
    ulonglong2 p = get_pair(at + k * step);
    v[2 * k] = p.x; v[2 * k + 1] = p.y;
  }
}
D void write8(const u64* v, u32 at, u32 step) {
#pragma unroll
  for (u32 k = 0; k < 4; ++k) put_pair(at + k * step, v[2 * k], v[2 * k + 1]);
}
// Place of element j of this lane, from the address of the register's first vector.
D u32 place32(u32 at, u32 step, u32 j) { return at + (j & 3) * 4 + (j >> 2) * step; }
D u32 place64(u32 at, u32 step, u32 j) { return at + (j & 1) * 8 + (j >> 1) * step; }

// Code of one page into the window, operands turned into addresses: every lane does its own records.
D void load_page(Frame& f, u32 base_at, u32 page, u32 lane) {
  const uint4* from = (const uint4*)f.records + (u64)page * WINDOW;
  u32 count = min((u32)WINDOW, f.record_count - page * WINDOW);
  __syncwarp();
  const bool narrow = f.narrow;
  u32 plane = f.plane_at - base_at, slot = f.slot_at - base_at, bytes = narrow ? 4 * NARROW_PASS : f.width * 32;
  for (u32 i = lane; i < count; i += 32) {
    uint4 r = from[i];
#define PLACE(o) (((o) & UNIFORM) ? slot + ((o) & 0x7FFF) * 16 : plane + (o) * bytes + 1)
    if (narrow) {
      const bool value = (r.x & PLACE_B) && (r.y & UNIFORM);
      r.x = (r.x & 0xFFFF0000u) | (r.x >> 8 & 0xFF) | (value ? 256 : 0);
      r.y = value ? get32(f.slot_at + (r.y & 0x7FFF) * 16) : base_at + plane + r.y * bytes;
    } else if (r.x & PLACE_B) {
      r.y = base_at + PLACE(r.y);
    }
    if (r.x & PLACE_A) r.z = (r.z & 0xFFFF0000u) | PLACE(r.z & 0xFFFF);
    if (r.x & PLACE_D) r.z = (r.z & 0xFFFF) | PLACE(r.z >> 16) << 16;
    if (r.x & PLACE_C) r.w = (r.w & 0xFFFF0000u) | PLACE(r.w & 0xFFFF);
    put128(f.code_at + 16 * i, r);
  }
  if (lane == 0) f.page = page;
  __syncwarp();
}
