"""Arrays in GPU memory, whoever made them: read through ``__cuda_array_interface__`` or DLPack, never copied.

Owns: what an array says of itself by either protocol, and how its producer's pending work is put before ours (decision
30). Leaves to others: waiting for that (cuda.driver), which types fit (runtime.operands). Nothing here needs CUDA.
"""

from __future__ import annotations

import ctypes
import math
import sys
from typing import Any, Final

import numpy as np

from vyre.errors import BindError
from vyre.program.opcodes import MemType
from vyre.stream.formats import memtype_of, numpy_dtype

_CUDA: Final = (2, 13)  # kDLCUDA, kDLCUDAManaged
_NOTHING: Final[dict[str, Any]] = {}
_READ_ONLY: Final = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_KINDS: Final = {  # (DLPack's type code, bits)
    **{(0, 8 * size): MemType[f"i{8 * size}"] for size in (1, 2, 4, 8)},
    **{(1, 8 * size): MemType[f"u{8 * size}"] for size in (1, 2, 4, 8)},
    (2, 16): MemType.f16, (2, 32): MemType.f32, (2, 64): MemType.f64, (4, 16): MemType.bf16, (6, 8): MemType.bool,
}  # fmt: skip
_REFUSALS: Final = (BufferError, RuntimeError, TypeError, ValueError, AttributeError)  # of producers


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned of dlpack.h, 1.0."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def is_on_device(value: object) -> bool:
    """Whether a value says that it lies in the memory of a CUDA device."""
    where = getattr(value, "__dlpack_device__", None)
    if where is not None:
        try:
            return int(where()[0]) in _CUDA
        except _REFUSALS:
            pass
    return hasattr(value, "__cuda_array_interface__")


class DeviceArray:
    """An array in GPU memory: what counts of it.

    Attributes:
        owner: the caller's array; kept alive with this one.
        address: of the first element, on the device.
        memtype: type of the elements.
        dtype: NumPy's name for it; bf16 as its bits in uint16.
        shape, size: as NumPy has them.
        read_only: the producer does not want it written to.
        device: CUDA's number of the device; None where the producer does not say.
    """

    __slots__ = ("_held", "address", "device", "dtype", "memtype", "owner", "read_only", "shape", "size")

    def __init__(self, owner: Any, name: str, stream: int) -> None:
        """Read ``owner``.

        Args:
            name: of the operand, for messages.
            stream: a CUDA stream of ours, which DLPack orders behind the producer's work.
        Raises:
            BindError: its producer refuses, it is not contiguous, or no memory type holds its elements.
        """
        self.owner = owner
        self._held: Any = None
        self.device: int | None = None
        try:
            where = getattr(owner, "__dlpack_device__", None)
            if where is not None:
                self.device = int(where()[1])
            interface = getattr(owner, "__cuda_array_interface__", None)
            memtype = None if interface is None else memtype_of(np.dtype(interface["typestr"]))
            if interface is not None and (memtype is not None or where is None):
                strides = self._by_interface(interface, memtype, name)
            else:  # bfloat16 has no name in the array interface
                strides = self._by_dlpack(name, stream)
        except BindError:
            raise
        except _REFUSALS as error:
            raise BindError(
                f"{name}: {_kind(owner)} does not give its device memory away: {error}",
                fix="pass a plain array of numbers; of a torch tensor with gradients, tensor.detach()",
            ) from None
        self.dtype = numpy_dtype(self.memtype)
        self.size = math.prod(self.shape)
        expected = 1
        for n, step in zip(reversed(self.shape), reversed(strides or ()), strict=False):
            if n > 1 and step != expected:
                raise BindError(f"{name}: a device array must be contiguous", fix="call .contiguous() or .copy()")
            expected *= n

    def _by_interface(self, interface: Any, memtype: MemType | None, name: str) -> tuple[int, ...] | None:
        """Strides in elements, None for C order."""
        if memtype is None:
            raise BindError(f"{name} is a device array of {interface['typestr']}, which no memory type holds")
        self.memtype = memtype
        self.address = int(interface["data"][0] or 0)
        self.read_only = bool(interface["data"][1])
        self.shape = tuple(int(n) for n in interface["shape"])
        strides = interface.get("strides")
        if strides is None:
            return None
        size = memtype.size
        return tuple(int(s) // size if int(s) % size == 0 else -1 for s in strides)

    def _by_dlpack(self, name: str, stream: int) -> tuple[int, ...] | None:
        try:
            capsule = self.owner.__dlpack__(stream=stream, max_version=(1, 0))
        except TypeError:  # of a producer from before version 1
            capsule = self.owner.__dlpack__(stream=stream)
        self._held = capsule  # which frees the tensor when it goes, because nobody renames it
        tensor, flags = _tensor_of(capsule)
        if tensor.lanes != 1 or (tensor.code, tensor.bits) not in _KINDS:
            raise BindError(
                f"{name} is a device array of DLPack type {tensor.code} with {tensor.bits} bits, which no memory type holds"
            )
        self.memtype = _KINDS[tensor.code, tensor.bits]
        self.device = int(tensor.device_id)
        self.address = int(tensor.data or 0) + int(tensor.byte_offset)
        self.read_only = bool(flags & _READ_ONLY)
        self.shape = tuple(tensor.shape[: tensor.ndim])
        return tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None

    def overlaps(self, other: DeviceArray) -> bool:
        """Whether some byte belongs to both."""
        mine, its = self.size * self.dtype.itemsize, other.size * other.dtype.itemsize
        return self.address < other.address + its and other.address < self.address + mine

    def order_before(self, stream: int) -> int:
        """Have everything that the producer has put on its current stream come before what follows on a stream.

        Args:
            stream: a CUDA stream of ours.
        Returns:
            The stream to wait for: the producer's, where it names one, or ours, behind an event that it recorded.
        """
        owner = self.owner
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(owner, torch.Tensor):  # what its __dlpack__ does, in 1 us instead of 16
            return int(torch.cuda.current_stream(self.device).cuda_stream)
        named = getattr(owner, "__cuda_array_interface__", _NOTHING).get("stream")
        if named is not None:
            return int(named)
        if not hasattr(owner, "__dlpack__"):
            return 0
        try:
            owner.__dlpack__(stream=stream)  # dropped at once: the event that it recorded is what we want
        except _REFUSALS as error:
            raise BindError(f"{_kind(owner)} does not give its device memory away: {error}") from None
        return stream


def _tensor_of(capsule: Any) -> tuple[_Tensor, int]:
    """The tensor in a DLPack capsule, and its flags."""
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    kind = name(capsule)
    if kind == b"dltensor":
        return _Tensor.from_address(pointer(capsule, kind)), 0
    if kind == b"dltensor_versioned":
        versioned = _Versioned.from_address(pointer(capsule, kind))
        if versioned.major != 1:
            raise BufferError(f"it speaks version {versioned.major} of DLPack, version 1 was asked for")
        return versioned.tensor, int(versioned.flags)
    raise BufferError(f"its DLPack capsule is named {kind!r}")


def _kind(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__.partition('.')[0]}'s {kind.__name__}"
