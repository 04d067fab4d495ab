"""Tries cuFile on one file in a process of its own, because opening cuFile's driver may never return. Prints JSON.

Run by path with ``python -I``: it imports nothing of vyre. Arguments: the file, and how many bytes to read at each of
three places. What cuFile has to say it writes to a log in the working directory, whose errors are passed on.

Owns: the calls of cuda.bindings.cufile. Leaves to others: what the answer means (cufile).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any


def main(path: str, count: int) -> dict[str, Any]:
    """What happened, step by step; ``step`` is the last one that was begun, ``error`` why it failed."""
    found: dict[str, Any] = {"step": "import cuda.bindings.cufile"}
    try:
        _try(path, count, found)
    except BaseException as error:  # whatever it is, the parent wants to name it
        found["error"] = f"{type(error).__name__}: {error}"
    try:
        with open("cufile.log") as log:
            found["log"] = [line.strip() for line in log if " ERROR " in line or " WARN " in line][-3:]
    except OSError:
        found["log"] = []
    return found


def _try(path: str, count: int, found: dict[str, Any]) -> None:
    from cuda.bindings import cufile
    from cuda.bindings import driver as cu

    def call(answer: Any) -> Any:
        if int(answer[0]) != 0:
            raise RuntimeError(answer[0].name)
        return answer[1] if len(answer) > 1 else None

    found["step"] = "start the GPU driver"
    call(cu.cuInit(0))
    call(cu.cuCtxSetCurrent(call(cu.cuDevicePrimaryCtxRetain(call(cu.cuDeviceGet(0))))))
    found["version"] = cufile.get_version()
    found["step"] = "open cuFile's driver"
    since = time.monotonic()
    cufile.driver_open()
    found["open_s"] = round(time.monotonic() - since, 3)
    properties = (ctypes.c_uint32 * 64)()
    cufile.driver_get_properties(ctypes.addressof(properties))
    # CUfileDrvProps: nvfs {u32 major, u32 minor, size_t poll threshold, size_t largest direct read, u32 status flags, ...}
    found["nvidia_fs"] = [int(properties[0]), int(properties[1])]
    found["status_flags"] = int(properties[6])
    found["step"] = "open the file with O_DIRECT"
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    found["step"] = "register the file"
    descriptor = cufile.Descr()
    descriptor.type = cufile.FileHandleType.OPAQUE_FD
    descriptor.handle.fd = fd
    descriptor.fs_ops = 0
    handle = cufile.handle_register(descriptor.ptr)
    found["step"] = "register GPU memory"
    memory = int(call(cu.cuMemAlloc(count)))
    cufile.buf_register(memory, count, 0)
    found["step"] = "read"
    size = os.fstat(fd).st_size
    mine = ctypes.create_string_buffer(count)
    with open(path, "rb") as plain:
        for place in sorted({0, size // 2 // 4096 * 4096, max(0, size - 1) // 4096 * 4096}):
            got = cufile.read(handle, memory, count, place, 0)
            call(cu.cuMemcpyDtoH(ctypes.addressof(mine), memory, count))
            expected = os.pread(plain.fileno(), count, place)
            if got != len(expected) or mine.raw[:got] != expected:
                raise RuntimeError(f"{got} bytes at offset {place} are not pread's {len(expected)}")
    found["step"] = "done"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
