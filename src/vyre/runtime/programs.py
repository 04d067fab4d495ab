"""Whatever a caller calls a program becomes a verified one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from vyre.program.bytecode import decode
from vyre.program.compiled import CompiledFunction
from vyre.program.ir import Program
from vyre.program.verifier import Verified, verify

if TYPE_CHECKING:
    pass

ProgramLike: TypeAlias = Any  # CompiledFunction | Program | Verified | bytes | Loaded


def verified_of(program: ProgramLike) -> Verified:
    """A verified program from a compiled function or expression, a Program, a Verified, or bytecode.

    Raises:
        ProgramError: it is not valid.
        TypeError: it is nothing of that kind.
    """
    if isinstance(program, Verified):
        return program
    if type(program) is bytes:
        return verify(decode(program))
    if isinstance(program, CompiledFunction):
        return program.verified
    if isinstance(program, Program):
        return verify(program)
    if isinstance(program, (bytes, bytearray, memoryview)):
        return verify(decode(program))
    if isinstance(program, str):
        raise TypeError(
            f"{program[:60]!r} is a string, not a program; compile it with vyre.expression(text, types=...)"
        )
    if callable(program):
        name = getattr(program, "__name__", "it")
        raise TypeError(f"{name} is a plain Python function, not a program; decorate it with @vyre.program")
    raise TypeError(f"a {type(program).__name__} is not a program")
