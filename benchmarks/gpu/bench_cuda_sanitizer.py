"""gpu_sanitizer: what compute-sanitizer finds in the kernel, as figures: no errors is the target

Shows: memcheck and racecheck over tests/gpu/sanitized.py: the scalar cases, random programs with and without elementary
functions, items with tables, accumulators and emits of one tile and of twenty, control items and a fence, all in finite
launches of one block a multiprocessor. Its answers are checked by itself.
Does not show: the resident form (its stays end by the clock, and a sanitizer slows the kernel fifty times), races between
host and device, which no tool sees.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common_gpu import Report, main

from vyre.engines.cuda.engine import CudaEngine

PROGRAMS = {"memcheck": 3, "racecheck": 1}
SCRIPT = Path(__file__).parent.parent.parent / "tests" / "gpu" / "sanitized.py"


def run(engine: CudaEngine, report: Report) -> None:
    engine.residency.leave()
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        raise SystemExit("compute-sanitizer is not installed")
    for tool, programs in PROGRAMS.items():
        command = [sanitizer, "--tool", tool, sys.executable, str(SCRIPT), str(programs)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        took = time.monotonic() - began
        if "right" not in done.stdout:
            raise SystemExit(f"{tool}: no answer\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        errors = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", done.stdout)
        if errors is None:
            raise SystemExit(f"{tool}: no summary\n{done.stdout[-2000:]}")
        said = next(line for line in done.stdout.splitlines() if "right" in line)
        report.add(
            f"gpu: compute-sanitizer {tool}", [float(errors[1] or errors[2])], "errors", "<= 0",
            reason=f"compute-sanitizer --tool {tool} python tests/gpu/sanitized.py {programs}: {said}; {took:.0f} s",
        )  # fmt: skip


if __name__ == "__main__":
    main(run, "gpu_sanitizer.json", __doc__ or "")
