"""Native functions run by Python over the memory of this process: the way that needs no compiler, and is slow.

A chunk of 1 MiB costs some hundred microseconds here and one in compiled code. It is what engines without compiled code
read files with, and where tests put another kernel in.

Owns: what each intrinsic that the pump uses does when Python executes it. Leaves to others: the functions (pump).

One thread at a time: read-modify-writes are not atomic. Loads and stores of aligned words are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from vyre.native import WORD_MASK, current
from vyre.stream.syscalls import KERNEL, Kernel

_U32 = ctypes.c_uint32
_U64 = ctypes.c_uint64


class PythonMachine:
    """Executes intrinsics; ``kernel`` makes the system calls of io_uring."""

    def __init__(self, kernel: Kernel = KERNEL) -> None:
        self._kernel = kernel

    def intrinsic(self, name: str, args: tuple[int, ...]) -> int:
        found = _PLAIN.get(name)
        if found is not None:
            return found(*args)
        assert name == "io_uring_enter", name
        fd, submit, wait, flags, argument, size = args
        return self._kernel.enter(fd, submit, wait, flags, argument, size) & WORD_MASK

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While this lasts, native functions that this thread calls run here."""
        before, current.machine = current.machine, self
        try:
            yield
        finally:
            current.machine = before


def _load32(address: int) -> int:
    return _U32.from_address(address).value


def _load64(address: int) -> int:
    return _U64.from_address(address).value


def _store32(address: int, value: int) -> int:
    _U32.from_address(address).value = value & 0xFFFF_FFFF
    return 0


def _store64(address: int, value: int) -> int:
    _U64.from_address(address).value = value & WORD_MASK
    return 0


def _fetch_add32(address: int, value: int) -> int:
    cell = _U32.from_address(address)
    old = cell.value
    cell.value = (old + value) & 0xFFFF_FFFF
    return old


def _cas64(address: int, old: int, new: int) -> int:
    cell = _U64.from_address(address)
    if cell.value != old:
        return 0
    cell.value = new
    return 1


def _copy(to: int, source: int, size: int) -> int:
    ctypes.memmove(to, source, size)
    return 0


def _pread(fd: int, address: int, size: int, offset: int) -> int:
    try:
        return os.preadv(fd, [(ctypes.c_char * min(size, 0x7FFF_F000)).from_address(address)], offset)
    except OSError as error:
        return -(error.errno or 0) & WORD_MASK


def _will_need(fd: int, offset: int, size: int) -> int:
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)
    return 0


def _signed_less(a: int, b: int) -> int:
    return int((a ^ 1 << 63) < (b ^ 1 << 63))


def _futex_wait(address: int, expected: int, ns: int) -> int:
    time.sleep(min(ns, 1_000_000) / 1e9)  # nobody else runs who could ring
    return 0


def _nothing(*_: int) -> int:
    return 0


_PLAIN: Final[dict[str, Callable[..., int]]] = {
    "load32": _load32,
    "load64": _load64,
    "load32_acquire": _load32,
    "load64_acquire": _load64,
    "load32_seqcst": _load32,
    "load64_seqcst": _load64,
    "store32": _store32,
    "store64": _store64,
    "store32_release": _store32,
    "store64_release": _store64,
    "fetch_add32": _fetch_add32,
    "cas64": _cas64,
    "copy": _copy,
    "pread": _pread,
    "will_need": _will_need,
    "signed_less": _signed_less,
    "futex_wait": _futex_wait,
    "futex_wake": _nothing,
    "fence": _nothing,
    "now_ns": time.monotonic_ns,
    "thread_ns": time.thread_time_ns,
}
