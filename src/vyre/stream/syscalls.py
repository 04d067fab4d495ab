"""The system calls that Python's os module does not have, through ctypes.

Owns: libc's ``syscall``, numbers, and the shape of what they take and give. The three of io_uring are methods of
``Kernel``, so that a test can hand in another one: LD_PRELOAD does not reach raw system calls.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final, NamedTuple

_libc: Final = ctypes.CDLL(None, use_errno=True)
_quick: Final = ctypes.PyDLL(None, use_errno=True)
"""Keeps the GIL, for calls that never wait for a device: beside a busy thread, getting it back takes 5 ms."""
_syscall: Final = _libc.syscall
_quick_syscall: Final = _quick.syscall
for _call in (_syscall, _quick_syscall):
    _call.restype = ctypes.c_long
    _call.argtypes = [ctypes.c_long] * 7

# The same numbers on x86-64 and aarch64.
IO_URING_SETUP: Final = 425
IO_URING_ENTER: Final = 426
IO_URING_REGISTER: Final = 427
CACHESTAT: Final = 451

_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
_STATX_BYTES: Final = 256


def syscall(number: int, *arguments: int) -> int:
    """Make a system call without the GIL. Returns its result, or minus errno."""
    result: int = _syscall(number, *arguments, *(0,) * (6 - len(arguments)))
    return -ctypes.get_errno() if result < 0 else result


class Kernel:
    """io_uring's three system calls; each returns its result, or minus errno."""

    def setup(self, entries: int, params_address: int) -> int:
        return syscall(IO_URING_SETUP, entries, params_address)

    def enter(self, fd: int, submit: int, wait: int, flags: int, argument: int, argument_bytes: int) -> int:
        result: int = _syscall(IO_URING_ENTER, fd, submit, wait, flags, argument, argument_bytes)
        return -ctypes.get_errno() if result < 0 else result

    def register(self, fd: int, opcode: int, argument: int, count: int) -> int:
        return syscall(IO_URING_REGISTER, fd, opcode, argument, count)


KERNEL: Final = Kernel()


class DirectAlignment(NamedTuple):
    """What O_DIRECT asks of a file, in bytes: of the address in memory and of offset and length in the file."""

    memory: int
    offset: int


def direct_alignment(fd: int) -> DirectAlignment | None:
    """The alignment of direct I/O that statx reports, or None: no direct I/O here, or none that the kernel vouches for.

    That a file opens with O_DIRECT proves nothing: tmpfs and btrfs take the flag and read through the page cache.

    Source:
        statx(2), STATX_DIOALIGN (Linux 6.1).
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        statx = _libc.statx
    except AttributeError:
        return None
    if statx(fd, ctypes.c_char_p(b""), _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) != 0:
        return None
    (mask,) = struct.unpack_from("<I", buffer, 0)
    memory, offset = struct.unpack_from("<II", buffer, 152)
    if not mask & _STATX_DIOALIGN or offset == 0 or memory == 0:
        return None
    return DirectAlignment(memory, offset)


def cached_pages(fd: int, offset: int, length: int) -> int:
    """Pages of a byte range that are in the page cache, or minus errno.

    Source:
        cachestat(2), Linux 6.5: range {u64 offset, u64 length}, result of five u64 whose first is nr_cache.
    """
    where = ctypes.create_string_buffer(struct.pack("<QQ", offset, length), 16)
    found = ctypes.create_string_buffer(40)
    if _quick_syscall(CACHESTAT, fd, ctypes.addressof(where), ctypes.addressof(found), 0, 0, 0) < 0:
        return -ctypes.get_errno()
    return int(struct.unpack_from("<Q", found, 0)[0])


def resident_pages(address: int, length: int) -> int:
    """Pages of a mapping that are in memory, or minus errno (mincore)."""
    pages = -(-length // 4096)
    vector = ctypes.create_string_buffer(pages)
    mincore = _libc.mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    if mincore(address, length, vector) != 0:
        return -ctypes.get_errno()
    return sum(byte & 1 for byte in vector.raw)
