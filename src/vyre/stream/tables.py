"""Lays a plan out as the tables that the pump reads: files, runs of chunks with their pieces, memory, frames.

Owns: the memory of the tables, and the translation of a source and its plan into them. Leaves to others: the words
(frames), which rung (plan), who reads them (pump).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vyre.errors import StreamError
from vyre.ring.memory import Region
from vyre.stream import frames as f
from vyre.stream.plan import DEPTH_BYTES, DEPTH_READS, Plan, Rung
from vyre.stream.pool import PAGE, Buffer, Pool
from vyre.stream.source import File, Piece, Run, Source

READ_BYTES_MAX: Final = 4 << 20  # a longer piece is read in parts, several at once
OUTSTANDING_MAX: Final = 64  # frames of a consumer who is only told: bounds chunks when no memory does
RUNS_AT_ONCE: Final = 256  # what is laid out before the pump starts; the rest while it reads
NUMBER_OF: Final = {
    Rung.DIRECT_REGISTERED: f.DIRECT_REGISTERED,
    Rung.DIRECT: f.DIRECT,
    Rung.BUFFERED: f.BUFFERED,
    Rung.PREAD: f.PREAD,
    Rung.HOT: f.HOT,
    Rung.MEMORY: f.MEMORY,
}
RUNG_OF: Final = tuple(NUMBER_OF)
assert tuple(NUMBER_OF.values()) == tuple(range(f.RUNGS)), "RUNG_OF is indexed by number"


class FramePlace(NamedTuple):
    """Where an engine has words for one chunk: addresses, see frames.py. ``slot`` is 0 for a consumer who is told."""

    slot: int
    origin: int
    elements: int
    inputs: int


class Field(NamedTuple):
    """An input of the engine's: the strip that it lies in, and what its descriptor says above the kind, about rows."""

    strip: str
    layout: int


class Publish(NamedTuple):
    """Where full chunks are published: addresses of a ring's control block and its session block, workers to wake."""

    ring: int
    session: int
    bell: int
    waiters: int
    wake: int


class Tables:
    """Everything that a pump reads and writes, in memory that lives as long as this object.

    Attributes:
        address: of the pump block.
        words: u64 view of the pump block.
        chunks: of the whole source, once ``lay_out`` has said that it is complete.
        files: by number.
        frame_count: frames.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        pool: Pool,
        requests: int,
        publish: Publish | None,
        places: Sequence[FramePlace] | None,
        copiers: int,
        fields: Sequence[Field] | None = None,
    ) -> None:
        self._source = source
        self._plan = plan
        self._fields = [Field(name, 0) for name in source.strips] if fields is None else list(fields)
        self._inputs: dict[str, list[int]] = {name: [] for name in source.strips}
        for at, field in enumerate(self._fields):
            self._inputs[field.strip].append(at)
        self.files = list(dict.fromkeys(decision.file for decision in plan.files))
        self._numbers = {file: at for at, file in enumerate(self.files)}
        self.frame_count = OUTSTANDING_MAX if places is None else len(places)
        self.chunks = 0
        self.complete = False
        self._runs_left: Iterator[Run] = source.runs(plan.chunk_elements)
        self.buffers = _lend(pool, plan, self._frame_bytes(source, plan))
        self._reserve(requests, source)
        self._write_block(plan, requests, publish, copiers)
        self._write_files()
        self._write_frames(places)
        self._write_stacks(requests)
        self.lay_out(RUNS_AT_ONCE)

    @staticmethod
    def _frame_bytes(source: Source, plan: Plan) -> int:
        """Bytes of memory that a chunk needs at most; 0 when workers read everything where it lies."""
        cold = 0 if plan.all_hot else plan.frame_bytes
        joined = {name for name, strip in source.strips.items() if len(strip.segments) > 1}
        if not plan.all_hot:
            joined = {name for name in joined if not source.files[name]}  # frame_bytes has room for strips of files
        if not joined:
            return cold
        # Chunks that cross the ends of files or arrays are put together in memory; they are few and short.
        found = 0
        for run in source.runs(plan.chunk_elements):
            if run.chunks == 1:
                split = [name for name in joined if len(source.pieces(name, run.first, run.count)) > 1]
                widths = [run.count * source.strips[name].width for name in split]
                found = max(found, sum(-(-width // PAGE) * PAGE + 2 * PAGE for width in widths))
        return cold + found

    def _reserve(self, requests: int, source: Source) -> None:
        """Set aside every table. A page that nobody touches costs nothing, so the bounds may be generous."""
        cuts = sum(max(0, len(strip.segments) - 1) for strip in source.strips.values())
        runs = 3 * cuts + 2
        pieces = runs * max(len(source.strips), len(self._fields)) + 2 * cuts
        queue = 1 << (requests - 1).bit_length()
        sizes = {
            "pump": f.PUMP_BYTES,
            "frames": f.FRAME_BYTES * self.frame_count,
            "descriptors": 64 * self.frame_count + 32 * len(self._fields) * self.frame_count,
            "files": f.FILE_BYTES * max(1, len(self.files)),
            "requests": f.REQUEST_BYTES * requests,
            "request_stack": 8 * requests,
            "queue": 8 * queue,
            "buffers": 24 * max(1, len(self.buffers)),
            "timespec": 64,
            "runs": f.RUN_BYTES * runs,
            "pieces": f.PIECE_BYTES * pieces,
        }
        self._at: dict[str, int] = {}
        total = 0
        for name, size in sizes.items():
            self._at[name] = total
            total += -(-size // 64) * 64
        self._region = Region(total)
        self.address = self._region.address
        self._words = self._region.words
        self.words = self._words[: f.PUMP_BYTES // 8]
        self._queue = queue
        self._run_at = self._at["runs"] // 8
        self._piece_at = self._at["pieces"] // 8
        self._runs_end = self._run_at + f.RUN_BYTES * runs // 8

    def _address(self, table: str) -> int:
        return self.address + self._at[table]

    def _write_block(self, plan: Plan, requests: int, publish: Publish | None, copiers: int) -> None:
        words = self.words
        constants = {
            f.P_MODE: f.SIGNAL if publish is None else f.PUBLISH,
            f.P_RING: publish.ring if publish else 0,
            f.P_SESSION: publish.session if publish else 0,
            f.P_BELL: publish.bell if publish else self.address + f.P_OWN_BELL,
            f.P_WAITERS: publish.waiters if publish else self.address + f.P_OWN_WAITERS,
            f.P_WAKE: publish.wake if publish else 0,
            f.P_FRAMES: self._address("frames"),
            f.P_FRAME_COUNT: self.frame_count,
            f.P_FILES: self._address("files"),
            f.P_RUNS: self._address("runs"),
            f.P_CHUNKS: f.NONE,
            f.P_REQUESTS: self._address("request_stack"),
            f.P_QUEUE: self._address("queue"),
            f.P_QUEUE_MASK: self._queue - 1,
            f.P_BUFFERS: self._address("buffers"),
            f.P_DEPTH_BYTES: DEPTH_BYTES,
            f.P_DEPTH_READS: DEPTH_READS,
            f.P_LOADING_MAX: max(1, plan.chunks_in_flight),
            f.P_READ_BYTES: READ_BYTES_MAX,
            f.P_CACHED_RUNG: f.PREAD,
            f.P_DEMOTES: int(plan.io == "auto"),
            f.P_COPIERS: copiers,
            f.P_URING: f.NONE,
            f.P_TIMESPEC: self._address("timespec"),
        }
        for place, value in constants.items():
            words[place // 8] = value
        timespec = self._at["timespec"] // 8
        # io_uring_getevents_arg: sigmask, its size and min_wait, address of a timespec, which follows
        self._words[timespec + 2] = self._address("timespec") + 24

    def _write_files(self) -> None:
        at = self._at["files"] // 8
        for file in self.files:
            direct = self._plan.rung(file).is_direct
            row = (file.fd, max(0, file.direct_fd), file.align if direct else 1, NUMBER_OF[self._plan.rung(file)], 0, 0)
            self._words[at : at + len(row)] = memoryview(array("Q", row))
            at += f.FILE_BYTES // 8

    def set_rung(self, file: File, rung: Rung) -> None:
        """Take another way for a file. Only before the pump starts."""
        at = self._at["files"] + f.FILE_BYTES * self._numbers[file]
        self._words[(at + f.L_RUNG) // 8] = NUMBER_OF[rung]

    def demoted(self, file: File) -> tuple[int, int]:
        """(errno, offset) of the direct read that made the pump take another way for a file; (0, 0) when none did."""
        at = self._at["files"] + f.FILE_BYTES * self._numbers[file]
        return self._words[(at + f.L_DEMOTED) // 8], self._words[(at + f.L_DEMOTED_AT) // 8]

    def _write_frames(self, places: Sequence[FramePlace] | None) -> None:
        columns = len(self._fields)
        size = 64 + 32 * columns
        for number in range(self.frame_count):
            own = self._address("descriptors") + size * number
            place = FramePlace(0, own, own + 8, own + 64) if places is None else places[number]
            at = (self._at["frames"] + f.FRAME_BYTES * number + f.F_SLOT) // 8
            self._words[at : at + 4] = memoryview(array("Q", place))

    def frame_words(self, number: int) -> memoryview:
        """u64 view of a frame."""
        at = (self._at["frames"] + f.FRAME_BYTES * number) // 8
        return self._words[at : at + f.FRAME_BYTES // 8]

    def word_at(self, address: int) -> int:
        """A word of these tables by its address."""
        return self._words[(address - self.address) // 8]

    def _write_stacks(self, requests: int) -> None:
        words, at = self._words, self._at["request_stack"] // 8
        first = self._address("requests")
        addresses = range(first + f.REQUEST_BYTES * (requests - 1), first - 1, -f.REQUEST_BYTES)
        words[at : at + requests] = memoryview(array("Q", addresses))
        self.words[f.P_FREE_REQUESTS // 8] = requests
        count = len(self.buffers)
        stack = self._at["buffers"] // 8
        pairs = stack + count
        for number, buffer in enumerate(self.buffers):
            words[pairs + 2 * number] = buffer.address
            words[pairs + 2 * number + 1] = buffer.piece
            words[stack + number] = self._address("buffers") + 8 * count + 16 * number
        self.words[f.P_FREE_BUFFERS // 8] = count

    # --- runs -------------------------------------------------------------------------------------------------------

    def lay_out(self, most: int) -> bool:
        """Lay out up to ``most`` more runs; the pump may be reading meanwhile. True when that were the last ones."""
        words = self._words
        while most > 0:
            run = next(self._runs_left, None)
            if run is None:
                self.complete = True
                self.words[f.P_CHUNKS // 8] = self.chunks
                break
            assert self._run_at < self._runs_end, "more runs than the cuts of the files can make"
            first_piece = self._piece_at
            needs = 0
            self._place = 0
            for name, inputs in self._inputs.items():
                if inputs:
                    needs |= self._lay_strip(run, name, inputs[0])
                for other in inputs[1:]:
                    self._piece(f.ALIAS, other, 0, inputs[0], 0, 0, 0, self._fields[other].layout)
            pieces = (self._piece_at - first_piece) // (f.PIECE_BYTES // 8)
            row = (run.first, run.count, run.chunks, self.address + 8 * first_piece, pieces, needs)
            words[self._run_at : self._run_at + len(row)] = memoryview(array("Q", row))
            self._run_at += f.RUN_BYTES // 8
            self.chunks += run.chunks
            # Pairs with the acquire in begin: the run and its pieces. A plain store is a release on x86-64.
            self.words[f.P_RUN_COUNT // 8] += 1
            most -= 1
        return self.complete

    def _lay_strip(self, run: Run, name: str, column: int) -> int:
        """Write the pieces of one strip of a run's first chunk. 1 when something is read into the pool."""
        layout = self._fields[column].layout
        pieces = self._source.pieces(name, run.first, run.count)
        step = 0
        if run.chunks > 1:
            (piece,) = pieces
            (following,) = self._source.pieces(name, run.first + run.count, run.count)
            step = following.offset - piece.offset if piece.file is not None else following.address - piece.address
        if len(pieces) == 1:
            (piece,) = pieces
            if piece.file is None:
                self._piece(f.IN_MEMORY, column, 0, piece.address, step, piece.bytes, 0, f.STARTS | layout)
                return 0
            if self._plan.rung(piece.file) is Rung.HOT:
                number = self._numbers[piece.file]
                self._piece(f.IN_FILE, column, number, piece.offset, step, piece.bytes, 0, f.STARTS | layout)
                return 0
        base = place = self._place
        for at, piece in enumerate(pieces):
            how = (f.STARTS if at == 0 else 0) | layout
            if piece.file is None:
                self._piece(f.TO_COPY, column, 0, piece.address, step, piece.bytes, place, how)
            else:
                if len(pieces) > 1:
                    how |= _exact(piece, place, at + 1 == len(pieces))
                number = self._numbers[piece.file]
                self._piece(f.TO_READ, column, number, piece.offset, step, piece.bytes, place, how)
            place += piece.bytes
        # Room for a block before and one behind, whatever the alignment of each chunk.
        self._place = base + -(-(place - base) // PAGE) * PAGE + 2 * PAGE
        return 1

    def _piece(self, *row: int) -> None:
        kind, column, file, offset, step, size, place, how = row
        self._words[self._piece_at : self._piece_at + 8] = memoryview(
            array("Q", (kind, column, file, offset, step & f.NONE, size, place, how))
        )
        self._piece_at += f.PIECE_BYTES // 8


def _exact(piece: Piece, place: int, last: bool) -> int:
    """Whether whole blocks cannot be read where this piece of several goes."""
    align = piece.file.align if piece.file is not None else 0
    fits = align and piece.offset % align == place % align == 0 and (last or piece.bytes % align == 0)
    return 0 if fits else f.EXACT


def _lend(pool: Pool, plan: Plan, frame_bytes: int) -> list[Buffer]:
    """All the buffers that the pump will have, each as large as the largest chunk."""
    if not frame_bytes:
        return []
    wanted = min(plan.buffers, 2 * OUTSTANDING_MAX)
    pool.reserve(wanted * frame_bytes)
    buffers: list[Buffer] = []
    while len(buffers) < wanted:
        buffer = pool.lend(frame_bytes)
        if buffer is None:
            break
        buffers.append(buffer)
    if not buffers:
        raise StreamError(
            f"a chunk needs {frame_bytes} bytes in one piece, which a pool of {pool.limit} bytes does not have",
            fix="a shorter chunk, or a larger pool_bytes",
        )
    return buffers
