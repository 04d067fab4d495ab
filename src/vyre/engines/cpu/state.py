"""Where the CPU engine keeps what it knows, in bytes: engine block, program image, binding, job, worker.

The only declaration of the engine's private memory; worker.py (native) and engine.py (Python) read it. What the
handlers see is in abi.py, what the host and any engine share is in vyre.ring.layout.
"""

from __future__ import annotations

from typing import Final

from vyre.engines.cpu.abi import (
    CTX_BYTES,
    LANES,
    MASK_DEPTHS,
    PARTIAL_BYTES,
    PTR_COUNT,
    SCRATCH_SLOTS,
    SCRATCH_STRIDE,
)
from vyre.program.opcodes import MAX_OPERANDS
from vyre.ring.layout import SESSION_BLOCK_BYTES

# --- engine block: the session block first, then what only this engine has ------------------------------------------
E_ACTIVE: Final = SESSION_BLOCK_BYTES  # u64: jobs open, that is items cut into tiles that workers share
E_BUSY: Final = E_ACTIVE + 64  # u64: threads inside such jobs
E_LIMIT: Final = E_BUSY + 64  # u64, constant: how many may be
E_NULL: Final = E_LIMIT + 8  # u64, constant: 1 completes every item without executing it
E_PROGRAMS: Final = E_LIMIT + 16  # u64, constant: address of u64[E_PROGRAM_CAPACITY], image of PROGRAM_FIRST + n or 0
E_PROGRAM_CAPACITY: Final = E_LIMIT + 24
E_HANDLERS: Final = E_LIMIT + 32  # u64, constant: address of {opcode u64, image u64} per installed handler
E_HANDLER_COUNT: Final = E_LIMIT + 40  # u64, host
E_BINDINGS: Final = E_LIMIT + 48  # u64, constant: address of u64[E_BINDING_CAPACITY], binding block or 0
E_BINDING_CAPACITY: Final = E_LIMIT + 56
E_WORDS: Final = E_LIMIT + 64  # u64, constant: address of the session's u32 words
E_JOBS: Final = E_LIMIT + 72  # u64, constant: address of the jobs
E_JOB_COUNT: Final = E_LIMIT + 80  # u64, constant
E_WORKERS: Final = E_LIMIT + 88  # u64, constant: address of the worker blocks
E_WORKER_COUNT: Final = E_LIMIT + 96  # u64, constant
E_SPIN_TICKS: Final = E_LIMIT + 104  # u64, constant: how long a thread without work spins
E_BYTES_READ: Final = E_LIMIT + 128  # u64: bytes that workers read from files through the page cache
ENGINE_BYTES: Final = E_BYTES_READ + 64

# --- program image: constant once the program is loaded ---------------------------------------------------------------
I_BODY: Final = 0  # u64: address of the tile form's op records
I_PROLOGUE: Final = 8  # u64: address of the records run once per claim
I_INPUTS: Final = 16  # u64: number of inputs, and so on
I_OUTPUTS: Final = 24
I_ACCS: Final = 32
I_EMITS: Final = 40
I_TABLES: Final = 48
I_PARAMS: Final = 56
I_FUEL: Final = 64  # u64: back-edges an element may take
I_USES_FUEL: Final = 72  # u64: 1 when the program has a loop
I_GRAIN: Final = 80  # u64: tiles that a worker takes at once
I_INPUT_SIZES: Final = 88  # u64: address of u64[inputs], bytes of an element; likewise below
I_OUTPUT_SIZES: Final = 96
I_EMIT_SIZES: Final = 104
I_ACC_KINDS: Final = 112  # u64: address of u64[accs], a FOLD_* number
I_ACC_IDENTITIES: Final = 120  # u64: address of u64[accs], what a tile starts from
I_ACC_BINS: Final = 128  # u64: address of u64[accs]
I_HISTOGRAMS: Final = 136  # u64: accumulators that are histograms
I_LANES: Final = 144  # u64: lanes that handlers are given at once: a tile, or more where no tile is kept in scratch
I_STREAM: Final = 152  # u64: with more elements bound than this, outputs are written around the caches
IMAGE_WORDS: Final = 20

FOLD_ADD: Final = 1  # i64 sums and counts
FOLD_SUM: Final = 2  # f64 sums, by span
FOLD_MIN_S32: Final = 3
FOLD_MAX_S32: Final = 4
FOLD_MIN_U32: Final = 5
FOLD_MAX_U32: Final = 6
FOLD_MIN_S64: Final = 7
FOLD_MAX_S64: Final = 8
FOLD_MIN_U64: Final = 9
FOLD_MAX_U64: Final = 10
FOLD_MIN_F32: Final = 11
FOLD_MAX_F32: Final = 12
FOLD_MIN_F64: Final = 13
FOLD_MAX_F64: Final = 14
FOLD_HISTOGRAM: Final = 15

# --- binding: constant but for the results ------------------------------------------------------------------------------
B_OPCODE: Final = 0  # u64: the program it was made for
B_ORIGIN: Final = 8  # u64: global index of the operands' element 0, a multiple of 1,024
B_ELEMENTS: Final = 16  # u64: elements bound
B_PARAMS: Final = 24  # u64: address of u64[params]
B_TABLES: Final = 32  # u64: address of {address, length} per table
B_TILE_RESULTS: Final = 40  # u64: address of u64[tiles, accs]
B_TILE_EMITS: Final = 48  # u64: address of u64[tiles, emits]
B_RESULTS: Final = 56  # u64: address of u64[accs]: results of the item
B_EMITTED: Final = 64  # u64: address of u64[emits]: elements kept
B_INPUTS: Final = 72  # u64: address of {kind and layout of rows, address or fd, byte offset of element 0, 0} per input
B_OUTPUTS: Final = 80  # u64: address of u64[outputs]: address of element 0
B_EMITS: Final = 88  # u64: address of u64[emits]: address of the segments, as long as the outputs would be
B_BINS: Final = 96  # u64: address of u64[accs]: address of i64[bins] of a histogram, else 0
B_IMAGE: Final = 104  # u64: address of the program's image, which lives as long as the binding
B_REQUESTS: Final = 112  # u64: address of the requests for pages of its tables on disk (ring/layout.py), 0 without such
BINDING_WORDS: Final = 15
INPUT_BYTES: Final = 32
ROW_WIDTH_SHIFT: Final = 8  # of an input's kind in a file: bytes from row to row, 0 where elements lie together
ROW_INSIDE_SHIFT: Final = 36  # and bytes from the start of a row to its field
ROW_WIDTH_MAX: Final = (1 << ROW_INSIDE_SHIFT - ROW_WIDTH_SHIFT) - 1

# --- job: one item that several workers share -----------------------------------------------------------------------------
J_STATE: Final = 0  # u64: generation << 32 | JOB_OPEN | users
J_RING: Final = 8
J_SEQUENCE: Final = 16
J_IMAGE: Final = 24
J_BINDING: Final = 32
J_FIRST: Final = 40
J_COUNT: Final = 48
J_TILES: Final = 56
J_GRAIN: Final = 64
J_STARTED: Final = 72
J_CURSOR: Final = 128  # u64: next tile to take; moved by add
J_DONE: Final = 192  # u64: tiles finished; whoever reaches J_TILES completes the item
J_FAULT: Final = 200  # u64: packed fault of the lowest element so far; moved by min
JOB_BYTES: Final = 256
JOB_OPEN: Final = 1 << 31
JOB_COUNT: Final = 16

FAULT_ENGINE: Final = 15  # in a packed fault: the pc field holds a FaultCode >= 16
FAULT_IO: Final = 14  # in a packed fault: the pc field holds an errno, 0 when the file ended early

# --- worker: one thread's private memory ------------------------------------------------------------------------------------
FILE_BYTES: Final = 8 << 20  # bytes of file operands that a worker holds for one claim
MAX_GRAIN_BYTES: Final = 512 << 10  # what a claim of file operands aims at: it stays in the second-level cache

W_CONTEXT: Final = 0  # abi.py's context
W_IN_USE: Final = CTX_BYTES  # u32: 1 while a thread has it
W_INDEX: Final = CTX_BYTES + 8  # u64, constant
W_PTRS: Final = CTX_BYTES + 64
W_ACCS: Final = W_PTRS + 8 * PTR_COUNT
W_EMITS: Final = W_ACCS + 8 * (MAX_OPERANDS + 1)
W_BINS: Final = W_EMITS + 16 * (MAX_OPERANDS + 1)
W_PARAMS: Final = W_BINS + 8 * (MAX_OPERANDS + 1)
W_FUEL: Final = W_PARAMS + 8 * (MAX_OPERANDS + 1)
W_MASKS: Final = W_FUEL + 4 * LANES
W_FOLD: Final = W_MASKS + MASK_DEPTHS * LANES  # f64[SPAN] for folding
W_SCRATCH: Final = (W_FOLD + 8 * LANES + 63) // 64 * 64
W_PARTIALS: Final = W_SCRATCH + SCRATCH_SLOTS * SCRATCH_STRIDE
W_FILE: Final = (W_PARTIALS + (MAX_OPERANDS + 1) * PARTIAL_BYTES + 4095) // 4096 * 4096
W_ROWS: Final = W_FILE + FILE_BYTES  # rows of a file, until their fields have been taken
ROWS_BYTES: Final = 256 << 10  # that stay in the second-level cache meanwhile
W_HISTOGRAM: Final = W_ROWS + ROWS_BYTES  # i64 bins of this worker, one histogram after the other
HISTOGRAM_BYTES: Final = 16 << 20
WORKER_BYTES: Final = W_HISTOGRAM + HISTOGRAM_BYTES
