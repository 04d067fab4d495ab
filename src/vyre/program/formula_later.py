"""When formulas begin to be read natively: from the first one after an engine has loaded a program.

A process that has one formula does not wait for the reader to be imported and its code to be loaded: that formula is
read before it is loaded.

Owns: that moment. Leaves to others: the reader (formula_form), who has a store for its code (engines).
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from vyre.program import expression

if TYPE_CHECKING:
    from vyre.jit import ObjectStore
    from vyre.program.ir import Program


def read_natively(store: ObjectStore | None) -> None:
    """From the next formula on, let native code read; once in a process. Its code is kept in ``store``."""
    if expression.quick.read is not None or platform.machine() not in ("x86_64", "aarch64"):
        return

    def first(text: str, types: expression.Types, params: tuple[str, ...], name: str, fuel: int) -> Program | None:
        from vyre.program.formula_form import Reader

        expression.quick.read = read = Reader(store).read
        return read(text, types, params, name, fuel)

    expression.quick.read = first
