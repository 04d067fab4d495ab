"""The first start on a machine: a kernel that is compiled quickly serves at once, the optimised one takes over later.

NVRTC takes 10 to 30 s for the optimised kernel and 2 to 3 s for a quick one that gives the same bits. A process of its
own compiles the optimised one into the store, so that nobody waits for it at the end of this process either; when it is
there, the engine loads it between two stays.

Owns: who compiles what, and when the kernel is changed. Leaves to others: compiling (compile), loading (driver).
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from vyre.engines.cuda.compile import can_be_quick, compile_kernel, kept_kernel
from vyre.store import Store

log: Final = logging.getLogger("vyre")
LOOK_EVERY_S: Final = 0.1
_RUNNING: Final[list[Any]] = []
"""Compilers that were started here. A session may be closed before they are done; they are not to be waited for, and
Python complains of a running process that nobody holds."""


def kernel_for(arch: int, store: Store | None, blocks: int, quick_start: bool) -> tuple[bytes, Successor | None]:
    """The best kernel that is to be had at once, and who brings a better one; None when there is none better.

    Where nobody wants a quick start, without a store, or with an NVRTC that has no quick way, the optimised kernel is
    compiled here and now.
    """
    kept = kept_kernel(arch, store, blocks)
    if kept is not None:
        return kept, None
    if not quick_start or store is None or store.root is None or not sys.executable or not can_be_quick():
        log.warning("vyre: compiling the GPU kernel for sm_%d, which takes 10 to 30 seconds", arch)
        return compile_kernel(arch, store, blocks), None
    log.warning(
        "vyre: first start on this kind of GPU: compiling the kernel for sm_%d quickly (2 to 3 s); the optimised one is "
        "compiled in the background and kept in %s", arch, store.root,
    )  # fmt: skip
    successor = Successor(arch, store, blocks)
    return compile_kernel(arch, store, blocks, quick=True), successor


class Successor:
    """The optimised kernel, while another process compiles it."""

    def __init__(self, arch: int, store: Store, blocks: int) -> None:
        self._arch, self._store, self._blocks = arch, store, blocks
        self._next_look = 0.0
        code = (
            f"import os, sys; os.nice(10); sys.path[:] = {sys.path!r}; "
            "from vyre.engines.cuda.compile import compile_kernel; from vyre.store import Store; from pathlib import Path; "
            f"compile_kernel({arch}, Store(Path({str(store.root)!r})), {blocks})"
        )
        self._process: Any = subprocess.Popen(
            [sys.executable, "-I", "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        _RUNNING.append(self._process)

    def arrived(self, clock: Callable[[], float] = time.monotonic) -> bytes | None:
        """The kernel, once. None while it is not there, and for good when its compilation failed."""
        if self._process is None or clock() < self._next_look:
            return None
        self._next_look = clock() + LOOK_EVERY_S
        if self._process.poll() is None:
            return None
        self._process = None
        return kept_kernel(self._arch, self._store, self._blocks)

    @property
    def is_over(self) -> bool:
        return self._process is None
