"""``vyre verify``: a program against every rule of VIR0."""

from __future__ import annotations

import click

from vyre.commands import exits, show
from vyre.errors import ProgramError, VerifyError


@click.command()
@click.argument("programs", nargs=-1, required=True, metavar="P...")
@click.option("--type", "types", multiple=True, metavar="NAME=TYPE", help="type of an expression's input")
@click.option("--json", "json_", is_flag=True, help="print JSON")
@click.pass_context
def command(ctx: click.Context, programs: tuple[str, ...], types: tuple[str, ...], json_: bool) -> None:
    """Check programs by every rule of VIR0; exit 3 when one is refused."""
    from vyre.commands.programs import load, parse_types
    from vyre.program.verifier import verify

    known = parse_types(types)
    answers: list[dict[str, object]] = []
    for word in programs:
        try:
            verified = verify(load(word, known))
        except ProgramError as error:
            rule = error.rule if isinstance(error, VerifyError) else None
            pc = error.pc if isinstance(error, VerifyError) else None
            answers.append(
                {"program": word, "ok": False, "error": error.message, "fix": error.fix, "rule": rule, "pc": pc}
            )
            if not json_:
                show.note(f"{word}: refused: {error.message}")
                if error.fix:
                    show.note(f"  fix: {error.fix}")
        else:
            answers.append({"program": word, "ok": True, "identity": verified.identity.hex()})
            if not json_:
                click.echo(f"{word}: ok, {len(verified.program.code):,} instructions, {verified.identity.hex()}")
    if json_:
        show.as_json(answers)
    if not all(answer["ok"] for answer in answers):
        ctx.exit(exits.REFUSED.code)
