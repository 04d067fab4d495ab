"""The ring over raw system calls, real where the machine has it and simulated where a failure must be made."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import threading

import pytest

from simulated_uring import SimulatedKernel
from vyre.errors import StreamError
from vyre.stream import uring
from vyre.stream.pool import Pool
from vyre.stream.syscalls import Kernel
from vyre.stream.uring import Ring

REFUSED = uring.available()
real = pytest.mark.skipif(REFUSED is not None, reason=f"no io_uring here: {REFUSED}")
KERNELS = [pytest.param(Kernel, marks=real, id="real"), pytest.param(SimulatedKernel, id="simulated")]


def read_all(ring, jobs):
    """Queue (fd, address, length, offset, user_data, buffer) jobs as room allows; results by user_data."""
    results, queued = {}, 0
    while len(results) < len(jobs):
        while queued < len(jobs) and ring.room():
            ring.read(*jobs[queued])
            queued += 1
        ring.submit(wait=1, timeout_s=5)
        results.update(ring.completions())
    return results


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("registered", [False, True])
def test_reads_fill_the_memory_they_name(tmp_path, kernel, registered):
    data = random.Random(1).randbytes(300_000)
    (tmp_path / "a").write_bytes(data)
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    with Pool(1 << 20) as pool, Ring(8, kernel=kernel()) as ring:
        pool.reserve(1 << 20)
        if registered:
            ring.register_buffers(pool.pieces())
        buffer = pool.lend(400_000)
        jobs = [
            (fd, buffer.address + at, min(4096, len(data) - at), at, 7 * at, 0 if registered else None)
            for at in range(0, len(data), 4096)
        ]
        results = read_all(ring, jobs)
        assert results == {job[4]: job[2] for job in jobs}
        assert bytes(pool.view(buffer)[: len(data)]) == data
    os.close(fd)


@real
@pytest.mark.parametrize("flags", uring.FLAG_LADDER)
def test_every_step_of_the_flag_ladder_reads(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(uring, "FLAG_LADDER", (1 << 31, flags))
    (tmp_path / "a").write_bytes(b"abcdef")
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    target = ctypes.create_string_buffer(8)
    with Ring(4) as ring:
        assert ring.flags == flags
        for at in range(20):
            assert read_all(ring, [(fd, ctypes.addressof(target), 4, at % 3, at, None)]) == {at: 4}
            assert target.raw[:4] == b"abcdef"[at % 3 : at % 3 + 4]
    os.close(fd)


@pytest.mark.parametrize("known", uring.FLAG_LADDER)
def test_set_up_flags_fall_one_by_one_until_the_kernel_takes_them(known):
    kernel = SimulatedKernel(flags_known=known)
    with Ring(4, kernel=kernel) as ring:
        assert ring.flags == known
        ring.nop(5)
        ring.submit()
        assert ring.completions() == [(5, 0)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_queues_wrap_many_times_without_losing_or_repeating_an_entry(kernel):
    with Ring(4, kernel=kernel()) as ring:
        seen = []
        for lap in range(300):
            for at in range(lap % 4 + 1):
                ring.nop(10 * lap + at)
            ring.submit(wait=lap % 4 + 1)
            seen += [user_data for user_data, _ in ring.completions()]
        assert seen == [10 * lap + at for lap in range(300) for at in range(lap % 4 + 1)]


@real
def test_waiting_ends_after_its_time_limit_and_not_before():
    import time

    with Ring(4) as ring:
        started = time.monotonic()
        ring.submit(wait=1, timeout_s=0.05)
        assert 0.045 < time.monotonic() - started < 1
        assert ring.completions() == []


@real
def test_another_thread_is_refused_with_what_to_do():
    with Ring(4) as ring:
        if not ring.flags & uring.SETUP_SINGLE_ISSUER:
            pytest.skip("this kernel has no SINGLE_ISSUER")
        caught = []

        def use():
            try:
                ring.nop(1)
                ring.submit()
            except StreamError as error:
                caught.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert caught[0].errno == errno.EEXIST
        assert "thread that started it" in str(caught[0])


@real
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_refused_and_the_parents_ring_goes_on():
    with Ring(4) as ring:
        child = os.fork()
        if child == 0:
            try:
                ring.submit()
            except StreamError as error:
                os._exit(0 if "does not survive fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        ring.nop(1)
        ring.submit(wait=1)
        assert ring.completions() == [(1, 0)]


def test_a_closed_ring_says_so_and_closing_again_does_nothing():
    ring = Ring(4, kernel=SimulatedKernel())
    ring.close()
    ring.close()
    with pytest.raises(StreamError, match="closed"):
        ring.submit()


@pytest.mark.parametrize(
    ("proc", "code", "words"),
    [
        ({"io_uring_disabled": "2"}, errno.EPERM, "EPERM.*io_uring_disabled is 2"),
        ({"io_uring_disabled": "1"}, errno.EPERM, "EPERM.*io_uring_disabled is 1"),
        ({"Seccomp": "2"}, errno.EPERM, "EPERM.*seccomp filter"),
        ({"io_uring_disabled": "2", "Seccomp": "2"}, errno.EPERM, "disabled is 2; a seccomp filter"),
        ({"CapEff": "0"}, errno.EPERM, "CAP_SYS_ADMIN missing"),
        ({"CapEff": "1fffffffff"}, errno.EPERM, "CAP_SYS_ADMIN held"),
        ({}, errno.ENOSYS, "ENOSYS.*built without"),
        ({"Seccomp": "2"}, errno.ENOSYS, "ENOSYS.*filter hides it"),
        ({}, errno.EMFILE, "EMFILE.*open files"),
    ],
)
def test_a_blocked_io_uring_names_errno_and_cause(monkeypatch, proc, code, words):
    status = "".join(f"{key}:\t{proc.get(key, '0')}\n" for key in ("Seccomp", "CapEff"))
    files = {
        "/proc/sys/kernel/io_uring_disabled": proc.get("io_uring_disabled", "0"),
        "/proc/self/status": status,
    }
    monkeypatch.setattr(uring, "_read", lambda path: files[path].strip())
    kernel = SimulatedKernel()
    kernel.setup_errno = code
    import re

    assert re.search(words, uring.available(kernel))


def test_another_machine_architecture_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "aarch64" in uring.available()


def test_memlock_too_small_says_how_much_was_wanted_and_what_the_limit_is():
    kernel = SimulatedKernel()
    kernel.register_errno = errno.ENOMEM
    with Pool(1 << 20) as pool, Ring(4, kernel=kernel) as ring:
        pool.reserve(1 << 20)
        with pytest.raises(StreamError, match=r"ENOMEM \(1024 KiB wanted, locked memory limited to .*\n.*ulimit -l"):
            ring.register_buffers(pool.pieces())


@real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_memlock_of_an_unprivileged_user_is_refused_for_real():
    child = os.fork()
    if child == 0:
        code = 1
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
            os.setgid(65534)
            os.setuid(65534)
            pool = Pool(4 << 20)
            pool.reserve(4 << 20)
            try:
                Ring(4).register_buffers(pool.pieces())
            except StreamError as error:
                code = 0 if error.errno == errno.ENOMEM and "1024 KiB" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_pool_lends_whole_pages_joins_what_comes_back_and_never_exceeds_its_limit():
    choose = random.Random(3)
    with Pool(100 * 4096) as pool:
        pool.reserve(10 * 4096)
        pool.reserve(1 << 40)
        assert pool.bytes == pool.limit == 100 * 4096
        lent = []
        for _ in range(2000):
            if lent and choose.random() < 0.5:
                pool.give_back(lent.pop(choose.randrange(len(lent))))
            else:
                buffer = pool.lend(choose.randint(1, 12 * 4096))
                if buffer is not None:
                    lent.append(buffer)
            spans = sorted((b.address, b.address + b.bytes) for b in lent)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
            assert pool.lent == sum(b.bytes for b in lent) <= pool.limit
        for buffer in lent:
            pool.give_back(buffer)
        assert pool.lent == 0
        assert pool.lend(90 * 4096) is not None
        assert pool.lend(11 * 4096) is None


def test_a_pool_with_a_view_alive_is_not_unmapped_under_it():
    pool = Pool(1 << 16)
    pool.reserve(1 << 16)
    view = pool.view(pool.lend(100))
    view[:3] = b"abc"
    pool.close()
    assert bytes(view[:3]) == b"abc"


@real
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_may_drop_pools_and_rings_without_unmapping_what_took_their_place():
    pool, ring = Pool(4 << 20), Ring(4)
    pool.reserve(4 << 20)
    address, length = pool.pieces()[0]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            import gc

            libc = ctypes.CDLL(None)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
            taken = libc.mmap(address, length, 3, 0x22 | 0x100000, -1, 0)  # fails if the child had inherited it
            ctypes.memset(taken, 7, length)
            pool.close()
            ring.close()
            del pool, ring
            gc.collect()
            code = 0 if taken == address and ctypes.string_at(taken + length - 1, 1) == b"\7" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ring.close()
    pool.close()


@real
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_a_real_seccomp_filter_like_a_containers_is_named_as_the_cause(code):
    import struct

    rules = [
        (0x20, 0, 0, 0),  # load the system call's number
        (0x15, 0, 1, 425),  # io_uring_setup?
        (0x06, 0, 0, 0x0005_0000 | code),  # refuse with an errno
        (0x06, 0, 0, 0x7FFF_0000),  # allow
    ]
    child = os.fork()
    if child == 0:
        answer = 1
        try:
            libc = ctypes.CDLL(None)
            program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
            filters = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(rules), ctypes.addressof(program)))
            if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filters, 0, 0):
                answer = 77
            else:
                text = uring.available()
                answer = 0 if errno.errorcode[code] in text and "seccomp filter" in text else 2
        finally:
            os._exit(answer)
    answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer == 77:
        pytest.skip("seccomp filters cannot be installed here")
    assert answer == 0
