"""Reading with ``preadv``: the oracle that other ways are compared with, and the way that always works."""

from __future__ import annotations

import errno
import os

from vyre.errors import StreamError
from vyre.stream.source import File, shrank, stream_error

READ_MAX = 0x7FFF_F000  # Linux reads no more in one call


def read_exactly(file: File, buffer: memoryview, offset: int, *, fd: int | None = None) -> int:
    """Fill ``buffer`` with the bytes of ``file`` from ``offset`` on. Short reads are continued, EINTR is retried.

    Args:
        buffer: writable, C-contiguous bytes; filled up to where an error struck.
        fd: read through another descriptor of the same file.
    Returns:
        Calls that were needed.
    Raises:
        StreamError: the file ended before the bytes that it had when it was opened, or the device failed.
    """
    fd = file.fd if fd is None else fd
    done = calls = 0
    while done < len(buffer):
        calls += 1
        try:
            got = os.preadv(fd, [buffer[done : done + READ_MAX]], offset + done)
        except InterruptedError:
            continue
        except OSError as error:
            raise read_failed(file, offset + done, len(buffer) - done, error.errno or 0) from None
        if got == 0:
            raise shrank(file, offset, len(buffer))
        done += got
    return calls


def read_failed(file: File, offset: int, expected: int, code: int) -> StreamError:
    """The error for a read that the kernel refused: file, offset, length, errno."""
    name = errno.errorcode.get(code, str(code))
    return stream_error(
        f"{file.path}: {os.strerror(code)} ({name}) at offset {offset}, {expected} bytes expected",
        fix="the device or file system failed: see dmesg" if code == errno.EIO else "",
        code=code,
    )
