import subprocess
import sys
from pathlib import Path

from vyre.program import text
from vyre.program.format_page import page
from vyre.program.opcodes import OPCODES, FaultCode, MemType
from vyre.program.verifier import RULES

PAGE = Path(__file__).parent.parent / "docs" / "format.md"


def test_the_format_page_is_what_the_command_prints():
    printed = subprocess.run([sys.executable, "-m", "vyre.program.format_page"], capture_output=True, check=True).stdout
    stale = "docs/format.md is stale: python -m vyre.program.format_page > docs/format.md"
    assert PAGE.read_bytes() == printed, stale


def test_the_format_page_has_every_instruction_type_fault_and_rule():
    shown = page()
    for op in OPCODES:
        assert f"| `{op.code:#06x}` | `{op.name}` |" in shown
    for name in [m.name for m in MemType] + [f.name for f in FaultCode if f] + list(RULES):
        assert name in shown


def test_the_listing_on_the_format_page_can_be_read():
    listing = page().partition("## The listing")[2].partition("    program q6")
    block = "program q6" + listing[2].partition("\n\n(")[0]
    assert text.parse(block).name == "q6"
