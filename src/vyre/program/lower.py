"""How each operator and function of the Python surface becomes VIR0 instructions (decision 12).

Both front ends, ``python`` and ``expression``, lower through one ``Lowering``, so they cannot disagree about a type
or a rounding. They differ in what ``emit`` does with an instruction.

A value is one int: register number << 4 | kind; for a weak literal, index into ``literals`` << 4 | kind. That keeps
the table look-up of the common case, two operands of one type, at a shift and an index: a never-seen expression is
lowered while its user waits.

Owns: operators, functions, folding of literals. Leaves to others: types and tables (kinds), syntax and places (the
front ends; a ``Refusal`` raised here has no place yet), registers and code (their ``emit``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vyre.program.kinds import (
    ARITY,
    BINARY,
    BIT_FUNCTIONS,
    BOOL,
    CAST,
    COMPARES,
    DEFAULT_KIND,
    F32,
    F64,
    FLOATS,
    I32,
    I64,
    INDEX,
    INTS,
    KIND_NAME,
    KIND_TYPE,
    MAX_EXPANDED_POWER,
    MAX_EXPANDED_POWER_F32,
    MAX_LITERAL,
    NAMED_KIND,
    NARROW,
    ROUNDINGS,
    SATURATING,
    SELECT,
    SIGNED,
    U32,
    U64,
    UNARY,
    UNSIGNED,
    WEAK_FLOAT,
    WEAK_INT,
    Refusal,
    code_of,
    constant_bits,
    promote,
)
from vyre.program.opcodes import Type


@dataclass(frozen=True, slots=True)
class Choice:
    """``where(c, 1, 2)``: still weak, it becomes a select of two constants once its type is known."""

    condition: int
    a: int
    b: int


class Lowering:
    """Turns operators and functions on values into instructions. A front end brings ``emit`` and ``constant``."""

    __slots__ = ("literals",)

    def __init__(self) -> None:
        self.literals: list[int | float | Choice | None] = []

    # --- what a front end brings ------------------------------------------------------------------------------

    def emit(self, op: int, kind: int, a: int = 0, b: int = 0, c: int = 0, imm: int = 0) -> int:
        """Append instruction ``op`` on values a, b, c; the value of ``kind`` that it writes (0: no result)."""
        raise NotImplementedError

    def constant(self, kind: int, bits: int) -> int:
        """The value of a constant, appended where it is not at hand."""
        raise NotImplementedError

    # --- literals and conversions -----------------------------------------------------------------------------

    def literal(self, value: int | float | bool) -> int:
        """A value for a literal of the source: weak, but for True and False."""
        if isinstance(value, bool):
            return self.constant(BOOL, int(value))
        self.literals.append(value)
        return (len(self.literals) - 1) << 4 | (WEAK_INT if isinstance(value, int) else WEAK_FLOAT)

    def unknown(self, kind: int) -> int:
        """A value of weak ``kind`` that is no literal: a local variable in a pass that is still finding types."""
        self.literals.append(None)
        return (len(self.literals) - 1) << 4 | kind

    def strong(self, value: int) -> int:
        """``value`` with a type: a weak one becomes i64 or f64."""
        kind = DEFAULT_KIND.get(value & 15)
        return value if kind is None else self.convert(value, kind)

    def convert(self, value: int, kind: int) -> int:
        """``value`` in ``kind``, which promotion chose: it never loses more than one rounding."""
        have = value & 15
        if have == kind:
            return value
        if have >= WEAK_INT:
            weak = self.literals[value >> 4]
            if isinstance(weak, Choice):
                a, b = self.convert(weak.a, kind), self.convert(weak.b, kind)
                return self.emit(SELECT[kind], kind, a, b, weak.condition)
            if kind >= WEAK_INT:  # an integer literal beside a float one
                return self.unknown(kind) if weak is None else self.literal(float(weak))
            if weak is None:
                if have == WEAK_FLOAT and kind not in FLOATS:
                    raise Refusal(f"a float where {KIND_NAME[kind]} is needed", f"cast it: {KIND_NAME[kind]}(x)")
                return self.constant(kind, 0)
            return self.constant(kind, constant_bits(kind, weak))
        op = CAST[have, kind]
        return value & ~15 | kind if op is None else self.emit(op, kind, value)

    def cast(self, value: int, name: str) -> int:
        """The explicit casts: integers wrap, floats round, a float to an integer truncates and traps outside it."""
        if name in ("f16", "bf16"):
            raise Refusal(
                f"{name} is a type of memory only: there is no register of it",
                f"use it for inputs, and for a result: return vyre.{name}(x)",
            )
        if name in NARROW:
            if value & 15 not in (I32, U32, WEAK_INT):
                value = self.cast(value, "i64")
            value = self.cast(value, "i32")
            op, mask = NARROW[name]
            if mask:
                return self.emit(BINARY["&"][I32 << 4 | I32][0], I32, value, self.constant(I32, mask))  # type: ignore[index]
            return self.emit(code_of(op), I32, value)
        kind = NAMED_KIND[name]
        have = value & 15
        if have == kind:
            return value
        if have >= WEAK_INT:
            weak = self.literals[value >> 4]
            if kind == BOOL and isinstance(weak, int | float):
                return self.constant(BOOL, int(weak != 0))
            if weak is None or isinstance(weak, Choice) or (kind in INTS and have == WEAK_FLOAT):
                return self.cast(self.strong(value), name)
            return self.constant(kind, constant_bits(kind, weak))
        if kind == BOOL:
            return self.binary("!=", value, self.literal(0))
        op_code = CAST[have, kind]
        return value & ~15 | kind if op_code is None else self.emit(op_code, kind, value)

    # --- operators --------------------------------------------------------------------------------------------

    def unary(self, symbol: str, value: int) -> int:
        """``-x``, ``+x``, ``~x`` and ``not x``."""
        kind = value & 15
        if symbol == "not":
            if kind != BOOL:
                raise Refusal(f"'not' takes bool, not {KIND_NAME[kind]}", "compare it: x == 0")
            return self.emit(code_of("i32.eqz"), BOOL, value)
        if kind >= WEAK_INT:
            weak = self.literals[value >> 4]
            if weak is None:
                return self.unknown(kind)
            if not isinstance(weak, Choice):
                if symbol == "~" and not isinstance(weak, int):
                    raise Refusal("'~' takes bool or an integer, not a float literal")
                return self.literal(-weak if symbol == "-" else weak if symbol == "+" else ~weak)  # type: ignore[operator]
            value = self.strong(value)
            kind = value & 15
        if symbol == "~":
            if kind == BOOL:
                return self.emit(code_of("i32.eqz"), BOOL, value)
            if kind in FLOATS:
                raise Refusal(
                    f"'~' takes bool or an integer, not {KIND_NAME[kind]}", "use bits(x) for the bits of a float"
                )
            return self.binary("^", value, self.constant(kind, (1 << 8 * KIND_TYPE[kind].size) - 1))
        if kind == BOOL:
            raise Refusal(f"unary '{symbol}' of bool", "bool is no number here: write i32(x), 'not x' or ~x")
        if symbol == "+":
            return value
        if kind in FLOATS:
            return self.emit(code_of(f"{KIND_NAME[kind]}.neg"), kind, value)
        return self.binary("-", self.constant(kind, 0), value)

    def binary(self, symbol: str, a: int, b: int) -> int:
        """An operator of two operands, or one of the functions min, max, fmod, copysign, rotl, rotr."""
        hit = BINARY[symbol][(a & 15) << 4 | b & 15]
        if hit is not None:
            return self.emit(hit[0], hit[1], a, b)
        if symbol == "**":
            return self.power(a, b)
        if symbol == "and" or symbol == "or":
            wrong = b if a & 15 == BOOL else a
            raise Refusal(f"'{symbol}' takes bool, not {KIND_NAME[wrong & 15]}", "compare it: x != 0")
        kind = promote(a & 15, b & 15, f"'{symbol}'")
        if kind >= WEAK_INT:
            folded = self._fold(symbol, a, b)
            if folded is not None:
                return folded
            kind = DEFAULT_KIND[kind]
        if kind in INTS and symbol in ("/", "copysign"):
            kind = F64  # both converted, then divided: as NumPy
        if symbol in ("<<", ">>", "rotl", "rotr"):
            self._check_shift(symbol, b, kind)
        if kind in SIGNED and symbol in ("//", "%"):
            return self._signed_divmod(symbol, kind, self.convert(a, kind), b)
        a, b = self.convert(a, kind), self.convert(b, kind)
        hit = BINARY[symbol][kind << 4 | kind]
        if hit is not None:
            return self.emit(hit[0], hit[1], a, b)
        if kind in FLOATS and symbol in ("//", "%"):
            return self._float_divmod(symbol, kind, a, b)
        raise Refusal(f"'{symbol}' of {KIND_NAME[kind]}", _NO_OPERATOR.get(symbol, ""))

    def both(self, first: int, second: int) -> int:
        """Both of two bools."""
        return self.emit(code_of("i32.and"), BOOL, first, second)

    def _check_shift(self, symbol: str, count: int, kind: int) -> None:
        if count & 15 == WEAK_INT and kind in INTS:
            by = self.literals[count >> 4]
            if isinstance(by, int) and not 0 <= by < 8 * KIND_TYPE[kind].size:
                raise Refusal(
                    f"'{symbol}' of {KIND_NAME[kind]} by {by}",
                    f"shift by 0..{8 * KIND_TYPE[kind].size - 1}, or cast to i64 first",
                )

    def _fold(self, symbol: str, a: int, b: int) -> int | None:
        """An operator on two literals, computed exactly (integers) or by IEEE f64 arithmetic (floats)."""
        x, y = self.literals[a >> 4], self.literals[b >> 4]
        if x is None or y is None or isinstance(x, Choice) or isinstance(y, Choice):
            if symbol in COMPARES:
                return None
            if x is None or y is None:
                if symbol == "/":
                    return self.unknown(WEAK_FLOAT)
                return self.unknown(WEAK_FLOAT if WEAK_FLOAT in (a & 15, b & 15) else WEAK_INT)
            return None
        if symbol in ("&", "|", "^", "<<", ">>") and not (isinstance(x, int) and isinstance(y, int)):
            raise Refusal(f"'{symbol}' of a float literal", "use integer literals")
        if symbol in ("/", "//", "%") and y == 0:
            raise Refusal("division of a literal by zero")
        if symbol in ("<<", ">>") and not 0 <= y < 64:
            raise Refusal(f"'{symbol}' of a literal by {y}", "shift by 0..63")
        fold = _FOLD.get(symbol)
        if fold is None:
            return None
        try:
            result = fold(x, y)
        except OverflowError:
            raise Refusal(f"'{symbol}' of literals is beyond the range of f64") from None
        if isinstance(result, int) and not isinstance(result, bool) and abs(result) >= MAX_LITERAL:
            raise Refusal(f"'{symbol}' of literals gives an integer beyond 64 bits", "write float literals")
        return self.literal(result)

    def _signed_divmod(self, symbol: str, kind: int, a: int, b: int) -> int:
        """Flooring division. Both operators trap on zero and on the one overflow."""
        t = KIND_TYPE[kind].name
        divisor = self.literals[b >> 4] if b & 15 == WEAK_INT else None
        if not isinstance(divisor, int) or divisor <= 0:
            b = self.convert(b, kind)
            quotient = self.emit(code_of(f"{t}.div_s"), kind, a, b)
            rest = self.binary("-", a, self.binary("*", quotient, b))
            zero = self.constant(kind, 0)
            apart = self.binary("<", self.binary("^", rest, b), zero)
            off = self.both(self.binary("!=", rest, zero), apart)
            if symbol == "//":
                return self.binary("-", quotient, self._flag(off, kind))
            return self.select(off, self.binary("+", rest, b), rest)
        constant_bits(kind, divisor)  # refuses one that does not fit
        if divisor & (divisor - 1) == 0:
            if symbol == "%":
                return self.binary("&", a, self.constant(kind, divisor - 1))
            return self.binary(">>", a, self.constant(kind, divisor.bit_length() - 1))
        # The remainder's sign alone tells whether truncation went up: spread it over the word.
        b = self.convert(b, kind)
        quotient = self.emit(code_of(f"{t}.div_s"), kind, a, b)
        rest = self.binary("-", a, self.binary("*", quotient, b))
        sign = self.binary(">>", rest, self.constant(kind, 8 * KIND_TYPE[kind].size - 1))
        if symbol == "//":
            return self.binary("+", quotient, sign)
        return self.binary("+", rest, self.binary("&", sign, b))

    def _flag(self, flag: int, kind: int) -> int:
        """A bool as 0 or 1 of an integer kind."""
        return flag & ~15 | kind if KIND_TYPE[kind] is Type.i32 else self.emit(code_of("i64.extend_i32_u"), kind, flag)

    def _float_divmod(self, symbol: str, kind: int, a: int, b: int) -> int:
        """Flooring division of floats, step for step as NumPy's npy_divmod, so with its bits."""
        zero = self.constant(kind, 0)
        rest = self.binary("fmod", a, b)
        signs = self.emit(code_of("i32.xor"), BOOL, self.binary("<", b, zero), self.binary("<", rest, zero))
        exact = self.binary("==", rest, zero)
        off = self.both(self.binary("!=", rest, zero), signs)
        if symbol == "%":
            moved = self.select(off, self.binary("+", rest, b), rest)
            # With b = 0 the rest is NaN, neither exact nor off: it stays.
            return self.select(exact, self.binary("copysign", zero, b), moved)
        one = self.constant(kind, constant_bits(kind, 1.0))
        quotient = self.binary("/", self.binary("-", a, rest), b)
        quotient = self.select(off, self.binary("-", quotient, one), quotient)
        floor = self.emit(UNARY["floor"][kind], kind, quotient)
        half = self.constant(kind, constant_bits(kind, 0.5))
        up = self.binary(">", self.binary("-", quotient, floor), half)
        floor = self.select(up, self.binary("+", floor, one), floor)
        plain = self.binary("/", a, b)
        floor = self.select(self.binary("==", quotient, zero), self.binary("copysign", zero, plain), floor)
        return self.select(self.binary("==", b, zero), plain, floor)

    def power(self, a: int, b: int) -> int:
        """``a ** b``: an integer literal b is multiplied out; otherwise f32's pow. f64 has no pow."""
        n = self.literals[b >> 4] if b & 15 >= WEAK_INT else None
        ka = a & 15
        if BOOL in (ka, b & 15):
            raise Refusal("'**' of bool", "bool is no number here: write i32(x), or where(x, 1, 0)")
        if ka >= WEAK_INT and b & 15 >= WEAK_INT:
            return self._fold_power(a, b)
        if isinstance(n, float) and n.is_integer() and abs(n) <= MAX_EXPANDED_POWER:
            a, n = self.convert(a, promote(ka, WEAK_FLOAT, "'**'")), int(n)
            ka = a & 15
        if isinstance(n, int) and abs(n) <= (MAX_EXPANDED_POWER if ka != F32 else MAX_EXPANDED_POWER_F32):
            if n < 0 and ka in INTS:
                raise Refusal(f"an integer to the power {n}", "cast it: f64(x)")
            return self._expand_power(a, n)
        if ka in (*INTS, WEAK_INT) and b & 15 in (*INTS, WEAK_INT):
            raise Refusal(
                "'**' of integers with an exponent that is no literal of 0 to 64", "use floats, or multiply in a loop"
            )
        kind = promote(ka, b & 15, "'**'")
        if kind == F64:
            half = self.literals[b >> 4] if b & 15 == WEAK_FLOAT else None
            fix = (
                "write sqrt(x)" if half == 0.5 else "cast to f32, or write exp(y * log(x)) where that is precise enough"
            )
            raise Refusal("'**' of f64: there is no f64 pow", fix)
        return self.emit(code_of("f32.pow"), F32, self.convert(a, kind), self.convert(b, kind))

    def _expand_power(self, a: int, n: int) -> int:
        kind = a & 15
        if n == 0:
            return self.constant(kind, constant_bits(kind, 1))
        result, square, rest = 0, a, abs(n)
        while rest:
            if rest & 1:
                result = self.binary("*", result, square) if result else square
            rest >>= 1
            if rest:
                square = self.binary("*", square, square)
        return result if n > 0 else self.binary("/", self.constant(kind, constant_bits(kind, 1)), result)

    def _fold_power(self, a: int, b: int) -> int:
        x, n = self.literals[a >> 4], self.literals[b >> 4]
        if x is None or n is None:
            return self.unknown(WEAK_FLOAT if WEAK_FLOAT in (a & 15, b & 15) else WEAK_INT)
        if isinstance(x, Choice) or not isinstance(n, int) or abs(n) > MAX_EXPANDED_POWER:
            raise Refusal("'**' of literals with an exponent that is no integer of -64 to 64", "write the number")
        if n < 0 and x == 0:
            raise Refusal("division of a literal by zero")
        result = self.literal(1)
        for _ in range(abs(n)):
            result = self._fold("*", result, a) or result
        return result if n >= 0 else self._fold("/", self.literal(1), result) or result

    # --- functions --------------------------------------------------------------------------------------------

    def select(self, condition: int, a: int, b: int) -> int:
        """a where condition, else b; both of one strong kind."""
        return self.emit(SELECT[a & 15], a & 15, a, b, condition)

    def where(self, condition: int, a: int, b: int) -> int:
        """``where(c, a, b)`` and ``a if c else b``, both evaluated."""
        if condition & 15 != BOOL:
            raise Refusal(f"the condition is {KIND_NAME[condition & 15]}, not bool", "compare it: x != 0")
        kind = promote(a & 15, b & 15, "a choice")
        if kind >= WEAK_INT:
            if self.literals[a >> 4] is None or self.literals[b >> 4] is None:
                return self.unknown(kind)
            self.literals.append(Choice(condition, a, b))
            return (len(self.literals) - 1) << 4 | kind
        return self.select(condition, self.convert(a, kind), self.convert(b, kind))

    def call(self, name: str, args: list[int]) -> int:
        """A function of values, by its name in ``vyre``.

        Raises:
            Refusal: no such function, a wrong number of arguments, or types that it does not take.
        """
        arity = ARITY.get(name)
        if arity is None:
            raise Refusal(f"there is no function {name!r}", f"known: {', '.join(sorted(ARITY))}")
        if not arity[0] <= len(args) <= arity[1]:
            counts = f"{arity[0]}" if arity[0] == arity[1] else f"{arity[0]} or more"
            raise Refusal(f"{name}() takes {counts} argument{'' if counts == '1' else 's'}, not {len(args)}")
        if name in UNARY:
            return self._unary_function(name, args[0])
        if name in ("min", "max", "fmod", "copysign", "rotl", "rotr"):
            result = args[0]
            for other in args[1:]:
                result = self.binary(name, result, other)
            return result
        if name == "where":
            return self.where(args[0], args[1], args[2])
        if name == "pow":
            return self.power(args[0], args[1])
        if name == "abs":
            return self._abs(args[0])
        if name == "fma":
            kind = promote(promote(args[0] & 15, args[1] & 15, "fma"), args[2] & 15, "fma")
            kind = kind if kind in FLOATS else F64
            a, b, c = (self.convert(arg, kind) for arg in args)
            return self.emit(code_of(f"{KIND_NAME[kind]}.fma"), kind, a, b, c)
        if name == "index":
            return self.emit(INDEX, I64)
        if name in ("bits", "from_bits"):
            return self._reinterpret(name, args[0])
        if name.endswith("_sat"):
            kind = NAMED_KIND[name[:3]]
            value = self.strong(args[0])
            if value & 15 not in FLOATS:
                raise Refusal(f"{name}() of {KIND_NAME[value & 15]}", f"it takes a float; {name[:3]}(x) casts integers")
            return self.emit(SATURATING[value & 15, kind], kind, value)
        return self.cast(args[0], name)

    def _unary_function(self, name: str, value: int) -> int:
        kind = value & 15
        op = UNARY[name].get(kind)
        if op is not None:
            return self.emit(op, kind, value)
        if kind == BOOL:
            raise Refusal(f"{name}() of bool", "bool is no number here: write i32(x)")
        if name in BIT_FUNCTIONS:
            if kind == WEAK_INT:
                return self._unary_function(name, self.strong(value))
            raise Refusal(f"{name}() of {KIND_NAME[kind]}", "it takes an integer; bits(x) gives the bits of a float")
        if kind in INTS and name in ROUNDINGS:
            return value
        if kind == F64:
            raise Refusal(f"there is no f64 {name}", f"cast to f32: {name}(f32(x))")
        return self._unary_function(name, self.convert(value, F64))

    def _abs(self, value: int) -> int:
        kind = value & 15
        if kind == BOOL:
            raise Refusal("abs() of bool", "bool is no number here: write i32(x)")
        if kind >= WEAK_INT:
            weak = self.literals[value >> 4]
            if isinstance(weak, int | float):
                return self.literal(abs(weak))
            return self.unknown(kind) if weak is None else self._abs(self.strong(value))
        if kind in FLOATS:
            return self.emit(code_of(f"{KIND_NAME[kind]}.abs"), kind, value)
        return value if kind in UNSIGNED else self.binary("max", value, self.unary("-", value))

    def _reinterpret(self, name: str, value: int) -> int:
        value = self.strong(value)
        kind = value & 15
        if name == "bits":
            if kind not in FLOATS:
                raise Refusal(f"bits() of {KIND_NAME[kind]}", "it takes f32 or f64")
            op, to = ("i32.reinterpret_f32", U32) if kind == F32 else ("i64.reinterpret_f64", U64)
        else:
            if kind not in INTS:
                raise Refusal(f"from_bits() of {KIND_NAME[kind]}", "it takes an integer")
            op, to = ("f32.reinterpret_i32", F32) if kind in (I32, U32) else ("f64.reinterpret_i64", F64)
        return self.emit(code_of(op), to, value)


_NO_OPERATOR: Final = {
    "&": "for bits use bits(x); for conditions compare first: (x > 0) & (y > 0)",
    "|": "for bits use bits(x); for conditions compare first: (x > 0) | (y > 0)",
    "^": "for bits use bits(x)",
    "<<": "multiply instead, or cast to an integer",
    ">>": "divide instead, or cast to an integer",
}
_FOLD: Final = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "//": lambda x, y: x // y,
    "%": lambda x, y: x % y,
    "&": lambda x, y: x & y,
    "|": lambda x, y: x | y,
    "^": lambda x, y: x ^ y,
    "<<": lambda x, y: x << y,
    ">>": lambda x, y: x >> y,
    "<": lambda x, y: x < y,
    "<=": lambda x, y: x <= y,
    ">": lambda x, y: x > y,
    ">=": lambda x, y: x >= y,
    "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
    "min": lambda x, y: x if x <= y else y,
    "max": lambda x, y: x if x >= y else y,
}
