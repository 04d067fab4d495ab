"""Reads tests/programs/*.vir: one program a file, what goes in, and what must come out, on every engine.

A file is remarks up to the first section, then sections that start with ``-- name``:

    -- asm       the listing
    -- item      ``first 1024`` and ``count 5``: element numbers; 0 and the inputs' length when left out
    -- inputs    ``name: values``; in memory type, so bits that no listing could say are possible too
    -- params    ``name: value``
    -- tables    ``name: values``
    -- result    ``name: values`` of outputs, emits, accumulators and atomic tables; every name must be there
    -- fault     ``divide_by_zero pc 3 element 2``: no result but this trap
    -- error     the verifier's rule, or ``listing``; then lines that the message must contain

Values are separated by blanks: literals as in listings (f16 and bf16: bits as ``0x3c00``), ``0..9`` for ten integers,
``1.5*100`` for a hundred times the same. Results are compared bit for bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vyre.program import literals, text
from vyre.program.ir import Program
from vyre.program.opcodes import Access, AccKind, FaultCode, MemType

PROGRAMS = Path(__file__).parent / "programs"
SECTIONS = ("asm", "item", "inputs", "params", "tables", "result", "fault", "error")
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NUMPY = {
    MemType.bool: np.bool_, MemType.i8: np.int8, MemType.u8: np.uint8, MemType.i16: np.int16, MemType.u16: np.uint16,
    MemType.i32: np.int32, MemType.u32: np.uint32, MemType.i64: np.int64, MemType.u64: np.uint64,
    MemType.f16: np.float16, MemType.bf16: np.uint16, MemType.f32: np.float32, MemType.f64: np.float64,
}  # fmt: skip


@dataclass
class VirFile:
    """One file. ``program`` to ``result`` are empty when ``error`` is given.

    Attributes:
        inputs, tables: arrays in declaration order, in memory type (bf16: its bits as u16).
        params: 64 bits each in declaration order, defaults filled in.
        result: raw bits (unsigned arrays) by name, or None when ``fault`` is given.
        fault: code, pc, element.
        error: rule, or "listing", then what the message must contain.
    """

    path: Path
    listing: str
    program: Program | None = None
    first: int = 0
    count: int = 0
    inputs: list[Any] = field(default_factory=list)
    params: list[int] = field(default_factory=list)
    tables: list[Any] = field(default_factory=list)
    result: dict[str, Any] | None = None
    fault: tuple[FaultCode, int, int] | None = None
    error: list[str] = field(default_factory=list)


def values(dtype: MemType, words: str) -> np.ndarray:
    """The raw bits (unsigned) of values as a .vir file writes them."""
    bits: list[int] = []
    for word in words.split():
        span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", word)
        if span:
            for number in range(int(span[1]), int(span[2]) + 1):
                bits.append(_bits(dtype, f"{number}"))
            continue
        literal, star, times = word.partition("*")
        bits += [_bits(dtype, literal)] * (int(times) if star else 1)
    return np.array(bits, RAW[dtype.size])


def _bits(dtype: MemType, word: str) -> int:
    if dtype in (MemType.f32, MemType.f64):
        return literals.read_bits(dtype.type, word)
    number = int(word, 0)
    assert -(1 << (8 * dtype.size - 1)) <= number < 1 << (8 * dtype.size), f"{word} does not fit {dtype.name}"
    assert dtype not in (MemType.f16, MemType.bf16) or word.startswith("0x"), f"{dtype.name} is given as bits"
    return number & ((1 << (8 * dtype.size)) - 1)


def result_types(program: Program) -> dict[str, MemType]:
    """Memory type of each result by name; a histogram's is that of its bins."""
    types = {e.name: e.dtype for e in (*program.outputs, *program.emits, *program.accumulators)}
    return types | {t.name: t.dtype for t in program.tables if t.access is Access.atomic}


def read(path: Path) -> VirFile:
    """Parse one file; a mistake in it is an AssertionError that names it."""
    sections: dict[str, str] = {}
    name = None
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith("-- "):
            name = line[3:].strip()
            assert name in SECTIONS, f"{path.name}: section {name!r}"
            assert name not in sections, f"{path.name}: {name} twice"
            sections[name] = ""
        elif name is not None:
            sections[name] += line + "\n"
    assert "asm" in sections, f"{path.name}: no asm"
    assert sum(key in sections for key in ("result", "fault", "error")) == 1, (
        f"{path.name}: one of result, fault, error"
    )
    file = VirFile(path, sections["asm"])
    if "error" in sections:
        file.error = [line.strip() for line in sections["error"].split("\n") if line.strip()]
        return file
    program = file.program = text.parse(file.listing)
    named = {key: _named(path, sections.get(key, "")) for key in ("inputs", "params", "tables", "result")}
    file.inputs = [values(s.dtype, named["inputs"].pop(s.name)).view(NUMPY[s.dtype]) for s in program.inputs]
    file.tables = [values(t.dtype, named["tables"].pop(t.name)).view(NUMPY[t.dtype]) for t in program.tables]
    for param in program.params:
        given = named["params"].pop(param.name, None)
        file.params.append(param.default if given is None else literals.read_param(param.dtype, given))
    item = dict(line.split() for line in sections.get("item", "").split("\n") if line.strip())
    file.first, file.count = int(item.get("first", 0)), int(item.get("count", len((file.inputs or [[]])[0])))
    if "fault" in sections:
        word, _, pc, _, element = sections["fault"].split()
        file.fault = FaultCode[word], int(pc), int(element)
    else:
        types = result_types(program)
        file.result = {name: values(dtype, named["result"].pop(name)) for name, dtype in types.items()}
        for acc in program.accumulators:
            assert len(file.result[acc.name]) == (acc.bins if acc.kind is AccKind.histogram else 1), acc.name
    left = [name for section in named.values() for name in section]
    assert not left, f"{path.name}: {left} are not declared"
    return file


def _named(path: Path, section: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in section.split("\n"):
        if line.strip():
            name, colon, rest = line.partition(":")
            assert colon, f"{path.name}: {line!r} is not 'name: values'"
            found[name.strip()] = f"{found.get(name.strip(), '')} {rest}".strip()
    return found


def paths() -> list[Path]:
    return sorted(PROGRAMS.glob("*.vir"))
