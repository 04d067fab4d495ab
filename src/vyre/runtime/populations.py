"""Thousands of programs at once: loaded together, run over the same inputs, answered in arrays.

Owns: what a caller's programs and arrays must be before they become a population, results by name, and the way through
engines that know single items only. Leaves to others: the arrays themselves (program.population), engines' own ways.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import ItemResult, Operands, PopulationResult
from vyre.engines.device_array import DeviceArray, is_on_device
from vyre.errors import BindError, Fault, VerifyError
from vyre.program.bytecode import decode
from vyre.program.compiled import CompiledFunction
from vyre.program.ir import Program
from vyre.program.opcodes import Access, AccKind
from vyre.program.population import Population, refused
from vyre.program.verifier import Verified, verify
from vyre.runtime.arguments import operands_of, with_inputs
from vyre.runtime.loaded import Loaded
from vyre.runtime.operands import output_on_device
from vyre.stream.formats import numpy_dtype

if TYPE_CHECKING:
    from vyre.runtime.session import Session

IN_FLIGHT: Final = 64
"""Items of one ``run_many`` that an engine without a way of its own has at a time."""

PopulationLike: TypeAlias = Any  # Population | Sequence[CompiledFunction | Program | Verified | bytes]


class _Shape(NamedTuple):
    """What operands are checked against: declarations alone."""

    program: Program


class LoadedPopulation:
    """Programs resident in a session. Close it, or let the session do so.

    Attributes:
        population: the programs.
        opcodes: u32[programs], what slots call them.
    """

    def __init__(self, session: Session, population: Population, opcodes: NDArray[np.uint32], resident: Any) -> None:
        self.session = session
        self.population = population
        self.opcodes = opcodes
        self._resident = resident
        self._shape = Loaded(session, cast(Verified, _Shape(population.shape)), -1)
        self._closed = False

    def __len__(self) -> int:
        return len(self.opcodes)

    def program(self, i: int) -> Program:
        """Program ``i``, to look at."""
        return self.population.program(i)

    def close(self) -> None:
        """Forget the programs. No ``run_many`` of them may be under way."""
        if not self._closed:
            self._closed = True
            engine = self.session.engine
            if not engine.closed:
                if hasattr(engine, "unload_population"):
                    engine.unload_population(self._resident)
                else:
                    for opcode in self.opcodes.tolist():
                        engine.unload(opcode)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __repr__(self) -> str:
        return f"<vyre population of {len(self)} programs {self.population.declarations.name}>"


class ManyResult:
    """What programs of a population gave over the same inputs: arrays by name, the first axis the programs.

    Attributes:
        faulted: bool[programs], the fault mask. A faulted program's rows are zeros.
        faults: by number of the program: what stopped it.
    """

    def __init__(self, program: Program, raw: PopulationResult, n: int) -> None:
        self.faults: dict[int, Fault] = raw.faults
        self.faulted = np.zeros(n, bool)
        self.faulted[list(raw.faults)] = True
        self._values = {s.name: a for s, a in zip(program.outputs, raw.outputs, strict=True)}
        self._values |= {s.name: a for s, a in zip(program.accumulators, raw.accumulators, strict=True)}

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"no result {name!r}; there is {', '.join(self._values)}") from None

    def keys(self) -> list[str]:
        """Names of outputs, then of accumulators."""
        return list(self._values)

    @property
    def value(self) -> Any:
        """The only result.

        Raises:
            ValueError: there are several.
        """
        if len(self._values) != 1:
            raise ValueError(f"there are {len(self._values)} results: {', '.join(self._values)}; name one")
        return next(iter(self._values.values()))

    def __len__(self) -> int:
        return len(self.faulted)


def packed(programs: PopulationLike) -> Population:
    """A population from whatever callers call programs."""
    if isinstance(programs, Population):
        return programs
    found: list[Program] = []
    for i, program in enumerate(programs):
        if isinstance(program, (Verified, CompiledFunction)):
            found.append(program.program)
        elif isinstance(program, Program):
            found.append(program)
        elif isinstance(program, (bytes, bytearray, memoryview)):
            found.append(decode(program))
        else:
            raise TypeError(f"program {i} of a population is a {type(program).__name__}, which is no program")
    return Population.of(found)


def load_many(session: Session, programs: PopulationLike) -> LoadedPopulation:
    """See ``Session.load_many``."""
    population = packed(programs)
    engine: Any = session.engine
    if hasattr(engine, "load_population"):
        resident = engine.load_population(population)
        return LoadedPopulation(session, population, resident.opcodes, resident)
    verified = [_verified(population, i) for i in range(len(population))]
    opcodes: list[int] = []
    try:
        opcodes += map(engine.load, verified)
    except BaseException:
        for opcode in opcodes:
            engine.unload(opcode)
        raise
    return LoadedPopulation(session, population, np.array(opcodes, np.uint32), None)


def _verified(population: Population, i: int) -> Verified:
    try:
        return verify(population.program(i))
    except VerifyError as error:
        raise refused(error, i, len(population)) from None


def chosen_of(loaded: LoadedPopulation, programs: Any) -> NDArray[np.int64]:
    """Which programs are to run.

    Raises:
        BindError: numbers of programs that there are not.
    """
    n = len(loaded)
    if programs is None:
        return np.arange(n)
    chosen = np.asarray(programs)
    if chosen.dtype == bool and chosen.shape == (n,):
        return np.flatnonzero(chosen)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
        raise BindError(f"programs are numbers from 0 to {n - 1} or bool[{n}], not {chosen.dtype}{list(chosen.shape)}")
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < n:
        raise BindError(f"programs {int(chosen.min())} to {int(chosen.max())} of a population of {n}")
    return chosen.astype(np.int64)


def refuse_results(program: Program) -> None:
    """
    Raises:
        BindError: results that have no row per program.
    """
    what = [f"emit {s.name}" for s in program.emits]
    what += [f"histogram {a.name}" for a in program.accumulators if a.kind is AccKind.histogram]
    what += [f"atomic table {t.name}" for t in program.tables if t.access is Access.atomic]
    if what:
        raise BindError(
            f"run_many gives one row for each program, which {what[0]} is not",
            fix="load such programs one by one and use session.run or session.submit",
        )


def rows_of(session: Session, program: Program, out: Any, n: int, count: int) -> list[Any]:
    """Arrays [programs, elements] for the outputs: new ones, or the caller's."""
    if out is None:
        return [np.empty((n, count), numpy_dtype(s.dtype)) for s in program.outputs]
    if not isinstance(out, Mapping):
        if len(program.outputs) != 1:
            names = ", ".join(s.name for s in program.outputs) or "none"
            raise BindError(
                f"out is one array, but the programs have these outputs: {names}", fix="pass a dict by name"
            )
        out = {program.outputs[0].name: out}
    rows = []
    for stream in program.outputs:
        given = out.get(stream.name)
        want = numpy_dtype(stream.dtype)
        if given is None:
            rows.append(np.empty((n, count), want))
            continue
        if session._device_stream is not None and not isinstance(given, np.ndarray) and is_on_device(given):
            given = output_on_device(stream, given, n * count, session._device_stream, {})
        good = tuple(given.shape) == (n, count) and given.dtype == want
        if isinstance(given, np.ndarray):
            good = good and bool(given.flags.c_contiguous and given.flags.writeable)
        if not good:
            raise BindError(
                f"out for {stream.name} is {given.dtype}{list(given.shape)}; it must be a contiguous, writable "
                f"{want}[{n}, {count}]"
            )
        rows.append(given)
    return rows


def run_each(
    session: Session, loaded: LoadedPopulation, chosen: NDArray[np.int64], operands: Operands, outputs: list[Any]
) -> PopulationResult:
    """Run programs one item each, ``IN_FLIGHT`` at a time: for engines that know single items only."""
    program = loaded.population.declarations
    n = len(chosen)
    found = PopulationResult(outputs)
    found.accumulators = [np.zeros(n, numpy_dtype(a.dtype)) for a in program.accumulators]
    under_way: deque[tuple[int, Any]] = deque()
    try:
        for row, opcode in enumerate(loaded.opcodes[chosen].tolist()):
            if len(under_way) == IN_FLIGHT:
                _take(found, *under_way.popleft(), session)
            own = Operands(
                0, operands.count, operands.inputs, [a[row] for a in outputs], [], operands.tables, operands.params
            )
            item = session.engine.item(opcode, own)
            under_way.append((row, item))
            session._start_when_free(item.start, None)
        while under_way:
            _take(found, *under_way.popleft(), session)
    finally:
        for _, item in under_way:  # interrupted
            session._settle(item)
            item.close()
    return found


def _take(found: PopulationResult, row: int, item: Any, session: Session) -> None:
    try:
        while not item.wait(50_000_000):
            if session.engine.closed:
                raise session._closed_error()
        raw: ItemResult = item.result()
    finally:
        item.close()
    if raw.fault is not None:
        found.faults[row] = raw.fault
        for a in found.outputs:
            a[row] = 0
        return
    for a, value in zip(found.accumulators, raw.accumulators, strict=True):
        a[row] = value


def run_many(
    session: Session,
    loaded: LoadedPopulation,
    inputs: Any,
    named: dict[str, Any],
    programs: Any,
    out: Any,
    elements: int | None,
) -> ManyResult:
    """See ``Session.run_many``."""
    if loaded.session is not session or loaded._closed:
        raise BindError(f"{loaded!r} is not loaded in this session", fix="load it with session.load_many")
    program = loaded.population.declarations
    refuse_results(program)
    chosen = chosen_of(loaded, programs)
    named = with_inputs(loaded._shape, inputs, named) if inputs is not None else named
    operands, _ = operands_of(loaded._shape, named, None, elements, [], session._device_stream)
    outputs = rows_of(session, program, out, len(chosen), operands.count)
    engine: Any = session.engine
    if hasattr(engine, "run_population"):
        theirs = [a for a in (*operands.inputs, *operands.tables, *outputs) if isinstance(a, DeviceArray)]
        if theirs:
            engine.wait_for_producers(theirs)
        raw = engine.run_population(
            loaded._resident, chosen, operands.inputs, operands.tables, operands.params, outputs, operands.count,
            session._reap,
        )  # fmt: skip
    else:
        raw = run_each(session, loaded, chosen, operands, outputs)
    return ManyResult(program, raw, len(chosen))
