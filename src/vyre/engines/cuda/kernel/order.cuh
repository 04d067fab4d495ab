// Memory order: the only file with inline PTX for it. Each use says what it pairs with.
//
// Streams, tables, descriptors and code are read with plain loads behind one acquire fence per item: a resident kernel
// never gets a launch's flush of L1, so nothing here may go through the read-only path (no __ldg, no .nc).
#pragma once
#include "types.cuh"

D u32 load_relaxed_gpu(const u32* p) { u32 v; asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
D u64 load_relaxed_gpu(const u64* p) { u64 v; asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory"); return v; }
D void store_relaxed_gpu(u64* p, u64 v) { asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
D void store_relaxed_gpu(u32* p, u32 v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
// Four words of host memory at once: what the poller and a slot's owner read.
D uint4 load_relaxed_sys(const uint4* p) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
// The same with acquire: the poller's look at the slot, so that a hit needs no fence.
D uint4 load_acquire_sys(const uint4* p) {
  uint4 v;
  asm volatile("ld.acquire.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
// Pairs with the host's acquire load of the same word (x86: any load).
D void store_release_sys(u64* p, u64 v) { asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
D void store_release_gpu(u64* p, u64 v) { asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
D u64 load_acquire_sys(const u64* p) { u64 v; asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory"); return v; }
D u64 load_relaxed_sys(const u64* p) { u64 v; asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory"); return v; }
D void store_relaxed_sys(u64* p, u64 v) { asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
D u64 load_acquire_gpu(const u64* p) { u64 v; asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory"); return v; }
D void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
D void fence_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
D void fence_sc_gpu() { asm volatile("fence.sc.gpu;" ::: "memory"); }

D u64 add_gpu(u64* p, u64 v) { u64 old; asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], %2;" : "=l"(old) : "l"(p), "l"(v) : "memory"); return old; }
D u32 add_gpu(u32* p, u32 v) { u32 old; asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory"); return old; }
D void bump_gpu(u64* p, u64 v) { asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
D void min_gpu(u64* p, u64 v) { asm volatile("red.relaxed.gpu.global.min.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
D void max_gpu(u64* p, u64 v) { asm volatile("red.relaxed.gpu.global.max.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }

// Three words and, where `adds`, one more of a counter, whose old value goes into `old`: all on their way at once.
D void load_and_add_gpu(const u64* p, const u64* q, const u64* r, u64* counter, bool adds, u64& x, u64& y, u64& z, u64& old) {
  asm volatile(
    "{ .reg .pred adds; setp.ne.u32 adds, %8, 0; @adds atom.relaxed.gpu.global.add.u64 %3, [%7], 1;"
    " ld.relaxed.gpu.global.u64 %0, [%4]; ld.relaxed.gpu.global.u64 %1, [%5]; ld.relaxed.gpu.global.u64 %2, [%6]; }"
    : "=&l"(x), "=&l"(y), "=&l"(z), "+l"(old)
    : "l"(p), "l"(q), "l"(r), "l"(counter), "r"((u32)adds)
    : "memory");
}

D u64 now_ns() { u64 t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory"); return t; }
