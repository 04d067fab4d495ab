"""``@vyre.program``: a Python function becomes a program, by its source and not by running it (decision 11).

Owns: the decorator, the source, the signature. Leaves to others: statements (python_body), expressions
(python_values), types and instructions (lower).
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any, NoReturn, overload

from vyre.errors import CompileError, VerifyError
from vyre.program import types as surface
from vyre.program.compiled import CompiledFunction
from vyre.program.kinds import BOOL, DEFAULT_KIND, INTS, KIND_MEMORY, KIND_NAME, MEMORY_KIND, Refusal, constant_bits
from vyre.program.opcodes import DEFAULT_FUEL
from vyre.program.python_body import Body
from vyre.program.python_results import Facts
from vyre.program.python_values import Declared, Values, annotation, scalar_annotation

__all__ = ["CompiledFunction", "compile_function", "program"]

_MAX_PASSES = 32


@overload
def program(function: Callable[..., object], /) -> CompiledFunction: ...
@overload
def program(*, fuel: int = ..., name: str | None = ...) -> Callable[[Callable[..., object]], CompiledFunction]: ...
def program(
    function: Callable[..., object] | None = None, /, *, fuel: int = DEFAULT_FUEL, name: str | None = None
) -> CompiledFunction | Callable[[Callable[..., object]], CompiledFunction]:
    """Compile a function. Positional arguments are streams or tables, keyword-only ones parameters or tables.

    Args:
        fuel: loop back-edges that one element may take.
        name: what the program is called; the function's name when None.
    Raises:
        CompileError: file:line:column and why, for everything that has no meaning in a program.
    """
    if function is None:
        return lambda found: compile_function(found, fuel=fuel, name=name)
    return compile_function(function, fuel=fuel, name=name)


def compile_function(
    function: Callable[..., object], *, fuel: int = DEFAULT_FUEL, name: str | None = None
) -> CompiledFunction:
    """What the decorator does; see ``program``."""
    if not isinstance(function, FunctionType):
        raise CompileError(f"{function!r} is no Python function", fix="put @vyre.program above a def")
    tree = _tree(function)
    file = function.__code__.co_filename
    reader = Values(function, Declared())
    reader.node = tree
    try:
        declared, returns = _signature(reader, tree, function)
    except Refusal as refusal:
        _refuse(file, reader.node, refusal)
    facts = Facts()
    for _ in range(_MAX_PASSES):
        body = Body(function, tree, declared, facts)
        body.return_type = returns
        try:
            body.run()
        except Refusal as refusal:
            _refuse(file, body.node, refusal)
        learned = body.learned()
        if learned == facts:
            if facts.settled:
                break
            literals = {key: DEFAULT_KIND[kind] for key, kind in facts.kinds.items() if kind in DEFAULT_KIND}
            # Variables of literals only take the default; that may change what others are, so look once more.
            learned = replace(facts, kinds=facts.kinds | literals, pinned=facts.pinned | literals, settled=not literals)
        facts = learned
    else:
        raise CompileError(
            f"{file}:{tree.lineno}:{tree.col_offset + 1}: the types of the variables do not settle",
            fix="annotate them: v: vyre.f32 = 0.0",
        )
    line: int | None = None
    try:
        found = CompiledFunction(body.program(name or function.__name__, fuel))
        try:
            assert found.verified
        except VerifyError as error:
            line = None if error.pc is None else found.program.line_of(error.pc)
            raise
    except VerifyError as error:
        column = 1 if line else tree.col_offset + 1
        raise CompileError(f"{file}:{line or tree.lineno}:{column}: {error.message}", fix=error.fix) from None
    functools.update_wrapper(found, function)
    return found


def _tree(function: FunctionType) -> ast.FunctionDef:
    """The function's syntax tree, with the lines and columns of its file.

    Raises:
        CompileError: there is no source, or it is not a def.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    place = f"{code.co_filename}:{code.co_firstlineno}:1"
    if not lines:
        raise CompileError(
            f"{place}: the source of {function.__name__} is not to be had, and a program is compiled from its source",
            fix="put the function into a file, or write a formula with vyre.expression(text)",
        )
    try:
        module = _parsed("".join(lines))
    except SyntaxError:
        raise CompileError(f"{place}: the file changed after it was imported", fix="import it again") from None
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function.__name__:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                if isinstance(node, ast.AsyncFunctionDef):
                    raise CompileError(f"{place}: async def has no meaning in a program", fix="write def")
                return node
    raise CompileError(
        f"{place}: no def {function.__name__} is found there; a lambda, or a file changed after it was imported",
        fix="write a def, and import the file again",
    )


@functools.lru_cache(maxsize=4)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _signature(reader: Values, tree: ast.FunctionDef, function: FunctionType) -> tuple[Declared, Any]:
    """Inputs, parameters and tables; the type of the output ``value`` when it is declared."""
    args, declared = tree.args, reader.declared
    for star in (args.vararg, args.kwarg):
        if star is not None:
            reader.node = star
            raise Refusal("'*' and '**' arguments have no meaning in a program", "name each stream")
    if args.defaults:
        reader.node = args.defaults[0]
        raise Refusal("a stream has no default", "put a parameter after '*'")
    for arg in args.posonlyargs + args.args:
        thing = _annotated(reader, arg, "stream")
        if isinstance(thing, surface.TableType):
            declared.tables[arg.arg] = thing
        else:
            assert arg.annotation is not None
            declared.inputs[arg.arg] = scalar_annotation(reader, arg.annotation)
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        thing = _annotated(reader, arg, "parameter")
        if isinstance(thing, surface.TableType):
            if default is not None:
                reader.node = default
                raise Refusal("a table has no default")
            declared.tables[arg.arg] = thing
            continue
        assert arg.annotation is not None
        memory = scalar_annotation(reader, arg.annotation)
        kind = MEMORY_KIND[memory]
        if KIND_MEMORY[kind] is not memory:
            raise Refusal(
                f"parameter {arg.arg!r} is {memory.name}, a type of arrays only", f"make it vyre.{KIND_NAME[kind]}"
            )
        bits = None
        if default is not None:
            reader.node = default
            bits = _default(kind, (function.__kwdefaults__ or {}).get(arg.arg))
        declared.params[arg.arg] = (memory, bits)
    returns = None
    if tree.returns is not None and not (isinstance(tree.returns, ast.Constant) and tree.returns.value is None):
        reader.node = tree.returns
        thing = annotation(reader, tree.returns) if not isinstance(tree.returns, ast.Subscript) else dict
        returns = (
            thing.memory
            if isinstance(thing, surface.ScalarType)
            else surface.memory_type("bool")
            if thing is bool
            else None
        )
    return declared, returns


def _annotated(reader: Values, arg: ast.arg, what: str) -> object:
    reader.node = arg
    if arg.annotation is None:
        raise Refusal(f"{what} {arg.arg!r} has no type", f"annotate it: {arg.arg}: vyre.f32")
    reader.node = arg.annotation
    return annotation(reader, arg.annotation)


def _default(kind: int, value: object) -> int:
    """A parameter's default in memory form; integers must fit, a float is no integer (decision 13)."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, bool | int | float):
        raise Refusal(f"the default is {type(value).__name__}, not a number")
    if isinstance(value, bool) != (kind == BOOL):
        raise Refusal(f"the default {value!r} is no {KIND_NAME[kind]}")
    if kind in INTS and not isinstance(value, int):
        raise Refusal(
            f"the default {value!r} is no {KIND_NAME[kind]}", "write an integer, or make the parameter vyre.f64"
        )
    return constant_bits(kind, value)


def _refuse(file: str, node: ast.AST, refusal: Refusal) -> NoReturn:
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
    raise CompileError(f"{file}:{line}:{column}: {refusal.reason}", fix=refusal.fix) from None
