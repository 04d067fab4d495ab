"""Whether cuFile (GPUDirect Storage) works for a file, and what stands in its way: asked cheaply, then proven by a read.

Direct means that the bytes do not pass through host memory: cuFile's kernel module nvidia-fs is there, or the driver does
peer-to-peer DMA. Everything else that cuFile calls a read is its compatibility mode, a read into host memory and a copy,
and is called that here.

Owns: the preflight and its words. Leaves to others: cuFile's calls (cufile_child), what is read how (plan, engines).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

TIMEOUT_S: Final = 10.0
"""Opening cuFile's driver takes half a second where it works, and for ever where it does not."""
TEST_BYTES: Final = 1 << 20
PACKAGE_FIX: Final = 'pip install "vyre-runtime[cufile]"'
_CHILD: Final = Path(__file__).with_name("cufile_child.py")

Mode = Literal["direct", "compat", "refused"]


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found out.

    Attributes:
        mode: "direct": the bytes skip host memory; "compat": cuFile reads, through host memory; "refused": it does not.
        causes: why it is no better than that, most important first.
        facts: versions and times, for ``vyre doctor``.
    """

    mode: Mode
    causes: tuple[str, ...]
    facts: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = {
            "direct": "cuFile GPUDirect",
            "compat": "cuFile compat mode, through host memory",
            "refused": "cuFile refused",
        }
        return words[self.mode] + (f": {'; '.join(self.causes)}" if self.causes else "")


def obstacles(root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL) -> list[str]:
    """What can be seen without starting anything: a package, a library, a device, a kernel that lacks something.

    Args:
        root: of the file system that is looked at. load: opens a shared library, or raises OSError.
    """
    found = []
    if not _has_bindings():
        found.append(f"the Python package cuda-bindings has no cuFile here ({PACKAGE_FIX})")
    try:
        driver = load("libcuda.so.1")
    except OSError as error:
        found.append(f"no NVIDIA driver: {error}")
    else:
        count = ctypes.c_int(0)
        status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
        if status or not count.value:
            found.append(f"the driver starts no device (CUDA error {status})" if status else "the driver has no device")
    if not (root / "proc/modules").exists():
        found.append("/proc/modules is missing (a kernel without modules): cuFile's driver open would never return")
    return found


def lacks_direct(root: Path = Path("/")) -> list[str]:
    """Why no read can skip host memory here, whatever cuFile says: neither nvidia-fs nor peer-to-peer DMA."""
    try:
        modules = (root / "proc/modules").read_text().split("\n")
    except OSError:
        modules = []
    if any(line.startswith("nvidia_fs ") for line in modules):
        return []
    found = ["the kernel module nvidia_fs is not loaded"]
    if not any((root / "dev").glob("nvidia-fs*")):
        found.append("/dev/nvidia-fs* is missing")
    config = Path(os.environ.get("CUFILE_ENV_PATH_JSON") or root / "etc/cufile.json")
    try:
        text = "\n".join(line.split("//")[0] for line in config.read_text().split("\n"))
        p2p = '"use_pci_p2pdma"' in text and text.split('"use_pci_p2pdma"', 1)[1].lstrip(' :"\t')[:4] == "true"
    except OSError:
        p2p = False
    return [] if p2p else [*found, f"{config} does not ask for use_pci_p2pdma"]


def preflight(
    path: str | os.PathLike[str],
    *,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = (sys.executable, "-I", str(_CHILD)),
    root: Path = Path("/"),
    load: Callable[[str], Any] = ctypes.CDLL,
) -> Preflight:
    """Find out, by a real read of ``path`` in a child process, which is killed when it takes too long.

    Args:
        command: the child, to which the path and a number of bytes are added.
    """
    causes = obstacles(root, load)
    if causes:
        return Preflight("refused", tuple(causes))
    with tempfile.TemporaryDirectory(prefix="vyre-cufile-") as folder:
        try:
            done = subprocess.run(
                [*command, os.path.abspath(path), str(TEST_BYTES)],
                cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Preflight("refused", (f"cuFile did not answer within {timeout_s:g} s in a process of its own",))
        except OSError as error:
            return Preflight("refused", (f"its test process does not start: {error}",))
    try:
        answer = json.loads(done.stdout.strip().split("\n")[-1])
    except ValueError:
        last = (done.stderr.strip().split("\n") or [""])[-1]
        return Preflight("refused", (f"its test process ended with code {done.returncode}: {last or 'no answer'}",))
    return judge(answer, lacks_direct(root))


def judge(answer: dict[str, Any], lacking: Sequence[str]) -> Preflight:
    """What a child's answer means, together with what the machine lacks for a direct read."""
    facts = []
    if "version" in answer:
        facts.append(f"cuFile {answer['version']}")
    if "open_s" in answer:
        facts.append(f"driver opened in {answer['open_s']:.2f} s")
    major, minor = answer.get("nvidia_fs", (0, 0))
    facts.append(f"nvidia-fs {major}.{minor}" if major else "no nvidia-fs")
    if "error" in answer:
        causes = [f"could not {answer['step']}: {answer['error']}"]
        causes += [f"its log: {line}" for line in answer.get("log", [])]
        return Preflight("refused", (*causes, *lacking), tuple(facts))
    if lacking:
        return Preflight("compat", tuple(lacking), tuple(facts))
    return Preflight("direct", (), tuple(facts))


def bindings() -> Any:
    """cuda.bindings.cufile. Only after a preflight that did not refuse."""
    from cuda.bindings import cufile

    return cufile


def _has_bindings() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings.cufile") is not None
    except ModuleNotFoundError:
        return False
