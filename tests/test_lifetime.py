"""How sessions end: with the process, in a forked child, by Ctrl-C, by being forgotten; and what they leave: nothing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.errors import SessionClosed


@vyre.program
def double(x: vyre.i32):
    return 2 * x


X = np.arange(3_000, dtype=np.int32)
PROGRAMS = """
    import os, signal, sys, threading, time
    import numpy as np
    import vyre

    @vyre.program
    def double(x: vyre.i32):
        return 2 * x

    @vyre.program
    def slow(x: vyre.i32, *, turns: vyre.i32):
        left = turns + x * 0
        while left > 0:
            left -= 1
        return left

    X = np.arange(3_000, dtype=np.int32)
    LONG = np.zeros(1024 * 512, np.int32)
"""


def run(tmp_path: Path, text: str, *, interrupt_after: str = "", limit_s: float = 30) -> tuple[int, str, str, float]:
    """Run a script; send SIGINT once it has printed a line. Returns exit code, output, errors, seconds from the signal."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PROGRAMS) + textwrap.dedent(text), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-u", str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    began = time.monotonic()
    try:
        if interrupt_after:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.strip() == interrupt_after, line
            time.sleep(0.15)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=limit_s)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err, time.monotonic() - began


# --- the end of the process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending",
    ["", "sys.exit(0)", "s.submit(slow, x=LONG, turns=2_000)", "del s", "threading.Thread(target=s.run, args=(slow,), kwargs=dict(x=LONG, turns=300), daemon=True).start(); time.sleep(0.05)"],
    ids=["end", "exit", "outstanding", "dropped", "daemon thread inside"],
)  # fmt: skip
def test_a_process_that_ends_with_an_open_session_ends_quietly_and_soon(tmp_path, ending):
    code, out, err, taken = run(
        tmp_path,
        f"""
        s = vyre.open("cpu", workers=2)
        assert (s.run(double, x=X).value == 2 * X).all()
        assert (vyre.evaluate("x + 1", x=X) == X + 1).all()
        print("ran")
        {ending}
        """,
    )
    assert (code, out, err) == (0, "ran\n", "")
    assert taken < 15


def test_a_session_open_in_two_threads_at_exit_is_joined(tmp_path):
    code, out, err, _ = run(
        tmp_path,
        """
        sessions = [vyre.open("cpu", workers=2) for _ in range(3)]
        def work(s):
            for _ in range(50):
                assert (s.run(double, x=X).value == 2 * X).all()
        threads = [threading.Thread(target=work, args=(s,)) for s in sessions * 2]
        [t.start() for t in threads]
        """,
    )
    assert (code, out, err) == (0, "", "")


def test_an_exception_that_ends_the_process_is_what_is_shown(tmp_path):
    code, _, err, _ = run(
        tmp_path, 's = vyre.open("cpu"); s.submit(slow, x=LONG, turns=500); raise RuntimeError("mine")'
    )
    assert code == 1
    assert err.strip().endswith("RuntimeError: mine")


# --- Ctrl-C -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "s.run(slow, x=LONG, turns=20_000)",
        "s.submit(slow, x=LONG, turns=20_000).result()",
        "s.bind(slow, x=LONG, turns=20_000).run()",
        "s.dispatch([(slow, {'x': LONG, 'turns': 20_000})] * 4)",
        "[part for part in s.stream(slow, x='long.bin', turns=20_000, chunk=1024)]",
        "s.run(slow, x='long.bin', turns=20_000, out='out.npy')",
        "s.run(slow, x='long.bin', turns=20_000, io='pread', chunk=4096)",
    ],
    ids=["run", "ticket", "bound", "dispatch", "stream", "run over a file", "pread"],
)
def test_an_interrupt_ends_a_long_call_within_a_second_and_the_session_goes_on(tmp_path, call):
    code, out, err, taken = run(
        tmp_path,
        f"""
        LONG.tofile("long.bin")
        with vyre.open("cpu", workers=2) as s:
            print("started")
            try:
                {call}
            except KeyboardInterrupt:
                print("interrupted")
            assert (s.run(double, x=X).value == 2 * X).all()
            assert not s._outstanding or all(t.done() or True for t in s._outstanding)
        print("closed", sorted(os.listdir(".")))
        """,
        interrupt_after="started",
    )
    assert err == ""
    assert code == 0
    assert out.splitlines()[0] == "interrupted"
    assert out.splitlines()[1] == "closed ['long.bin', 'script.py']"
    assert taken < 2.5, "one second, and starting what comes after it on a loaded machine"


def test_an_interrupt_that_nobody_catches_ends_the_process_as_usual(tmp_path):
    code, _, err, taken = run(
        tmp_path,
        """
        LONG.tofile("long.bin")
        s = vyre.open("cpu", workers=2)
        print("started")
        for part in s.stream(slow, x="long.bin", turns=20_000, chunk=1024):
            pass
        """,
        interrupt_after="started",
    )
    assert code == -signal.SIGINT
    assert err.strip().endswith("KeyboardInterrupt")
    assert taken < 2.5


def test_interrupts_at_any_moment_lose_neither_slots_nor_bindings(tmp_path):
    """A timer interrupts small runs a few hundred times, wherever they are just then."""
    code, _, err, _ = run(
        tmp_path,
        """
        import faulthandler
        faulthandler.dump_traceback_later(15, exit=True)
        s = vyre.open("cpu", workers=1, capacity=8)
        engine = s.engine
        s.run(double, x=X)
        before = len(engine._blocks)
        class Alarm(Exception): pass
        def ring(*_): raise Alarm
        signal.signal(signal.SIGALRM, ring)
        hits = 0
        bound = s.bind(double, x=X)
        for turn in range(600):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + 0.0000013 * (turn % 97))
                for _ in range(50):
                    s.run(double, x=X)
                    s.submit(double, x=X).result()
                    bound.run()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                hits += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        for _ in range(100):
            assert (s.run(double, x=X).value == 2 * X).all()
            assert (bound.run().value == 2 * X).all()
            assert (s.submit(double, x=X).result().value == 2 * X).all()
        assert hits > 100, hits
        # A ticket that an interrupt kept from its caller is collected when its slot is needed.
        assert len(s._outstanding) <= 8, len(s._outstanding)
        assert len(engine._blocks) <= before + 40, len(engine._blocks)
        s.close()
        """,
    )
    assert code == 0, err  # Python reports an interrupt inside a finalizer and goes on


# --- fork ---------------------------------------------------------------------------------------------------------------


def in_child(what: object) -> int:
    """Exit code of a forked child that calls ``what``; 99 when it raised anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = what()  # type: ignore[operator]
        finally:
            os._exit(code if isinstance(code, int) else 98)
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status), f"the child was killed by signal {status & 127}"
    return os.WEXITSTATUS(status)


def test_a_forked_child_finds_the_session_closed_and_the_parent_goes_on():
    with vyre.open("cpu", workers=2) as session:
        bound = session.bind(double, x=X)
        loaded = session.load(double)
        ticket = session.submit(double, x=X)

        def child() -> int:
            assert session.closed
            calls = [
                lambda: session.run(double, x=X), bound.run, ticket.result, lambda: session.submit(loaded, x=X),
                lambda: session.load(double), lambda: session.publish(0), lambda: session.evaluate("x + 1", {"x": X}),
            ]  # fmt: skip
            for call in calls:
                try:
                    call()
                except SessionClosed:
                    continue
                return 1
            bound.close()
            loaded.close()
            session.close()
            return 0

        assert in_child(child) == 0
        np.testing.assert_array_equal(ticket.result().value, 2 * X)
        np.testing.assert_array_equal(bound.run().value, 2 * X)
        assert all(t.is_alive() for t in session.engine._threads)


def test_a_forked_child_may_open_a_session_of_its_own():
    with vyre.open("cpu", workers=1) as session:
        session.run(double, x=X)

        def child() -> int:
            with vyre.open("cpu", workers=1) as mine:
                fine = (mine.run(double, x=X).value == 2 * X).all()
            return 0 if fine and (vyre.evaluate("x + 1", x=X) == X + 1).all() else 1

        assert in_child(child) == 0
        np.testing.assert_array_equal(session.run(double, x=X).value, 2 * X)


def test_freeing_inherited_sessions_in_a_child_frees_nothing_of_the_child_s_own(tmp_path):
    """The places of pages that a child does not have must not be taken by its own, or freeing the one unmaps the other."""
    code, out, err, _ = run(
        tmp_path,
        """
        import gc, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        inherited = [vyre.open("cpu", workers=2) for _ in range(4)]
        for session in inherited:
            session.run(double, x=X)
        for turn in range(6):
            pid = os.fork()
            if pid == 0:
                own = [vyre.open("cpu", workers=2) for _ in range(3)]
                for session in own:
                    assert (session.run(double, x=X).value == 2 * X).all()
                inherited.clear()
                gc.collect()
                for session in own:
                    assert (session.run(double, x=X).value == 2 * X).all()
                    session.close()
                sys.exit(0)
            print(os.waitpid(pid, 0)[1])
        """,
    )
    assert (code, out, err) == (0, "0\n" * 6, "")


def test_a_stream_in_a_forked_child_is_closed_and_the_parent_s_goes_on(tmp_path):
    np.arange(100_000, dtype=np.int32).tofile(tmp_path / "x.bin")
    with vyre.open("cpu", workers=1) as session:
        for io in ("auto", "pread", "uring"):
            stream = session.stream(double, x=tmp_path / "x.bin", chunk=1024, io=io)
            parts = [next(stream)["value"]]

            def child(stream: vyre.Stream = stream) -> int:
                try:
                    next(stream)
                except SessionClosed:
                    stream.close()
                    gc.collect()
                    return 0
                return 1

            assert in_child(child) == 0
            parts += [part["value"] for part in stream]
            np.testing.assert_array_equal(np.concatenate(parts), 2 * np.arange(100_000))


# --- forgotten ----------------------------------------------------------------------------------------------------------


def workers_alive() -> int:
    return sum(t.name.startswith("vyre-worker") for t in threading.enumerate())


def test_sessions_that_nobody_holds_leave_no_thread():
    gc.collect()
    before = workers_alive()
    for _ in range(5):
        session = vyre.open("cpu", workers=2)
        session.run(double, x=X)
        session.submit(double, x=X)
        bound = session.bind(double, x=X)
        bound.run()
        session.evaluate("x * 3", {"x": X})
        del session, bound
    gc.collect()
    assert workers_alive() == before


def test_opening_and_closing_leaves_no_thread_file_or_mapping():
    def held() -> tuple[int, int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").count("\n")
        return threading.active_count(), len(os.listdir("/proc/self/fd")), maps

    def use() -> None:
        with vyre.open("cpu", workers=2) as session:
            session.run(double, x=X)

    use()
    threads, files, maps = held()
    for _ in range(20):
        use()
    after = held()
    assert after[:2] == (threads, files)
    # A session has some eight regions; the allocator and code that is compiled on demand may map a few more.
    assert after[2] - maps < 20


def test_many_small_things_do_not_pile_up():
    with vyre.open("cpu", workers=1) as session:
        for turn in range(50):
            session.evaluate(f"x + {turn}", {"x": X})
        gc.collect()
        blocks, outstanding = len(session.engine._blocks), len(session._outstanding)
        for turn in range(500):
            session.evaluate(f"x + {turn % 50}", {"x": X})
            session.submit(double, x=X).result()
            session.bind(double, x=X).run()
        gc.collect()
        assert len(session.engine._blocks) <= blocks + 2
        assert len(session._outstanding) == outstanding == 0


@pytest.mark.parametrize("io", ["hot", "pread"])
def test_closing_a_session_does_not_wait_for_the_chunks_of_a_stream_that_are_out(tmp_path, io):
    @vyre.program
    def slow(k: vyre.i32) -> vyre.i32:
        left = 100_000 + k * 0
        while left > 0:
            left -= 1
        return left

    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(1 << 30)
    session = vyre.open("cpu")
    stream = session.stream(slow, k=vyre.raw(tmp_path / "zeros", "i32"), io=io)
    said = []

    def wait():
        try:
            next(stream)
        except SessionClosed as error:
            said.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    session.close()
    thread.join(10)
    assert time.monotonic() - began < 2
    assert len(said) == 1
