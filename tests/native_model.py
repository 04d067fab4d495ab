"""Executes native functions as a model: their own text, one memory access at a time, in chosen interleavings.

Each native function becomes a generator that yields at every intrinsic. A ``World`` gives the threads a memory in which
stores are delayed: a store waits in its thread's buffer; plain stores to different words may leave in any order, a
release store only after everything before it; read-modify-writes, fences and sequentially consistent accesses first
empty the buffer. That is weaker than x86-64 (which keeps all stores in order) and covers the store side of aarch64; the
load side (a missing acquire) is not modelled.

``explore`` runs a scenario under every schedule with at most ``bound`` deviations from the plain one (run a thread until
it blocks, empty buffers as late as possible). A deviation is a switch of threads or an early departure of a store.
Sleeping has no time limit here, so a lost wake-up is a deadlock, and is found.
"""

from __future__ import annotations

import ast
import inspect
import random
import textwrap
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from vyre.native import INTRINSICS, WORD_MASK, Intrinsic

Step = Generator[tuple[str, tuple[int, ...]], int, int]


class Deadlock(AssertionError):
    """Every thread that is left sleeps."""


class _ToGenerator(ast.NodeTransformer):
    """Calls of intrinsics become ``yield``, calls of native functions ``yield from``."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        assert isinstance(node.func, ast.Name)
        target = self.names.get(node.func.id) or INTRINSICS.get(node.func.id)
        if isinstance(target, Intrinsic):
            request = ast.Tuple([ast.Constant(target.name), ast.Tuple(node.args, ast.Load())], ast.Load())
            return ast.Yield(request)
        return ast.YieldFrom(node)


def as_generators(functions: dict[str, FunctionType], replaced: dict[str, Any] | None = None) -> dict[str, Any]:
    """Generator versions of native functions.

    Args:
        functions: as Unit.functions gives them.
        replaced: generator functions to use instead of some, or (old text, new text) to change in one's source.
    """
    replaced = replaced or {}
    space: dict[str, Any] = {}
    made: dict[str, Any] = {}
    for name, f in functions.items():
        change = replaced.get(name)
        if callable(change):
            made[name] = change
            continue
        source = textwrap.dedent(inspect.getsource(f))
        if change is not None:
            old, new = change
            assert old in source, f"{name} no longer contains {old!r}"
            source = source.replace(old, new)
        tree = ast.parse(source)
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        definition.decorator_list = []
        definition.returns = None
        tree = ast.fix_missing_locations(_ToGenerator(f.__globals__).visit(tree))
        names = {k: v for k, v in f.__globals__.items() if isinstance(v, int)}
        local = dict(names)
        exec(compile(tree, f"<model of {name}>", "exec"), local)
        made[name] = local[name]
        if not inspect.isgeneratorfunction(made[name]):
            plain = made[name]

            def wrapped(*args: int, plain: Any = plain) -> Step:
                return plain(*args)
                yield

            made[name] = wrapped
        space[name] = local
    for local in space.values():
        local.update(made)
    return made


@dataclass
class _Thread:
    name: str
    steps: Step
    pending: tuple[str, tuple[int, ...]] | None = None
    buffer: list[tuple[int, int, int, bool]] = field(default_factory=list)  # address, bytes, value, release
    asleep: int | None = None  # address slept on
    done: bool = False
    result: int = 0


class World:
    """Memory and threads of one run.

    Args:
        choose: given the possible moves, the plain one first, says which is taken.
    """

    def __init__(self, choose: Callable[[list[str]], int]) -> None:
        self.memory: dict[int, int] = {}
        self.threads: list[_Thread] = []
        self._choose = choose
        self._clock = 0
        self.constants: list[tuple[int, int]] = []
        """[low, high) of what cannot be noticed by others: constants, and words that only one thread uses."""
        self.check: Callable[[World], None] | None = None
        self.system: Callable[[str, tuple[int, ...]], tuple[int, list[tuple[int, int]]]] | None = None
        """System calls: the result, and the u64 words that the kernel wrote for the caller, as (address, value)."""

    # --- set up ---------------------------------------------------------------------------------------------------

    def poke(self, address: int, value: int, size: int = 8) -> None:
        for i in range(size):
            self.memory[address + i] = value >> 8 * i & 0xFF

    def peek(self, address: int, size: int = 8) -> int:
        return sum(self.memory.get(address + i, 0) << 8 * i for i in range(size))

    def spawn(self, name: str, steps: Step) -> None:
        self.threads.append(_Thread(name, steps))

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, limit: int = 5_000) -> None:
        """Until all threads are done. Deadlock when all that are left sleep."""
        for thread in self.threads:
            self._advance(thread, None)
        current = self.threads[0]
        for _ in range(limit):
            if all(t.done for t in self.threads):
                for t in self.threads:
                    self._drain(t)
                return
            moves, labels = self._moves(current)
            if not moves:
                waiting = ", ".join(t.name for t in self.threads if not t.done)
                raise Deadlock(f"asleep for ever: {waiting}")
            thread, entry = moves[self._choose(labels)]
            if entry is not None:
                self._leave(thread, entry)
            else:
                current = self._step(thread)
            if self.check is not None:
                self.check(self)
        raise AssertionError(f"no end after {limit} steps: a livelock, or the limit is too low")

    def _moves(self, current: _Thread) -> tuple[list[tuple[_Thread, int | None]], list[str]]:
        runnable = [t for t in self.threads if not t.done and t.asleep is None]
        ordered = ([current] if current in runnable else []) + [t for t in runnable if t is not current]
        moves: list[tuple[_Thread, int | None]] = [(t, None) for t in ordered]
        moves += [(t, i) for t in self.threads for i in self._may_leave(t)]
        return moves, [t.name if i is None else f"{t.name} store" for t, i in moves]

    @staticmethod
    def _may_leave(t: _Thread) -> Iterator[int]:
        """Entries of the buffer that may leave next: in order per word, a release last of all before it."""
        for i, (address, _, _, release) in enumerate(t.buffer):
            before = t.buffer[:i]
            if release and before:
                continue
            if any(a == address for a, *_ in before):
                continue
            yield i

    def _leave(self, t: _Thread, i: int) -> None:
        address, size, value, _ = t.buffer.pop(i)
        self.poke(address, value, size)

    def _drain(self, t: _Thread) -> None:
        while t.buffer:
            self._leave(t, 0)

    def _advance(self, t: _Thread, value: int | None) -> None:
        """Run a thread up to its next access that others could notice or that could notice others.

        Constants cannot, and a store does not when it is made but when it leaves its buffer.
        """
        try:
            t.pending = next(t.steps) if value is None else t.steps.send(value)
            while self._is_private(*t.pending):
                t.pending = t.steps.send(self._perform(t, *t.pending))
        except StopIteration as stop:
            t.done, t.pending, t.result = True, None, stop.value or 0

    def _is_private(self, name: str, args: tuple[int, ...]) -> bool:
        if name.startswith("load"):
            return any(low <= args[0] < high for low, high in self.constants)
        return name.startswith("store") or name in _PRIVATE

    def _load(self, t: _Thread, address: int, size: int) -> int:
        cells = [self.memory.get(address + i, 0) for i in range(size)]
        for a, n, value, _ in t.buffer:
            for i in range(n):
                if address <= a + i < address + size:
                    cells[a + i - address] = value >> 8 * i & 0xFF
        return sum(c << 8 * i for i, c in enumerate(cells))

    def _step(self, t: _Thread) -> _Thread:
        """One access of ``t``. Returns who goes on by itself: another one when ``t`` spins, and then stores arrive."""
        assert t.pending is not None
        name, args = t.pending
        if name in ("pause", "yield_cpu"):
            for other in self.threads:
                self._drain(other)
            self._advance(t, 0)
            at = self.threads.index(t)
            return self.threads[(at + 1) % len(self.threads)]
        self._advance(t, self._perform(t, name, args))
        return t

    def _perform(self, t: _Thread, name: str, args: tuple[int, ...]) -> int:
        args = tuple(a & WORD_MASK for a in args)
        size = 4 if "32" in name else 8
        if name.startswith("load"):
            if "seqcst" in name:
                self._drain(t)
            return self._load(t, args[0], size)
        if name.startswith("store") and any(low <= args[0] < high for low, high in self.constants):
            self.poke(args[0], args[1] & (1 << 8 * size) - 1, size)
            return 0
        if name.startswith("store"):
            t.buffer.append((args[0], size, args[1] & (1 << 8 * size) - 1, "release" in name))
            return 0
        if name == "copy":
            for at in range(0, args[2], 4):
                t.buffer.append((args[0] + at, 4, self._load(t, args[1] + at, 4), False))
            return 0
        if name in ("fetch_add64", "fetch_add32", "fetch_min64", "exchange32", "cas64", "compare_swap32"):
            self._drain(t)
            return self._rmw(name, args, size)
        if name == "fence":
            self._drain(t)
            return 0
        if name == "futex_wait":
            self._drain(t)
            if self.peek(args[0], 4) == args[1]:
                t.asleep = args[0]
            return 0
        if name == "futex_wake":
            self._drain(t)
            woken = [s for s in self.threads if s.asleep == args[0]][: args[1]]
            for s in woken:
                s.asleep = None
            return 0
        if name in ("ticks", "now_ns", "thread_ns"):
            self._clock += 1
            return self._clock
        if name == "signed_less":
            return int((args[0] ^ 1 << 63) < (args[1] ^ 1 << 63))
        if name in ("pread", "will_need", "io_uring_enter"):
            assert self.system is not None, f"{name} without a system"
            result, written = self.system(name, args)
            t.buffer += [(address, 8, value, False) for address, value in written]
            return result
        assert name in ("set_float_mode", "restore_float_mode"), name
        return 0

    def _rmw(self, name: str, args: tuple[int, ...], size: int) -> int:
        old = self.peek(args[0], size)
        mask = (1 << 8 * size) - 1
        if name.startswith("fetch_add"):
            self.poke(args[0], old + args[1] & mask, size)
        elif name == "fetch_min64":
            self.poke(args[0], min(old, args[1]), size)
        elif name == "exchange32":
            self.poke(args[0], args[1] & mask, size)
        elif old == args[1] & mask:
            self.poke(args[0], args[2] & mask, size)
            return 1 if name == "cas64" else old
        elif name == "cas64":
            return 0
        return old


def explore(scenario: Callable[[World], Callable[[World], None]], bound: int, runs_max: int = 200_000) -> int:
    """Run a scenario under every schedule of at most ``bound`` deviations. Returns how many there were.

    Args:
        scenario: sets a World up and returns a check for its end.
    Raises:
        AssertionError: a check failed or threads slept for ever; the message has the schedule.
    """
    plans: list[tuple[int, ...]] = [()]
    mix = random.Random(1)
    runs = 0
    while plans:
        # Any order does; a mixed one meets a fault sooner than going through all variants of one beginning.
        at = mix.randrange(len(plans))
        plans[at], plans[-1] = plans[-1], plans[at]
        plan = plans.pop()
        schedule = _Schedule(plan)
        world = World(schedule)
        finish = scenario(world)
        try:
            world.run()
            finish(world)
        except AssertionError as error:
            raise type(error)(f"{error}\nschedule ends: {' '.join(schedule.names[-150:])}") from None
        runs += 1
        assert runs <= runs_max, "more schedules than the test meant to explore"
        if sum(1 for pick in plan if pick) < bound:
            plain = (0,) * len(schedule.options)
            for at in range(len(plan), len(schedule.options)):
                stem = plan + plain[len(plan) : at]
                plans.extend((*stem, other) for other in range(1, schedule.options[at]))
    return runs


class _Schedule:
    """Takes the moves of a plan, then the plain one each time; remembers what there was to choose from."""

    def __init__(self, plan: tuple[int, ...]) -> None:
        self.plan = plan
        self.options: list[int] = []
        self.names: list[str] = []

    def __call__(self, labels: list[str]) -> int:
        at = len(self.options)
        pick = self.plan[at] if at < len(self.plan) else 0
        self.options.append(len(labels))
        self.names.append(labels[pick])
        return pick


_PRIVATE = frozenset(
    ("set_float_mode", "restore_float_mode", "ticks", "now_ns", "thread_ns", "signed_less", "will_need")
)
assert "load64" in INTRINSICS
