"""Kernel sources to a cubin for one architecture, by NVRTC, kept in the content-addressed store.

Owns: sources, options, the key of a compiled kernel. Leaves to others: loading it (driver), what it does (kernel/).
Nothing here needs a device or a driver; without the cuda packages, importing this module still works.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from vyre.engines.cuda import handlers, header
from vyre.errors import EngineUnavailable
from vyre.store import Store, key_of

KERNEL: Final = Path(__file__).parent / "kernel"
MAIN: Final = "resident.cu"
ENTRY: Final = "vyre_resident"
ARCHITECTURES: Final = (75, 80, 86, 89, 90, 100, 120)
"""What CI compiles. Others from 75 on are compiled when a device asks for them."""
OPTIONS: Final = (
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--jump-table-density=10",
)
QUICK_OPTIONS: Final = ("--Ofast-compile=min", "-DQUICK")
"""For a kernel that compiles quickly. The sources leave out under QUICK what only makes programs faster."""
_FIX: Final = 'pip install "vyre-runtime[cuda13]" (driver 580 or later) or "vyre-runtime[cuda12]" (driver 525 or later)'


def blocks_per_multiprocessor(arch: int) -> int:
    """Blocks of 128 threads that a multiprocessor holds: its registers and shared memory, shared evenly.

    On an H200 five blocks beat six: with 96 registers a thread the loop of the interpreter spills nothing. Where shared
    memory is smaller there are fewer, so that a warp keeps about 8 KB for code and registers.
    """
    if arch == 75:
        return 2
    return 5 if arch in (80, 90, 100, 103) else 3


@lru_cache(maxsize=1)
def sources() -> dict[str, str]:
    """Every source by the name it is included under, generated ones included."""
    found = {path.name: path.read_text(encoding="utf-8") for path in sorted(KERNEL.glob("*.cu*"))}
    found["vir0.cuh"] = header.header()
    found["hot_cases.cuh"] = handlers.hot_cases()
    found["light_cases.cuh"] = handlers.light_cases()
    found["narrow_cases.cuh"] = handlers.narrow_cases()
    found["heavy_cases.cuh"] = handlers.heavy_cases()
    return found


def nvrtc() -> Any:
    """The binding of NVRTC.

    Raises:
        EngineUnavailable: the package or its library is not there.
    """
    try:
        from cuda.bindings import nvrtc as module
    except ImportError as error:
        raise EngineUnavailable(f"the Python package cuda-bindings is missing ({error})", fix=_FIX) from None
    try:
        module.nvrtcVersion()
    except Exception as error:  # the binding raises its own kinds when the library cannot be found
        raise EngineUnavailable(f"the library NVRTC is missing ({error})", fix=_FIX) from None
    return module


def compiler_name() -> str:
    """NVRTC's version, for keys. Of an installed wheel from its metadata: loading the library takes 0.2 s."""
    from importlib import metadata

    try:
        major = metadata.version("cuda-bindings").partition(".")[0]
        return "nvrtc " + metadata.version("nvidia-cuda-nvrtc" + ("-cu12" if major == "12" else ""))
    except metadata.PackageNotFoundError:
        return "nvrtc {}.{}".format(*nvrtc().nvrtcVersion()[1:])


def kept_kernel(arch: int, store: Store | None, blocks: int = 0, *, quick: bool = False) -> bytes | None:
    """The cubin that an earlier ``compile_kernel`` has put into the store, or None."""
    return None if store is None else store.get(_key(arch, blocks, quick))


def compile_kernel(arch: int, store: Store | None = None, blocks: int = 0, *, quick: bool = False) -> bytes:
    """A cubin of the resident kernel for ``sm_<arch>``, from the store when it is there.

    Args:
        blocks: blocks per multiprocessor that registers are allotted for; 0 takes the default of the architecture.
        quick: without the short cuts of the interpreter and with less optimisation: the same bits, a fifth of the
            compiler's time, slower programs.
    Raises:
        EngineUnavailable: NVRTC is missing, too old for the architecture, or refuses the sources.
    """
    kept = kept_kernel(arch, store, blocks, quick=quick)
    if kept is not None:
        return kept
    module = nvrtc()
    _, major, minor = module.nvrtcVersion()
    options, text = _options(arch, blocks, quick), sources()
    names = [name for name in text if name != MAIN]
    status, program = module.nvrtcCreateProgram(
        text[MAIN].encode(), MAIN.encode(), len(names), [text[n].encode() for n in names], [n.encode() for n in names]
    )
    _check(module, status, "create a program")
    try:
        status = module.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])[0]
        if int(status) != 0:
            size = module.nvrtcGetProgramLogSize(program)[1]
            log = b" " * size
            module.nvrtcGetProgramLog(program, log)
            raise EngineUnavailable(
                f"NVRTC {major}.{minor} cannot compile the kernel for sm_{arch}: {log.decode(errors='replace').strip()}",
                fix="a newer nvidia-cuda-nvrtc knows newer architectures",
            )
        size = module.nvrtcGetCUBINSize(program)[1]
        cubin: bytes = b" " * size
        _check(module, module.nvrtcGetCUBIN(program, cubin)[0], "give a cubin")
    finally:
        module.nvrtcDestroyProgram(program)
    if store is not None:
        store.put(_key(arch, blocks, quick), cubin)
    return cubin


def can_be_quick() -> bool:
    """Whether this NVRTC has a quick way: from 12.9 on."""
    _, major, minor = nvrtc().nvrtcVersion()
    return bool((major, minor) >= (12, 9))


def _options(arch: int, blocks: int, quick: bool) -> list[str]:
    return [
        *OPTIONS,
        *(QUICK_OPTIONS if quick else ()),
        f"--gpu-architecture=sm_{arch}",
        f"-DBLOCKS_PER_SM={blocks or blocks_per_multiprocessor(arch)}",
    ]


def _key(arch: int, blocks: int, quick: bool) -> bytes:
    return key_of(
        {"what": "vyre cuda kernel", "nvrtc": compiler_name(), "options": " ".join(_options(arch, blocks, quick))}
        | {f"source {name}": body for name, body in sources().items()}
    )


def _check(module: Any, status: Any, what: str) -> None:
    if int(status) != 0:
        raise EngineUnavailable(f"NVRTC could not {what}: {status}", fix=_FIX)
