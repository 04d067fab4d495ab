"""docs/protocol.md says what the code says: its tables are those of ring/layout.py and ring/order.py, word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vyre.ring import layout, order
from vyre.ring.layout import IO_REQUEST, RECORD_DTYPE, SLOT, Opcode, Priority, Status, Word

PAGE = Path(__file__).parent.parent / "docs/protocol.md"
SOURCE = Path(layout.__file__).read_text(encoding="utf-8")


def table(title: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(title) + " |", "|" + "---|" * len(title)]
    return "\n".join(
        lines + ["| " + " | ".join(str(cell) for cell in row).replace("|  |", "| |") + " |" for row in rows]
    )


def slots(words: dict[str, Word]) -> str:
    return table(
        ("word", "name", "writer", "holds"), [(w.at, f"`{name}`", w.writer, w.meaning) for name, w in words.items()]
    )


def records() -> str:
    """From the dtype, with what the source says beside each field."""
    assert RECORD_DTYPE.fields is not None
    rows = []
    for name, (dtype, offset, *_) in RECORD_DTYPE.fields.items():
        comment = re.search(rf'\("{name}", "[^"]+"\),  # (.*)', SOURCE)
        assert comment is not None
        rows.append((offset, f"`{name}`", f"u{8 * dtype.itemsize}", comment[1]))
    return table(("byte", "name", "type", "holds"), rows)


def words(prefix: str) -> str:
    """Words of a control block: constants whose comment begins with their type."""
    found = re.findall(rf"^({prefix}_\w+): Final = (\d+)  # (u\d+\S*)[:,]? ?(.*)$", SOURCE, re.M)
    rows = [(offset, f"`{name}`", kind.rstrip(":,"), text) for name, offset, kind, text in found]
    for _, name, _, _ in rows:
        assert hasattr(layout, name.strip("`"))
    return table(("byte", "name", "type", "writer and meaning"), rows)


def numbers() -> str:
    rows = [
        (f"`{e.__name__}`", ", ".join(f"{v.name} {int(v):#x}" if v > 9 else f"{v.name} {int(v)}" for v in e))
        for e in (Status, Priority, Opcode)
    ]
    return table(("numbers", "values"), rows)


def orders() -> str:
    assert order.__doc__ is not None
    rows = [line for line in order.__doc__.splitlines() if line.startswith("|")]
    return "\n".join(
        "| " + " | ".join(cell.strip() for cell in row.strip("|").split("|")) + " |" for row in rows if "---" not in row
    )


TABLES = {
    "slots": slots(SLOT),
    "requests": slots(IO_REQUEST),
    "request list": words("REQUESTS"),
    "paged table": words("PAGED"),
    "records": records(),
    "ring": words("RING"),
    "session": words("SESSION"),
    "numbers": numbers(),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_the_code_s_table(name):
    text = PAGE.read_text(encoding="utf-8")
    assert TABLES[name] in text, f"docs/protocol.md should have this table:\n{TABLES[name]}"


def test_the_page_has_every_pair_of_the_memory_order():
    text = PAGE.read_text(encoding="utf-8")
    pairs = orders().splitlines()
    assert len(pairs) == 9
    for row in pairs:
        assert row in text, f"docs/protocol.md should have this row:\n{row}"


def test_every_word_and_function_that_the_page_names_exists():
    from vyre.engines.cpu.worker import worker_unit

    text = PAGE.read_text(encoding="utf-8")
    known = set(worker_unit.functions) | set(vars(layout)) | set(SLOT) | set(IO_REQUEST) | set(RECORD_DTYPE.names or ())
    known |= {v.name for e in (Status, Priority, Opcode) for v in e}
    known |= set(
        re.findall(r"\b([EJBWI]_[A-Z_]+)\b", (Path(layout.__file__).parent.parent / "engines/cpu/state.py").read_text())
    )
    named = set(re.findall(r"`([a-z]\w+_\w+|[A-Z][A-Z_]+)`", text))
    assert len(named) > 25
    assert named <= known, sorted(named - known)


def test_stores_and_loads_that_the_order_names_are_in_the_functions_that_make_them():
    """Each pair of the table, found again as the accesses of the functions that it names."""
    import inspect

    from vyre.engines.cpu.worker import worker_unit

    body = {name: inspect.getsource(f) for name, f in worker_unit.functions.items()}
    assert "store32_release(slot, PUBLISHED)" in body["publish"]
    assert "store64_release(ring + RING_TAIL" in body["publish"]
    assert "load64_acquire(ring + RING_TAIL)" in body["claim"]
    assert "cas64(ring + RING_HEAD" in body["claim"]
    assert "store64_release(record, sequence + 1)" in body["complete"]
    assert "load64_acquire(record_address(ring, sequence))" in body["is_complete"]
    assert "fetch_add64(ring + RING_COMPLETED, 1)" in body["complete"]
    assert "load64_acquire(ring + RING_COMPLETED)" in body["claim"]
    assert "store32_release(slot_address(ring, sequence), EMPTY)" in body["acknowledge"]
    assert "load32_acquire(slot_address(ring, tail + i)) != EMPTY" in body["publish"]
    assert body["wake_workers"].index("fence()") < body["wake_workers"].index("SESSION_SLEEPERS")
    assert body["worker_loop"].index("SESSION_SLEEPERS, 1") < body["worker_loop"].rindex("has_work")
    assert body["complete"].index("fetch_add64(ring + RING_COMPLETED") < body["complete"].index("SESSION_WAITERS")
    assert body["wait"].index("SESSION_WAITERS, 1") < body["wait"].rindex("may_sleep")
