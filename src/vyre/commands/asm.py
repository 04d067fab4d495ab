"""``vyre asm``: any program to a bytecode file."""

from __future__ import annotations

from pathlib import Path

import click

from vyre.commands import show


@click.command()
@click.argument("program", metavar="P")
@click.option("--type", "types", multiple=True, metavar="NAME=TYPE", help="type of an expression's input")
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="PATH", help="default: NAME.virb, here"
)
@click.option("--json", "json_", is_flag=True, help="print JSON")
def command(program: str, types: tuple[str, ...], out: Path | None, json_: bool) -> None:
    """Turn program P into a verified bytecode file."""
    from vyre.commands.outputs import write_bytes
    from vyre.commands.programs import load, parse_types
    from vyre.program.bytecode import encode
    from vyre.program.verifier import verify

    verified = verify(load(program, parse_types(types)))
    data = encode(verified.program)
    name = Path(program).stem if program.endswith(".vir") else verified.program.name
    path = out or Path(f"{name}.virb")
    write_bytes(path, data)
    if json_:
        show.as_json({"path": str(path), "bytes": len(data), "identity": verified.identity.hex()})
    else:
        count = len(verified.program.code)
        click.echo(f"{path}: {len(data):,} bytes, {count:,} instructions, identity {verified.identity.hex()}")
