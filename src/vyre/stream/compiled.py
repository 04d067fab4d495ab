"""The pump, compiled: what vyre.stream.reader takes as ``natives``.

Owns: compiling pump.py and the callables of its functions. Leaves to others: what they do (pump), LLVM (vyre.jit).
"""

from __future__ import annotations

import ctypes
import platform
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vyre.errors import EngineUnavailable
from vyre.kept import kept_ir

if TYPE_CHECKING:
    from vyre.native import Unit
    from vyre.store import Store

EXPORTS: Final[dict[str, int]] = {
    # function        arguments
    "pump_loop": 1,
    "copier_loop": 1,
    "wait_frame": 3,
    "wait_end": 2,
    "ring_bell": 1,
    "give_back": 2,
}
_SHORT: Final = frozenset({"give_back", "ring_bell"})
"""Called with the GIL held: giving it up would cost a turn behind every other thread that wants it, 5 ms each."""


@dataclass(frozen=True, slots=True)
class PumpFunctions:
    """See vyre.stream.reader.PumpNatives."""

    pump_loop: Any
    copier_loop: Any
    wait_frame: Any
    wait_end: Any
    ring_bell: Any
    give_back: Any
    pump_address: int
    """Of pump_loop, for a thread that Python does not know."""
    copier_address: int


_lock = threading.Lock()
_found: list[PumpFunctions] = []


def pump_functions(store: Store | None) -> PumpFunctions:
    """Compile the pump, or take it from the store; once in a process.

    Raises:
        EngineUnavailable: llvmlite is not installed, or another machine than x86-64 and aarch64.
    """
    with _lock:
        if not _found:
            from vyre.jit import compile_ir

            arch = platform.machine()
            if arch not in ("x86_64", "aarch64"):
                raise EngineUnavailable(f"the pump is compiled for x86_64 and aarch64, not for {arch}")
            addresses = compile_ir(kept_ir(_unit, arch, EXPORTS, store), list(EXPORTS), store)
            word = ctypes.c_uint64
            made: dict[str, Any] = {}
            for name, count in EXPORTS.items():
                kind = ctypes.PYFUNCTYPE if name in _SHORT else ctypes.CFUNCTYPE
                made[name] = kind(word, *[word] * count)(addresses[name])
            places = {"pump_address": addresses["pump_loop"], "copier_address": addresses["copier_loop"]}
            _found.append(PumpFunctions(**made, **places))
        return _found[0]


def _unit() -> Unit:
    from vyre.stream.pump import pump_unit  # not at the top: most processes find its IR in the store

    return pump_unit
