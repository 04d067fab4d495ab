"""Content-addressed store on disk: a key of bytes in, the same bytes out or nothing.

Owns: where cached files live, how one is written so that no reader ever sees half of it, how a damaged one is told
from a whole one. Leaves to others: what a key covers (the caller says it, ``key_of`` helps), what the bytes mean.

The store never raises for what a disk does. A root that cannot be written, a full disk, a damaged or foreign entry:
the caller gets a miss and does the work again; ``Store.problem`` says why, for ``vyre doctor``.

An entry is one file, named by the hash of its key:

    8 bytes   magic and version, b"VYRESTO1"
    8 bytes   length of the data, u64, little-endian
    32 bytes  BLAKE2b-256 over magic, length, key digest and data
    n bytes   data, to the end of the file
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

MAGIC: Final = b"VYRESTO1"
HEADER_BYTES: Final = 48
MAX_ENTRY_BYTES: Final = 256 << 20
STALE_AFTER_S: Final = 3_600.0
"""A temporary file older than this was left by a writer that died; the next writer removes it."""

_TEMPORARY: Final = ".writing-"


def platform_cache_dir() -> Path | None:
    """Directory ``vyre`` below the platform's cache directory, or None when this user has none. Creates nothing.

    ``$XDG_CACHE_HOME`` when it is an absolute path (unset, empty and relative ones count as unset), else ``~/.cache``.

    Source:
        XDG Base Directory Specification 0.8: a relative path there is invalid and is to be ignored.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if given and os.path.isabs(given):
        return Path(given) / "vyre"
    try:
        return Path.home() / ".cache" / "vyre"
    except RuntimeError:  # no $HOME and no entry in the password database
        return None


def key_of(parts: Mapping[str, bytes | str | int]) -> bytes:
    """A key that covers every named part: the same in each process and whatever the order of declaration.

    Args:
        parts: name -> value. b"1", "1" and 1 are three different values; so are {"ab": "c"} and {"a": "bc"}.
    Returns:
        32 bytes for ``Store.get`` and ``Store.put``.
    Raises:
        TypeError: a value is none of bytes, str, int.
    """
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(parts):
        value = parts[name]
        if isinstance(value, bytes):
            kind, raw = b"b", value
        elif isinstance(value, str):
            kind, raw = b"s", value.encode("utf-8", "surrogatepass")
        elif isinstance(value, int):
            kind, raw = b"i", str(int(value)).encode()
        else:
            raise TypeError(f"part {name!r} of a store key is a {type(value).__name__}: give bytes, str or int")
        for piece in (name.encode("utf-8", "surrogatepass"), kind, raw):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.digest()


class Store:
    """A directory of entries. Any number of threads and processes may use one at the same time.

    Attributes:
        root: where entries lie, or None when the platform has no place for them; then every ``get`` is a miss.
        problem: why the last ``put`` was not kept, in plain words; "" when it was.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Open the store below ``root``, by default ``<platform cache>/vyre/objects``. Touches no disk."""
        if root is None:
            cache = platform_cache_dir()
            root = None if cache is None else cache / "objects"
        self.root = root
        self.problem = "" if root is not None else "this user has no cache directory (HOME is not set)"

    def path(self, key: bytes | str) -> Path | None:
        """File of ``key``'s entry, there or not; None when the store has no root."""
        return None if self.root is None else self.root / _name(_digest_of(key))

    def get(self, key: bytes | str) -> bytes | None:
        """Bytes that were stored under ``key``, or None: never other bytes, never an error.

        An entry that is absent, flipped in any bit, cut, extended, larger than ``MAX_ENTRY_BYTES``, filed under
        another key, a symlink, not a regular file, or owned by another user (root excepted) is a miss.
        """
        if self.root is None:
            return None
        key_digest = _digest_of(key)
        try:
            raw = _read_entry(os.path.join(self.root, _name(key_digest)))
        except (OSError, ValueError):
            return None
        if raw is None or raw[:8] != MAGIC or int.from_bytes(raw[8:16], "little") != len(raw) - HEADER_BYTES:
            return None
        data = raw[HEADER_BYTES:]
        return data if raw[16:HEADER_BYTES] == _seal(raw[:16], key_digest, data) else None

    def put(self, key: bytes | str, data: bytes) -> None:
        """Keep ``data`` under ``key``, replacing what was there, whole or not at all.

        Written to a temporary file beside the entry and renamed over it, so a reader sees the old entry or the new
        one, and a writer that dies in between leaves the old one. Not synced: after a power cut the seal tells.
        Data above ``MAX_ENTRY_BYTES`` is not kept. What the disk refuses is noted in ``problem``, never raised.
        """
        if self.root is None:
            return
        if len(data) > MAX_ENTRY_BYTES:
            self.problem = f"an entry of {len(data):,} bytes is above the limit of {MAX_ENTRY_BYTES:,}"
            return
        key_digest = _digest_of(key)
        head = MAGIC + len(data).to_bytes(8, "little")
        temporary = os.path.join(self.root, f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}")
        try:
            os.makedirs(self.root, mode=0o700, exist_ok=True)
            self._remove_stale()
            try:
                _write_new(temporary, (head, _seal(head, key_digest, data), data))
                os.replace(temporary, os.path.join(self.root, _name(key_digest)))
            except BaseException:
                _unlink(temporary)
                raise
        except (OSError, ValueError) as error:
            self.problem = f"cannot write below {self.root}: {getattr(error, 'strerror', None) or error}"
        else:
            self.problem = ""

    def _remove_stale(self) -> None:
        """Remove temporary files of writers that died. Costs one look at the directory."""
        assert self.root is not None
        before = time.time() - STALE_AFTER_S
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith(_TEMPORARY):
                    try:
                        if entry.stat(follow_symlinks=False).st_mtime < before:
                            os.unlink(entry.path)
                    except OSError:  # its writer, or another of us, was faster
                        pass


def _digest_of(key: bytes | str) -> bytes:
    raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else bytes(key)
    return hashlib.blake2b(raw, digest_size=32, person=b"vyre store key").digest()


def _name(key_digest: bytes) -> str:
    return key_digest.hex()


def _seal(head: bytes, key_digest: bytes, data: bytes) -> bytes:
    digest = hashlib.blake2b(head, digest_size=32, person=b"vyre store")
    digest.update(key_digest)
    digest.update(data)
    return digest.digest()


def _read_entry(path: str) -> bytes | None:
    # O_NOFOLLOW refuses a symlink in the last component; O_NONBLOCK keeps a planted FIFO from hanging us.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0):
            return None
        if not HEADER_BYTES <= status.st_size <= HEADER_BYTES + MAX_ENTRY_BYTES:
            return None
        with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
            raw = file.read(status.st_size)
        return raw if raw is not None and len(raw) == status.st_size else None
    finally:
        os.close(fd)


def _write_new(path: str, pieces: tuple[bytes, ...]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
