"""Threads of native code from their first instruction to their last: Python does not know them, nor they the GIL.

A thread of Python's needs the GIL to begin and to end; beside a busy thread each costs 5 ms and more. Whoever starts one of
these has to see it end: nobody else does, not even the interpreter.

Owns: creating and joining by libpthread. Leaves to others: the function, and how it is asked to end.
"""

from __future__ import annotations

import ctypes
import signal
from typing import Final

_quick: Final = ctypes.PyDLL(None)  # keeps the GIL: all but joining a thread that still runs is short
_patient: Final = ctypes.CDLL(None)
_KIND: Final = (ctypes.POINTER(ctypes.c_ulong), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


def name_this_thread(name: str) -> None:
    """Have ``ps -L``, perf and debuggers show a name; 15 characters."""
    this = _quick.pthread_self
    this.restype = ctypes.c_ulong
    _quick.pthread_setname_np(ctypes.c_ulong(this()), name.encode()[:15])


class NativeThread:
    """Runs ``function(argument)``, native code that takes and gives a u64, with every signal blocked.

    Args:
        name: of the thread, as ``ps -L`` and debuggers show it; 15 characters.
        function: its address.
    Raises:
        OSError: the system has no more threads.
    """

    def __init__(self, name: str, function: int, argument: int) -> None:
        create = _quick.pthread_create
        create.argtypes = _KIND
        self._thread = ctypes.c_ulong()
        # It inherits the mask: signals are for threads that Python knows.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            code = create(ctypes.byref(self._thread), None, function, argument)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if code:
            raise OSError(code, f"a thread for {name} could not be started")
        _quick.pthread_setname_np(self._thread, name.encode()[:15])

    def join(self, *, ending: bool) -> None:
        """Wait for its end. Once.

        Args:
            ending: it is known to be at its last instructions, so that the GIL is not worth giving up.
        """
        library = _quick if ending else _patient
        library.pthread_join(self._thread, None)
