"""A program as a VIR0 file, and back.

Owns: the bytes: header, section table, sections, digest. Leaves to others: whether what they say is a valid program
(verifier). decode() of any bytes gives a program or raises BytecodeError; it never trusts a length that it has not
checked, and every file of a program is the only one: encode(decode(file)) == file.

All numbers are little-endian. Sections start at multiples of 8, in the order of SECTIONS, without gaps but for zero
padding:

    offset  size  header
         0     4  magic "VIR0"
         4   2+2  version: major, minor
         8     4  number of sections
        12     4  0
        16     8  length of the file in bytes
        24    32  identity: BLAKE2b-256, personalised "VIR0", over the first four sections with their padding
        56     8  check: BLAKE2b-64 over the other sections with their padding
        64  24*n  section table: u32 number, u32 0, u64 offset, u64 length without padding
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any, Final

from vyre.errors import BytecodeError
from vyre.program.ir import Accumulator, Instr, Line, Param, Program, Stream, Table
from vyre.program.opcodes import Access, AccKind, MemType, Type
from vyre.program.show import printable
from vyre.program.words import described_from, remember

MAGIC: Final = b"VIR0"
VERSION: Final = (0, 1)
SECTIONS: Final = (
    # name            what it holds
    ("declarations", "counts and fuel, then 8 bytes a declaration, then 8 bytes a parameter: its default"),
    ("registers", "u8 type of each"),
    ("constants", "u64 each"),
    ("code", "8 bytes an instruction: u16 code, u8 dst, u8 a, u8 b, u8 c, u16 imm"),
    ("names", "UTF-8, separated by a zero byte: program, source file, then each declaration's"),
    ("lines", "u32 pc, u32 line each"),
)
"""Numbered from 1. The first four are the identity; the others only describe."""

_HEADER: Final = struct.Struct("<4sHHIIQ32sQ")
_ENTRY: Final = struct.Struct("<IIQQ")
_COUNTS: Final = struct.Struct("<8BHHI")
_DECLARATION: Final = struct.Struct("<BBHI")
_INSTR: Final = struct.Struct("<HBBBBH")
_PAIR: Final = struct.Struct("<II")
_COUNT: Final = len(SECTIONS)
_TABLE: Final = struct.Struct("<" + "IIQQ" * _COUNT)
_WHOLE: Final = struct.Struct("<4sHHIIQ32s8s" + "IIQQ" * _COUNT)
_START: Final = _HEADER.size + _ENTRY.size * _COUNT
SOURCE_BYTES_MAX: Final = 4_096

assert (_HEADER.size, _ENTRY.size, _COUNTS.size, _DECLARATION.size, _INSTR.size) == (64, 24, 16, 8, 8)
assert _START % 8 == 0, "the first section is aligned"

_BEGINNING: Final = struct.pack("<4sHHII", MAGIC, *VERSION, _COUNT, 0)
_PADDING: Final = bytes(7)
_DECLARED: Final = 6  # bytes of the counts that are of declarations
_IDENTITY: Final = blake2b(digest_size=32, person=MAGIC)  # copying one is sooner done than making one
_CHECK: Final = blake2b(digest_size=8, person=MAGIC)
_TYPES: Final = {int(t): t for t in Type}
_TYPE_LIST: Final = [_TYPES.get(i, Type.i32) for i in range(max(_TYPES) + 1)]
_TYPE_CODES: Final = bytes(_TYPES)
_MEM_TYPES: Final = {int(t): t for t in MemType}
_ACCESS: Final = {int(a): a for a in Access}
_KINDS: Final = {int(k): k for k in AccKind}
# A NamedTuple's own constructor is Python code and costs twice as much as tuple's.
_instr: Final[Callable[[tuple[int, ...]], Instr]] = partial(tuple.__new__, Instr)
_line: Final[Callable[[tuple[int, ...]], Line]] = partial(tuple.__new__, Line)


def identity(program: Program) -> bytes:
    """BLAKE2b-256 (32 bytes) of what the program does: code and declarations, without names and lines."""
    found: bytes | None = program.__dict__.get("_identity")  # of a program from a file, which was compared
    return _identity(b"".join(map(_padded, _meaning(program)))) if found is None else found


def encode(program: Program) -> bytes:
    """The program's VIR0 file. The program should be verified; one that is not may not be writable.

    Raises:
        BytecodeError: a number that has no room in its field.
    """
    meaning = _meaning(program)
    words = [program.name, _source(program.source)]
    for entries in (*_kinds(program), program.emits):
        words += [entry.name for entry in entries]
    names = "\0".join(words).encode()
    lines = struct.pack(f"<{2 * len(program.lines)}I", *chain.from_iterable(program.lines))
    sections = (*meaning, names, lines)
    offset = _START
    table: list[int] = []
    for number, section in enumerate(sections, 1):
        table += (number, 0, offset, len(section))
        offset += len(section) + -len(section) % 8
    inner = b"".join(map(_padded, meaning))
    outer = _padded(names) + lines
    header = _HEADER.pack(MAGIC, *VERSION, _COUNT, 0, offset, _identity(inner), _check(outer))
    return b"".join((header, _TABLE.pack(*table), inner, outer))


def decode(data: Any) -> Program:
    """The program that a VIR0 file holds; not verified.

    Args:
        data: any buffer; copied from, yours again on return.
    Raises:
        BytecodeError: not a VIR0 file, of another version, cut, or changed since it was written.
    """
    try:
        file = data if type(data) is bytes else memoryview(data).tobytes()
    except TypeError as error:
        raise BytecodeError(f"a VIR0 file is a buffer of bytes: {error}") from None
    return _whole(file) or _explained(file)


def _whole(file: bytes) -> Program | None:
    """The program of a file in which everything is right: what _explained gives, in a third of the time. None: ask it."""
    if len(file) < _START:
        return None
    _, _, _, _, _, length, digest, check, *table = _WHOLE.unpack_from(file)
    n1, n2, n3, n4, n5, n6 = table[3::4]
    at2 = _START + n1
    end2 = at2 + n2
    at3 = end2 + (-n2 & 7)
    at4 = at3 + n3
    at5 = at4 + n4
    end5 = at5 + n5
    at6 = end5 + (-n5 & 7)
    if (
        (n1 | n3 | n4 | n6) & 7
        or length != len(file)
        or at6 + n6 != length
        or file[:16] != _BEGINNING
        or table != [1, 0, _START, n1, 2, 0, at2, n2, 3, 0, at3, n3, 4, 0, at4, n4, 5, 0, at5, n5, 6, 0, at6, n6]
        or file[end2:at3] != _PADDING[: at3 - end2]
        or file[end5:at6] != _PADDING[: at6 - end5]
        or n1 < _COUNTS.size
    ):
        return None
    identity_, check_ = _IDENTITY.copy(), _CHECK.copy()
    identity_.update(file[_START:at5])
    check_.update(file[at5:])
    *_, n_registers, reserved, n_constants, n_code, fuel = _COUNTS.unpack_from(file, _START)
    if (
        identity_.digest() != digest
        or check_.digest() != check
        or (n_registers, 8 * n_constants, 8 * n_code, reserved) != (n2, n3, n4, 0)
    ):
        return None
    key = file[_START : _START + _DECLARED], file[_START + _COUNTS.size : at2], file[at5:end5]
    known = _known.get(key)
    if known is None:
        known = _known_now(*key)
        if known is None:
            return None
    registers = file[at2:end2]
    if registers.translate(None, _TYPE_CODES):
        return None
    types = tuple([_TYPE_LIST[t] for t in registers])
    program = Program.__new__(Program)
    # As the dataclass would do, which being frozen takes a call for each field.
    program.__dict__.update(
        known,
        registers=types,
        constants=struct.unpack_from(f"<{n_constants}Q", file, at3),
        fuel=fuel,
        lines=tuple(map(_line, _PAIR.iter_unpack(file[at6:]))) if n6 else (),
        _packed=file[at4:at5],
        _identity=digest,
    )
    remember(program, described_from(program, file[at3:at4], registers))
    return program


def _explained(file: bytes) -> Program:
    """decode(), step by step, with a reason for whatever is wrong."""
    if len(file) < _HEADER.size:
        if not MAGIC.startswith(file[:4]):
            raise BytecodeError(f"no VIR0 file: it starts with {file[:4]!r} and not with {MAGIC!r}")
        raise BytecodeError(f"cut at byte {len(file)}: the header alone has {_HEADER.size}")
    magic, major, minor, count, zero, length, digest, check = _HEADER.unpack_from(file)
    if magic != MAGIC:
        raise BytecodeError(f"no VIR0 file: it starts with {magic!r} and not with {MAGIC!r}")
    if (major, minor) != VERSION:
        raise BytecodeError(
            f"version {major}.{minor}; this vyre reads and writes {VERSION[0]}.{VERSION[1]}",
            fix="write it again from its source or listing with this vyre, or open it with the vyre that wrote it",
        )
    if length != len(file):
        what = "cut" if len(file) < length else "too long"
        raise BytecodeError(f"{what}: the header says {length} bytes, the file has {len(file)}")
    if count != _COUNT or zero or length < _START:
        raise BytecodeError(f"header: {count} sections, reserved word {zero}; version 0.1 has {_COUNT} and 0")
    declarations, registers, constants, code, names, lines = sections = _split(file)
    names_at = _START + sum(len(s) + -len(s) % 8 for s in sections[:4])
    if _identity(file[_START:names_at]) != digest:
        raise BytecodeError(
            "identity: code and declarations are not those that the digest was made of", fix="get the file again"
        )
    if _check(file[names_at:]) != check:
        raise BytecodeError("check: names and lines are not those that the file was written with", fix="get it again")
    if len(declarations) < _COUNTS.size:
        raise BytecodeError(f"declarations: {len(declarations)} bytes; the counts alone have {_COUNTS.size}")
    *counts, n_registers, reserved, n_constants, n_code, fuel = _COUNTS.unpack_from(declarations)
    n_params = counts[2]
    expected = (
        ("declarations", len(declarations), _COUNTS.size + 8 * (sum(counts) + n_params)),
        ("registers", len(registers), n_registers),
        ("constants", len(constants), 8 * n_constants),
        ("code", len(code), 8 * n_code),
    )
    for section, has, needs in expected:
        if has != needs:
            raise BytecodeError(f"{section}: {has} bytes, but the counts give {needs}")
    if reserved:
        raise BytecodeError(f"declarations: reserved byte {reserved} and not 0")
    if len(lines) % _PAIR.size:
        raise BytecodeError(f"lines: {len(lines)} bytes is no multiple of {_PAIR.size}")
    name, source, words = _words(names, sum(counts))
    at = len(declarations) - 8 * n_params
    defaults = struct.unpack_from(f"<{n_params}Q", declarations, at)
    kinds = _declared(declarations[_COUNTS.size : at], counts, words, defaults)
    try:
        types = tuple(map(_TYPES.__getitem__, registers))
    except KeyError as error:
        raise BytecodeError(f"registers: {error.args[0]} is no type's code") from None
    program = Program.__new__(Program)
    # As the dataclass would do, which being frozen takes a call for each field.
    program.__dict__.update(
        name=name,
        **kinds,
        registers=types,
        constants=struct.unpack(f"<{n_constants}Q", constants),
        fuel=fuel,
        source=source,
        lines=tuple(map(_line, _PAIR.iter_unpack(lines))),
        _packed=code,
        _identity=digest,
    )
    return program


def _split(file: bytes) -> list[bytes]:
    """The sections without padding. Their places follow from their lengths; the table must say the same."""
    table = _TABLE.unpack_from(file, _HEADER.size)
    offset = _START
    sections = []
    for i in range(_COUNT):
        number, zero, at, length = table[4 * i : 4 * i + 4]
        if number != i + 1 or zero or at != offset or length > len(file) - offset:
            raise BytecodeError(
                f"section {SECTIONS[i][0]}: number {number}, reserved {zero}, {length} bytes at {at}; it is number "
                f"{i + 1} and starts at {offset} of {len(file)}"
            )
        sections.append(file[offset : offset + length])
        offset += length
        padding = -length % 8
        if file[offset : offset + padding] != bytes(padding):
            raise BytecodeError(f"section {SECTIONS[i][0]}: padding at {offset} is not {padding} zero bytes")
        offset += padding
    if offset != len(file):
        raise BytecodeError(f"sections end at byte {offset}, the file at {len(file)}")
    return sections


def _words(names: bytes, count: int) -> tuple[str, str, list[str]]:
    """Program name, source and the names of the declarations."""
    try:
        words = names.decode().split("\0")
    except UnicodeDecodeError as error:
        raise BytecodeError(f"names: byte {error.start} is not UTF-8") from None
    if len(words) != count + 2:
        raise BytecodeError(f"names: {len(words)} of them, but program, source and {count} declarations")
    if len(words[1].encode()) > SOURCE_BYTES_MAX:
        raise BytecodeError(f"names: a source path of more than {SOURCE_BYTES_MAX} bytes")
    if not words[1].isprintable():
        raise BytecodeError(f"names: a source path of characters that are not printable: {words[1][:60]!r}")
    return words[0], words[1], words[2:]


def _declared(
    records: bytes, counts: Sequence[int], words: list[str], defaults: tuple[int, ...]
) -> dict[str, tuple[Any, ...]]:
    """The declarations of each kind, from their records in file order."""
    kinds: tuple[list[Any], ...] = ([], [], [], [], [], [])
    rows = zip(_DECLARATION.iter_unpack(records), words, strict=True)
    try:
        for kind, count in enumerate(counts):
            entries = kinds[kind]
            for index in range(count):
                (dtype, detail, zero, extra), word = next(rows)
                mem = _MEM_TYPES[dtype]
                if zero or (extra and kind != _ACCUMULATORS) or (detail and kind in _STREAMS):
                    raise BytecodeError(f"declaration {word[:60]!r}: reserved bytes are not 0")
                if kind in _STREAMS:
                    entries.append(Stream(word, mem))
                elif kind == _PARAMS:
                    if detail > 1 or defaults[index] > 0 == detail:
                        raise BytecodeError(f"param {word[:60]!r}: default {defaults[index]} with the flag {detail}")
                    entries.append(Param(word, mem, defaults[index] if detail else None))
                elif kind == _TABLES:
                    entries.append(Table(word, mem, _ACCESS[detail]))
                else:
                    entries.append(Accumulator(word, _KINDS[detail], mem, extra))
    except KeyError as error:
        raise BytecodeError(f"declaration {word[:60]!r}: {error.args[0]} is no such code") from None
    inputs, outputs, params, tables, accumulators, emits = map(tuple, kinds)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "params": params,
        "tables": tables,
        "accumulators": accumulators,
        "emits": emits,
    }


def _known_now(counts: bytes, records: bytes, names: bytes) -> dict[str, Any] | None:
    """Name, source and declarations of a file, remembered for the next file that has the same. None: they are wrong."""
    at = len(records) - 8 * counts[_PARAMS]
    if at != _DECLARATION.size * sum(counts):
        return None
    try:
        name, source, words = _words(names, sum(counts))
        defaults = struct.unpack_from(f"<{counts[_PARAMS]}Q", records, at)
        found = {"name": name, "source": source, **_declared(records[:at], counts, words, defaults)}
    except BytecodeError:
        return None
    if len(records) + len(names) <= _KNOWN_BYTES:
        if len(_known) >= _KNOWN_MAX:
            _known.clear()
        _known[counts, records, names] = found
    return found


_KNOWN_MAX: Final = 256
_KNOWN_BYTES: Final = 4_096
_known: Final[dict[tuple[bytes, bytes, bytes], dict[str, Any]]] = {}
"""Declarations of files seen before. Cleared when full: a stranger's files cannot fill memory."""
_STREAMS: Final = (0, 1, 5)
_PARAMS, _TABLES, _ACCUMULATORS = 2, 3, 4


def _kinds(program: Program) -> tuple[tuple[Any, ...], ...]:
    """All declarations but the emits, in file order; those are last."""
    return program.inputs, program.outputs, program.params, program.tables, program.accumulators


def _meaning(program: Program) -> tuple[bytes, bytes, bytes, bytes]:
    """The four sections of the identity, without padding."""
    pack = _DECLARATION.pack
    records = [pack(s.dtype, 0, 0, 0) for s in (*program.inputs, *program.outputs)]
    records += [pack(p.dtype, p.default is not None, 0, 0) for p in program.params]
    records += [pack(t.dtype, t.access, 0, 0) for t in program.tables]
    try:
        records += [pack(a.dtype, a.kind, 0, a.bins) for a in program.accumulators]
        records += [pack(s.dtype, 0, 0, 0) for s in program.emits]
        counts = _COUNTS.pack(
            *map(len, _kinds(program)),
            len(program.emits),
            len(program.registers),
            0,
            len(program.constants),
            len(program.code),
            program.fuel,
        )
        defaults = struct.pack(f"<{len(program.params)}Q", *(p.default or 0 for p in program.params))
        constants = struct.pack(f"<{len(program.constants)}Q", *program.constants)
        return b"".join((counts, *records, defaults)), bytes(program.registers), constants, program.packed
    except (struct.error, ValueError, TypeError) as error:
        raise BytecodeError(f"{program.name} cannot be written down: {error}", fix="verify it first") from None


def _source(source: str) -> str:
    """The source path as a file holds it: printable, because strangers' files are shown too, and not too long."""
    return printable(source).encode()[-SOURCE_BYTES_MAX:].decode(errors="ignore")


def _padded(section: bytes) -> bytes:
    return section if len(section) % 8 == 0 else section + bytes(-len(section) % 8)


def _identity(data: bytes) -> bytes:
    found = _IDENTITY.copy()
    found.update(data)
    return found.digest()


def _check(data: bytes) -> int:
    found = _CHECK.copy()
    found.update(data)
    return int.from_bytes(found.digest(), "little")


__all__ = ["BytecodeError", "decode", "encode", "identity"]
