"""Chunks by cuFile straight into device memory: GPUDirect Storage where the machine has it, cuFile's compat mode where not.

Taken when it is asked for by name and a real read has been right (stream/cufile). Reads are cuFile's blocking ones, in a few
threads; the binding gives up the GIL for them. DMA from a disk is promised to be seen by a kernel that already runs only
where the device says so, else it is flushed before the chunk is handed over.

Owns: file handles, device memory of chunks, the threads. Leaves to others: whether cuFile works (stream/cufile), items
(chunks). No machine that this was written on has GPUDirect: it has run in compat mode's place with a stand-in only.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import Any, Final

from vyre.engines.cuda.driver import Device
from vyre.engines.cuda.feed import Arrived, frame_bytes
from vyre.engines.cuda.memory import Pool
from vyre.errors import StreamError
from vyre.stream.cufile import Mode
from vyre.stream.plan import Plan, Rung
from vyre.stream.pool import PAGE
from vyre.stream.source import Chunk, File, Piece, Source, shrank

THREADS: Final = 8
RUNG_OF: Final = {"direct": Rung.CUFILE, "compat": Rung.CUFILE_COMPAT}


class CufileFeed:
    """Slots of device memory that cuFile reads into.

    Args:
        memory, lock: device memory of the engine.
        slots: chunks that have memory at a time.
        mode: what the preflight found; what the bytes are counted as.
        api: cuda.bindings.cufile.
    Raises:
        StreamError: cuFile refuses a file.
    """

    in_device_memory = True

    def __init__(
        self,
        source: Source,
        plan: Plan,
        device: Device,
        memory: Pool,
        lock: threading.RLock,
        slots: int,
        mode: Mode,
        api: Any,
    ) -> None:
        self.source = source
        self.plan = plan
        self.seats = slots
        self._device = device
        self._memory = memory
        self._lock = lock
        self._rung = RUNG_OF[mode]
        self._api = api
        self._bytes = 0
        self._handles: dict[File, int] = {}
        self._fds: list[int] = []
        self._slots: list[int] = []
        self._free: list[int] = []
        self._tasks: queue.SimpleQueue[Arrived | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
        self._ready: list[Arrived] = []
        self._loading = 0
        self._stop = False
        self._closed = False
        self._chunks = source.chunks(plan.chunk_elements)
        self._next = next(self._chunks, None)
        self._threads: list[threading.Thread] = []
        api.driver_open()
        try:
            for files in source.files.values():
                for file in files:
                    if file not in self._handles:
                        self._handles[file] = self._register(file)
            frame = frame_bytes(source, plan.chunk_elements)
            for _ in range(slots):
                with lock:
                    self._slots.append(memory.get(frame))
            self._free = list(range(slots))
        except BaseException:
            self._give_back()
            raise
        for i in range(min(THREADS, slots)):
            self._threads.append(threading.Thread(target=self._work, name=f"vyre-cufile-{i}", daemon=True))
            self._threads[-1].start()

    @property
    def chunk_elements(self) -> int:
        return self.plan.chunk_elements

    @property
    def finished(self) -> bool:
        return self._next is None and not self._loading and not self._ready

    def _register(self, file: File) -> int:
        try:
            fd = os.open(f"/proc/self/fd/{file.fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            fd = os.dup(file.fd)
        self._fds.append(fd)
        descriptor = self._api.Descr()
        descriptor.type = self._api.FileHandleType.OPAQUE_FD
        descriptor.handle.fd = fd
        descriptor.fs_ops = 0
        try:
            return int(self._api.handle_register(descriptor.ptr))
        except Exception as error:  # cuFile's own kind
            raise StreamError(f"{file.path}: cuFile does not take the file: {error}") from None

    def _work(self) -> None:
        self._device.enter()
        while (arrived := self._tasks.get()) is not None:
            try:
                for name, address in zip(self.source.strips, arrived.addresses, strict=True):
                    at = address
                    for piece in self.source.pieces(name, arrived.chunk.first, arrived.chunk.count):
                        self._read(piece, at)
                        arrived.pieces.append(piece)
                        at += piece.bytes
                if self._rung is Rung.CUFILE:
                    self._device.flush_remote_writes()
            except StreamError as error:
                arrived.error = error
            except Exception as error:
                arrived.error = StreamError(f"cuFile: {error}")
            self._done.put(arrived)

    def _read(self, piece: Piece, address: int) -> None:
        assert piece.file is not None
        got = 0
        while got < piece.bytes:
            if self._stop:
                raise StreamError("the stream was closed")
            n = self._api.read(self._handles[piece.file], address, piece.bytes - got, piece.offset + got, got)
            if n <= 0:
                raise shrank(piece.file, piece.offset, piece.bytes)
            got += n

    def more(self) -> None:
        while self._next is not None and self._free:
            chunk, self._next = self._next, next(self._chunks, None)
            slot = self._free.pop()
            self._loading += 1
            self._tasks.put(Arrived(chunk, self._lay_out(chunk, slot), slot))

    def _lay_out(self, chunk: Chunk, slot: int) -> list[int]:
        found, at = [], self._slots[slot]
        for strip in self.source.strips.values():
            found.append(at)
            at += -(-chunk.count * strip.width // PAGE) * PAGE
        return found

    def full(self) -> list[Arrived]:
        found, self._ready = self._ready, []
        while not self._done.empty():
            found.append(self._done.get())
            self._loading -= 1
        return found

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        if record:  # which can only be looked at
            time.sleep(30e-6)
            return
        try:
            self._ready.append(self._done.get(timeout=timeout_ns / 1e9))
            self._loading -= 1
        except queue.Empty:
            pass

    def release(self, arrived: Arrived) -> None:
        self._free.append(arrived.slot)
        self.more()

    def device_address(self, address: int) -> int:
        return address

    def verify(self, arrived: Arrived) -> StreamError | None:
        self._bytes += sum(piece.bytes for piece in arrived.pieces)
        return None

    def bytes_by_way(self) -> dict[str, int]:
        return {self._rung.value: self._bytes} if self._bytes else {}

    def close(self) -> None:
        if self._closed:
            return
        self._closed = self._stop = True
        self._next = None
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def give_up(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for handle in self._handles.values():
            self._api.handle_deregister(handle)
        self._handles.clear()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        with self._lock:
            for address in self._slots:
                self._memory.put(address)
        self._slots.clear()
        self._api.driver_close()
