"""Byte histogram of any file, and its entropy.

python examples/histogram.py [FILE]
"""

from __future__ import annotations

import sys

import numpy as np

import vyre


@vyre.program
def bytes_of(b: vyre.u8) -> None:
    vyre.histogram(counts=b, bins=256)
    vyre.count(text=32 <= b < 127 or 9 <= b <= 13)


def main(path: str = __file__) -> None:
    result = vyre.run(bytes_of, {"b": path})
    counts = np.asarray(result["counts"])
    share = counts[counts > 0] / counts.sum()
    print(
        f"{path}: {counts.sum():,} bytes, {-(share * np.log2(share)).sum():.3f} bits each, {result['text']:,} of text"
    )

    with open(path, "rb") as file:
        data = np.frombuffer(file.read(), np.uint8)
    assert np.array_equal(counts, np.bincount(data, minlength=256))


if __name__ == "__main__":
    main(*sys.argv[1:2])
