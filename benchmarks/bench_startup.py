"""startup: how long a process takes from nothing: python, import vyre, a first formula, ``vyre run``

Shows: whole processes, from exec to exit, with the page cache warm and everything that a first run compiles already in
the store of compiled code. ``vyre run`` works on a small file, the second time.
Does not show: the first run on a machine, which compiles instructions once; that is noted, measured with an empty store.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from common import Bench, interleave, main

FIRST = """
import numpy as np, vyre
x = np.arange(1024, dtype=np.float32)
assert vyre.evaluate("2*x + 1", x=x, engine="cpu")[3] == 7
"""


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """A process's output. Python may keep its modules compiled, as an installation by pip does."""
    given = {k: v for k, v in (environment or os.environ).items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=given)
    if done.returncode:
        raise SystemExit(f"{arguments}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def measure(bench: Bench) -> None:
    folder = bench.folder()
    x = np.arange(1_000, dtype=np.float32)
    np.save(folder / "x.npy", x)
    command = ["-m", "vyre.cli", "run", "sum(x)", f"x={folder / 'x.npy'}", "--json"]
    if not (Path(sys.executable).with_name("vyre")).exists():
        bench.note("the command vyre is not installed: measured as python -m vyre.cli")
    else:
        command = [str(Path(sys.executable).with_name("vyre")), *command[2:]]
    output = run(*command)
    if "499500" not in output:
        raise SystemExit(f"vyre run says {output}")
    run("-c", FIRST)
    candidates: dict[str, Callable[[], object]] = {
        "python -c pass": lambda: run("-c", "pass"),
        "import numpy": lambda: run("-c", "import numpy"),
        "import vyre": lambda: run("-c", "import vyre"),
        "first formula": lambda: run("-c", FIRST),
        "vyre run": lambda: run(*command),
    }
    runs = interleave(candidates, bench.rounds(11, 1))
    beside = {"python -c pass": runs["python -c pass"], "python -c 'import numpy'": runs["import numpy"]}
    bench.add("process: import vyre", runs["import vyre"], "s", target="<= 0.15", peers=beside)
    bench.add("process: import vyre and a first formula", runs["first formula"], "s", peers=beside)
    bench.add("process: vyre run on a small file, second time", runs["vyre run"], "s", target="<= 0.4", peers=beside)
    empty = {**os.environ, "XDG_CACHE_HOME": str(folder / "empty")}
    began = time.perf_counter()
    if not bench.quick:
        run("-c", FIRST, environment=empty)
        bench.note(f"the first formula with an empty store of compiled code: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main(__doc__, measure)
