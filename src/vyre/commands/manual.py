"""docs/cli.md, printed from the commands themselves: ``python -m vyre.commands.manual > docs/cli.md``.

Owns: the page's form. A test compares the page with what this prints, so neither can drift.
"""

from __future__ import annotations

import inspect

import click

from vyre.commands import exits

_HEAD = """\
# The command line

This page is printed from the code: `python -m vyre.commands.manual > docs/cli.md`; a test keeps it so.

Results go to standard output: tables for people, JSON with `--json`. Notes, progress bars (on a terminal only) and
errors go to standard error. An error says what is wrong and, where there is one, the way out; a traceback is a bug
of ours. In JSON, NaN and infinities are strings, because JSON has no such numbers.

A program, `P` below, is one of

| P | is |
|---|---|
| `file.py:function` | a function under `@vyre.program`; the file is run as Python |
| `name.vir` | a listing |
| `name.virb`, or any file that starts with `VIR0` | bytecode |
| `stats`, `histogram`, `q6` | a program that ships; write `./stats` for a file of that name |
| anything else | an expression in numexpr's spelling, such as `'2*a + where(b > 0, sqrt(b), 0)'` |

Only the first of these runs Python code. A listing, bytecode or an expression from a stranger cannot: it is verified,
its loops burn fuel, and it reads nothing but the streams that it is given.

## Exit codes

| code | means |
|---:|---|
"""


def page() -> str:
    """The whole page, ending in one newline."""
    from vyre.cli import main

    text = _HEAD + "".join(f"| {each.code} | {each.meaning} |\n" for each in exits.EXITS)
    with click.Context(main, info_name="vyre") as ctx:
        for name in main.list_commands(ctx):
            command = main.get_command(ctx, name)
            assert command is not None
            text += _section(ctx, command, name)
    return text


def _section(parent: click.Context, command: click.Command, name: str) -> str:
    with click.Context(command, info_name=name, parent=parent) as ctx:
        usage = " ".join(command.collect_usage_pieces(ctx))
        text = f"\n## vyre {name}\n\n    vyre {name} {usage}\n\n{_paragraphs(command.help or '')}\n"
        rows = []
        for parameter in command.params:
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                rows.append("| `{}` | {} |\n".format(*(cell.replace("|", "\\|") for cell in record)))
        return text + ("\n| option | does |\n|---|---|\n" + "".join(rows) if rows else "")


def _paragraphs(text: str) -> str:
    """Help as Markdown: a paragraph marked as literal (click's \\b) becomes a block of code."""
    found = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            found.append("\n".join("    " + line for line in paragraph[2:].splitlines()))
        else:
            found.append(paragraph)
    return "\n\n".join(found)


if __name__ == "__main__":
    print(page(), end="")
