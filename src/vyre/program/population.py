"""Many programs that declare the same, in a handful of arrays: what a search over programs makes and hands over.

Owns: the arrays and their checks, and one program out of them. Leaves to others: whether a program's code is valid
(verifier), where populations go (engines).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vyre.errors import ProgramError, VerifyError
from vyre.program.ir import Program
from vyre.program.opcodes import OPCODES, Imm, Type
from vyre.program.verifier import check_declarations

_TYPES: Final = (None, *Type)
_RENUMBERED: Final = tuple(
    (name, np.array([op.code for op in OPCODES if op.imm is imm], np.uint64))
    for name, imm in (("inputs", Imm.input), ("params", Imm.param))
)
_OWN: Final = frozenset(("name", "registers", "constants", "code", "source", "lines"))
_SHARED: Final = tuple(f.name for f in fields(Program) if f.name not in _OWN)


@dataclass(frozen=True, eq=False)
class Population:
    """Programs with the same inputs, outputs, parameters, tables, accumulators, emits and fuel.

    Program i has instructions code[code_at[i]:code_at[i + 1]], and constants and registers likewise. Arrays are not copied
    where they have their type already: change none of them while the population is in use.

    Attributes:
        declarations: a program whose declarations and fuel all of them have; its registers, constants and code do not count.
        code: u64[instructions of all]: u16 op, u8 dst, u8 a, u8 b, u8 c, u16 imm, lowest bits first, as in a file.
        code_at: i64[programs + 1], from 0, not decreasing.
        constants: u64[constants of all], bit patterns; 32-bit ones have zeros above.
        constants_at: i64[programs + 1].
        registers: u8[registers of all], the type of each: i32 1, i64 2, f32 3, f64 4.
        registers_at: i64[programs + 1].
    Raises:
        ProgramError: the arrays do not fit each other.
        VerifyError: the declarations are not valid.
    """

    declarations: Program
    code: NDArray[np.uint64]
    code_at: NDArray[np.int64]
    constants: NDArray[np.uint64]
    constants_at: NDArray[np.int64]
    registers: NDArray[np.uint8]
    registers_at: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, dtype in (("code", np.uint64), ("constants", np.uint64), ("registers", np.uint8)):
            object.__setattr__(self, name, _array(getattr(self, name), dtype, name))
            at = _array(getattr(self, f"{name}_at"), np.int64, f"{name}_at")
            object.__setattr__(self, f"{name}_at", at)
            if len(at) == 0 or at[0] != 0 or at[-1] != len(getattr(self, name)) or (np.diff(at) < 0).any():
                raise ProgramError(
                    f"{name}_at of a population goes from 0 to the {len(getattr(self, name))} entries of {name} without "
                    "decreasing, which it does not",
                    fix=f"{name}_at = numpy.concatenate([[0], numpy.cumsum(lengths)])",
                )
        if not len(self.code_at) == len(self.constants_at) == len(self.registers_at):
            raise ProgramError(
                f"code_at, constants_at and registers_at of a population have {len(self.code_at)}, "
                f"{len(self.constants_at)} and {len(self.registers_at)} entries: each needs one more than there are programs"
            )
        bad = np.flatnonzero((self.registers < 1) | (self.registers > len(Type)))
        if len(bad):
            raise ProgramError(f"register {bad[0]} of a population has type {self.registers[bad[0]]}, which is none")
        check_declarations(self.shape)

    @classmethod
    def of(cls, programs: Sequence[Program]) -> Population:
        """Pack programs. Those that declare some inputs or parameters only get those of the others too.

        Raises:
            ProgramError: there is none, or two declare different things.
        """
        if not programs:
            raise ProgramError("a population has at least one program")
        shared = replace(
            programs[0],
            inputs=_union("inputs", [p.inputs for p in programs]),
            params=_union("params", [p.params for p in programs]),
        )
        names = [name for name in _SHARED if name not in ("inputs", "params")]
        want = [getattr(shared, name) for name in names]
        for i, program in enumerate(programs):
            got = [getattr(program, name) for name in names]
            if got != want:
                name, x, y = next((n, x, y) for n, x, y in zip(names, want, got, strict=True) if x != y)
                raise ProgramError(
                    f"program {i} ({program.name}) of a population declares {name} {y}, program 0 ({shared.name}) {x}",
                    fix="give all programs of a population the same declarations, or load them one by one",
                )
        return cls(
            shared,
            _renumbered(programs, shared),
            _ends([p.instructions for p in programs]),
            np.array(list(chain.from_iterable(p.constants for p in programs)), np.uint64),
            _ends([len(p.constants) for p in programs]),
            np.frombuffer(b"".join([bytes(p.registers) for p in programs]), np.uint8),
            _ends([len(p.registers) for p in programs]),
        )

    @property
    def shape(self) -> Program:
        """The declarations as a program without registers, constants and code."""
        return self._program(-1, b"", (), ())

    def __len__(self) -> int:
        return len(self.code_at) - 1

    def __iter__(self) -> Iterator[Program]:
        return map(self.program, range(len(self)))

    def program(self, i: int) -> Program:
        """Program ``i``; not verified."""
        if not 0 <= i < len(self):
            raise IndexError(f"program {i} of a population of {len(self)}")
        constants = self.constants[self.constants_at[i] : self.constants_at[i + 1]]
        registers = self.registers[self.registers_at[i] : self.registers_at[i + 1]]
        code = self.code[self.code_at[i] : self.code_at[i + 1]]
        return self._program(i, code.tobytes(), constants.tolist(), registers.tolist())

    def _program(self, i: int, code: bytes, constants: Sequence[int], registers: Sequence[int]) -> Program:
        found = Program.__new__(Program)
        found.__dict__.update(
            {name: getattr(self.declarations, name) for name in _SHARED},
            name=self.declarations.name if i < 0 else f"{self.declarations.name}_{i}",
            registers=tuple([_TYPES[r] for r in registers]),
            constants=tuple(constants),
            source="",
            lines=(),
            _packed=code,
        )
        return found


def _union(what: str, declared: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """All that is declared, in the order of its first appearance.

    Raises:
        ProgramError: the same name stands for two things.
    """
    first = declared[0]
    if all(each == first for each in declared):
        return first
    found: dict[str, Any] = {}
    for i, each in enumerate(declared):
        for one in each:
            known = found.setdefault(one.name, one)
            if known != one:
                raise ProgramError(
                    f"program {i} of a population declares {what} {one}, an earlier one {known}",
                    fix="give all programs of a population the same declarations, or load them one by one",
                )
    return tuple(found.values())


def _renumbered(programs: Sequence[Program], shared: Program) -> NDArray[np.uint64]:
    """All code, with the numbers that inputs and parameters have in the shared declarations."""
    code = np.frombuffer(b"".join([p.packed for p in programs]), np.uint64)
    for name, opcodes in _RENUMBERED:
        all_ = getattr(shared, name)
        if all(getattr(p, name) == all_ for p in programs):
            continue
        # What is beyond a program's own declarations stays beyond all, for the verifier to refuse.
        most = max(len(getattr(p, name)) for p in programs)
        places = np.full((len(programs), most + 1), 0xFFFF, np.uint64)
        number = {one: i for i, one in enumerate(all_)}
        for row, program in zip(places, programs, strict=True):
            own = getattr(program, name)
            row[: len(own)] = [number[one] for one in own]
        at = np.flatnonzero(np.isin(code & np.uint64(0xFFFF), opcodes))
        owner = np.repeat(np.arange(len(programs)), [p.instructions for p in programs])[at]
        imm = np.minimum(code[at] >> np.uint64(48), np.uint64(most)).astype(np.int64)
        code = code.copy()
        code[at] = code[at] & np.uint64((1 << 48) - 1) | places[owner, imm] << np.uint64(48)
    return code


def refused(error: VerifyError, i: int, n: int) -> VerifyError:
    """The verifier's error about program ``i`` of ``n``, saying so."""
    found = VerifyError(f"program {i} of {n}: {error.message}", rule=error.rule, pc=error.pc, fix=error.fix)
    found.program = i
    return found


def _ends(counts: list[int]) -> NDArray[np.int64]:
    ends = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends


def _array(value: ArrayLike, dtype: Any, name: str) -> NDArray[Any]:
    """One-dimensional, contiguous, aligned, of this type: copied only where it is not."""
    a = np.asarray(value)
    if a.ndim != 1 or a.dtype.kind not in "iu":
        raise ProgramError(f"{name} of a population is an array of {np.dtype(dtype)}, not {a.dtype}{list(a.shape)}")
    return np.require(a, dtype, ("C", "ALIGNED"))
