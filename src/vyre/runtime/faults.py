"""What a fault tells its caller: source line, and the values at it.

Owns: finding them again. Leaves to others: where faults come from (engines), which exception one becomes (tickets).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from vyre.engines.base import FileRange, Operands
from vyre.errors import Fault
from vyre.program.opcodes import Access, FaultCode

if TYPE_CHECKING:
    from vyre.runtime.loaded import Loaded

OnFault = Literal["raise", "report"]
DESCRIBED_FUEL: Final = 2_048
"""Turns of a loop that are run again to find the values at a fault."""


def described(fault: Fault, loaded: Loaded, operands: Operands) -> Fault:
    """A fault with its source line and the values of its operands, which the reference finds by running that tile."""
    program = loaded.program
    if fault.pc is None or fault.code >= 16:
        return fault
    values = fault.operands
    if fault.element is not None and fault.code != FaultCode.out_of_fuel and not values:
        values = _operand_values(fault, fault.element, loaded, operands)
    return Fault(
        fault.code,
        fault.reason,
        fault.pc,
        fault.element,
        program.source or None,
        program.line_of(fault.pc),
        dict(values),
    )


def _operand_values(fault: Fault, element: int, loaded: Loaded, operands: Operands) -> dict[str, int | float]:
    from vyre.engines.ranges import read_range
    from vyre.engines.reference import execute

    arrays = [a for a in operands.inputs if not isinstance(a, FileRange)]
    if not all(isinstance(a, np.ndarray) for a in (*arrays, *operands.outputs, *operands.tables)):
        return {}  # in device memory
    if any(np.may_share_memory(out, a) for out in operands.outputs for a in arrays):
        return {}  # the inputs are no longer what they were
    first = element // 1024 * 1024
    count = element - first + 1
    skip = first - operands.origin
    inputs = []
    for stream, a in zip(loaded.program.inputs, operands.inputs, strict=True):
        if isinstance(a, FileRange):
            found = read_range(a.from_element(skip, stream.dtype.size), stream.dtype, count)
            if found is None:
                return {}
            inputs.append(found)
        else:
            inputs.append(a.reshape(-1)[skip : skip + count])
    tables = [
        a.copy() if t.access is Access.atomic else a
        for t, a in zip(loaded.program.tables, operands.tables, strict=True)
    ]
    # A fault behind a million turns of a loop is not worth half a minute of the reference's time.
    program = replace(loaded.program, fuel=min(loaded.program.fuel, DESCRIBED_FUEL))
    again = execute(program, inputs, operands.params, tables, first, count).fault
    same = again is not None and (again.code, again.pc, again.element) == (fault.code, fault.pc, element)
    return again.operands if again is not None and same else {}
