"""io_uring over its three system calls: a ring that reads files into memory of ours. No liburing, no binding.

Owns: set-up and its flags, the two queues, registered buffers, what the kernel's refusals mean. Leaves to others: which
reads to make (reader), the memory they fill (pool).

One thread owns a ring: the one that made it (SINGLE_ISSUER). Without SQPOLL the kernel looks at the submission queue
only inside our own ``enter``, which is a full barrier, so filling it needs no order. The completion queue's tail is
written by the kernel: with DEFER_TASKRUN only inside our ``enter``, otherwise whenever our thread enters the kernel; its
entries are read after it, which x86-64 keeps in order. Elsewhere ``available`` refuses.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from collections.abc import Sequence
from typing import Final, Self

from vyre.errors import StreamError
from vyre.stream import frames
from vyre.stream.forking import generation, not_inherited
from vyre.stream.syscalls import KERNEL, Kernel

READ_FIXED: Final = 4
READ: Final = 22
ASYNC_CANCEL: Final = 14
NOP: Final = 0
SQE_DRAIN: Final = 1 << 1
CANCEL_ALL_ANY: Final = (1 << 0) | (1 << 2)

SETUP_SUBMIT_ALL: Final = 1 << 7
SETUP_SINGLE_ISSUER: Final = 1 << 12
SETUP_DEFER_TASKRUN: Final = 1 << 13
SETUP_NO_SQARRAY: Final = 1 << 16
# The newest flag falls first; each line runs on every kernel that the line above runs on.
FLAG_LADDER: Final = (
    SETUP_SUBMIT_ALL | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_NO_SQARRAY,  # Linux 6.6
    SETUP_SUBMIT_ALL | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN,  # 6.1
    SETUP_SUBMIT_ALL | SETUP_SINGLE_ISSUER,  # 6.0
    SETUP_SUBMIT_ALL,  # 5.18
    0,
)
_FEAT_SINGLE_MMAP: Final = 1 << 0
_FEAT_EXT_ARG: Final = 1 << 8
_ENTER_GETEVENTS: Final = 1 << 0
_ENTER_EXT_ARG: Final = 1 << 3
_REGISTER_BUFFERS: Final = 0
_OFF_SQ_RING: Final = 0
_OFF_SQES: Final = 0x1000_0000

REGISTERED_BUFFER_MAX: Final = 1 << 30  # bytes; a longer one is EFAULT
_PARAMS_BYTES: Final = 120
_SQE_BYTES: Final = 64
_CQE_BYTES: Final = 16
# opcode, flags, ioprio, fd, off, addr, len, rw_flags, user_data, buf_index, personality, splice_fd, addr3, pad
_SQE: Final = struct.Struct("<BBHiQQIIQHHiQQ")
_CQE: Final = struct.Struct("<QiI")
_WAIT: Final = struct.Struct("<QIIQ")  # io_uring_getevents_arg: sigmask, its size, min_wait, address of a timespec
_TIMESPEC: Final = struct.Struct("<qq")
assert _SQE.size == _SQE_BYTES
assert _CQE.size == _CQE_BYTES


class Ring:
    """One io_uring. Made, used and closed by one thread.

    Attributes:
        entries: reads that may be queued between two ``submit``.
        flags: the set-up flags that this kernel took.
        registered: buffers that the kernel holds; 0 until ``register_buffers``.
    """

    def __init__(self, entries: int = 64, *, kernel: Kernel = KERNEL) -> None:
        """Set up a ring.

        Args:
            entries: a power of two.
        Raises:
            StreamError: this kernel or its surroundings refuse io_uring; says which and what to change.
        """
        self._kernel = kernel
        self._generation = generation()
        self.registered = 0
        params = ctypes.create_string_buffer(_PARAMS_BYTES)
        result = -errno.EINVAL
        for flags in FLAG_LADDER:
            params.raw = bytes(8) + struct.pack("<I", flags) + bytes(_PARAMS_BYTES - 12)
            result = kernel.setup(entries, ctypes.addressof(params))
            if result != -errno.EINVAL:
                break
        if result < 0:
            raise refused("io_uring_setup", -result)
        self.fd = result
        self.flags = flags
        cq_entries: int
        self.entries: int
        self.entries, cq_entries = struct.unpack_from("<II", params, 0)
        (features,) = struct.unpack_from("<I", params, 20)
        sq_head, sq_tail, sq_mask, _, _, _, sq_array = struct.unpack_from("<7I", params, 40)
        cq_head, cq_tail, cq_mask, _, _, cqes = struct.unpack_from("<6I", params, 80)
        if not (features & _FEAT_SINGLE_MMAP and features & _FEAT_EXT_ARG):
            os.close(self.fd)
            raise StreamError("io_uring of this kernel is too old: it needs Linux 5.11 (features EXT_ARG, SINGLE_MMAP)")
        try:
            length = cqes + cq_entries * _CQE_BYTES
            if not flags & SETUP_NO_SQARRAY:
                length = max(length, sq_array + 4 * self.entries)
            self._rings_map = mmap.mmap(self.fd, length, offset=_OFF_SQ_RING)
            self._sqes_map = mmap.mmap(self.fd, self.entries * _SQE_BYTES, offset=_OFF_SQES)
            for mapping in (self._rings_map, self._sqes_map):
                not_inherited(mapping)
        except OSError as error:
            os.close(self.fd)
            raise refused("mmap of the ring", error.errno or 0) from None
        self._rings = memoryview(self._rings_map)
        words = self._rings[: length // 4 * 4].cast("I")
        self._words = words
        self._sq_head, self._sq_tail = sq_head // 4, sq_tail // 4
        self._cq_head, self._cq_tail = cq_head // 4, cq_tail // 4
        self._sq_mask, self._cq_mask = words[sq_mask // 4], words[cq_mask // 4]
        self._cqes = cqes
        self._tail = words[self._sq_tail]
        if not flags & SETUP_NO_SQARRAY:
            for at in range(self.entries):
                words[sq_array // 4 + at] = at
        self._timespec = ctypes.create_string_buffer(_TIMESPEC.size)
        self._wait = ctypes.create_string_buffer(_WAIT.size)
        self._wait.raw = _WAIT.pack(0, 0, 0, ctypes.addressof(self._timespec))
        self._wait_address = ctypes.addressof(self._wait)

    def register_buffers(self, buffers: Sequence[tuple[int, int]]) -> None:
        """Pin memory for READ_FIXED; ``buffers`` are (address, bytes), each at most 1 GiB. Once per ring.

        Raises:
            StreamError: with the cause, ENOMEM above all: the limit of locked memory.
        """
        self._check_owner()
        vector = (ctypes.c_uint64 * (2 * len(buffers)))(*(word for buffer in buffers for word in buffer))
        result = self._kernel.register(self.fd, _REGISTER_BUFFERS, ctypes.addressof(vector), len(buffers))
        if result < 0:
            raise refused("registering buffers", -result, sum(length for _, length in buffers))
        self.registered = len(buffers)

    def places(self) -> dict[int, int]:
        """Addresses of the two queues, by the words of the pump's block that take them (frames.py)."""
        base, sqes = address_of(self._rings_map), address_of(self._sqes_map)
        return {
            frames.P_URING: self.fd,
            frames.P_SQ_HEAD: base + 4 * self._sq_head,
            frames.P_SQ_TAIL: base + 4 * self._sq_tail,
            frames.P_SQ_MASK: self._sq_mask,
            frames.P_SQES: sqes,
            frames.P_CQ_HEAD: base + 4 * self._cq_head,
            frames.P_CQ_TAIL: base + 4 * self._cq_tail,
            frames.P_CQ_MASK: self._cq_mask,
            frames.P_CQES: base + self._cqes,
        }

    def room(self) -> int:
        """Entries that can be queued before the next ``submit``."""
        queued: int = (self._tail - self._words[self._sq_head]) & 0xFFFF_FFFF
        return self.entries - queued

    def read(self, fd: int, address: int, length: int, offset: int, user_data: int, buffer: int | None = None) -> None:
        """Queue one read.

        Args:
            address, length: where the bytes go. Yours again once the completion was seen.
            buffer: index of the registered buffer that holds them all; None for memory that is not registered.
        """
        assert self.room() > 0, "submit first"
        opcode, index = (READ, 0) if buffer is None else (READ_FIXED, buffer)
        self._queue(opcode, fd, offset, address, length, 0, user_data, index)

    def cancel_all(self, user_data: int) -> None:
        """Queue a request to cancel every read in flight; those that a device works on complete all the same."""
        if self.room() > 0:
            self._queue(ASYNC_CANCEL, -1, 0, 0, 0, CANCEL_ALL_ANY, user_data, 0)

    def nop(self, user_data: int, *, last: bool = False) -> None:
        """Queue an entry that only completes; with ``last`` not before everything that was queued earlier."""
        assert self.room() > 0, "submit first"
        self._queue(NOP, -1, 0, 0, 0, 0, user_data, 0, SQE_DRAIN if last else 0)

    def _queue(
        self,
        opcode: int,
        fd: int,
        offset: int,
        address: int,
        length: int,
        flags: int,
        user_data: int,
        buffer: int,
        how: int = 0,
    ) -> None:
        at = (self._tail & self._sq_mask) * _SQE_BYTES
        _SQE.pack_into(
            self._sqes_map, at, opcode, how, 0, fd, offset, address, length, flags, user_data, buffer, 0, 0, 0, 0
        )
        self._tail = (self._tail + 1) & 0xFFFF_FFFF
        self._words[self._sq_tail] = self._tail

    def submit(self, wait: int = 0, timeout_s: float | None = None) -> None:
        """Hand queued reads to the kernel and let it post completions.

        Args:
            wait: return only when so many completions are there, or a signal came.
            timeout_s: or when so much time has passed.
        Raises:
            StreamError: the ring cannot be used (from another thread, after fork, blocked meanwhile).
        """
        self._check_owner()
        flags, argument, argument_bytes = _ENTER_GETEVENTS, 0, 0
        if wait and timeout_s is not None:
            _TIMESPEC.pack_into(self._timespec, 0, int(timeout_s), int(timeout_s % 1 * 1e9))
            flags, argument, argument_bytes = flags | _ENTER_EXT_ARG, self._wait_address, _WAIT.size
        queued = (self._tail - self._words[self._sq_head]) & 0xFFFF_FFFF
        result = self._kernel.enter(self.fd, queued, wait, flags, argument, argument_bytes)
        # EBUSY and EAGAIN: the kernel has no room just now; what is queued stays and goes with the next call.
        if result < 0 and -result not in (errno.EINTR, errno.ETIME, errno.EBUSY, errno.EAGAIN):
            raise refused("io_uring_enter", -result)

    def completions(self) -> list[tuple[int, int]]:
        """Take what has completed, in whatever order: (user_data, bytes read or minus errno)."""
        self._check_owner()
        words, head = self._words, self._words[self._cq_head]
        tail = words[self._cq_tail]
        found = []
        while head != tail:
            user_data, result, _ = _CQE.unpack_from(self._rings, self._cqes + (head & self._cq_mask) * _CQE_BYTES)
            found.append((user_data, result))
            head = (head + 1) & 0xFFFF_FFFF
        # Only now may the kernel write over them.
        words[self._cq_head] = head
        return found

    def _check_owner(self) -> None:
        if self.fd < 0:
            raise StreamError("the io_uring is closed")
        if self._generation != generation():
            raise StreamError(
                "the io_uring belongs to the parent process: a ring does not survive fork",
                fix="open the stream after fork, or start processes with spawn",
            )

    def close(self) -> None:
        """Give the ring back. No read may be in flight: see Reader.close. Calling it again does nothing."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        if self._generation == generation():  # in a forked child the maps do not exist (MADV_DONTFORK)
            self._words.release()
            self._rings.release()
            self._rings_map.close()
            self._sqes_map.close()
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def address_of(mapping: mmap.mmap) -> int:
    """Where a mapping lies."""
    found = ctypes.c_char.from_buffer(mapping)
    address = ctypes.addressof(found)
    del found
    return address


def available(kernel: Kernel = KERNEL) -> str | None:
    """Why io_uring cannot be used here, or None when it can. Sets up a small ring and gives it back."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"io_uring: order of memory on {platform.machine()} is not covered without a native helper"
    try:
        Ring(4, kernel=kernel).close()
    except StreamError as error:
        return error.message
    return None


def refused(call: str, code: int, length: int = 0) -> StreamError:
    """The error for a refusal of the kernel: the call, its errno, the cause as far as it can be seen, what to change."""
    name = errno.errorcode.get(code, str(code))
    causes, fix = [], ""
    if code == errno.EPERM:
        disabled = _read("/proc/sys/kernel/io_uring_disabled")
        seccomp = _status("Seccomp")
        if disabled in ("1", "2"):
            causes.append(f"kernel.io_uring_disabled is {disabled}")
            fix = "sysctl kernel.io_uring_disabled=0"
            if disabled == "1":
                fix += ", or CAP_SYS_ADMIN, or membership in kernel.io_uring_group"
        if seccomp == "2":
            causes.append("a seccomp filter is in force, as containers have")
            fix = fix or "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
        if not causes:
            capability = int(_status("CapEff") or "0", 16) >> 21 & 1
            causes.append(f"no sysctl and no filter to be seen, CAP_SYS_ADMIN {'held' if capability else 'missing'}")
    elif code == errno.ENOSYS:
        seccomp = _status("Seccomp")
        causes.append("a seccomp filter hides it" if seccomp == "2" else "the kernel was built without it")
    elif code == errno.ENOMEM:
        limit = _limit("Max locked memory")
        causes.append(f"{length >> 10} KiB wanted, locked memory limited to {limit}" if length else f"limit {limit}")
        fix = "ulimit -l unlimited, or CAP_IPC_LOCK"
    elif code == errno.EEXIST:
        causes.append("the ring belongs to another thread or, after fork, another process")
        fix = "drive a stream from the thread that started it"
    text = f"{call}: {name}" + (f" ({'; '.join(causes)})" if causes else f" ({os.strerror(code)})")
    error = StreamError(text, fix=fix)
    error.errno = code
    return error


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _status(field: str) -> str:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith(field + ":"):
            return line.split(":", 1)[1].strip()
    return ""


def _limit(field: str) -> str:
    for line in _read("/proc/self/limits").splitlines():
        if line.startswith(field):
            soft = line[len(field) :].split()[0]
            return soft if not soft.isdigit() else f"{int(soft) >> 10} KiB"
    return "an unknown size"
