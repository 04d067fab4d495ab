"""What the native functions of ``formula`` and their Python side agree on. All offsets are bytes."""

from __future__ import annotations

from vyre.program.words import P_WORDS

REGISTERS_MAX = 64
CODE_MAX = 160  # instructions: 64 with results, loads among them, and the last two
VALUES_MAX = 200  # values that wait, and operators that do
NAMES_MAX = 256
LITERALS_MAX = 256
TEXT_MAX = 8_192  # longer texts are read in Python
EXPONENT_MAX = 22  # powers of ten that f64 has exactly
EXACT = 1 << 53
F32_MAX = 0x47EF_FFFF_E000_0000  # the greatest f32, as f64
SIGN = 1 << 63
ALL = 0xFFFF_FFFF_FFFF_FFFF

# --- facts: made once, from program/kinds --------------------------------------------------------------------------------
# A character's word: class, then its operator as an entry << 8.
C_SPACE = 1
C_LETTER = 2
C_DIGIT = 3  # letters and digits are those with C_LETTER set
C_POINT = 4
C_OTHER = 5

# An operator, on the stack and in the tables, one byte each: precedence + 1, what it is, its row of binary instructions,
# the least precedence + 1 to its left that is applied before it; of a call the values before its arguments and its number.
E_WHAT = 8
E_ROW = 16
E_LEAST = 24
E_FIRST = 32
E_CALL = 48
BINARY = 1
UNARY = 2
CHAIN = 3
PAREN = 4
CALL = 5
COMMA = 6
CLOSE = 7
END = 8
BOTTOM = 9 << E_WHAT
END_ENTRY = 2 << E_LEAST | END << E_WHAT
COMPARE = 5  # precedence + 1
CHAIN_ENTRY = COMPARE | CHAIN << E_WHAT
NOT = 4

# Rows of binary instructions: one word for each kind, opcode | kind of the result << 16, or 0.
R_OTHER = 0
R_DIVIDE = 1
R_SHIFT = 2  # and the next three: << >> rotl rotr
R_SHIFT_LAST = 5
R_FLOOR = 6  # and the next: // %
R_FLOOR_LAST = 7
R_COPYSIGN = 8
R_POWER = 9
R_AND = 10
R_OR = 11
R_SUBTRACT = 12
R_MULTIPLY = 13
R_XOR = 14
R_MAX = 15
R_FIRST_FREE = 16
ROWS_MAX = 40
ROW_BYTES = 64

# Functions: name (at most eight characters, the first lowest), class, detail; then one word for each kind
FN_ONE = 1  # one instruction on one operand
FN_ROUND = 2  # the same; an integer is already what it asks for
FN_FOLD = 3  # a binary row, from the left
FN_WHERE = 4
FN_ABS = 5
FN_POWER = 6
FN_FMA = 7
FN_INDEX = 8
FN_CAST = 9
FN_REDUCE = 10  # of one argument around the whole only
D_MOST = 32  # in the detail: shift of the greatest number of arguments
D_REDUCES = 48  # and of the row of a reduction + 1, when one argument makes it one
FN_BYTES = 24
FUNCTIONS_MAX = 64

T_CHARS = 0
T_DOUBLE = T_CHARS + 8 * 256  # entries of ** // << >> by their character
T_EQUALS = T_DOUBLE + 8 * 256  # and of <= >= == !=
T_POWERS = T_EQUALS + 8 * 256  # 1e0 .. 1e22 as f64
T_ROWS = T_POWERS + 8 * 24
T_ONE = T_ROWS + ROW_BYTES * ROWS_MAX  # functions of one operand: rows like those of the operators
T_FUNCTIONS = T_ONE + ROW_BYTES * FUNCTIONS_MAX
T_PROMOTE = T_FUNCTIONS + FN_BYTES * FUNCTIONS_MAX  # [left << 4 | right] kind, 0 where there is none
T_CAST = (
    T_PROMOTE + 8 * 256
)  # [from << 4 | to] opcode, CAST_FREE where the register holds it already, 0 where there is none
T_KINDS = T_CAST + 8 * 256  # words of each kind, KIND_BYTES apart
T_REDUCE = T_KINDS + 80 * 16  # rows: opcode | memory type << 16 | kind that is widened to << 32 | AccKind << 40
FACT_BYTES = T_REDUCE + ROW_BYTES * 4
CAST_FREE = 1 << 16

KIND_BYTES = 80
K_TYPE = 0  # of its registers
K_CONST = 8  # opcodes
K_LOAD = 16
K_PARAM = 24
K_STORE = 32
K_SELECT = 40
K_NEGATE = 48  # of floats
K_FMA = 56
K_STORED = 64  # memory type of a result
# f32.abs and f64.abs, i32.and, i32.eqz and index are rows of T_ONE of their own.
ONE_ABS = 0
ONE_BOTH = 1
ONE_NOT = 2
ONE_INDEX = 3
ONE_FIRST_FREE = 4

# --- names of one call: how many, then NAME_BYTES each, then the characters of the long ones ------------------------------
N_COUNT = 0
N_NAMES = 8
NAME_BYTES = 32
N_START = 0  # first eight characters
N_SIZE = 8
N_INFO = 16  # kind | memory type << 8 | whether it is a parameter << 16
N_REST = 24  # where all of its characters are, from the table's start

# --- workspace ------------------------------------------------------------------------------------------------------------
S_CODE = 0  # counts
S_REGISTERS = 8
S_CONSTANTS = 16
S_INPUTS = 24
S_PARAMS = 32
S_LITERALS = 40
S_KNOWN = 48
S_AT = 56  # where a number ends
S_KIND = 64  # of the result
S_REDUCES = 72  # row of the reduction around the whole + 1, or 0
A_CODE = 128
A_REGISTERS = A_CODE + 8 * CODE_MAX
A_CONSTANTS = A_REGISTERS + 8 * REGISTERS_MAX
A_KNOWN = A_CONSTANTS + 8 * REGISTERS_MAX  # constants that have a register: kind, bits, value
A_INPUTS = A_KNOWN + 24 * REGISTERS_MAX  # numbers of names, in the order of their loads
A_PARAMS = A_INPUTS + 8 * REGISTERS_MAX
A_LITERALS = A_PARAMS + 8 * REGISTERS_MAX  # bits of an f64, or a signed integer
A_SEEN = A_LITERALS + 8 * LITERALS_MAX  # value of each name, or 0
A_VALUES = A_SEEN + 8 * NAMES_MAX
A_STACK = A_VALUES + 8 * (VALUES_MAX + 8)
A_WORDS = A_STACK + 8 * (VALUES_MAX + 8)  # the program as words.P_CODE and what follows it say
WORKSPACE_BYTES = A_WORDS + P_WORDS + 8 * 4 * REGISTERS_MAX
