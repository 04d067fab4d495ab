"""What a forked child must not do with mappings that it did not inherit (decision 33).

Rings and pools are MADV_DONTFORK: in a child their addresses are holes, which the child's own allocations may fill. If a
mapping's Python object died there, it would unmap what is in the hole by then. So the child keeps those objects for ever.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Final

_mappings: Final[weakref.WeakSet[mmap.mmap]] = weakref.WeakSet()
_kept: Final[list[mmap.mmap]] = []
_generation = 0


def not_inherited(mapping: mmap.mmap) -> None:
    """Leave a mapping out of forked children, and keep children from unmapping its address."""
    mapping.madvise(mmap.MADV_DONTFORK)
    _mappings.add(mapping)


def generation() -> int:
    """Forks between the first process and this one: what was made under another number belongs to a parent."""
    return _generation


def _in_child() -> None:
    global _generation
    _generation += 1
    _kept.extend(_mappings)
    _mappings.clear()


os.register_at_fork(after_in_child=_in_child)
