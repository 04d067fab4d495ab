// The kernel: one warp watches host memory, all others wait for tickets in device memory. It leaves by itself.
//
// Slots become tickets: the poller fills entries of a queue in device memory, in order; a worker takes the next ticket
// and waits for its entry. Entries are spread over lines, so thousands of warps wait without one hot word. The protocol
// of a stay is modelled in tests/test_lease_model.py; its names are the same.
#include "lone.cuh"

#define WARP_ID (threadIdx.x / 32)

D void leave_broken() {
  store_relaxed_gpu(&((Control*)launch.control)->broken, launch.generation);
}

D void worker(u32 base_at) {
  Engine* e = (Engine*)launch.engine;
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31, parity = (u32)(launch.generation & 1);
  const u64 born = now_ns();
  bool late = false;
  if (lane == 0) {
    // Either the poller sees this warp in `started`, or this warp sees `closing`: both sides fence in between.
    add_gpu(&e->started[parity], 1ull);
    fence_sc_gpu();
    late = is_closing();
  }
  late = __shfl_sync(FULL, late, 0);
  for (;;) {
    // A warp that comes in while the stay is being left takes what was handed over and nobody drew; the poller waits
    // for that. It never waits itself: beyond `handed` there is nothing, and maybe no poller either.
    u64 ticket = 0;
    bool none = false;
    if (lane == 0) {
      none = late && load_relaxed_gpu(&e->head[0]) >= load_relaxed_gpu(&e->handed[0]);
      if (!none) ticket = add_gpu(&e->head[0], 1ull);
      none = none || (late && ticket >= load_relaxed_gpu(&e->handed[0]));
    }
    if (__shfl_sync(FULL, (u32)none, 0)) break;
    ticket = __shfl_sync(FULL, ticket, 0);
    const u64 lap = ((ticket >> launch.handed_log2) + 1) & 0xFFFF;
    const u64* place = handed_at(ticket);
    u64 entry = __shfl_sync(FULL, load_relaxed_gpu(place), 0);
    if ((entry & 0xFFFF) != lap || f.owed_count == OWED) settle(base_at);
    u32 pause = 32, polls = 0;
    bool lost = false;
    while ((entry & 0xFFFF) != lap) {
      __nanosleep(pause);
      pause = pause < 512 ? pause * 2 : 512;
      entry = __shfl_sync(FULL, load_relaxed_gpu(place), 0);
      if ((++polls & 255) == 0 && __shfl_sync(FULL, (u32)(now_ns() - born > launch.hard_ns), 0)) { lost = true; break; }
    }
    if (lost) { if (lane == 0) leave_broken(); break; }
    // Again with acquire, which pairs with the fence before the entry was written: code and bindings are in place.
    entry = __shfl_sync(FULL, load_acquire_gpu(place), 0);
    u32 kind = (u32)(entry >> 16) & 3;
    u64 payload = entry >> 18;
    if (kind == HANDED_LEAVE) break;
    if (kind == HANDED_ITEM) {
      u64 slot = launch.slots + SLOT_BYTES * (payload & ((1ull << launch.capacity_log2) - 1));
      uint4 words = make_uint4(0, 0, 0, 0);
      // The one acquire of this item: its streams and tables were written before it was published.
      if (lane < 4) words = load_acquire_sys((const uint4*)slot + lane);
      if (lane == 0) { f.set_up = 0; f.defers = 1; }
      __syncwarp();
      take_item(base_at, payload, words, now_ns());
      run_item(base_at, false);
    } else {
      settle(base_at);
      if (lane == 0) f.defers = 0;
      __syncwarp();
      take_part(base_at, payload, kind == HANDED_RESUME);
    }
  }
  settle(base_at);
  __syncwarp();
  if (lane == 0) { fence_sys(); add_gpu(&e->gone[parity], 1ull); }
}

// Code and bindings that the host wrote since: from the host's arena to the same places of the device's.
D_CALL u64 apply_updates(u64 applied, u64 updates) {
  const u32 lane = threadIdx.x & 31;
  for (; applied < updates; ++applied) {
    u64 entry = load_acquire_sys((const u64*)launch.updates + (applied & (UPDATE_ENTRIES - 1)));
    u64 at = (entry & 0xFFFFFFFFu) * 16;
    u32 n = (u32)(entry >> 32);
    const uint4* from = (const uint4*)(launch.arena_host + at);
    uint4* to = (uint4*)(launch.arena + at);
    for (u32 i = lane; i < n; i += 128) {
      uint4 v[4];
#pragma unroll
      for (u32 k = 0; k < 4; ++k) if (i + 32 * k < n) v[k] = load_relaxed_sys(from + i + 32 * k);
#pragma unroll
      for (u32 k = 0; k < 4; ++k) if (i + 32 * k < n) to[i + 32 * k] = v[k];
    }
  }
  __syncwarp();
  fence_gpu();
  if (lane == 0) store_release_sys(&((Control*)launch.control)->applied, applied);
  return applied;
}

D void hand_over(u64 first, u64 n, u32 kind) {
  Engine* e = (Engine*)launch.engine;
  const u32 lane = threadIdx.x & 31;
  u64 from = 0;
  if (lane == 0) from = add_gpu(&e->handed[0], n);
  from = __shfl_sync(FULL, from, 0);
  fence_gpu();
  for (u64 i = lane; i < n; i += 32) store_relaxed_gpu(handed_at(from + i), entry_of(from + i, kind, first + i));
}

// What the poller knows between two looks. In shared memory, not in registers: a register that lives across a call would
// be kept in local memory, which every acquire throws out of the first-level cache. Lane 0 writes it.
#define NONE OPCODE_SHUTDOWN  // refused when it is published: no slot has it
struct Watch {
  u64 next, fences, applied;  // the next slot, fences passed, updates applied
  u64 born, until;            // device clock: start of the stay; when to ask whether it is over
  u64 lone_base;              // of the lone program that the frame holds (lone.cuh): its binding's first element,
  u32 lone_opcode, lone_binding, lone_count;  // opcode (NONE: it holds none), binding and elements
  u32 again;                  // 1: the next look is the last one once more
  u64 now;
  uint4 look[6];              // the last look: four parts of the next slot, two of the host's control line; taken at `now`
};
static_assert(sizeof(Launch) + sizeof(Watch) <= LAUNCH_BYTES, "abi.LAUNCH_BYTES");
#define watch (*(Watch*)(shared_bytes + sizeof(Launch)))

// Lane 0: something was taken at `now`.
D void keep_awake(u64 now) {
  u64 end = watch.born + launch.stay_ns, idle = now + launch.grace_ns;
  watch.until = idle < end ? idle : end;
}

// Everything but a lone item of the program that the frame holds: batches, updates, fences, other items, the end of the
// stay. False when the stay is over.
D_CALL bool step(u32 base_at) {
  Engine* e = (Engine*)launch.engine;
  Control* control = (Control*)launch.control;
  const u32 lane = threadIdx.x & 31;
  const u64 mask = (1ull << launch.capacity_log2) - 1, next = watch.next, now = watch.now;
  const uint4 v = watch.look[lane < 6 ? lane : 0];
  u64 tail = join(__shfl_sync(FULL, v.x, 4), __shfl_sync(FULL, v.y, 4));
  const u64 stop = join(__shfl_sync(FULL, v.z, 5), __shfl_sync(FULL, v.w, 5));
  const u32 status = __shfl_sync(FULL, v.x, 0), flags = __shfl_sync(FULL, v.y, 2), opcode = __shfl_sync(FULL, v.y, 0);
  const u32 binding = __shfl_sync(FULL, v.x, 1);
  if (stop >= launch.generation || now - watch.born > launch.stay_ns) return false;
  const bool there = next < launch.limit && status == STATUS_PUBLISHED && (flags >> 16) == (u32)((next >> launch.capacity_log2) & 0xFFFF);
  if (tail > launch.limit) tail = launch.limit;
  if (there && tail <= next + 1 && !(flags & UPDATE_FLAG) && opcode != OPCODE_BATCH_FENCE) {
    // Alone. Words 8 .. 15 came in another sector than the status, but with a flags word of this lap, which is written
    // after them.
    Frame& f = SHARED(Frame, base_at);
    take_item(base_at, next, v, now);
    if (!f.set_up && opcode >= PROGRAM_FIRST && !(flags & 0xFFFF)) {
      // Code of the general interpreter that nobody ran since the stay began is fetched line by line, for microseconds;
      // look() has its own at hand. So a lone program is only set up here, and the slot is looked at once more.
      const u32 refused = set_up(base_at);
      __syncwarp();
      const bool lone = !refused && is_lone(base_at);
      __syncwarp();
      if (lane == 0) {
        f.set_up = !refused;
        watch.lone_opcode = lone ? opcode : NONE;
        watch.lone_binding = binding; watch.lone_count = (u32)f.elements; watch.lone_base = f.base;
        watch.again = lone;
      }
      __syncwarp();
      if (lone) return true;
    }
    // The frame may hold another program afterwards, or none.
    const bool kept = f.set_up;
    if (!run_item(base_at, true)) hand_over(next, 1, HANDED_ITEM);
    if (lane == 0) {
      if (!kept) watch.lone_opcode = NONE;
      watch.next = next + 1;
      keep_awake(now_ns());
    }
    __syncwarp();
    return true;
  }
  if (there || tail > next) {
    // The tail is read again, after the slot: with it come the updates that its slots need.
    u64 host_fences = 0, updates = 0;
    if (lane == 0) {
      tail = load_acquire_sys(&control->tail);
      host_fences = load_acquire_sys(&control->fences);
      updates = load_acquire_sys(&control->updates);
    }
    tail = __shfl_sync(FULL, tail, 0);
    host_fences = __shfl_sync(FULL, host_fences, 0);
    updates = __shfl_sync(FULL, updates, 0);
    if (tail > launch.limit) tail = launch.limit;
    if (updates != watch.applied) {
      const u64 applied = apply_updates(watch.applied, updates);
      if (lane == 0) { watch.applied = applied; watch.lone_opcode = NONE; SHARED(Frame, base_at).set_up = 0; }
      __syncwarp();
    }
    u64 to = tail;
    bool at_fence = false;
    if (host_fences != watch.fences && to > next) {
      // Somewhere a fence: look at opcodes up to the first one.
      for (u64 i = next; i < tail && !at_fence; i += 32) {
        u32 code = OPCODE_NOP;
        if (i + lane < tail) code = load_relaxed_sys((const uint4*)(launch.slots + SLOT_BYTES * ((i + lane) & mask))).y;
        u32 vote = __ballot_sync(FULL, code == OPCODE_BATCH_FENCE);
        if (vote) { to = i + __ffs((int)vote) - 1; at_fence = true; }
      }
    }
    if (to > next) {
      hand_over(next, to - next, HANDED_ITEM);
      if (lane == 0) { watch.next = to; keep_awake(now); }
    } else if (at_fence && load_relaxed_gpu(&e->done[0]) == next) {
      fence_sys();  // pairs with the fences before the counts: everything earlier is visible before what follows
      write_record(next, OPCODE_BATCH_FENCE, NO_FAULT, 0, now);
      if (lane == 0) {
        count_done(1);
        watch.next = next + 1;
        watch.fences += 1;
        keep_awake(now);
      }
    }
    __syncwarp();
    return true;
  }
  return now < watch.until || load_relaxed_gpu(&e->done[0]) != next;
}

// Leaving. No ticket is filled any more; held ones are marked, and warps that draw one later find theirs marked too.
D_CALL void leave() {
  Engine* e = (Engine*)launch.engine;
  Control* control = (Control*)launch.control;
  const u32 lane = threadIdx.x & 31, parity = (u32)(launch.generation & 1);
  bool lost = false;
  if (lane == 0) store_relaxed_gpu(&e->closing[0], launch.generation);
  fence_sc_gpu();
  u64 marked = 0;
  bool first_time = true;
  u64 since = now_ns();
  for (;;) {
    u64 gone = load_relaxed_gpu(&e->gone[parity]);  // before started: a warp in between is waited for
    fence_gpu();
    u64 started = load_relaxed_gpu(&e->started[parity]);
    gone = __shfl_sync(FULL, gone, 0);
    started = __shfl_sync(FULL, started, 0);
    u64 head = load_relaxed_gpu(&e->head[0]), handed = load_relaxed_gpu(&e->handed[0]);
    head = __shfl_sync(FULL, head, 0);
    handed = __shfl_sync(FULL, handed, 0);
    if (gone == started && head >= handed) break;  // all who came in are out, and all that was handed over was drawn
    // Openers may still invite: `handed` moves, and what they fill is as good as a mark.
    u64 from = first_time || handed > marked ? handed : marked;
    first_time = false;
    for (u64 i = from + lane; i < head; i += 32) store_relaxed_gpu(handed_at(i), entry_of(i, HANDED_LEAVE, 0));
    if (head > from) marked = head;
    if (__shfl_sync(FULL, (u32)(now_ns() - since > launch.hard_ns), 0)) { lost = true; break; }
  }
  fence_sys();
  if (lane == 0) {
    // Everybody is out. Tickets beyond `handed` never existed; the next stay starts behind all of them.
    u64 head = load_relaxed_gpu(&e->head[0]), handed = load_relaxed_gpu(&e->handed[0]);
    u64 base = head > handed ? head : handed;
    e->head[0] = base;
    e->handed[0] = base;
    e->next[0] = watch.next;
    e->next[1] = watch.fences;
    e->next[2] = watch.applied;
    e->started[parity ^ 1] = 0;
    e->gone[parity ^ 1] = 0;
    control->final_tail = watch.next;
    control->unfinished = load_relaxed_gpu(&e->suspended[0]);
    if (lost) control->broken = launch.generation;
    store_release_sys(&control->left, launch.generation);  // pairs with the host's look at `left`
  }
}

// Look at the next slot until there is something for step(); lone items of the frame's program are run here. No call in
// this loop: see Watch.
D_CALL void look(u32 base_at) {
  const u32 lane = threadIdx.x & 31;
  const u64 slots = launch.slots + 16 * (lane & 3), control = launch.control + 16 * (lane & 1), generation = launch.generation;
  const u64 limit = launch.limit, records = launch.records;
  const u32 shift = launch.capacity_log2, mask = (1u << shift) - 1;
  for (;;) {
    // Lanes 0-3: the next slot. Lanes 4-5: the host's control line. One request, one round trip; what a hit needs is
    // fetched from shared memory meanwhile.
    const u64 next = watch.next, until = watch.until, base = watch.lone_base;
    const u32 lone_opcode = watch.lone_opcode, lone_binding = watch.lone_binding, lone_count = watch.lone_count;
    const u32 place = (u32)next & mask, lap = (u32)(next >> shift) & 0xFFFF;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (watch.again) {
      if (lane < 6) v = watch.look[lane];
      __syncwarp();
      if (lane == 0) watch.again = 0;
    } else if (lane < 6) {
      v = load_acquire_sys((const uint4*)(lane < 4 ? slots + SLOT_BYTES * place : control));
    }
    const u64 now = __shfl_sync(FULL, now_ns(), 0);
    // What each lane can say by itself: first of a lone item of the frame's program, then of anything at all.
    bool lone = true, news = false;
    if (lane == 0) { news = v.x == STATUS_PUBLISHED; lone = news && v.y == lone_opcode; }
    if (lane == 1) lone = v.x == lone_binding && v.y == low(base) && v.z == high(base) && v.w == lone_count;
    if (lane == 2) { news = v.y >> 16 == lap; lone = news && v.x == 0 && (v.y & 0xFFFF) == 0; }
    if (lane == 4) { const u64 tail = join(v.x, v.y); news = tail > next; lone = tail <= next + 1 && next < limit; }
    if (lane == 5) { news = join(v.z, v.w) >= generation; lone = !news; }
    const bool awake = now < until;
    if (__ballot_sync(FULL, lone) == FULL && awake) {
      run_lone(base_at);
      write_record_at(records + RECORD_BYTES * place, next, lone_opcode, NO_FAULT, 0, now);
      if (lane == 0) {
        count_done(1);
        watch.next = next + 1;
        keep_awake(now);
      }
      __syncwarp();
      continue;
    }
    const u32 said = __ballot_sync(FULL, news);
    if ((said & 5) != 5 && !(said & 0x30) && awake) continue;
    if (lane < 6) watch.look[lane] = v;
    if (lane == 0) watch.now = now;
    __syncwarp();
    return;
  }
}

D void poller(u32 base_at) {
  Engine* e = (Engine*)launch.engine;
  const u32 lane = threadIdx.x & 31;
  // One after another, these would be four trips to the second-level cache.
  const u64 waiting = e->suspended[0], next = e->next[0], fences = e->next[1], applied = e->next[2];
  __syncwarp();
  if (lane == 0) {
    e->suspended[0] = 0;
    watch.next = next; watch.fences = fences; watch.applied = applied;
    watch.born = now_ns();
    watch.lone_opcode = NONE;
    watch.again = 0;
    keep_awake(watch.born);
  }
  __syncwarp();
  // Big items that the last stay left unfinished go on first.
  for (u64 i = 0; i < waiting; ++i) hand_over(load_relaxed_gpu((u64*)launch.suspended + i), 1, HANDED_RESUME);
  do {
    look(base_at);
  } while (step(base_at));
  leave();
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS_PER_SM) vyre_resident(const __grid_constant__ Launch argument) {
  for (u32 i = threadIdx.x; i < sizeof(Launch) / 8; i += blockDim.x) ((u64*)shared_bytes)[i] = ((const u64*)&argument)[i];
  __syncthreads();
  u32 base_at = shared_address() + LAUNCH_BYTES + launch.shared_bytes * WARP_ID;
  if ((threadIdx.x & 31) == 0) {
    Frame& f = SHARED(Frame, base_at);
    f.set_up = 0; f.item.opcode = 0; f.owed_count = 0; f.defers = 0;
  }
  __syncwarp();
  if (blockIdx.x == 0 && WARP_ID == 0) poller(base_at);
  else worker(base_at);
}
