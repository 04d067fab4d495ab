"""Compares an engine with the reference on random programs: ``python -m vyre.engines.differential --engine cpu``.

Owns: the loop over seeds and what each seed runs. Leaves to others: programs, inputs and comparison (program/random.py),
execution (engines), engines by name (commands/engines.py, on the command line only).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from vyre.engines import reference
from vyre.engines.conform import Execute
from vyre.program.opcodes import TILE
from vyre.program.random import compare, random_inputs, random_program
from vyre.program.verifier import verify

_COUNTS: Final = (1, 2, 33, TILE - 1, TILE, TILE + 1, 2 * TILE, 3 * TILE + 7)
_FIRSTS: Final = (0, TILE, 5 * TILE, 1023 * TILE, (1 << 32) - TILE, 1 << 40)
_PROGRESS_S: Final = 0.5


def difference(seed: int, execute: Execute, **options: Any) -> str | None:
    """Run program and inputs of one seed on an engine and on the reference.

    Args:
        options: of ``random_program``.
    Returns:
        The first difference in words, an error of the engine included; None when all bits are the same.
    """
    program = verify(random_program(seed, **options)).program
    first, count = _shape(seed)
    inputs, params, tables = random_inputs(program, seed, count)
    ours, theirs = ([table.copy() for table in tables] for _ in range(2))
    expected = reference.execute(program, inputs, params, ours, first, count)
    try:
        got = execute(program, [x.copy() for x in inputs], list(params), theirs, first, count)
    except Exception as error:  # whatever the engine does, the other seeds go on
        return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-2)}"
    return compare(expected, got, (ours, theirs))


def _shape(seed: int) -> tuple[int, int]:
    rng = random.Random(f"shape {seed}")
    return rng.choice(_FIRSTS), rng.choice(_COUNTS) if rng.random() < 0.7 else rng.randint(1, 4 * TILE)


def run(
    seeds: Iterable[int],
    execute: Execute,
    *,
    on_failure: Callable[[int, str], None],
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> tuple[int, int]:
    """Compare for each seed.

    Args:
        on_failure: called with the seed and the difference.
        on_progress: called after each seed with (passed, failed).
    Returns:
        (passed, failed).
    """
    passed = failed = 0
    for seed in seeds:
        found = difference(seed, execute, **options)
        if found is None:
            passed += 1
        else:
            failed += 1
            on_failure(seed, found)
        if on_progress is not None:
            on_progress(passed, failed)
    return passed, failed


def listing(seed: int, **options: Any) -> str:
    """The program of a seed, to look at."""
    from vyre.program import text

    first, count = _shape(seed)
    return f"{text.format(random_program(seed, **options))}\n-- elements {first} .. {first + count - 1}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vyre.engines.differential", description=__doc__)
    parser.add_argument("--engine", default="cpu", help="engine that is compared with the reference")
    parser.add_argument("--count", type=int, default=100_000, help="programs")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first program; the next has the next seed")
    parser.add_argument("--max-ops", type=int, default=40)
    parser.add_argument("--functions", action="store_true", help="elementary functions and rem too")
    parser.add_argument("--no-traps", dest="traps", action="store_false", help="only programs that cannot trap")
    parser.add_argument("--list", action="store_true", help="print the program of --seed and stop")
    given = parser.parse_args(arguments)
    options = {"max_ops": given.max_ops, "functions": given.functions, "traps": given.traps}
    if given.list:
        print(listing(given.seed, **options))
        return 0
    from vyre.commands.engines import executor  # the one list of engines by name; nothing else here needs it

    terminal = sys.stderr.isatty()
    shown_at = began = time.monotonic()

    def failure(seed: int, found: str) -> None:
        print(f"\r\033[Kseed {seed}: {found}" if terminal else f"seed {seed}: {found}", flush=True)

    def progress(passed: int, failed: int) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if terminal and now - shown_at >= _PROGRESS_S:
            shown_at = now
            rate = (passed + failed) / (now - began)
            line = f"\r{passed + failed:,} of {given.count:,}, {failed} failed, {rate:,.0f} a second"
            print(line, end="", file=sys.stderr, flush=True)

    seeds = range(given.seed, given.seed + given.count)
    with executor(given.engine) as execute:
        passed, failed = run(seeds, execute, on_failure=failure, on_progress=progress, **options)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
