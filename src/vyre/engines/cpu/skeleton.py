"""From what happens to one element to loops over the lanes of a tile.

Owns: turning scalar IR into the same IR over vectors, and putting a handler's text together from the sections of
templates/skeletons.ll. Leaves to others: which handlers there are (handlers), and what an element does (bodies.ll).

IR is written as vectors of ``BLOCK`` lanes, not found by a loop vectoriser: it cannot fail to vectorise, any target splits
such vectors into its own, and it compiles in a third of the time. Lanes that do not fill a block run one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from vyre import jit
from vyre.engines.cpu.abi import OP_A, OP_B, OP_C, OP_DST
from vyre.engines.cpu.primitives import Body, gather
from vyre.engines.cpu.templates import fill

BLOCK: Final = 32
"""Lanes of one step: two 512-bit vectors of 32-bit values, four of 64-bit ones."""

_FIELDS: Final = {"d": OP_DST, "a": OP_A, "b": OP_B, "c": OP_C}
_TOKEN: Final = re.compile(
    r"(?<![%@.\w])(i1|i8|i16|i32|i64|half|float|double)(?![\w.])"  # a type
    r"|(?<=[ (])(?<!align )(-?\d[\w.]*(?:e[+-]\d+)?|true|false)(?=[,)\s]|$)"  # a literal, of the type before it
    r"|(@llvm\.[\w.]+)"  # an intrinsic, overloaded by its suffixes
    r'|(@"body\.[^"]+)"'  # a function of one element
)
_SUFFIX: Final = re.compile(r"\.([if]\d+)\b")

_MODULE_END: Final = """
attributes #0 = { nounwind "no-builtins" }
attributes #1 = { alwaysinline nounwind "min-legal-vector-width"="0" }
attributes #2 = { noinline nounwind "no-builtins" }
attributes #3 = { nounwind "no-builtins"$WIDTH }
!0 = distinct !{!0, !{!"llvm.loop.vectorize.enable", i1 false}, !{!"llvm.loop.unroll.disable"}}
!1 = !{!"branch_weights", i32 1, i32 1000}
!2 = !{i32 1}
"""

_HALF_WIDTH: Final = ' "prefer-vector-width"="256" "min-legal-vector-width"="0"'
"""For cores that run a 512-bit instruction as two halves. There light handlers are as fast in the first-level cache with ymm,
and 15 % faster from memory (a + b over 4 Mi f32 on a Zen 4: 1.06 ms against 1.21); comparisons, min and max, and what computes
long take 512-bit masks and are up to twice as fast with zmm (f64.lt 98 ns a tile against 190)."""


def module_end() -> str:
    """Attributes and metadata that every module needs, for this machine."""
    return _MODULE_END.replace("$WIDTH", _HALF_WIDTH if jit.host_cpu() == "znver4" else "")


def widen(text: str, lanes: int = BLOCK) -> str:
    """Scalar instructions as instructions over vectors of ``lanes``. Pointers and address arithmetic stay scalar."""
    return "\n".join(_widen_line(line, lanes) for line in text.split("\n"))


def _widen_line(line: str, lanes: int) -> str:
    if "getelementptr" in line:
        return line
    last = ""

    def replace(match: re.Match[str]) -> str:
        nonlocal last
        type_, literal, intrinsic, body = match.groups()
        if type_:
            last = type_
            return f"<{lanes} x {type_}>"
        if literal:
            return f"splat ({last} {literal})"
        if intrinsic:
            return _SUFFIX.sub(lambda m: f".v{lanes}{m[1]}", intrinsic)
        return f'{body}.v{lanes}"'

    wide = _TOKEN.sub(replace, line)
    if "ctlz" in wide or "cttz" in wide:  # their second operand is a flag, not data
        wide = wide.replace(f"<{lanes} x i1> splat (i1 false)", "i1 false")
    return wide


def module(handlers: Sequence[Made]) -> str:
    """A module of handlers and of the bodies that they call, scalar and wide."""
    scalar: dict[str, str] = {}
    wide: dict[tuple[str, int], str] = {}
    for made in handlers:
        for one in gather(made.bodies):
            scalar[one.symbol] = one.text
            if (one.symbol, made.lanes) not in wide:
                wide[one.symbol, made.lanes] = one.wide(made.lanes) if one.wide else widen(one.text, made.lanes)
    return "\n".join([*scalar.values(), *wide.values(), *(made.text for made in handlers)]) + module_end()


def per_lane(element: str, label: str, lanes: int = BLOCK) -> tuple[str, str]:
    """The wide and the scalar form of what an element does, with names that are unique to the loop ``label``."""
    wide = widen(element, lanes).replace("%e.", f"%{label}.v.").replace("%u.", "%uv.")
    single = element.replace("%e.", f"%{label}.s.").replace("%u.", "%us.")
    return wide, single


class Made(NamedTuple):
    """A handler's text, the bodies that it calls, and how many lanes wide it calls them."""

    text: str
    bodies: list[Body]
    lanes: int = BLOCK


class Text:
    """The text of one handler, from open to leave.

    Args:
        lanes: of its vectors.
        light: it does so little to a value that it waits for memory.
    """

    def __init__(self, name: str, lanes: int = BLOCK, light: bool = False) -> None:
        self.parts = [fill("skeletons", "open", name=name, attributes="#3" if light else "#0")]
        self.bodies: list[Body] = []
        self.lanes = lanes
        self.before = "entry"
        self.n = "%n"

    def operand(self, x: str) -> None:
        """Where the lanes of operand ``x`` (d, a, b or c) are."""
        self.parts.append(fill("skeletons", "vector", x=x, at=_FIELDS[x]))

    def uniform(self, x: str, type_: str) -> None:
        """The constant or parameter in the record, as %us.x and %uv.x."""
        self.parts.append(fill("skeletons", "uniform", x=x, T=type_))
        self.splat(x, type_)

    def splat(self, x: str, type_: str) -> None:
        """%uv.x from %us.x."""
        self.parts.append(fill("skeletons", "splat", x=x, T=type_, lanes=self.lanes))

    def section(self, name: str, **values: object) -> None:
        self.parts.append(fill("skeletons", name, **values))

    def section_of(self, file: str, name: str, **values: object) -> None:
        self.parts.append(fill(file, name, **values))

    def line(self, text: str) -> None:
        self.parts.append(text)

    def loop(self, element: str, label: str = "each") -> None:
        """Do ``element`` to each lane and go on after the loop."""
        self.loop_split(*per_lane(element, label, self.lanes), label)

    def loop_past_caches(self, element: str, past: str, label: str = "each") -> None:
        """The same, or ``past`` for blocks of an output that is larger than the caches."""
        wide, single = per_lane(element, label, self.lanes)
        away, _ = per_lane(past, f"{label}.past", self.lanes)
        values = {"n": self.n, "lanes": self.lanes, "wide": wide, "past": away, "single": single}
        self.section("lanes.stream", L=label, **values)
        self.before = f"{label}.end"

    def loop_split(self, wide: str, single: str, label: str = "each") -> None:
        """The same from two forms, for an element that knows its position."""
        values = {"from": self.before, "n": self.n, "lanes": self.lanes, "wide": wide, "single": single}
        self.section("lanes", L=label, **values)
        self.before = f"{label}.end"

    def reduce(self, element: str, type_: str, zero: str, how: str, label: str) -> None:
        """A loop that carries %e.acc of ``type_`` from ``zero`` to %e.acc.next; all lanes' are in %<label>.result."""
        wide, single = per_lane(element, label, self.lanes)
        suffix = {"float": "f32", "double": "f64"}.get(type_, type_)
        values = {"from": self.before, "n": self.n, "lanes": self.lanes, "wide": wide, "single": single}
        self.section("lanes.carry", L=label, T=type_, N=suffix, zero=zero, reduce=how, **values)
        self.before = f"{label}.end"

    def trap(self, fetch: str, bad: str, code: str) -> None:
        """Stop the tile before its lowest bad lane.

        Args:
            fetch: element text that loads what the others need.
            bad: element text that computes %e.bad.
            code: element text that computes the i32 %e.code of a bad element.
        """
        check = f"{fetch}\n{bad}\n  %e.acc.next = or i1 %e.acc, %e.bad"
        self.reduce(check, "i1", "false", "or", "check")
        _, find = per_lane(f"{fetch}\n{bad}", "find")
        _, codes = per_lane(code, "find")
        self.section("trap", find=find, code=codes)
        self.before, self.n = "go", "%n.left"

    def leave(self) -> Made:
        """The end: on to the next op."""
        self.parts.append("  br label %leave")
        return self.finish()

    def finish(self) -> Made:
        """The end, when the last section has branched to %leave itself."""
        self.parts.append(fill("skeletons", "leave"))
        return Made("\n".join(self.parts) + "\n", self.bodies, self.lanes)
