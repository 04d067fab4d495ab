"""Formulas that nobody has seen before, of a given number of operations, and the same for each peer.

Owns: the generator. Every operation rounds once and alike everywhere, so that answers can be compared bit for bit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NUMBER: Final = re.compile(r"(?<![\w.])\d+\.\d+")
_BINARY: Final = ("+", "-", "*", "+", "-", "*", "/")


def formula(seed: int, operations: int) -> str:
    """A formula of exactly ``operations`` operations over a, b and c with constants of its own."""
    rng = random.Random(seed)
    text = rng.choice("abc")
    done = 0
    while done < operations:
        left = operations - done
        kind = rng.random()
        if kind < 0.1 and left >= 2:
            text, done = f"sqrt(abs({text}))", done + 2
        elif kind < 0.2 and left >= 2:
            text, done = f"where({rng.choice('abc')} < {_constant(rng)}, {text}, {rng.choice('abc')})", done + 2
        elif kind < 0.4 and left >= 2:
            text, done = f"({text} + {rng.choice('abc')}*{_constant(rng)})", done + 2
        else:
            other = rng.choice(["a", "b", "c", _constant(rng)])
            op = rng.choice(_BINARY) if other.replace(".", "").isdigit() else rng.choice("+-*")
            text, done = f"({text} {op} {other})", done + 1
    return text


def _constant(rng: random.Random) -> str:
    return f"{rng.randint(257, 2047) / 1024:.6f}"


def columns(count: int, seed: int = 7) -> dict[str, NDArray[np.float32]]:
    """Three columns of float32 in [0.5, 1.5)."""
    rng = np.random.default_rng(seed)
    return {name: rng.random(count, np.float32) + np.float32(0.5) for name in "abc"}


def numpy_code(text: str) -> Any:
    """The formula as code for ``eval`` over NumPy's functions: what a user has already written as Python."""
    return compile(text, "<formula>", "eval")


NUMPY: Final[Mapping[str, Any]] = {
    "sqrt": np.sqrt, "abs": np.abs, "where": np.where, "minimum": np.minimum, "maximum": np.maximum, "__builtins__": {},
}  # fmt: skip


def for_numexpr(text: str) -> tuple[str, dict[str, Any]]:
    """Text and constants for numexpr, to which a literal is f64: as float32 scalars it stays in float32 as we do."""
    constants: dict[str, Any] = {}

    def name(match: re.Match[str]) -> str:
        constants[f"k{len(constants)}"] = np.float32(match[0])
        return f"k{len(constants) - 1}"

    return NUMBER.sub(name, text), constants


def function_of(text: str, module: Any, extra: Mapping[str, Any] | None = None) -> Any:
    """``f(a, b, c)`` for a tracing or compiling peer, over the functions of ``module``; float32 constants."""
    text = NUMBER.sub(lambda m: f"float32({m[0]})", text)
    scope: dict[str, Any] = {
        "sqrt": module.sqrt, "abs": module.abs, "where": module.where, "minimum": module.minimum, "maximum": module.maximum,
        "float32": np.float32, **(extra or {}),
    }  # fmt: skip
    exec(f"def f(a, b, c):\n    return {text}", scope)
    return scope["f"]
