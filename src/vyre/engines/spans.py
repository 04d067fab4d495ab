"""Float sums over tiles that come a few at a time, natively: the order of engines/fold.py, without a NumPy call.

A stream folds the tiles of every chunk. NumPy takes 30 us for it and lets go of the GIL on the way, which costs a turn
behind every other thread that wants it, 5 ms each. The state is that of runtime.totals.SpanFold.

Owns: the native fold for engines that have none of their own. Leaves to others: the order (fold, which is the
definition).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Final

from vyre.jit import ObjectStore, compile_ir
from vyre.native import Unit, f64_add, load64, store64
from vyre.program.opcodes import SPAN

_NEXT: Final = 0  # u64: number of the next tile
_TOTAL: Final = 8  # f64: complete spans, left to right
_SPAN: Final = 16  # f64[SPAN]: tiles of the span that is not complete

spans = Unit("spans")


@spans.function
def add_tiles(state: int, sums: int, stride: int, count: int) -> int:
    """Take in the sums of the next ``count`` tiles, ``stride`` bytes apart. The span is halved where it lies."""
    next_ = load64(state + _NEXT)
    done = 0
    while done < count:
        store64(state + _SPAN + 8 * (next_ % SPAN), load64(sums + stride * done))
        done += 1
        next_ += 1
        if next_ % SPAN == 0:
            width = SPAN // 2
            while width != 0:
                i = 0
                while i < width:
                    at = state + _SPAN + 8 * i
                    store64(at, f64_add(load64(at), load64(at + 8 * width)))
                    i += 1
                width = width // 2
            store64(state + _TOTAL, f64_add(load64(state + _TOTAL), load64(state + _SPAN)))
    store64(state + _NEXT, next_)
    return 0


_functions: list[Callable[[int, int, int, int], int]] = []


def fold_onto(store: ObjectStore | None = None) -> Callable[[int, int, int, int], int]:
    """``add_tiles``, compiled. It keeps the GIL: a microsecond is not worth letting it go.

    Raises:
        EngineUnavailable: nothing can be compiled here.
    """
    if not _functions:
        found = compile_ir(spans.ir(platform.machine(), ("add_tiles",)), ("add_tiles",), store)
        _functions.append(ctypes.PYFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * 4)(found["add_tiles"]))
    return _functions[0]
