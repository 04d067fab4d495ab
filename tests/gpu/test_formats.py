"""Columns of every format through the resident kernel, and streams under asyncio. Needs a device."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import vyre
from vyre.errors import ProgramFault, StreamError

try:
    _session = vyre.open("cuda", pool_bytes=32 << 20)
except vyre.EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)

pa = pytest.importorskip("pyarrow")

N = 700_001
IO = ["auto", "hot", "pread", "mapped"]


@vyre.program
def worth(price: vyre.f64, size: vyre.i32) -> vyre.f64:
    vyre.sum(total=price * size)
    return price * size


@pytest.fixture(scope="module")
def session():
    yield _session
    _session.close()


@pytest.fixture(scope="module")
def reference():
    with vyre.open("cpu") as found:
        yield found


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    return pa.table({"size": rng.integers(0, 99, N).astype("i4"), "price": rng.random(N)})


@pytest.fixture(scope="module")
def right(reference, table):
    found = reference.run(worth, price=table["price"].to_numpy(), size=table["size"].to_numpy())
    return found.value.tobytes(), found["total"]


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("chunk", [None, 10_000])
def test_fields_of_rows_give_the_bits_of_the_same_arrays(session, table, right, tmp_path, io, chunk):
    rows = np.zeros(N, [("odd", "u1"), ("price", "f8"), ("size", "i4"), ("tail", "u1", (3,))])
    rows["price"], rows["size"] = table["price"].to_numpy(), table["size"].to_numpy()
    np.save(tmp_path / "rows.npy", rows)
    try:
        found = session.run(worth, tmp_path / "rows.npy", io=io, chunk=chunk)
    except StreamError:
        if io != "mapped":  # which may be refused, with the reason
            raise
        return
    assert (found.value.tobytes(), found["total"]) == right
    assert found.report.copies == {"fields taken out of rows": 12 * N}


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("batch", [N, 65_536, 10_001])
def test_columns_of_an_arrow_file_in_batches_give_the_bits_of_the_same_arrays(
    session, table, right, tmp_path, io, batch
):
    with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    try:
        found = session.run(worth, tmp_path / "t.arrow", io=io)
    except StreamError:
        if io != "mapped":
            raise
        return
    assert (found.value.tobytes(), found["total"]) == right


@pytest.mark.parametrize("chunk", [N, 65_536, 10_001])
def test_tables_in_memory_in_chunks_give_the_bits_of_the_same_arrays(session, table, right, chunk):
    chunked = pa.Table.from_batches(table.to_batches(max_chunksize=chunk))
    found = session.run(worth, chunked)
    assert (found.value.tobytes(), found["total"]) == right


def test_parts_and_totals_under_asyncio_are_those_of_a_plain_loop(session, table, right, tmp_path):
    with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table)

    async def main():
        async with session.stream(worth, tmp_path / "t.arrow", chunk=50_000) as stream:
            parts = [part.value.copy() async for part in stream]
            return np.concatenate(parts).tobytes(), stream.total()["total"]

    assert asyncio.run(main()) == right


def test_cancelling_a_task_ends_its_stream_and_the_session_goes_on(session, right, table, tmp_path):
    with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table)
    streams = []

    async def consume():
        while True:
            streams.append(session.stream(worth, tmp_path / "t.arrow", chunk=50_000))
            async for _ in streams[-1]:
                pass

    async def main():
        task = asyncio.ensure_future(consume())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert streams
    assert all(stream._closed for stream in streams)
    assert session.run(worth, table)["total"] == right[1]


def test_a_fault_over_rows_names_its_element_and_its_values(session, tmp_path):
    rows = np.ones((30_000, 3), "i4")
    rows[20_002, 1] = 0
    np.save(tmp_path / "k.npy", rows)
    with pytest.raises(ProgramFault) as caught:
        session.run(vyre.expression("7//k", types={"k": "i32"}), k=vyre.column(tmp_path / "k.npy", 1), chunk=4_096)
    assert caught.value.fault.element == 20_002
