"""Compute src/vyre/program/function_tables.py: every coefficient of the elementary functions, from mpmath alone.

    python tools/function_tables.py > src/vyre/program/function_tables.py

Each polynomial is a minimax fit (Remez exchange, 200 bits) under the weight that turns the fit's error into relative error
of the function; then its coefficients are rounded to f64. The error that is printed beside it is measured afterwards,
with the rounded coefficients, on a grid finer than the fit's.

Owns: how constants are derived. Leaves to function_bodies.py what they are used for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import mpmath as mp

mp.mp.prec = 200
Real = mp.mpf
Curve = Callable[[Real], Real]

PI_BITS = 1_344
"""Binary places of 1/pi: 1,024 for the largest exponent, 192 for the product, 64 for the window, and some more."""


def chebyshev(low: Real, high: Real, count: int) -> list[Real]:
    """``count`` Chebyshev extreme points of [low, high], ascending."""
    middle, half = (low + high) / 2, (high - low) / 2
    return [middle - half * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]


def fit(curve: Curve, weight: Curve, low: Real, high: Real, degree: int) -> tuple[list[float], float]:
    """Minimax polynomial of ``curve`` on [low, high] under |weight * error|.

    Returns:
        Coefficients as f64, constant term first, and the largest weighted error that is left after rounding them.
    """
    count = degree + 2
    grid = chebyshev(low, high, 40 * count)
    values, weights = [curve(x) for x in grid], [weight(x) for x in grid]
    points = [round(i * (len(grid) - 1) / (count - 1)) for i in range(count)]
    coefficients: list[Real] = []
    for _ in range(30):
        rows = [[grid[p] ** j for j in range(degree + 1)] + [(-1) ** i / weights[p]] for i, p in enumerate(points)]
        solved = mp.lu_solve(mp.matrix(rows), mp.matrix([values[p] for p in points]))
        coefficients, level = [solved[j] for j in range(degree + 1)], abs(solved[degree + 1])
        errors = [w * (mp.polyval(coefficients[::-1], x) - v) for x, v, w in zip(grid, values, weights, strict=True)]
        points = _alternation(errors, count)
        if max(abs(e) for e in errors) < level * Real("1.01"):
            break
    rounded = [float(c) for c in coefficients]
    exact = [Real(c) for c in rounded][::-1]
    fine = chebyshev(low, high, 100 * count)
    return rounded, float(max(abs(weight(x) * (mp.polyval(exact, x) - curve(x))) for x in fine))


def _alternation(errors: list[Real], count: int) -> list[int]:
    """``count`` points of alternating sign that include the largest error: one peak per run of equal sign, ends dropped."""
    peaks: list[int] = []
    for i, error in enumerate(errors):
        if peaks and (errors[peaks[-1]] > 0) == (error > 0):
            if abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = i
        else:
            peaks.append(i)
    while len(peaks) > count:
        peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
    assert len(peaks) == count, "the error does not alternate: is the weight zero inside the interval?"
    return peaks


def near_zero(exact: Curve, series: Curve) -> Curve:
    """``exact``, but ``series`` where the closed form would divide zero by zero."""
    return lambda x: series(x) if abs(x) < Real(2) ** -60 else exact(x)


def split(value: Real, parts: int) -> list[float]:
    """The f64 values whose sum is ``value`` to 53 bits each, largest first."""
    result = []
    for _ in range(parts):
        result.append(float(value))
        value -= Real(result[-1])
    return result


def main() -> None:
    ln2 = mp.log(2)
    half = Real("0.5") + Real(2) ** -16
    half_ln2 = ln2 * half
    quarter_pi = mp.pi / 4 * (1 + Real(2) ** -12)
    half_pi = mp.pi / 2 * (1 + Real(2) ** -12)
    s_max = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)
    w_max = s_max**2 * (1 + Real(2) ** -20)
    one: Curve = lambda x: Real(1)  # noqa: E731

    def atanh_over_s(w: Real) -> Real:
        s = mp.sqrt(w)
        return mp.atanh(s) / s

    rows: list[tuple[str, str, Curve, Curve, Real, Real, int]] = [
        ("EXP2", "2**r, |r| <= 1/2, relative", lambda r: 2**r, lambda r: 2**-r, -half, half, 7),
        (
            "EXP2M1", "(2**r - 1) / r, |r| <= 1/2, relative",
            near_zero(lambda r: (2**r - 1) / r, lambda r: ln2 + r * ln2**2 / 2),
            near_zero(lambda r: r / (2**r - 1), lambda r: 1 / ln2), -half, half, 7,
        ),
        (
            "EXP", "(e**r - 1 - r) / r**2, |r| <= ln(2)/2, as relative error of e**r",
            near_zero(lambda r: (mp.exp(r) - 1 - r) / r**2, lambda r: Real(1) / 2 + r / 6),
            lambda r: r * r * mp.exp(-r) + Real(2) ** -100, -half_ln2, half_ln2, 10,
        ),
        (
            "LOG_SHORT", "2 atanh(s) / s in w = s**2, |s| <= (sqrt 2 - 1) / (sqrt 2 + 1), relative",
            near_zero(lambda w: 2 * atanh_over_s(w), lambda w: 2 + 2 * w / 3),
            lambda w: Real(1) / 2, Real(0), w_max, 4,
        ),
        (
            "LOG2", "2 log2(e) atanh(s) / s in w, relative",
            near_zero(lambda w: 2 / ln2 * atanh_over_s(w), lambda w: (2 + 2 * w / 3) / ln2),
            lambda w: ln2 / 2, Real(0), w_max, 5,
        ),
        (
            "LOG", "(2 atanh(s) / s - 2) / w in w, as relative error of log",
            near_zero(lambda w: (2 * atanh_over_s(w) - 2) / w, lambda w: Real(2) / 3 + 2 * w / 5),
            lambda w: w / 2 + Real(2) ** -100, Real(0), w_max, 6,
        ),
        (
            "SIN_SHORT", "sin(r) / r in w = r**2, |r| <= pi/2, relative",
            near_zero(lambda w: mp.sin(mp.sqrt(w)) / mp.sqrt(w), lambda w: 1 - w / 6),
            near_zero(lambda w: mp.sqrt(w) / mp.sin(mp.sqrt(w)), one), Real(0), half_pi**2, 5,
        ),
        (
            "SIN", "(sin(r) / r - 1) / w, |r| <= pi/4, as relative error of sin",
            near_zero(lambda w: (mp.sin(mp.sqrt(w)) / mp.sqrt(w) - 1) / w, lambda w: Real(-1) / 6 + w / 120),
            near_zero(lambda w: w * mp.sqrt(w) / mp.sin(mp.sqrt(w)) + Real(2) ** -100, lambda w: Real(2) ** -100),
            Real(0), quarter_pi**2, 5,
        ),
        (
            "COS", "(cos(r) - 1 + w/2) / w**2, |r| <= pi/4, as relative error of cos",
            near_zero(lambda w: (mp.cos(mp.sqrt(w)) - 1 + w / 2) / w**2, lambda w: Real(1) / 24 - w / 720),
            lambda w: w * w / mp.cos(mp.sqrt(w)) + Real(2) ** -100, Real(0), quarter_pi**2, 5,
        ),
    ]  # fmt: skip
    out = sys.stdout.write
    out(
        '"""Coefficients of the elementary functions. Written by tools/function_tables.py: change that, not this."""\n\n'
    )
    out("from __future__ import annotations\n\nfrom typing import Final\n\n")
    for name, what, curve, weight, low, high, degree in rows:
        coefficients, error = fit(curve, weight, low, high, degree)
        out(f"# {what}: error 2**{mp.nstr(mp.log(error, 2), 4)}\n")
        out(f"{name}: Final = (\n" + "".join(f"    {c!r},\n" for c in coefficients) + ")\n")
    for name, what, value, parts in (
        ("LN2", "ln(2) as a sum, largest first", ln2, 2),
        ("LOG2_E", "log2(e)", 1 / ln2, 1),
        ("PI", "pi as a sum", mp.pi, 2),
        ("HALF_PI", "pi/2 as a sum", mp.pi / 2, 3),
        ("ONE_OVER_PI", "1/pi", 1 / mp.pi, 1),
        ("TWO_OVER_PI", "2/pi", 2 / mp.pi, 1),
    ):
        out(
            f"# {what}\n{name}: Final = ("
            + ", ".join(repr(v) for v in split(value, parts))
            + ("," * (parts == 1))
            + ")\n"
        )
    with mp.workprec(PI_BITS + 64):
        digits = f"{int(mp.floor(mp.ldexp(1 / mp.pi, PI_BITS))):x}"
    lines = [digits[i : i + 96] for i in range(0, len(digits), 96)]
    out(f"# floor(2**{PI_BITS} / pi): the places of 1/pi for arguments of any size\n")
    out(f"PI_BITS: Final = {PI_BITS}\nONE_OVER_PI_DIGITS: Final = (\n")
    out("".join(f'    "{line}"\n' for line in lines) + ")\n")


if __name__ == "__main__":
    main()
