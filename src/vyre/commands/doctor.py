"""``vyre doctor``: what works on this machine, what is missing, and what to do about it.

Owns: the questions. Each probe stands alone, imports what it asks about, and turns a failure into a finding.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

from vyre.commands import exits, show
from vyre.commands.findings import Finding


@click.command()
@click.option("--json", "json_", is_flag=True, help="print JSON")
@click.pass_context
def command(ctx: click.Context, json_: bool) -> None:
    """Say what works on this machine, and what is missing; exit 4 when programs cannot run fast here."""
    findings = []
    for probe in PROBES:
        try:
            findings += list(probe())
        except Exception as error:  # whatever a probe finds broken is its finding, and the other probes go on
            name = probe.__name__.lstrip("_").replace("_", " ")
            findings.append(Finding(name, "missing", f"{type(error).__name__}: {error}"))
    if json_:
        show.as_json([finding._asdict() for finding in findings])
    else:
        show.table("", ("", "", ""), [(f.about, f.state, f.words) for f in findings])
        for finding in findings:
            if finding.fix:
                click.echo(f"{finding.about}: {finding.fix}")
    if any(f.about == "engine cpu" and f.state == "missing" for f in findings):
        ctx.exit(exits.ENGINE.code)


def _versions() -> Iterator[Finding]:
    from importlib import metadata

    from vyre import __version__

    packages = []
    for name in ("numpy", "llvmlite", "click", "rich"):
        try:
            packages.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install {name}")
    yield Finding("vyre", "ok", f"{__version__}, Python {platform.python_version()}, {', '.join(packages)}")
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "linux" and platform.machine() == "x86_64":
        yield Finding("system", "ok", system)
    else:
        yield Finding("system", "limited", f"{system}: the cpu and cuda engines are tested on Linux x86-64 only")


def _arrow() -> Iterator[Finding]:
    """What reads and writes Arrow files and tables: an extra."""
    from importlib import metadata

    try:
        yield Finding("Arrow", "ok", f"pyarrow {metadata.version('pyarrow')}")
    except metadata.PackageNotFoundError:
        words = "no pyarrow: no Arrow files, no tables of Polars and their like"
        yield Finding("Arrow", "missing", words, "pip install 'vyre-runtime[arrow]'")


def _processor() -> Iterator[Finding]:
    from vyre.bench.schema import machine

    yield Finding("processor", "ok", machine())
    try:
        quota, _, period = Path("/sys/fs/cgroup/cpu.max").read_text().partition(" ")
        if quota != "max":
            yield Finding("processor", "limited", f"the control group allows {int(quota) / int(period):.2f} cores")
    except (OSError, ValueError):
        pass


def _engine_reference() -> Iterator[Finding]:
    import numpy as np

    from vyre.engines.reference import execute
    from vyre.programs import stats

    result = execute(stats(), [np.arange(4.0)], [], [], 0, 4)
    right = float(result.accumulators[1]) == 6.0
    yield Finding("engine reference", "ok" if right else "missing", "NumPy, the definition; slow")


def _engine_cpu() -> Iterator[Finding]:
    yield _answer("cpu", "")


def _gpu() -> Iterator[Finding]:
    from vyre.commands import gpu

    yield from gpu.findings(gpu.load_driver())


def _answer(engine: str, words: str) -> Finding:
    """Open a session, run four elements, close it: how that went."""
    import time

    import numpy as np

    from vyre.errors import VyreError
    from vyre.programs import stats
    from vyre.runtime.api import open as open_session

    start = time.perf_counter()
    try:
        with open_session(engine) as session:  # type: ignore[arg-type]
            result = session.run(stats(), {"x": np.arange(4.0)})
            words = f"{words}; " if words else ""
            words += session.choice
    except VyreError as error:
        return Finding(f"engine {engine}", "missing", error.message, error.fix)
    took = time.perf_counter() - start
    if float(result["sum"]) != 6.0:
        return Finding(f"engine {engine}", "missing", f"{words}: gave a wrong answer")
    return Finding(f"engine {engine}", "ok", f"{words}; opened, answered and closed in {show.seconds(took)}")


def _streams() -> Iterator[Finding]:
    import resource

    from vyre.stream import uring
    from vyre.stream.cached import cached
    from vyre.stream.syscalls import direct_alignment

    reason = uring.available()
    if reason is None:
        yield Finding("io_uring", "ok", "cold files are read through it")
    else:
        yield Finding("io_uring", "missing", f"{reason}; cold files are read with preadv in threads")
    fd = os.open(sys.executable, os.O_RDONLY)
    try:
        found = cached(fd, 0, os.fstat(fd).st_size)
        alignment = direct_alignment(fd)
    finally:
        os.close(fd)
    yield Finding("page cache", "ok" if found.fraction is not None else "limited", f"asked by {found.by}")
    if alignment is None:
        yield Finding("direct I/O", "limited", f"not offered where {sys.executable} lies")
    else:
        yield Finding("direct I/O", "ok", f"{alignment.offset} bytes aligned where {sys.executable} lies")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    words = "no limit" if locked == resource.RLIM_INFINITY else show.size(locked)
    few = locked != resource.RLIM_INFINITY and locked < 64 << 20
    yield Finding("locked memory", "limited" if few else "ok", words, "ulimit -l raises it" if few else "")


def _gpudirect() -> Iterator[Finding]:
    """What can be seen without starting cuFile, which takes a second and may hang."""
    from vyre.stream import cufile

    causes = cufile.obstacles() or cufile.lacks_direct()
    if causes:
        yield Finding("GPUDirect Storage", "missing", "; ".join(causes))
    else:
        yield Finding("GPUDirect Storage", "ok", 'the system has what it needs; io="cufile" tries it with a real read')


def _store() -> Iterator[Finding]:
    from vyre.store import Store, platform_cache_dir

    store = Store()
    store.put(b"doctor", b"hello")
    if store.get(b"doctor") != b"hello":
        yield Finding("cache", "limited", f"off: {store.problem or 'what was put does not come back'}")
    else:
        assert store.root is not None
        sizes = [entry.stat().st_size for entry in os.scandir(store.root)]
        yield Finding("cache", "ok", f"{store.root}: {len(sizes):,} entries, {show.size(sum(sizes))}")
    cache = platform_cache_dir()
    demo = cache / "demo" if cache is not None else None
    if demo is not None and demo.is_dir():
        total = sum(path.stat().st_size for path in demo.rglob("*") if path.is_file())
        yield Finding("demo data", "ok", f"{demo}: {show.size(total)}; 'vyre demo --remove' removes it")


PROBES: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    _versions,
    _arrow,
    _processor,
    _engine_reference,
    _engine_cpu,
    _gpu,
    _streams,
    _gpudirect,
    _store,
)
