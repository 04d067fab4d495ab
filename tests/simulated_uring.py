"""An io_uring in Python: the three system calls over a memfd that has the ring's layout.

What a real kernel seldom does on demand is a parameter here: order of completions, short reads, errors per read, refused
set-up flags, registering and entering that fail. Reads are done with ``os.pread``, so bytes and ends of files are real.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import struct

from vyre.stream import uring
from vyre.stream.syscalls import Kernel


class SimulatedKernel(Kernel):
    """Attributes set by tests:

    shuffle: random.Random that picks the completions of each ``enter`` and their order; None completes at once in order.
    shorten: function(length) -> length that a read may fill at most.
    fail: function(entry dict) -> errno or 0, for each read.
    setup_errno, register_errno, enter_errno: answers of the calls, 0 for success.
    flags_known: set-up flags that this "kernel version" knows.
    """

    def __init__(self, *, flags_known=uring.FLAG_LADDER[0], shuffle=None):
        self.flags_known = flags_known
        self.shuffle = shuffle
        self.shorten = lambda length: length
        self.fail = lambda entry: 0
        self.setup_errno = self.register_errno = self.enter_errno = 0
        self.log = []
        self.waiting = []
        self.buffers = []
        self.inversions = 0

    def setup(self, entries, params_address):
        params = (ctypes.c_uint32 * 30).from_address(params_address)
        self.flags = params[2]
        if self.setup_errno:
            return -self.setup_errno
        if self.flags & ~self.flags_known:
            return -errno.EINVAL
        self.entries = entries
        fd = os.memfd_create("simulated-uring")
        os.ftruncate(fd, 0x1000_0000 + entries * 64)
        params[0], params[1], params[5] = entries, 2 * entries, 0x3FFFF
        params[10:17] = [0, 64, 128, 132, 136, 140, 2048]  # head, tail, mask, entries, flags, dropped, array
        params[20:26] = [256, 320, 384, 388, 392, 4096]  # head, tail, mask, entries, overflow, cqes
        self.ring = mmap.mmap(fd, 4096 + 2 * entries * 16)
        self.sqes = mmap.mmap(fd, entries * 64, offset=0x1000_0000)
        self._store(128, entries - 1)
        self._store(384, 2 * entries - 1)
        return fd

    def _load(self, at):
        return struct.unpack_from("<I", self.ring, at)[0]

    def _store(self, at, value):
        struct.pack_into("<I", self.ring, at, value & 0xFFFF_FFFF)

    def register(self, fd, opcode, argument, count):
        if self.register_errno:
            return -self.register_errno
        words = (ctypes.c_uint64 * (2 * count)).from_address(argument)
        self.buffers = [(words[2 * at], words[2 * at + 1]) for at in range(count)]
        return 0

    def enter(self, fd, submit, wait, flags, argument, argument_bytes):
        if self.enter_errno:
            return -self.enter_errno
        head, tail = self._load(0), self._load(64)
        for at in range(head, min(tail, head + submit)):
            slot = at % self.entries
            if not self.flags & uring.SETUP_NO_SQARRAY:
                slot = self._load(2048 + 4 * slot)
            self._accept(slot)
        self._store(0, min(tail, head + submit))
        take = len(self.waiting)
        if self.shuffle is not None and take:
            free = [at for at, entry in enumerate(self.waiting) if at == 0 or not entry["flags"] & uring.SQE_DRAIN]
            take = self.shuffle.randint(min(wait, len(free)), len(free))
            order = self.shuffle.sample(free, take)
            self.inversions += sum(a > b for a, b in itertools.pairwise(order))
            done = [self.waiting[at] for at in order]
            self.waiting = [w for at, w in enumerate(self.waiting) if at not in set(order)]
        else:
            done, self.waiting = self.waiting, []
        for entry in done:
            self._complete(entry)
        return submit

    def _accept(self, slot):
        fields = struct.unpack_from("<BBHiQQIIQHHiQQ", self.sqes, slot * 64)
        names = ("opcode", "flags", "ioprio", "fd", "offset", "address", "length", "rw", "user_data", "buffer")
        entry = dict(zip(names, fields, strict=False))
        self.log.append(entry)
        if entry["opcode"] == uring.ASYNC_CANCEL:
            for waiting in self.waiting:
                waiting["cancelled"] = True
        self.waiting.append(entry)

    def _complete(self, entry):
        result = self._result(entry)
        tail = self._load(320)
        struct.pack_into("<QiI", self.ring, 4096 + (tail % (2 * self.entries)) * 16, entry["user_data"], result, 0)
        self._store(320, tail + 1)

    def _result(self, entry):
        if entry["opcode"] in (uring.NOP, uring.ASYNC_CANCEL):
            return 0
        if entry.get("cancelled"):
            return -errno.ECANCELED
        code = self.fail(entry)
        if code:
            return -code
        length = min(entry["length"], self.shorten(entry["length"]))
        if entry["opcode"] == uring.READ_FIXED:
            start, extent = self.buffers[entry["buffer"]]
            if not start <= entry["address"] <= entry["address"] + entry["length"] <= start + extent:
                return -errno.EFAULT
        target = (ctypes.c_char * length).from_address(entry["address"])
        try:
            return os.preadv(entry["fd"], [memoryview(target)], entry["offset"])
        except OSError as error:
            return -error.errno
