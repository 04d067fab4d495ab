"""A loop with a different length for every element: the Mandelbrot set, drawn on the terminal.

python examples/mandelbrot.py
"""

from __future__ import annotations

import numpy as np

import vyre


@vyre.program
def mandelbrot(cr: vyre.f32, ci: vyre.f32, *, limit: vyre.i32 = 100) -> vyre.i32:
    """Rounds until z leaves the circle of radius 2; ``limit`` when it does not."""
    zr = 0.0
    zi = 0.0
    rounds = 0
    while zr * zr + zi * zi <= 4 and rounds < limit:
        zr, zi = zr * zr - zi * zi + cr, 2 * zr * zi + ci
        rounds += 1
    return rounds


def main(width: int = 78, height: int = 30) -> None:
    ci, cr = np.meshgrid(np.linspace(-1.2, 1.2, height), np.linspace(-2.1, 0.7, width), indexing="ij")
    result = vyre.run(mandelbrot, cr=cr.astype(np.float32), ci=ci.astype(np.float32), limit=60)
    rounds = np.asarray(result["value"]).reshape(height, width)
    shades = " .:-=+*%@#"
    for row in rounds:
        print("".join(shades[min(int(n) * len(shades) // 61, len(shades) - 1)] for n in row))

    assert rounds.max() == 60
    assert rounds.min() >= 1


if __name__ == "__main__":
    main()
