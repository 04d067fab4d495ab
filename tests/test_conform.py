"""The runner of case files: what it runs, what it lets pass, what it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from exact import expected
from vyre.engines import reference
from vyre.engines.base import ItemResult
from vyre.engines.conform import read_cases, run_cases
from vyre.errors import Fault, VyreError
from vyre.program.opcodes import BY_CODE, OPCODES, Group
from vyre.program.random import NASTY

SHARED = Path(__file__).parents[2] / "shared/conformance/scalar_ops_sample.json"
SAMPLE = SHARED if SHARED.exists() else Path(__file__).parent / "data/scalar_ops_sample.json"

ADD = {"op": "i32.add", "args": [["i32", 1], ["i32", 2]], "result": ["i32", 3]}
ADD_7 = {"op": "i32.add", "args": [["i32", 3], ["i32", 4]], "result": ["i32", 7]}
DIV_0 = {"op": "i32.div_u", "args": [["i32", 1], ["i32", 0]], "result": "trap: integer divide by zero"}
DIV = {"op": "i32.div_u", "args": [["i32", 7], ["i32", 2]], "result": ["i32", 3]}
NAN_ADD = {"op": "f32.add", "args": [["f32", 0x7FA00000], ["f32", 0]], "result": "nan:arithmetic"}


def altered(change):
    """The reference engine with ``change(result, op, first, count)`` applied to each item's result."""

    def execute(program, inputs, params, tables, first, count):
        result = reference.execute(program, inputs, params, tables, first, count)
        op = BY_CODE[program.code[len(program.inputs)].op]
        return change(result, op, first, count)

    return execute


def test_the_reference_engine_passes_every_case_of_the_sample():
    report = run_cases(SAMPLE, reference.execute)
    assert report.line == "408 passed, 0 failed", "\n".join(map(str, report.failures))
    assert report.failures == []


def test_the_reference_engine_passes_random_cases_of_every_instruction():
    rng = random.Random(6)
    cases = []
    for op in OPCODES:
        for _ in range(12 if op.group is Group.numeric else 0):
            args = tuple(rng.choice((rng.getrandbits(8 * t.size), *NASTY[t])) for t in op.args)
            result = expected(op, args)
            result = f"trap: {result}" if isinstance(result, str) else [op.result.name, result]
            cases.append(
                {"op": op.name, "args": [[t.name, x] for t, x in zip(op.args, args, strict=True)], "result": result}
            )
    assert any(isinstance(case["result"], str) for case in cases)
    report = run_cases(cases, reference.execute)
    assert report.failures == []
    assert report.passed == len(cases) > 1700


def test_a_wrong_expectation_fails_and_says_what_came_instead():
    report = run_cases([ADD, {**ADD, "result": ["i32", 4]}, ADD_7], reference.execute)
    assert report.line == "2 passed, 1 failed"
    assert str(report.failures[0]) == (
        "case 1: i32.add(i32 0x00000001, i32 0x00000002), alone: expected i32 0x00000004, got i32 0x00000003"
    )


def test_an_engine_that_is_wrong_in_the_1025th_element_only_fails():
    def change(result, op, first, count):
        for output in result.outputs:
            output[1024:1025] += 1
        return result

    report = run_cases([ADD], altered(change))
    assert [failure.setting for failure in report.failures] == ["repeated"]


def test_an_engine_that_mixes_up_neighbouring_elements_fails_in_the_mixed_item_only():
    def change(result, op, first, count):
        if count == 2:
            result.outputs[0] = result.outputs[0][::-1].copy()
        return result

    report = run_cases([ADD, ADD_7], altered(change))
    assert [failure.setting for failure in report.failures] == ["mixed", "mixed"]


def test_a_trap_must_come_for_the_right_reason():
    def change(result, op, first, count):
        fault = result.fault
        return ItemResult(fault=Fault(3, "integer overflow", fault.pc, fault.element)) if fault else result

    report = run_cases([DIV, DIV_0], altered(change))
    assert report.line == "1 passed, 1 failed"
    assert "expected trap: integer divide by zero, got trap: integer overflow" in str(report.failures[0])


def test_a_trap_must_name_its_global_element_also_among_others():
    def change(result, op, first, count):
        fault = result.fault
        return ItemResult(fault=Fault(fault.code, fault.reason, fault.pc, fault.element % 1024)) if fault else result

    report = run_cases([DIV, DIV_0], altered(change))
    assert [failure.setting for failure in report.failures] == ["mixed"]


def test_a_trap_must_name_the_instruction():
    def change(result, op, first, count):
        fault = result.fault
        return ItemResult(fault=Fault(fault.code, fault.reason, 0, fault.element)) if fault else result

    assert run_cases([DIV_0], altered(change)).line == "0 passed, 1 failed"


def test_an_unexpected_trap_blames_its_case_and_not_the_others_of_the_item():
    def change(result, op, first, count):
        if result.outputs and 7 in result.outputs[0]:
            return ItemResult(fault=Fault(1, "unreachable", 2, first + int(np.argmax(result.outputs[0] == 7))))
        return result

    report = run_cases([ADD, ADD_7, ADD], altered(change))
    assert report.line == "2 passed, 1 failed"
    assert report.failures[0].case.index == 1


def test_a_trap_that_is_missing_fails_with_the_value():
    def no_traps(program, inputs, params, tables, first, count):
        return ItemResult(outputs=[np.zeros(count, np.int32)])

    report = run_cases([DIV_0], no_traps)
    assert "expected trap: integer divide by zero, got i32 0x00000000" in str(report.failures[0])


def test_an_engine_that_refuses_fails_its_cases_and_the_others_go_on():
    def execute(program, inputs, params, tables, first, count):
        if program.name == "i32_add":
            raise VyreError("no handler for i32.add")
        return reference.execute(program, inputs, params, tables, first, count)

    report = run_cases([ADD, DIV], execute)
    assert report.line == "1 passed, 1 failed"
    assert "no handler for i32.add" in report.failures[0].got


@pytest.mark.parametrize(("nan", "passes"), [(0x7FC00000, True), (0xFFC00000, False), (0x7FE00000, False)])
def test_arithmetic_gives_the_one_canonical_nan_whatever_class_the_case_allows(nan, passes):
    def change(result, op, first, count):
        result.outputs[0].view(np.uint32)[:] = nan
        return result

    assert run_cases([NAN_ADD], altered(change)).passed == passes


def test_an_instruction_that_moves_bits_may_give_any_quiet_nan_where_the_case_allows_it():
    neg = {"op": "f32.neg", "args": [["f32", 0x7FE00000]], "result": "nan:arithmetic"}
    assert run_cases([neg], reference.execute).passed == 1
    assert run_cases([{**neg, "result": "nan:canonical"}], reference.execute).passed == 0
    assert run_cases([{**neg, "args": [["f32", 0x7FA00000]]}], reference.execute).passed == 0


def test_progress_counts_the_cases_up_to_all_of_them():
    seen = []
    run_cases([ADD, DIV, ADD_7], reference.execute, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)


def test_no_cases_pass_as_none():
    assert run_cases([], reference.execute).line == "0 passed, 0 failed"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (5, "case 1: a case is an object"),
        ({"op": "i32.add", "args": []}, "case 1: a case is an object"),
        ({**ADD, "op": "i32.plus"}, "case 1: 'i32.plus' is not a scalar instruction"),
        ({**ADD, "op": ["i32.add"]}, "case 1: ['i32.add'] is not a scalar instruction"),
        ({**ADD, "op": "i32.load"}, "case 1: 'i32.load' is not a scalar instruction"),
        ({**ADD, "args": ADD["args"][:1]}, "case 1: i32.add takes 2 args, the case has 1"),
        ({**ADD, "args": "12"}, "case 1: i32.add takes 2 args, the case has '12'"),
        ({**ADD, "args": [["i32", 1], 2]}, "case 1: i32.add, arg 1: is 2, not [type, bits]"),
        (
            {**ADD, "args": [["i32", 1], ["i64", 2]]},
            "case 1: i32.add, arg 1: is of type 'i64', the instruction has i32",
        ),
        ({**ADD, "args": [["i32", 1], ["i32", 1 << 32]]}, "case 1: i32.add, arg 1: bits 4294967296"),
        ({**ADD, "args": [["i32", 1], ["i32", -1]]}, "case 1: i32.add, arg 1: bits -1"),
        ({**ADD, "args": [["i32", 1], ["i32", 1.0]]}, "case 1: i32.add, arg 1: bits 1.0"),
        ({**ADD, "args": [["i32", 1], ["i32", True]]}, "case 1: i32.add, arg 1: bits True"),
        ({**ADD, "result": ["f32", 0]}, "case 1: i32.add, result: is of type 'f32', the instruction has i32"),
        ({**ADD, "result": "nan:canonical"}, "case 1: i32.add, result: nan:canonical of an instruction that gives i32"),
        (
            {**ADD, "result": "trap: out of fuel"},
            "case 1: i32.add, result: 'trap: out of fuel', but i32.add can trap only",
        ),
        ({**ADD, "result": "three"}, "case 1: i32.add, result: 'three' is not [type, bits]"),
        ({**ADD, "result": None}, "case 1: i32.add, result: is None, not [type, bits]"),
    ],
)
def test_a_bad_case_is_refused_with_its_index(case, message):
    with pytest.raises(VyreError) as error:
        read_cases([ADD, case])
    assert message in str(error.value)


def test_a_file_that_is_no_list_or_no_json_or_not_there_is_refused_with_its_name(tmp_path):
    for text, message in (('{"op": 1}', "is a list of cases, this is a dict"), ("[{", "is not JSON")):
        path = tmp_path / "cases.json"
        path.write_text(text)
        with pytest.raises(VyreError, match=message) as error:
            run_cases(path, reference.execute)
        assert str(path) in str(error.value)
    with pytest.raises(VyreError, match="No such file"):
        run_cases(tmp_path / "absent.json", reference.execute)


def test_a_case_file_is_read_from_a_path_given_as_text(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([ADD]))
    assert run_cases(str(path), reference.execute).passed == 1
