"""Items of the GPU engine as sessions use them: see vyre.engines.base.Item.

Owns: when an item's operands are bound, refreshed and given back. Leaves to others: descriptors and memory (engine), the
ring (residency).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vyre.engines.base import FileRange, ItemResult, Operands
from vyre.engines.cuda import abi
from vyre.engines.cuda.bindings import Binding
from vyre.engines.cuda.chunks import ChunkStream
from vyre.engines.cuda.engine import CudaEngine
from vyre.engines.cuda.mapped import MappedFiles
from vyre.engines.cuda.registered import RegisteredPools
from vyre.engines.device_array import DeviceArray
from vyre.engines.ranges import read_range
from vyre.engines.spans import fold_onto
from vyre.errors import Fault, WaitTimeout
from vyre.program.ir import Program
from vyre.program.opcodes import FAULT_REASONS, FaultCode
from vyre.ring.layout import SLOT_DTYPE
from vyre.stream.source import Source


class CudaItem:
    """Operands bound to the GPU. Host arrays are staged through pinned memory at each start; device arrays stay."""

    def __init__(self, engine: SessionCudaEngine, opcode: int, operands: Operands) -> None:
        self.engine = engine
        self.opcode = opcode
        self.operands = operands
        self.sequence: int | None = None
        self._binding: Binding | None = None
        self._failed: ItemResult | None = None

    def retarget(self, operands: Operands) -> None:
        """Other operands for the same program. Not while it is published."""
        self._unbind()
        self.operands = operands

    def forget(self) -> None:
        """Let go of the operands. ``retarget`` before the next start."""
        self._unbind()
        self.operands = Operands(0, 0, [], [], [], [], [])

    def start(self, *, deadline_ns: int = 0, wake: bool = True) -> bool:
        slot = self._prepare()
        if slot is None:
            return True
        ring = self.engine.residency
        if deadline_ns and deadline_ns <= time.monotonic_ns():
            slot = _marked(slot)
        self.sequence = ring.publish(slot)
        if deadline_ns and self.sequence is not None:
            ring.set_deadline(deadline_ns, self.sequence)
        return self.sequence is not None

    def prepared(self) -> bytes | None:
        """The slot that would be published, operands staged: for finite dispatch. None: the item has failed already."""
        return self._prepare()

    def _prepare(self) -> bytes | None:
        if self.operands.tables:
            self._unbind()  # tables in host memory are staged when they are bound, and may have changed
        if self._binding is None:
            inputs = self._inputs()
            if inputs is None:
                self._failed = ItemResult(fault=_shrank(self.operands.origin))
                return None
            o = self.operands
            outputs = [a if isinstance(a, DeviceArray) else None for a in o.outputs]
            self._binding = self.engine.bind(self.opcode, inputs, o.tables, o.params, outputs, o.count, o.origin)
        else:
            for staged, given in zip(self._binding.inputs, self.operands.inputs, strict=True):
                if staged is not None and isinstance(given, np.ndarray):
                    np.copyto(staged, given.reshape(-1)[: self.operands.count])
        self._wait_for_producers()
        return self._binding.slot

    def _wait_for_producers(self) -> None:
        o = self.operands
        everything: list[Any] = [*o.inputs, *o.outputs, *o.tables]
        theirs = [a for a in everything if isinstance(a, DeviceArray)]
        if theirs:
            self.engine.wait_for_producers(theirs)

    def _inputs(self) -> list[Any] | None:
        """Inputs as the engine binds them; ranges of files are read into pinned memory. None: a file ended early."""
        found: list[Any] = []
        program = self.engine.program(self.opcode)
        for stream, value in zip(program.inputs, self.operands.inputs, strict=True):
            if not isinstance(value, FileRange):
                found.append(value.reshape(-1) if isinstance(value, np.ndarray) else value)
                continue
            elements = read_range(value, stream.dtype, self.operands.count)
            if elements is None:
                return None
            found.append(elements)
        return found

    def wait(self, timeout_ns: int) -> bool:
        if self._failed is not None:
            return True
        assert self.sequence is not None, "wait before start"
        if timeout_ns <= 0:  # a look, as of Ticket.done
            self.engine.residency.look()
            return self.engine.residency.is_done(self.sequence)
        try:
            self.engine.wait(self.sequence, 1, timeout_ns / 1e9)
        except WaitTimeout:
            return False
        return True

    def result(self) -> ItemResult:
        if self._failed is not None:
            failed, self._failed = self._failed, None
            return failed
        assert self.sequence is not None, "result before start"
        assert self._binding is not None
        found = self.engine.result(self._binding, self.sequence, self.operands.outputs)
        self.sequence = None
        return found

    def collected_from(self, record: np.void) -> ItemResult:
        """What it delivered, from the record of a finite dispatch."""
        if self._failed is not None:
            return self.result()
        assert self._binding is not None
        status, code, pc, element = (int(record[name]) for name in ("status", "code", "pc", "element"))
        return self.engine.delivered(self._binding, status, code, pc, element, self.operands.outputs)

    def cancel(self) -> None:
        if self.sequence is not None:
            self.engine.residency.stop(self.sequence, 1, FaultCode.cancelled)

    def close(self) -> None:
        self._unbind()

    def _unbind(self) -> None:
        if self._binding is not None:
            self.engine.unbind(self._binding)
            self._binding = None


def _numpy(dtype: Any) -> np.dtype[Any]:
    from vyre.stream.formats import numpy_dtype

    return numpy_dtype(dtype)


def _marked(slot: bytes) -> bytes:
    """A slot whose item is not to begin, because its deadline has passed."""
    words = np.frombuffer(slot, SLOT_DTYPE).copy()
    words["flags"] |= abi.STOP_FLAGS[FaultCode.deadline]
    return words.tobytes()


def _shrank(element: int) -> Fault:
    return Fault(int(FaultCode.file_shrank), FAULT_REASONS[FaultCode.file_shrank], element=element)


class SessionCudaEngine(CudaEngine):
    """The GPU engine with the verbs of vyre.engines.base.Engine."""

    def __init__(self, device: int = 0, **options: Any) -> None:
        super().__init__(device, **options)
        self.pools = RegisteredPools(self.device)
        self.mapped = MappedFiles(self.device)
        self.fold_onto = fold_onto(options.get("store"))

    def close(self) -> None:
        super().close()
        self.pools.close()
        self.mapped.close()

    def program(self, opcode: int) -> Program:
        """What was loaded at an opcode."""
        return self._programs[opcode].program

    def item(self, opcode: int, operands: Operands, *, stream: object = None) -> CudaItem:
        """Operands for publishing; bound when it is started."""
        return CudaItem(self, opcode, operands)

    def open_chunks(
        self,
        opcode: int,
        source: Source,
        *,
        io: str,
        chunk_elements: int | None,
        pool_bytes: int | None,
        tables: Sequence[Any],
        params: Sequence[int],
    ) -> ChunkStream:
        """The chunks of a source through a program: see ``ChunkStream``. The source stays the caller's."""
        from vyre.engines.cuda.ways import open_feed

        feed = open_feed(self, self.program(opcode), source, io, chunk_elements, pool_bytes)
        try:
            return ChunkStream(self, opcode, feed, tables, params)
        except BaseException:
            feed.close()
            raise
