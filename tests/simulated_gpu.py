"""A GPU at the driver's edge: memory of this process, and a kernel that is the reference.

A launch runs to its end before it returns: it takes every slot that is published, reads programs and bindings from the
arena as the real kernel does, executes them with vyre.engines.reference, and writes records and results where the real
one would. So the host's side of the engine is tested, its layouts included; not the kernel, and no concurrency.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from vyre.engines.cuda import abi, engine, lower
from vyre.engines.cuda.engine import NUMPY
from vyre.engines.cuda.items import SessionCudaEngine
from vyre.engines.cuda.memory import array_at
from vyre.engines.reference import execute
from vyre.errors import Fault
from vyre.program.ir import Program
from vyre.program.opcodes import TILE, AccKind, FaultCode
from vyre.ring import layout
from vyre.ring.layout import NO_ELEMENT, NO_PC, PROGRAM_FIRST, RECORD_DTYPE, SLOT_DTYPE, Status

_CONTROL = {name: abi.CONTROL.fields[name][1] // 8 for name in abi.CONTROL.names}


class SimulatedDevice:
    """As much of driver.Device as the engine uses."""

    arch = 90
    same_addresses = True
    index = 0
    name = "simulated GPU"
    multiprocessors = 2
    shared_per_multiprocessor = 228 << 10
    shared_per_block = 227 << 10
    shared_reserved = 1 << 10
    stream = copies = 0

    def __init__(self, index: int = 0) -> None:
        self.pid = os.getpid()
        self.programs: dict[int, Program] = {}
        self.executes = True
        self.launches = 0
        self._taken = 0
        self._memory: dict[int, Any] = {}
        self.registered: dict[int, int] = {}

    def memory(self, size: int) -> int:
        owner = (ctypes.c_char * (size + 4096))()
        address = -(-ctypes.addressof(owner) // 4096) * 4096
        self._memory[address] = owner
        return address

    def pinned(self, size: int) -> tuple[int, int]:
        address = self.memory(size)
        return address, address

    def free(self, address: int) -> None:
        del self._memory[address]

    free_pinned = free

    def to_device(self, address: int, host: int, size: int) -> None:
        ctypes.memmove(address, host, size)

    def to_host(self, host: int, address: int, size: int) -> None:
        ctypes.memmove(host, address, size)

    def is_done(self, stream: int) -> bool:
        return True

    def register(self, address: int, size: int, *, read_only: bool = False) -> int:
        assert address % 4096 == size % 4096 == 0
        self.registered[address] = size
        return address

    def unregister(self, address: int) -> None:
        self.registered.pop(address, None)

    def load(self, cubin: bytes, entry: str, shared_bytes: int) -> None: ...
    def enter(self) -> None: ...
    def relax_capture(self) -> None: ...
    def wait_for(self, stream: int) -> None: ...
    def close(self) -> None: ...

    def idle(self) -> bool:
        return True

    def occupancy(self, threads: int, shared_bytes: int) -> int:
        return 2

    # --- the kernel -----------------------------------------------------------------------------------------------

    def launch(self, blocks: int, threads: int, shared_bytes: int, parameters: int) -> None:
        self.launches += 1
        place = ctypes.c_void_p.from_address(parameters).value
        assert place is not None
        launch = array_at(place, abi.LAUNCH, 1)[0]
        capacity = 1 << int(launch["capacity_log2"])
        control = array_at(int(launch["control"]), np.uint64, 32)
        slots = array_at(int(launch["slots"]), SLOT_DTYPE, capacity)
        records = array_at(int(launch["records"]), RECORD_DTYPE, capacity)
        control[_CONTROL["applied"]] = control[_CONTROL["updates"]]
        end = min(int(control[_CONTROL["tail"]]), int(launch["limit"]))
        arena = int(launch["arena_host"])
        for sequence in range(self._taken, end):
            words = slots[sequence % capacity : sequence % capacity + 1].view(np.uint32).tolist()
            record = records[sequence % capacity]
            record["status"], record["code"], record["pc"], record["element"] = Status.DONE, 0, NO_PC, NO_ELEMENT
            if words[1] >= PROGRAM_FIRST and self.executes:
                fault = self._run(arena, words[1], words[4], words[5] | words[6] << 32, words[7] | words[8] << 32)
                if fault is not None:
                    record["status"], record["code"] = Status.FAULT, fault.code
                    if fault.code == FaultCode.load_miss:
                        record["value"] = fault.operands["requests"]
                    else:
                        record["pc"], record["element"] = fault.pc, fault.element
            record["sequence_plus_1"] = sequence + 1
        self._taken = max(end, self._taken)
        control[_CONTROL["final_tail"]] = self._taken
        control[_CONTROL["left"]] = launch["generation"]

    def _run(self, arena: int, opcode: int, number: int, first: int, count: int) -> Any:
        header = array_at(arena + abi.UNIT * number, abi.BINDING_HEADER, 1)[0]
        unit = int(array_at(arena, np.uint32, abi.MAX_PROGRAMS)[opcode - PROGRAM_FIRST])
        image = array_at(arena + abi.UNIT * unit, abi.PROGRAM_HEADER, 1)[0]
        assert header["magic"] == abi.MAGIC_BINDING
        assert image["magic"] == abi.MAGIC_PROGRAM
        assert header["opcode"] == image["opcode"] == opcode
        assert header["program"] == unit
        program = self.programs[opcode]
        base = int(header["base"])
        skip = first - base
        assert 0 <= skip <= skip + count <= int(header["elements"])
        at = arena + abi.UNIT * number + abi.BINDING_HEADER.itemsize
        streams = [*program.inputs, *program.outputs, *program.tables, *program.emits]
        operands = array_at(at, abi.OPERAND, len(streams) + len(program.accumulators))
        params = array_at(at + operands.nbytes, np.uint64, len(program.params)).tolist()
        arrays = []
        for i, stream in enumerate(streams):
            is_table = len(program.inputs) + len(program.outputs) <= i < len(streams) - len(program.emits)
            extent = int(operands[i]["extent"]) if is_table else int(header["elements"])
            if is_table and operands[i]["dtype"] & abi.PAGED:
                found = _paged(int(operands[i]["address"]), NUMPY[stream.dtype], extent)
                if isinstance(found, int):
                    return Fault(int(FaultCode.load_miss), "", operands={"requests": found})
                arrays.append(found)
                continue
            arrays.append(array_at(int(operands[i]["address"]), NUMPY[stream.dtype], extent))
        io = len(program.inputs) + len(program.outputs)
        inputs = [a[skip : skip + count] for a in arrays[: len(program.inputs)]]
        tables = arrays[io : io + len(program.tables)]
        copies = [t.copy() for t in tables]
        found = execute(program, inputs, params, copies, first, count)
        if found.fault is not None:
            return found.fault
        for to, made in zip(arrays[len(program.inputs) : io], found.outputs, strict=True):
            to[skip : skip + count] = made
        for to, made in zip(tables, copies, strict=True):
            to[:] = made
        tiles = -(-count // TILE)
        counts = array_at(int(header["emit_counts"]), np.uint32, len(program.emits) * int(header["tiles"]))
        counts = counts.reshape(len(program.emits), int(header["tiles"]))
        for tile in range(tiles if program.emits else 0):
            low, high = tile * TILE, min((tile + 1) * TILE, count)
            part = execute(program, [a[low:high] for a in inputs], params, copies, first + low, high - low)
            for i, emitted in enumerate(part.emits):
                counts[i, tile + skip // TILE] = len(emitted)
                arrays[io + len(tables) + i][skip + low : skip + low + len(emitted)] = emitted
        self._accumulators(program, header, found, skip)
        return None

    def _accumulators(self, program: Program, header: Any, found: Any, skip: int) -> None:
        accs = program.accumulators
        results = array_at(int(header["results"]), np.uint64, len(accs) + sum(a.bins for a in accs))
        bins_at, sums = len(accs), 0
        for i, (acc, value) in enumerate(zip(accs, found.accumulators, strict=True)):
            if acc.kind is AccKind.histogram:
                results[bins_at : bins_at + acc.bins] = value.view(np.uint64)
                bins_at += acc.bins
            elif lower.is_float_sum(acc):
                tiles = int(header["tiles"])
                at = int(header["tile_sums"]) + 8 * (sums * tiles + skip // TILE)
                array_at(at, np.float64, len(found.tile_sums[i]))[:] = found.tile_sums[i]
                sums += 1
            else:
                bits = int.from_bytes(value.tobytes(), "little")
                results[i] = _key_of(acc.kind, acc.dtype, bits) if acc.kind in (AccKind.min, AccKind.max) else bits


def _paged(block: int, dtype: Any, extent: int) -> Any:
    """A table on disk, put together from its pages; or how many requests were left, because one of them is missing.

    The real kernel asks for what it gathers from. This one asks for everything, two at a time.
    """
    words = array_at(block, np.uint64, layout.PAGED_BYTES // 8).tolist()

    def word(at: int) -> int:
        return int(words[at // 8])

    page_bytes, base = 1 << word(layout.PAGED_SHIFT), word(layout.PAGED_BASE)
    first, last = base // page_bytes, (base + extent * dtype.itemsize - 1) // page_bytes
    frames = array_at(word(layout.PAGED_FRAMES), np.uint64, last + 1)
    used = array_at(word(layout.PAGED_USED), np.uint8, last + 1)
    missing = [page for page in range(first, last + 1) if frames[page] == 0][:2]
    used[first : last + 1] |= frames[first:] != 0
    entries = array_at(word(layout.PAGED_REQUESTS) + layout.REQUESTS_ENTRIES, layout.IO_REQUEST_DTYPE, 2)
    for i, page in enumerate(missing):
        used[page] = 1
        at = page * page_bytes
        handle = word(layout.PAGED_HANDLE)
        entries[i] = (layout.Opcode.LOAD_MISS, handle, at & 0xFFFFFFFF, at >> 32, page_bytes, (0, 0, 0))
    if missing:
        assert array_at(word(layout.PAGED_COUNT), np.uint64, 1)[0] == 0, "whoever reads the counter clears it"
        return len(missing)
    parts = [array_at(int(frames[page]), np.uint8, page_bytes) for page in range(first, last + 1)]
    at = base - first * page_bytes
    return np.concatenate(parts)[at : at + extent * dtype.itemsize].view(dtype)


def _key_of(kind: AccKind, dtype: Any, bits: int) -> int:
    """The key whose value has these bits: the inverse of lower.value_of_key."""
    width = 8 * dtype.size
    if dtype.name in ("f32", "f64"):
        high = 1 << width - 1
        key = ~bits & ((1 << width) - 1) if bits & high else bits | high
        nan = lower.value_of_key(kind, dtype, lower.NAN_KEYS[kind])
        return lower.NAN_KEYS[kind] if bits == nan else key
    signed = 1 << width - 1 if dtype.name[0] == "i" else 0
    return bits ^ signed


class _Programs(dict[int, Program]):
    """What the engine has at each opcode."""

    def __init__(self, owner: SessionCudaEngine) -> None:
        self.owner = owner

    def __getitem__(self, opcode: int) -> Program:
        for resident in self.owner._populations.values():
            found = np.flatnonzero(resident.opcodes == opcode)
            if len(found):
                return resident.population.program(int(found[0]))
        return self.owner.program(opcode)


@contextmanager
def simulated() -> Iterator[None]:
    """Inside, every CUDA engine is opened on a simulated device."""
    opened = SessionCudaEngine.__init__

    def init(self: SessionCudaEngine, *args: Any, **options: Any) -> None:
        opened(self, *args, **options)
        self.device.programs = _Programs(self)  # type: ignore[attr-defined]

    with (
        mock.patch.object(engine, "Device", SimulatedDevice),
        mock.patch.object(engine, "kernel_for", return_value=(b"", None)),
        mock.patch.object(SessionCudaEngine, "__init__", init),
    ):
        yield
