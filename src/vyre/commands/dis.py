"""``vyre dis``: a program as a listing that can be read back."""

from __future__ import annotations

import click


@click.command()
@click.argument("program", metavar="P")
@click.option("--type", "types", multiple=True, metavar="NAME=TYPE", help="type of an expression's input")
def command(program: str, types: tuple[str, ...]) -> None:
    """Print program P as a listing. A program that breaks rules is printed too; 'vyre verify' names them."""
    from vyre.commands.programs import load, parse_types
    from vyre.program import text

    click.echo(text.format(load(program, parse_types(types))).rstrip("\n"))
