"""Where the pump keeps what it knows, word by word, and what a consumer of its chunks has to do.

The pump (pump.py, native functions) brings the chunks of a source into memory of a pool and hands them over. It knows no
program and no GPU. Whoever drives it (reader.py) lays out tables once, before the first byte: files, *runs* of chunks,
memory, and *frames*. A frame is a place for one chunk: chunk ``i`` is always in frame ``i % frames``, so whoever wants
chunks in order looks at one word after the other, and a chunk waits while its frame is not free.

**What a consumer does.** Every frame has F_STATE, a u32 with one writer at a time::

    FREE -> LOADING -> FULL ---------------> RETURNED -> FREE      SIGNAL: memory is filled, the word says so
                    -> PUBLISHED -> DONE --> RETURNED -> FREE      PUBLISH: a slot goes into a ring, its record comes back
                    -> FAILED -------------> RETURNED -> FREE      a read failed: F_ERROR and its like say which

- *SIGNAL* is for engines that the pump does not know. The consumer waits for FULL (load with acquire order), finds the
  operands of the chunk in the frame's descriptors, and calls ``give_back(pump, frame)`` once nobody reads the memory any
  more: that is the back-pressure.
- *PUBLISH* is for engines that poll a ring of vyre.ring.layout. Each frame brings a slot (the template given at open)
  and a binding whose words the pump fills in; the pump publishes, reads the record, lends the chunk's memory again at
  once, and sets DONE. The record is copied to F_RECORD. The consumer takes results in order and calls ``give_back``.
  After a FAULT the chunk's memory stays as it is until then.

Descriptors of a frame are at F_INPUTS, one of 32 bytes for each column, in the form that bindings have:
``{kind, address or fd, byte offset, 0}`` (OperandKind MEMORY or FILE; above its low byte the kind's word has what the
engine wants to know about rows, see ``tables.Field``). F_ORIGIN and F_ELEMENTS are addresses of the words
that take the first element and the count. They may lie in a binding that a worker reads, or in memory of the consumer.

Waiting: P_BELL and P_WAITERS are addresses of a futex word and a count, those of the engine's session block in PUBLISH
mode, own ones in SIGNAL mode. Whoever waits announces himself, looks once more, and sleeps; whoever changes a state looks
at the count afterwards (``ring_bell``).

**Where memory comes from.** A Pool (pool.py): ``pool.reserve(bytes)`` maps and faults it, ``pool.pieces()`` is what to
register, with io_uring and, before a kernel is resident, with CUDA. The pump lends buffers of one size out of it and
never more: host memory is the pool's size, whatever the file's.

**Blocking reads.** Requests of the PREAD rung go through a queue, from which the pump and any number of copier threads
(``copier_loop``) take them: a page cache is copied at 4 to 5 GB/s a core, several cores copy more.

**Stopping.** P_STOP := 1 and ``ring_bell``: reads in flight are cancelled and waited for, published items are asked to end
and collected; then P_STATE is ENDED, or DIRTY when the operating system may still write: the pool is retired then.

Nothing here stores a pointer to a Python object. Addresses are of memory that the reader holds; a helper process could
have the same tables in shared memory, with addresses of its own.
"""

from __future__ import annotations

from typing import Final

from vyre.ring.layout import RECORD_BYTES

# --- frame states -----------------------------------------------------------------------------------------------------
FREE: Final = 0  # the pump's: nothing is in it
RETURNED: Final = 1  # the pump's: the consumer has given it back
LOADING: Final = 2  # the pump's: reads are out
LOADED: Final = 3  # the pump's: to be published once the ring has room
PUBLISHED: Final = 4  # the engine's
DONE: Final = 5  # the consumer's: F_RECORD says how it went
FULL: Final = 6  # the consumer's: descriptors name memory that is filled
FAILED: Final = 7  # the consumer's: F_ERROR says why
assert min(DONE, FULL, FAILED) == DONE > max(RETURNED, PUBLISHED), "a consumer waits for a state >= DONE"

# --- what the pump does with a full chunk -----------------------------------------------------------------------------
SIGNAL: Final = 0
PUBLISH: Final = 1

# --- ways in, as numbers ------------------------------------------------------------------------------------------------
DIRECT_REGISTERED: Final = 0
DIRECT: Final = 1
BUFFERED: Final = 2
PREAD: Final = 3
HOT: Final = 4
MEMORY: Final = 5
RUNGS: Final = 6  # tables.py says which of plan.Rung they are
NONE: Final = 0xFFFF_FFFF_FFFF_FFFF

# --- pump block: constants, written before the pump starts --------------------------------------------------------------
P_MODE: Final = 0  # u64: SIGNAL or PUBLISH
P_RING: Final = 8  # u64: address of the ring's control block
P_SESSION: Final = 16  # u64: address of the session block, 0 in SIGNAL mode
P_BELL: Final = 24  # u64: address of a u32 futex
P_WAITERS: Final = 32  # u64: address of a u32: threads that sleep on it or are about to
P_WAKE: Final = 40  # u64: workers to wake when a slot was published
P_FRAMES: Final = 48  # u64: address of the frames
P_FRAME_COUNT: Final = 56
P_FILES: Final = 64  # u64: address of the files
P_RUNS: Final = 72  # u64: address of the runs
P_CHUNKS: Final = 80  # u64: chunks of the whole source
P_REQUESTS: Final = 88  # u64: address of u64[], a stack of requests that are free
P_QUEUE: Final = 96  # u64: address of u64[], requests for blocking reads
P_QUEUE_MASK: Final = 104
P_BUFFERS: Final = 112  # u64: address of u64[], a stack of buffers that are free: addresses of {address, index}
P_DEPTH_BYTES: Final = 120  # u64: in flight at least
P_DEPTH_READS: Final = 128
P_LOADING_MAX: Final = 136  # u64: chunks being read at a time, at most
P_READ_BYTES: Final = 144  # u64: longest request
P_CACHED_RUNG: Final = 152  # u64: how a page cache is read: BUFFERED, or PREAD where there is no io_uring
P_DEMOTES: Final = 160  # u64: 1 when a direct read that is refused may go through the page cache
P_COPIERS: Final = 168  # u64: copier threads beside the pump
P_URING: Final = 176  # u64: file descriptor of the io_uring, NONE without
P_SQ_HEAD: Final = 184  # u64: addresses of the io_uring's words, its masks and arrays
P_SQ_TAIL: Final = 192
P_SQ_MASK: Final = 200
P_SQES: Final = 208
P_CQ_HEAD: Final = 216
P_CQ_TAIL: Final = 224
P_CQ_MASK: Final = 232
P_CQES: Final = 240
P_TIMESPEC: Final = 248  # u64: address of {argument of io_uring_enter: 24 bytes, timespec: 16 bytes}
# written by the host while the pump runs
P_STOP: Final = 256  # u32: 1 asks the pump to end
P_RUN_COUNT: Final = 264  # u64: runs laid out so far; stored with release, grows until they make P_CHUNKS
# the pump's own
P_NEXT: Final = 320  # u64: index of the chunk that begins next
P_OLDEST: Final = 328  # u64: every frame of a chunk before this one is free again
P_RUN: Final = 336  # u64: number of the run that the next chunk is in
P_RUN_AT: Final = 344  # u64: chunks of it that have begun
P_FREE_REQUESTS: Final = 352  # u64: height of the stack
P_FREE_BUFFERS: Final = 360
P_LAY_FRAME: Final = 368  # u64: frame whose reads are being queued, or 0
P_LAY_RUN: Final = 376
P_LAY_K: Final = 384  # u64: which chunk of the run
P_LAY_PIECE: Final = 392
P_LAY_AT: Final = 400  # u64: bytes of the piece that have requests
P_FLYING: Final = 408  # u64: requests with the io_uring
P_QUEUED: Final = 416  # u64: requests in the queue or with a copier
P_BYTES: Final = 424  # u64: useful bytes of all requests that are out
P_LOADING: Final = 432  # u64: chunks whose reads are out
P_OUT: Final = 440  # u64: chunks with the engine
P_HELD: Final = 448  # u64: 1 while the next chunk waits for a frame or for memory
P_QUEUE_LOW: Final = 456  # u64: entries of the queue below it were completed
P_QUEUE_TAIL: Final = 464  # u64: entries below it may be claimed; stored with release
P_DRAINED: Final = 472  # u64: 1 when the io_uring has completed everything
# counters: the pump writes, anybody reads
P_STATE: Final = 512  # u32: RUNNING, then ENDED or DIRTY; stored with release
P_TAKEN: Final = 520  # u64[RUNGS]: bytes by the way that they took
P_STALLS: Final = 568  # u64: times that a chunk had to wait for a frame or memory: the consumer is behind
P_STALL_NS: Final = 576  # u64: time that the pump slept with a chunk waiting for a frame or memory
P_HUNGRY_NS: Final = 584  # u64: time that the pump slept with reads out and no chunk with the engine
P_FAILED: Final = 592  # u64: errno of io_uring_enter that ended the pump, else 0
P_ENTERS: Final = 600  # u64: calls of io_uring_enter
P_REQUESTED: Final = 608  # u64: requests made, continuations included
P_CPU_NS: Final = 616  # u64: processor time of the pump's thread, stored when it ends
P_COPIED: Final = (
    624  # u64: bytes of memory that were put together because a chunk crosses from one array into the next
)
# copiers
P_QUEUE_HEAD: Final = 640  # u64: next entry to be claimed; moved by compare-and-swap
P_WORK_BELL: Final = 704  # u32 futex: bumped to wake copiers
P_WORK_SLEEPERS: Final = 708  # u32: copiers asleep or about to be
P_LEAVE: Final = 712  # u32, pump: 1 asks copiers to leave
P_OWN_BELL: Final = 768  # u32 futex of SIGNAL mode
P_OWN_WAITERS: Final = 772  # u32
PUMP_BYTES: Final = 832

RUNNING: Final = 0
ENDED: Final = 1
DIRTY: Final = 2

# --- frame --------------------------------------------------------------------------------------------------------------
F_STATE: Final = 0  # u32, see above
F_INDEX: Final = 8  # u64: number of the chunk
F_FIRST: Final = 16  # u64: its first element
F_COUNT: Final = 24  # u64: its elements
F_BUFFER: Final = 32  # u64: address of the buffer's {address, index}, or 0
F_READS: Final = 40  # u64: requests that are out, one more while they are being queued
F_HOT: Final = 48  # u64: bytes that a worker reads itself
F_SEQUENCE: Final = 56  # u64: of the slot
F_ERROR: Final = 64  # u64: errno, or SHRANK; 0 when all is well
F_ERROR_FILE: Final = 72  # u64: number of the file
F_ERROR_OFFSET: Final = 80  # u64: in the file
F_ERROR_BYTES: Final = 88  # u64: expected there
F_SLOT: Final = 96  # u64, constant: address of the slot's template; PUBLISH only
F_ORIGIN: Final = 104  # u64, constant: address of the u64 that takes the first element
F_ELEMENTS: Final = 112  # u64, constant: address of the u64 that takes the count
F_INPUTS: Final = 120  # u64, constant: address of a descriptor of 32 bytes for each column
F_RECORD: Final = 128  # the completion record; PUBLISH only
FRAME_BYTES: Final = F_RECORD + RECORD_BYTES
SHRANK: Final = 1 << 32  # as F_ERROR: the file ended early

# --- file ---------------------------------------------------------------------------------------------------------------
L_FD: Final = 0  # u64: descriptor for the page cache
L_DIRECT_FD: Final = 8  # u64: descriptor with O_DIRECT
L_ALIGN: Final = 16  # u64: direct reads are widened to this; 1 when there are none
L_RUNG: Final = 24  # u64: the way that is taken now
L_DEMOTED: Final = 32  # u64, pump: errno of the read that made it take another way, 0 when none did
L_DEMOTED_AT: Final = 40  # u64, pump: where
FILE_BYTES: Final = 64

# --- run: chunks of one length whose pieces follow each other -------------------------------------------------------------
R_FIRST: Final = 0  # u64: first element
R_COUNT: Final = 8  # u64: elements of each chunk
R_CHUNKS: Final = 16
R_PIECES: Final = 24  # u64: address of the pieces of the first chunk
R_PIECE_COUNT: Final = 32
R_NEEDS: Final = 40  # u64: 1 when something is read into memory of the pool
RUN_BYTES: Final = 64

# --- piece: bytes of one column of a chunk that lie together ----------------------------------------------------------------
K_KIND: Final = 0  # u64: IN_MEMORY, IN_FILE, TO_READ, TO_COPY or ALIAS
K_COLUMN: Final = 8
K_FILE: Final = 16  # u64: number of the file
K_OFFSET: Final = 24  # u64: in the file; in memory: address
K_STEP: Final = 32  # u64: how much further the next chunk's lies
K_SIZE: Final = 40  # u64: bytes
K_PLACE: Final = 48  # u64: where it goes in the chunk's buffer
K_HOW: Final = 56  # u64: STARTS, EXACT; above them what the first word of the descriptor has beside its kind
PIECE_BYTES: Final = 64
IN_MEMORY: Final = 0
IN_FILE: Final = 1  # left to the worker
TO_READ: Final = 2
ALIAS: Final = 4  # the bytes of input K_OFFSET, seen as another field of the same rows
TO_COPY: Final = 3  # memory that is joined with its neighbours; K_OFFSET is an address
STARTS: Final = 1  # it begins its column
HOW_MASK: Final = 0xFF  # the rest of K_HOW goes into the descriptor as it is
EXACT: Final = 2  # its neighbours in memory are other pieces: a read must not be widened

# --- request: one read that is out ------------------------------------------------------------------------------------------
Q_FRAME: Final = 0
Q_FILE: Final = 8  # u64: address of the file
Q_RUNG: Final = 16
Q_ADDRESS: Final = 24
Q_OFFSET: Final = 32
Q_LENGTH: Final = 40  # u64: bytes asked for
Q_WANTED: Final = 48  # u64: bytes that must come
Q_USEFUL: Final = 56  # u64: of those, bytes of the column
Q_AT: Final = 64  # u64: bytes that have arrived
Q_INDEX: Final = 72  # u64: registered buffer
Q_PIECE: Final = 80  # u64: offset of the piece in the file
Q_PIECE_SIZE: Final = 88
Q_RESULT: Final = 96  # u64, copier: errno, SHRANK or 0
Q_DONE: Final = 104  # u32, copier: 1 when the read has ended; stored with release
REQUEST_BYTES: Final = 128
