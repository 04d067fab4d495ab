"""One answer of ``vyre doctor``."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """About what, how it stands ("ok", "missing", "limited"), in which words, and the way out."""

    about: str
    state: str
    words: str
    fix: str = ""
