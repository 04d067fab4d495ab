"""Chunks copied on into GPU memory by the copy engine, before the kernel reads them.

The kernel reads host memory over the bus as often as a program loads it, and while it comes and goes between two stays
the bus is idle; the copy engine fetches each byte once, whatever the kernel does. Which is faster is measured once for a
machine and kept (``measured``).

Owns: device memory of chunks, the copies, that measurement. Leaves to others: where chunks come from (any feed), items
(chunks).
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vyre.engines.cuda.bindings import NUMPY, Binding
from vyre.engines.cuda.chunks import DeviceMemory
from vyre.engines.cuda.feed import Arrived, Feed
from vyre.engines.cuda.memory import Pool
from vyre.errors import StreamError
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import BY_NAME, OPCODES, AccKind, MemType
from vyre.program.verifier import verify
from vyre.stream.plan import Plan
from vyre.stream.pool import PAGE
from vyre.stream.source import Source

if TYPE_CHECKING:
    from vyre.engines.cuda.driver import Device
    from vyre.engines.cuda.items import SessionCudaEngine
    from vyre.store import Store

SLOTS: Final = 8
MANY: Final = 8  # loads of an input that a loop makes, for the choice
_LOADS: Final = frozenset(op.code for op in OPCODES if op.name.endswith(".load"))
_LOOP: Final = BY_NAME["loop"].code
_TEST_BYTES: Final = 64 << 20
_REPEATS: Final = 3


@dataclass(slots=True, eq=False)
class _Flying:
    """A chunk whose copy is under way."""

    came: Arrived
    staged: Arrived
    event: Any


class StagedFeed:
    """Another feed's chunks, in slots of device memory. A chunk's host memory is given back when it has been copied.

    Args:
        inner: its chunks lie in registered memory.
        memory, lock: device memory of the engine.
    """

    in_device_memory = True

    def __init__(self, inner: Feed, device: Device, memory: Pool, lock: threading.RLock) -> None:
        self.source: Source = inner.source
        self.plan: Plan = inner.plan
        self.seats = SLOTS
        self._inner = inner
        self._device = device
        self._memory = memory
        self._lock = lock
        count = min(inner.chunk_elements, max(self.source.count, 1))
        frame = sum(-(-count * strip.width // PAGE) * PAGE for strip in self.source.strips.values())
        with lock:
            self._slots = [memory.get(frame) for _ in range(SLOTS)]
        self._free = list(range(SLOTS))
        self._waiting: deque[Arrived] = deque()
        self._flying: deque[_Flying] = deque()
        self._events: list[Any] = []

    @property
    def chunk_elements(self) -> int:
        return self._inner.chunk_elements

    @property
    def finished(self) -> bool:
        return self._inner.finished and not self._waiting and not self._flying

    def more(self) -> None:
        self._inner.more()

    def full(self) -> list[Arrived]:
        self._waiting.extend(self._inner.full())
        found = []
        while self._flying and self._device.is_reached(self._flying[0].event):
            flying = self._flying.popleft()
            self._events.append(flying.event)
            flying.staged.error = self._inner.verify(flying.came)
            self._inner.release(flying.came)
            found.append(flying.staged)
        while self._waiting and (self._free or self._waiting[0].error is not None):
            came = self._waiting.popleft()
            if came.error is not None:
                self._inner.release(came)
                found.append(Arrived(came.chunk, [], error=came.error))
            else:
                self._flying.append(self._copy(came, self._free.pop()))
        return found

    def _copy(self, came: Arrived, slot: int) -> _Flying:
        at = self._slots[slot]
        staged = Arrived(came.chunk, [], slot)
        for (name, strip), address in zip(self.source.strips.items(), came.addresses, strict=True):
            size = came.chunk.count * strip.width
            self._device.stage(at, address, size)
            staged.addresses.append(at)
            staged.pieces += self.source.pieces(name, came.chunk.first, came.chunk.count)
            at += -(-size // PAGE) * PAGE
        event = self._device.mark(self._events.pop() if self._events else None)
        return _Flying(came, staged, event)

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        if self._flying:  # neither a copy nor a record wakes anybody
            time.sleep(20e-6)
        else:
            self._inner.wait(record, expected, timeout_ns)

    def release(self, arrived: Arrived) -> None:
        if arrived.slot >= 0:
            self._free.append(arrived.slot)

    def device_address(self, address: int) -> int:
        return address

    def verify(self, arrived: Arrived) -> StreamError | None:
        return None  # that was asked when its copy was complete

    def bytes_by_way(self) -> dict[str, int]:
        return self._inner.bytes_by_way()

    def close(self) -> None:
        self._inner.close()
        self._device.wait_for_stage()

    def give_up(self) -> None:
        with self._lock:
            for address in self._slots:
                self._memory.put(address)
        self._slots.clear()
        for event in (*self._events, *(flying.event for flying in self._flying)):
            self._device.forget(event)
        self._flying.clear()
        self._waiting.clear()
        self._inner.give_up()


def loads_of(program: Program) -> int:
    """How often an element of the input that is loaded most is loaded; a loop counts as MANY times."""
    counts: dict[int, int] = {}
    looped = False
    for instruction in program.code:
        looped = looped or instruction.op == _LOOP
        if instruction.op in _LOADS:
            counts[instruction.imm] = counts.get(instruction.imm, 0) + (MANY if looped else 1)
    return max(counts.values(), default=0)


@dataclass(frozen=True, slots=True)
class Measured:
    """GB/s over the bus on this machine, by loads of an element: the kernel reads host memory, or GPU memory behind a copy."""

    in_place: dict[int, float]
    staged: dict[int, float]

    def choice(self, loads: int) -> tuple[bool, str]:
        """Whether to stage for so many loads, and the line that says so."""
        known = min(self.in_place, key=lambda n: abs(n - loads))
        direct, staged = self.in_place[known], self.staged[known]
        better = staged > 1.03 * direct
        verb = "copied on into GPU memory by the copy engine" if better else "read by the kernel in host memory"
        return (
            better,
            f"{verb}: measured here {direct:.1f} GB/s in place, {staged:.1f} staged, for {known} loads an element",
        )


_known: dict[bytes, Measured] = {}


def measured(engine: SessionCudaEngine, store: Store | None) -> Measured:
    """What this machine does; measured in 0.1 s when nobody has yet, and kept."""
    key = b"cuda staging 1 " + engine.device.identity.encode()
    if key not in _known:
        kept = store.get(key) if store is not None else None
        if kept is not None:
            data = json.loads(kept)
            _known[key] = Measured(*({int(n): v for n, v in data[how].items()} for how in ("in_place", "staged")))
        else:
            _known[key] = found = _measure(engine)
            if store is not None:
                store.put(key, json.dumps({"in_place": found.in_place, "staged": found.staged}).encode())
    return _known[key]


def _measure(engine: SessionCudaEngine) -> Measured:
    """Time one big item over pinned memory, and the slower of its copy and the same item over GPU memory."""
    count, device = _TEST_BYTES // 4, engine.device
    with engine.residency.lock:
        chunk, at = engine._pinned.cut(_TEST_BYTES)
        memory = engine._device_pool.get(_TEST_BYTES)
    host = chunk.array(at, NUMPY[MemType.f32], count)
    host[:] = 0
    near = DeviceMemory(memory, host.dtype, count, int(device.copies))

    def best_s(call: Callable[[], None]) -> float:
        times = []
        for _ in range(_REPEATS):
            since = time.perf_counter()
            call()
            times.append(time.perf_counter() - since)
        return min(times)

    def copy() -> None:
        device.stage(memory, chunk.address + at, _TEST_BYTES)
        device.wait_for_stage()

    found = Measured({}, {})
    try:
        copy_s = best_s(copy)
        for loads in (1, 2, 4):
            opcode = engine.load(verify(_reading(loads)))
            item_s = []
            for where in (host, near):
                binding = engine.bind(opcode, [where], count=count)
                item_s.append(best_s(partial(_run, engine, binding)))
                engine.unbind(binding)
            engine.unload(opcode)
            found.in_place[loads] = round(_TEST_BYTES / item_s[0] / 1e9, 1)
            found.staged[loads] = round(_TEST_BYTES / max(copy_s, item_s[1]) / 1e9, 1)
    finally:
        with engine.residency.lock:
            engine._pinned.put(chunk.address + at)
            engine._device_pool.put(memory)
    return found


def _run(engine: SessionCudaEngine, binding: Binding) -> None:
    sequence = engine.publish(binding)
    assert sequence is not None, "the ring has room for one item"
    engine.wait(sequence)
    engine.completions(sequence, 1)


def _reading(loads: int) -> Program:
    """The sum of an input that is loaded so often."""
    b = Builder("reading")
    x = b.input("x", MemType.f32)
    total = b.accumulator("total", AccKind.sum, MemType.f64)
    for _ in range(loads):
        b.op("f32.acc_sum", b.op("f32.load", imm=x), imm=total)
    return b.build()
