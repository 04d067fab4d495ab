"""Which handlers the CPU engine has, in groups that are compiled when a program first needs one of them.

Owns: names of handlers, their groups, their addresses in this process. Leaves to others: their text (makers, results,
elementary), compiling and keeping it (jit, store), and choosing among them (tileform).

A handler's name is its instruction's, or that of a step that several instructions share, with what distinguishes the
variant behind it: ``f32.add.vs.canonical``. vs, sv: operand b, or a, is one constant or parameter for all lanes. canonical: a
NaN result becomes the canonical one. masked: only lanes of the mask in force count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final

from vyre import jit
from vyre.engines.cpu import elementary, makers, results
from vyre.engines.cpu.makers import Maker
from vyre.engines.cpu.skeleton import Made, module
from vyre.engines.cpu.templates import fill
from vyre.program.opcodes import OPCODES, Group, MemType, Nan, Op, Type

if TYPE_CHECKING:
    from vyre.program.ir import Program

Form = tuple[bytes, bytes, int, bool, bool, bool]
"""What native lowering gives: the fields of a tile form."""

SCALAR_B: Final = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "and",
        "or",
        "xor",
        "shl",
        "shr_s",
        "shr_u",
        "min",
        "max",
        "min_s",
        "min_u",
        "max_s",
        "max_u",
        "eq",
        "ne",
        "lt",
        "gt",
        "le",
        "ge",
        "lt_s",
        "lt_u",
        "gt_s",
        "gt_u",
        "le_s",
        "le_u",
        "ge_s",
        "ge_u",
    ]
)
"""Verbs with a form where b is uniform. Division of integers, rotations and copysign have none."""
COMMUTE: Final = frozenset(
    ["add", "mul", "and", "or", "xor", "min", "max", "min_s", "min_u", "max_s", "max_u", "eq", "ne"]
)
SWAP: Final = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}
"""Comparison with its operands exchanged."""
SCALAR_A: Final = frozenset(["sub", "div"])

_FAMILIES: Final = (
    ("arith", ["add", "sub", "mul", "div", "and", "or", "xor", "shl", "shr_s", "shr_u"]),
    ("order", ["min", "max", "min_s", "min_u", "max_s", "max_u"]),
    (
        "compare",
        ["eqz", "eq", "ne", "lt", "gt", "le", "ge", "lt_s", "lt_u", "gt_s", "gt_u", "le_s", "le_u", "ge_s", "ge_u"],
    ),
    ("divide", ["div_s", "div_u", "rem_s", "rem_u"]),
    ("fused", ["fma"]),
    ("round", ["ceil", "floor", "trunc", "nearest", "sqrt"]),
    ("sign", ["abs", "neg", "copysign"]),
    ("bits", ["clz", "ctz", "popcnt", "rotl", "rotr", "bitrev", "bswap", "extend8_s", "extend16_s", "extend32_s"]),
)
_FAMILY: Final = {verb: family for family, verbs in _FAMILIES for verb in verbs}


def variants(op: Op) -> list[str]:
    """Suffixes of the uniform-operand forms of a numeric instruction; "" is the form without."""
    verb = op.name.partition(".")[2]
    if verb == "fma":
        return ["", ".vvs", ".vsv"]
    if len(op.args) != 2 or op.traps or verb not in SCALAR_B or (verb == "div" and not op.args[0].is_float):
        return [""]
    return ["", ".vs", ".sv"] if verb in SCALAR_A else ["", ".vs"]


_UNIFORM: Final = {"": "", ".vs": "b", ".sv": "a", ".vvs": "c", ".vsv": "b"}


def _numeric(found: dict[str, tuple[str, Maker]]) -> None:
    for op in OPCODES:
        if op.group is not Group.numeric:
            continue
        prefix, _, verb = op.name.partition(".")
        family = f"{prefix}.{_FAMILY[verb]}" if verb in _FAMILY else f"{prefix}.convert"
        if op.traps:
            family = f"{prefix}.divide" if verb in _FAMILY else f"{prefix}.trunc"
            found[op.name] = (family, makers.trapping(op, False))
            found[op.name + ".masked"] = (family + ".masked", makers.trapping(op, True))
            continue
        for suffix in variants(op):
            uniform = _UNIFORM[suffix]
            found[op.name + suffix] = (family, makers.numeric(op, uniform))
            if _FAMILY.get(verb) == "compare":
                found[f"{op.name}{suffix}.mask"] = (family + ".mask", makers.compare_to_mask(op, uniform, True))
                found[f"{op.name}{suffix}.mask.and"] = (family + ".mask", makers.compare_to_mask(op, uniform, False))
            if op.nan is Nan.canonical:
                found[f"{op.name}{suffix}.canonical"] = (family + ".canonical", makers.numeric(op, uniform, True))


def _data(found: dict[str, tuple[str, Maker]]) -> None:
    found["return"] = ("core", lambda symbol: Made(fill("skeletons", "return", name=symbol), []))
    for size in (4, 8):
        found[f"copy.{size}"] = ("core", makers.copy(size))
        found[f"fill.{size}"] = ("core", makers.splat(size))
        found[f"blend.{size}"] = ("blend", makers.blend(size, False))
        found[f"blend.u.{size}"] = ("blend", makers.blend(size, True))
        for suffix in ("", ".vs", ".sv"):
            found[f"select.{size}{suffix}"] = ("select", makers.select(size, _UNIFORM[suffix]))
    found["index"] = ("index", makers.index)
    for masked, end in ((False, ""), (True, ".masked")):
        found["unreachable" + end] = ("unreachable", makers.unreachable(masked))
        for kind, size in (("8", 1), ("16", 2), ("bool", 1), ("f16", 2), ("bf16", 2)):
            group = "f16" if kind == "f16" else "narrow"
            found[f"store.{kind}{end}"] = (f"{group}.store{end}", makers.store(kind, size, masked))
        for dtype in MemType:
            group = dtype.type.name if dtype.is_identity else dtype.name
            found[f"table_get.{dtype.name}{end}"] = (f"table_get.{group}{end}", makers.table_get(dtype, masked))
            found[f"table_page.{dtype.name}{end}"] = (f"table_page.{group}{end}", makers.table_page(dtype, masked))
        for size in (4, 8):
            for verb in ("add", "and", "or", "xor", "min_s", "min_u", "max_s", "max_u"):
                maker = makers.table_atomic(verb, size, masked)
                found[f"table_{verb}.{size}{end}"] = (f"table_atomic.{size}{end}", maker)
    for dtype in MemType:
        if not dtype.is_identity:
            group = "f16" if dtype is MemType.f16 else "narrow"
            found[f"load.{dtype.name}"] = (group + ".load", makers.load(dtype))


def _control(found: dict[str, tuple[str, Maker]]) -> None:
    for nested, end in ((False, ""), (True, ".nested")):
        for verb in ("if", "else", "loop"):
            found["test" + end] = ("control", makers.test(nested))
            found[verb + end] = ("control" if verb != "loop" else "loop", makers.branch(verb, nested))
    found["br_if"] = ("loop", makers.back_edge)


def _results(found: dict[str, tuple[str, Maker]]) -> None:
    found["sum.open"] = ("sum.partial", results.sum_open)
    found["sum.close"] = ("sum.partial", results.sum_close)
    for masked, end in ((False, ""), (True, ".masked")):
        found["acc_count" + end] = ("reduce" + end, results.count(masked))
        found["i64.acc_sum" + end] = ("reduce" + end, results.integer_sum(masked))
        found["acc_histogram" + end] = ("histogram", results.histogram(masked))
        for t in (Type.f32, Type.f64):
            found[f"{t.name}.acc_sum{end}"] = (f"sum.{t.name}", results.sum_once(t, masked))
            found[f"{t.name}.acc_sum.mul{end}"] = (f"sum.{t.name}", results.sum_of_product(t, masked))
            found[f"{t.name}.acc_sum.update{end}"] = ("sum.partial", results.sum_update(t, masked))
        for t in Type:
            for verb in ("min", "max") if t.is_float else ("min_s", "min_u", "max_s", "max_u"):
                found[f"{t.name}.acc_{verb}{end}"] = (f"extreme.{t.name}{end}", results.extreme(t, verb, masked))
    for how in ("all", "masked", "flagged"):
        for kind, size in (("same", 4), ("same", 8), ("8", 1), ("16", 2), ("bool", 1), ("f16", 2), ("bf16", 2)):
            group = {"same": f"emit.{how}", "f16": f"emit.{how}.f16"}.get(kind, f"emit.{how}.narrow")
            name = f"emit.{8 * size if kind == 'same' else kind}.{how}"
            found[name] = (group, results.emit(kind, size, how))


@cache
def catalogue() -> dict[str, tuple[str, Maker]]:
    """Every handler: name -> its group and what makes its text."""
    found: dict[str, tuple[str, Maker]] = {}
    _data(found)
    _control(found)
    _results(found)
    _numeric(found)
    for op in OPCODES:
        if op.group is Group.function:
            found[op.name] = (f"function.{op.name}", elementary.handler(op))
    return found


@cache
def _members() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, (group, _) in catalogue().items():
        groups.setdefault(group, []).append(name)
    return groups


def symbol_of(name: str) -> str:
    """Name of the handler's symbol in its module."""
    return f"vyre.{name}"


def source(*names: str) -> str:
    """LLVM IR of a module with these handlers."""
    return module([catalogue()[name][1](symbol_of(name)) for name in names])


def describe(name: str, *, assembly: bool = False) -> str:
    """What was generated for one handler: its LLVM IR, or the assembler text of this machine.

    Raises:
        KeyError: there is no handler of that name.
    """
    return jit.assembly(source(name), brief=True) if assembly else source(name)


class Handlers:
    """Addresses of handlers in this process, compiled by group on demand. Thread-safe."""

    def __init__(self, store: jit.ObjectStore | None = None) -> None:
        self.store = store
        self.addresses: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()
        self._straight: Callable[[Program], Form | None] | None = None

    def straight(self, program: Program) -> Form | None:
        """Prologue, body, scratch slots and whether there is fuel, when native code can lower the program."""
        if self._straight is None:
            from vyre.engines.cpu.straight_form import Lowering

            self._straight = Lowering(self.addresses, self.store).lower
        return self._straight(program)

    def address(self, name: str) -> int:
        """Address of a handler; compiles its group, or loads it from the store, when it is the first of it.

        Raises:
            KeyError: there is no handler of that name: a bug of ours.
        """
        found = self.addresses.get(name)
        if found is None:
            self._load(catalogue()[name][0])
            found = self.addresses[name]
        return found

    def name_of(self, address: int) -> str:
        """The name behind an address that was given out."""
        return self._names[address]

    def _load(self, group: str) -> None:
        with self._lock:
            names = _members()[group]
            if names[0] in self.addresses:
                return
            symbols = [symbol_of(name) for name in names]
            compiled = jit.compile_ir(source(*names), symbols, self.store, brief=True)
            for name, symbol in zip(names, symbols, strict=True):
                self._names[compiled[symbol]] = name
            self.addresses.update({name: compiled[symbol] for name, symbol in zip(names, symbols, strict=True)})


_shared: dict[int, Handlers] = {}
_shared_lock = threading.Lock()


def shared(store: jit.ObjectStore | None = None) -> Handlers:
    """The process's handlers. A store that is given takes the place of none."""
    found = _shared.get(0)
    if found is not None and found.store is not None:
        return found
    with _shared_lock:
        found = _shared.setdefault(0, Handlers(store))
        if found.store is None:
            found.store = store
        return found
