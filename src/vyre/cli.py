"""The command ``vyre``: finds the command asked for, runs it, and says in plain words what went wrong.

Owns: the list of commands, and how an error ends the process (commands/exits.py has the codes). Leaves to others:
every command (commands/). Nothing imports this module.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from vyre import __version__
from vyre.commands import exits
from vyre.errors import Fault, ProgramFault, StreamError, VyreError

COMMANDS: Final[dict[str, str]] = {
    "run": "run a program over files",
    "demo": "run query 6 and a byte histogram over a data set, with checks and figures",
    "asm": "turn a program into a bytecode file",
    "dis": "print a program as a listing",
    "verify": "check a program by every rule of VIR0",
    "explain": "print a program with its live registers and its cost",
    "conform": "run a file of conformance cases",
    "bench": "print, check or draw the figures that were measured",
    "geometry": "plan a finite dispatch",
    "doctor": "say what works on this machine, and what is missing",
}
"""Name -> one line. The module is vyre.commands.<name>, its click command is ``command``."""


class _OutputClosed(Exception):
    """Whoever read our standard output has gone."""


class _Commands(click.Group):
    """A group that imports a command's module only when that command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"vyre.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "'vyre --help' lists them"
            ctx.fail(f"no command is called {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would end in 1, silently
            raise _OutputClosed from None
        except StreamError as error:
            if error.errno == errno.EPIPE:  # here too
                raise _OutputClosed(error) from None
            raise

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run, and leave the process with one of the documented exit codes. No traceback but for our own bugs."""
        extra["standalone_mode"] = False
        try:
            code = super().main(args=args, prog_name=prog_name or "vyre", **extra)
            sys.stdout.flush()
        except click.exceptions.Exit as error:
            code = error.exit_code
        except click.UsageError as error:
            error.show()
            code = exits.USAGE.code
        except click.FileError as error:
            error.show()
            code = exits.IO.code
        except click.ClickException as error:
            error.show()
            code = exits.USAGE.code
        except (KeyboardInterrupt, click.Abort):
            click.echo("\ninterrupted", err=True)
            code = exits.INTERRUPTED.code
        except (BrokenPipeError, _OutputClosed) as error:
            # Whoever read our output has gone (`vyre dis x | head`). Python flushes once more at exit: to nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.args and isinstance(error.args[0], VyreError):
                code = _report(error.args[0])
            else:
                click.echo("error: standard output was closed before everything was written", err=True)
                code = exits.IO.code
        except (VyreError, OSError) as error:
            code = _report(error)
        sys.exit(code if isinstance(code, int) else exits.OK.code)


def _report(error: VyreError | OSError) -> int:
    if isinstance(error, VyreError):
        click.echo(f"error: {error.message}", err=True)
        if isinstance(error, ProgramFault):
            _show_line(error.fault)
        if error.fix:
            click.echo(f"  fix: {error.fix}", err=True)
    else:
        name = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {name}{error.strerror or error}", err=True)
    found = exits.exit_of(error)
    assert found is not None
    return found.code


def _show_line(fault: Fault) -> None:
    """The line of the function or listing that trapped, when the file is still there."""
    if fault.file and fault.line:
        with suppress(OSError, UnicodeDecodeError, IndexError):
            line = Path(fault.file).read_text(encoding="utf-8").splitlines()[fault.line - 1]
            click.echo(f"    {line.strip()}", err=True)


@click.group(
    name="vyre", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="vyre")
def main() -> None:
    """Run small, new or streaming work on an engine that stays and interprets bytecode.

    A program is a Python function (file.py:function), a listing (.vir), a bytecode file, an expression such as
    'a * 2 + b', or one that ships: stats, histogram, q6.

    \b
      vyre run stats prices.npy
      vyre run 'sqrt(x*x + y*y)' x=x.npy y=y.npy --out r.npy
      vyre run filters.py:big orders=orders.npy --param limit=100
    """


if __name__ == "__main__":
    main()
