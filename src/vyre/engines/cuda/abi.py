"""What the host and the resident kernel agree on: structures in shared memory, record form, flags.

The only declaration of it: the host uses the NumPy types, header.py turns the same types into C. Changing anything
here changes the key of the stored kernel.

Owns: layouts and numbers between engine.py and kernel/. Leaves to others: the ring (ring/layout), VIR0
(program/opcodes), what is written when (engine, resident.cuh).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vyre.program.opcodes import FaultCode

WARP: Final = 32
ELEMENTS_PER_LANE: Final = 8
NARROW_PASS: Final = 512  # elements that a warp does at a time of programs of 32-bit values only
WARPS_PER_BLOCK: Final = 4
WINDOW: Final = 128  # records of code that a warp keeps in shared memory; longer programs are paged
LAUNCH_BYTES: Final = 384  # at the start of a block's shared memory: the kernel's argument, what the poller knows
FRAME_BYTES: Final = 512  # of struct Frame in kernel/frame.cuh
KEPT_BYTES: Final = 144  # of one emit: a word of kept bits per lane, then what the tile has kept so far
UNIT: Final = 64  # bytes; bindings and program images start at multiples of it in the arena
MAX_PROGRAMS: Final = 1 << 16
TABLE_BYTES: Final = 4 * MAX_PROGRAMS  # the arena starts with u32[MAX_PROGRAMS]: unit of each program's image, or 0
MAX_UNIFORM_SLOTS: Final = 64  # constants and parameters that operands name directly
IO_IN_SHARED: Final = 16  # stream descriptors that a warp keeps in shared memory
UPDATE_ENTRIES: Final = 4_096
MAGIC_PROGRAM: Final = 0x56495230  # "VIR0"
MAGIC_BINDING: Final = 0x42494E44  # "BIND"
TILE_NS: Final = 5_000_000_000  # a pass whose loops take longer ends in FaultCode.deadline

# --- record: one rewritten instruction, u32[4] ---------------------------------------------------------------------
# x: short cut in the lowest byte (0: none), handler in the next, flags above. y: operand b. z: operand a | operand d << 16. w: operand c or imm | pc << 16.
# An operand is a plane of the warp's register file (a 64-bit register is two), or UNIFORM | slot. There are two
# accumulators, one of 32 and one of 64 bits, so that neither's registers constrain the other's.
UNIFORM: Final = 0x8000
FLAGS: Final = {
    "LOAD_A32": 1 << 16,  # accumulator := a
    "LOAD_A64": 1 << 17,
    "FIX_NAN32": 1 << 18,
    "FIX_NAN64": 1 << 19,
    "STORE32": 1 << 20,  # d := accumulator
    "STORE64": 1 << 21,
    "BLEND": 1 << 22,  # elements that are not active keep their old value
    "PLACE_A": 1 << 23,  # operands that are places and get relocated when a warp loads the code
    "PLACE_B": 1 << 24,
    "PLACE_C": 1 << 25,
    "PLACE_D": 1 << 26,
    "WIDE": 1 << 27,  # of an emit: 64 bits
}

PROGRAM_HEADER: Final = np.dtype(
    [
        ("magic", "<u4"),
        ("opcode", "<u4"),
        ("records", "<u4"),  # count, pages padded
        ("slots", "<u4"),  # uniform slots: 64 bits, constants first
        ("constant_slots", "<u4"),
        ("planes", "<u4"),
        ("depth", "<u4"),  # of nested blocks
        ("fuel", "<u4"),
        ("fuel_plane", "<u4"),  # NO_PLANE when there is no loop
        ("io", "<u4"),  # inputs and outputs
        ("tables", "<u4"),
        ("accumulators", "<u4"),
        ("emits", "<u4"),
        ("float_sums", "<u4"),
        ("pool", "<u4"),  # constants reachable by index only
        ("flags", "<u4"),  # PROGRAM_QUICK | inputs << 8
    ]
)  # followed by: u64 slot values, ACC[], EMIT[], pool u64[], records
assert PROGRAM_HEADER.itemsize == 64
NO_PLANE: Final = 0xFFFF_FFFF
PROGRAM_QUICK: Final = 1  # no loop and short: the poller may run one tile of it

ACC: Final = np.dtype([("kind", "<u4"), ("place", "<u4"), ("identity", "<u8")])
ACC_KINDS: Final = {"ADD": 0, "MIN": 1, "MAX": 2, "FLOAT_SUM": 3, "HISTOGRAM": 4}
EMIT: Final = np.dtype([("plane", "<u4"), ("dtype", "<u4")])

BINDING_HEADER: Final = np.dtype(
    [
        ("magic", "<u4"),
        ("opcode", "<u4"),
        ("program", "<u4"),  # unit of the image
        ("tiles", "<u4"),  # tiles that results have room for
        ("base", "<u8"),  # global index of the element at position 0 of every array
        ("elements", "<u8"),  # elements that every array has
        ("results", "<u8"),  # address: u64 per accumulator
        ("scratch", "<u8"),  # device address: u64 per accumulator, for items of more than one tile
        ("tile_sums", "<u8"),  # address: f64[float_sums][tiles]
        ("emit_counts", "<u8"),  # address: u32[emits][tiles]
    ]
)  # followed by OPERAND[io + tables + emits + accumulators], u64 parameters[]
assert BINDING_HEADER.itemsize == 64
OPERAND: Final = np.dtype([("address", "<u8"), ("extent", "<u4"), ("dtype", "<u4")])
# extent: elements of a table, 1 for a stream whose vectors are aligned, bins of a histogram (address: u64 bins in
# device memory; a histogram's counts come back through device memory).
IN_DEVICE_MEMORY: Final = 1 << 8  # in a stream's dtype word: worth fetching into the second-level cache ahead of use
PAGED: Final = (
    1 << 9
)  # in a table's dtype word: the address is of its PAGED block (ring/layout.py), in registered host memory
MAX_TABLE: Final = 2**32 - 1

# --- control: host words and engine words never share a line -----------------------------------------------------------
CONTROL: Final = np.dtype(
    [
        ("tail", "<u8"),  # host: slots published
        ("fences", "<u8"),  # host: fences among them
        ("updates", "<u8"),  # host: entries of the update ring; stored before the slots that need them
        ("stop", "<u8"),  # host: stays up to this one must leave
        ("pad0", "<u8", (12,)),
        ("left", "<u8"),  # engine: the last stay that is over; stored last of these
        ("final_tail", "<u8"),  # engine: slots that have been taken when it left
        ("unfinished", "<u8"),  # engine: big items that go on in the next stay
        ("broken", "<u8"),  # engine: a stay that ended by its hard deadline
        ("applied", "<u8"),  # engine: updates copied in
        ("pad1", "<u8", (11,)),
    ]
)
assert CONTROL.itemsize == 256

ENGINE: Final = np.dtype(
    [  # device memory; one line each for words that many warps touch
        ("head", "<u8", (16,)),  # tickets given
        ("handed", "<u8", (16,)),  # tickets that have been filled
        ("done", "<u8", (16,)),  # items completed
        ("closing", "<u8", (16,)),  # the stay that is being left
        ("started", "<u8", (16,)),  # [2] warps that came in, by parity of the stay
        ("gone", "<u8", (16,)),  # [2] warps that are out
        ("suspended", "<u8", (16,)),  # [0] count
        ("next", "<u8", (16,)),  # [0] next slot, [1] fences passed, [2] updates applied
    ]
)
MAX_SUSPENDED: Final = 4_096

JOB: Final = np.dtype(
    [  # an item of several tiles, shared by many warps; device memory, one per slot of the ring
        ("cursor", "<u8"),  # tag << CURSOR_BITS | next unit of 2**shift tiles
        ("done", "<u8"),  # tiles done
        ("fault", "<u8"),
        ("stop", "<u8"),  # host: sequence + 1 << 8 | fault code of an item that is to end
        ("sequence", "<u8"),
        ("first", "<u8"),
        ("count", "<u8"),
        ("binding", "<u4"),
        ("opcode", "<u4"),
        ("tiles", "<u8"),
        ("started", "<u8"),
        ("shift", "<u8"),
        ("flags", "<u8"),
        ("pad", "<u8", (4,)),
    ]
)
assert JOB.itemsize == 128
CURSOR_BITS: Final = 40

LAUNCH: Final = np.dtype(
    [  # the kernel's one argument, by value
        ("generation", "<u8"),
        ("grace_ns", "<u8"),
        ("stay_ns", "<u8"),
        ("hard_ns", "<u8"),  # any wait ends after this, whatever happens
        ("limit", "<u8"),  # slots beyond are left alone: finite dispatch
        ("control", "<u8"),
        ("slots", "<u8"),
        ("records", "<u8"),
        ("updates", "<u8"),
        ("arena_host", "<u8"),
        ("arena", "<u8"),
        ("engine", "<u8"),
        ("jobs", "<u8"),
        ("handed", "<u8"),
        ("suspended", "<u8"),
        ("words", "<u8"),  # session words, u32
        ("scratch", "<u8"),
        ("scratch_bytes", "<u8"),  # of one warp
        ("capacity_log2", "<u4"),
        ("handed_log2", "<u4"),
        ("arena_units", "<u4"),
        ("shared_bytes", "<u4"),  # of one warp
    ]
)

# Entries of the queue between poller and workers: payload << 18 | kind << 16 | lap of the ticket + 1.
HANDED_KINDS: Final = {"ITEM": 0, "HELP": 1, "RESUME": 2, "LEAVE": 3}
STOP_FLAGS: Final = {FaultCode.cancelled: 0x4000, FaultCode.deadline: 0x2000}  # marks in a slot's flags, by the host
UPDATE_FLAG: Final = 0x8000  # in a slot's flags: look at the control line before you run this
