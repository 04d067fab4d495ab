"""Every file of tests/programs, on every engine that this machine has."""

import numpy as np
import pytest

import vir_files
from vyre.commands.engines import NAMES, executor
from vyre.errors import EngineUnavailable, ListingError, VerifyError
from vyre.program import bytecode, text
from vyre.program.opcodes import Access
from vyre.program.verifier import RULES, verify

FILES = [vir_files.read(path) for path in vir_files.paths()]
VALID = [file for file in FILES if not file.error]
REFUSED = [file for file in FILES if file.error]


def by_name(file):
    return file.path.stem


def raw(array):
    array = np.atleast_1d(np.ascontiguousarray(array))
    return array.view(vir_files.RAW[array.dtype.itemsize])


@pytest.fixture(scope="module", params=NAMES)
def execute(request):
    """Runs one item on an engine; where the engine cannot run, the reason is in the report."""
    try:
        with executor(request.param) as run:
            yield run
    except (EngineUnavailable, NotImplementedError) as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.mark.parametrize("file", VALID, ids=by_name)
def test_program_gives_its_stated_result(execute, file):
    program = file.program
    tables = [table.copy() for table in file.tables]
    verify(program)
    got = execute(program, file.inputs, file.params, tables, file.first, file.count)
    if file.fault:
        assert got.fault is not None, "the item should have trapped"
        assert (got.fault.code, got.fault.pc, got.fault.element) == file.fault
        return
    assert got.fault is None, str(got.fault)
    results = dict(zip((s.name for s in program.outputs), got.outputs, strict=True))
    results |= dict(zip((s.name for s in program.emits), got.emits, strict=True))
    results |= dict(zip((a.name for a in program.accumulators), got.accumulators, strict=True))
    results |= {t.name: array for t, array in zip(program.tables, tables, strict=True) if t.access is Access.atomic}
    assert results.keys() == file.result.keys()
    for name, expected in file.result.items():
        shown = f"{name}: {[hex(v) for v in raw(results[name])[:20]]} but {[hex(v) for v in expected[:20]]} expected"
        assert np.array_equal(raw(results[name]), expected), shown


@pytest.mark.parametrize("file", REFUSED, ids=by_name)
def test_program_is_refused_with_its_stated_error(file):
    rule, *sentences = file.error
    with pytest.raises(ListingError if rule == "listing" else VerifyError) as caught:
        verify(text.parse(file.listing))
    assert rule == "listing" or caught.value.rule == rule, str(caught.value)
    for sentence in sentences:
        assert sentence in str(caught.value)


@pytest.mark.parametrize("file", VALID, ids=by_name)
def test_program_survives_listing_and_file(file):
    program = file.program
    assert text.parse(text.format(program)) == program
    assert bytecode.decode(bytecode.encode(program)) == program


def test_every_rule_of_the_verifier_has_a_program_that_breaks_it():
    # A listing cannot say these: a name that is none, and a line map out of order. test_verifier.py does.
    elsewhere = {"name", "lines"}
    assert {file.error[0] for file in REFUSED} - {"listing"} == RULES.keys() - elsewhere
