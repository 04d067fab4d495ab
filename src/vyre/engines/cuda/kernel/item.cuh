// One item from slot to completion record, alone or shared by many warps tile by tile.
#pragma once
#include "tile.cuh"

D u64 record_at(u64 sequence) {
  return launch.records + RECORD_BYTES * (sequence & ((1ull << launch.capacity_log2) - 1));
}

// The body of a record, 8 bytes a lane in one store of lanes 1 .. 7: chosen without a branch, so that lanes stay together.
D void write_body(u64 at, u32 opcode, u64 fault, u64 value, u64 started) {
  const u32 lane = threadIdx.x & 31;
  const bool ok = fault == NO_FAULT;
  const bool refused = !ok && (fault >> 63) != 0;  // an engine's refusal: code in the low bits, no place
  const bool placed = !ok && !refused;
  const u32 code = ok ? 0 : refused ? (u32)(fault & 0xFF) : (u32)(fault & 15);
  u64 v = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;  // worker
  v = lane == 6 ? now_ns() : v;                               // finished
  v = lane == 5 ? started : v;
  v = lane == 4 ? value : v;
  v = lane == 3 ? (placed ? fault >> 20 : NO_ELEMENT) : v;
  v = lane == 2 ? join(placed ? (u32)(fault >> 4 & 0xFFFF) : NO_PC, opcode) : v;
  v = lane == 1 ? join(ok ? STATUS_DONE : STATUS_FAULT, code) : v;
  if (lane >= 1 && lane < 8) ((u64*)at)[lane] = v;
}

// Body first, then the sequence with release at system scope: pairs with the reader's acquire of sequence_plus_1. The
// warp synchronises in between, so lane 0's release covers what other lanes wrote too.
D void write_record_at(u64 at, u64 sequence, u32 opcode, u64 fault, u64 value, u64 started) {
  write_body(at, opcode, fault, value, started);
  __syncwarp();
  if ((threadIdx.x & 31) == 0) store_release_sys((u64*)at, sequence + 1);
}
D void write_record(u64 sequence, u32 opcode, u64 fault, u64 value, u64 started) {
  write_record_at(record_at(sequence), sequence, opcode, fault, value, started);
}

D void count_done(u64 n) { bump_gpu(&((Engine*)launch.engine)->done[0], n); }

// Release what is owed. A fence at system scope waits for every store of the multiprocessor that is on its way to the
// host, so a worker with more items at hand pays one for several of them.
D_CALL void settle(u32 base_at) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31, n = f.owed_count;
  if (n == 0) return;
  fence_sys();
  __syncwarp();
  if (lane < n) store_relaxed_sys((u64*)record_at(f.owed[lane]), f.owed[lane] + 1);
  if (lane == 0) { count_done(n); f.owed_count = 0; }
  __syncwarp();
}

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
    u64 v = over_lanes(get64(f.lane_at + 256 * i + 8 * lane), kind);
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
D_CALL void deliver_rest(u32 base_at, bool alone) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  const uint4* acc = (const uint4*)f.acc;
  u64* results = (u64*)f.results;
  fence_gpu();
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
}

D void report(Frame& f, u64 fault, u64 value) {
  __syncwarp();
  if (f.defers) {
    write_body(record_at(f.item.sequence), f.item.opcode, fault, value, f.item.started);
    if ((threadIdx.x & 31) == 0) f.owed[f.owed_count++] = f.item.sequence;
    __syncwarp();
    return;
  }
  write_record(f.item.sequence, f.item.opcode, fault, value, f.item.started);
  if ((threadIdx.x & 31) == 0) count_done(1);
  __syncwarp();
}

// Requests that gathers from tables on disk have left, and none afterwards. They all count in one word of device memory.
D_CALL u64 take_requests(const Frame& f) {
  u64 n = 0;
  if ((threadIdx.x & 31) == 0)
    for (u32 i = 0; i < f.tables && n == 0; ++i) {
      Operand o = operand_of(f, f.io + i);
      if (!(o.dtype & PAGED)) continue;
      u64* counter = (u64*)((const u64*)o.address)[PAGED_COUNT / 8];
      n = load_relaxed_gpu(counter);
      if (n) store_relaxed_gpu(counter, 0ull);
    }
  return __shfl_sync(FULL, n, 0);
}

// All tiles are done. An item with pages missing has to be run again, whatever its tiles found.
D void report_end(Frame& f, u64 fault) {
  const u64 n = f.tables ? take_requests(f) : 0;
  report(f, n ? REFUSED(FAULT_LOAD_MISS) : fault, n);
}

// Items of at most one tile: this warp does everything.
D void run_alone(u32 base_at) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  if (lane == 0) { f.end = f.item.first + f.item.count; f.fault = NO_FAULT; }
  __syncwarp();
  if (f.accumulators) {
    begin_accumulators(f, lane);
    clear_scratch(base_at, true);
    __syncwarp();
  }
  if (f.item.count) run_range(base_at, f.item.first, f.end, NOWHERE);
  if (f.accumulators) {
    __syncwarp();
    deliver(base_at, true);
    deliver_rest(base_at, true);
  }
  report_end(f, f.fault);
}

// Control items work on the session's words. Lane 0 does it.
D_CALL void control_item(u32 base_at) {
  Frame& f = SHARED(Frame, base_at);
  const Item& item = f.item;
  u32 at = item.binding, operand = low(item.first), replacement = high(item.first);
  u64 value = 0, fault = NO_FAULT;
  u32* word = (u32*)launch.words + at;
  if ((threadIdx.x & 31) != 0 || item.opcode == OPCODE_NOP) {
  } else if (item.opcode >= OPCODE_STORE_U32 && item.opcode <= OPCODE_COMPARE_SWAP) {
    if (at >= SESSION_WORDS) fault = REFUSED(FAULT_OUT_OF_BOUNDS);
    else if (item.opcode == OPCODE_STORE_U32) atomicExch(word, operand);
    else if (item.opcode == OPCODE_ATOMIC_ADD) value = atomicAdd(word, operand);
    else if (item.opcode == OPCODE_LOAD_U32) value = load_relaxed_gpu(word);
    else value = atomicCAS(word, operand, replacement);
  } else {
    fault = REFUSED(FAULT_UNKNOWN_OPCODE);
  }
  fault = __shfl_sync(FULL, fault, 0);
  report(f, fault, __shfl_sync(FULL, value, 0));
}

// --- items of several tiles ----------------------------------------------------------------------------------------

D u64 tag_of(u64 sequence) { return sequence & ((1ull << (64 - CURSOR_BITS)) - 1); }
#define CURSOR_MASK ((1ull << CURSOR_BITS) - 1)

D bool is_closing() {
  return load_relaxed_gpu(&((Engine*)launch.engine)->closing[0]) >= launch.generation;
}

D u64 entry_of(u64 ticket, u32 kind, u64 payload) {
  return payload << 18 | (u64)kind << 16 | (((ticket >> launch.handed_log2) + 1) & 0xFFFF);
}
D u64* handed_at(u64 ticket) {
  return (u64*)launch.handed + (ticket & ((1ull << launch.handed_log2) - 1));
}

// Ask waiting warps to help: fills tickets that are held by nobody's item.
D void invite(u64 sequence, u64 remaining) {
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
  for (u64 i = lane; i < n; i += 32) store_relaxed_gpu(handed_at(from + i), entry_of(from + i, HANDED_HELP, sequence));
}

D u64 draw(Job* job, u32 lane) { return lane == 0 ? add_gpu(&job->cursor, 1ull) : 0; }
#define NO_TILE (~0ull)

// A unit of a large item is 1 << shift tiles, each 1 << GROUP_LOG2 tiles behind the one before: so the warps that work side by side
// read and write side by side, whatever their number.
#define GROUP_LOG2 11
D u64 tile_of(u64 unit, u32 shift, u32 part) {
  if (shift == 0) return unit;
  return ((unit >> GROUP_LOG2) << (GROUP_LOG2 + shift)) + ((u64)part << GROUP_LOG2) + (unit & ((1ull << GROUP_LOG2) - 1));
}
D u64 units_of(u64 tiles, u32 shift) {
  return shift == 0 ? tiles : (tiles + (1ull << (GROUP_LOG2 + shift)) - 1) >> (GROUP_LOG2 + shift) << GROUP_LOG2;
}

// One unit of the share that the frame describes, then a look around. False when the next one drawn is not of this job.
// What stays from tile to tile lies in the frame: registers would be saved around the interpreter in local memory, which
// the streams drive out of the first-level cache.
D_CALL bool run_unit(u32 base_at, bool opener) {
  for (bool last = false; !last;) {
    base_at = opaque(base_at);
    Frame& f = SHARED(Frame, base_at);
    const u32 shift = f.shift, part = f.part;
    const u64 tile = tile_of(f.drawn[0] & CURSOR_MASK, shift, part), next = f.drawn[1], element = f.job_first + tile * TILE;
    last = part + 1 >> shift;
    u64 then = NOWHERE;
    if (!last) then = element + ((u64)TILE << GROUP_LOG2);
    else if (next >> CURSOR_BITS == tag_of(f.item.sequence)) then = f.job_first + tile_of(next & CURSOR_MASK, shift, 0) * TILE;
    const bool there = tile < f.job_tiles;
    __syncwarp();
    if ((threadIdx.x & 31) == 0) {
      f.part = last ? 0 : part + 1;
      if (there) f.mine += 1;
    }
    if (there && f.lowest >> 20 >= element) run_range(base_at, element, min(element + TILE, f.end), then);
    __syncwarp();
  }
  base_at = opaque(base_at);
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  Job* job = job_of(f.item.sequence);
  if (f.fault != NO_FAULT) {
    if (lane == 0) min_gpu(&job->fault, f.fault);
    __syncwarp();
  }
  u64 closing, lowest, stop, later = NO_TILE;
  const bool draws = lane == 0 && f.closing < launch.generation;
  load_and_add_gpu(&((Engine*)launch.engine)->closing[0], &job->fault, &job->stop, &job->cursor, draws, closing, lowest, stop, later);
  if (asked_to_stop(stop, f.item.sequence) != NO_FAULT) lowest = 0;
  closing = __shfl_sync(FULL, closing, 0);
  const u64 units = f.job_units, unit = f.drawn[0] & CURSOR_MASK, at = f.drawn[1];
  __syncwarp();
  if (lane == 0) { f.closing = closing; f.lowest = lowest; f.drawn[0] = at; f.drawn[1] = later; }
  __syncwarp();
  if (opener && units > unit + 1 && closing < launch.generation) invite(f.item.sequence, units - unit - 1);
  return at >> CURSOR_BITS == tag_of(f.item.sequence) && (at & CURSOR_MASK) < units;
}

// Take tiles of a job until none is left or the stay is over. The opener also invites and, when it must leave early,
// puts the job on the list that the next stay starts with.
D_CALL void take_part(u32 base_at, u64 sequence, bool opener) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  Job* job = job_of(sequence);
  // Two units are drawn ahead, so that it is known early where to go on. What was drawn is done, whatever happens.
  const bool draws = !is_closing();
  if (lane == 0) {
    f.drawn[0] = draws ? draw(job, lane) : NO_TILE;
    f.drawn[1] = draws ? draw(job, lane) : NO_TILE;
  }
  __syncwarp();
  u64 at = f.drawn[0];
  while (at != NO_TILE) {
    // One round per job: when it ended and its place was opened again, what was drawn is of the new item.
    const u64 tag = at >> CURSOR_BITS;
    fence_gpu();  // pairs with the release of the cursor
    const u64 tiles = job->tiles, shift = job->shift, units = units_of(tiles, (u32)shift);
    if ((at & CURSOR_MASK) < units && tag == tag_of(job->sequence)) {
      if (!opener || f.item.sequence != job->sequence || !f.set_up) {
        __syncwarp();
        if (lane == 0) {
          f.item.sequence = job->sequence; f.item.first = job->first; f.item.count = job->count;
          f.item.opcode = job->opcode; f.item.binding = job->binding; f.item.started = job->started;
          f.item.flags = job->flags;
          f.set_up = 0;
        }
        __syncwarp();
        set_up(base_at);  // cannot refuse: the opener has checked
      }
      if (lane == 0) {
        f.end = f.item.first + f.item.count; f.fault = NO_FAULT;
        f.job_first = f.item.first; f.job_tiles = tiles; f.job_units = units; f.shift = (u32)shift; f.part = 0;
        f.mine = 0; f.lowest = NO_FAULT; f.closing = 0;
      }
      begin_accumulators(f, lane);
      __syncwarp();
      while (run_unit(base_at, opener)) {}
      deliver(base_at, false);
      fence_sys();  // pairs with the fence of whoever reports last, and so with its record's release
      const u64 mine = f.mine;
      u64 before = 0;
      if (lane == 0) before = add_gpu(&job->done, mine);
      if (__shfl_sync(FULL, before, 0) + mine == tiles) {
        fence_sys();
        deliver_rest(base_at, false);
        const u64 asked = asked_to_stop(f.item.sequence);
        report_end(f, asked == NO_FAULT ? load_relaxed_gpu(&job->fault) : asked);
      }
    }
    // Units drawn beyond the last are none.
    for (u32 k = 0; k < 2; ++k) {
      at = f.drawn[0];
      __syncwarp();
      if (at != NO_TILE && at >> CURSOR_BITS == tag && lane == 0) { f.drawn[0] = f.drawn[1]; f.drawn[1] = NO_TILE; }
      __syncwarp();
    }
    at = f.drawn[0];
  }
  if (opener && lane == 0 && job->sequence == sequence) {
    u64 cursor = load_relaxed_gpu(&job->cursor);
    if (cursor >> CURSOR_BITS == tag_of(sequence) && (cursor & CURSOR_MASK) < units_of(job->tiles, (u32)job->shift)) {
      u64 i = add_gpu(&((Engine*)launch.engine)->suspended[0], 1ull);
      store_relaxed_gpu((u64*)launch.suspended + i, sequence);
    }
  }
  __syncwarp();
}

D_CALL void open_job(u32 base_at, u64 tiles) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  const u64 sequence = f.item.sequence;
  clear_scratch(base_at, false);
  if (lane == 0) {
    Job* job = job_of(sequence);
    job->done = 0; job->fault = NO_FAULT; job->sequence = sequence; job->first = f.item.first; job->count = f.item.count;
    job->binding = f.item.binding; job->opcode = f.item.opcode; job->tiles = tiles;
    // Many tiles are drawn four at a time: the counter is one word for all.
    job->shift = tiles > 32ull * gridDim.x * (blockDim.x / 32) ? 2 : 0;
    job->started = f.item.started;
    job->flags = f.item.flags;
  }
  __syncwarp();
  fence_gpu();
  // The cursor last: whoever draws a tile from it finds the job written.
  if (lane == 0) store_release_gpu(&job_of(sequence)->cursor, tag_of(sequence) << CURSOR_BITS);
  __syncwarp();
  invite(sequence, units_of(tiles, (u32)job_of(sequence)->shift) - 1);
  take_part(base_at, sequence, true);
}

// What a slot asks for, into the frame. Lane k < 4 holds words 4 k .. 4 k + 3 of the slot. A frame that is set up for
// the same program and binding stays so: bindings do not change, and `set_up` is cleared when the arena does.
D void take_item(u32 base_at, u64 sequence, uint4 words, u64 started) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31;
  u32 opcode = __shfl_sync(FULL, words.y, 0), count_high = __shfl_sync(FULL, words.x, 2), flags = __shfl_sync(FULL, words.y, 2);
  if (lane == 1) {
    const u32 mine = (flags | f.item.flags) & FLAG_INLINE_PARAMS;  // of this item, or left by the last one
    if (f.item.opcode != opcode || f.item.binding != words.x || mine) f.set_up = 0;
    f.item.flags = flags;
    f.item.sequence = sequence;
    f.item.opcode = opcode;
    f.item.binding = words.x;
    f.item.first = join(words.y, words.z);
    f.item.count = join(words.w, count_high);
    f.item.started = started;
  }
  __syncwarp();
}

// Run the frame's item. With `only_quick`, returns false without having done anything when it should go to a worker.
D bool run_item(u32 base_at, bool only_quick) {
  const u32 lane = threadIdx.x & 31;
  Frame& f = SHARED(Frame, base_at);
  if (f.item.flags & (FLAG_CANCELLED | FLAG_PAST_DEADLINE)) {
    report(f, marked(f.item.flags), 0);
    return true;
  }
  if (f.item.opcode < PROGRAM_FIRST) {
    control_item(base_at);
    return true;
  }
  if (!f.set_up) {
    u32 code = set_up(base_at);
    if (code) { report(f, REFUSED(code), 0); return true; }
    __syncwarp();
    if (lane == 0) f.set_up = 1;
    __syncwarp();
  }
  u64 first = f.item.first, count = f.item.count, base = f.base, elements = f.elements;
  if (only_quick && !(f.program_flags & PROGRAM_QUICK && count <= TILE)) return false;
  if (!(f.program_flags & PROGRAM_QUICK && count <= TILE)) {  // what is owed does not wait for something long
    settle(base_at);
    if (lane == 0) f.defers = 0;
    __syncwarp();
  }
  if (first < base || first % TILE || count > elements || first - base > elements - count) report(f, REFUSED(FAULT_BAD_BINDING), 0);
  else if (count <= TILE) run_alone(base_at);
  else open_job(base_at, (count + TILE - 1) / TILE);
  return true;
}
