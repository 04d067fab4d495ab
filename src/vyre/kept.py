"""IR of native functions, lowered once for a version of their sources and kept in the store.

Owns: the key. Leaves to others: lowering (native), compiling (jit), keeping (store).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from hashlib import blake2b
from pathlib import Path

from vyre.jit import ObjectStore
from vyre.native import Unit


def kept_ir(unit: Callable[[], Unit], arch: str, exports: Collection[str], store: ObjectStore | None) -> str:
    """What ``unit().ir(arch, exports)`` gives: from the store while no source that it could come from has changed.

    Lowering the protocol takes 60 ms and more, which a process that starts need not spend twice.
    """
    if store is None:
        return unit().ir(arch, exports)
    key = b"native ir " + blake2b(f"{arch} {sorted(exports)}".encode() + _sources(), digest_size=32).digest()
    kept = store.get(key)
    if kept is not None:
        return kept.decode()
    text = unit().ir(arch, exports)
    store.put(key, text.encode())
    return text


@cache
def _sources() -> bytes:
    """A digest of all that native functions are written in."""
    root = Path(__file__).resolve().parent
    paths = [root / "native.py"]
    names = ("opcodes", "analysis", "kinds", "words", "straight_check", "formula", "formula_layout", "formula_values")
    paths += [root / "program" / f"{name}.py" for name in names]
    paths += [root / "stream" / f"{name}.py" for name in ("frames", "handover", "requests", "pump")]
    for folder in (root / "ring", root / "engines" / "cpu", root / "engines" / "cuda"):
        paths += sorted(folder.glob("*.py"))
    digest = blake2b(digest_size=32)
    for path in paths:
        digest.update(path.read_bytes())
    return digest.digest()
