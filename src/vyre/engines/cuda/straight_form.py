"""The Python side of straight: its table of facts and its memory.

Owns: the table, workspaces, compiled callables. Leaves to others: the facts themselves (lower, analysis), rules
(program/straight_check).
"""

from __future__ import annotations

import ctypes
import platform
import struct
from array import array
from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vyre import jit
from vyre.engines.cuda import abi, lower
from vyre.engines.cuda import straight_layout as s
from vyre.engines.cuda.handlers import HANDLERS, short_cut
from vyre.engines.cuda.lower import Image
from vyre.engines.cuda.memory import address_of
from vyre.errors import VerifyError
from vyre.kept import kept_ir
from vyre.native import Unit
from vyre.program import analysis, verifier
from vyre.program.formula_later import read_natively
from vyre.program.ir import Instr, Program
from vyre.program.opcodes import OPCODES, AccKind, MemType, Op
from vyre.program.population import Population, refused
from vyre.program.straight_check import rules_table
from vyre.program.words import P_WORDS, described, index_of_entries

_WHAT: Final = {
    "light": s.LIGHT, "move": s.MOVE, "heavy": s.HEAVY, "const": s.CONST, "param": s.PARAM, "load": s.LOAD,
    "store": s.STORE, "table_get": s.TABLE_GET, "update": s.UPDATE, "acc": s.ACC, "emit": s.EMIT, "nop": s.NOTHING,
    "unreachable": s.OTHER, "return": s.OTHER,
}  # fmt: skip
_INSTR_CLASS: Final = {Instr}
SPARE_BYTES: Final = 32 << 20
"""Of the memory that images of a population are made in, and that is kept for the next one."""


def _entry(op: Op) -> tuple[int, int, int]:
    """What ``straight`` reads of an instruction: the words at F_WHAT, F_HANDLER and F_FIX."""
    plan = lower.PLANS[op.code]
    what = s.NOT_MINE if op.code in lower.FUNCTIONS else _WHAT.get(plan.what, s.NOT_MINE)
    _, makes_nan, args, rule, _ = analysis.RULES[op.code]
    flags = what | args << s.S_ARGS | plan.result + 1 << s.S_RESULT | rule << s.S_RULE | makes_nan << s.S_NAN
    flags |= plan.args[0] << s.S_WIDE if plan.args else 0
    handler, second = max(plan.handler, 0), plan.swapped + 1
    width = 64 if plan.result > 0 else 32
    if what == s.CONST:
        handler = HANDLERS[f"POOL{width}"]
    elif what == s.PARAM:
        handler = HANDLERS[f"PARAM{width}"]
    elif what == s.UPDATE:
        handler = HANDLERS["TABLE_UPDATE64" if plan.args[1] else "TABLE_UPDATE32"]
        second = lower.UPDATES.index(op.name.partition(".table_")[2])
    elif what == s.ACC:
        handler = lower.ACC_HANDLER[op.name]
    elif what == s.EMIT:
        handler = HANDLERS["EMIT"]
    elif what == s.OTHER:
        handler = HANDLERS[plan.what.upper()]
    return flags, handler | second << s.S_SWAPPED, plan.fix


@cache
def _hot() -> array[int]:
    """u8[handlers, 8]."""
    return array("B", [short_cut(handler, form) for handler in range(len(HANDLERS)) for form in range(8)])


@cache
def facts_table() -> array[int]:
    """What ``straight`` reads; made once, and never moved."""
    words = array("Q", bytes(s.H_BYTES))
    words[s.H_INDEX // 8] = index_of_entries(s.H_BYTES, s.F_ENTRY).buffer_info()[0]
    words[s.H_HOT // 8] = _hot().buffer_info()[0]
    for m in MemType:
        words[s.H_WIDE // 8] |= lower.width_of(m.type) << m
        words[s.H_SHOWN // 8] |= (m in analysis.SHOWN) << m
        words[s.H_LOAD // 8 + m] = HANDLERS[lower.by_size("STREAM_LOAD", m)]
        words[s.H_STORE // 8 + m] = HANDLERS[lower.by_size("STREAM_STORE", m)]
        words[s.H_TABLE // 8 + m] = HANDLERS[lower.by_size("TABLE_GET", m)]
        for kind in AccKind:
            if m in verifier.ACC_TYPES[kind]:
                at = s.H_ACC // 8 + 2 * (16 * kind + m)
                words[at : at + 2] = array("Q", lower.start_of(kind, m))
    for op in OPCODES:
        words.extend(_entry(op))
    words.extend([0] * (s.F_ENTRY // 8))
    return words


class _Memory(NamedTuple):
    owner: ctypes.Array[ctypes.c_char]
    address: int
    found: memoryview  # u64 from W_SHARED to W_SUMS
    image: memoryview


def _workspace() -> _Memory:
    owner = (ctypes.c_char * (s.WORKSPACE_BYTES + 64))()
    address = ctypes.addressof(owner)
    skip = -address % 64
    view = memoryview(owner).cast("B")[skip : skip + s.WORKSPACE_BYTES]
    return _Memory(owner, address + skip, view[s.W_SHARED : s.W_SUMS + 8].cast("Q"), view[s.A_IMAGE :])


class Lowering:
    """Verifies and rewrites programs natively. Thread-safe."""

    def __init__(self, store: jit.ObjectStore | None) -> None:
        self._memories: list[_Memory] = []
        self._spare: list[NDArray[np.uint64]] = []
        self._natives = natives(store)  # type: ignore[arg-type]  # a store hashes by itself
        if self._natives is not None:
            if verifier.quick.check is None:
                verifier.quick.check = self.check
            read_natively(store)

    def check(self, program: Program) -> bool:
        """True only when the code keeps every rule; its declarations do."""
        code = program.__dict__.get("code")
        try:
            if code is not None and set(map(type, code)) != _INSTR_CLASS:
                return False
            words = described(program)
            memory = self._memory()
            assert self._natives is not None
            found = self._natives.check(memory.address, _RULES, program.packed, words)
        except (struct.error, TypeError):  # a number that has no room: the verifier says where
            return False
        self._memories.append(memory)
        return bool(found)

    def image(self, program: Program) -> Image:
        """The image of a valid program: native where that takes it, else what ``lower`` gives."""
        if self._natives is None:
            return lower.lower(program)
        try:
            memory = self._memories.pop()
        except IndexError:
            memory = _workspace()
        size = self._natives.lower(
            memory.address, _FACTS, program.packed, described(program), program.fuel, memory.address + s.A_IMAGE
        )
        if not size:
            self._memories.append(memory)
            return lower.lower(program)
        shared, planes, records, quick, sums = memory.found
        float_sums = tuple([i for i, a in enumerate(program.accumulators) if lower.is_float_sum(a)]) if sums else ()
        image = Image(bytes(memory.image[:size]), shared, 4096 * sums, quick != 0, float_sums, planes, records)
        self._memories.append(memory)
        return image

    def images(
        self, population: Population, refuse: Callable[[Image, Program], None], shared_max: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Images of all programs, one after the other from multiples of UNIT on, and where each starts, in bytes.

        Args:
            refuse: raises when an image is not for this device.
            shared_max: bytes of shared memory that it surely is not refused for.
        Raises:
            VerifyError: of the first program that is not valid; the message starts with its number.
        """
        n = len(population)
        most = _most_bytes(population)
        ahead = np.append(np.cumsum(most[::-1])[::-1], 0)  # of the programs from each one on
        room = int(ahead[0]) // 8 + 8
        try:
            out = self._spare.pop()  # in one step: two threads never get the same
        except IndexError:
            out = np.empty(0, np.uint64)
        if len(out) < room:
            out = np.empty(room, np.uint64)
        places = np.zeros(n, np.int64)
        used = i = 0
        described_ = described(population.shape)
        declared = ctypes.create_string_buffer(described_[P_WORDS:])
        head = ctypes.create_string_buffer(described_[:P_WORDS])
        memory = self._memory()
        while i < n:
            if self._natives is not None:
                block = array("Q", bytes(s.M_BYTES))
                for at, word in (
                    (s.M_COUNT, n), (s.M_CODE, address_of(population.code)), (s.M_CODE_AT, address_of(population.code_at)),
                    (s.M_CONSTANTS, address_of(population.constants)),
                    (s.M_CONSTANTS_AT, address_of(population.constants_at)),
                    (s.M_REGISTERS, address_of(population.registers)),
                    (s.M_REGISTERS_AT, address_of(population.registers_at)), (s.M_HEAD, ctypes.addressof(head)),
                    (s.M_DECLARED, ctypes.addressof(declared)), (s.M_DECLARED_BYTES, len(described_) - P_WORDS),
                    (s.M_FUEL, population.declarations.fuel), (s.M_SHARED_MAX, shared_max),
                    (s.M_OUT, address_of(out)), (s.M_OUT_AT, used), (s.M_PLACES, address_of(places)),
                ):  # fmt: skip
                    block[at // 8] = word
                i = self._natives.admit(memory.address, _RULES, _FACTS, block.buffer_info()[0], i)
                used = block[s.M_OUT_AT // 8]
                if i == n:
                    break
            program = population.program(i)
            try:
                verifier.verify(program)
            except VerifyError as error:
                raise refused(error, i, n) from None
            image = lower.lower(program)
            refuse(image, program)
            size = -(-len(image.data) // abi.UNIT) * abi.UNIT
            if 8 * len(out) < used + size + ahead[i + 1] + 64:
                out = np.concatenate([out, np.empty(size // 8 + len(out) // 8, np.uint64)])
            out.view(np.uint8)[used : used + len(image.data)] = np.frombuffer(image.data, np.uint8)
            places[i] = used
            used += size
            i += 1
        self._memories.append(memory)
        return out[: used // 8], places

    def keep(self, images: NDArray[np.uint64]) -> None:
        """Memory of ``images`` that is no longer used: fresh memory would cost as much as filling it."""
        whole = images if images.base is None else images.base
        if isinstance(whole, np.ndarray) and whole.nbytes <= SPARE_BYTES:
            self._spare[:] = [whole]

    def _memory(self) -> _Memory:
        try:
            return self._memories.pop()
        except IndexError:
            return _workspace()


def _most_bytes(population: Population) -> NDArray[np.int64]:
    """What each image has at the most, in whole units."""
    declared = population.declarations
    records = np.diff(population.code_at)
    constants = np.diff(population.constants_at)
    fixed = 64 + 8 * (len(declared.params) + 2) + 16 * len(declared.accumulators) + 8 * len(declared.emits) + 16
    most = fixed + 16 * (records + records // (abi.WINDOW - 1) + 1) + 16 * constants
    found: NDArray[np.int64] = -(-most // abi.UNIT) * abi.UNIT
    return found


class Natives(NamedTuple):
    """The compiled functions. They are over sooner than giving up the GIL and taking it back would be."""

    check: Callable[[int, int, bytes, bytes], int]
    lower: Callable[[int, int, bytes, bytes, int, int], int]
    admit: Callable[[int, int, int, int, int], int]  # of thousands of programs: without the GIL


_FACTS: Final = facts_table().buffer_info()[0]
_RULES: Final = rules_table().buffer_info()[0]


@cache
def natives(store: jit.ObjectStore | None) -> Natives | None:
    """None on a machine that native functions are not written for."""
    arch = platform.machine()
    if arch not in ("x86_64", "aarch64"):
        return None
    names = ("gpu_check", "gpu_lower", "gpu_admit")
    addresses = jit.compile_ir(kept_ir(_unit, arch, names, store), names, store)
    word, data = ctypes.c_uint64, ctypes.c_char_p
    return Natives(
        ctypes.PYFUNCTYPE(word, word, word, data, data)(addresses["gpu_check"]),
        ctypes.PYFUNCTYPE(word, word, word, data, data, word, word)(addresses["gpu_lower"]),
        ctypes.CFUNCTYPE(word, word, word, word, word, word)(addresses["gpu_admit"]),
    )


def _unit() -> Unit:
    from vyre.engines.cuda.straight import straight  # not at the top: most processes find its IR in the store

    return straight
