"""What a call gives by name becomes the operands of an item.

Owns: which name is what, what is missing or unknown, which values lie in files. Leaves to others: whether one value fits one
declaration (operands), running (session).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import Operands, PagedTable
from vyre.engines.device_array import is_on_device
from vyre.errors import BindError
from vyre.runtime.operands import (
    as_input,
    as_output,
    as_param,
    as_table,
    check_overlap,
    count_of,
    on_device,
    output_on_device,
    table_on_device,
)
from vyre.stream.arrow_memory import Chunked, columns_of, is_series, is_table, series_of
from vyre.stream.formats import Column, numpy_dtype
from vyre.stream.source import has_names

if TYPE_CHECKING:
    from vyre.runtime.loaded import Loaded


def plain_operands(loaded: Loaded, named: Mapping[str, Any]) -> tuple[Operands, tuple[int, ...]] | None:
    """Operands and shape of the common call: exactly the arrays that are needed, contiguous, aligned and, as most are, writable.

    None: it is another one, or a wrong one; operands_of knows.
    """
    if not loaded._plain or len(named) != len(loaded._inputs):
        return None
    arrays: list[Any] = []
    shape: tuple[int, ...] | None = None
    count = 0
    for name, dtype, _ in loaded._inputs:
        a = named.get(name)
        if type(a) is not np.ndarray or a.dtype is not dtype or not a.flags.carray:
            return None
        if shape is None:
            shape, count = a.shape, a.size
        elif a.shape != shape:
            return None
        arrays.append(a)
    assert shape is not None
    outputs: list[NDArray[Any]] = []
    for dtype in loaded._dtypes:
        outputs.append(np.empty(count, dtype))
    return Operands(0, count, arrays, outputs, [], [], []), shape


def operands_of(
    loaded: Loaded,
    named: Mapping[str, Any],
    out: Any,
    elements: int | None,
    notes: list[str],
    device_stream: int | None,
) -> tuple[Operands, tuple[int, ...]]:
    """Check and collect everything an item needs."""
    program = loaded.program
    names = loaded._names
    if not names.issuperset(named):
        raise unknown_name(loaded, next(name for name in named if name not in names))
    arrays: list[Any] = []
    try:
        for name, dtype, stream in loaded._inputs:
            a = named[name]
            # The common case first: exactly the array that is needed.
            if type(a) is not np.ndarray or a.dtype is not dtype or not a.flags.c_contiguous or not a.flags.aligned:
                if device_stream is not None and type(a) is not np.ndarray and is_on_device(a):
                    a = on_device("input", stream, a, device_stream)
                else:
                    a = as_input(stream, a, notes)
            arrays.append(a)
    except KeyError:
        raise BindError(f"program {program.name}: input {stream.name} ({stream.dtype.name}) is missing") from None
    count = count_of(program, arrays, elements)
    shape = arrays[0].shape if arrays else (count,)
    if len(arrays) > 1 and any(a.shape != shape for a in arrays):
        shape = (count,)
    params = params_of(loaded, named) if program.params else []
    tables: list[Any] = []
    for table in program.tables:
        if table.name not in named:
            raise BindError(f"program {program.name}: table {table.name} ({table.dtype.name}) is missing")
        value = named[table.name]
        if isinstance(value, PagedTable):
            tables.append(value)
        elif device_stream is not None and type(value) is not np.ndarray and is_on_device(value):
            tables.append(table_on_device(table, value, device_stream))
        else:
            tables.append(as_table(table, value))
    if out is None:
        outputs: list[NDArray[Any]] = [np.empty(count, dtype) for dtype in loaded._dtypes]
    else:
        outputs = _outputs(loaded, out, count, arrays, tables, device_stream)
    emits = [np.empty(count, numpy_dtype(s.dtype)) for s in program.emits] if program.emits else []
    return Operands(0, count, arrays, outputs, emits, tables, params), shape


def _outputs(
    loaded: Loaded,
    out: Any,
    count: int,
    arrays: list[NDArray[Any]],
    tables: list[NDArray[Any]],
    device_stream: int | None,
) -> list[NDArray[Any]]:
    program = loaded.program
    if not isinstance(out, Mapping):
        if len(program.outputs) != 1:
            names = ", ".join(s.name for s in program.outputs) or "none"
            raise BindError(
                f"out is one array, but program {program.name} has these outputs: {names}",
                fix="pass a dict by name",
            )
        out = {program.outputs[0].name: out}
    for name in out:
        if name not in [s.name for s in program.outputs]:
            raise BindError(f"out names {name!r}, which is no output of program {program.name}")
    host = [(s.name, a) for s, a in zip(program.inputs, arrays, strict=True) if isinstance(a, np.ndarray)]
    others = dict(host)
    written = {f"table {t.name}": a for t, a in zip(program.tables, tables, strict=True) if isinstance(a, np.ndarray)}
    there: dict[str, Any] = {f"input {s.name}": a for s, a in zip(program.inputs, arrays, strict=True)}
    there |= {f"table {t.name}": a for t, a in zip(program.tables, tables, strict=True)}
    outputs: list[Any] = []
    for stream, dtype in zip(program.outputs, loaded._dtypes, strict=True):
        a: Any
        given = out.get(stream.name)
        if device_stream is not None and type(given) is not np.ndarray and is_on_device(given):
            a = there[f"out for {stream.name}"] = output_on_device(stream, given, count, device_stream, there)
        elif stream.name in out:
            a = as_output(stream, out[stream.name], count)
            check_overlap(a, stream.name, others)
            check_overlap(a, stream.name, written, in_place=False)
            written[f"out for {stream.name}"] = a
        else:
            a = np.empty(count, dtype)
        outputs.append(a)
    return outputs


def params_of(loaded: Loaded, named: Mapping[str, Any]) -> list[int]:
    """64 bits of each parameter, from the call or its default."""
    bits = []
    for param in loaded.program.params:
        if param.name in named:
            bits.append(as_param(param, named[param.name]))
        elif param.default is not None:
            bits.append(param.default)
        else:
            raise BindError(f"program {loaded.program.name}: parameter {param.name} ({param.dtype.name}) is missing")
    return bits


def with_inputs(loaded: Loaded, inputs: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """The positional argument of a call, merged with what was given by name."""
    if type(inputs) is dict and not named:
        return dict(inputs)
    if isinstance(inputs, Mapping):
        both = [name for name in inputs if name in named]
        if both:
            raise BindError(f"{both[0]} is given twice, in the mapping and by name")
        return {**inputs, **named}
    streams = loaded.program.inputs
    if is_table(inputs):
        return {**columns_of(inputs, [stream.name for stream in streams if stream.name not in named]), **named}
    if len(streams) > 1:
        column = Column(inputs) if are_paths(inputs) else inputs if isinstance(inputs, Column) else None
        if column is not None and column.field is None and has_names(column):
            return with_inputs(loaded, {stream.name: column for stream in streams}, named)
    if len(streams) != 1:
        names = ", ".join(s.name for s in streams) or "none"
        raise BindError(
            f"program {loaded.program.name} has these inputs: {names}; one bare value names none of them",
            fix="pass a dict by name",
        )
    if streams[0].name in named:
        raise BindError(f"{streams[0].name} is given twice, bare and by name")
    return {streams[0].name: inputs, **named}


def any_in_files(loaded: Loaded, named: Mapping[str, Any]) -> bool:
    """True when some input is a path, a list of paths or a Column."""
    for stream in loaded.program.inputs:
        value = named.get(stream.name)
        if type(value) is np.ndarray:
            continue
        if isinstance(value, Column) or are_paths(value):
            return True
    return False


def are_paths(value: object) -> bool:
    """True for a path and for a list of paths."""
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        return True
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(v, str) or hasattr(v, "__fspath__") for v in value)
    )


def any_in_chunks(loaded: Loaded, named: dict[str, Any]) -> bool:
    """True when some input is a column in several arrays, which a stream reads where they are.

    Series are replaced by their arrays, in ``named``: some can be asked for them but once.
    """
    for stream in loaded.program.inputs:
        value = named.get(stream.name)
        if type(value) is np.ndarray:
            continue
        if is_series(value):
            value = named[stream.name] = series_of(stream.name, value)
        if isinstance(value, Chunked) and len(value.arrays) > 1:
            return True
    return False


def unknown_name(loaded: Loaded, name: str) -> BindError:
    """The error for a name that the program does not declare."""
    import difflib

    program = loaded.program
    near = difflib.get_close_matches(name, loaded._names, n=1)
    parts = [
        f"{what} {', '.join(d.name for d in declared)}"
        for what, declared in (("inputs", program.inputs), ("parameters", program.params), ("tables", program.tables))
        if declared
    ]
    return BindError(
        f"program {program.name} declares no {name!r}; it has {'; '.join(parts) or 'nothing to bind'}",
        fix=f"did you mean {near[0]}?" if near else "",
    )
