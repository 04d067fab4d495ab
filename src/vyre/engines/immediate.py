"""The reference as a session's engine: an item is executed, in Python, by the thread that starts it.

Owns: nothing but the order of calls. Leaves to others: meaning (reference). It has no ring and no threads; it is for
machines where no other engine runs, and for asking what the right answer is.
"""

from __future__ import annotations

from vyre.engines.base import FileRange, ItemResult, Operands
from vyre.engines.ranges import read_range
from vyre.engines.reference import execute
from vyre.errors import Fault
from vyre.program.opcodes import FAULT_REASONS, FaultCode
from vyre.program.verifier import Verified


class ReferenceEngine:
    """See vyre.engines.base.Engine."""

    name = "reference"

    def __init__(self) -> None:
        self.closed = False
        self._programs: dict[int, Verified] = {}
        self._next = 0x1_0000

    def load(self, verified: Verified) -> int:
        opcode, self._next = self._next, self._next + 1
        self._programs[opcode] = verified
        return opcode

    def unload(self, opcode: int) -> None:
        self._programs.pop(opcode, None)

    def item(self, opcode: int, operands: Operands, *, stream: object = None) -> ReferenceItem:
        return ReferenceItem(self._programs[opcode], operands)

    def close(self) -> None:
        self.closed = True
        self._programs.clear()


class ReferenceItem:
    """See vyre.engines.base.Item."""

    def __init__(self, verified: Verified, operands: Operands) -> None:
        self._verified = verified
        self.operands = operands
        self._result: ItemResult | None = None

    def retarget(self, operands: Operands) -> None:
        self.operands = operands

    def start(self, *, deadline_ns: int = 0, wake: bool = True) -> bool:
        o = self.operands
        inputs = []
        for stream, value in zip(self._verified.program.inputs, o.inputs, strict=True):
            if isinstance(value, FileRange):
                found = read_range(value, stream.dtype, o.count)
                if found is None:
                    reason = FAULT_REASONS[FaultCode.file_shrank]
                    self._result = ItemResult(fault=Fault(int(FaultCode.file_shrank), reason, element=o.origin))
                    return True
                inputs.append(found)
            else:
                inputs.append(value.reshape(-1)[: o.count])
        result = execute(self._verified, inputs, o.params, o.tables, o.origin, o.count)
        for mine, given in zip(result.outputs, o.outputs, strict=False):
            given.reshape(-1)[:] = mine
        if result.fault is None:
            result.outputs = list(o.outputs)
        self._result = result
        return True

    def wait(self, timeout_ns: int) -> bool:
        return self._result is not None

    def result(self) -> ItemResult:
        found, self._result = self._result, None
        assert found is not None, "result before start"
        return found

    def forget(self) -> None:
        """Let go of the operands."""
        self.operands = Operands(0, 0, [], [], [], [], [])

    def cancel(self) -> None:
        """It is already done: items run where they are started."""

    def close(self) -> None:
        """Nothing is held."""
