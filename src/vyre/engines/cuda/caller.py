"""From a slot to its record without Python in between: publish it, look for its record for a short while, collect it.

A round trip through the GPU takes three microseconds; the same steps as Python statements would add one. These are
native functions (vyre.native) that are called with the GIL held: so they exclude each other and every Python statement
that touches the same ring, and need no lock. That is why they look for a short while only. Where Python has no GIL, or a
batch is being published, they refuse and the caller takes the way through Python.

Owns: what one slot's publisher stores and in which order; the ring's words on the host's side. Leaves to others: batches,
waiting for longer, starting stays (residency), what a slot asks for (engine).
"""

from __future__ import annotations

import ctypes
import platform
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

from vyre.engines.cuda import abi
from vyre.kept import kept_ir
from vyre.native import (
    Unit,
    call_function,
    copy,
    load8,
    load32,
    load64,
    load64_acquire,
    now_ns,
    pause,
    store8,
    store32_release,
    store64,
    store64_release,
)
from vyre.ring.layout import RECORD_BYTES, SEQUENCE_NONE, SLOT, SLOT_BYTES, Opcode, Status
from vyre.store import Store

EMPTY = Status.EMPTY
PUBLISHED = Status.PUBLISHED
DONE = Status.DONE
FENCE = Opcode.BATCH_FENCE
OPCODE = 4 * SLOT["opcode"].at
BINDING = 4 * SLOT["binding"].at
FLAGS = 4 * SLOT["flags"].at
RECORD_SHIFT = 6  # log2 of RECORD_BYTES

# Of the control block that the kernel reads (abi.CONTROL).
_OFFSETS: Final = {name: abi.CONTROL.fields[name][1] for name in abi.CONTROL.names or ()}  # type: ignore[index]
C_TAIL = _OFFSETS["tail"]
C_FENCES = _OFFSETS["fences"]
C_LEFT = _OFFSETS["left"]

# The host's words of a ring: u64[R_WORDS].
R_CONTROL, R_SLOTS, R_RECORDS, R_BUSY = 0, 8, 16, 24  # addresses; R_BUSY: u8 per slot, 1 from publishing to collecting
R_MASK, R_SHIFT = 32, 40  # of the capacity
R_PUBLISHED = 48  # slots published
R_FENCES = 56  # fences among them
R_GENERATION = 64  # the stay that was launched last
R_HELD = 72  # not 0: Python statements are at work on the ring, or it is closed
R_WORDS: Final = 10

# A frame: u64[F_WORDS], what is known of one slot that is published again and again.
F_RING, F_SLOT = 0, 8  # addresses; F_SLOT: 64 bytes, status EMPTY, flags without lap
F_LOOK_NS = 16  # how long `gpu_call` looks for the record
F_SEQUENCE = 24  # SEQUENCE_NONE unless it is published and its record was not collected
F_RECORD = 32  # the record collected last
F_BRINGS, F_BRING = 96, 104  # how many pieces are copied before it is published, and their address
F_TAKES, F_TAKE = 112, 120  # likewise, when it is DONE and collected
PIECE_BYTES = 24  # to, from, bytes
F_INT = 128  # address of CPython's PyLong_FromLong
assert F_INT == 8 * 16
assert F_RECORD + RECORD_BYTES == F_BRINGS

# Answers of gpu_call beside the status of a record:
FULL = 0  # no slot is free; nothing was published
PENDING = 16  # published; the stay is over, or there was no record in time
REFUSED = 17  # R_HELD; nothing was published

LOOK_NS: Final = 30_000
"""How long a call may keep the GIL. Tiny items take a tenth of it; for whatever takes longer, 30 us are little."""

_FRESH: Final = (LOOK_NS, SEQUENCE_NONE, *[0] * (RECORD_BYTES // 8))

caller = Unit("cuda caller")


@caller.function
def gpu_put(ring: int, slot: int, flags: int) -> int:
    """Publish the slot at ``slot`` with further flags. Its sequence, SEQUENCE_NONE when the ring is full."""
    sequence = load64(ring + R_PUBLISHED)
    at = sequence & load64(ring + R_MASK)
    busy = load64(ring + R_BUSY) + at
    if load8(busy) != 0:
        return SEQUENCE_NONE
    to = load64(ring + R_SLOTS) + at * SLOT_BYTES
    # Each store releases, so that none passes another. The kernel's look takes a slot that is PUBLISHED and whose flags
    # have this lap: EMPTY goes first, flags after the words, PUBLISHED last; it pairs with the acquire of the look.
    store32_release(to, EMPTY)
    store32_release(to + OPCODE, load32(slot + OPCODE))
    i = 8
    while i < SLOT_BYTES:
        if i != FLAGS - 4:
            store64_release(to + i, load64(slot + i))
        i += 8
    lap = (sequence >> load64(ring + R_SHIFT) & 0xFFFF) << 16
    store64_release(to + FLAGS - 4, load32(slot + FLAGS - 4) | (load32(slot + FLAGS) | flags | lap) << 32)
    store8(busy, 1)
    store32_release(to, PUBLISHED)
    store64(ring + R_PUBLISHED, sequence + 1)
    control = load64(ring + R_CONTROL)
    if load32(slot + OPCODE) == FENCE:
        fences = load64(ring + R_FENCES) + 1
        store64(ring + R_FENCES, fences)
        store64_release(control + C_FENCES, fences)
    # Pairs with the kernel's acquire of the tail: it also finds fences and updates that were counted before.
    store64_release(control + C_TAIL, sequence + 1)
    return sequence


@caller.function
def gpu_move(pieces: int, n: int) -> None:
    """Copy n pieces."""
    end = pieces + n * PIECE_BYTES
    while pieces < end:
        copy(load64(pieces), load64(pieces + 8), load64(pieces + 16))
        pieces += PIECE_BYTES


@caller.function
def gpu_bring(frame: int) -> None:
    """Bring what a frame's item reads."""
    gpu_move(load64(frame + F_BRING), load64(frame + F_BRINGS))


@caller.function
def gpu_start(frame: int, flags: int) -> int:
    """Bring what a frame's item reads, and publish its slot. 0: the ring is full."""
    gpu_bring(frame)
    sequence = gpu_put(load64(frame + F_RING), load64(frame + F_SLOT), flags)
    store64(frame + F_SEQUENCE, sequence)
    if sequence == SEQUENCE_NONE:
        return 0
    return 1


@caller.function
def gpu_take(frame: int) -> int:
    """Collect the record of a frame's slot, which is complete: into the frame, and what it made to its place. Its status."""
    ring = load64(frame + F_RING)
    at = load64(frame + F_SEQUENCE) & load64(ring + R_MASK)
    copy(frame + F_RECORD, load64(ring + R_RECORDS) + (at << RECORD_SHIFT), RECORD_BYTES)
    store32_release(load64(ring + R_SLOTS) + at * SLOT_BYTES, EMPTY)
    store8(load64(ring + R_BUSY) + at, 0)
    store64(frame + F_SEQUENCE, SEQUENCE_NONE)
    status = load32(frame + F_RECORD + 8)
    if status == DONE:
        gpu_move(load64(frame + F_TAKE), load64(frame + F_TAKES))
    return status


@caller.function
def gpu_call(frame: int) -> int:
    """Publish the slot of a frame, look for its record, collect it. The record's status, or FULL, PENDING, REFUSED."""
    ring = load64(frame + F_RING)
    if load64(ring + R_HELD) != 0:
        return REFUSED
    if gpu_start(frame, 0) == 0:
        return FULL
    done = load64(frame + F_SEQUENCE) + 1
    record = load64(ring + R_RECORDS) + ((done - 1 & load64(ring + R_MASK)) << RECORD_SHIFT)
    left = load64(ring + R_CONTROL) + C_LEFT
    until = 0
    spins = 0
    # Pairs with the release of sequence_plus_1 in the kernel: results come with it.
    while load64_acquire(record) != done:
        pause()
        if spins & 15 == 0:
            if load64_acquire(left) == load64(ring + R_GENERATION):
                return PENDING
            if until == 0:
                until = now_ns() + load64(frame + F_LOOK_NS)
            if now_ns() > until:
                return PENDING
        spins += 1
    return gpu_take(frame)


CAPSULE_POINTER: int = object.__basicsize__  # where CPython's capsules keep theirs


@caller.function
def gpu_called(capsule: int, nothing: int) -> int:
    """``gpu_call`` as a CPython function without arguments, of the frame that a capsule points to."""
    frame = load64(capsule + CAPSULE_POINTER)
    return call_function(load64(frame + F_INT), gpu_call(frame))


_EXPORTS: Final[dict[str, int]] = {
    "gpu_put": 3,
    "gpu_bring": 1,
    "gpu_start": 2,
    "gpu_take": 1,
    "gpu_call": 1,
    "gpu_called": 2,
}


@dataclass(frozen=True, slots=True)
class Natives:
    """The compiled functions; each keeps the GIL."""

    gpu_put: Any
    gpu_bring: Any
    gpu_start: Any
    gpu_take: Any
    gpu_call: Any
    gpu_called: Any


_natives: list[Natives] = []


def natives(store: Store | None) -> Natives:
    """Compile the functions, or take them from the store; once in a process."""
    if not _natives:
        from vyre.jit import compile_ir

        text = kept_ir(lambda: caller, platform.machine(), _EXPORTS, store)
        addresses = compile_ir(text, list(_EXPORTS), store)
        word = ctypes.c_uint64
        _natives.append(Natives(**{n: ctypes.PYFUNCTYPE(word, *[word] * k)(addresses[n]) for n, k in _EXPORTS.items()}))
    return _natives[0]


class _Method(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (("name", ctypes.c_char_p), ("call", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_NO_ARGUMENTS: Final = 4  # METH_NOARGS


def _from_api(name: str, *kinds: Any) -> Any:
    return ctypes.PYFUNCTYPE(ctypes.py_object, *kinds)((name, ctypes.pythonapi))


@cache
def _python() -> tuple[Callable[[int], Callable[[], int]], int]:
    """What makes a function of CPython from a frame's address, and the address of what makes its integers.

    Through ctypes a call costs 280 ns, as such a function 40.
    """
    gpu_call, gpu_called = natives(None).gpu_call, natives(None).gpu_called
    pointer, something = ctypes.c_void_p, ctypes.py_object
    make_capsule = _from_api("PyCapsule_New", pointer, pointer, pointer)
    make_function = _from_api("PyCFunction_NewEx", pointer, something, pointer)
    method = _Method(b"call", ctypes.cast(gpu_called, pointer).value, _NO_ARGUMENTS, None)
    at = ctypes.addressof(method)

    def function_of(frame: int, keep: _Method = method) -> Callable[[], int]:
        return make_function(at, make_capsule(frame, None, None), None)  # type: ignore[no-any-return]

    integer = ctypes.cast(ctypes.pythonapi.PyLong_FromLong, pointer).value
    assert integer is not None
    sample = make_capsule(at, None, None)
    if ctypes.c_uint64.from_address(id(sample) + CAPSULE_POINTER).value != at:
        return partial(partial, gpu_call), integer  # a Python whose capsules look otherwise
    return function_of, integer


def has_gil() -> bool:
    """Whether native calls exclude Python statements."""
    asked = getattr(sys, "_is_gil_enabled", None)
    return asked is None or bool(asked())


class Call:
    """A slot that is published again and again, and the record that came back last.

    Args:
        ring: address of the host's words of the ring.
        bring: (to, from, bytes) of memory that is copied each time before it is published.
        take: likewise when it is DONE and collected. Few bytes: they are copied with the GIL held.
    Attributes:
        address: of the frame.
        run: ``gpu_call`` of it.
    """

    run: Callable[[], int]

    __slots__ = ("_frame", "_pieces", "_slot", "address", "run")

    def __init__(
        self,
        ring: int,
        slot: bytes,
        bring: Sequence[tuple[int, int, int]] = (),
        take: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        integer = _python()[1]
        self._slot = array("Q", slot)
        self._pieces = array("Q", [word for piece in (*bring, *take) for word in piece])
        pieces = self._pieces.buffer_info()[0]
        # In the order of F_RING .. F_INT.
        self._frame = array(
            "Q",
            (
                ring, self._slot.buffer_info()[0], *_FRESH,
                len(bring), pieces, len(take), pieces + PIECE_BYTES * len(bring), integer,
            ),
        )  # fmt: skip
        self.address = self._frame.buffer_info()[0]

    def __getattr__(self, name: str) -> Callable[[], int]:
        """``run``, made when it is first asked for: a slot that is published once needs none."""
        if name != "run":
            raise AttributeError(name)
        self.run = _python()[0](self.address)
        return self.run

    @property
    def sequence(self) -> int | None:
        """Of the slot that is published and whose record was not collected."""
        found = self._frame[F_SEQUENCE // 8]
        return None if found == SEQUENCE_NONE else found

    @property
    def is_done(self) -> bool:
        """Whether the record collected last says DONE."""
        return self._frame[F_RECORD // 8 + 1] & 0xFFFF_FFFF == DONE

    def record(self) -> tuple[int, int, int, int, int]:
        """(status, code, pc, element, value) of the record collected last."""
        w, at = self._frame, F_RECORD // 8
        return w[at + 1] & 0xFFFF_FFFF, w[at + 1] >> 32, w[at + 2] & 0xFFFF_FFFF, w[at + 3], w[at + 4]
