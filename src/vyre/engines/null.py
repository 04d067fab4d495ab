"""The null engine: completes every item and does nothing. What is left is the protocol, so that it can be measured.

It is the CPU engine with execution switched off in one place (worker.run_item), not a second implementation: a
protocol of its own would measure itself.
"""

from __future__ import annotations

from typing import Any

from vyre.engines.cpu.engine import CpuEngine


class NullEngine(CpuEngine):
    """See CpuEngine; results hold whatever the memory held."""

    name = "null"

    def __init__(self, **options: Any) -> None:
        super().__init__(null=True, **options)
