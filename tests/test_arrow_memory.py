"""Tables in memory that speak Arrow's C stream: columns bound by name, where they lie, or refused with the cast."""

from __future__ import annotations

import decimal
import subprocess
import sys

import numpy as np
import pytest

import vyre
from vyre.errors import BindError

pa = pytest.importorskip("pyarrow")

COUNT = 5_000
PRICE = np.random.default_rng(1).random(COUNT)
SIZE = np.random.default_rng(2).integers(0, 99, COUNT).astype("i4")


@vyre.program
def worth(price: vyre.f64, size: vyre.i32) -> vyre.f64:
    vyre.sum(total=price * size)
    return price * size


keep = vyre.expression("x", types={"x": "f64"})


@pytest.fixture(scope="module")
def session():
    with vyre.open("cpu") as found:
        yield found


def arrow_table():
    return pa.table({"size": SIZE, "name": ["a"] * COUNT, "price": PRICE})


def chunked_table():
    return pa.Table.from_batches(arrow_table().to_batches(max_chunksize=777))


def polars_frame():
    return pytest.importorskip("polars").from_arrow(arrow_table())


def polars_chunked():
    pl = pytest.importorskip("polars")
    return pl.concat([pl.from_arrow(arrow_table()[:2_000]), pl.from_arrow(arrow_table()[2_000:])], rechunk=False)


def duckdb_relation():
    duckdb = pytest.importorskip("duckdb")
    trades = arrow_table()  # DuckDB finds it by its name
    assert trades is not None
    return duckdb.sql("select price, size from trades")


def pandas_frame():
    return pytest.importorskip("pandas").DataFrame({"size": SIZE, "price": PRICE, "name": "a"})


def pandas_arrow():
    pd = pytest.importorskip("pandas")
    frame = pandas_frame()
    return frame.assign(price=frame["price"].astype(pd.ArrowDtype(pa.float64())), size=frame["size"].astype("Int32"))


TABLES = [arrow_table, chunked_table, polars_frame, polars_chunked, duckdb_relation, pandas_frame, pandas_arrow]


@pytest.mark.parametrize("make", TABLES)
def test_the_columns_of_a_table_are_bound_by_name_and_give_the_bits_of_the_same_arrays(session, make):
    right = session.run(worth, price=PRICE, size=SIZE)
    found = session.run(worth, make())
    assert found.value.tobytes() == right.value.tobytes()
    assert found["total"] == right["total"]
    assert np.concatenate([part.value for part in session.stream(worth, make())]).tobytes() == right.value.tobytes()
    assert session.submit(worth, make()).result().value.tobytes() == right.value.tobytes()
    out = np.empty(COUNT)
    session.run(worth, make(), out=out)
    assert out.tobytes() == right.value.tobytes()


@pytest.mark.parametrize("make", [arrow_table, chunked_table, polars_frame, polars_chunked, pandas_frame])
def test_a_series_is_bound_as_an_array_is(session, make):
    table = make()
    found = session.run(worth, price=table["price"], size=SIZE)
    assert found.value.tobytes() == (PRICE * SIZE).tobytes()
    assert session.run(worth, {"price": table["price"]}, size=table["size"])["total"] == found["total"]


@pytest.mark.parametrize("make", [arrow_table, chunked_table, polars_frame, polars_chunked, pandas_frame])
def test_columns_are_read_where_they_lie_without_a_copy(session, make):
    report = session.run(worth, make()).report
    assert not [note for note in report.notes if "copied" in note], report.notes
    if make is chunked_table:
        assert 0 < report.copies["joined at the ends of arrays"] <= 12 * 1_024 * 7  # a tile where two chunks meet
    else:
        assert sum(report.copies.values()) <= 12 * 1_024
    assert report.bytes_by_way == {"in memory": 12 * COUNT}


def test_a_slice_of_a_table_starts_where_it_starts(session):
    found = session.run(worth, arrow_table()[3:4_000])
    assert found.value.tobytes() == (PRICE * SIZE)[3:4_000].tobytes()
    assert session.run(worth, arrow_table()[:0]).value.size == 0


def test_bits_are_unpacked_by_one_copy_that_the_notes_count(session):
    flag = SIZE > 50
    both = vyre.expression("where(flag, x, 0)", types={"flag": "bool", "x": "f64"})
    found = session.run(both, pa.table({"flag": flag, "x": PRICE}))
    assert found.value.tobytes() == np.where(flag, PRICE, 0.0).tobytes()
    assert any("5,000 bytes copied once, because Arrow packs bool" in note for note in found.report.notes)


def test_days_are_bound_as_the_integers_that_they_are(session):
    days = np.array(["1994-01-01", "1995-01-01"], "M8[D]")
    found = session.run(vyre.expression("day", types={"day": "i32"}), pa.table({"day": days}))
    assert found.value.tolist() == [8766, 9131]
    assert any("date32[day] as the i32" in note for note in found.report.notes)


def test_nulls_and_types_that_memory_cannot_hold_are_refused_with_the_cast(session):
    for column, words in [
        (pa.array([1.0, None]), r"[12] nulls.*\n.*fill_null"),
        (pa.array([decimal.Decimal("1.10")]), r"no decimals\n.*cast"),
        (pa.array(["a"]), "no number"),
        (pa.array([1.5]).dictionary_encode(), r"dictionary.*\n.*cast"),
        (pa.array([1], pa.int16()), r"i16|int16"),
    ]:
        for give in (pa.table({"x": column}), {"x": column}, {"x": pa.chunked_array([column, column])}):
            with pytest.raises(BindError, match=words):
                session.run(keep, give)
    with pytest.raises(BindError, match=r"no column 'x'; it has price\n.*rename"):
        session.run(keep, pa.table({"price": [1.0]}))
    pl = pytest.importorskip("polars")
    for give in (pl.DataFrame({"x": [1.0, None]}), {"x": pl.Series([1.0, None])}):
        with pytest.raises(BindError, match="1 nulls"):
            session.run(keep, give)


def test_nan_in_a_pandas_column_is_a_number_and_no_null(session):
    pd = pytest.importorskip("pandas")
    values = np.array([1.0, np.nan, 3.0])
    assert np.array_equal(session.run(keep, pd.DataFrame({"x": values})).value, values, equal_nan=True)
    with pytest.raises(BindError, match="1 nulls"):
        session.run(keep, pd.DataFrame({"x": pd.array([1.0, None, 3.0], dtype="Float64")}))


def test_a_formula_takes_series_of_polars(session):
    frame = polars_frame()
    assert (
        session.evaluate("price*size", {"price": frame["price"], "size": frame["size"]}).tobytes()
        == (PRICE * SIZE).tobytes()
    )


def test_without_pyarrow_the_extra_is_named():
    pytest.importorskip("polars")
    script = """
import sys; sys.modules["pyarrow"] = None
import polars, vyre
vyre.run(vyre.expression("x", types={"x": "f64"}), polars.DataFrame({"x": [1.0]}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "the DataFrame needs pyarrow" in done.stderr
    assert "pip install 'vyre-runtime[arrow]'" in done.stderr


class Once:
    """A series whose stream can be had once, as those of some libraries can."""

    def __init__(self, array):
        self._arrays = [array]

    def __arrow_c_stream__(self, requested_schema=None):
        return self._arrays.pop().__arrow_c_stream__(requested_schema)


def test_a_series_whose_stream_can_be_had_once_is_asked_once(session):
    for column in (pa.chunked_array([PRICE]), chunked_table()["price"]):
        assert session.run(keep, x=Once(column)).value.tobytes() == PRICE.tobytes()
        assert session.submit(keep, x=Once(column)).result().value.tobytes() == PRICE.tobytes()
        with session.stream(keep, x=Once(column)) as stream:
            assert np.concatenate([part.value for part in stream]).tobytes() == PRICE.tobytes()
