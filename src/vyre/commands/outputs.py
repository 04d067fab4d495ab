"""Files that a command writes: whole under their final name, or not there at all (behaviour 36).

Owns: the temporary file and its renaming. Leaves to others: what is in it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vyre.errors import StreamError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name when the block ends well, and leaves nothing when it does not.

    A path that is there and is no regular file (/dev/null, a named pipe) is written to directly.

    Raises:
        StreamError: it cannot be created, written (disk full, pipe closed) or renamed. What was under that name
            before is as it was.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise StreamError(f"{path}: is a directory", fix="name a file")
    if not stat.S_ISREG(mode):
        try:
            with path.open("wb") as file:
                yield file
        except OSError as error:
            raise _failed(path, error) from None
        return
    target = path.resolve()  # through a symlink, so that it stays one
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(target)
    except OSError as error:
        raise _failed(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _failed(path: Path, error: OSError) -> StreamError:
    if isinstance(error, StreamError):
        return error
    failed = StreamError(
        f"{path}: cannot be written: {error.strerror or error}; nothing was left under that name",
        fix="free space on that disk, or write elsewhere" if error.errno == 28 else "",
    )
    failed.errno = error.errno
    return failed
