"""The GPU engine's kernel compiles for every architecture, without a GPU, and its accesses are the ones it must make."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vyre.engines.cuda import abi, compile, handlers, header
from vyre.engines.cuda.compile import ARCHITECTURES, KERNEL, compile_kernel, sources
from vyre.program.opcodes import OPCODES, FaultCode, Group
from vyre.store import Store

# The dev extra brings NVRTC. Where it is missing these tests fail: a skip would hide that the kernel is unchecked.


@pytest.fixture(scope="session")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    return {}


def cubin_for(cubins: dict[int, bytes], arch: int) -> bytes:
    if arch not in cubins:
        cubins[arch] = compile_kernel(arch)
    return cubins[arch]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_kernel_compiles_without_a_gpu(arch: int, cubins: dict[int, bytes]) -> None:
    cubin = cubin_for(cubins, arch)
    assert cubin[:4] == b"\x7fELF"
    assert b"vyre_resident" in cubin


@pytest.fixture(scope="session")
def sass(cubins: dict[int, bytes], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Disassembly for sm_90."""
    path = tmp_path_factory.mktemp("sass") / "k.cubin"
    path.write_bytes(cubin_for(cubins, 90))
    spec = importlib.util.find_spec("nvidia")
    assert spec is not None, "nvidia-cuda-nvdisasm of the dev extra is missing"
    tools = [t for place in spec.submodule_search_locations or () for t in Path(place).glob("**/bin/nvdisasm")]
    assert tools, "nvidia-cuda-nvdisasm of the dev extra is missing"
    return subprocess.run([str(tools[0]), "-c", str(path)], capture_output=True, text=True, check=True).stdout


def test_nothing_is_read_through_the_read_only_path(sass: str) -> None:
    loads = [line for line in sass.splitlines() if re.search(r"\bLDG?\.", line)]
    assert loads
    wrong = [line.strip() for line in loads if ".CONSTANT" in line or re.search(r"\.NC\b|\.CI\b", line)]
    assert wrong == [], "a resident kernel never gets a launch's flush of L1"


def test_records_and_slots_are_accessed_at_system_scope(sass: str) -> None:
    stores = [line for line in sass.splitlines() if re.search(r"\bSTG?\.E.*STRONG\.SYS", line)]
    loads = [line for line in sass.splitlines() if re.search(r"\bLDG?\.E.*STRONG\.SYS", line)]
    assert any(".64" in line for line in stores), "the sequence of a record is released with 64 bits"
    assert any(".128" in line for line in loads), "a slot is read 16 bytes a lane"
    assert "MEMBAR" in sass


def test_what_runs_between_a_slot_and_its_record_keeps_nothing_in_local_memory(sass: str) -> None:
    body = re.search(r"^\$vyre_resident\$\w*4lookEj:\n(.*?)^\s*\.type", sass, re.MULTILINE | re.DOTALL)
    assert body is not None, "look() of resident.cu is a function of its own"
    assert "LDG.E.128.STRONG.SYS" in body[1]
    assert re.findall(r"\b(?:LDL|STL)\b.*", body[1]) == [], "local memory is thrown out of the cache by every look"


def test_the_switch_is_a_jump_table(sass: str) -> None:
    longest = max((line.count(".L_x") for line in sass.splitlines() if "BRX" in line), default=0)
    assert longest > 100, "without --jump-table-density the switch is a tree of compares and costs a third"


def test_the_loops_of_the_interpreters_do_not_yield(sass: str) -> None:
    # What they have in common: two words of the record at hand are read from the place where the next one is read.
    loads = list(
        re.finditer(
            r"LDS\.64 R\d+, \[(R\d+)\+0x8\](?:.*\n){1,24}?.*SHFL(?:.*\n){1,24}?.*LDS\.64 R\d+, \[\1\+0x10\]", sass
        )
    )
    assert len(loads) == 2, "one interpreter for any program, one for 32-bit values"
    for found in loads:
        assert "YIELD" not in sass[found.start() - 300 : found.end()], (
            "something in the loop costs every record 50 cycles"
        )


def test_sources_use_no_read_only_loads() -> None:
    for path in KERNEL.iterdir():
        text = re.sub(r"//.*", "", path.read_text())
        assert not re.search(r"__ldg|\.nc\b|const\s+\w+\s*\*\s*__restrict__", text), path.name


def test_every_numeric_instruction_has_a_case_once() -> None:
    light = [line for line in handlers.light_cases().splitlines() if line]
    heavy = [line for line in handlers.heavy_cases().splitlines() if line]
    names = [found[1] for each in [*light, *heavy] if (found := re.match(r"\w+\(\d+, (\w+),", each))]
    numeric = [
        op.name.replace(".", "_") for op in OPCODES if op.group is Group.numeric and "reinterpret" not in op.name
    ]
    assert sorted(names) == sorted(numeric)


def test_a_short_cut_stands_for_one_handler_and_form() -> None:
    numbers = list(handlers.HOT.values())
    assert len(set(numbers)) == len(numbers)
    assert 0 not in numbers, "a record without a short cut has 0"
    *lines, others = handlers.hot_cases().splitlines()
    cases = re.findall(r"^(?:\w+\(|case )(\d+)", "\n".join(lines), re.MULTILINE)
    assert sorted(map(int, cases)) == sorted(numbers)
    assert others == "default: break;", "0 goes the long way"


def test_the_header_says_what_the_tables_say() -> None:
    text = header.header()
    assert "#define FAULT_OUT_OF_FUEL 6u" in text
    assert all(f"#define FAULT_{code.name.upper()} {int(code)}u" in text for code in FaultCode)
    assert f"static_assert(sizeof(Launch) == {abi.LAUNCH.itemsize}" in text


def test_a_kept_cubin_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Once:
        def __init__(self) -> None:
            self.kept: dict[bytes, bytes] = {}

        def get(self, key: bytes) -> bytes | None:
            return self.kept.get(key, b"from the store")

        def put(self, key: bytes, data: bytes) -> None:
            raise AssertionError("nothing was compiled")

    assert compile_kernel(90, Once()) == b"from the store"  # type: ignore[arg-type]


def test_the_key_covers_sources_and_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    class Watch(Store):
        def get(self, key: bytes | str) -> bytes | None:
            seen.append(bytes(key))  # type: ignore[arg-type]
            return b"x"

    compile_kernel(90, Watch())
    compile_kernel(80, Watch())
    changed = {**sources(), "tile.cuh": sources()["tile.cuh"] + "\n"}
    monkeypatch.setattr(compile, "sources", lambda: changed)
    compile_kernel(90, Watch())
    assert len(set(seen)) == 3


def test_importing_vyre_and_the_engine_imports_no_cuda() -> None:
    code = (
        "import sys, vyre, vyre.engines.cuda.engine; assert not [m for m in sys.modules if m.split('.')[0] == 'cuda']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_compilers_name_is_that_of_the_wheel_or_else_asked_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    named = compile.compiler_name()
    assert named == "nvrtc " + metadata.version("nvidia-cuda-nvrtc")

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    _, major, minor = compile.nvrtc().nvrtcVersion()
    assert compile.compiler_name() == f"nvrtc {major}.{minor}"
