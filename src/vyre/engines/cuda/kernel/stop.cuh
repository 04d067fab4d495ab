// Asking an item to end before its time: by a mark in its slot while it has not begun, by a word of its job afterwards.
//
// The host writes both, the mark first. Whoever took the slot before the mark was there finds the word: it is looked at
// between tiles and, in loops, every few thousand turns. Stale words do no harm, because they name a sequence.
#pragma once
#include "frame.cuh"

D Job* job_of(u64 sequence) {
  return (Job*)launch.jobs + (sequence & ((1ull << launch.capacity_log2) - 1));
}

// Parameters 0 to 2 of an item that brings its own lie in its slot, which stays as it is until its record is read.
D bool is_inline(u32 flags, u32 i) { return flags & FLAG_INLINE_PARAMS && i < INLINE_PARAMS; }
D u64 inline_parameter(u64 sequence, u32 i) {
  u64 slot = launch.slots + SLOT_BYTES * (sequence & ((1ull << launch.capacity_log2) - 1));
  return load_relaxed_sys((const u64*)(slot + SLOT_INLINE) + i);
}

// Why an item is to end now, NO_FAULT when it may go on. `word` is its job's `stop`.
D u64 asked_to_stop(u64 word, u64 sequence) { return word >> 8 == sequence + 1 ? REFUSED(word & 0xFF) : NO_FAULT; }
D u64 asked_to_stop(u64 sequence) { return asked_to_stop(load_relaxed_gpu(&job_of(sequence)->stop), sequence); }

// For loops: why the warp's item is to end now. Out of line, as parameter_of in interpret.cuh.
D_CALL u64 why_stop(u32 base_at) {
  Frame& f = SHARED(Frame, base_at);
  return now_ns() > f.deadline ? REFUSED(FAULT_DEADLINE) : asked_to_stop(f.item.sequence);
}

D u64 marked(u32 flags) { return flags & FLAG_CANCELLED ? REFUSED(FAULT_CANCELLED) : REFUSED(FAULT_DEADLINE); }
