// One item from slot to completion record, alone or shared by many warps tile by tile.
#pragma once
#include "tile.cuh"

struct Item { u64 sequence, first, count, started; u32 opcode, binding; };

D u64 record_at(const Launch& launch, u64 sequence) {
  return launch.records + RECORD_BYTES * (sequence & ((1ull << launch.capacity_log2) - 1));
}

// Body first, then the sequence with release at system scope: pairs with the reader's acquire of sequence_plus_1.
// The caller's warp has synchronised, so lane 0's release also covers what other lanes wrote.
D void write_record(const Launch& launch, u64 sequence, u32 opcode, u64 fault, u64 value, u64 started) {
  Record* r = (Record*)record_at(launch, sequence);
  bool ok = fault == NO_FAULT;
  bool refused = !ok && (fault >> 63) != 0;  // an engine's refusal: code in the low bits, no place
  r->status = ok ? STATUS_DONE : STATUS_FAULT;
  r->code = ok ? 0 : refused ? (u32)(fault & 0xFF) : (u32)(fault & 15);
  r->pc = ok || refused ? NO_PC : (u32)(fault >> 4 & 0xFFFF);
  r->opcode = opcode;
  r->element = ok || refused ? NO_ELEMENT : fault >> 20;
  r->value = value;
  r->started = started;
  r->finished = now_ns();
  r->worker = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  store_release_sys(&r->sequence_plus_1, sequence + 1);
}

D void count_done(const Launch& launch, u64 n) { bump_gpu(&((Engine*)launch.engine)->done[0], n); }

D u64 over_lanes(u64 v, u32 kind) {
  for (u32 s = 16; s >= 1; s /= 2) {
    u64 o = __shfl_xor_sync(FULL, v, s);
    v = kind == ACC_ADD ? v + o : kind == ACC_MIN ? (o < v ? o : v) : (o > v ? o : v);
  }
  return v;
}

// This warp's accumulators: to the result (the only warp of the item) or merged into the item's scratch.
D_CALL void deliver(u32 base_at, bool alone) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  const uint4* acc = (const uint4*)f.acc;
  for (u32 i = 0; i < f.accumulators; ++i) {
    u32 kind = acc[i].x;
    if (kind == ACC_FLOAT_SUM || kind == ACC_HISTOGRAM) continue;
    u64 v = over_lanes(SHARED(u64, f.lane_at + 256 * i + 8 * lane), kind);
    if (lane == 0) {
      u64* to = (u64*)(alone ? f.results : f.scratch) + i;
      if (alone) *to = v;
      else if (kind == ACC_ADD) bump_gpu(to, v);
      else if (kind == ACC_MIN) min_gpu(to, v);
      else max_gpu(to, v);
    }
  }
  __syncwarp();
}

D_CALL void clear_scratch(u32 base_at, bool alone) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  const uint4* acc = (const uint4*)f.acc;
  for (u32 i = 0; i < f.accumulators; ++i) {
    uint4 d = acc[i];
    if (d.x == ACC_HISTOGRAM) {
      Operand o = operand_of(f, f.io + f.tables + f.emits + i);
      for (u32 k = lane; k < o.extent; k += 32) store_relaxed_gpu((u64*)o.address + k, 0ull);
    } else if (!alone && lane == 0) {
      store_relaxed_gpu((u64*)f.scratch + i, join(d.z, d.w));
    }
  }
}

// Results of an item whose last tile is done, then its record. Counts of a histogram are made in device memory, where
// they can be atomic, and copied to the result here.
D_CALL void finish(const Launch& launch, u32 base_at, const Item& item, u64 fault, bool alone) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  const uint4* acc = (const uint4*)f.acc;
  u64* results = (u64*)f.results;
  if (f.accumulators) fence_gpu();
  __syncwarp();
  for (u32 i = 0; i < f.accumulators; ++i) {
    uint4 d = acc[i];
    if (d.x == ACC_HISTOGRAM) {
      Operand o = operand_of(f, f.io + f.tables + f.emits + i);
      for (u32 k = lane; k < o.extent; k += 32) results[d.y + k] = load_relaxed_gpu((u64*)o.address + k);
    } else if (!alone && d.x != ACC_FLOAT_SUM && lane == 0) {
      results[i] = load_relaxed_gpu((u64*)f.scratch + i);
    }
  }
  __syncwarp();
  if (lane == 0) {
    write_record(launch, item.sequence, item.opcode, fault, 0, item.started);
    count_done(launch, 1);
  }
  __syncwarp();
}

D_CALL void refuse(const Launch& launch, const Item& item, u32 code) {
  if ((threadIdx.x & 31) == 0) {
    write_record(launch, item.sequence, item.opcode, REFUSED(code), 0, item.started);
    count_done(launch, 1);
  }
  __syncwarp();
}

// Items of at most one tile: this warp does everything.
D_CALL void run_alone(const Launch& launch, u32 base_at, const Item& item) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  if (lane == 0) f.end = item.first + item.count;
  __syncwarp();
  clear_scratch(base_at, true);
  __syncwarp();
  if (item.count) run_tile(base_at, item.first);
  __syncwarp();
  deliver(base_at, true);
  finish(launch, base_at, item, f.fault, true);
}

// Control items work on the session's words. Lane 0.
D void control_item(const Launch& launch, const Item& item, u32 high_word) {
  u32 at = item.binding, operand = (u32)item.first;
  u64 value = 0, fault = NO_FAULT;
  u32* word = (u32*)launch.words + at;
  if (item.opcode == OPCODE_NOP) {
  } else if (item.opcode >= OPCODE_STORE_U32 && item.opcode <= OPCODE_COMPARE_SWAP) {
    if (at >= SESSION_WORDS) fault = REFUSED(FAULT_OUT_OF_BOUNDS);
    else if (item.opcode == OPCODE_STORE_U32) atomicExch(word, operand);
    else if (item.opcode == OPCODE_ATOMIC_ADD) value = atomicAdd(word, operand);
    else if (item.opcode == OPCODE_LOAD_U32) value = load_relaxed_gpu(word);
    else value = atomicCAS(word, operand, high_word);
  } else {
    fault = REFUSED(FAULT_UNKNOWN_OPCODE);
  }
  write_record(launch, item.sequence, item.opcode, fault, value, item.started);
  count_done(launch, 1);
}

// --- items of several tiles ----------------------------------------------------------------------------------------

D Job* job_of(const Launch& launch, u64 sequence) {
  return (Job*)launch.jobs + (sequence & ((1ull << launch.capacity_log2) - 1));
}
D u64 tag_of(u64 sequence) { return sequence & ((1ull << (64 - CURSOR_BITS)) - 1); }
#define CURSOR_MASK ((1ull << CURSOR_BITS) - 1)

D bool is_closing(const Launch& launch) {
  return load_relaxed_gpu(&((Engine*)launch.engine)->closing[0]) >= launch.generation;
}

D u64 entry_of(const Launch& launch, u64 ticket, u32 kind, u64 payload) {
  return payload << 18 | (u64)kind << 16 | (((ticket >> launch.handed_log2) + 1) & 0xFFFF);
}
D u64* handed_at(const Launch& launch, u64 ticket) {
  return (u64*)launch.handed + (ticket & ((1ull << launch.handed_log2) - 1));
}

// Ask waiting warps to help: fills tickets that are held by nobody's item.
D void invite(const Launch& launch, u64 sequence, u64 remaining) {
  Engine* e = (Engine*)launch.engine;
  const u32 lane = threadIdx.x & 31;
  u64 n = 0, from = 0;
  if (lane == 0) {
    u64 head = load_relaxed_gpu(&e->head[0]), handed = load_relaxed_gpu(&e->handed[0]);
    n = head > handed ? head - handed : 0;
    n = n < remaining ? n : remaining;
    // Compare and swap, so that never more is filled than is held: the queue cannot overrun.
    if (n && atomicCAS(&e->handed[0], handed, handed + n) != handed) n = 0;
    from = handed;
  }
  n = __shfl_sync(FULL, n, 0);
  from = __shfl_sync(FULL, from, 0);
  fence_gpu();  // pairs with the fence after a ticket was seen filled: the job is written before it is offered
  for (u64 i = lane; i < n; i += 32) store_relaxed_gpu(handed_at(launch, from + i), entry_of(launch, from + i, HANDED_HELP, sequence));
}

// Take tiles of a job until none is left or the stay is over. The opener also invites and, when it must leave early,
// puts the job on the list that the next stay starts with.
D_CALL void take_part(const Launch& launch, u32 base_at, u64 sequence, bool opener) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  Job* job = job_of(launch, sequence);
  u64 warps = (u64)gridDim.x * (blockDim.x / 32);
  u64 tag = ~0ull, mine = 0, tiles = 0;
  Item item;
  for (;;) {
    if (is_closing(launch)) break;
    // One tile at a time near the end and for few tiles, up to four for many.
    u64 at = 0;
    u32 run = 1;
    if (lane == 0) {
      u64 left = tag == ~0ull ? 0 : tiles;
      u64 seen = left ? load_relaxed_gpu(&job->cursor) & CURSOR_MASK : 0;
      run = left > seen + 16 * warps ? 4 : 1;
      at = add_gpu(&job->cursor, run);
    }
    at = __shfl_sync(FULL, at, 0);
    run = __shfl_sync(FULL, run, 0);
    u64 now_tag = at >> CURSOR_BITS;
    u64 tile = at & CURSOR_MASK;
    if (now_tag != tag) {
      // First time, or the job ended and its place was opened again: then the tile is one of the new item's.
      if (mine) break;  // cannot happen: an item with our tiles unreported cannot end
      fence_gpu();
      tag = now_tag;
      tiles = job->tiles;
      if (tile >= tiles) break;
      item.sequence = job->sequence; item.first = job->first; item.count = job->count;
      item.opcode = job->opcode; item.binding = job->binding; item.started = job->started;
      if (set_up(base_at, launch, item.opcode, item.binding, lane)) break;  // cannot happen: the opener checked
      if (lane == 0) f.end = item.first + item.count;
      __syncwarp();
    }
    if (tile >= tiles) break;
    for (u32 k = 0; k < run && tile + k < tiles; ++k) {
      u64 element = item.first + (tile + k) * TILE;
      if (load_relaxed_gpu(&job->fault) >> 20 >= element) run_tile(base_at, element);
      __syncwarp();
      ++mine;
    }
    if (f.fault != NO_FAULT) {
      if (lane == 0) min_gpu(&job->fault, f.fault);
      __syncwarp();
    }
    if (opener && tiles > tile + run) invite(launch, sequence, tiles - tile - run);
  }
  if (mine) {
    deliver(base_at, false);
    fence_sys();  // pairs with the fence of whoever reports last, and so with its record's release
    u64 before = 0;
    if (lane == 0) before = add_gpu(&job->done, mine);
    before = __shfl_sync(FULL, before, 0);
    if (before + mine == tiles) {
      fence_sys();
      u64 fault = load_relaxed_gpu(&job->fault);
      finish(launch, base_at, item, fault, false);
    }
  }
  if (opener && lane == 0 && tag == tag_of(sequence)) {
    u64 at = load_relaxed_gpu(&job->cursor);
    if (at >> CURSOR_BITS == tag && (at & CURSOR_MASK) < tiles) {
      u64 i = add_gpu(&((Engine*)launch.engine)->suspended[0], 1ull);
      store_relaxed_gpu((u64*)launch.suspended + i, sequence);
    }
  } else if (opener && lane == 0 && tag == ~0ull) {  // left before the first tile was taken
    u64 i = add_gpu(&((Engine*)launch.engine)->suspended[0], 1ull);
    store_relaxed_gpu((u64*)launch.suspended + i, sequence);
  }
  __syncwarp();
}

D_CALL void open_job(const Launch& launch, u32 base_at, const Item& item, u64 tiles) {
  const u32 lane = threadIdx.x & 31;
  clear_scratch(base_at, false);
  if (lane == 0) {
    Job* job = job_of(launch, item.sequence);
    job->done = 0; job->fault = NO_FAULT; job->sequence = item.sequence; job->first = item.first; job->count = item.count;
    job->binding = item.binding; job->opcode = item.opcode; job->tiles = tiles; job->started = item.started;
  }
  __syncwarp();
  fence_gpu();
  // The cursor last: whoever draws a tile from it finds the job written.
  if (lane == 0) store_release_gpu(&job_of(launch, item.sequence)->cursor, tag_of(item.sequence) << CURSOR_BITS);
  __syncwarp();
  invite(launch, item.sequence, tiles - 1);
  take_part(launch, base_at, item.sequence, true);
}

// What a slot asks for. Words of the slot: lane k < 4 holds words 4 k .. 4 k + 3. May be alone with one tile or not.
D Item item_of(u64 sequence, uint4 words, u64 started) {
  Item item;
  item.sequence = sequence;
  item.opcode = __shfl_sync(FULL, words.y, 0);
  item.binding = __shfl_sync(FULL, words.x, 1);
  item.first = join(__shfl_sync(FULL, words.y, 1), __shfl_sync(FULL, words.z, 1));
  item.count = join(__shfl_sync(FULL, words.w, 1), __shfl_sync(FULL, words.x, 2));
  item.started = started;
  return item;
}

// Run an item. With `only_quick`, returns false without having done anything when it should go to a worker.
D_CALL bool run_item(const Launch& launch, u32 base_at, const Item& item, bool only_quick) {
  const u32 lane = threadIdx.x & 31;
  Frame& f = SHARED(Frame, base_at);
  if (item.opcode < PROGRAM_FIRST) {
    // A compare-and-swap's new value is in first_high.
    if (lane == 0) control_item(launch, item, high(item.first));
    __syncwarp();
    return true;
  }
  u32 code = set_up(base_at, launch, item.opcode, item.binding, lane);
  if (code) { refuse(launch, item, code); return true; }
  if (only_quick && !(f.program_flags & PROGRAM_QUICK && item.count <= TILE)) return false;
  u64 last = f.base;
  const BindingHeader* b = (const BindingHeader*)f.binding;
  if (item.first < last || item.first % TILE || item.count > b->elements || item.first - last > b->elements - item.count) {
    refuse(launch, item, FAULT_BAD_BINDING);
    return true;
  }
  if (item.count <= TILE) run_alone(launch, base_at, item);
  else open_job(launch, base_at, item, (item.count + TILE - 1) / TILE);
  return true;
}
