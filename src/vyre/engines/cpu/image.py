"""A loaded program as the worker reads it: op records, sizes, folds and identities, in one block of memory.

Owns: the block's layout in use (declared in state) and the meaning of a fold. Leaves to others: op records (tileform).
"""

from __future__ import annotations

import platform
import struct
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from vyre.engines.cpu import state
from vyre.engines.cpu.abi import LANES
from vyre.errors import ArenaFull
from vyre.program.ir import Accumulator, Program
from vyre.program.opcodes import AccKind, MemType

_GRAIN_MAX: Final = 64
_NEVER: Final = (1 << 64) - 1
_SIZES: Final = [MemType(i).size if i else 0 for i in range(len(MemType) + 1)]
"""Bytes by memory type; asking the type itself takes ten times as long."""

_INF: Final = {MemType.f32: 0x7F80_0000, MemType.f64: 0x7FF0_0000_0000_0000}
_SIGN: Final = {MemType.f32: 1 << 31, MemType.f64: 1 << 63}
NEGATIVE_ZERO: Final = 1 << 63

_EXTREMES: Final[dict[tuple[AccKind, MemType], tuple[int, int]]] = {
    #                                 fold                 identity: what any value replaces
    (AccKind.min, MemType.i32): (state.FOLD_MIN_S32, (1 << 31) - 1),
    (AccKind.max, MemType.i32): (state.FOLD_MAX_S32, 1 << 31),
    (AccKind.min, MemType.u32): (state.FOLD_MIN_U32, (1 << 32) - 1),
    (AccKind.max, MemType.u32): (state.FOLD_MAX_U32, 0),
    (AccKind.min, MemType.i64): (state.FOLD_MIN_S64, (1 << 63) - 1),
    (AccKind.max, MemType.i64): (state.FOLD_MAX_S64, 1 << 63),
    (AccKind.min, MemType.u64): (state.FOLD_MIN_U64, (1 << 64) - 1),
    (AccKind.max, MemType.u64): (state.FOLD_MAX_U64, 0),
    (AccKind.min, MemType.f32): (state.FOLD_MIN_F32, _INF[MemType.f32]),
    (AccKind.max, MemType.f32): (state.FOLD_MAX_F32, _INF[MemType.f32] | _SIGN[MemType.f32]),
    (AccKind.min, MemType.f64): (state.FOLD_MIN_F64, _INF[MemType.f64]),
    (AccKind.max, MemType.f64): (state.FOLD_MAX_F64, _INF[MemType.f64] | _SIGN[MemType.f64]),
}


def _cache_bytes() -> int:
    """Bytes of the third-level cache, or 0 when this system does not say, or writing around it was never measured."""
    if platform.machine() != "x86_64":
        return 0
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) << 10 if text.endswith("K") else 0
    except (OSError, ValueError):
        return 0


_CACHE_BYTES: Final = _cache_bytes()


def _elements_in_cache(reads_outputs: bool, size: int) -> int:
    """How many elements of ``size`` bytes may be bound before outputs are written around the caches.

    Three quarters of the cache: from there on a + b and a * 2.5 gain 20 % (Zen 4, 32 MiB), below they lose up to that much.
    Never when a record reads an output again: it would wait for memory.
    """
    if not _CACHE_BYTES or reads_outputs:
        return _NEVER
    return _CACHE_BYTES * 3 // 4 // size


@cache
def _packer(count: int) -> Callable[..., None]:
    return struct.Struct(f"<{count}Q").pack_into


def fold_of(acc: Accumulator) -> tuple[int, int]:
    """(fold number, bits that a tile's result starts from) of an accumulator."""
    match acc.kind:
        case AccKind.sum if acc.dtype is MemType.f64:
            return state.FOLD_SUM, NEGATIVE_ZERO
        case AccKind.sum | AccKind.count:
            return state.FOLD_ADD, 0
        case AccKind.histogram:
            return state.FOLD_HISTOGRAM, 0
        case _:
            return _EXTREMES[acc.kind, acc.dtype]


class Image:
    """The block, and what must live as long as it.

    Attributes:
        address: of the block; what the program table holds.
        grain: tiles that a worker takes at once.
        in_place: an output may be the same memory as an input.
    """

    __slots__ = ("_block", "address", "bins", "float_sums", "grain", "in_place", "program")

    def __init__(
        self,
        program: Program,
        body: bytes,
        prologue: bytes,
        uses_fuel: bool,
        scratch_slots: int = 1,
        in_place: bool = True,
        reads_outputs: bool = False,
    ) -> None:
        self.program = program
        self.in_place = in_place
        accumulates = bool(program.accumulators or program.emits)
        sizes_in = [_SIZES[s.dtype] for s in program.inputs]
        sizes_out = [_SIZES[s.dtype] for s in program.outputs]
        sizes_emit = [_SIZES[s.dtype] for s in program.emits] if program.emits else []
        sizes = [*sizes_in, *sizes_out, *sizes_emit]
        lists = sizes
        self.bins: list[int] = []
        self.float_sums: list[int] = []
        histograms = 0
        if program.accumulators:
            folds = [fold_of(a) for a in program.accumulators]
            bins = self.bins = [a.bins for a in program.accumulators]
            self.float_sums = [i for i, (fold, _) in enumerate(folds) if fold == state.FOLD_SUM]
            histograms = len(bins) - bins.count(0)
            if 8 * sum(bins) > state.HISTOGRAM_BYTES:
                raise ArenaFull(
                    f"histograms of program {program.name} have {sum(bins)} bins together, a worker holds "
                    f"{state.HISTOGRAM_BYTES // 8}",
                    fix="split it into programs with fewer bins each",
                )
            lists = [*sizes, *(f for f, _ in folds), *(i for _, i in folds), *bins]
        # A claim is not interrupted. A tile of a loop may burn all its fuel: cancel and Ctrl-C then wait for one tile.
        fit = 1 if uses_fuel else state.MAX_GRAIN_BYTES // (LANES * sum(sizes) or 1)
        grain = self.grain = _GRAIN_MAX if fit > _GRAIN_MAX else fit or 1
        # First the op records: 64 bytes each, though 8-byte alignment is all they need.
        block = self._block = array("Q", prologue + body + bytes(8 * (state.IMAGE_WORDS + len(lists))))
        ops = block.buffer_info()[0]
        base = self.address = ops + len(prologue) + len(body)
        at = base + 8 * state.IMAGE_WORDS
        n_in, n_out, n_emit, n_acc = len(sizes_in), len(sizes_out), len(sizes_emit), len(self.bins)
        head = [
            ops + len(prologue),
            ops if prologue else 0,
            n_in,
            n_out,
            n_acc,
            n_emit,
            len(program.tables),
            len(program.params),
            program.fuel,
            int(uses_fuel),
            grain,
            at,
            at + 8 * n_in,
            at + 8 * (n_in + n_out),
            at + 8 * (n_in + n_out + n_emit),
            at + 8 * (n_in + n_out + n_emit + n_acc),
            at + 8 * (n_in + n_out + n_emit + 2 * n_acc),
            histograms,
            LANES if scratch_slots or accumulates or uses_fuel or program.tables else LANES * _GRAIN_MAX,
            _elements_in_cache(reads_outputs, sum(sizes_in) + sum(sizes_out)) if sizes_out else _NEVER,
        ]
        assert len(head) == state.IMAGE_WORDS
        _packer(state.IMAGE_WORDS + len(lists))(block, base - ops, *head, *lists)
