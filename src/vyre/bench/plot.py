"""The picture on top of the README: time from a new formula to its answer over the number of elements.

Owns: how it looks. Leaves to others: what was measured (rows with ``points``). Needs matplotlib, of the extra ``dev``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vyre.bench.schema import Row
from vyre.errors import EngineUnavailable, StreamError


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw every series of every row that has points, ours in front, and write ``path`` (.svg, .png, .pdf).

    Raises:
        EngineUnavailable: matplotlib is not installed.
        StreamError: no row has points.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise EngineUnavailable(
            "drawing needs matplotlib, which is not installed", fix="pip install 'vyre-runtime[dev]'"
        ) from None
    chosen = [row for row in rows if row.points]
    if not chosen:
        raise StreamError("no result has points to draw", fix="vyre bench --run new_formula")
    figure: Any
    axes: Any
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    best_of_others: dict[float, float] = {}
    for row in chosen:
        for name, points in row.points.items():
            ours = name.startswith("vyre")
            x = [point[0] for point in points]
            y = [point[1] for point in points]
            axes.plot(
                x, y, marker="o", markersize=3, linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2, label=name
            )
            if not ours:
                for elements, seconds in points:
                    best_of_others[elements] = min(seconds, best_of_others.get(elements, seconds))
    lost = [
        (elements, seconds)
        for row in chosen
        for name, points in row.points.items()
        if name.startswith("vyre")
        for elements, seconds in points
        if best_of_others.get(elements, seconds) < seconds
    ]
    if lost:
        axes.scatter(
            *zip(*lost, strict=True), s=70, facecolors="none", edgecolors="black", zorder=4, label="where we lose"
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="elements",
        ylabel="seconds from a new formula to its answer",
        title="A formula never seen before: time to the answer",
    )
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    place = chosen[0]
    figure.text(0.995, 0.005, f"{place.machine}; commit {place.commit}", ha="right", fontsize=6, color="gray")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
