"""Numbers as a listing writes them, and their bits.

Owns: the spelling of constants and parameter defaults. Floats are decimal, hexadecimal (``0x1.8p+1``), ``inf`` or
``nan`` (canonical), ``nan:0x1`` (that payload), each with a sign, as in WebAssembly's text format. Leaves to
others: lines and names (text).
"""

from __future__ import annotations

import math
import re
import struct
from fractions import Fraction
from typing import Final

from vyre.program.opcodes import MemType, Type

_FLOAT: Final = {
    #         code bits fraction bits  exponent mask of the whole word
    Type.f32: ("<f", 32, 23, 0x7F80_0000),
    Type.f64: ("<d", 64, 52, 0x7FF0_0000_0000_0000),
}
_NAN: Final = re.compile(r"([+-]?)nan(?::0x([0-9a-fA-F]+))?\Z", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?\Z", re.ASCII)
_HEX: Final = re.compile(r"[+-]?0[xX][0-9a-fA-F]*\.?[0-9a-fA-F]*([pP][+-]?\d{1,5})?\Z", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?(0[xX][0-9a-fA-F_]+|\d[\d_]*)\Z", re.ASCII)
LITERAL_LENGTH_MAX: Final = 400
"""Characters of a number. Bounds the exact arithmetic that rounds it."""


def show_bits(type_: Type, bits: int) -> str:
    """The literal of a constant: read_bits() of it gives the same bits.

    Args:
        bits: below 2**32 for i32 and f32, below 2**64 for the others.
    """
    if not type_.is_float:
        width = 8 * type_.size
        return str(bits - (1 << width) if bits >> (width - 1) else bits)
    code, width, fraction, exponent = _FLOAT[type_]
    sign = "-" if bits >> (width - 1) else ""
    magnitude = bits & ((1 << (width - 1)) - 1)
    if magnitude > exponent:
        payload = magnitude & ((1 << fraction) - 1)
        return f"{sign}nan" if payload == 1 << (fraction - 1) else f"{sign}nan:{payload:#x}"
    if magnitude == exponent:
        return f"{sign}inf"
    value = struct.unpack(code, bits.to_bytes(width // 8, "little"))[0]
    if type_ is Type.f64:
        return repr(value)
    for digits in range(6, 9):
        text = f"{value:.{digits}g}"
        if struct.pack("<f", _clamped(float(text))) == struct.pack("<f", value):
            return repr(float(text))
    return repr(float(f"{value:.9g}"))


def _clamped(value: float) -> float:
    """The value, or infinity where struct would refuse to round it to f32."""
    return value if abs(value) < 3.4028235677973366e38 else math.copysign(math.inf, value)


def read_bits(type_: Type, text: str) -> int:
    """Bits of a literal; the inverse of ``show_bits``.

    Raises:
        ValueError: not a literal of that type, or a value beyond its range.
    """
    if len(text) > LITERAL_LENGTH_MAX:
        raise ValueError(f"a number of {len(text)} characters; at most {LITERAL_LENGTH_MAX}")
    if not type_.is_float:
        return _integer(text, -(1 << (8 * type_.size - 1)), 1 << (8 * type_.size), type_.name)
    code, width, fraction, exponent = _FLOAT[type_]
    match = _NAN.match(text)
    if match:
        payload = int(match[2], 16) if match[2] else 1 << (fraction - 1)
        if not 0 < payload < 1 << fraction:
            raise ValueError(f"{text!r}: the payload of a {type_.name} NaN is 1 to {(1 << fraction) - 1:#x}")
        return exponent | payload | (1 << (width - 1) if match[1] == "-" else 0)
    value = _float(text, type_)
    return int.from_bytes(struct.pack(code, value), "little")


def _integer(text: str, low: int, high: int, name: str) -> int:
    if not _INTEGER.match(text) or text.endswith("_") or "__" in text:
        raise ValueError(f"{text!r} is not an integer")
    try:
        value = int(text, 16) if "x" in text.lower() else int(text.replace("_", ""), 10)
    except ValueError:
        raise ValueError(f"{text!r} is not an integer") from None
    if not low <= value < high:
        raise ValueError(f"{text} does not fit {name}: {low} to {high - 1}")
    return value & ((1 << (high - 1).bit_length()) - 1)


def _float(text: str, type_: Type) -> float:
    """A finite or infinite number, rounded once to the type."""
    if text in ("inf", "+inf", "-inf"):
        return -math.inf if text[0] == "-" else math.inf
    try:
        if _HEX.match(text):
            value = float.fromhex(text)
            exact = _exact_hex(text) if type_ is Type.f32 else None
        elif _DECIMAL.match(text):
            value = float(text)
            exact = Fraction(text) if type_ is Type.f32 and 1e-60 < abs(value) < 1e40 else None
        else:
            raise ValueError
    except OverflowError:
        raise ValueError(f"{text} is beyond the range of {type_.name}") from None
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if exact is not None and exact != Fraction(value):
        # Round to odd at 53 bits, so that rounding to 24 bits next is as if rounded once (Boldo and Melquiond).
        low, high = sorted((value, math.nextafter(value, math.inf if exact > Fraction(value) else -math.inf)))
        value = low if int.from_bytes(struct.pack("<d", low), "little") & 1 else high
    if math.isinf(value) or (type_ is Type.f32 and math.isinf(_clamped(value))):
        raise ValueError(f"{text} is beyond the range of {type_.name}")
    return value


def _exact_hex(text: str) -> Fraction | None:
    """The value of a hexadecimal float without rounding; None where it is too small or large to matter."""
    body, _, power = text.lower().replace("+", "").partition("p")
    sign = -1 if body.startswith("-") else 1
    whole, _, part = body.lstrip("-")[2:].partition(".")
    scale = int(power or "0") - 4 * len(part)
    if abs(scale) > 4 * LITERAL_LENGTH_MAX:
        return None
    return sign * int(whole + part or "0", 16) * Fraction(2) ** scale


_RANGE: Final = {
    MemType.bool: (0, 2),
    MemType.i32: (-(1 << 31), 1 << 32),
    MemType.u32: (0, 1 << 32),
    MemType.i64: (-(1 << 63), 1 << 64),
    MemType.u64: (0, 1 << 64),
}


def read_param(dtype: MemType, text: str) -> int:
    """A parameter's default in memory form: its bits in the low bytes, zeros above.

    Raises:
        ValueError: not a literal of that type, or a value beyond its range.
    """
    if dtype in _RANGE:
        if len(text) > LITERAL_LENGTH_MAX:
            raise ValueError(f"a number of {len(text)} characters; at most {LITERAL_LENGTH_MAX}")
        return _integer(text, *_RANGE[dtype], dtype.name)
    if dtype in (MemType.f32, MemType.f64):
        return read_bits(dtype.type, text)
    raise ValueError(f"a parameter of {dtype.name} has no default: it is no parameter type")


def show_param(dtype: MemType, bits: int) -> str:
    """The literal of a parameter's default."""
    return show_bits(dtype.type, bits) if dtype in (MemType.i32, MemType.i64, MemType.f32, MemType.f64) else str(bits)
