"""How many threads this process may run at once."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """Cores by affinity mask and the cgroup's cpu.max, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    if quota is not None:
        cores = min(cores, max(1, int(quota)))
    return max(1, cores)


def _cgroup_quota() -> float | None:
    """CPUs that this cgroup and those above it may use, or None where nothing limits them (or it cannot be told)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    least: float | None = None
    here = Path("/sys/fs/cgroup") / path.lstrip("/")
    for folder in (here, *here.parents):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                share = int(quota) / int(period)
                least = share if least is None else min(least, share)
        except (OSError, ValueError, ZeroDivisionError):
            pass
        if folder == Path("/sys/fs/cgroup"):
            break
    return least
