"""``vyre dis``: a program as a listing that can be read back, or as what an engine made of it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import click

from vyre.commands import show

if TYPE_CHECKING:
    from vyre.engines.cpu.handlers import Handlers
    from vyre.program.verifier import Verified


@click.command()
@click.argument("program", metavar="P")
@click.option("--type", "types", multiple=True, metavar="NAME=TYPE", help="type of an expression's input")
@click.option("--engine", type=click.Choice(("cpu",)), help="print what this engine made of the program instead")
@click.option("--ir", is_flag=True, help="with --engine: also the LLVM IR of each handler")
@click.option("--assembly", is_flag=True, help="with --engine: also the machine code of each handler, as text")
def command(program: str, types: tuple[str, ...], engine: str | None, ir: bool, assembly: bool) -> None:
    """Print program P as a listing. A program that breaks rules is printed too; 'vyre verify' names them."""
    from vyre.commands.programs import load, parse_types
    from vyre.program import text

    if (ir or assembly) and engine is None:
        raise click.UsageError("--ir and --assembly belong to --engine")
    found = load(program, parse_types(types))
    if engine is None:
        click.echo(text.format(found).rstrip("\n"))
        return
    from vyre.program.verifier import verify

    _tile_form(verify(found), ir, assembly)


def _tile_form(verified: Verified, ir: bool, assembly: bool) -> None:
    """The records that the CPU engine's workers run, and the handlers that they name."""
    from vyre.engines.cpu import handlers as catalogue
    from vyre.engines.cpu.tileform import lower
    from vyre.store import Store

    known = catalogue.shared(Store())
    form = lower(verified, known)
    rows = [_row("once", record, known) for record in _records(form.prologue)]
    rows += [_row("tile", record, known) for record in _records(form.body)]
    title = f"{verified.program.name}: {len(rows)} records of 64 bytes, {form.scratch_slots} scratch slots"
    show.table(title, ("run", "pc", "handler", "dst", "a", "b", "c", "imm", "jump"), rows, right=(1, 3, 4, 5, 6, 7, 8))
    for name in sorted({row[2] for row in rows}):
        for wanted, machine_code in ((ir, False), (assembly, True)):
            if wanted:
                click.echo(f"\n; ---- {name}\n{catalogue.describe(name, assembly=machine_code).strip()}")


def _records(form: bytes) -> list[tuple[Any, ...]]:
    from vyre.engines.cpu import abi

    fields = (abi.OP_FN, abi.OP_DST, abi.OP_A, abi.OP_B, abi.OP_C, abi.OP_IMM, abi.OP_MASK, abi.OP_PC, abi.OP_TARGET)
    layout = struct.Struct("<QIIIIQIIq")
    assert fields == (0, 8, 12, 16, 20, 24, 32, 36, 40), "the layout above is abi.py's"
    return [layout.unpack_from(form, at) for at in range(0, len(form), abi.OP_BYTES)]


def _row(when: str, record: tuple[Any, ...], handlers: Handlers) -> tuple[str, ...]:
    address, dst, a, b, c, imm, _mask, pc, jump = record
    return (
        when,
        str(pc),
        handlers.name_of(address),
        _slot(dst),
        _slot(a),
        _slot(b),
        _slot(c),
        f"{imm:#x}",
        str(jump or ""),
    )


def _slot(index: int) -> str:
    """An entry of the pointer table: s3 is scratch, in0 an input, out0 an output."""
    from vyre.engines.cpu.abi import PTR_INPUTS, PTR_OUTPUTS

    if index >= PTR_OUTPUTS:
        return f"out{index - PTR_OUTPUTS}"
    return f"in{index - PTR_INPUTS}" if index >= PTR_INPUTS else f"s{index}"
