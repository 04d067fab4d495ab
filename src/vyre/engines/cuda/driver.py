"""The CUDA driver as this engine needs it: one device, one stream, one kernel, pinned and device memory.

Owns: every call of cuda.bindings.driver, and turning its failures into our errors. Leaves to others: what is launched
and when (residency), what memory holds (memory, engine). Importing this module needs no CUDA; making a Device does.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

from vyre.errors import DeviceLost, EngineUnavailable, StreamError

FIX_PACKAGES: Final = (
    'pip install "vyre-runtime[cuda13]" (driver 580 or later) or "vyre-runtime[cuda12]" (driver 525 or later)'
)
FIX_DRIVER: Final = "install NVIDIA's driver, 525 or later, or use engine='cpu'"
OLDEST: Final = 75
_NOT_READY: Final = 600  # CUDA_ERROR_NOT_READY


def bindings() -> Any:
    """cuda.bindings.driver.

    Raises:
        EngineUnavailable: the package or the driver library is missing.
    """
    try:
        from cuda.bindings import driver as module
    except ImportError as error:
        raise EngineUnavailable(
            f"engine cuda needs the Python package cuda-bindings, which is missing ({error})", fix=FIX_PACKAGES
        ) from None
    try:
        status = module.cuInit(0)[0]
    except Exception as error:  # the binding's own kinds: it looks for the driver library at the first call
        raise EngineUnavailable(f"engine cuda needs NVIDIA's driver: {error}", fix=FIX_DRIVER) from None
    if int(status) != 0:
        raise EngineUnavailable(f"engine cuda needs a device that the driver can start: {status.name}", fix=FIX_DRIVER)
    return module


class Device:
    """One GPU in its primary context, with non-blocking streams: for residency, for copies, for others' work.

    Raises:
        EngineUnavailable: package, driver or device is missing, or the device is too old.
    """

    def __init__(self, index: int = 0) -> None:
        self.cu = cu = bindings()
        count = self.call("count devices", cu.cuDeviceGetCount())
        if not 0 <= index < count:
            raise EngineUnavailable(f"device {index} is not there: this machine has {count}", fix=FIX_DRIVER)
        self.index = index
        self.handle = self.call("open the device", cu.cuDeviceGet(index))
        kinds = cu.CUdevice_attribute
        self.major = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        self.minor = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self.arch = 10 * self.major + self.minor
        self.same_addresses = bool(self._attribute(kinds.CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM))
        """Whether the kernel sees registered memory where the host has it."""
        self.multiprocessors = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self.shared_per_multiprocessor = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)
        self.shared_per_block = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        self.shared_reserved = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK)
        name = self.call("name the device", cu.cuDeviceGetName(128, self.handle))
        self.name = (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0 ")
        if self.arch < OLDEST:
            raise EngineUnavailable(
                f"{self.name} has compute capability {self.major}.{self.minor}, engine cuda needs 7.5",
                fix="use engine='cpu'",
            )
        self.context = self.call("take the primary context", cu.cuDevicePrimaryCtxRetain(self.handle))
        self.enter()
        non_blocking = int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.stream = self.call("make a stream", cu.cuStreamCreate(non_blocking))
        self._context_handle, self._stream_handle = int(self.context), int(self.stream)
        pointer, number = ctypes.c_void_p, ctypes.c_uint
        self._set_context = self._function("cuCtxSetCurrent", pointer)
        self._query = self._function("cuStreamQuery", pointer)
        self._launch = self._function("cuLaunchKernel", pointer, *[number] * 7, pointer, pointer, pointer)
        self.copies = self.call("make a stream", cu.cuStreamCreate(non_blocking))
        self._registered: dict[int, int] = {}
        self._staging: Any = None
        self.producers = self.call("make a stream", cu.cuStreamCreate(non_blocking))  # what we wait for: decision 30
        self.pid = os.getpid()
        self._modules: list[Any] = []

    def call(self, what: str, answer: Any) -> Any:
        """The result of a driver call, or our error."""
        status = answer[0]
        if int(status) != 0:
            raise DeviceLost(
                f"the GPU driver could not {what}: {status.name}",
                fix="open a new session; after a sticky error, in a new process",
            )
        if len(answer) == 1:
            return None
        return answer[1] if len(answer) == 2 else answer[1:]

    def _function(self, name: str, *kinds: Any) -> Any:
        """A function of the driver; it gives the GIL away while it runs."""
        found = self.call(f"find {name}", self.cu.cuGetProcAddress(name.encode(), 12000, 0))
        return ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(int(found[0] if isinstance(found, tuple) else found))

    def _attribute(self, kind: Any) -> int:
        return int(self.call("read an attribute", self.cu.cuDeviceGetAttribute(kind, self.handle)))

    def enter(self) -> None:
        """Make the context current in this thread."""
        self.call("set the context", self.cu.cuCtxSetCurrent(self.context))

    def relax_capture(self) -> None:
        """Let calls of this thread go through while another library captures a graph (decision 26)."""
        mode = self.cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self.cu.cuThreadExchangeStreamCaptureMode(mode)

    # --- memory ---------------------------------------------------------------------------------------------------

    def pinned(self, size: int) -> tuple[int, int]:
        """Zeroed pinned memory that the device sees: (host address, device address)."""
        self.enter()
        flags = 0x1 | 0x2  # portable, device map
        host = int(self.call(f"pin {size:,} bytes", self.cu.cuMemHostAlloc(size, flags)))
        ctypes.memset(host, 0, size)
        return host, int(self.call("map pinned memory", self.cu.cuMemHostGetDevicePointer(host, 0)))

    def free_pinned(self, host: int) -> None:
        self.cu.cuMemFreeHost(host)

    def register(self, address: int, size: int, *, read_only: bool = False) -> int:
        """Pin memory that somebody else mapped, so that the kernel reads it where it lies. Its device address.

        Args:
            address, size: whole pages, at most 1 GiB, that stay mapped until ``unregister``.
            read_only: the kernel never writes there. Without it the driver refuses mappings that cannot be written and
                shared ones of a file on a disk.
        Raises:
            StreamError: the driver refuses. Nothing is registered.
        """
        self.enter()
        flags = 0x1 | 0x2 | (0x8 if read_only else 0)  # portable, device map, read only
        status = self.cu.cuMemHostRegister(address, size, flags)[0]
        if int(status) != 0:
            raise StreamError(f"CUDA does not register {size:,} bytes of memory: {status.name}")
        self._registered[address] = size
        return int(self.call("map registered memory", self.cu.cuMemHostGetDevicePointer(address, 0)))

    def unregister(self, address: int) -> None:
        """Unpin. The kernel reads nothing of it any more. May wait for the stay to end."""
        if self._registered.pop(address, None) is not None:
            self.enter()
            self.call("unregister memory", self.cu.cuMemHostUnregister(address))

    def flush_remote_writes(self) -> None:
        """Have a kernel that already runs see what a disk or network card wrote into device memory by DMA."""
        ordering = self._attribute(self.cu.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING)
        if ordering < int(self.cu.CUGPUDirectRDMAWritesOrdering.CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER):
            target = self.cu.CUflushGPUDirectRDMAWritesTarget.CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX
            scope = self.cu.CUflushGPUDirectRDMAWritesScope.CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER
            self.call("flush writes of other devices", self.cu.cuFlushGPUDirectRDMAWrites(target, scope))

    def memory(self, size: int) -> int:
        """Zeroed device memory."""
        self.enter()
        address = int(self.call(f"allocate {size:,} bytes", self.cu.cuMemAlloc(size)))
        self.call("clear memory", self.cu.cuMemsetD8Async(address, 0, size, self.copies))
        self.call("clear memory", self.cu.cuStreamSynchronize(self.copies))
        return address

    def free(self, address: int) -> None:
        self.cu.cuMemFree(address)

    def to_device(self, address: int, host: int, size: int) -> None:
        self.enter()
        self.call("copy to the device", self.cu.cuMemcpyHtoDAsync(address, host, size, self.copies))
        self.call("copy to the device", self.cu.cuStreamSynchronize(self.copies))

    def to_host(self, host: int, address: int, size: int) -> None:
        self.enter()
        self.call("copy to the host", self.cu.cuMemcpyDtoHAsync(host, address, size, self.copies))
        self.call("copy to the host", self.cu.cuStreamSynchronize(self.copies))

    def is_done(self, stream: int) -> bool:
        """Whether a stream has nothing left to do."""
        status = self._set_context(self._context_handle) or self._query(int(stream))
        if status and status != _NOT_READY:
            self.call("ask a stream", (self.cu.CUresult(status),))
        return not status

    @property
    def identity(self) -> str:
        """Device and driver, for what is measured once."""
        return f"{self.name}, driver {self.call('ask for the version', self.cu.cuDriverGetVersion())}"

    def stage(self, address: int, host: int, size: int) -> None:
        """Begin to copy registered memory to the device, on a stream of its own. From any thread."""
        self.enter()
        if self._staging is None:
            self._staging = self.call(
                "make a stream", self.cu.cuStreamCreate(int(self.cu.CUstream_flags.CU_STREAM_NON_BLOCKING))
            )
        self.call("copy to the device", self.cu.cuMemcpyHtoDAsync(address, host, size, self._staging))

    def mark(self, event: Any) -> Any:
        """An event behind everything that was staged so far; ``event`` again, or a new one for None."""
        if event is None:
            event = self.call(
                "make an event", self.cu.cuEventCreate(int(self.cu.CUevent_flags.CU_EVENT_DISABLE_TIMING))
            )
        self.call("record an event", self.cu.cuEventRecord(event, self._staging))
        return event

    def is_reached(self, event: Any) -> bool:
        """Whether everything before the event is done."""
        status = self.cu.cuEventQuery(event)[0]
        if int(status) == 0:
            return True
        if status.name == "CUDA_ERROR_NOT_READY":
            return False
        raise DeviceLost(f"the GPU reports {status.name}", fix="open a session in a new process")

    def forget(self, event: Any) -> None:
        self.cu.cuEventDestroy(event)

    def wait_for_stage(self) -> None:
        """Until nothing is being staged any more."""
        if self._staging is not None:
            self.enter()
            self.call("wait for copies", self.cu.cuStreamSynchronize(self._staging))

    def wait_for(self, stream: int) -> None:
        """Wait until what another library has put on its stream is done (decision 30)."""
        self.enter()
        self.call("wait for a stream", self.cu.cuStreamSynchronize(stream))

    # --- the kernel -----------------------------------------------------------------------------------------------

    def load(self, cubin: bytes, entry: str, shared_bytes: int) -> None:
        """Load the kernel and let it have so much shared memory per block. An earlier one is no longer launched."""
        self.module = self.call("load the kernel", self.cu.cuModuleLoadData(cubin))
        self._modules.append(self.module)
        self.kernel = self.call("find the kernel", self.cu.cuModuleGetFunction(self.module, entry.encode()))
        self._kernel_handle = int(self.kernel)
        kind = self.cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.call("set shared memory", self.cu.cuFuncSetAttribute(self.kernel, kind, shared_bytes))
        carve = self.cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        self.call("set shared memory", self.cu.cuFuncSetAttribute(self.kernel, carve, 100))

    def occupancy(self, threads: int, shared_bytes: int) -> int:
        """Blocks that a multiprocessor holds at once."""
        answer = self.cu.cuOccupancyMaxActiveBlocksPerMultiprocessor(self.kernel, threads, shared_bytes)
        return int(self.call("ask for occupancy", answer))

    def launch(self, blocks: int, threads: int, shared_bytes: int, parameters: int) -> None:
        """Launch on the residency stream. ``parameters`` is the address of a void*[1].

        By the driver's own address: a first item after a pause waits for this, and the binding would add three
        microseconds of packing arguments.
        """
        status = self._set_context(self._context_handle)
        if status == 0:
            status = self._launch(
                self._kernel_handle, blocks, 1, 1, threads, 1, 1, shared_bytes, self._stream_handle, parameters, None
            )
        if status:
            self.call("launch the kernel", (self.cu.CUresult(status),))

    def idle(self) -> bool:
        """Whether the residency stream has nothing left to do."""
        return self.is_done(self.stream)

    def close(self) -> None:
        """Give everything back. The kernel has left."""
        if self.pid != os.getpid():
            return
        self.cu.cuStreamSynchronize(self.stream)
        for address in list(self._registered):
            self.unregister(address)
        for module in self._modules:
            self.cu.cuModuleUnload(module)
        self.cu.cuStreamDestroy(self.stream)
        self.cu.cuStreamDestroy(self.copies)
        if self._staging is not None:
            self.cu.cuStreamDestroy(self._staging)
        self.cu.cuStreamDestroy(self.producers)
        self.cu.cuDevicePrimaryCtxRelease(self.handle)
