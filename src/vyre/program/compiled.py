"""What both front ends give: a program that a session can load, and that says how to run it when it is called.

Owns: ``CompiledFunction``. Leaves to others: how it came to be (python, expression), what runs it (runtime).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from vyre.errors import CompileError

if TYPE_CHECKING:
    from vyre.program.ir import Program
    from vyre.program.verifier import Verified


class CompiledFunction:
    """A compiled function or expression. Immutable; compares, hashes and pickles by the identity of its program.

    Attributes:
        program: the program, with its line map where it has one.
        text: the expression it was compiled from, "" for a function.
    """

    def __init__(self, program: Program, text: str = "") -> None:
        self.program = program
        self.text = text
        self._verified: Verified | None = None

    @property
    def verified(self) -> Verified:
        """The program as engines take it; verified when first asked for."""
        found = self._verified
        if found is None:
            from vyre.program.verifier import verify

            found = self._verified = verify(self.program)
        return found

    @property
    def identity(self) -> bytes:
        """BLAKE2b-256 over code and declarations, without names."""
        return self.verified.identity

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.program.name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the streams it takes, in order of declaration."""
        return tuple(stream.name for stream in self.program.inputs)

    @property
    def params(self) -> tuple[str, ...]:
        """Names of its parameters, in order of declaration."""
        return tuple(param.name for param in self.program.params)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        given = ", ".join(f"{name}={name}" for name in (*self.inputs, *self.params))
        raise CompileError(
            f"{self.name} is a program: it is run over arrays or files, not called",
            fix=f"vyre.run({self.name}, {given})" if given else f"vyre.run({self.name})",
        )

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, CompiledFunction) and self.identity == other.identity)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.verified, self.text)

    def __repr__(self) -> str:
        return f"<vyre program {self.name}({', '.join((*self.inputs, *self.params))})>"


def _restore(verified: Verified, text: str) -> CompiledFunction:
    found = CompiledFunction(verified.program, text)
    found._verified = verified
    return found
