"""Where control can go in the body of a program: what the structured control of VIR0 has to be told beforehand.

VIR0 has no jumps, so ``break``, ``continue`` and an early ``return`` become nesting where that says the same, and
flags where it does not (python_body). These functions tell which.

Owns: the question. Leaves to others: the answer in instructions (python_body).
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Sequence
from enum import IntEnum


class Flow(IntEnum):
    """Whether statements run on to the next one, or jump: break, continue or return."""

    falls = 0
    maybe = 1
    jumps = 2


def flow(statements: Sequence[ast.stmt]) -> Flow:
    """What a block does in the end, seen from the loop or function that it stands in."""
    found = Flow.falls
    for statement in statements:
        one = _flow_of(statement)
        if one is Flow.jumps:
            return one
        found = max(found, one)
    return found


def _flow_of(statement: ast.stmt) -> Flow:
    match statement:
        case ast.Return() | ast.Break() | ast.Continue():
            return Flow.jumps
        case ast.If():
            a, b = flow(statement.body), flow(statement.orelse)
            return a if a is b else Flow.maybe
        case ast.While():
            if is_endless(statement) and not has_jump(statement.body, ast.Break):
                return Flow.jumps
            return Flow.maybe if has_return(statement.body) else Flow.falls
        case ast.For():
            return Flow.maybe if has_return(statement.body) else Flow.falls
    return Flow.falls


def is_endless(loop: ast.While) -> bool:
    """``while True`` or ``while 1``."""
    return isinstance(loop.test, ast.Constant) and loop.test.value in (True, 1)


def has_jump(statements: Iterable[ast.stmt], kind: type[ast.stmt]) -> bool:
    """Whether the statements hold a break or continue of the loop that they are the body of."""
    for statement in statements:
        if isinstance(statement, kind):
            return True
        if isinstance(statement, ast.If) and (has_jump(statement.body, kind) or has_jump(statement.orelse, kind)):
            return True
    return False


def has_return(statements: Iterable[ast.stmt]) -> bool:
    """Whether the statements hold a return, also in loops within."""
    return any(isinstance(node, ast.Return) for statement in statements for node in ast.walk(statement))


@functools.lru_cache(maxsize=4)  # passes over one function come one after another
def nodes_of(function: ast.FunctionDef) -> tuple[ast.AST, ...]:
    """All nodes of a function."""
    return tuple(ast.walk(function))


@functools.lru_cache(maxsize=4)
def assigned_names(function: ast.FunctionDef) -> frozenset[str]:
    """Names that are assigned by statements; loop variables are not among them."""
    nodes = nodes_of(function)
    loops = {id(node.target) for node in nodes if isinstance(node, ast.For)}
    return frozenset(
        node.id
        for node in nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in loops
    )
