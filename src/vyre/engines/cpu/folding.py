"""From the results of tiles to those of an item: accumulators folded, emits moved together. Native functions.

Owns: the order of addition (decision 2) and of emits (decision 3). Leaves to others: when all tiles are done (jobs).
"""

from __future__ import annotations

from vyre.engines.cpu.state import (
    B_EMITS,
    B_EMITTED,
    B_ORIGIN,
    B_RESULTS,
    B_TILE_EMITS,
    B_TILE_RESULTS,
    FOLD_ADD,
    FOLD_HISTOGRAM,
    FOLD_MAX_F32,
    FOLD_MAX_F64,
    FOLD_MAX_S32,
    FOLD_MAX_S64,
    FOLD_MAX_U32,
    FOLD_MAX_U64,
    FOLD_MIN_F32,
    FOLD_MIN_F64,
    FOLD_MIN_S32,
    FOLD_MIN_S64,
    FOLD_MIN_U32,
    FOLD_MIN_U64,
    FOLD_SUM,
    I_ACC_IDENTITIES,
    I_ACC_KINDS,
    I_ACCS,
    I_EMIT_SIZES,
    I_EMITS,
    W_FOLD,
)
from vyre.engines.cpu.tiles import TILE_SHIFT, tile_unit
from vyre.native import Unit, copy, f32_max, f32_min, f64_add, f64_max, f64_min, load64, signed_less, store64

SPAN_MASK = 1023
NEGATIVE_ZERO = 1 << 63
SIGN32 = 1 << 31

fold_unit = Unit("folding", tile_unit)


@fold_unit.function
def fold_span(x: int, n: int) -> int:
    """Halve f64[1,024] at x, of which n are present and the rest would be -0.0. Bits of the result. x is overwritten.

    x[i] += x[i + s] for s = 512 .. 1; adding the identity changes no bit, so absent partners are skipped.
    """
    s = 512
    while s != 0:
        i = 0
        while i < s and i + s < n:
            store64(x + 8 * i, f64_add(load64(x + 8 * i), load64(x + 8 * (i + s))))
            i += 1
        if n > s:
            n = s
        s = s >> 1
    return load64(x)


@fold_unit.function
def fold_tile_sums(scratch: int, sums: int, stride: int, tile: int, tiles: int, total: int) -> int:
    """Fold tile results, the first of which is global tile ``tile``, onto ``total``: spans by halving, left to right.

    Tiles of a span that are not among these count as absent. ``scratch`` is f64[1,024].
    """
    done = 0
    while done < tiles:
        start = (tile + done) & SPAN_MASK
        n = SPAN_MASK + 1 - start
        if n > tiles - done:
            n = tiles - done
        i = 0
        while i < start:
            store64(scratch + 8 * i, NEGATIVE_ZERO)
            i += 1
        i = 0
        while i < n:
            store64(scratch + 8 * (start + i), load64(sums + stride * (done + i)))
            i += 1
        total = f64_add(total, fold_span(scratch, start + n))
        done += n
    return total


@fold_unit.function
def fold_two(kind: int, a: int, b: int) -> int:
    """One step of a fold that is free of order. a and b are bits in memory form."""
    if kind == FOLD_ADD:
        return a + b
    if kind == FOLD_MIN_U32 or kind == FOLD_MIN_U64:
        if b < a:
            return b
        return a
    if kind == FOLD_MAX_U32 or kind == FOLD_MAX_U64:
        if b > a:
            return b
        return a
    if kind == FOLD_MIN_S32:
        if (b ^ SIGN32) < (a ^ SIGN32):
            return b
        return a
    if kind == FOLD_MAX_S32:
        if (b ^ SIGN32) > (a ^ SIGN32):
            return b
        return a
    if kind == FOLD_MIN_S64:
        if signed_less(b, a):
            return b
        return a
    if kind == FOLD_MAX_S64:
        if signed_less(a, b):
            return b
        return a
    if kind == FOLD_MIN_F32:
        return f32_min(a, b)
    if kind == FOLD_MAX_F32:
        return f32_max(a, b)
    if kind == FOLD_MIN_F64:
        return f64_min(a, b)
    if kind == FOLD_MAX_F64:
        return f64_max(a, b)
    return a


@fold_unit.function
def fold_results(worker: int, image: int, binding: int, first: int, tiles: int) -> None:
    accs = load64(image + I_ACCS)
    base = (first - load64(binding + B_ORIGIN)) >> TILE_SHIFT
    i = 0
    while i < accs:
        kind = load64(load64(image + I_ACC_KINDS) + 8 * i)
        results = load64(binding + B_TILE_RESULTS) + 8 * (accs * base + i)
        value = load64(load64(image + I_ACC_IDENTITIES) + 8 * i)
        if kind == FOLD_SUM:
            # Starts from +0.0, whatever the identity of a partial.
            value = fold_tile_sums(worker + W_FOLD, results, 8 * accs, first >> TILE_SHIFT, tiles, 0)
        elif kind != FOLD_HISTOGRAM:
            t = 0
            while t < tiles:
                value = fold_two(kind, value, load64(results + 8 * accs * t))
                t += 1
        store64(load64(binding + B_RESULTS) + 8 * i, value)
        i += 1


@fold_unit.function
def compact_emits(image: int, binding: int, first: int, tiles: int) -> None:
    """Move the segments of all tiles together, in tile order; a segment never moves up, so one pass does."""
    emits = load64(image + I_EMITS)
    base = (first - load64(binding + B_ORIGIN)) >> TILE_SHIFT
    e = 0
    while e < emits:
        size = load64(load64(image + I_EMIT_SIZES) + 8 * e)
        address = load64(load64(binding + B_EMITS) + 8 * e) + (base << TILE_SHIFT) * size
        kept = 0
        t = 0
        while t < tiles:
            n = load64(load64(binding + B_TILE_EMITS) + 8 * (emits * (base + t) + e))
            if n != 0:
                copy(address + kept * size, address + (t << TILE_SHIFT) * size, n * size)
            kept += n
            t += 1
        store64(load64(binding + B_EMITTED) + 8 * e, kept)
        e += 1
