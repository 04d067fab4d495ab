"""The command line: what it prints, on which stream, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vyre import __version__, errors
from vyre.cli import COMMANDS, main
from vyre.commands import exits, manual

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT.parent / "shared/conformance/scalar_ops_sample.json"


def vyre(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def vyre_process(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vyre.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


# --- the frame ------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    result = vyre("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = vyre(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: vyre {name}" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vyre.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'llvmlite', 'rich') if m in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "[]\n"


def test_version_is_the_packages() -> None:
    assert vyre("--version").stdout == f"vyre, version {__version__}\n"


def test_a_mistyped_command_is_refused_with_the_nearest_name() -> None:
    result = vyre("vefiry")
    assert result.exit_code == 2
    assert "did you mean 'verify'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_error_that_is_raised_on_purpose_has_a_documented_exit_code() -> None:
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.VyreError)]
    assert len(kinds) > 10
    codes = {kind.__name__: exits.exit_of(_raised(kind)) for kind in kinds}
    assert all(code in exits.EXITS for code in codes.values()), codes
    assert codes["VerifyError"] is codes["CompileError"] is codes["BytecodeError"] is exits.REFUSED
    assert codes["BindError"] is exits.USAGE
    assert codes["ProgramFault"] is exits.FAILED
    assert codes["StreamError"] is exits.IO
    assert codes["WaitTimeout"] is exits.ENGINE, "although a TimeoutError is an OSError"
    assert exits.exit_of(ValueError()) is None, "a bug of ours keeps its traceback"


def _raised(kind: type[errors.VyreError]) -> errors.VyreError:
    if kind is errors.ProgramFault:
        return errors.ProgramFault(errors.Fault(1, "unreachable"))
    return errors.VerifyError("x", rule="y") if kind is errors.VerifyError else kind("x")


def test_docs_cli_is_what_the_code_prints() -> None:
    assert (ROOT / "docs/cli.md").read_text() == manual.page(), "python -m vyre.commands.manual > docs/cli.md"


def test_a_reader_that_leaves_ends_the_command_without_a_traceback() -> None:
    command = f"{sys.executable} -m vyre.cli explain q6 | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert run.returncode in (0, 5)
    assert "Traceback" not in run.stderr


def on_a_terminal(code: str) -> str:
    """Everything that a Python program prints when both its streams are a terminal of 80 columns."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while block := os.read(ours, 65_536):
            seen += block
    except OSError:  # how a terminal says that its other side has gone
        pass
    os.close(ours)
    assert process.wait(30) == 0, seen
    return seen.decode()


def test_a_table_on_a_terminal_has_the_same_cells_as_in_a_pipe() -> None:
    code = "from vyre.commands.show import table; table('[title]', ('name', 'n'), [('[red]a[/red]', 1)], right=(1,))"
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", on_a_terminal(code)).split()
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [word for word in shown if "─" not in word] == ["[title]", "name", "n", "[red]a[/red]", "1"]
    assert [word for word in piped if "─" not in word] == ["[title]", "name", "n", "[red]a[/red]", "1"]


def test_a_progress_bar_shows_on_a_terminal_once_work_takes_long_and_never_in_a_pipe() -> None:
    code = (
        "import time; from vyre.commands import show\n"
        "with show.progress('working', 100) as bar:\n"
        "    bar(1); time.sleep(0.4); bar(50); time.sleep(0.2)\n"
        "with show.progress('short', 100) as bar:\n"
        "    bar(1); bar(100)"
    )
    shown = on_a_terminal(code)
    assert "working" in shown
    assert "50/100" in shown
    assert "short" not in shown
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


# --- geometry -------------------------------------------------------------------------------------------------


def test_geometry_prints_the_plan_as_a_table() -> None:
    result = vyre("geometry", "--items", 65_536, "--workers", 64, "--max-x", 256)
    assert result.exit_code == 0
    rows = {" ".join(line.split()[:-1]) for line in result.stdout.splitlines()}
    assert any(row.startswith("workgroup_size_x 64 ") for row in rows)
    assert any(row.startswith("slot_count 65,536 ") for row in rows)
    assert any(row.startswith("dispatch_grid 64 x 1 x 1 ") for row in rows)
    assert any(row.startswith("slots beyond lanes 61,440 ") for row in rows)


def test_geometry_prints_the_plan_as_json() -> None:
    result = vyre("geometry", "--items", 1_000, "--workers", 48, "--max-x", 1_024, "--json")
    assert json.loads(result.stdout) == {
        "item_count": 1_000, "worker_count": 48, "max_workgroup_size_x": 1_024, "workgroup_size_x": 48,
        "slot_count": 1_008, "dispatch_grid": [21, 1, 1], "covering_worker_groups": 21, "lanes": 1_008,
        "slots_beyond_lanes": 0,
    }  # fmt: skip


def test_geometry_refuses_what_no_ring_can_hold_in_the_words_of_the_crate() -> None:
    result = vyre("geometry", "--items", 2**32)
    assert result.exit_code == 2
    assert "error: megakernel work queue length exceeds u32::MAX. Fix: shard the queue" in result.stderr


@pytest.mark.parametrize("bad", [("--items", "-1"), ("--items", "x"), ("--items", "1", "--workers", 2**32), ()])
def test_geometry_refuses_numbers_out_of_range_by_the_options_name(bad: tuple[object, ...]) -> None:
    result = vyre("geometry", *bad)
    assert result.exit_code == 2
    assert "--items" in result.stderr or "--workers" in result.stderr


# --- programs as files ----------------------------------------------------------------------------------------


def test_a_program_survives_listing_and_bytecode(here: Path) -> None:
    listing = vyre("dis", "q6").stdout
    Path("q6.vir").write_text(listing)
    made = vyre("asm", "q6.vir", "--json")
    assert made.exit_code == 0, made.output
    answer = json.loads(made.stdout)
    assert answer["path"] == "q6.virb"
    assert Path("q6.virb").stat().st_size == answer["bytes"]
    for word in ("q6", "q6.vir", "q6.virb", "./q6.virb"):
        assert vyre("verify", word).stdout.rstrip().endswith(answer["identity"])
    again = vyre("dis", "q6.virb").stdout
    assert [
        line.partition(" @")[0] for line in again.splitlines() if not line.startswith("source")
    ] == listing.splitlines()


def test_bytecode_is_known_by_its_magic_whatever_its_name(here: Path) -> None:
    vyre("asm", "q6", "-o", "anything.bin")
    assert vyre("verify", "anything.bin").exit_code == 0


def test_asm_leaves_no_file_when_the_program_is_refused(here: Path) -> None:
    Path("bad.vir").write_text("f64.load r0, nothing\nreturn\n")
    result = vyre("asm", "bad.vir", "-o", "bad.virb")
    assert result.exit_code == 3
    assert sorted(path.name for path in here.iterdir()) == ["bad.vir"]


@pytest.mark.parametrize(
    ("place", "code"), [("missing/x.virb", 5), ("/dev/full", 5), ("/proc/nothing.virb", 5), ("/dev/null", 0)]
)
def test_asm_says_where_it_cannot_write(here: Path, place: str, code: int) -> None:
    result = vyre("asm", "q6", "-o", place)
    assert result.exit_code == code, result.output
    if code:
        assert f"error: {place}: cannot be written" in result.stderr


def test_asm_keeps_the_old_file_when_the_disk_is_full(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("q6.virb").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = vyre("asm", "q6")
    assert result.exit_code == 5
    assert "No space left on device" in result.stderr
    assert "fix: make room" in result.stderr
    assert [path.name for path in here.iterdir()] == ["q6.virb"]
    assert Path("q6.virb").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [
        ("missing.vir", 5, "missing.vir: No such file"),
        ("missing.py:f", 5, "missing.py: no such file"),
        ("module.py", 3, "names a Python file but no function"),
        ("module.py:nothing", 3, "has no function 'nothing'"),
        ("module.py:plain", 3, "not a program"),
        ("broken.py:f", 3, "broken.py:1:"),
        ("boom.py:f", 3, "boom.py:3: importing the file raised ValueError: mine"),
        ("noise.bin", 3, "neither bytecode"),
        ("cut.virb", 3, "cut at byte 3"),
        ("2 *", 3, "<expression>:1:"),
    ],
)
def test_a_program_that_cannot_be_had_is_refused_in_words(here: Path, word: str, code: int, says: str) -> None:
    Path("module.py").write_text("def plain(x): return x\n")
    Path("broken.py").write_text("def f(:\n")
    Path("boom.py").write_text("def fail():\n    import json\n    raise ValueError('mine')\nfail()\n")
    Path("noise.bin").write_bytes(b"\xff\xfe\x00")
    Path("cut.virb").write_bytes(b"VIR")
    result = vyre("dis", word)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_verify_looks_at_every_program_and_names_rule_and_place(here: Path) -> None:
    Path("bad.vir").write_text("input x f64\noutput y f64\n    f64.load r0, x\n    f64.add r2, r0, r1\n    return\n")
    result = vyre("verify", "bad.vir", "q6", "--json")
    assert result.exit_code == 3
    bad, good = json.loads(result.stdout)
    assert (bad["ok"], good["ok"]) == (False, True)
    assert bad["rule"]
    assert bad["pc"] == 1
    plain = vyre("verify", "bad.vir", "q6")
    assert "bad.vir: refused: " in plain.stderr
    assert plain.stdout.startswith("q6: ok")


def test_explain_shows_every_instruction_its_live_registers_and_the_cost() -> None:
    result = vyre("explain", "q6")
    assert result.exit_code == 0
    assert "f64.acc_sum revenue, r18" in result.stdout
    assert "bytes read" in result.stdout
    facts = json.loads(vyre("explain", "q6", "--json").stdout)
    assert facts["code"][-1]["text"] == "return"
    assert facts["code"][3]["live"] == [0, 1, 2, 3]
    assert {"what": "bytes read", "count": 28, "unit": "per element"} in facts["cost"]


def test_dis_shows_what_the_cpu_engine_made_of_a_program() -> None:
    result = vyre("dis", "q6", "--engine", "cpu")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("tile")]
    assert rows[-1][2] == "return"
    assert any(row[2].startswith("f64.acc_sum") for row in rows)
    text = vyre("dis", "2*x", "--type", "x=f32", "--engine", "cpu", "--ir", "--assembly").stdout
    assert "; ---- f32.mul" in text
    assert "define " in text
    assert "ret" in text
    assert vyre("dis", "q6", "--ir").exit_code == 2


@pytest.mark.parametrize(
    "dtype", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64", "bool"]
)
def test_stats_is_a_valid_program_over_every_type(dtype: str) -> None:
    assert vyre("verify", "stats", "--type", f"x={dtype}").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("stats", "--type", "y=f32"), "stats has no input 'y'"),
        (("histogram", "--type", "x=f32"), "histogram takes u8"),
        (("q6", "--type", "price=f32"), "q6 has no input 'price' of type f32"),
        (("q6", "--type", "price"), "is not NAME=TYPE"),
        (("q6", "--type", "price=float"), "the types are i32"),
    ],
)
def test_a_type_that_does_not_fit_is_refused_with_those_that_do(arguments: tuple[str, ...], says: str) -> None:
    result = vyre("verify", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr


# --- conform --------------------------------------------------------------------------------------------------

CASES = [
    {"op": "i32.add", "args": [["i32", 1], ["i32", 2]], "result": ["i32", 3]},
    {"op": "i32.div_s", "args": [["i32", 1], ["i32", 0]], "result": "trap: integer divide by zero"},
]


def test_conform_ends_with_the_count_of_passed_and_failed(here: Path) -> None:
    Path("cases.json").write_text(json.dumps(CASES))
    result = vyre("conform", "cases.json", "--engine", "reference")
    assert (result.exit_code, result.stdout) == (0, "2 passed, 0 failed\n")


def test_conform_prints_each_failure_and_ends_in_1(here: Path) -> None:
    wrong = {"op": "i32.add", "args": [["i32", 1], ["i32", 2]], "result": ["i32", 4]}
    Path("cases.json").write_text(json.dumps([*CASES, wrong]))
    result = vyre("conform", "cases.json", "--engine", "reference")
    assert result.exit_code == 1
    *failures, last = result.stdout.splitlines()
    assert failures == [
        "case 2: i32.add(i32 0x00000001, i32 0x00000002), alone: expected i32 0x00000004, got i32 0x00000003"
    ]
    assert last == "2 passed, 1 failed"
    answer = json.loads(vyre("conform", "cases.json", "--engine", "reference", "--json").stdout)
    assert (answer["passed"], answer["failed"], answer["failures"][0]["case"]) == (2, 1, 2)


@pytest.mark.parametrize(
    ("text", "engine", "code", "says"),
    [
        (None, "reference", 5, "No such file"),
        ("{}", "reference", 2, "a case file is a list"),
        ("[", "reference", 2, "is not JSON"),
        ("[]", "referenc", 2, "'referenc' is not one of"),
    ],
)
def test_conform_refuses_files_and_engines_that_are_none(
    here: Path, text: str | None, engine: str, code: int, says: str
) -> None:
    if text is not None:
        Path("cases.json").write_text(text)
    result = vyre("conform", "cases.json", "--engine", engine)
    assert result.exit_code == code
    assert says in result.stderr


# --- doctor ---------------------------------------------------------------------------------------------------


def test_doctor_says_what_works_and_where_the_cache_is(here: Path) -> None:
    result = vyre("doctor", "--json")
    findings = {each["about"]: each for each in json.loads(result.stdout)}
    assert findings["engine reference"]["state"] == "ok"
    assert findings["Arrow"]["state"] in ("ok", "missing")
    assert findings["GPUDirect Storage"]["words"]
    assert str(here / "cache" / "vyre" / "objects") in findings["cache"]["words"]
    assert result.exit_code == (0 if findings["engine cpu"]["state"] == "ok" else 4)


def test_doctor_says_so_when_nothing_can_be_cached(here: Path) -> None:
    (here / "cache").write_text("a file where the folder should be")
    findings = {each["about"]: each for each in json.loads(vyre("doctor", "--json").stdout)}
    assert findings["cache"]["state"] == "limited"
    assert "off: cannot write below" in findings["cache"]["words"]


def test_doctor_prints_a_table_for_people(here: Path) -> None:
    assert f"{__version__}, Python" in vyre("doctor").stdout


def test_explain_shows_the_rewritten_form_and_the_live_set_without_a_gpu(here: Path) -> None:
    shown = json.loads(
        vyre("explain", "x * 2.5 + y", "--type", "x=f32", "--type", "y=f32", "--engine", "cuda", "--json").stdout
    )
    assert [r["handler"] for r in shown["cuda"]["records"]][-1] == "RETURN"
    cost = {c["what"]: c["count"] for c in shown["cuda"]["cost"]}
    assert cost["lanes"] == 32
    assert cost["planes"] >= 1
    assert "On the GPU" in vyre("explain", "x * 2.5", "--type", "x=f32", "--engine", "cuda").stdout
