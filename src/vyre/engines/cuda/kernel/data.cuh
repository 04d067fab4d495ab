// Cases of the interpreter's switch that touch memory: constants, streams, tables, accumulators, emits.
// Included inside the switch of interpret.cuh; `mine` lanes own elements, `alive` says which of them exist.

case H_NOP: break;
case H_POOL32: { u32 v = (u32)((const u64*)f.pool)[r.w & 0xFFFF]; EACH a[j] = v; } break;
case H_POOL64: { u64 v = ((const u64*)f.pool)[r.w & 0xFFFF]; EACH w[j] = v; } break;
case H_PARAM32: { u32 v = (u32)parameter_of(base_at, r.w & 0xFFFF); EACH a[j] = v; } break;
case H_PARAM64: { u64 v = parameter_of(base_at, r.w & 0xFFFF); EACH w[j] = v; } break;
case H_INDEX: { EACH w[j] = ELEMENT(j); } break;
case H_SELECT32: { SHORT_SELECT32 } break;
case H_SELECT64: { SHORT_SELECT64 } break;

case H_STREAM_LOAD32: {
  Operand o = stream_of(f, base_at, r.w & 0xFFFF);
  const u32* p = (const u32*)o.address + opaque(first);
  if (o.extent && alive == 0xFF) {
    uint4 u = *(const uint4*)p, v = *(const uint4*)(p + half / 4);
    a[0] = u.x; a[1] = u.y; a[2] = u.z; a[3] = u.w; a[4] = v.x; a[5] = v.y; a[6] = v.z; a[7] = v.w;
  } else {
    EACH if (alive >> j & 1) a[j] = p[ELEMENT_OF_LANE(j)];
  }
} break;
case H_STREAM_LOAD64: {
  Operand o = stream_of(f, base_at, r.w & 0xFFFF);
  const u64* p = (const u64*)o.address + opaque(first);
  EACH if (alive >> j & 1) w[j] = p[ELEMENT_OF_LANE(j)];
} break;
case H_STREAM_LOAD_NARROW: {
  Operand o = stream_of(f, base_at, r.w & 0xFFFF);
  EACH if (alive >> j & 1) a[j] = (u32)gather_narrow(o.address, ELEMENT(j), o.dtype);
} break;
case H_STREAM_STORE32: {
  Operand o = stream_of(f, base_at, r.w & 0xFFFF);
  u32* p = (u32*)o.address + opaque(first);
  if (o.extent && active == 0xFF) {
    *(uint4*)p = make_uint4(a[0], a[1], a[2], a[3]);
    *(uint4*)(p + half / 4) = make_uint4(a[4], a[5], a[6], a[7]);
  } else {
    EACH if (active >> j & 1) p[ELEMENT_OF_LANE(j)] = a[j];
  }
} break;
case H_STREAM_STORE64: {
  Operand o = stream_of(f, base_at, r.w & 0xFFFF);
  u64* p = (u64*)o.address + opaque(first);
  EACH if (active >> j & 1) p[ELEMENT_OF_LANE(j)] = w[j];
} break;
case H_STREAM_STORE_NARROW: {
  Operand o = stream_of(f, base_at, r.w & 0xFFFF);
  EACH if (active >> j & 1) store_narrow(o.address, ELEMENT(j), o.dtype, a[j], 0);
} break;

// A table on disk (its operand says PAGED): an element whose page is not in memory is gone for the rest of the item, which
// is run again when it is there.
#define GATHER(ID, SHIFT, SET)                                                                   \
  case ID: {                                                                                     \
    Operand o = operand_of(f, f.io + (r.w & 0xFFFF));                                            \
    u32 trapped = 0, gone = 0;                                                                   \
    u64 worst = NO_FAULT;                                                                        \
    const u32 shift = SHIFT;                                                                     \
    EACH if (active >> j & 1) {                                                                  \
      if (w[j] < o.extent) {                                                                     \
        u64 at = o.address + (w[j] << shift);                                                    \
        if (o.dtype & PAGED) at = page_address(o.address, w[j] << shift);                        \
        if (at) { SET; } else gone |= 1u << j;                                                   \
      }                                                                                          \
      else TRAP(j, FAULT_OUT_OF_BOUNDS)                                                          \
    }                                                                                            \
    alive &= ~gone;                                                                              \
    active &= ~gone;                                                                             \
    CATCH                                                                                        \
  } break;
GATHER(H_TABLE_GET32, 2, a[j] = *(const u32*)at)
GATHER(H_TABLE_GET64, 3, w[j] = *(const u64*)at)
GATHER(H_TABLE_GET_NARROW, narrow_shift(o.dtype & 0xFF), a[j] = (u32)gather_narrow(at, 0, o.dtype & 0xFF))
case H_POOL_GET64: {  // constant imm + accumulator; in range by construction
  const u64* p = (const u64*)f.pool + (r.w & 0xFFFF);
  EACH if (active >> j & 1) w[j] = p[(u32)w[j]];
} break;
#define UPDATE(ID, T, CALL)                                                                      \
  case ID: {                                                                                     \
    Operand o = operand_of(f, f.io + (r.w & 0xFFFF));                                            \
    SECOND_##T                                                                                   \
    u32 trapped = 0;                                                                             \
    u64 worst = NO_FAULT;                                                                        \
    EACH if (active >> j & 1) {                                                                  \
      if (w[j] < o.extent) CALL(o.address + sizeof(T) * w[j], r.z >> 16, b[j]);                  \
      else TRAP(j, FAULT_OUT_OF_BOUNDS)                                                          \
    }                                                                                            \
    CATCH                                                                                        \
  } break;
UPDATE(H_TABLE_UPDATE32, i32, update32)
UPDATE(H_TABLE_UPDATE64, i64, update64)

#define LANE (f.lane_at + (r.w & 0xFFFF) * 256 + lane * 8)
case H_ACC_SUM: {
  u64 sum = 0;
  EACH if (active >> j & 1) sum += w[j];
  put64(LANE, get64(LANE) + sum);
} break;
case H_ACC_COUNT: {
  u32 n = 0;
  EACH if (active >> j & 1) n += a[j] != 0;
  put64(LANE, get64(LANE) + n);
} break;
// Keys of NaN win: 0 of minima, all ones of maxima (no number has either as its key).
#define EXTREME(ID, KEY, BITS, NAN_TEST, BEST, NAN_KEY)                                          \
  case ID: {                                                                                     \
    u64 best = get64(LANE);                                                                             \
    EACH if (active >> j & 1) { u64 v = NAN_TEST ? NAN_KEY : KEY(BITS); best = BEST(best, v); }  \
    put64(LANE, best);                                                                                 \
  } break;
#define LOWER(x, y) ((y) < (x) ? (y) : (x))
#define HIGHER(x, y) ((y) > (x) ? (y) : (x))
#define BITS32 a[j]
#define BITS64 w[j]
#define NAN_F32 (as_f32(a[j]) != as_f32(a[j]))
#define NAN_F64 (ACC_f64(j) != ACC_f64(j))
EXTREME(H_ACC_MIN_I32, key_i32, BITS32, false, LOWER, 0ull)
EXTREME(H_ACC_MIN_U32, key_u32, BITS32, false, LOWER, 0ull)
EXTREME(H_ACC_MIN_I64, key_i64, BITS64, false, LOWER, 0ull)
EXTREME(H_ACC_MIN_U64, key_u64, BITS64, false, LOWER, 0ull)
EXTREME(H_ACC_MIN_F32, key_f32, BITS32, NAN_F32, LOWER, 0ull)
EXTREME(H_ACC_MIN_F64, key_f64, BITS64, NAN_F64, LOWER, 0ull)
EXTREME(H_ACC_MAX_I32, key_i32, BITS32, false, HIGHER, NO_FAULT)
EXTREME(H_ACC_MAX_U32, key_u32, BITS32, false, HIGHER, NO_FAULT)
EXTREME(H_ACC_MAX_I64, key_i64, BITS64, false, HIGHER, NO_FAULT)
EXTREME(H_ACC_MAX_U64, key_u64, BITS64, false, HIGHER, NO_FAULT)
EXTREME(H_ACC_MAX_F32, key_f32, BITS32, NAN_F32, HIGHER, NO_FAULT)
EXTREME(H_ACC_MAX_F64, key_f64, BITS64, NAN_F64, HIGHER, NO_FAULT)
// Each element has its own partial, a pair of planes; the tree over a tile comes when the tile is done.
#define FLOAT_SUM(ID, VALUE)                                                                     \
  case ID: {                                                                                     \
    u32 at = PLACE_AT(r.w & 0xFFFF);                                                             \
    u64 p[8];                                                                                    \
    read8(p, at, half);                                                                          \
    EACH if (active >> j & 1) p[j] = bits(__dadd_rn(as_f64(p[j]), VALUE));                       \
    if (mine) write8(p, at, half);                                                               \
  } break;
FLOAT_SUM(H_ACC_FLOAT_SUM32, (f64)ACC_f32(j))
FLOAT_SUM(H_ACC_FLOAT_SUM64, ACC_f64(j))
case H_ACC_HISTOGRAM: {
  Operand o = operand_of(f, f.io + f.tables + f.emits + (r.w & 0xFFFF));
  u32 trapped = 0;
  u64 worst = NO_FAULT;
  EACH if (active >> j & 1) {
    if (a[j] < o.extent) bump_gpu((u64*)o.address + a[j], 1);
    else TRAP(j, FAULT_OUT_OF_BOUNDS)
  }
  CATCH
} break;
case H_EMIT: {  // into the emit's planes; written out in element order when the pass is over
  u32 at = PLACE_AT(r.z >> 16);
  if (r.x & WIDE) { EACH if (active >> j & 1) put64(place64(at, half, j), w[j]); }
  else { EACH if (active >> j & 1) put32(place32(at, half, j), a[j]); }
  u32 kept = f.kept_at + (r.w & 0xFFFF) * KEPT_BYTES + lane * 4;
  if (mine) put32(kept, get32(kept) | active);
} break;
