"""The picture on top of the README: time from a new formula to its answer over the number of elements.

Owns: how it looks. Leaves to others: what was measured (rows with ``points``). Needs matplotlib, of the extra ``dev``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vyre.bench.schema import Row
from vyre.errors import EngineUnavailable, StreamError

OURS: Final = "vyre"
"""Series whose names begin so are ours."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw every series of the rows that have points of ours, ours in front, and write ``path`` (.svg, .png, .pdf).

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
    chosen = [row for row in rows if any(name.startswith(OURS) for name in row.points)]
    if not chosen:
        raise StreamError("no result has points to draw", fix="vyre bench --run crossover")
    figure: Any
    axes: Any
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    series = {name: sorted((n, s) for n, s in points) for row in chosen for name, points in row.points.items()}
    others = [name for name in series if not name.startswith(OURS)]
    colors = dict(zip(others, ("#4c72b0", "#55a868", "#8172b3", "#c44e52", "#937860", "#64b5cd") * 2, strict=False))
    for name, points in series.items():
        x, y = zip(*points, strict=True)
        if name in colors:
            axes.plot(x, y, marker="o", markersize=3, linewidth=1.4, color=colors[name], zorder=2)
        else:
            axes.plot(x, y, marker="o", markersize=4, linewidth=3, color="black", zorder=3)
    _shade_losses(axes, series)
    axes.set(
        xscale="log", yscale="log", xlabel="elements (float32, three columns)", ylabel="from the text to its answer"
    )
    axes.set_title("A formula never seen before: time to its answer", loc="left", fontweight="bold")
    axes.yaxis.set_major_formatter(_seconds)
    axes.xaxis.set_major_formatter(_count)
    axes.grid(True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    ends = {name: points[-1] for name, points in series.items()}
    bottom, top = axes.get_ylim()
    for name, height in _apart({name: y for name, (_, y) in ends.items()}, bottom, top).items():
        axes.annotate(
            name,
            xy=ends[name],
            xytext=(1.02, height),
            textcoords="axes fraction",
            color=colors.get(name, "black"),
            fontweight="normal" if name in colors else "bold",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colors.get(name, "black"), "linewidth": 0.5, "alpha": 0.6},
            annotation_clip=False,
        )
    place = chosen[0]
    loaded = "; other processes used the machine" if place.loaded else ""
    figure.supxlabel(f"{place.machine}; commit {place.commit}{loaded}", x=0.99, ha="right", fontsize=6, color="gray")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _shade_losses(axes: Any, series: dict[str, list[tuple[float, float]]]) -> None:
    """Fill the gap between ours and whoever was faster, and say once what that is."""
    best: dict[float, float] = {}
    ours: dict[float, float] = {}
    for name, points in series.items():
        into = ours if name.startswith(OURS) else best
        for elements, seconds in points:
            into[elements] = min(seconds, into.get(elements, seconds))
    both = sorted(ours.keys() & best.keys())
    worse = [n for n in both if best[n] < ours[n]]
    if not worse:
        return
    above, below = [ours[n] for n in both], [best[n] for n in both]
    lost = [b < a for a, b in zip(above, below, strict=True)]
    axes.fill_between(
        both, above, below, where=lost, interpolate=True, color="#c44e52", alpha=0.15, linewidth=0, zorder=1
    )
    at = worse[len(worse) // 2]
    axes.text(at, (ours[at] * best[at]) ** 0.5, "somebody\nelse is faster", ha="center", va="center", fontsize=8,
              color="#a03c40", style="italic")  # fmt: skip


def _apart(ends: dict[str, float], bottom: float, top: float, gap: float = 0.055) -> dict[str, float]:
    """Heights for labels, as shares of a logarithmic axis, near where lines end and never over each other."""
    found: dict[str, float] = {}
    least = 0.0
    for name, y in sorted(ends.items(), key=lambda end: end[1]):
        found[name] = least = max(math.log(y / bottom) / math.log(top / bottom), least)
        least += gap
    over = max(found.values(), default=0.0) - 1
    return {name: y - max(0.0, over) for name, y in found.items()}


def _seconds(value: float, _: object = None) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 0.9999:
            return f"{value * factor:g} {unit}"
    return f"{value * 1e9:g} ns"


def _count(value: float, _: object = None) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g}"
