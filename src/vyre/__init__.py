"""vyre: one kernel that stays resident and interprets bytecode.

    import vyre

    @vyre.program
    def q6(shipdate: vyre.i32, discount: vyre.f64, quantity: vyre.f64, price: vyre.f64, *, start: vyre.i32, end: vyre.i32):
        if start <= shipdate < end and 0.05 <= discount <= 0.07 and quantity < 24:
            vyre.sum(revenue=price * discount)

    vyre.run(q6, {"shipdate": "d.npy", "discount": "x.npy", "quantity": "q.npy", "price": "p.npy"}, start=8766, end=9131)
    vyre.evaluate("2*a + where(b > 0, sqrt(b), 0)", a=a, b=b)

Names are imported when they are first used, so that ``import vyre`` is quick.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vyre.errors import *  # noqa: F403
    from vyre.program.bytecode import decode as decode
    from vyre.program.bytecode import encode as encode
    from vyre.program.expression import expression as expression
    from vyre.program.ir import Program as Program
    from vyre.program.population import Population as Population
    from vyre.program.python import program as program
    from vyre.program.text import format as format
    from vyre.program.text import parse as parse
    from vyre.program.types import *  # noqa: F403
    from vyre.program.verifier import Verified as Verified
    from vyre.program.verifier import verify as verify
    from vyre.runtime.api import evaluate as evaluate
    from vyre.runtime.api import open as open
    from vyre.runtime.api import run as run
    from vyre.runtime.loaded import Bound as Bound
    from vyre.runtime.loaded import Loaded as Loaded
    from vyre.runtime.populations import LoadedPopulation as LoadedPopulation
    from vyre.runtime.populations import ManyResult as ManyResult
    from vyre.runtime.result import Report as Report
    from vyre.runtime.result import Result as Result
    from vyre.runtime.session import Session as Session
    from vyre.runtime.streaming import Stream as Stream
    from vyre.runtime.tickets import Ticket as Ticket
    from vyre.stream.disk_table import DiskTable as DiskTable
    from vyre.stream.disk_table import disk_table as disk_table
    from vyre.stream.formats import Column as Column
    from vyre.stream.formats import column as column
    from vyre.stream.formats import npy as npy
    from vyre.stream.formats import raw as raw
    from vyre.stream.ranges import ranges as ranges

_HOMES = {
    "decode": "vyre.program.bytecode",
    "encode": "vyre.program.bytecode",
    "expression": "vyre.program.expression",
    "Program": "vyre.program.ir",
    "Population": "vyre.program.population",
    "program": "vyre",
    "format": "vyre.program.text",
    "parse": "vyre.program.text",
    "Verified": "vyre.program.verifier",
    "verify": "vyre.program.verifier",
    "evaluate": "vyre.runtime.api",
    "open": "vyre.runtime.api",
    "run": "vyre.runtime.api",
    "LoadedPopulation": "vyre.runtime.populations",
    "ManyResult": "vyre.runtime.populations",
    "Report": "vyre.runtime.result",
    "Result": "vyre.runtime.result",
    "Bound": "vyre.runtime.loaded",
    "Loaded": "vyre.runtime.loaded",
    "Session": "vyre.runtime.session",
    "Stream": "vyre.runtime.streaming",
    "Ticket": "vyre.runtime.tickets",
    "DiskTable": "vyre.stream.disk_table",
    "disk_table": "vyre.stream.disk_table",
    "Column": "vyre.stream.formats",
    "column": "vyre.stream.formats",
    "npy": "vyre.stream.formats",
    "raw": "vyre.stream.formats",
    "ranges": "vyre.stream.ranges",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for."""
    import importlib

    home = _HOMES.get(name)
    if name == "program":  # the package itself is the decorator
        found = importlib.import_module("vyre.program")
    elif home is not None:
        found = getattr(importlib.import_module(home), name)
    else:
        found = _elsewhere(name)
    globals()[name] = found
    return found


def _elsewhere(name: str) -> Any:
    """Types and functions of the program language, and errors: each module says itself what it has."""
    import importlib

    if not name.startswith("_"):
        for home in ("vyre.program.types", "vyre.errors"):
            module = importlib.import_module(home)
            found = getattr(module, name, None)
            if found is not None and (
                getattr(found, "__module__", None) == home or name in getattr(module, "__all__", ())
            ):
                return found
    raise AttributeError(f"module 'vyre' has no attribute {name!r}")


def __dir__() -> list[str]:
    import importlib

    names = {*_HOMES, "__version__"}
    for home in ("vyre.program.types", "vyre.errors"):
        module = importlib.import_module(home)
        names |= {n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", None) == home}
    return sorted(names)
