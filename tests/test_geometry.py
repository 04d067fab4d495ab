"""Launch geometry: every case of the conformance file, and what holds for all numbers (behaviours 43 and 44)."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vyre.geometry as g
from vyre.errors import VyreError
from vyre.geometry import (
    BackendError,
    DispatchConfig,
    GridLimits,
    GridPlan,
    GridRequest,
    LaunchGeometry,
    ResidentGeometry,
    SizingPolicy,
)

U32 = 2**32 - 1
ROOT = Path(__file__).parent.parent
CASES: list[dict[str, Any]] = json.loads(gzip.decompress((ROOT / "tests/data/launch_geometry.json.gz").read_bytes()))


def as_case(value: object) -> object:
    """A result of ours in the form of the case file."""
    match value:
        case g.MegakernelLaunchGeometry():
            return {
                "workgroup_size_x": value.workgroup_size_x,
                "slot_count": value.slot_count,
                "dispatch_grid": list(value.dispatch_grid),
            }
        case g.MegakernelGridPlan():
            return {"geometry": as_case(value.geometry), "worker_groups": value.worker_groups}
        case DispatchConfig():
            assert isinstance(value.timeout, timedelta | None)
            return {
                "timeout_ms": None if value.timeout is None else value.timeout // timedelta(milliseconds=1),
                "grid_override": list(value.grid_override),
                "workgroup_override": list(value.workgroup_override),
            }
        case tuple():
            return list(value)
    return value


def dispatch_config(slot_count: int, worker_count: int, max_workgroup_size_x: int, timeout_ms: int | None) -> object:
    timeout = None if timeout_ms is None else timedelta(milliseconds=timeout_ms)
    return LaunchGeometry.from_slots(slot_count, worker_count, max_workgroup_size_x).dispatch_config(timeout)


FUNCTIONS: dict[str, Callable[..., object]] = {
    "calculate_optimal_grid": lambda queue_len, requested_worker_groups, **limits: (
        SizingPolicy.standard().calculate_optimal_grid(
            GridRequest(queue_len, requested_worker_groups), GridLimits(**limits)
        )
    ),
    "covering_worker_groups": lambda **args: LaunchGeometry.from_slots(**args).covering_worker_groups(),
    "default_worker_count": g.default_worker_count,
    "default_worker_groups_from_limits": g.default_worker_groups_from_limits,
    "dispatch_config": dispatch_config,
    "dispatch_grid_for": g.dispatch_grid_for,
    "from_item_count": LaunchGeometry.from_item_count,
    "geometry_from_slots": LaunchGeometry.from_slots,
    "padded_slot_count": g.padded_slot_count,
    "worker_workgroup_size": g.worker_workgroup_size,
}


@pytest.mark.parametrize("fn", sorted(FUNCTIONS))
def test_every_case_of_the_conformance_file_passes(fn: str) -> None:
    cases = [case for case in CASES if case["fn"] == fn]
    assert cases
    for case in cases:
        if "error" in case:
            with pytest.raises(BackendError) as error:
                FUNCTIONS[fn](**case["args"])
            assert str(error.value) == case["error"], case
        else:
            assert as_case(FUNCTIONS[fn](**case["args"])) == case["result"], case


def test_no_case_of_the_conformance_file_is_left_out() -> None:
    assert len(CASES) == 1_199
    assert {case["fn"] for case in CASES} == set(FUNCTIONS)


def test_the_committed_cases_are_those_of_the_shared_material() -> None:
    shared = ROOT.parent / "shared/conformance/launch_geometry.json"
    if not shared.exists():
        pytest.skip("no shared material beside this checkout; the committed copy was used")
    assert json.loads(shared.read_text()) == CASES


# --- what holds for all numbers -------------------------------------------------------------------------------

u32 = st.one_of(
    st.integers(0, U32),
    st.integers(0, 5_000),
    st.integers(U32 - 5_000, U32),
    st.integers(0, 31).flatmap(lambda k: st.integers(max(0, 2**k - 2), min(U32, 2**k + 2))),
)
limits = st.builds(GridLimits, u32.filter(bool), u32.filter(bool), u32.filter(bool))
properties = settings(max_examples=200, deadline=None)


@given(u32, u32)
@properties
def test_padding_covers_every_slot_unless_the_next_full_group_is_beyond_a_u32(slots: int, width: int) -> None:
    w = max(width, 1)
    padded = g.padded_slot_count(slots, width)
    exact = max(-(-slots // w), 1) * w
    assert padded % w == 0
    assert padded <= U32
    if exact <= U32:
        assert padded == exact >= slots
    else:
        assert padded == U32 // w * w, "the fullest count of whole groups that a u32 holds"


@given(u32, u32)
@properties
def test_padding_what_is_padded_changes_nothing(slots: int, width: int) -> None:
    padded = g.padded_slot_count(slots, width)
    assert g.padded_slot_count(padded, width) == padded


@given(u32, u32, u32)
@properties
def test_padding_is_monotone_in_slots(a: int, b: int, width: int) -> None:
    assert g.padded_slot_count(min(a, b), width) <= g.padded_slot_count(max(a, b), width)


def test_padding_is_not_monotone_in_width() -> None:
    assert g.padded_slot_count(10, 9) == 18 > g.padded_slot_count(10, 10) == 10


@given(u32, u32, u32)
@properties
def test_width_is_monotone_in_workers_and_in_the_devices_limit(a: int, b: int, other: int) -> None:
    low, high = sorted((a, b))
    assert 1 <= g.worker_workgroup_size(low, other) <= g.worker_workgroup_size(high, other)
    assert g.worker_workgroup_size(other, low) <= g.worker_workgroup_size(other, high) or other == 0


@given(u32, u32, u32, u32)
@properties
def test_grid_grows_with_workers_and_queue_and_shrinks_with_width(a: int, b: int, x: int, y: int) -> None:
    low, high = sorted((a, b))
    assert g.dispatch_grid_for(low, x, y)[0] <= g.dispatch_grid_for(high, x, y)[0]
    assert g.dispatch_grid_for(x, low, y)[0] <= g.dispatch_grid_for(x, high, y)[0]
    assert g.dispatch_grid_for(x, y, low)[0] >= g.dispatch_grid_for(x, y, high)[0]


@given(u32, u32, u32)
@properties
def test_grid_has_from_one_to_1024_groups_and_never_more_than_workers_or_needed(w: int, queue: int, x: int) -> None:
    groups, y, z = g.dispatch_grid_for(w, queue, x)
    assert (y, z) == (1, 1)
    assert 1 <= groups <= min(1_024, max(w, 1), max(-(-queue // max(x, 1)), 1))


@given(u32, u32, u32)
@properties
def test_worker_groups_from_limits_are_monotone_and_bounded(a: int, b: int, other: int) -> None:
    low, high = sorted((a, b))
    assert 1 <= g.default_worker_groups_from_limits(low, other) <= g.default_worker_groups_from_limits(high, other)
    assert g.default_worker_groups_from_limits(other, low) <= g.default_worker_groups_from_limits(other, high) <= 1_024


@given(u32, u32, u32)
@properties
def test_covering_groups_cover_each_padded_slot_exactly_once(slots: int, workers: int, max_x: int) -> None:
    geometry = LaunchGeometry.from_slots(slots, workers, max_x)
    assert geometry.covering_worker_groups() * geometry.workgroup_size_x == geometry.slot_count
    assert geometry.dispatch_grid[0] <= geometry.covering_worker_groups()


@given(st.one_of(u32, st.integers(0, 2**70)), u32, u32)
@properties
def test_an_item_count_is_planned_with_a_slot_each_or_refused_with_the_reason(n: int, workers: int, x: int) -> None:
    width = g.worker_workgroup_size(workers, x)
    if n > U32:
        with pytest.raises(BackendError, match="exceeds u32::MAX"):
            LaunchGeometry.from_item_count(n, workers, x)
    elif -(-n // width) * width > U32 and g.padded_slot_count(n, width) < n:
        with pytest.raises(BackendError, match="cannot be padded"):
            LaunchGeometry.from_item_count(n, workers, x)
    else:
        geometry = LaunchGeometry.from_item_count(n, workers, x)
        assert n <= geometry.slot_count
        assert geometry == LaunchGeometry.from_slots(n, workers, x)


@given(u32, u32, limits)
@properties
def test_a_grid_plan_stays_inside_the_limits(queue: int, requested: int, limits: GridLimits) -> None:
    plan = SizingPolicy.standard().calculate_optimal_grid(GridRequest(queue, requested), limits)
    dimension = limits.max_compute_workgroups_per_dimension
    assert 1 <= plan.worker_groups <= dimension
    assert plan.worker_groups <= (requested or 1_024)
    assert plan.geometry.workgroup_size_x <= limits.max_workgroup_size_x
    assert plan.geometry.dispatch_grid[0] <= min(dimension, 1_024)
    assert plan.geometry == LaunchGeometry.from_slots(max(queue, 1), plan.worker_groups, limits.max_workgroup_size_x)


@given(st.tuples(u32, u32, u32).filter(lambda t: 0 in t))
@properties
def test_a_zero_limit_is_refused_by_the_first_of_them_in_order(values: tuple[int, int, int]) -> None:
    names = ("max_workgroup_size_x", "max_compute_workgroups_per_dimension", "max_compute_invocations_per_workgroup")
    with pytest.raises(BackendError) as error:
        g.calculate_optimal_grid(GridRequest(1, 1), GridLimits(*values))
    name = names[values.index(0)]
    assert str(error.value) == (
        f"megakernel {name} must be non-zero. Fix: pass live adapter limits instead of a zero limit."
    )


# --- refusals and types ---------------------------------------------------------------------------------------

ARGUMENTS: list[tuple[Callable[..., object], tuple[str, ...]]] = [
    (g.worker_workgroup_size, ("worker_count", "max_workgroup_size_x")),
    (g.padded_slot_count, ("slot_count", "workgroup_size_x")),
    (g.dispatch_grid_for, ("worker_count", "queue_len", "max_workgroup_size_x")),
    (
        g.default_worker_groups_from_limits,
        ("max_compute_workgroups_per_dimension", "max_compute_invocations_per_workgroup"),
    ),
    (LaunchGeometry.from_slots, ("slot_count", "worker_count", "max_workgroup_size_x")),
    (LaunchGeometry.from_item_count, ("item_count", "worker_count", "max_workgroup_size_x")),
    (GridRequest, ("queue_len", "requested_worker_groups")),
    (
        GridLimits,
        (
            "max_workgroup_size_x",
            "max_compute_workgroups_per_dimension",
            "max_compute_invocations_per_workgroup",
        ),
    ),
    (
        SizingPolicy,
        (
            "default_worker_count",
            "occupancy_worker_divisor",
            "max_dispatch_workgroups",
            "powerful_invocation_threshold",
            "powerful_min_worker_groups",
        ),
    ),
]
EACH_ARGUMENT = [
    pytest.param(function, names, name, id=f"{function.__name__}-{name}")
    for function, names in ARGUMENTS
    for name in names
]


@pytest.mark.parametrize(("function", "names", "name"), EACH_ARGUMENT)
@pytest.mark.parametrize("bad", [1.0, "1", None, True, [1], 1j], ids=repr)
def test_an_argument_that_is_no_integer_is_refused_by_name_even_when_its_value_was_cached(
    function: Callable[..., object], names: tuple[str, ...], name: str, bad: object
) -> None:
    function(**dict.fromkeys(names, 1))
    with pytest.raises(
        TypeError, match=rf"^{name} must be an integer from 0 to {U32}, not {type(bad).__name__}|a bool"
    ):
        function(**{**dict.fromkeys(names, 1), name: bad})


@pytest.mark.parametrize(("function", "names", "name"), EACH_ARGUMENT)
@pytest.mark.parametrize("bad", [-1, 2**32, -(2**70)])
def test_an_integer_outside_a_u32_is_refused_by_name_with_the_bound(
    function: Callable[..., object], names: tuple[str, ...], name: str, bad: int
) -> None:
    if name == "item_count" and bad > 0:
        pytest.skip("an item count has a refusal of its own")
    with pytest.raises(ValueError, match=rf"^{name} must be (from 0 to {U32}|at least 0)") as error:
        function(**{**dict.fromkeys(names, 1), name: bad})
    assert str(bad) in str(error.value)


@pytest.mark.parametrize("name", ["occupancy_worker_divisor", "max_dispatch_workgroups"])
def test_a_policy_that_would_divide_by_zero_or_launch_nothing_is_refused(name: str) -> None:
    standard = SizingPolicy.standard()
    values = {field: getattr(standard, field) for field in standard.__slots__}
    with pytest.raises(ValueError, match=f"{name} must be from 1"):
        SizingPolicy(**{**values, name: 0})


def test_integers_of_numpy_are_taken_and_come_back_as_pythons() -> None:
    geometry = LaunchGeometry.from_slots(np.uint32(100), np.int64(64), np.uint8(32))  # type: ignore[arg-type]
    assert geometry == LaunchGeometry.from_slots(100, 64, 32)
    assert type(geometry.slot_count) is int
    assert type(GridRequest(np.int64(5), 1).queue_len) is int  # type: ignore[arg-type]


def test_a_geometry_made_by_hand_is_checked_and_may_have_no_lanes() -> None:
    assert LaunchGeometry(0, 10, (1, 1, 1)).covering_worker_groups() == 10
    assert LaunchGeometry(64, 65, (1, 1, 1)).covering_worker_groups() == 2
    assert LaunchGeometry(64, 0, (1, 1, 1)).covering_worker_groups() == 1
    with pytest.raises(ValueError, match="slot_count"):
        LaunchGeometry(64, -1, (1, 1, 1))
    with pytest.raises(TypeError, match="dispatch_grid must be three"):
        LaunchGeometry(64, 64, (1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dispatch_grid\[1\]"):
        LaunchGeometry(64, 64, (1, 2**32, 1))


def test_refusals_are_errors_of_vyre_and_value_errors() -> None:
    assert issubclass(BackendError, VyreError)
    assert issubclass(BackendError, ValueError)


def test_requests_and_limits_of_another_class_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="request must be"):
        g.calculate_optimal_grid((1, 1), GridLimits(1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limits must be"):
        g.calculate_optimal_grid(GridRequest(1, 1), (1, 1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [None, 0, 1.5, timedelta(seconds=2)])
def test_a_dispatch_config_carries_grid_width_and_timeout_as_given(timeout: timedelta | float | None) -> None:
    config = LaunchGeometry.from_slots(1_000, 64, 256).dispatch_config(timeout)
    assert config == DispatchConfig(timeout, (16, 1, 1), (64, 1, 1))
    expected = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    assert config.timeout_s == expected


@pytest.mark.parametrize("timeout", [-1, -0.5, float("nan"), float("inf"), timedelta(seconds=-1)])
def test_a_timeout_outside_its_bound_is_refused(timeout: timedelta | float) -> None:
    with pytest.raises(ValueError, match="timeout must be finite and at least 0"):
        LaunchGeometry.from_slots(1, 1, 1).dispatch_config(timeout)


@pytest.mark.parametrize("timeout", ["1", True])
def test_a_timeout_of_another_type_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be a timedelta"):
        LaunchGeometry.from_slots(1, 1, 1).dispatch_config(timeout)


# --- policies -------------------------------------------------------------------------------------------------


def test_the_standard_policy_has_the_crates_numbers() -> None:
    assert SizingPolicy.standard() == SizingPolicy(64, 256, 1_024, 4_096, 64)


def test_another_policy_counts_in_every_method() -> None:
    policy = SizingPolicy(8, 16, 10, 100, 5)
    assert policy.dispatch_grid_for(1_000, 1_000_000, 1) == (10, 1, 1)
    assert policy.default_worker_groups_from_limits(64, 99) == 4
    assert policy.default_worker_groups_from_limits(64, 100) == 5
    plan = policy.calculate_optimal_grid(GridRequest(1_000_000, 0), GridLimits(256, 65_535, 1_024))
    assert plan == GridPlan(LaunchGeometry(10, 1_000_000, (10, 1, 1)), 10)


def test_plans_are_cached() -> None:
    assert LaunchGeometry.from_slots(777, 64, 256) is LaunchGeometry.from_slots(777, 64, 256)
    request, device = GridRequest(777, 0), GridLimits(256, 65_535, 1_024)
    first = g.calculate_optimal_grid(request, device)
    assert first is g.calculate_optimal_grid(GridRequest(777, 0), GridLimits(256, 65_535, 1_024))


# --- coverage does not depend on geometry ---------------------------------------------------------------------


def lanes_are_slots(geometry: LaunchGeometry) -> set[int]:
    """Slots visited in the original: lane i of the grid looks at slot i."""
    return set(range(min(geometry.dispatch_grid[0] * geometry.workgroup_size_x, geometry.slot_count)))


def ticket_loop(groups: int, slots: int, order: np.random.Generator) -> list[int]:
    """Slots visited by our workers, in any interleaving: each takes the next ticket until there is none.

    A worker is a group. Which one moves next is drawn; the tail is the only thing that they share.
    """
    tail = 0
    visited = []
    running = list(range(groups))
    while running:
        # Draw many turns at once: a worker's turn is to take one ticket, or to leave when none is left.
        for turn in order.integers(0, len(running), size=4_096):
            ticket, tail = tail, tail + 1
            if ticket < slots:
                visited.append(ticket)
            else:
                running.pop(int(turn) % len(running))
                break
    return visited


def test_65536_slots_with_64_workers_of_width_256_strand_61440_in_the_original_and_none_here() -> None:
    geometry = LaunchGeometry.from_slots(65_536, 64, 256)
    assert geometry == LaunchGeometry(64, 65_536, (64, 1, 1))
    assert geometry.slot_count - len(lanes_are_slots(geometry)) == 61_440
    visited = ticket_loop(geometry.dispatch_grid[0], geometry.slot_count, np.random.default_rng(1))
    assert sorted(visited) == list(range(65_536)), "each slot once, none stranded"


@given(st.integers(0, 3_000), st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_ticket_loop_covers_every_slot_once_with_any_geometry(slots: int, workers: int, x: int, seed: int) -> None:
    geometry = LaunchGeometry.from_item_count(slots, workers, x)
    visited = ticket_loop(geometry.dispatch_grid[0], geometry.slot_count, np.random.default_rng(seed))
    assert sorted(visited) == list(range(geometry.slot_count))


# --- resident engines -----------------------------------------------------------------------------------------


def test_a_resident_geometry_fills_the_device() -> None:
    geometry = ResidentGeometry.for_device(multiprocessors=132, groups_per_multiprocessor=4, group_width=256)
    assert geometry == ResidentGeometry(group_width=256, group_count=528)
    assert geometry.lane_count == 135_168


@pytest.mark.parametrize(
    ("groups", "leave", "left"), [(10, 0.8, 2), (10, 0.7, 3), (132, 0.25, 99), (100, 0.001, 99), (1, 0.999, 1)]
)
def test_a_share_of_the_device_is_left_to_others_exactly_as_written(groups: int, leave: float, left: int) -> None:
    geometry = ResidentGeometry.for_device(
        multiprocessors=groups, groups_per_multiprocessor=1, group_width=32, leave=leave
    )
    assert geometry.group_count == left
    assert ResidentGeometry.for_cores(groups, leave=leave) == ResidentGeometry(1, left)


@given(st.integers(1, 2**20), st.floats(0, 1, exclude_max=True))
@properties
def test_a_resident_geometry_leaves_at_least_the_share_and_keeps_at_least_one_group(cores: int, leave: float) -> None:
    groups = ResidentGeometry.for_cores(cores, leave=leave).group_count
    assert 1 <= groups <= cores
    assert groups == 1 or groups <= cores * (1 - leave) + cores * 1e-6


@pytest.mark.parametrize("leave", [-0.1, 1, 1.5, float("nan")])
def test_a_share_outside_its_bounds_is_refused(leave: float) -> None:
    with pytest.raises(ValueError, match="leave must be from 0"):
        ResidentGeometry.for_cores(4, leave=leave)


@pytest.mark.parametrize("leave", ["half", True, None])
def test_a_share_of_another_type_is_refused(leave: Any) -> None:
    with pytest.raises(TypeError, match="leave must be a number"):
        ResidentGeometry.for_cores(4, leave=leave)


def test_a_resident_geometry_without_groups_or_lanes_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cores must be from 1"):
        ResidentGeometry.for_cores(0)
    with pytest.raises(ValueError, match="groups_per_multiprocessor must be from 1"):
        ResidentGeometry.for_device(multiprocessors=1, groups_per_multiprocessor=0, group_width=32)
    with pytest.raises(ValueError, match="group_width must be from 1"):
        ResidentGeometry(0, 1)
    with pytest.raises(ValueError, match="group_count must be from 0"):
        ResidentGeometry.for_device(multiprocessors=U32, groups_per_multiprocessor=2, group_width=32)


# --- the map from the crate -----------------------------------------------------------------------------------

MAP = ROOT / "docs/from-the-crate.md"
ROW = re.compile(r"^\| `(?P<theirs>[^`]+)` \| `(?P<ours>[^`]+)` \| `(?P<file>[^`]+)` \| `(?P<test>[^`]+)` \|$", re.M)


def test_each_row_of_the_map_from_the_crate_names_things_that_exist() -> None:
    rows = [match.groupdict() for match in ROW.finditer(MAP.read_text())]
    assert len(rows) == sum(line.startswith("| `") for line in MAP.read_text().splitlines()), "every row is read"
    for row in rows:
        assert row["file"] == "src/vyre/geometry.py"
        found: Any = g
        for part in row["ours"].removeprefix("vyre.geometry.").split("."):
            assert hasattr(found, part) or part in getattr(found, "__annotations__", {}), row
            found = getattr(found, part, None)
        file, _, test = row["test"].partition("::")
        assert f"\ndef {test}(" in (ROOT / file).read_text(), row


def test_the_map_from_the_crate_has_every_public_name_of_geometry() -> None:
    text = MAP.read_text()
    missing = [name for name in g.__all__ if f"`vyre.geometry.{name}" not in text and f"`{name}`" not in text]
    assert not missing
