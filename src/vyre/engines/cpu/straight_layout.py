"""What the native functions of ``straight`` and their Python side agree on. All offsets are bytes."""

from __future__ import annotations

from vyre.engines.cpu.abi import OP_BYTES, SCRATCH_SLOTS

CODE_MAX = 512  # instructions; longer programs take the other path
RECORDS_MAX = 1_024
STORES_MAX = 256
UNIFORMS_MAX = 192
UNIFORM_SLOTS = 40  # as in tileform
PROLOGUE_MAX = UNIFORM_SLOTS + 1

# Locations: an entry of the pointer table, UNIFORM + u for uniform u, UNSET.
UNIFORM = 1 << 20
UNSET = 1 << 19
ALL = 0xFFFF_FFFF_FFFF_FFFF
VIRTUAL = 64  # "registers" from here on: outputs that are written at the end

# --- facts: a header, then FACT_BYTES for each opcode, found by an index from opcode to byte offset, u32[65536] --------
H_INDEX = 0  # address of the index
H_RETURN = 8  # addresses of handlers; 0: not compiled yet
H_FILL = 32  # by bytes / 4 - 1
H_COPY = 48
H_IDENTITY = 64  # memory types that hold a register's bits: one bit each
H_SHOWN = 72  # memory types in which a store or emit of a float shows its bits
H_SIZES = 80  # bytes of the register for a memory type, one u64 each
H_LOAD = 208
H_STORE = 336
H_EMIT = 464
H_TABLE = 592
H_BYTES = 720

F_KIND = 0xFF
F_ARGS = 8  # shifts
F_SIZE = 12
F_RULE = 24
F_FAST = 1 << 16  # may take the place of an operand that dies: at most two operands as wide as the result
F_SAME = 1 << 17
F_SWAP = 1 << 18
F_UNIFORM_B = 1 << 19
F_UNIFORM_A = 1 << 20
F_UNIFORM_C = 1 << 21
F_NAN = 1 << 22
F_ONCE = 1 << 23  # a float sum: a second place needs partial sums
F_MINE = 1 << 28
FACT_NAMES = 8  # two addresses each: plain, then with the NaN fix-up
FACT_B = 24
FACT_A = 40
FACT_C = 56
FACT_BYTES = 72

# --- workspace ----------------------------------------------------------------------------------------------------------
S_NEXT = 0
S_TOP = 8
S_FREE4 = 16  # entries on each stack
S_FREE8 = 24
S_UNIFORMS = 32
S_TEMPORARY = 40
S_OUT = 48  # address of the next record of the body
S_BEFORE = 56  # and of the prologue
S_PC = 64
S_HAVE = 72  # registers that lie in scratch
S_FAILED = 80
S_FACTS = 88
S_READS = 96  # 1 once a record reads an output
A_LOC = 104
A_SIZE = A_LOC + 8 * (VIRTUAL + 256)
A_USERS = A_SIZE + 8 * (VIRTUAL + 256)
A_FREE4 = A_USERS + 8 * (SCRATCH_SLOTS + 8)
A_FREE8 = A_FREE4 + 8 * (SCRATCH_SLOTS + 8)
A_TEMPORARY = A_FREE8 + 8 * (SCRATCH_SLOTS + 8)  # slot, bytes
A_UNIFORMS = A_TEMPORARY + 16 * 8  # bits, aux, bytes, slot or ALL
A_TIMES = A_UNIFORMS + 32 * UNIFORMS_MAX  # stores of each output
A_VIRTUAL = A_TIMES + 8 * 256  # register in which an output waits, or 0
A_DEFERRED = A_VIRTUAL + 8 * 256  # outputs that wait, in the order of their registers
A_SUMS = A_DEFERRED + 8 * 256
A_STORES = A_SUMS + 8 * 256  # pcs, last first
A_LIVE = A_STORES + 8 * STORES_MAX
A_NOTES = A_LIVE + 8 * CODE_MAX
A_PROLOGUE = (A_NOTES + 8 * CODE_MAX + 63) & 0xFFFF_FFC0
A_BODY = A_PROLOGUE + OP_BYTES * 2 * PROLOGUE_MAX  # the prologue is moved to end here
WORKSPACE_BYTES = A_BODY + OP_BYTES * RECORDS_MAX
BODY_LAST = A_BODY + OP_BYTES * (RECORDS_MAX - 8)  # records of one instruction must start below

N_CANONICAL = 1
N_RESULT = 2
N_DST = 8  # shifts
N_FORWARD = 16  # output + 1
