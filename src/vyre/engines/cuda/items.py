"""Items of the GPU engine as sessions use them: see vyre.engines.base.Item.

Owns: when an item's operands are bound, refreshed and given back. Leaves to others: descriptors and memory (engine), the
ring (residency).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import FileRange, ItemResult, Operands
from vyre.engines.cuda import abi
from vyre.engines.cuda.bindings import Binding
from vyre.engines.cuda.caller import Call
from vyre.engines.cuda.chunks import ChunkStream
from vyre.engines.cuda.engine import CudaEngine
from vyre.engines.cuda.mapped import MappedFiles
from vyre.engines.cuda.memory import address_of
from vyre.engines.cuda.registered import RegisteredPools
from vyre.engines.device_array import DeviceArray
from vyre.engines.ranges import read_range
from vyre.engines.spans import fold_onto
from vyre.errors import Fault, WaitTimeout
from vyre.program.ir import Program
from vyre.program.opcodes import FAULT_REASONS, FaultCode
from vyre.store import Store
from vyre.stream.disk_table import DiskTable
from vyre.stream.source import Source

_NATIVE_BYTES: Final = 64 << 10  # of host operands that a call copies with the GIL held
_EMPTY: Final[list[Any]] = []  # shared by results that have none; never changed
_NO_SUMS: Final[dict[int, NDArray[np.float64]]] = {}


class CudaItem:
    """Operands bound to the GPU. Host arrays are staged through pinned memory at each start; device arrays stay."""

    __slots__ = (
        "_again",
        "_binding",
        "_call",
        "_failed",
        "_natively",
        "_plain",
        "_theirs",
        "engine",
        "opcode",
        "operands",
    )

    def __init__(self, engine: SessionCudaEngine, opcode: int, operands: Operands) -> None:
        self.engine = engine
        self.opcode = opcode
        self.operands = operands
        self._binding: Binding | None = None
        self._call: Call | None = None
        self._failed: ItemResult | None = None
        self._natively = False  # host arrays are copied by the call
        self._again = False  # it was started before with these operands
        self._plain = False  # nothing is delivered but outputs
        self._theirs: list[DeviceArray] = []

    @property
    def sequence(self) -> int | None:
        """Of the slot that is published and whose record was not collected; native code keeps it (caller)."""
        return None if self._call is None else self._call.sequence

    def retarget(self, operands: Operands) -> None:
        """Other operands for the same program. Not while it is published."""
        self._unbind()
        self.operands = operands

    def forget(self) -> None:
        """Let go of the operands. ``retarget`` before the next start."""
        self._unbind()
        self.operands = Operands(0, 0, [], [], [], [], [])

    def start(self, *, deadline_ns: int = 0, wake: bool = True) -> bool:
        call = self._ready()
        if call is None:
            return True
        ring = self.engine.residency
        # An item whose deadline has passed is not to begin.
        passed = deadline_ns and deadline_ns <= time.monotonic_ns()
        started = ring.start(call, abi.STOP_FLAGS[FaultCode.deadline] if passed else 0)
        if deadline_ns and started:
            assert call.sequence is not None
            ring.set_deadline(deadline_ns, call.sequence)
        return started

    def prepared(self) -> bytes | None:
        """The slot that would be published, operands staged: for finite dispatch. None: the item has failed already."""
        call = self._ready()
        if call is None:
            return None
        assert self._binding is not None
        self.engine.residency.bring(call)
        return self._binding.slot

    def call(self) -> bool:
        """``start`` and, when the record comes within some microseconds, the rest.

        True: complete; ``collected()`` has the result. After False look at ``sequence``: None when the ring is full.
        """
        call = self._ready()
        return call is None or self.engine.residency.call(call)

    def _ready(self) -> Call | None:
        """Bind what is to be bound, bring what the call does not bring. None: the item has failed already."""
        if self.operands.tables:
            self._unbind()  # tables in host memory are staged when they are bound, and may have changed
        call = self._call
        if call is None:
            inputs = self._inputs()
            if inputs is None:
                self._failed = ItemResult(fault=_shrank(self.operands.origin))
                return None
            call = self._bind(inputs)
        elif not self._again:
            call = self._bind_again()
        if self._again and not self._natively:
            assert self._binding is not None
            for staged, given in zip(self._binding.inputs, self.operands.inputs, strict=True):
                if staged is not None and isinstance(given, np.ndarray):
                    np.copyto(staged, given.reshape(-1)[: self.operands.count])
        if self._theirs:
            self.engine.wait_for_producers(self._theirs)
        return call

    def _bind(self, inputs: list[Any]) -> Call:
        o = self.operands
        outputs = [a if isinstance(a, DeviceArray) else None for a in o.outputs]
        self._binding = binding = self.engine.bind(self.opcode, inputs, o.tables, o.params, outputs, o.count, o.origin)
        everything: list[Any] = [*o.inputs, *o.outputs, *o.tables]
        self._theirs = [a for a in everything if isinstance(a, DeviceArray)]
        self._plain = not (o.emits or binding.program.accumulators or binding.copies_back)
        self._call = Call(self.engine.residency.ring_address, binding.slot)
        return self._call

    def _bind_again(self) -> Call:
        """The second start: have native code copy what is small. A program that runs once does not pay for that."""
        binding, o = self._binding, self.operands
        assert binding is not None
        self._again = True
        pairs = [
            [(to, source) for to, source in each if to is not None and type(source) is np.ndarray and type(to) is np.ndarray]
            for each in (zip(binding.inputs, o.inputs, strict=True), zip(o.outputs, binding.outputs, strict=True))
        ]  # fmt: skip
        few = sum(to.nbytes for each in pairs for to, _ in each) <= _NATIVE_BYTES
        self._natively = few and all(a.flags.c_contiguous for each in pairs for pair in each for a in pair)
        bring, take = (
            [(address_of(to), address_of(source), min(to.nbytes, source.nbytes)) for to, source in each]
            if self._natively
            else []
            for each in pairs
        )
        self._call = Call(self.engine.residency.ring_address, binding.slot, bring, take)
        return self._call

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
        sequence = self.sequence
        if sequence is None:  # not published yet, or another thread is taking its record
            return False
        if timeout_ns <= 0:  # a look, as of Ticket.done
            self.engine.residency.look()
            return self.engine.residency.is_done(sequence)
        try:
            self.engine.wait(sequence, 1, timeout_ns / 1e9)
        except WaitTimeout:
            return False
        return True

    def result(self) -> ItemResult:
        if self._failed is None:
            assert self._call is not None, "result before start"
            self.engine.residency.take(self._call)
        return self.collected()

    def collected(self) -> ItemResult:
        """The result whose record was collected last."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            return failed
        binding, call, outputs = self._binding, self._call, self.operands.outputs
        assert binding is not None
        assert call is not None
        if self._plain and self._natively and call.is_done:
            return ItemResult(outputs, _EMPTY, _EMPTY, _NO_SUMS, None)
        status, code, pc, element, value = call.record()
        if code == FaultCode.load_miss:
            return _missing(value)
        return self.engine.delivered(binding, status, code, pc, element, outputs, copied=self._natively)

    def collected_from(self, record: np.void) -> ItemResult:
        """What it delivered, from the record of a finite dispatch."""
        if self._failed is not None:
            return self.result()
        assert self._binding is not None
        status, code, pc, element = (int(record[name]) for name in ("status", "code", "pc", "element"))
        if code == FaultCode.load_miss:
            return _missing(int(record["value"]))
        return self.engine.delivered(self._binding, status, code, pc, element, self.operands.outputs)

    def cancel(self) -> None:
        if self.sequence is not None:
            self.engine.residency.stop(self.sequence, 1, FaultCode.cancelled)

    def close(self) -> None:
        self._unbind()

    def _unbind(self) -> None:
        if self._binding is not None:
            self.engine.unbind(self._binding)
            self._binding = self._call = None
            self._again = self._natively = False


def _numpy(dtype: Any) -> np.dtype[Any]:
    from vyre.stream.formats import numpy_dtype

    return numpy_dtype(dtype)


def _missing(requests: int) -> ItemResult:
    code = FaultCode.load_miss
    return ItemResult(fault=Fault(int(code), FAULT_REASONS[code], operands={"requests": requests}))


def _shrank(element: int) -> Fault:
    return Fault(int(FaultCode.file_shrank), FAULT_REASONS[FaultCode.file_shrank], element=element)


class SessionCudaEngine(CudaEngine):
    """The GPU engine with the verbs of vyre.engines.base.Engine."""

    def __init__(self, device: int = 0, **options: Any) -> None:
        super().__init__(device, **options)
        self.pools = RegisteredPools(self.device)
        self.mapped = MappedFiles(self.device)
        self._counters: dict[DiskTable, int] = {}
        self.store: Store | None = options.get("store")
        self.fold_onto = fold_onto(self.store)

    @property
    def takes_paged_tables(self) -> bool:
        """Pages are found by the addresses that the host has."""
        return self.device.same_addresses

    def share_pages(self, table: DiskTable) -> int:
        """Let the kernel see a table's pages, until the table is closed.

        Returns:
            Address of the u64 of device memory in which its requests may be counted.
        Raises:
            StreamError: CUDA does not register the memory.
        """
        table.lend(self, lambda memory: self._take_pages(table, memory))
        return self._counters[table]

    def _take_pages(self, table: DiskTable, memory: list[tuple[int, int]]) -> Callable[[], None]:
        done: list[int] = []

        def end() -> None:
            counter = self._counters.pop(table, None)
            if counter is not None and not self.closed:
                with self.residency.lock:
                    self._device_pool.put(counter)
            while done:
                self.device.unregister(done.pop())

        try:
            for address, size in memory:
                self.device.register(address, size)
                done.append(address)
            with self.residency.lock:
                counter = self._counters[table] = self._device_pool.get(16)
            zeros = np.zeros(2, np.uint64)
            self.device.to_device(counter, zeros.ctypes.data, zeros.nbytes)
        except BaseException:
            end()
            raise
        return end

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
            feed.give_up()
            raise
