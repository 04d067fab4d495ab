"""What the worker loop and the handlers of the CPU engine agree on: one tile's context and one op's record.

The only declaration: worker (native functions), handlers (LLVM IR templates) and the tile form read these offsets.
All offsets are bytes; every field is a little-endian word of the size its name in OFFSETS says.

A handler is ``ptr handler(ptr ctx, ptr op)``: it works on lanes 0 .. ctx.n - 1 and returns the op to run next (its own
record + OP_BYTES, a jump target, or null after ``return``). A trap at lane L records the fault and sets ctx.n = L, so
that what runs afterwards can only find lower lanes; since every trap shrinks n, the fault left at the end is that of
the lowest trapping element.
"""

from __future__ import annotations

from typing import Final

LANES: Final = 1_024  # elements of a tile, decision 1

# --- context: one per worker, rewritten per tile -----------------------------------------------------------------
CTX_N: Final = 0  # u64: live lanes of this tile
CTX_FIRST: Final = 8  # u64: global index of lane 0
CTX_PTRS: Final = 16  # u64: address of the pointer table
CTX_MASKS: Final = 24  # u64: address of masks, u8[LANES] (1 = active) per block depth, depth 0 unused (all active)
CTX_FAULT: Final = 32  # u64: element << 20 | pc << 4 | code; all ones when there is none
CTX_FUEL: Final = 40  # u64: back-edges an element may take
CTX_FUEL_USED: Final = 48  # u64: address of u32[LANES], zeroed per tile when the program has a loop
CTX_PARAMS: Final = 56  # u64: address of u64[params]
CTX_TABLES: Final = 64  # u64: address of {address u64, length u64} per table
CTX_ACCS: Final = 72  # u64: address of u64[accumulators]: this tile's results, set to the identities before the tile
CTX_PARTIALS: Final = 80  # u64: address of f64[LANES] per accumulator (stride PARTIAL_BYTES), for float sums
CTX_BINS: Final = 88  # u64: address of one u64 per accumulator: address of this worker's i64[bins] of a histogram
CTX_EMITS: Final = 96  # u64: address of {address u64, count u64} per emit: this tile's segment and what it holds
CTX_STREAM: Final = 104  # u64: not 0: outputs are larger than the caches, write them around these
CTX_BYTES: Final = 128

FAULT_NONE: Final = 0xFFFF_FFFF_FFFF_FFFF
FAULT_ELEMENT_SHIFT: Final = 20
FAULT_PC_SHIFT: Final = 4

# --- pointer table: where a handler finds the lanes of an operand -------------------------------------------------
SCRATCH_SLOTS: Final = 192  # entries 0..191: scratch, set once per worker; a 4-byte register takes one, an 8-byte two
SCRATCH_STRIDE: Final = 4_096 + 64  # staggered, so that slots do not fall on the same sets of the first-level cache
PTR_INPUTS: Final = SCRATCH_SLOTS  # entry PTR_INPUTS + i: this tile of input i, in memory type, element aligned only
PTR_OUTPUTS: Final = PTR_INPUTS + 256  # entry PTR_OUTPUTS + i: this tile of output i
PTR_COUNT: Final = PTR_OUTPUTS + 256
PARTIAL_BYTES: Final = 8 * LANES + 64
MASK_DEPTHS: Final = 40

# --- op record ------------------------------------------------------------------------------------------------------
OP_FN: Final = 0  # u64: address of the handler
OP_DST: Final = 8  # u32: pointer table entry
OP_A: Final = 12  # u32: pointer table entry
OP_B: Final = 16  # u32
OP_C: Final = 20  # u32
OP_IMM: Final = 24  # u64: immediate bits (constant, parameter, accumulator, table or emit number)
OP_MASK: Final = 32  # u32: byte offset of the mask in force from ctx.masks; 0 = unmasked form
OP_PC: Final = 36  # u32: VIR0 pc
OP_TARGET: Final = 40  # i64: byte distance from this record to the jump target
OP_AUX: Final = 48  # u64: free for the handler
OP_BYTES: Final = 64
