"""Random programs: valid, varied, and the same bits however an item is cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vyre.engines import differential, reference
from vyre.engines.base import ItemResult
from vyre.engines.fold import fold_spans
from vyre.errors import Fault
from vyre.program.functions import inline
from vyre.program.opcodes import OPCODES, AccKind, FaultCode, Group, MemType
from vyre.program.random import compare, random_inputs, random_program
from vyre.program.verifier import verify

SEEDS = range(250)


@pytest.fixture(scope="module")
def programs():
    return [verify(random_program(seed)).program for seed in SEEDS]


def test_a_seed_gives_the_same_valid_program_and_the_same_inputs_again():
    for seed in range(-2, 20):
        program = random_program(seed)
        assert verify(program).program == random_program(seed)
        one, other = (random_inputs(program, seed, 100) for _ in range(2))
        assert one[1] == other[1]
        for a, b in zip(one[0] + one[2], other[0] + other[2], strict=True):
            assert a.tobytes() == b.tobytes()


def test_different_seeds_give_different_programs(programs):
    assert len({program.code for program in programs}) > 0.95 * len(programs)


def test_random_programs_use_every_instruction_but_functions_and_every_memory_type_both_ways(programs):
    more = [random_program(seed) for seed in range(1000, 1700)]
    used = {instr.op for program in (*programs, *more) for instr in program.code}
    assert {op.name for op in OPCODES if op.code not in used and op.group is not Group.function} == set()
    for part in ("inputs", "outputs", "emits", "tables"):
        assert {d.dtype for program in programs for d in getattr(program, part)} == set(MemType), part
    assert {a.kind for program in programs for a in program.accumulators} == set(AccKind)


def test_random_programs_with_functions_use_all_of_them():
    used = {instr.op for seed in range(300) for instr in verify(random_program(seed, functions=True)).program.code}
    assert {op.name for op in OPCODES if op.code not in used and op.group is Group.function} == set()


def test_most_random_items_run_to_their_end_and_each_trap_stops_some_of_the_others(programs):
    faults = Counter()
    at_first = 0
    for seed, program in enumerate(programs):
        result = reference.execute(program, *random_inputs(program, seed, 1200), 0, 1200)
        faults[FaultCode(result.fault.code) if result.fault else FaultCode.none] += 1
        at_first += result.fault is not None and result.fault.element == 0
    assert 0.6 * len(programs) < faults[FaultCode.none] < 0.97 * len(programs)
    assert set(faults) == {FaultCode(code) for code in range(7)}
    assert at_first < 0.1 * len(programs)


def test_a_random_program_without_traps_never_traps():
    for seed in range(80):
        program = random_program(seed, traps=False)
        assert reference.execute(program, *random_inputs(program, seed, 300), 0, 300).fault is None, seed


def test_an_item_cut_at_tiles_delivers_the_same_bits_in_pieces(programs):
    count, first = 3 * 1024 + 100, 7 * 1024
    for seed, program in enumerate(programs):
        inputs, params, tables = random_inputs(program, seed, count)
        whole_tables, part_tables = ([table.copy() for table in tables] for _ in range(2))
        whole = reference.execute(program, inputs, params, whole_tables, first, count)
        parts = []
        for start, stop in ((0, 1024), (1024, 3072), (3072, count)):
            piece = [x[start:stop] for x in inputs]
            parts.append(reference.execute(program, piece, params, part_tables, first + start, stop - start))
            if parts[-1].fault:
                break
        if whole.fault or parts[-1].fault:
            assert compare(whole, parts[-1]) is None, seed
            continue
        joined = ItemResult(
            outputs=[np.concatenate(x) for x in zip(*(p.outputs for p in parts), strict=True)],
            emits=[np.concatenate(x) for x in zip(*(p.emits for p in parts), strict=True)],
            accumulators=whole.accumulators,
            tile_sums={i: np.concatenate([p.tile_sums[i] for p in parts]) for i in whole.tile_sums},
        )
        assert compare(whole, joined, (whole_tables, part_tables)) is None, seed
        for i, tile_sums in joined.tile_sums.items():
            total = np.float64(fold_spans(tile_sums, first // 1024))
            assert whole.accumulators[i].tobytes() == total.tobytes(), seed


def test_a_program_with_its_functions_expanded_gives_the_same_bits():
    expanded_ones = 0
    for seed in range(2000, 2150):
        program = random_program(seed, functions=True)
        inputs, params, tables = random_inputs(program, seed, 200)
        direct_tables, inline_tables = ([table.copy() for table in tables] for _ in range(2))
        direct = reference.execute(program, inputs, params, direct_tables, 1024, 200)
        expanded, origin, contents = inline(program)
        expanded_ones += expanded is not program
        added = expanded.tables[len(program.tables) :]
        constant = [np.array(t, f"u{d.dtype.size}") for t, d in zip(contents, added, strict=True)]
        result = reference.execute(expanded, inputs, params, inline_tables + constant, 1024, 200)
        if result.fault:
            result.fault = replace(result.fault, pc=origin[result.fault.pc])
        assert compare(direct, result, (direct_tables, inline_tables)) is None, seed
    assert expanded_ones > 50


def test_compare_says_where_two_results_first_differ():
    one = ItemResult(outputs=[np.array([1.0, 0.0, 2.0], np.float32)])
    assert compare(one, one) is None
    other = ItemResult(outputs=[np.array([1.0, -0.0, 3.0], np.float32)])
    assert compare(one, other) == "output 0, entry 1: 0.0 (0x00000000) against -0.0 (0x80000000); 2 of 3 differ"
    short = ItemResult(outputs=[np.array([1.0], np.float32)])
    assert compare(one, short) == "output 0, shape: float32[3] against float32[1]"
    nans = [ItemResult(emits=[np.array([bits], np.uint32).view(np.float32)]) for bits in (0x7FC00000, 0x7FC00001)]
    assert "emit 0, entry 0: nan (0x7fc00000) against nan (0x7fc00001)" in compare(*nans)
    fault = ItemResult(fault=Fault(2, "integer divide by zero", 3, 1030))
    assert compare(one, fault) == "fault: none against divide_by_zero at pc 3, element 1030"
    assert compare(fault, ItemResult(fault=Fault(2, "other words", 3, 1030, line=7))) is None
    tables = ([np.array([1])], [np.array([2])])
    assert "table 0, entry 0" in compare(one, one, tables)
    assert compare(fault, fault, tables) is None


def test_the_differential_run_names_the_seeds_at_which_an_engine_differs():
    def execute(program, inputs, params, tables, first, count):
        if count == 1024:
            raise ValueError("broken at 1,024")
        result = reference.execute(program, inputs, params, tables, first, count)
        for output in result.outputs:
            output.view(np.uint8)[-1:] ^= 1
        return result

    failures = {}
    passed, failed = differential.run(range(40), execute, on_failure=failures.__setitem__)
    assert passed + failed == 40
    assert len(failures) == failed > 10
    assert any(text.startswith("output 0, entry") for text in failures.values())
    assert any(text.startswith("ValueError: broken at 1,024") for text in failures.values())
    assert differential.difference(next(iter(failures)), reference.execute) is None


def test_the_differential_command_ends_with_its_counts(capsys):
    assert differential.main(["--engine", "reference", "--count", "5", "--seed", "7"]) == 0
    assert capsys.readouterr().out == "5 passed, 0 failed\n"
    assert differential.main(["--seed", "7", "--list"]) == 0
    assert "elements" in capsys.readouterr().out
