"""Every exception that vyre raises on purpose, grouped by who can act on it.

A message gives place, rule and value; ``fix`` gives the way out when the caller has one. Classes differ
where the caller's next move differs: repair the program, repair the data, wait, reopen, replace the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class VyreError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: place, rule and value, in one sentence.
        fix: what the caller can do about it, or "" when there is nothing to do.
    """

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


# --- repair the program ---------------------------------------------------------------------------------------


class ProgramError(VyreError, ValueError):
    """The program itself is at fault: its source, its listing or its bytecode."""


class CompileError(ProgramError):
    """Python source or an expression that cannot be compiled. The message starts with file:line:column."""


class ListingError(ProgramError):
    """A listing that cannot be read. The message starts with its line."""


class BytecodeError(ProgramError):
    """A byte string that is not a VIR0 file of this version."""


class VerifyError(ProgramError):
    """A well-formed program that breaks a rule of VIR0.

    Attributes:
        rule: the rule's short name.
        pc: the place, None where no instruction is to blame.
        program: which one of a population; None where there is only one.
    """

    program: int | None = None

    def __init__(self, message: str, *, rule: str, pc: int | None = None, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.rule = rule
        self.pc = pc


@dataclass(frozen=True, slots=True)
class Fault:
    """What stopped one item: the trap of its lowest trapping element, or an engine's refusal.

    Attributes:
        code: a value of ``vyre.program.opcodes.FaultCode``.
        reason: that code in words, as conformance files spell it ("integer divide by zero").
        pc: index of the VIR0 instruction, never of a rewritten one; None when no instruction is to blame.
        element: global index of the element; None when no element is to blame.
        file, line: where the instruction was written, when the program carries a line map.
        operands: values of the instruction's operands by name, when they could be had again.
    """

    code: int
    reason: str
    pc: int | None = None
    element: int | None = None
    file: str | None = None
    line: int | None = None
    operands: dict[str, int | float] = field(default_factory=dict)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"line {self.line}: " if self.line else ""
        where = [] if self.pc is None else [f"pc {self.pc}"]
        where += [] if self.element is None else [f"element {self.element}"]
        where += [f"{name} = {value}" for name, value in self.operands.items()]
        return f"{place}{self.reason}" + (f" ({', '.join(where)})" if where else "")


class ProgramFault(VyreError, RuntimeError):
    """An item trapped. It delivered no output, emit or accumulator. ``fault`` has the details."""

    def __init__(self, fault: Fault, *, fix: str = "") -> None:
        super().__init__(str(fault), fix=fix)
        self.fault = fault


# --- repair the data ------------------------------------------------------------------------------------------


class BindError(VyreError, ValueError):
    """An array, path, parameter or name that does not fit the program's declarations."""


class BackendError(VyreError, ValueError):
    """A launch that cannot be expressed inside the limits of a backend."""


class StreamError(VyreError, OSError):
    """Bytes that could not be read or written: names file, offset and what was expected.

    Attributes:
        elements: (first, count) of the chunk that could not be read, where it was one.
    """

    elements: tuple[int, int] | None = None


# --- wait -----------------------------------------------------------------------------------------------------


class RingFull(VyreError):
    """No slot became free in time. Nothing was published."""


class ArenaFull(VyreError):
    """The engine's bounded store of programs or bindings has no room. Close some, or open with a larger one."""


class WaitTimeout(VyreError, TimeoutError):
    """The result was not there in time. The item goes on; wait again or cancel it."""


class Paused(VyreError, RuntimeError):
    """This thread holds the session's pause, so what it waits for would never come. Leave the ``with`` block first."""


class Cancelled(VyreError):
    """The item was cancelled before it was done."""


# --- reopen, or go elsewhere ----------------------------------------------------------------------------------


class SessionClosed(VyreError):
    """close() was called, here or in another thread, or this is a forked child of the session's process."""


class EngineUnavailable(VyreError):
    """The engine asked for cannot run on this machine. The message says what is missing."""


class DeviceLost(VyreError):
    """The engine no longer answers. What was completed stays completed; open a new session."""
