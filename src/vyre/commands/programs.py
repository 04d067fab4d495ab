"""Turns what a command line calls a program into a Program: a function in a file, a listing, a bytecode file, an
expression, or the name of one that ships.

Owns: which of these a word means, and reading the file. Leaves to others: compiling, parsing, decoding (program/).
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from vyre.errors import BindError, CompileError, ListingError, StreamError, VyreError

if TYPE_CHECKING:
    from vyre.program.ir import Program
    from vyre.program.opcodes import MemType

MAX_FILE_BYTES: Final = 64 << 20
_FUNCTION: Final = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)")
_NAME: Final = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?!\w*\s*\()", re.ASCII)
_WORDS: Final = frozenset(("and", "or", "not", "True", "False"))
_MAGIC: Final = b"VIR0"


def load(word: str, types: Mapping[str, MemType], params: Collection[str] = ()) -> Program:
    """The program that ``word`` names, not yet verified.

    A shipped name wins over a file of that name (write ./stats for the file); a file over an expression.

    Args:
        word: as given on the command line.
        types: memory types of the inputs, for an expression or a shipped program that takes several types.
        params: names that are parameters in an expression; f64 where ``types`` says nothing.
    Raises:
        ProgramError: the program is at fault.
        StreamError: the file cannot be read.
        BindError: an expression or a shipped program lacks the type of an input.
    """
    from vyre.programs import SHIPPED

    if word in SHIPPED:
        return SHIPPED[word](types)
    if _is_expression(word):
        return _from_expression(word, types, params)
    function = _FUNCTION.fullmatch(word)
    if function is not None:
        return _from_python(Path(function["path"]), function["name"])
    path = Path(word)
    if path.suffix == ".py":
        raise CompileError(f"{word}: names a Python file but no function", fix=f"write {word}:FUNCTION")
    return _from_file(path)


def only_input(word: str, params: Collection[str]) -> str:
    """The name of the one stream of a program that takes its type from its input: ``stats``, or an expression.

    "" for any other program, and for an expression with several names.
    """
    if word == "stats":
        return "x"
    if not _is_expression(word):
        return ""
    names = {name for name in _NAME.findall(word) if name not in params and name not in _WORDS}
    return names.pop() if len(names) == 1 else ""


def _is_expression(word: str) -> bool:
    from vyre.programs import SHIPPED

    path = Path(word)
    named = word in SHIPPED or _FUNCTION.fullmatch(word) is not None or path.suffix in (".vir", ".virb", ".py")
    return not named and not path.is_file()


def _from_file(path: Path) -> Program:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StreamError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise StreamError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes, which no program is")
    if data.startswith(_MAGIC) or path.suffix == ".virb":
        from vyre.program import bytecode

        return bytecode.decode(data)
    from vyre.program import text

    try:
        listing = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ListingError(
            f"{path}: neither bytecode (it does not start with VIR0) nor text (byte {error.start} is not UTF-8)"
        ) from None
    return text.parse(listing, source=str(path))


def _from_python(path: Path, name: str) -> Program:
    if not path.is_file():
        raise StreamError(f"{path}: no such file")
    module = _import(path)
    found = getattr(module, name, None)
    if found is None:
        names = [each for each, value in vars(module).items() if is_program(value)]
        raise CompileError(f"{path}: has no function {name!r}", fix=f"its programs are {', '.join(names) or '(none)'}")
    return program_of(found, f"{path}:{name}")


def _import(path: Path) -> ModuleType:
    """Run a Python file of the caller's, as ``python FILE`` would, with its folder first on the path."""
    folder = str(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise CompileError(f"{error.filename or path}:{error.lineno}:{error.offset}: {error.msg}") from None
    except VyreError:
        raise
    except Exception as error:  # the caller's own code failed: their line and their words, not our frames
        frames = traceback.extract_tb(error.__traceback__)
        mine = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        line = mine[-1].lineno if mine else 1
        raise CompileError(f"{path}:{line}: importing the file raised {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(folder)
    return module


def is_program(value: Any) -> bool:
    """Whether a value of a Python file is a program: decorated, built or verified."""
    from vyre.program.ir import Program

    return isinstance(value, Program) or isinstance(getattr(value, "program", None), Program)


def program_of(value: Any, what: str) -> Program:
    """The Program in a decorated function, a Verified or a Program itself."""
    from vyre.program.ir import Program

    if isinstance(value, Program):
        return value
    inner = getattr(value, "program", None)
    if isinstance(inner, Program):
        return inner
    raise CompileError(f"{what} is a {type(value).__name__}, not a program", fix="put @vyre.program over the function")


def _from_expression(text: str, types: Mapping[str, MemType], params: Collection[str]) -> Program:
    from vyre.program.expression import expression
    from vyre.program.opcodes import MemType

    known = {**dict.fromkeys(params, MemType.f64), **types}
    return program_of(expression(text, types=known or None, params=tuple(params)), "the expression")


def parse_types(given: tuple[str, ...]) -> dict[str, MemType]:
    """``--type x=f32`` options as a mapping. Raises BindError that lists the types there are."""
    from vyre.program.opcodes import MemType

    types = {}
    for each in given:
        name, equals, spelled = each.partition("=")
        if not equals or not name.isidentifier() or spelled not in MemType.__members__:
            raise BindError(f"--type {each!r} is not NAME=TYPE", fix=f"the types are {', '.join(MemType.__members__)}")
        types[name] = MemType[spelled]
    return types
