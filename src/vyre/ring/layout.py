"""Where each word of a ring lies, who writes it, and which numbers it may hold.

The only declaration of the ring: the Python producer, the native engines and the C header of the GPU engine are
computed from it. Numbers that vyre-runtime 0.6 fixed (slot of 16 words, status values, opcodes, priorities) stay.

Owns: offsets, sizes, writers, opcode ranges. Leaves to others: memory order (order), the moves (producer, engines).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

# --- slots: written by the host, read by the engine -------------------------------------------------------------

SLOT_WORDS: Final = 16
SLOT_BYTES: Final = 64
ARG_WORDS: Final = 12
assert SLOT_BYTES == 4 * SLOT_WORDS, "one slot, one cache line of the host"


class Status(IntEnum):
    """Life of an item. EMPTY and PUBLISHED stand in the slot, DONE and FAULT in the completion record; CLAIMED,
    WAIT_IO, YIELD and REQUEUE are engine memory and never cross the bus (decision 18)."""

    EMPTY = 0
    PUBLISHED = 1
    CLAIMED = 2
    DONE = 3
    WAIT_IO = 4
    YIELD = 5
    REQUEUE = 6
    FAULT = 7


class Priority(IntEnum):
    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
    IDLE = 4


class Opcode(IntEnum):
    """Built-in opcodes of a slot. Programs are PROGRAM_FIRST + n."""

    NOP = 0
    STORE_U32 = 1
    ATOMIC_ADD = 2
    LOAD_U32 = 3
    COMPARE_SWAP = 4
    MEMCPY = 5
    DFA_STEP = 6
    BATCH_FENCE = 7
    LOAD_MISS = 0xFFFD
    PRINTF = 0xFFFE
    PACKED_SLOT = 0x8000_0001
    SHUTDOWN = 0xFFFF_FFFF


NATIVE_FIRST: Final = 8
NATIVE_LAST: Final = 0xFFEF
PROGRAM_FIRST: Final = 0x1_0000
PROGRAM_LAST: Final = 0x3FFF_FFFF  # tenants' opcodes begin above
USER_LAST: Final = 0x7FFF_FFFF
SESSION_WORDS: Final = 4_096  # u32 words that the control items work on


class Word(NamedTuple):
    """A u32 word of a slot: its place and writer."""

    at: int
    writer: str
    meaning: str


SLOT: Final = {
    "status": Word(0, "host", "EMPTY or PUBLISHED; stored last, with release"),
    "opcode": Word(1, "host", "built-in opcode, native handler or program"),
    "tenant": Word(2, "host", "tenant id; 0 is the session itself"),
    "priority": Word(3, "host", "Priority"),
    "binding": Word(4, "host", "argument 0: binding id; of a control item: index of the session word"),
    "first_low": Word(5, "host", "arguments 1-2: first element, a multiple of 1,024; of a control item: its operand"),
    "first_high": Word(6, "host", "of COMPARE_SWAP: the new value"),
    "count_low": Word(7, "host", "arguments 3-4: elements"),
    "count_high": Word(8, "host", ""),
    "flags": Word(9, "host", "argument 5: low half FLAG_*, high half the low 16 bits of the lap (sequence / capacity)"),
    "inline": Word(10, "host", "arguments 6-11: parameters 0 to 2, 8 bytes each, when FLAG_INLINE_PARAMS is set"),
}
FLAG_INLINE_PARAMS: Final = 1
INLINE_PARAMS: Final = 3
FLAG_PART: Final = 2  # part of a stream: leave tile sums unfolded, the reader folds them in order

SLOT_DTYPE: Final = np.dtype(
    [
        ("status", "<u4"), ("opcode", "<u4"), ("tenant", "<u4"), ("priority", "<u4"), ("binding", "<u4"),
        ("first_low", "<u4"), ("first_high", "<u4"), ("count_low", "<u4"), ("count_high", "<u4"), ("flags", "<u4"),
        ("inline", "<u4", (6,)),
    ]
)  # fmt: skip
assert SLOT_DTYPE.itemsize == SLOT_BYTES
assert all(SLOT_DTYPE.fields is not None and SLOT_DTYPE.fields[n][1] == 4 * w.at for n, w in SLOT.items())

# --- completion records: written by the engine, read by the host ------------------------------------------------

RECORD_BYTES: Final = 64
RECORD_DTYPE: Final = np.dtype(
    [
        ("sequence_plus_1", "<u8"),  # stored last, with release at system scope; pairs with the reader's acquire
        ("status", "<u4"),  # DONE or FAULT
        ("code", "<u4"),  # FaultCode
        ("pc", "<u4"),  # VIR0 pc of the fault; NO_PC when no instruction is to blame
        ("opcode", "<u4"),  # of the slot
        ("element", "<u8"),  # global index; NO_ELEMENT when no element is to blame
        ("value", "<u8"),  # of LOAD_U32, ATOMIC_ADD (old value), COMPARE_SWAP (old value); errno of io_error
        ("started", "<u8"),  # engine clock ticks
        ("finished", "<u8"),  # engine clock ticks
        ("worker", "<u8"),  # index of the worker that completed it
    ]
)
assert RECORD_DTYPE.itemsize == RECORD_BYTES
NO_PC: Final = 0xFFFF_FFFF
NO_ELEMENT: Final = 0xFFFF_FFFF_FFFF_FFFF

DEFAULT_CAPACITY: Final = 4_096
MIN_CAPACITY: Final = 1
MAX_CAPACITY: Final = 1 << 20

# --- control block of a ring: one cache line per writer, byte offsets --------------------------------------------

RING_TAIL: Final = 0  # u64, producer: sequences below it are published; stored last, with release
RING_FULL: Final = 8  # u64, producer: publishes refused because the ring was full
RING_LOCK: Final = 64  # u32, producers: 1 while one of them publishes
RING_HEAD: Final = 128  # u64, engine: next ticket; moved by compare-and-swap
RING_COMPLETED: Final = 192  # u64, engine: items completed; never ahead of the records
RING_MASK: Final = 256  # u64, constant: capacity - 1
RING_SHIFT: Final = 264  # u64, constant: log2 of the capacity
RING_SLOTS: Final = 272  # u64, constant: address of the slots
RING_RECORDS: Final = 280  # u64, constant: address of the completion records
RING_STOPS: Final = 288  # u64, constant: address of one u64 per slot: 0, STOP_NOW, or CLOCK_MONOTONIC ns of a deadline
RING_CONTROL_BYTES: Final = 512
STOP_NOW: Final = 1  # in a slot's stop word: cancelled
SEQUENCE_NONE: Final = 0xFFFF_FFFF_FFFF_FFFF  # what publish answers when the ring is full

# --- session block: what the rings of one engine share ----------------------------------------------------------

SESSION_WORK_BELL: Final = 0  # u32 futex: bumped to wake workers
SESSION_SLEEPERS: Final = 64  # u32: workers asleep or about to be
SESSION_DONE_BELL: Final = 128  # u32 futex: bumped to wake waiters
SESSION_WAITERS: Final = 192  # u32: waiters asleep or about to be
SESSION_STOP: Final = 256  # u32, host: 1 asks workers to leave (STOP_LEAVE), 2 ends running items (STOP_ITEMS)
STOP_LEAVE: Final = 1  # asks workers to leave, after the item that they are in
STOP_ITEMS: Final = 2  # ends items that are running as cancelled, at their next tile
SESSION_RING_COUNT: Final = 320  # u64, host: entries of the ring list in use
SESSION_RING_LIST: Final = 384  # u64[MAX_RINGS], host: address of a ring's control block, or 0
MAX_RINGS: Final = 16
SESSION_BLOCK_BYTES: Final = 512

# --- requests of an engine to the host: pages of tables on disk (decision 34) -------------------------------------

IO_REQUEST: Final = {
    "opcode": Word(0, "engine", "LOAD_MISS"),
    "handle": Word(1, "engine", "of the host's capability table: which file, from where to where, with which rights"),
    "offset_low": Word(2, "engine", "byte of the file at which the page begins"),
    "offset_high": Word(3, "engine", ""),
    "bytes": Word(4, "engine", "length of the page"),
}
IO_REQUEST_BYTES: Final = 32
IO_REQUEST_DTYPE: Final = np.dtype(
    [
        ("opcode", "<u4"), ("handle", "<u4"), ("offset_low", "<u4"), ("offset_high", "<u4"), ("bytes", "<u4"),
        ("reserved", "<u4", (3,)),
    ]
)  # fmt: skip
assert IO_REQUEST_DTYPE.itemsize == IO_REQUEST_BYTES

REQUESTS_COUNT: Final = 0  # u64, engine: requests of this run, moved by add, unless PAGED_COUNT names another word
REQUESTS_CAPACITY: Final = 8  # u64, host: entries that there is room for
REQUESTS_ENTRIES: Final = 64  # u32[8] each, engine: the requests, in any order, the same one more than once

# What a table on disk is to an engine, in place of the address of its elements.
PAGED_FRAMES: Final = 0  # u64, host: address of one u64 per page of the file: where its bytes are, 0 while they are not
PAGED_SHIFT: Final = 8  # u64, host: log2 of the bytes of a page
PAGED_BASE: Final = 16  # u64, host: byte of the file at which element 0 begins
PAGED_REQUESTS: Final = 24  # u64, host: address of the requests of the item that is running
PAGED_HANDLE: Final = 32  # u64, host: what requests name the file by
PAGED_USED: Final = 40  # u64, host: address of one u8 per page, engine: 1 when the item that is running wants the page
PAGED_COUNT: Final = (
    48  # u64, host: address of the u64 that engines count requests in: the list's, or one in device memory
)
PAGED_BYTES: Final = 64

# --- binding operands ---------------------------------------------------------------------------------------------


class OperandKind(IntEnum):
    """Where the bytes of an operand are (decision 20)."""

    MEMORY = 1  # address
    FILE = 2  # fd and byte offset; read by the worker that runs the tile
    TABLE = 3  # address, gathered from or updated
    OUT = 4  # address, written


class Right(IntEnum):
    READ = 1
    WRITE = 2
