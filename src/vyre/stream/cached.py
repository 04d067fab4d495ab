"""How much of a file is in the page cache: the question that decides between reading through it and around it."""

from __future__ import annotations

import mmap
from typing import Final, NamedTuple

import numpy as np

from vyre.stream.syscalls import cached_pages, resident_pages

PAGE: Final = mmap.PAGESIZE
_WINDOW: Final = 4 << 20  # bytes that mincore is asked about at a time
_WINDOWS_MAX: Final = 64
_EXACT: Final = 64 << 20  # a longer range is judged by samples: tmpfs takes 4 ms a GiB to count every page
_SAMPLE: Final = 1 << 20


class Cached(NamedTuple):
    """The cached part of a byte range, 0.0 to 1.0, and who said so; None when nobody could."""

    fraction: float | None
    by: str

    def __str__(self) -> str:
        return "unknown how much cached" if self.fraction is None else f"{100 * self.fraction:.0f} % cached"


def cached(fd: int, offset: int, length: int) -> Cached:
    """Ask how much of [offset, offset + length) of a file is in the page cache: of a long range, of 64 MiB spread over it."""
    if length <= 0:
        return Cached(1.0, "empty")
    first = offset // PAGE * PAGE
    pages = -(-(offset + length - first) // PAGE)
    if pages * PAGE <= _EXACT:
        windows = [(first, pages)]
    else:
        last = first + (pages - _SAMPLE // PAGE) * PAGE
        step = (last - first) // (_WINDOWS_MAX - 1) // PAGE * PAGE
        windows = [(first + k * step, _SAMPLE // PAGE) for k in range(_WINDOWS_MAX - 1)] + [(last, _SAMPLE // PAGE)]
    found = asked = 0
    for start, count in windows:
        here = cached_pages(fd, start, count * PAGE)
        if here < 0:
            break
        found += here
        asked += count
    else:
        return Cached(min(1.0, found / asked), "cachestat")
    return _by_mincore(fd, first, offset + length - first)


def _by_mincore(fd: int, first: int, length: int) -> Cached:
    """Before Linux 6.5, or where a filter hides cachestat: mincore on at most 64 windows spread over the range."""
    windows = min(_WINDOWS_MAX, -(-length // _WINDOW))
    step = -(-length // windows) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    asked = resident = 0
    for at in range(windows):
        start = first + at * step
        extent = min(_WINDOW, first + length - start)
        try:
            with mmap.mmap(fd, extent, mmap.MAP_SHARED, mmap.PROT_READ, offset=start) as mapping:
                view = np.frombuffer(mapping, np.uint8)
                found = resident_pages(view.ctypes.data, extent)
                del view
        except (OSError, ValueError):
            return Cached(None, "cachestat and mincore refused")
        if found < 0:
            return Cached(None, "cachestat and mincore refused")
        asked += -(-extent // PAGE)
        resident += found
    return Cached(resident / asked, "mincore")
