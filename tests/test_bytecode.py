"""Behaviours 22 and 37 (the key's part): any byte changed, any length cut, with the digests as they are and made anew."""

import random
import struct
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest

import vir_files
from vyre.errors import BytecodeError, VerifyError
from vyre.program import bytecode, text
from vyre.program.bytecode import SECTIONS, decode, encode, identity
from vyre.program.ir import Instr, Program
from vyre.program.verifier import verify

PROGRAMS = {path.stem: vir_files.read(path) for path in vir_files.paths()}
VALID = {name: file.program for name, file in PROGRAMS.items() if file.program}
HEADER, START = 64, 64 + 24 * len(SECTIONS)

EVERYTHING = text.parse(
    """
    program everything
    fuel 77
    input x f32
    input größe i64
    param k f64 = 2.5
    param n i32
    table t u8 read
    table u u64 atomic
    output y bf16
    accumulator total sum f64
    accumulator h histogram i64 256
    emit row i64
        f32.load r0, x
        f32.store y, r0
        f64.param r1, k
        f64.acc_sum total, r1
        i32.param r2, n
        i64.load r3, größe
        i32.table_get r4, t, r3
        loop
            i64.const r5, 5
            i64.table_add u, r3, r5
            i32.const r6, 0
            br_if r6
        end
        if r2
            i64.emit row, r3
        else
            acc_histogram h, r4
        end
        return
    """,
    "everything.vir",
)


def sealed(data):
    """The file with both digests made anew, as somebody would who wants to be believed."""
    data = bytearray(data)
    ends = [struct.unpack_from("<QQ", data, HEADER + 24 * i + 8) for i in range(len(SECTIONS))]
    names_at = min(ends[4][0], len(data))
    data[24:56] = blake2b(data[START:names_at], digest_size=32, person=b"VIR0").digest()
    data[56:64] = blake2b(data[names_at:], digest_size=8, person=b"VIR0").digest()
    return bytes(data)


def judged(data):
    """What becomes of a file: "refused", "invalid" or the program. Any other exception is a crash."""
    try:
        program = decode(data)
    except BytecodeError as error:
        return "refused" if str(error) else "silent"
    step_by_step = bytecode._explained(data)  # decode asks this only where the quick way finds something wrong
    assert (program, program.lines, program.source) == (step_by_step, step_by_step.lines, step_by_step.source)
    assert (program.packed, identity(program)) == (step_by_step.packed, identity(step_by_step))
    try:
        verify(program)
    except VerifyError as error:
        return "invalid" if str(error) else "silent"
    return program


@pytest.mark.parametrize("program", [EVERYTHING, *VALID.values()], ids=["everything", *VALID])
def test_a_file_gives_its_program_back(program):
    data = encode(program)
    back = decode(data)
    assert back == program
    assert back.lines == program.lines
    assert back.source == program.source
    assert encode(back) == data
    assert all(type(instr) is Instr for instr in back.code)
    assert repr(back) == repr(program)
    assert len(data) % 8 == 0
    assert verify(back) == verify(program)


def test_any_buffer_is_decoded():
    data = encode(EVERYTHING)
    padded = np.frombuffer(b"\xff" + data, np.uint8)[1:]
    for buffer in (
        bytearray(data),
        memoryview(data),
        padded,
        np.frombuffer(data, np.uint64).reshape(2, -1) if len(data) % 16 == 0 else padded,
    ):
        assert decode(buffer) == EVERYTHING


@pytest.mark.parametrize("what", [None, "text", 7, [1, 2]])
def test_what_is_no_buffer_is_refused(what):
    with pytest.raises(BytecodeError, match="buffer"):
        decode(what)


def test_every_byte_changed_is_refused():
    data = encode(EVERYTHING)
    for at in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[at] ^= change
            assert judged(bytes(changed)) == "refused", f"byte {at} ^ {change:#x}"


def test_every_length_cut_or_extended_is_refused():
    data = encode(EVERYTHING)
    for length in range(len(data)):
        assert judged(data[:length]) == "refused", f"{length} bytes"
        cut = bytearray(data[:length])
        if length >= 24:
            cut[16:24] = struct.pack("<Q", length)
            assert judged(bytes(cut)) == "refused", f"{length} bytes, said so"
            if length >= START:
                assert judged(sealed(cut)) == "refused", f"{length} bytes, said so and sealed"
    for more in (1, 7, 8, 4096):
        assert judged(data + bytes(more)) == "refused"


def test_every_byte_changed_under_new_digests_is_refused_or_another_program():
    data = encode(EVERYTHING)
    outcomes = {"refused": 0, "invalid": 0, "program": 0}
    for at in range(len(data)):
        if 24 <= at < 64:
            continue  # the digests themselves
        for change in (0x01, 0x02, 0x80, 0xFF):
            changed = bytearray(data)
            changed[at] ^= change
            changed = sealed(changed)
            got = judged(changed)
            if isinstance(got, Program):
                assert encode(got) == changed, f"byte {at}: two files of one program"
                assert (got, got.lines, got.source) != (EVERYTHING, EVERYTHING.lines, EVERYTHING.source)
                got = "program"
            outcomes[got] += 1
    assert all(outcomes.values()), outcomes


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_under_new_digests_never_crashes(seed):
    rng = random.Random(seed)
    names = sorted(VALID)
    for _ in range(400):
        data = bytearray(encode(VALID[rng.choice(names)]))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                word = at & ~7
                data[word : word + 8] = struct.pack("<Q", rng.choice((0, 1, 7, 8, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
            elif kind == 2:
                other = rng.randrange(len(data))
                data[at], data[other] = data[other], data[at]
            else:
                data[at] ^= 1 << rng.randrange(8)
        if rng.random() < 0.9:
            data[:24] = encode(EVERYTHING)[:16] + struct.pack("<Q", len(data))
        judged(sealed(data))


def test_random_bytes_are_refused():
    rng = random.Random(5)
    for length in (0, 1, 3, 4, 63, 64, 207, 208, 1000):
        for _ in range(20):
            assert judged(rng.randbytes(length)) == "refused"
            assert judged((b"VIR0" + rng.randbytes(length))[:length]) == "refused"


@pytest.mark.parametrize("version", [(0, 0), (0, 2), (1, 0), (0, 65535)])
def test_another_version_is_refused_with_what_to_do(version):
    data = bytearray(encode(EVERYTHING))
    data[4:8] = struct.pack("<HH", *version)
    with pytest.raises(BytecodeError, match=rf"version {version[0]}\.{version[1]}; (.|\n)*fix: write it again"):
        decode(data)


def test_a_cut_file_says_how_much_is_missing():
    data = encode(EVERYTHING)
    with pytest.raises(BytecodeError, match=f"cut: the header says {len(data)} bytes, the file has 300"):
        decode(data[:300])
    with pytest.raises(BytecodeError, match="no VIR0 file"):
        decode(b"\x7fELF" + bytes(100))


def test_identity_is_of_what_a_program_does_and_not_of_what_it_is_called():
    same = [
        replace(EVERYTHING, name="other"),
        replace(EVERYTHING, source="elsewhere.py"),
        replace(EVERYTHING, lines=()),
        replace(EVERYTHING, inputs=tuple(s._replace(name=f"in{i}") for i, s in enumerate(EVERYTHING.inputs))),
        replace(
            EVERYTHING, accumulators=tuple(a._replace(name=f"a{i}") for i, a in enumerate(EVERYTHING.accumulators))
        ),
    ]
    assert {identity(p) for p in same} == {identity(EVERYTHING)}
    first = EVERYTHING.code[0]
    different = [
        replace(EVERYTHING, fuel=78),
        replace(EVERYTHING, code=(first._replace(dst=1), *EVERYTHING.code[1:])),
        replace(EVERYTHING, constants=(6, *EVERYTHING.constants[1:])),
        replace(EVERYTHING, registers=EVERYTHING.registers[::-1]),
        replace(EVERYTHING, params=(EVERYTHING.params[0]._replace(default=None), EVERYTHING.params[1])),
        replace(EVERYTHING, params=(EVERYTHING.params[0], EVERYTHING.params[1]._replace(default=0))),
        replace(EVERYTHING, inputs=EVERYTHING.inputs[::-1]),
        replace(EVERYTHING, accumulators=(EVERYTHING.accumulators[0], EVERYTHING.accumulators[1]._replace(bins=255))),
        EVERYTHING,
    ]
    assert len({identity(p) for p in different}) == len(different)


def test_the_digest_in_the_file_is_the_identity():
    assert encode(EVERYTHING)[24:56] == identity(EVERYTHING)


def test_a_source_path_that_has_no_utf8_form_or_end_does_not_stop_writing():
    for source in ("\udcff.py", "a\0b.py", "\x1b[31m.py", "x" * 10_000, "ä" * 5_000):
        back = decode(encode(replace(EVERYTHING, source=source)))
        assert back == EVERYTHING
        assert len(back.source.encode()) <= 4096
        assert back.source.isprintable()


def test_a_program_whose_numbers_have_no_room_is_refused_by_encode():
    for changed in ({"fuel": 1 << 40}, {"constants": (-1,)}, {"code": (Instr(1 << 20),)}):
        with pytest.raises(BytecodeError, match="verify it first"):
            encode(replace(EVERYTHING, **changed))


def test_the_header_is_where_the_format_page_says():
    data = encode(EVERYTHING)
    assert data[:4] == b"VIR0"
    assert struct.unpack_from("<HHII", data, 4) == (0, 1, len(SECTIONS), 0)
    assert struct.unpack_from("<Q", data, 16) == (len(data),)
    offset = START
    for number in range(1, len(SECTIONS) + 1):
        entry = struct.unpack_from("<IIQQ", data, HEADER + 24 * (number - 1))
        assert entry[:3] == (number, 0, offset)
        offset += entry[3] + -entry[3] % 8
    assert offset == len(data)
