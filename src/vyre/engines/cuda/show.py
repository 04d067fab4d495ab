"""A program's image for the GPU, in words: records, where each operand lies, what a warp needs of shared memory.

Owns: reading an image back. Leaves to others: making it (lower), running it (kernel/interpret.cuh).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vyre.engines.cuda import abi
from vyre.engines.cuda.handlers import HANDLERS
from vyre.engines.cuda.lower import Image

_NAMES: Final = {number: name for name, number in HANDLERS.items()}
_F: Final = abi.FLAGS
SHARED_OF_WARP: Final = ((233_472 // 5 - 1024) // 512 * 512 - abi.LAUNCH_BYTES) // abi.WARPS_PER_BLOCK // 16 * 16
"""Shared memory of a warp on sm_90: 228 KiB for five blocks, of which the driver keeps 1 KiB each."""
_STEPS: Final = {
    "STREAM_LOAD32": "input", "STREAM_LOAD64": "input", "STREAM_LOAD_NARROW": "input",
    "STREAM_STORE32": "output", "STREAM_STORE64": "output", "STREAM_STORE_NARROW": "output",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the image.

    Attributes:
        pc: VIR0 instruction that it was made from.
        handler: what executes it.
        way: "" when no test stands before or after it, else "long way".
        operands: what it reads besides the accumulator, and where it leaves its result besides there.
        notes: what else it does.
    """

    pc: int
    handler: str
    way: str
    operands: str
    notes: str


def header_of(image: Image) -> dict[str, int]:
    """Fields of the image's header, by name."""
    header = np.frombuffer(image.data, abi.PROGRAM_HEADER, 1)[0]
    return {name: int(header[name]) for name in abi.PROGRAM_HEADER.names or ()}


def records_of(image: Image) -> list[Record]:
    """The records that run, in order; what pads a page is left out."""
    header = header_of(image)
    slots = np.frombuffer(image.data, "<u8", header["slots"], abi.PROGRAM_HEADER.itemsize)
    words = np.frombuffer(image.data[-16 * header["records"] :], "<u4").reshape(-1, 4)
    inputs = header["flags"] >> 8
    return [_record(r.tolist(), slots, header["constant_slots"], inputs) for r in words]


def _record(words: list[int], slots: Any, constants: int, inputs: int) -> Record:
    x, y, z, w = words
    name = _NAMES.get(x >> 8 & 0xFF, "?")
    if name == "HEAVY":
        name = _NAMES.get(w & 0xFFFF, "?")
    found, notes = [], []
    for flag, operand in (("PLACE_A", z & 0xFFFF), ("PLACE_B", y), ("PLACE_C", w & 0xFFFF)):
        if x & _F[flag]:
            found.append(_place(operand, slots, constants))
    if name in _STEPS:
        stream = w & 0xFFFF  # outputs are numbered behind the inputs
        found.append(f"{_STEPS[name]} {stream if _STEPS[name] == 'input' else stream - inputs}")
    if x & _F["PLACE_D"]:
        found.append(f"-> {_place(z >> 16, slots, constants)}")
    if x & (_F["FIX_NAN32"] | _F["FIX_NAN64"]):
        notes.append("NaN made canonical")
    if x & _F["BLEND"]:
        notes.append("blends")
    return Record(w >> 16, name, "" if x & 0xFF else "long way", ", ".join(found), "; ".join(notes))


def _place(operand: int, slots: Any, constants: int) -> str:
    """A plane of the warp's register file, a constant by its bits, or a parameter."""
    if not operand & abi.UNIFORM:
        return f"p{operand}"
    slot = operand & ~abi.UNIFORM
    if slot < constants:
        value = int(slots[slot])  # one of 32 bits is there twice
        return f"#{value & 0xFFFF_FFFF if value & 0xFFFF_FFFF == value >> 32 else value:#x}"
    return f"param {int(slots[slot]) & 0xFFFF_FFFF}"


def lanes_for(image: Image, shared_of_warp: int) -> int:
    """Lanes of a warp that carry eight elements each, 32 at most: as many as the planes leave room for.

    The kernel chooses the same way (``set_up`` in kernel/tile.cuh), for each item anew.
    """
    room = shared_of_warp - (image.shared_bytes - 32 * image.planes)
    lanes = 32
    while lanes > 1 and image.planes * 32 * lanes > room:
        lanes //= 2
    return lanes
