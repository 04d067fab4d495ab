"""Every benchmark, one after the other, into benchmarks/results: ``python benchmarks/run_all.py [NAME ...]``

Wants a machine that nobody else uses, about 7 GB below VYRE_BENCH_TMP (default: the temporary folder), and the peers:
``pip install numba jax polars duckdb numexpr``; fio and a C compiler from the system. A peer that is missing is said and
left out. Afterwards: ``vyre bench --check``, ``vyre bench --plot``, ``vyre bench --readme --write``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="bench_NAME.py; all of them without a NAME")
    parser.add_argument("--quick", action="store_true", help="tiny versions; nothing is written")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the result files")
    options = parser.parse_args()
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = [name for name in options.names if name not in scripts]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(scripts)}")
    failed = []
    began = time.monotonic()
    for name in options.names or scripts:
        extra = ["--quick"] if options.quick else ["--out", str(options.results / f"{name}.json")]
        print(f"--- {name}", flush=True)
        if subprocess.run([sys.executable, str(scripts[name]), *extra], cwd=HERE.parent).returncode:
            failed.append(name)
    print(f"--- {time.monotonic() - began:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
