// One tile of one item: setting a warp up for a program, running passes, folding what they leave.
#pragma once
#include "interpret.cuh"
#ifndef QUICK
#include "narrow.cuh"
#endif

// Whether interpret_narrow has what the record with this first word asks for.
D bool is_narrow(u32 x) {
#ifdef QUICK
  return false;
#endif
  const u32 handler = x >> 8 & 0xFF;
  const u64 word = handler < 64 ? NARROW_HANDLERS_0 : handler < 128 ? NARROW_HANDLERS_1 : handler < 192 ? NARROW_HANDLERS_2 : NARROW_HANDLERS_3;
  return (word >> (handler & 63) & 1) && !(x & (LOAD_A64 | FIX_NAN64 | STORE64 | BLEND));
}

// Read the item's binding and its program into the warp's frame. All lanes; afterwards the code's first page is in place.
// Returns a fault code when the binding is not one of this opcode.
D_CALL u32 set_up(u32 base_at) {
  Frame& f = SHARED(Frame, base_at);
  const u32 opcode = f.item.opcode, binding = f.item.binding, lane = threadIdx.x & 31;
  if (opcode < PROGRAM_FIRST || opcode - PROGRAM_FIRST >= MAX_PROGRAMS) return FAULT_UNKNOWN_OPCODE;
  const u32* arena = (const u32*)launch.arena;
  u32 image = arena[opcode - PROGRAM_FIRST];
  if (binding >= launch.arena_units) return image ? FAULT_BAD_BINDING : FAULT_UNKNOWN_OPCODE;
  const BindingHeader* b = (const BindingHeader*)(launch.arena + (u64)binding * UNIT);
  u32 magic = b->magic, bound_opcode = b->opcode, bound = b->program;
  if (image == 0 || image >= launch.arena_units) return FAULT_UNKNOWN_OPCODE;
  if (magic != MAGIC_BINDING || bound_opcode != opcode || bound != image) return FAULT_BAD_BINDING;
  const ProgramHeader* p = (const ProgramHeader*)(launch.arena + (u64)image * UNIT);
  const u32* slot_words = (const u32*)(p + 1);
  u32 slots = p->slots, records = p->records, io = p->io, accumulators = p->accumulators, emits = p->emits;
  u64 acc_at = (u64)(slot_words + 2 * (slots + (slots & 1)));
  u64 emit_at = acc_at + 16ull * accumulators;
  u64 pool_at = emit_at + 8ull * emits;
  u64 records_at = (pool_at + 8ull * p->pool + 15) & ~15ull;
  u32 at = IO_AT + 16 * min(io, (u32)IO_IN_SHARED);
  u32 code_at = at;
  at += 16 * (min(records, (u32)WINDOW) + 1);
  u32 slot_at = at;
  at += 16 * (slots ? slots : 1);
  u32 stack_at = at;
  at += 64 * p->depth;
  u32 lane_at = at;
  at += 256 * accumulators;
  u32 kept_at = at;
  at += KEPT_BYTES * emits;
  u32 room = base_at + launch.shared_bytes - at, width = 32;
  while (width > 1 && p->planes * 32 * width > room) width >>= 1;  // at width 1 it fits: the host has checked
  // Records that interpret_narrow can do, all in one window, and room for its larger planes.
  bool narrow = b->elements >= TILE && records <= WINDOW && p->planes * 4 * NARROW_PASS <= room && io <= IO_IN_SHARED;
  narrow = narrow && !emits && !p->float_sums && p->fuel_plane == NO_PLANE;
  for (u32 i = lane; narrow && i < records; i += 32) narrow = is_narrow(((const u32*)records_at)[4 * i]);
  narrow = __all_sync(FULL, narrow);
  // A small item is spread over just as many lanes as make whole vectors of it.
  while (width > 1 && b->elements <= 4 * width) width >>= 1;
  u64 operands = (u64)(b + 1);
  __syncwarp();
  if (lane == 0) {
    f.program = (u64)p; f.acc = acc_at; f.binding = (u64)b; f.base = b->base; f.elements = b->elements;
    f.results = b->results; f.tile_sums = b->tile_sums; f.emit_counts = b->emit_counts; f.scratch = b->scratch;
    f.operands = operands; f.pool = pool_at; f.records = records_at;
    f.heap = launch.scratch + launch.scratch_bytes * ((u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
    f.code_at = code_at; f.slot_at = slot_at; f.stack_at = stack_at; f.lane_at = lane_at;
    f.kept_at = kept_at; f.plane_at = at;
    f.width = width; f.page = 0; f.record_count = records; f.fuel = p->fuel; f.fuel_plane = p->fuel_plane;
    f.inputs = p->flags >> 8; f.io = io; f.tables = p->tables; f.accumulators = accumulators; f.emits = emits; f.float_sums = p->float_sums;
    f.slots = slots; f.constant_slots = p->constant_slots; f.tiles = b->tiles; f.program_flags = p->flags;
  }
  // The planes of float sums follow each other in the order of their accumulators.
  for (u32 i = 0, found = 0; p->float_sums && !found; ++i) {
    const uint4 d = ((const uint4*)acc_at)[i];
    found = d.x == ACC_FLOAT_SUM;
    if (found && lane == 0) f.sum_plane = d.y;
  }
  const u64* parameters = (const u64*)(operands + 16ull * (io + p->tables + emits + accumulators));
  for (u32 i = lane; i < slots; i += 32) {
    u64 v = ((const u64*)slot_words)[i];
    if (i >= p->constant_slots) {  // a parameter: its index, and above it whether it has 64 bits
      bool wide = high(v) != 0;
      v = is_inline(f.item.flags, low(v)) ? inline_parameter(f.item.sequence, low(v)) : parameters[low(v)];
      if (!wide) v = join(low(v), low(v));
    }
    put128(slot_at + 16 * i, make_uint4(low(v), high(v), low(v), high(v)));
  }
  bool aligned = io <= IO_IN_SHARED;
  __syncwarp();  // the frame's base is written
  if (lane < min(io, (u32)IO_IN_SHARED)) {
    uint4 d = ((const uint4*)operands)[lane];
    put128(IO_AT + 16 * lane, from_zero(f, d));
    aligned = d.z != 0;
  }
  aligned = __all_sync(FULL, aligned);
  if (lane == 0) { f.aligned = aligned; f.narrow = narrow; }
  load_page(f, base_at, 0, lane);
  return 0;
}

// This warp's accumulators start at their identities.
D void begin_accumulators(Frame& f, u32 lane) {
  for (u32 i = 0; i < f.accumulators; ++i) {
    uint4 d = ((const uint4*)f.acc)[i];
    put64(f.lane_at + 256 * i + 8 * lane, join(d.z, d.w));
  }
}

// Emits of one pass, in element order: vectors of the first half, then of the second; lanes; elements of a vector.
D_CALL void write_emits(u32 base_at, u64 tile, u32 lane) {
  Frame& f = SHARED(Frame, base_at);
  const u32 width = f.width, half = width * 16;
  const uint2* emit = (const uint2*)(f.acc + 16ull * f.accumulators);
  for (u32 i = 0; i < f.emits; ++i) {
    u32 kept = get32(f.kept_at + i * KEPT_BYTES + lane * 4);
    uint2 e = emit[i];
    Operand o = operand_of(f, f.io + f.tables + i);
    bool wide = e.y == MEM_I64 || e.y == MEM_U64 || e.y == MEM_F64;
    const u32 count_at = f.kept_at + i * KEPT_BYTES + 128, count = get32(count_at);
    u64 at = (tile - f.base) + count;
    u32 below = (1u << lane) - 1, total = 0;
    for (u32 h = 0; h < 2; ++h) {
      u32 mine = kept >> (4 * h) & 15, before = 0, all = 0;
      for (u32 j = 0; j < 4; ++j) {
        u32 vote = __ballot_sync(FULL, mine >> j & 1);
        before += __popc(vote & below);
        all += __popc(vote);
      }
      u32 from = f.plane_at + e.x * 2 * half + (lane & (width - 1)) * 16;
      for (u32 j = 0; j < 4; ++j)
        if (mine >> j & 1) {
          u64 v = wide ? get64(place64(from, half, 4 * h + j)) : get32(place32(from, half, 4 * h + j));
          store_narrow(o.address, at + before, e.y, low(v), high(v));
          ++before;
        }
      at += all;
      total += all;
    }
    __syncwarp();
    if (lane == 0) put32(count_at, count + total);
    __syncwarp();
  }
}

// Decision 2: x[i] += x[i + s] for s = 512 .. 1. The first step happens as passes end, the others here.
D_CALL void add_partials(u32 base_at, u32 from, u32 lane) {  // from: elements of the tile before this pass
  Frame& f = SHARED(Frame, base_at);
  const u32 width = f.width, half = width * 16;
  u64* heap = (u64*)f.heap + (from & (TILE / 2 - 1)) + 4 * lane;
  for (u32 i = 0; i < f.float_sums; ++i, heap += TILE / 2) {
    if (lane >= width) continue;
    ulonglong2* x[4] = {(ulonglong2*)heap, (ulonglong2*)heap + 1, (ulonglong2*)(heap + 4 * width), (ulonglong2*)(heap + 4 * width) + 1};
    ulonglong2 v[4], old[4];
    const u32 at = f.plane_at + (f.sum_plane + 2 * i) * 2 * half + lane * 16;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) v[k] = get_pair(at + k * half);
    if (from >= TILE / 2) {
#pragma unroll
      for (u32 k = 0; k < 4; ++k) old[k] = *x[k];
#pragma unroll
      for (u32 k = 0; k < 4; ++k) {
        v[k].x = bits(__dadd_rn(as_f64(old[k].x), as_f64(v[k].x)));
        v[k].y = bits(__dadd_rn(as_f64(old[k].y), as_f64(v[k].y)));
      }
    }
#pragma unroll
    for (u32 k = 0; k < 4; ++k) *x[k] = v[k];
  }
}

D_CALL void fold_tile(u32 base_at, u64 tile, u32 done, u32 lane) {  // done: elements whose partials are on the heap
  Frame& f = SHARED(Frame, base_at);
  u64* heap = (u64*)f.heap;
  u64* sums = (u64*)f.tile_sums + (tile - f.base) / TILE;
  __syncwarp();
  for (u32 i = 0; i < f.float_sums; ++i) {
    f64 x[16];
#pragma unroll
    for (u32 k = 0; k < 16; ++k) { u32 at = lane + 32 * k; x[k] = at < done ? as_f64(*(volatile u64*)(heap + at)) : -0.0; }
#pragma unroll
    for (u32 s = 8; s >= 1; s /= 2)
#pragma unroll
      for (u32 k = 0; k < 8; ++k) if (k < s) x[k] = __dadd_rn(x[k], x[k + s]);
    f64 y = x[0];
    for (u32 s = 16; s >= 1; s /= 2) y = __dadd_rn(y, __shfl_down_sync(FULL, y, s));
    if (lane == 0) *sums = y != y ? NAN64 : bits(y);
    heap += TILE / 2;
    sums += f.tiles;
  }
  __syncwarp();
}

// What a pass of a program with loops, float sums or emits starts from.
D void begin_pass(u32 base_at, u32 lane) {
  Frame& f = SHARED(Frame, base_at);
  const u32 width = f.width, half = width * 16;
  if (lane < width) {
    if (f.fuel_plane != NO_PLANE) {
      u32 zero[8] = {0, 0, 0, 0, 0, 0, 0, 0};
      write8(zero, f.plane_at + f.fuel_plane * 2 * half + lane * 16, half);
      if (lane == 0) f.deadline = now_ns() + TILE_NS;
    }
    for (u32 i = 0; i < f.float_sums; ++i) {
      const u64 none = 1ull << 63, absent[8] = {none, none, none, none, none, none, none, none};  // -0.0
      write8(absent, f.plane_at + (f.sum_plane + 2 * i) * 2 * half + lane * 16, half);
    }
  }
  for (u32 i = 0; i < f.emits; ++i) put32(f.kept_at + i * KEPT_BYTES + lane * 4, 0);
}

// Elements [from, to) of the item that the warp is set up for: whole tiles, or up to the item's end. `then` is where the
// warp goes on afterwards, NOWHERE when it does not know.
D_CALL void run_range(u32 base_at, u64 from, u64 to, u64 then) {
  Frame& f = SHARED(Frame, base_at);
  const u32 lane = threadIdx.x & 31, step = 8 * f.width;
  const bool has_sums = f.float_sums != 0, has_emits = f.emits != 0;
  // Nothing happens between the passes of most programs: they are interpreted in one go.
  const bool plain = !has_sums && !has_emits && f.fuel_plane == NO_PLANE;
  if (lane == 0) { f.upto = to; f.then = then; }
  u64 tile = from;
  do {
    const u64 stop = plain || to - tile < TILE ? to : tile + TILE;
    for (u32 i = lane; i < f.emits; i += 32) put32(f.kept_at + i * KEPT_BYTES + 128, 0);
    u64 pass = tile;
    for (; pass < stop; pass = plain ? stop : pass + step) {
      if (f.fault >> 20 < pass) break;  // a lower element has trapped: what follows cannot matter
      if (!plain) begin_pass(base_at, lane);
      __syncwarp();
#ifndef QUICK
      if (f.narrow) {
        interpret_narrow(base_at, pass, stop);
        break;
      }
#endif
      interpret(base_at, pass, plain ? stop : pass + step);
      __syncwarp();
      if (has_emits) write_emits(base_at, tile, lane);
      if (has_sums) add_partials(base_at, (u32)(pass - tile), lane);
    }
    if (has_sums && f.fault == NO_FAULT) fold_tile(base_at, tile, min((u32)(pass - tile), (u32)TILE / 2), lane);
    for (u32 i = lane; i < f.emits; i += 32)
      ((u32*)f.emit_counts)[(u64)i * f.tiles + (tile - f.base) / TILE] = get32(f.kept_at + i * KEPT_BYTES + 128);
    tile = stop;
  } while (tile < to);
}
