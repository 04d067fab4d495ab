"""A GPU at the driver's edge: memory of the host, and a kernel that is a Python thread.

It reads the same words that the real kernel reads (slots, tail, updates, bindings in its own copy of the arena) and
interprets with the reference engine, one tile after the other. So everything on the host's side of the bus runs as it is.
It shows nothing about the kernel, its timing or its memory order.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import vyre
from vyre.engines.cuda import abi
from vyre.engines.cuda import engine as engine_module
from vyre.engines.cuda.items import SessionCudaEngine
from vyre.engines.cuda.lower import _BITS, _INFINITY, _KEYS, NAN_KEYS
from vyre.engines.reference import execute
from vyre.errors import StreamError
from vyre.program.opcodes import TILE, AccKind, FaultCode
from vyre.ring.layout import FLAG_INLINE_PARAMS, INLINE_PARAMS, NO_ELEMENT, NO_PC, RECORD_DTYPE, SLOT_DTYPE, Status
from vyre.runtime.totals import combine, identity_of


def at(address: int, dtype: Any, count: int = 1) -> np.ndarray:
    kind = np.dtype(dtype)
    if not count:
        return np.empty(0, kind)
    return np.frombuffer((ctypes.c_ubyte * (count * kind.itemsize)).from_address(int(address)), kind)


class FakeDevice:
    """What vyre.engines.cuda.driver.Device offers, without a driver."""

    name, arch, major, minor = "a fake GPU", 90, 9, 0
    multiprocessors, shared_per_multiprocessor, shared_per_block, shared_reserved = 2, 233_472, 232_448, 1024

    def __init__(self, index: int = 0) -> None:
        self.pid, self.index, self.stream, self.copies, self.producers = os.getpid(), index, 1, 2, 3
        self.live = True  # False: while the kernel is there it does not see what the host writes
        self.work_s = 0.0  # how long each item of a program takes, unless it is stopped
        self.launches: list[tuple[int, int]] = []
        self.engine: Any = None
        self.mappings: dict[int, mmap.mmap] = {}
        self.registered: dict[int, int] = {}
        self.refuse_after: int | None = None  # registrations that still succeed
        self.registrations = 0
        self.refuses_read_only = False
        self.reads_mapped = True  # False: items over read-only memory are not executed
        self.read_only: set[int] = set()
        self.pause_s = 0.0
        self.staged: list[tuple[int, int, int]] = []
        self.asked: list[int] = []
        self.copied = self.events = 0
        self._stay: threading.Thread | None = None

    def _map(self, size: int) -> int:
        found = mmap.mmap(-1, max(size, 1))
        address = int(np.frombuffer(found, np.uint8).ctypes.data)
        self.mappings[address] = found
        return address

    def pinned(self, size: int) -> tuple[int, int]:
        return (self._map(size),) * 2

    def memory(self, size: int) -> int:
        return self._map(size)

    def free_pinned(self, host: int) -> None:
        self.mappings.pop(host)

    free = free_pinned

    def register(self, address: int, size: int, *, read_only: bool = False) -> int:
        assert address % 4096 == 0
        assert all(address + size <= a or a + n <= address for a, n in self.registered.items()), "registered twice"
        if read_only:
            if self.refuses_read_only:
                raise StreamError(f"CUDA does not register {size:,} bytes of memory: CUDA_ERROR_INVALID_VALUE")
            self.read_only.add(address)
        if self.refuse_after == 0:
            raise StreamError(f"CUDA does not register {size:,} bytes of memory: CUDA_ERROR_OUT_OF_MEMORY")
        if self.refuse_after:
            self.refuse_after -= 1
        self.registrations += 1
        self.registered[address] = size
        return address

    def unregister(self, address: int) -> None:
        self.registered.pop(address, None)

    identity = "a fake GPU"

    def stage(self, address: int, host: int, size: int) -> None:
        self.staged.append((address, host, size))

    def mark(self, event: Any) -> Any:
        self.events += event is None
        return len(self.staged)

    def is_reached(self, event: int) -> bool:
        """Copies are made when somebody asks for the second time: until then the host's bytes must stay."""
        self.asked.append(event)
        if self.asked.count(event) < 2:
            return False
        self.wait_for_stage()
        return True

    def forget(self, event: Any) -> None:
        self.events -= 1

    def wait_for_stage(self) -> None:
        for address, host, size in self.staged[self.copied :]:
            ctypes.memmove(address, host, size)
        self.copied = len(self.staged)

    def load(self, cubin: bytes, entry: str, shared_bytes: int) -> None: ...

    def occupancy(self, threads: int, shared_bytes: int) -> int:
        return 1

    def enter(self) -> None: ...

    def relax_capture(self) -> None: ...

    def wait_for(self, stream: int) -> None:
        if stream == self.stream and self._stay is not None:
            self._stay.join()

    def is_done(self, stream: int) -> bool:
        return stream != self.stream or self._stay is None or not self._stay.is_alive()

    def idle(self) -> bool:
        return self.is_done(self.stream)

    def to_device(self, address: int, host: int, size: int) -> None:
        ctypes.memmove(address, host, size)

    def to_host(self, host: int, address: int, size: int) -> None:
        ctypes.memmove(host, address, size)

    def close(self) -> None:
        self.registered.clear()

    # --- the kernel -----------------------------------------------------------------------------------------------

    def launch(self, blocks: int, threads: int, shared_bytes: int, parameters: int) -> None:
        address = ctypes.c_uint64.from_address(parameters).value
        launch = at(address, abi.LAUNCH)[0].copy()
        self.launches.append((blocks, threads))
        before = self._stay
        self._stay = threading.Thread(target=self._run, args=(launch, before), daemon=True)
        self._stay.start()

    def _run(self, launch: Any, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        control = at(launch["control"], abi.CONTROL)
        engine = at(launch["engine"], abi.ENGINE)
        capacity = 1 << int(launch["capacity_log2"])
        slots = at(launch["slots"], SLOT_DTYPE, capacity)
        records = at(launch["records"], RECORD_DTYPE, capacity)
        updates = at(launch["updates"], np.uint64, abi.UPDATE_ENTRIES)
        following, applied = int(engine["next"][0][0]), int(engine["next"][0][2])
        since = worked = time.monotonic_ns()
        seen = control[0].copy()
        while time.monotonic_ns() - since < launch["stay_ns"]:
            if self.live:
                seen = control[0].copy()
            if seen["stop"] >= launch["generation"]:
                break
            tail = min(int(seen["tail"]), int(launch["limit"]))
            if tail <= following:
                if time.monotonic_ns() - worked > launch["grace_ns"]:
                    break
                time.sleep(0.0001)
                continue
            while applied < int(seen["updates"]):
                entry = int(updates[applied % abi.UPDATE_ENTRIES])
                place, size = (entry & 0xFFFF_FFFF) * 16, (entry >> 32) * 16
                ctypes.memmove(int(launch["arena"]) + place, int(launch["arena_host"]) + place, size)
                applied += 1
            control["applied"] = applied
            slot = slots[following & (capacity - 1)].copy()
            if self.pause_s:
                time.sleep(self.pause_s)
            fault = self._asked_to_stop(launch, following, slot)
            if fault is None and slot["opcode"] >= 0x1_0000:
                fault = self._item(slot, int(launch["arena"]))
            record = records[following & (capacity - 1)]
            record["opcode"] = slot["opcode"]
            record["status"] = Status.DONE if fault is None else Status.FAULT
            record["code"], record["pc"], record["element"] = fault or (0, NO_PC, NO_ELEMENT)
            record["sequence_plus_1"] = following + 1
            following += 1
            worked = time.monotonic_ns()
        engine["next"][0][0], engine["next"][0][2] = following, applied
        control["final_tail"] = following
        control["left"] = launch["generation"]

    def _asked_to_stop(self, launch: Any, sequence: int, slot: Any) -> tuple[int, int, int] | None:
        """Takes as long as an item does, unless its slot or its job says that it is to end."""
        code = next((int(code) for code, flag in abi.STOP_FLAGS.items() if int(slot["flags"]) & flag), 0)
        place = sequence & ((1 << int(launch["capacity_log2"])) - 1)
        job = at(int(launch["jobs"]) + abi.JOB.itemsize * place, abi.JOB)
        end = time.monotonic() + (self.work_s if slot["opcode"] >= 0x1_0000 else 0.0)
        while code == 0 and time.monotonic() < end:
            time.sleep(0.001)
            if int(job["stop"][0]) >> 8 == sequence + 1:
                code = int(job["stop"][0]) & 0xFF
        return (code, NO_PC, NO_ELEMENT) if code else None

    def _item(self, slot: Any, arena: int) -> tuple[int, int, int] | None:
        program = self.engine.program(int(slot["opcode"]))
        at_binding = arena + abi.UNIT * int(slot["binding"])
        header = at(at_binding, abi.BINDING_HEADER)[0]
        assert header["magic"] == abi.MAGIC_BINDING
        assert header["opcode"] == slot["opcode"]
        first = int(slot["first_low"]) | int(slot["first_high"]) << 32
        count = int(slot["count_low"]) | int(slot["count_high"]) << 32
        base, elements = int(header["base"]), int(header["elements"])
        if first < base or first % TILE or first - base + count > elements:
            return int(FaultCode.bad_binding), NO_PC, NO_ELEMENT
        streams = (*program.inputs, *program.outputs)
        number = len(streams) + len(program.tables) + len(program.emits) + len(program.accumulators)
        operands = at(at_binding + abi.BINDING_HEADER.itemsize, abi.OPERAND, number)
        params = at(
            at_binding + abi.BINDING_HEADER.itemsize + abi.OPERAND.itemsize * number, np.uint64, len(program.params)
        )

        if int(slot["flags"]) & FLAG_INLINE_PARAMS:
            params = params.copy()
            own = min(len(params), INLINE_PARAMS)
            params[:own] = slot["inline"].view(np.uint64)[:own]

        def array(i: int, stream: Any, n: int) -> np.ndarray:
            return at(operands["address"][i], engine_module.NUMPY[stream.dtype], n)

        if self.read_only and not self.reads_mapped:
            return None
        inputs = [array(i, s, elements) for i, s in enumerate(program.inputs)]
        outputs = [array(len(program.inputs) + i, s, elements) for i, s in enumerate(program.outputs)]
        table_at = len(streams)
        tables = [array(table_at + i, t, int(operands["extent"][table_at + i])) for i, t in enumerate(program.tables)]
        emits = [array(table_at + len(tables) + i, s, elements) for i, s in enumerate(program.emits)]
        sums = [i for i, a in enumerate(program.accumulators) if a.kind is AccKind.sum and a.dtype.name == "f64"]
        tiles = int(header["tiles"])
        tile_sums = at(header["tile_sums"], np.float64, len(sums) * tiles).reshape(len(sums), tiles)
        emit_counts = at(header["emit_counts"], np.uint32, len(emits) * tiles).reshape(len(emits), tiles)
        totals = [identity_of(a) for a in program.accumulators]
        for start in range(0, count, TILE):
            n, place = min(TILE, count - start), first - base + start
            found = execute(program, [x[place : place + n] for x in inputs], params.tolist(), tables, first + start, n)
            if found.fault is not None:
                f = found.fault
                return f.code, NO_PC if f.pc is None else f.pc, NO_ELEMENT if f.element is None else f.element
            for mine, theirs in zip(outputs, found.outputs, strict=True):
                mine[place : place + n] = theirs
            for i, kept in enumerate(found.emits):
                emits[i][place : place + len(kept)] = kept
                emit_counts[i, place // TILE] = len(kept)
            for i, acc in enumerate(program.accumulators):
                if i in sums:
                    tile_sums[sums.index(i), place // TILE] = found.tile_sums[i][0]
                else:
                    totals[i] = combine(acc, totals[i], found.accumulators[i])
        bins = sum(a.bins for a in program.accumulators)
        results = at(header["results"], np.uint64, len(totals) + bins)
        bins_at = len(totals)
        for i, acc in enumerate(program.accumulators):
            if acc.kind is AccKind.histogram:
                results[bins_at : bins_at + acc.bins] = totals[i].view(np.uint64)
                bins_at += acc.bins
            elif i not in sums:
                word = int.from_bytes(np.asarray(totals[i]).tobytes().ljust(8, b"\0"), "little")
                results[i] = _key(acc, word) if acc.kind in (AccKind.min, AccKind.max) else word
        return None


def _key(acc: Any, word: int) -> int:
    bits = _BITS[acc.dtype]
    if acc.dtype in _INFINITY:
        value = np.frombuffer(word.to_bytes(8, "little"), engine_module.NUMPY[acc.dtype])[0]
        if value != value:
            return NAN_KEYS[acc.kind]
        sign = 1 << bits - 1
        return ~word & ((1 << bits) - 1) if word & sign else word ^ sign
    return word ^ _KEYS[acc.dtype]


def fake_engine(monkeypatch: Any, **options: Any) -> SessionCudaEngine:
    """A session's GPU engine over a fake device."""
    in_place_of_a_gpu(monkeypatch)
    engine = SessionCudaEngine(**options)
    engine.device.engine = engine  # type: ignore[attr-defined]
    return engine


def in_place_of_a_gpu(monkeypatch: Any, **attributes: Any) -> None:
    """Engines that are opened from now on have a fake device, with these attributes."""

    def made(index: int) -> FakeDevice:
        device = FakeDevice(index)
        for name, value in attributes.items():
            setattr(device, name, value)
        return device

    monkeypatch.setattr(engine_module, "Device", made)
    monkeypatch.setattr(engine_module, "kernel_for", lambda *_: (b"", None))


@contextmanager
def open_fake(monkeypatch: Any, *, live: bool = True, work_s: float = 0.0, **options: Any) -> Iterator[vyre.Session]:
    """``vyre.open("cuda")`` over a fake device."""
    in_place_of_a_gpu(monkeypatch, live=live, work_s=work_s)
    with vyre.open("cuda", **options) as session:
        made: Any = session.engine
        made.device.engine = made
        yield session
