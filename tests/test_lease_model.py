"""The handshake of a stay, explored in every order: no slot is lost, none runs twice, nobody waits for ever.

A model of engines/cuda/kernel/resident.cu (poller, worker) and engines/cuda/residency.py (publish, look, keeper) with
the same names. Each step below is one access to shared memory, or several that one side makes between accesses that
another side could see. A library that holds the GIL is a host that takes no step; late blocks are workers that start
when they like; nobody waiting is a host that only has its keeper.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

OUT, COUNTED, IDLE, DREW, RUNS, GONE, LATE, LATE_DRAWS, LATE_RUNS = range(9)  # of a worker
POLLS, CLOSES, READ_GONE, MARKS, LEFT = range(5)  # of the poller
LEAVE = -1
EMPTY = -2


class State(NamedTuple):
    # host words
    tail: int = 0
    # engine words
    final: int = 0
    left: int = 0
    closing: int = 0
    head: int = 0
    handed: int = 0
    entries: tuple[int, ...] = ()  # by ticket: a sequence, LEAVE or EMPTY
    started: int = 0
    gone: int = 0
    next: int = 0
    # who is where
    generation: int = 0
    poller: int = LEFT
    seen_gone: int = 0
    workers: tuple[tuple[int, int], ...] = ()  # (where, ticket)
    done: tuple[int, ...] = ()  # how often each sequence ran


class Model:
    """Steps of all sides. ``bugs`` leaves out one line of the protocol, to see that the model would notice."""

    def __init__(self, items: int, workers: int, stays: int, bugs: frozenset[str] = frozenset()) -> None:
        self.items, self.workers, self.stays, self.bugs = items, workers, stays, bugs

    def start(self) -> State:
        return State(workers=((GONE, 0),) * self.workers, done=(0,) * self.items)

    def steps(self, s: State) -> Iterator[State]:
        yield from self.host(s)
        yield from self.poll(s)
        for i in range(self.workers):
            yield from self.work(s, i)

    def host(self, s: State) -> Iterator[State]:
        if s.tail < self.items:
            yield s._replace(tail=s.tail + 1)
        # look(): after a publish, in a wait, by the keeper. A launch is stream-ordered: it starts when all of the last
        # stay's warps are out, which the model says by letting them start only then.
        if s.left == s.generation and s.tail > s.final and all(w == GONE for w, _ in s.workers):
            yield s._replace(
                generation=s.generation + 1, poller=POLLS, workers=((OUT, 0),) * self.workers, started=0, gone=0
            )

    def poll(self, s: State) -> Iterator[State]:
        if s.poller == POLLS:
            if s.tail > s.next:  # fills the next ticket
                yield self.put(s, s.handed, s.next)._replace(handed=s.handed + 1, next=s.next + 1)
            # Idle, longest stay over, or asked to leave: at any time, but the last stay of the model stays for its work.
            if s.generation < self.stays or (s.tail == self.items and s.next == s.tail):
                yield s._replace(poller=CLOSES)
        elif s.poller == CLOSES:
            yield s._replace(closing=s.generation, poller=READ_GONE)
        elif s.poller == READ_GONE:
            yield s._replace(seen_gone=s.gone, poller=MARKS)
        elif s.poller == MARKS:
            if s.seen_gone == s.started and (s.head >= s.handed or "undrawn" in self.bugs):
                top = s.handed if "head" in self.bugs else max(s.head, s.handed)
                yield s._replace(head=top, handed=top, final=s.next, left=s.generation, poller=LEFT)
            else:
                n = s
                for ticket in range(s.handed, s.head):
                    n = self.put(n, ticket, LEAVE)
                yield n._replace(poller=READ_GONE)

    def put(self, s: State, ticket: int, value: int) -> State:
        entries = list(s.entries) + [EMPTY] * (ticket + 1 - len(s.entries))
        entries[ticket] = value
        return s._replace(entries=tuple(entries))

    def work(self, s: State, i: int) -> Iterator[State]:
        where, ticket = s.workers[i]

        def to(state: State, new: int, ticket: int = 0) -> State:
            workers = list(state.workers)
            workers[i] = (new, ticket)
            return state._replace(workers=tuple(workers))

        if where == OUT:
            yield to(s._replace(started=s.started + 1), COUNTED)
        elif where == COUNTED:
            late = s.closing >= s.generation and "late" not in self.bugs
            yield to(s, LATE if late else IDLE)
        elif where == LATE:
            if s.head >= s.handed:
                yield to(s._replace(gone=s.gone + 1), GONE)
            else:
                yield to(s, LATE_DRAWS)
        elif where == LATE_DRAWS:
            n = s._replace(head=s.head + 1)
            yield to(n._replace(gone=s.gone + 1), GONE) if s.head >= s.handed else to(n, LATE_RUNS, s.head)
        elif where == IDLE:
            yield to(s._replace(head=s.head + 1), DREW, s.head)
        elif where == DREW:
            entry = s.entries[ticket] if ticket < len(s.entries) else EMPTY
            if entry == LEAVE:
                yield to(s._replace(gone=s.gone + 1), GONE)
            elif entry != EMPTY:
                yield to(s, RUNS, ticket)
        elif where in (RUNS, LATE_RUNS):
            sequence = s.entries[ticket]
            done = list(s.done)
            done[sequence] += 1
            yield to(s._replace(done=tuple(done)), IDLE if where == RUNS else LATE)


def explore(model: Model) -> tuple[int, list[str]]:
    """Every reachable state; what is wrong in any of them."""
    seen = {model.start()}
    todo = [model.start()]
    wrong: list[str] = []
    while todo and not wrong:
        state = todo.pop()
        if any(n > 1 for n in state.done):
            wrong.append(f"ran twice: {state}")
        if state.left == state.generation and state.final != sum(state.done[: state.final]):
            wrong.append(f"left before its items were done: {state}")
        following = list(model.steps(state))
        if not following and (any(n != 1 for n in state.done) or state.left != state.generation):
            wrong.append(f"nobody can go on: {state}")
        for each in following:
            if each not in seen:
                seen.add(each)
                todo.append(each)
    return len(seen), wrong


@pytest.mark.parametrize(("items", "workers", "stays"), [(1, 1, 2), (2, 1, 3), (2, 2, 2), (3, 2, 2)])
def test_in_every_order_each_item_runs_once_and_nobody_waits_for_ever(items: int, workers: int, stays: int) -> None:
    states, wrong = explore(Model(items, workers, stays))
    assert wrong == []
    assert states > 100, "the model explores something"


@pytest.mark.parametrize("bug", ["late", "head", "undrawn"])
def test_the_model_notices_when_a_line_of_the_protocol_is_missing(bug: str) -> None:
    _, wrong = explore(Model(2, 2, 2, frozenset([bug])))
    assert wrong
