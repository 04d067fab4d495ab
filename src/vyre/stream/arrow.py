"""Arrow: what of its types memory can hold as it is, and the words when it cannot. Needs pyarrow, and says so.

Owns: Arrow's types against VIR0's, refusal of nulls, decimals, dictionaries and bits with the cast to write. Leaves to
others: files (arrow_file), tables in memory (arrow_memory), writing (sink).
"""

from __future__ import annotations

import functools
from typing import Any, Final

from vyre.errors import BindError
from vyre.program.opcodes import MemType

SUFFIXES: Final = (".arrow", ".arrows", ".feather", ".ipc")


def pyarrow(what: str) -> Any:
    """The module pyarrow, with ``pyarrow.ipc``.

    Raises:
        BindError: it is not installed; the message says what would need it.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise BindError(
            f"{what} needs pyarrow, which is not installed", fix="pip install 'vyre-runtime[arrow]'"
        ) from None
    return pyarrow


@functools.cache
def _memtypes() -> dict[Any, MemType]:
    pa = pyarrow("Arrow")
    return {
        pa.int8(): MemType.i8, pa.int16(): MemType.i16, pa.int32(): MemType.i32, pa.int64(): MemType.i64,
        pa.uint8(): MemType.u8, pa.uint16(): MemType.u16, pa.uint32(): MemType.u32, pa.uint64(): MemType.u64,
        pa.float16(): MemType.f16, pa.float32(): MemType.f32, pa.float64(): MemType.f64,
    }  # fmt: skip


def arrow_type(memtype: MemType) -> Any:
    """The Arrow type whose values are elements of ``memtype``; a bool is not among them, for Arrow packs it in bits.

    Raises:
        BindError: there is none.
    """
    for found, each in _memtypes().items():
        if each is memtype:
            return found
    raise BindError(f"Arrow has no type whose values are {memtype.name} in memory", fix="write .npy or raw elements")


def memtype_in(what: str, type_: Any) -> tuple[MemType, str]:
    """The memory type that values of an Arrow type are, and what to say about it ("" when nothing).

    Times are the integers that they are stored as: the note says what these count.

    Args:
        what: the column, for messages: "trades.arrow: column 'price'".
    Raises:
        BindError: memory cannot hold these values as they lie; with the cast to write.
    """
    pa = pyarrow("Arrow")
    found = _memtypes().get(type_)
    if found is not None:
        return found, ""
    types = pa.types
    if types.is_date32(type_) or types.is_time32(type_):
        return MemType.i32, f"{type_} as the i32 that it is stored as"
    if types.is_date64(type_) or types.is_time64(type_) or types.is_timestamp(type_) or types.is_duration(type_):
        return MemType.i64, f"{type_} as the i64 that it is stored as"
    if types.is_boolean(type_):
        cast = "column.cast(pyarrow.uint8()), with the input declared u8"
        raise BindError(f"{what} is bool, which Arrow packs eight to a byte", fix=cast)
    if types.is_decimal(type_):
        cast = "column.cast(pyarrow.float64()), or cents as pyarrow.int64()"
        raise BindError(f"{what} is {type_}: VIR0 has no decimals", fix=cast)
    if types.is_dictionary(type_):
        cast = f"column.cast({_spelled(type_.value_type)}), or its indices: column.combine_chunks().indices"
        raise BindError(f"{what} is dictionary encoded: it holds indices, not its values", fix=cast)
    if types.is_struct(type_):
        names = [type_.field(i).name for i in range(type_.num_fields)]
        raise BindError(f"{what} has parts: {', '.join(names)}", fix="name one of them, with a dot between")
    if types.is_fixed_size_list(type_) or types.is_list(type_) or types.is_large_list(type_):
        raise BindError(f"{what} is {type_}: elements are single numbers", fix="column.combine_chunks().flatten()")
    if isinstance(type_, pa.BaseExtensionType):
        raise BindError(f"{what} is the extension type {type_}", fix=f"column.cast({_spelled(type_.storage_type)})")
    if types.is_null(type_):
        raise BindError(f"{what} has no type and no values", fix="give it a type and values")
    raise BindError(f"{what} is {type_}, which is no number", fix="leave it out, or store numbers in its place")


def _spelled(type_: Any) -> str:
    return f"pyarrow.{'float64' if type_ == 'double' else 'float32' if type_ == 'float' else type_}()"


def refuse_nulls(what: str, nulls: int) -> None:
    """Refuse a column with nulls, which a program would take for numbers.

    Raises:
        BindError: there are some; with the call that replaces them.
    """
    if nulls:
        raise BindError(
            f"{what} has {nulls:,} nulls, and a program sees numbers only",
            fix="replace them, pyarrow.compute.fill_null(column, value), or leave those rows out, table.drop_null()",
        )


def missing_column(what: str, field: object, names: list[str], spell: str) -> BindError:
    """The error for a column that is not there, with those that are."""
    import difflib

    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    near = difflib.get_close_matches(str(field), names, n=1)
    return BindError(
        f"{what} has no column {field!r}; it has {listed or 'none'}",
        fix=f"did you mean {near[0]}?" if near else spell,
    )
