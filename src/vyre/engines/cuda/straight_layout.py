"""What the native functions of ``straight`` and their Python side agree on. All offsets are bytes."""

from __future__ import annotations

from vyre.program.words import P_WORDS

CODE_MAX = 1_024  # instructions; longer programs take the other path
ALL = 0xFFFF_FFFF_FFFF_FFFF
NONE = 255  # no register

# --- facts: a header, then F_ENTRY bytes for each opcode, found by an index from opcode to byte offset, u32[65536] --------
H_INDEX = 0  # address of the index
H_HOT = 8  # address of u8[handlers, 8]: the short cut of a handler by form (LOADS | STORES | FIXES)
H_WIDE = 16  # memory types whose registers have 64 bits: one bit each
H_SHOWN = 24  # memory types in which a store or emit of a float shows its bits
H_LOAD = 32  # handler by memory type, one u64 each
H_STORE = H_LOAD + 8 * 16
H_TABLE = H_STORE + 8 * 16
H_ACC = H_TABLE + 8 * 16  # by accumulator kind * 16 + memory type: abi kind, identity
H_BYTES = H_ACC + 16 * 16 * 8

F_WHAT = 0  # which branch of the pass, then the shifts below
F_HANDLER = 8  # handler; S_SWAPPED: that with exchanged operands + 1, or 0; an update's verb
F_FIX = 16  # flags that make a NaN canonical
F_ENTRY = 24
S_ARGS = 8
S_RESULT = 10  # 0: none, 1: of 32 bits, 2: of 64
S_WIDE = 12  # of operand a
S_RULE = 16
S_NAN = 19
S_SWAPPED = 16

NOT_MINE = 0
LIGHT = 1
MOVE = 2
HEAVY = 3
CONST = 4
PARAM = 5
LOAD = 6
STORE = 7
TABLE_GET = 8
UPDATE = 9
ACC = 10
EMIT = 11
NOTHING = 12
OTHER = 13  # a record without operands: unreachable, return

# --- workspace ----------------------------------------------------------------------------------------------------------
W_HELD = 0  # by width: the register that is in the accumulator, or NONE
W_MADE = 16  # by width: the record that left it there unstored + 1, or 0
W_STORED = 32  # registers that are ever in the file
W_ROWS = 40
W_POOL = 48
W_HEAVY = 56
W_VALUES = 64  # uniform slots that are constants
W_PARAMS = 72  # and those that are parameters
W_FACTS = 80
W_SHARED = 88  # results, as straight_form takes them: bytes of shared memory, planes, records, quick, float sums
W_PLANES = 96
W_RECORDS = 104
W_QUICK = 112
W_SUMS = 120
A_UNIFORM = 128  # by register: the operand that names its slot, or 0
A_WRITES = A_UNIFORM + 8 * 64
A_VALUES = A_WRITES + 8 * 64
A_PARAMS = A_VALUES + 8 * 64
A_WIDE = A_PARAMS + 8 * 64  # by register: 1 when it has 64 bits
A_PLACE = A_WIDE + 8 * 64
A_FIRST = A_PLACE + 8 * 64
A_LAST = A_FIRST + 8 * 64
A_FREE = A_LAST + 8 * 64  # two stacks of planes
A_ACTIVE = A_FREE + 2 * 8 * 128  # registers that have a plane, oldest first
A_ACC = A_ACTIVE + 8 * 64  # plane of each accumulator that needs one
A_EMIT = A_ACC + 8 * 256
A_POOL = A_EMIT + 8 * 256
A_LIVE = A_POOL + 8 * CODE_MAX
A_CANONICAL = A_LIVE + 8 * CODE_MAX
A_ROWS = A_CANONICAL + 8 * CODE_MAX
A_IMAGE = A_ROWS + 16 * CODE_MAX
IMAGE_MAX = 64 + 8 * 65 + 24 * 256 + 8 * CODE_MAX + 16 + 17 * CODE_MAX
A_WORDS = A_IMAGE + IMAGE_MAX + 8  # of a population's program
WORDS_CONSTANTS_MAX = CODE_MAX
WORDS_DECLARED_MAX = 8 * 7 * 256
WORDS_REGISTERS_MAX = 64
WORKSPACE_BYTES = A_WORDS + P_WORDS + 8 * WORDS_CONSTANTS_MAX + WORDS_DECLARED_MAX + 8 * WORDS_REGISTERS_MAX

# --- a population: u64 words by byte offset ---------------------------------------------------------------------------------
M_COUNT = 0  # programs
M_CODE = 8  # addresses of the arrays of program.Population
M_CODE_AT = 16
M_CONSTANTS = 24
M_CONSTANTS_AT = 32
M_REGISTERS = 40
M_REGISTERS_AT = 48
M_HEAD = 56  # address of P_WORDS bytes: the counts that all programs have
M_DECLARED = 64  # address and bytes of the words between constants and registers
M_DECLARED_BYTES = 72
M_FUEL = 80
M_SHARED_MAX = 88  # bytes of shared memory that an image may ask for
M_OUT = 96  # address of the images; each starts at a multiple of UNIT
M_OUT_AT = 104  # bytes used so far
M_PLACES = 112  # address of u64[programs]: where each image starts
M_BYTES = 120
