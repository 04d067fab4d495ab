"""Runs a file of scalar cases on an engine: bit patterns in, bit pattern, class of NaN or trap out.

A case file is a JSON list of ``{"op": name, "args": [[type, bits], ..], "result": ..}``; the result is ``[type,
bits]``, ``"nan:canonical"``, ``"nan:arithmetic"`` or ``"trap: reason"``. Each case is run in three settings, because a
vector engine may be right on one element and wrong on another: alone, repeated over more than a tile, and mixed with
the other cases of its instruction. One program per instruction; many cases share an item where none of them traps.

Owns: reading cases, the three settings, what counts as passed. Leaves to others: execution (an engine's callable),
showing (command line).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import ItemResult
from vyre.errors import Fault, VyreError
from vyre.program.ir import Instr, Program, Stream
from vyre.program.opcodes import BY_NAME, CANONICAL_NAN, FAULT_REASONS, TILE, Imm, MemType, Nan, Op, Type

Execute = Callable[[Program, Sequence[NDArray[Any]], Sequence[int], Sequence[NDArray[Any]], int, int], ItemResult]
"""``execute(program, inputs, params, tables, first, count)``. The same program object comes many times in a row."""

REPEATED: Final = TILE + 1  # elements that one case fills in the repeated setting: every lane of a tile, and one more
_TOGETHER: Final = 16  # cases in one item of the repeated setting
_MIXED: Final = 64 * TILE  # most cases in one item of the mixed setting
_AROUND: Final = 2 * TILE  # cases that surround a trapping one
_FIRST: Final = 3 * TILE  # first element of mixed items: a fault must name the global element

_BITS: Final[dict[Type, Any]] = {Type.i32: np.uint32, Type.i64: np.uint64, Type.f32: np.uint32, Type.f64: np.uint64}
_NUMPY: Final[dict[Type, Any]] = {Type.i32: np.int32, Type.i64: np.int64, Type.f32: np.float32, Type.f64: np.float64}
_RESULT_FORMS: Final = '[type, bits], "nan:canonical", "nan:arithmetic" or "trap: reason"'


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a case file: ``index`` counts from 0; ``result`` is the bits, or "nan:.." or "trap: .."."""

    index: int
    op: Op
    args: tuple[int, ...]
    result: int | str

    @property
    def is_trap(self) -> bool:
        return isinstance(self.result, str) and self.result.startswith("trap: ")


@dataclass(frozen=True, slots=True)
class Failure:
    """A case and the first setting ("alone", "repeated", "mixed") in which the engine gave something else."""

    case: Case
    setting: str
    got: str

    def __str__(self) -> str:
        op = self.case.op
        args = ", ".join(_show(bits, t) for bits, t in zip(self.case.args, op.args, strict=True))
        assert op.result is not None
        want = self.case.result if isinstance(self.case.result, str) else _show(self.case.result, op.result)
        return f"case {self.case.index}: {op.name}({args}), {self.setting}: expected {want}, got {self.got}"


@dataclass(slots=True)
class ConformReport:
    """How many cases passed in all settings, and what went wrong with the others, in the order of the file."""

    passed: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def line(self) -> str:
        return f"{self.passed} passed, {self.failed} failed"


def run_cases(
    source: str | Path | Sequence[Any], execute: Execute, progress: Callable[[int, int], None] | None = None
) -> ConformReport:
    """Run every case in every setting.

    Args:
        source: path of a case file, or the list that it holds.
        execute: runs one item on the engine.
        progress: called with (cases done, cases in all), now and then.
    Raises:
        VyreError: the file cannot be read, or a case is not one. Nothing was run.
    """
    cases = read_cases(source)
    wrong: dict[int, Failure] = {}
    by_op = sorted(cases, key=lambda case: case.op.code)
    done = 0
    for _, group in itertools.groupby(by_op, key=lambda case: case.op.code):
        mine = list(group)
        for failure in _run_instruction(mine[0].op, mine, execute):
            wrong.setdefault(failure.case.index, failure)
        done += len(mine)
        if progress is not None:
            progress(done, len(cases))
    failures = [wrong[index] for index in sorted(wrong)]
    return ConformReport(len(cases) - len(failures), len(failures), failures)


# --- reading ------------------------------------------------------------------------------------------------------


def read_cases(source: str | Path | Sequence[Any]) -> list[Case]:
    """Read and check a case file, or the list that it holds. Raises VyreError that names the case and what is wrong."""
    name = "cases"
    data: Any = source
    if isinstance(source, str | Path):
        name = str(source)
        try:
            data = json.loads(Path(source).read_bytes())
        except OSError as error:
            raise VyreError(f"{name}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise VyreError(f"{name}: is not JSON: {error}") from None
    if not isinstance(data, list | tuple):
        raise VyreError(f"{name}: a case file is a list of cases, this is a {type(data).__name__}")
    return [_case(i, entry, name) for i, entry in enumerate(data)]


def _case(index: int, entry: Any, name: str) -> Case:
    place = f"{name}: case {index}"
    if not isinstance(entry, dict) or not {"op", "args", "result"} <= entry.keys():
        raise VyreError(f'{place}: a case is an object with "op", "args" and "result", this is {_short(entry)}')
    op = BY_NAME.get(entry["op"]) if isinstance(entry["op"], str) else None
    if op is None or op.result is None or not op.args or op.imm is not Imm.none:
        raise VyreError(f"{place}: {_short(entry['op'])} is not a scalar instruction")
    args = entry["args"]
    if not isinstance(args, list | tuple) or len(args) != len(op.args):
        count = len(args) if isinstance(args, list | tuple) else _short(args)
        raise VyreError(f"{place}: {op.name} takes {len(op.args)} args, the case has {count}")
    bits = tuple(
        _operand(f"{place}: {op.name}, arg {i}", arg, t) for i, (arg, t) in enumerate(zip(args, op.args, strict=True))
    )
    return Case(index, op, bits, _result(f"{place}: {op.name}, result", entry["result"], op))


def _operand(place: str, pair: Any, t: Type) -> int:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise VyreError(f"{place}: is {_short(pair)}, not [type, bits]")
    type_name, bits = pair
    if type_name != t.name:
        raise VyreError(f"{place}: is of type {_short(type_name)}, the instruction has {t.name}")
    if not isinstance(bits, int) or isinstance(bits, bool) or not 0 <= bits < 1 << 8 * t.size:
        raise VyreError(f"{place}: bits {_short(bits)} are not an integer from 0 to 2**{8 * t.size} - 1")
    return bits


def _result(place: str, result: Any, op: Op) -> int | str:
    assert op.result is not None
    if not isinstance(result, str):
        return _operand(place, result, op.result)
    if result in ("nan:canonical", "nan:arithmetic"):
        if not op.result.is_float:
            raise VyreError(f"{place}: {result} of an instruction that gives {op.result.name}")
        return result
    if not result.startswith("trap: "):
        raise VyreError(f"{place}: {_short(result)} is not {_RESULT_FORMS}")
    reasons = [FAULT_REASONS[code] for code in op.traps]
    if result.removeprefix("trap: ") not in reasons:
        raise VyreError(
            f"{place}: {_short(result)}, but {op.name} can trap only with: {', '.join(reasons) or 'nothing'}"
        )
    return result


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- running ------------------------------------------------------------------------------------------------------


def program_for(op: Op) -> Program:
    """The program that loads the operands of one instruction, executes it and stores its result."""
    assert op.result is not None
    n = len(op.args)
    code = [Instr(BY_NAME[f"{t.name}.load"].code, dst=i, imm=i) for i, t in enumerate(op.args)]
    code += [
        Instr(op.code, n, *range(n)),
        Instr(BY_NAME[f"{op.result.name}.store"].code, a=n),
        Instr(BY_NAME["return"].code),
    ]
    return Program(
        name=op.name.replace(".", "_"),
        inputs=tuple(Stream(f"arg{i}", MemType[t.name]) for i, t in enumerate(op.args)),
        outputs=(Stream("result", MemType[op.result.name]),),
        registers=(*op.args, op.result),
        code=tuple(code),
    )


class _Instruction:
    """One instruction on one engine."""

    def __init__(self, op: Op, execute: Execute) -> None:
        assert op.result is not None
        self.op, self.execute, self.program, self.result = op, execute, program_for(op), op.result

    def run(self, cases: Sequence[Case], first: int, each: int = 1) -> NDArray[Any] | Fault | str:
        """Result bits of the cases, each on so many elements in a row; or the fault; or the engine's refusal."""
        inputs = [
            np.repeat(np.array([case.args[i] for case in cases], _BITS[t]), each).view(_NUMPY[t])
            for i, t in enumerate(self.op.args)
        ]
        try:
            item = self.execute(self.program, inputs, [], [], first, len(cases) * each)
        except VyreError as error:
            return f"{type(error).__name__}: {error.message}"
        if item.fault is not None:
            return item.fault
        bits: NDArray[Any] = np.ascontiguousarray(item.outputs[0]).view(_BITS[self.result])
        return bits

    def values(self, cases: Sequence[Case], first: int, each: int, setting: str) -> list[Failure]:
        """Run cases of which none may trap; what was wrong."""
        failures: list[Failure] = []
        while cases:
            got = self.run(cases, first, each)
            if isinstance(got, str):
                return failures + [Failure(case, setting, got) for case in cases]
            if not isinstance(got, Fault):
                return failures + self.differences(cases, got, each, setting)
            # One case spoiled the item for all: blame it, and go on without it.
            blamed = min(max((got.element or 0) - first, 0) // each, len(cases) - 1)
            failures.append(Failure(cases[blamed], setting, _show_stop(got)))
            cases = [*cases[:blamed], *cases[blamed + 1 :]]
        return failures

    def differences(self, cases: Sequence[Case], got: NDArray[Any], each: int, setting: str) -> list[Failure]:
        """The cases whose result bits, each on so many elements in a row, are not what they should be."""
        if len(got) != len(cases) * each:
            return [Failure(case, setting, f"{len(got)} results for {len(cases) * each} elements") for case in cases]
        right = self.accepts(got, np.repeat(self.expectations(cases), each, axis=1)).reshape(len(cases), each)
        got = got.reshape(len(cases), each)
        return [
            Failure(cases[i], setting, _show(int(got[i][~right[i]][0]), self.result))
            for i in np.flatnonzero(~right.all(axis=1)).tolist()
        ]

    def expectations(self, cases: Sequence[Case]) -> NDArray[Any]:
        """u64[2, n]: bits that are looked at, and what they must be."""
        everything = (1 << 8 * self.result.size) - 1
        rows = []
        for case in cases:
            if not isinstance(case.result, str):
                rows.append((everything, case.result))
                continue
            canonical = CANONICAL_NAN[self.result]
            if self.op.nan is Nan.canonical:  # stricter than WebAssembly: decision 7 leaves one NaN
                rows.append((everything, canonical))
            elif case.result == "nan:canonical":
                rows.append((everything >> 1, canonical))  # moved bits: either sign
            else:
                rows.append((canonical, canonical))  # moved bits: any quiet NaN
        return np.array(rows, np.uint64).T

    @staticmethod
    def accepts(got: NDArray[Any], expectations: NDArray[Any]) -> NDArray[np.bool_]:
        looked_at, wanted = expectations
        return np.asarray((got.astype(np.uint64) & looked_at) == wanted)

    def trap(self, items: Sequence[Case], at: int, first: int, setting: str, each: int = 1) -> list[Failure]:
        """Run cases of which the one at ``at`` is the first that must trap; the fault must name its element."""
        case = items[at]
        got = self.run(items, first, each)
        if not isinstance(got, Fault):
            return [Failure(case, setting, got if isinstance(got, str) else _show(int(got[at * each]), self.result))]
        named = got.element == first + at * each and got.pc == len(self.op.args)
        if f"trap: {got.reason}" == case.result and named:
            return []
        return [Failure(case, setting, f"{_show_stop(got)}; the element was {first + at * each}")]


def _run_instruction(op: Op, cases: list[Case], execute: Execute) -> list[Failure]:
    instruction = _Instruction(op, execute)
    values = [case for case in cases if not case.is_trap]
    trapping = [case for case in cases if case.is_trap]
    failures = [failure for case in values for failure in instruction.values([case], 0, 1, "alone")]
    for case in trapping:
        failures += instruction.trap([case], 0, 0, "alone")
        failures += instruction.trap([case], 0, 0, "repeated", REPEATED)
    for together in _batches(values, _TOGETHER):
        failures += instruction.values(together, 0, REPEATED, "repeated")
    for together in _batches(values, _MIXED):
        failures += instruction.values(together, _FIRST, 1, "mixed")
    wrong = {failure.case.index for failure in failures}
    around = [case for case in values if case.index not in wrong][:_AROUND]
    for i, case in enumerate(trapping):
        at = i * 677 % (len(around) + 1)  # a prime: different lanes for neighbours
        later = trapping[(i + 1) % len(trapping)]  # and another trap behind it, which must not win
        failures += instruction.trap([*around[:at], case, *around[at:], later], at, _FIRST, "mixed")
    return failures


def _batches(cases: list[Case], size: int) -> list[list[Case]]:
    return [cases[i : i + size] for i in range(0, len(cases), size)]


def _show(bits: int, t: Type) -> str:
    return f"{t.name} 0x{bits:0{2 * t.size}x}"


def _show_stop(stop: Fault | str) -> str:
    return stop if isinstance(stop, str) else f"trap: {stop}"
