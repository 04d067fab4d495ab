"""Launch geometry and sizing policy: how many groups, how wide, over how many slots. Pure arithmetic.

Owns: the numbers of a launch. Leaves to others: launching (engines), what a device can hold (an engine's occupancy
query), which mode is used (runtime).

There are two policies, because there are two ways to launch.

*Finite dispatch* (``MegakernelLaunchGeometry``) is the geometry of the crate vyre-runtime, exact to the last bit. In
the original one number, the worker count, is both the width of a group and the cap on the number of groups, and a
lane is a slot: slots beyond the last lane are never visited. 65,536 slots with 64 workers and a width up to 256 give
64 groups of 64 lanes: 4,096 slots are served and 61,440 stranded. Here workers loop over tickets, so the same grid
strands nothing: the geometry says how much runs side by side, never what is covered.

*Resident engines* (``ResidentGeometry``) are launched once, before the work is known, and should fill what they were
given. Width and group count are two numbers, and the count comes from the device: groups that fit on a multiprocessor
at once, times multiprocessors, less a share that is left to others.

Every quantity is a u32, 0 to 2**32 - 1. In the formulas ``+`` and ``*`` saturate at 2**32 - 1 and ``/`` truncates.
Integers of any kind are taken (NumPy's too), bool is not. All values are immutable, and plans are cached.

Source:
    vyre-runtime 0.6.1, megakernel/planner; docs/from-the-crate.md maps its items to ours.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields
from datetime import timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Final

from vyre.errors import BackendError

__all__ = [
    "BackendError",
    "DispatchConfig",
    "GridLimits",
    "GridPlan",
    "GridRequest",
    "LaunchGeometry",
    "MegakernelGridLimits",
    "MegakernelGridPlan",
    "MegakernelGridRequest",
    "MegakernelLaunchGeometry",
    "MegakernelSizingPolicy",
    "ResidentGeometry",
    "SizingPolicy",
    "calculate_optimal_grid",
    "default_worker_count",
    "default_worker_groups_from_limits",
    "dispatch_grid_for",
    "padded_slot_count",
    "worker_workgroup_size",
]

U32_MAX: Final = 2**32 - 1
_PLANS_CACHED: Final = 4_096

_TOO_LONG: Final = "megakernel work queue length exceeds u32::MAX. Fix: shard the queue before dispatch."
_NO_PADDING: Final = (
    "megakernel work queue cannot be padded inside the u32 ring protocol. Fix: shard the queue before dispatch."
)
_ZERO_LIMIT: Final = "megakernel {} must be non-zero. Fix: pass live adapter limits instead of a zero limit."


# --- checks ---------------------------------------------------------------------------------------------------


def _integer(name: str, value: int) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer from 0 to {U32_MAX}, not a bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer from 0 to {U32_MAX}, not {type(value).__name__}") from None


def _u32(name: str, value: int) -> int:
    value = _integer(name, value)
    if not 0 <= value <= U32_MAX:
        raise ValueError(f"{name} must be from 0 to {U32_MAX} (a u32), not {value}")
    return value


def _add(a: int, b: int) -> int:
    return min(a + b, U32_MAX)


def _multiply(a: int, b: int) -> int:
    return min(a * b, U32_MAX)


def _groups(slots: int, width: int) -> int:
    """max((slots + (width - 1)) / width, 1), saturating."""
    return max(_add(slots, width - 1) // width, 1)


# --- finite dispatch ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DispatchConfig:
    """What a finite dispatch is launched with.

    Attributes:
        timeout: as given: a ``timedelta``, a number of seconds, or None for no limit. Not negative.
        grid_override: groups in x, y, z.
        workgroup_override: lanes of a group in x, y, z.
    """

    timeout: timedelta | float | None
    grid_override: tuple[int, int, int]
    workgroup_override: tuple[int, int, int]

    def __post_init__(self) -> None:
        timeout = self.timeout
        if timeout is None:
            return
        if isinstance(timeout, bool) or not isinstance(timeout, timedelta | int | float):
            raise TypeError(f"timeout must be a timedelta, seconds or None, not {type(timeout).__name__}")
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if not 0 <= seconds < math.inf:
            raise ValueError(f"timeout must be finite and at least 0 seconds, not {timeout}")

    @property
    def timeout_s(self) -> float | None:
        """The timeout in seconds, however it was given; None for no limit."""
        if isinstance(self.timeout, timedelta):
            return self.timeout.total_seconds()
        return None if self.timeout is None else float(self.timeout)


@dataclass(frozen=True, slots=True)
class MegakernelLaunchGeometry:
    """Geometry of one finite dispatch over a ring.

    Attributes:
        workgroup_size_x: lanes per worker workgroup.
        slot_count: ring slots of the dispatch, padded to a full workgroup.
        dispatch_grid: groups in x, y, z that are submitted to the engine; y and z are 1.

    Raises:
        TypeError: a value is not an integer, or ``dispatch_grid`` is not three of them.
        ValueError: a value is negative or above 2**32 - 1.
    Source:
        vyre-runtime 0.6.1, planner/geometry.rs, ``MegakernelLaunchGeometry``.
    """

    workgroup_size_x: int
    slot_count: int
    dispatch_grid: tuple[int, int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "workgroup_size_x", _u32("workgroup_size_x", self.workgroup_size_x))
        object.__setattr__(self, "slot_count", _u32("slot_count", self.slot_count))
        try:
            x, y, z = self.dispatch_grid
        except (TypeError, ValueError):
            raise TypeError(f"dispatch_grid must be three integers from 0 to {U32_MAX}") from None
        grid = (_u32("dispatch_grid[0]", x), _u32("dispatch_grid[1]", y), _u32("dispatch_grid[2]", z))
        object.__setattr__(self, "dispatch_grid", grid)

    @classmethod
    def from_item_count(cls, item_count: int, worker_count: int, max_workgroup_size_x: int) -> MegakernelLaunchGeometry:
        """Geometry for ``item_count`` work items of the host, by the standard policy.

        The geometry of ``from_slots``, provided that it has a slot for every item. 0 items are legal: one group.

        Args:
            item_count: items, any integer >= 0.
            worker_count: workers wanted, u32.
            max_workgroup_size_x: widest group that the device takes, in lanes, u32.
        Raises:
            BackendError: more than 2**32 - 1 items, or so many that padding to a full group, which rounds down near
                2**32, leaves fewer slots than items.
            TypeError: an argument is not an integer.
            ValueError: an argument is negative, or one of the last two is above 2**32 - 1.
        Source:
            vyre-runtime 0.6.1, planner/geometry.rs.
        """
        item_count = _integer("item_count", item_count)
        if item_count < 0:
            raise ValueError(f"item_count must be at least 0, not {item_count}")
        if item_count > U32_MAX:
            raise BackendError(_TOO_LONG)
        geometry = _STANDARD.geometry_from_slots(item_count, worker_count, max_workgroup_size_x)
        if geometry.slot_count < item_count:
            raise BackendError(_NO_PADDING)
        return geometry

    @classmethod
    def from_slots(cls, slot_count: int, worker_count: int, max_workgroup_size_x: int) -> MegakernelLaunchGeometry:
        """Geometry for a ring of ``slot_count`` slots, by the standard policy.

        width = worker_workgroup_size(workers, max_x); slots = padded_slot_count(slot_count, width); grid =
        dispatch_grid_for(workers, slots, width). Near 2**32 the padded count may be below ``slot_count``;
        ``from_item_count`` refuses that.

        Args:
            slot_count: slots, u32.
            worker_count: workers wanted, u32; both the width of a group and the cap on groups come from it.
            max_workgroup_size_x: widest group that the device takes, in lanes, u32; 0 counts as 1.
        Raises:
            TypeError: an argument is not an integer.
            ValueError: an argument is negative or above 2**32 - 1.
        Source:
            vyre-runtime 0.6.1, planner/geometry.rs and grid.rs.
        """
        return _STANDARD.geometry_from_slots(slot_count, worker_count, max_workgroup_size_x)

    def covering_worker_groups(self) -> int:
        """Groups needed to cover every ring slot exactly once, one lane a slot.

        max((slot_count + (w - 1)) / w, 1) with w = max(workgroup_size_x, 1). More than ``dispatch_grid[0]`` where
        the cap on groups bites; our workers loop over tickets and do not need them.
        """
        return _groups(self.slot_count, max(self.workgroup_size_x, 1))

    def dispatch_config(self, timeout: timedelta | float | None = None) -> DispatchConfig:
        """What to launch with: this grid, this width (y and z 1) and ``timeout``.

        Args:
            timeout: a timedelta, seconds, or None for no limit.
        Raises:
            TypeError: ``timeout`` is something else.
            ValueError: ``timeout`` is negative, infinite or NaN.
        """
        return DispatchConfig(timeout, self.dispatch_grid, (self.workgroup_size_x, 1, 1))


@dataclass(frozen=True, slots=True)
class MegakernelGridRequest:
    """What is wanted of a grid.

    Attributes:
        queue_len: items that wait, u32; 0 is planned as 1.
        requested_worker_groups: groups the caller wants, u32; 0 lets the policy choose.
    """

    queue_len: int
    requested_worker_groups: int

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, slots=True)
class MegakernelGridLimits:
    """What the device takes, all u32. A zero is refused where it is used, in ``calculate_optimal_grid``.

    Attributes:
        max_workgroup_size_x: lanes of a group in x.
        max_compute_workgroups_per_dimension: groups of a grid in x.
        max_compute_invocations_per_workgroup: lanes of a group in all dimensions together.
    """

    max_workgroup_size_x: int
    max_compute_workgroups_per_dimension: int
    max_compute_invocations_per_workgroup: int

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, slots=True)
class MegakernelGridPlan:
    """What ``calculate_optimal_grid`` decided.

    Attributes:
        geometry: what to launch.
        worker_groups: the worker count that the geometry was made for.
    """

    geometry: MegakernelLaunchGeometry
    worker_groups: int


@dataclass(frozen=True, slots=True)
class MegakernelSizingPolicy:
    """The numbers behind the geometry, all u32.

    Attributes:
        default_worker_count: workers where nobody asked for a number.
        occupancy_worker_divisor: groups of a dimension for each worker group chosen from limits; at least 1.
        max_dispatch_workgroups: most groups that are ever submitted; at least 1.
        powerful_invocation_threshold: lanes per group from which a device counts as powerful.
        powerful_min_worker_groups: fewest worker groups on a powerful device.

    Raises:
        TypeError: a value is not an integer.
        ValueError: a value is negative or above 2**32 - 1, or one that must be at least 1 is 0.
    Source:
        vyre-runtime 0.6.1, planner/sizing.rs, ``MegakernelSizingPolicy``.
    """

    default_worker_count: int
    occupancy_worker_divisor: int
    max_dispatch_workgroups: int
    powerful_invocation_threshold: int
    powerful_min_worker_groups: int

    def __post_init__(self) -> None:
        _check_fields(self)
        for name in ("occupancy_worker_divisor", "max_dispatch_workgroups"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be from 1 to {U32_MAX}, not 0")

    @classmethod
    def standard(cls) -> MegakernelSizingPolicy:
        """The policy of the built-in dispatch paths: 64 workers, divisor 256, at most 1,024 groups, powerful from
        4,096 lanes a group with at least 64 groups."""
        return _STANDARD

    def worker_workgroup_size(self, worker_count: int, max_workgroup_size_x: int) -> int:
        """Lanes of a worker group: 0 workers -> 1, else min(workers, max(max_x, 1)). Errors as the function's."""
        workers = _u32("worker_count", worker_count)
        max_x = _u32("max_workgroup_size_x", max_workgroup_size_x)
        return 1 if workers == 0 else min(workers, max(max_x, 1))

    def padded_slot_count(self, slot_count: int, workgroup_size_x: int) -> int:
        """Slots padded to full groups. Formula, edges and errors as the function of this name."""
        slots = _u32("slot_count", slot_count)
        width = max(_u32("workgroup_size_x", workgroup_size_x), 1)
        return _multiply(_groups(slots, width), width)

    def dispatch_grid_for(self, worker_count: int, queue_len: int, max_workgroup_size_x: int) -> tuple[int, int, int]:
        """Groups to submit, capped by ``max_dispatch_workgroups``. Else as the function of this name."""
        workers = _u32("worker_count", worker_count)
        queue = _u32("queue_len", queue_len)
        width = max(_u32("max_workgroup_size_x", max_workgroup_size_x), 1)
        return (min(_groups(queue, width), max(workers, 1), self.max_dispatch_workgroups), 1, 1)

    def default_worker_groups_from_limits(
        self, max_compute_workgroups_per_dimension: int, max_compute_invocations_per_workgroup: int
    ) -> int:
        """Worker groups for a device. Formula with this policy's numbers; else as the function of this name."""
        dimension = _u32("max_compute_workgroups_per_dimension", max_compute_workgroups_per_dimension)
        invocations = _u32("max_compute_invocations_per_workgroup", max_compute_invocations_per_workgroup)
        groups = min(max(dimension // self.occupancy_worker_divisor, 1), self.max_dispatch_workgroups)
        powerful = invocations >= self.powerful_invocation_threshold
        return max(groups, self.powerful_min_worker_groups if powerful else 1)

    def geometry_from_slots(
        self, slot_count: int, worker_count: int, max_workgroup_size_x: int
    ) -> MegakernelLaunchGeometry:
        """``MegakernelLaunchGeometry.from_slots`` by this policy. Cached: equal arguments give the same object."""
        return _plan_slots(
            self,
            _u32("slot_count", slot_count),
            _u32("worker_count", worker_count),
            _u32("max_workgroup_size_x", max_workgroup_size_x),
        )

    def calculate_optimal_grid(
        self, request: MegakernelGridRequest, limits: MegakernelGridLimits
    ) -> MegakernelGridPlan:
        """Worker groups and geometry for a queue on a device. Cached: equal arguments give the same object.

        groups = max(1, requested == 0 ? min(groups from limits, per dimension) : min(requested, per dimension));
        geometry = from_slots(max(queue_len, 1), groups, max_x).

        Args:
            request: what waits, and how many groups are wanted.
            limits: what the device takes; no zero.
        Raises:
            BackendError: a limit is 0, looked at in the order width, groups per dimension, lanes per group.
            TypeError: an argument is of another class.
        Source:
            vyre-runtime 0.6.1, planner/sizing.rs and grid.rs.
        """
        if not isinstance(request, MegakernelGridRequest):
            raise TypeError(f"request must be a MegakernelGridRequest, not {type(request).__name__}")
        if not isinstance(limits, MegakernelGridLimits):
            raise TypeError(f"limits must be a MegakernelGridLimits, not {type(limits).__name__}")
        return _plan_grid(self, request, limits)


def _check_fields(
    of: MegakernelGridRequest | MegakernelGridLimits | MegakernelSizingPolicy,
) -> None:
    for field in fields(of):
        object.__setattr__(of, field.name, _u32(field.name, getattr(of, field.name)))


@lru_cache(maxsize=_PLANS_CACHED)
def _plan_slots(policy: MegakernelSizingPolicy, slots: int, workers: int, max_x: int) -> MegakernelLaunchGeometry:
    width = policy.worker_workgroup_size(workers, max_x)
    padded = policy.padded_slot_count(slots, width)
    return MegakernelLaunchGeometry(width, padded, policy.dispatch_grid_for(workers, padded, width))


@lru_cache(maxsize=_PLANS_CACHED)
def _plan_grid(
    policy: MegakernelSizingPolicy, request: MegakernelGridRequest, limits: MegakernelGridLimits
) -> MegakernelGridPlan:
    for field in fields(limits):
        if getattr(limits, field.name) == 0:
            raise BackendError(_ZERO_LIMIT.format(field.name))
    dimension = limits.max_compute_workgroups_per_dimension
    wanted = request.requested_worker_groups or policy.default_worker_groups_from_limits(
        dimension, limits.max_compute_invocations_per_workgroup
    )
    groups = max(1, min(wanted, dimension))
    geometry = policy.geometry_from_slots(max(request.queue_len, 1), groups, limits.max_workgroup_size_x)
    return MegakernelGridPlan(geometry, groups)


_STANDARD: Final = MegakernelSizingPolicy(
    default_worker_count=64,
    occupancy_worker_divisor=256,
    max_dispatch_workgroups=1_024,
    powerful_invocation_threshold=4_096,
    powerful_min_worker_groups=64,
)


def default_worker_count() -> int:
    """Workers where nobody asked for a number: 64, by the standard policy."""
    return _STANDARD.default_worker_count


def worker_workgroup_size(worker_count: int, max_workgroup_size_x: int) -> int:
    """Lanes of a worker group: 0 workers -> 1, else min(workers, max(max_x, 1)).

    Args:
        worker_count: workers wanted, u32.
        max_workgroup_size_x: widest group that the device takes, in lanes, u32; 0 counts as 1.
    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is negative or above 2**32 - 1.
    Source:
        vyre-runtime 0.6.1, planner/sizing.rs.
    """
    return _STANDARD.worker_workgroup_size(worker_count, max_workgroup_size_x)


def padded_slot_count(slot_count: int, workgroup_size_x: int) -> int:
    """Ring slots padded to full groups: w = max(wg, 1); max((slots + (w - 1)) / w, 1) * w.

    0 slots give one group. The addition saturates, so near 2**32 the result rounds *down*: (2**32 - 1, 64) gives
    4,294,967,232.

    Args:
        slot_count: slots, u32.
        workgroup_size_x: lanes of a group, u32; 0 counts as 1.
    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is negative or above 2**32 - 1.
    Source:
        vyre-runtime 0.6.1, planner/sizing.rs.
    """
    return _STANDARD.padded_slot_count(slot_count, workgroup_size_x)


def dispatch_grid_for(worker_count: int, queue_len: int, max_workgroup_size_x: int) -> tuple[int, int, int]:
    """Groups to submit: (min(max((queue + (w - 1)) / w, 1), max(workers, 1), 1024), 1, 1) with w = max(max_x, 1).

    Args:
        worker_count: cap on groups, u32; 0 counts as 1.
        queue_len: items that wait, u32; 0 gives one group.
        max_workgroup_size_x: lanes of a group, u32; 0 counts as 1.
    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is negative or above 2**32 - 1.
    Source:
        vyre-runtime 0.6.1, planner/geometry.rs.
    """
    return _STANDARD.dispatch_grid_for(worker_count, queue_len, max_workgroup_size_x)


def default_worker_groups_from_limits(
    max_compute_workgroups_per_dimension: int, max_compute_invocations_per_workgroup: int
) -> int:
    """Worker groups for a device: max(clamp(dim / 256, 1, 1024), 64 if invocations >= 4096 else 1).

    Args:
        max_compute_workgroups_per_dimension: groups of a grid in x, u32; 0 is legal here and gives the least.
        max_compute_invocations_per_workgroup: lanes of a group in all dimensions together, u32.
    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is negative or above 2**32 - 1.
    Source:
        vyre-runtime 0.6.1, planner/sizing.rs.
    """
    return _STANDARD.default_worker_groups_from_limits(
        max_compute_workgroups_per_dimension, max_compute_invocations_per_workgroup
    )


def calculate_optimal_grid(request: MegakernelGridRequest, limits: MegakernelGridLimits) -> MegakernelGridPlan:
    """``MegakernelSizingPolicy.calculate_optimal_grid`` of the standard policy, with its errors."""
    return _STANDARD.calculate_optimal_grid(request, limits)


# --- resident engines -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResidentGeometry:
    """Geometry of an engine that stays: two numbers that mean two things.

    A finite dispatch knows its items and takes its grid from them, with one number for width and for group count
    (``MegakernelLaunchGeometry``). A resident engine is launched before any item is known, so its size comes from
    the device alone; and its groups must all be running at once, since they wait for work, so it may not be launched
    with more groups than fit. Coverage depends on neither number: workers take tickets until there are none.

    Attributes:
        group_width: lanes of a worker group; 1 on a CPU, where a worker is a thread.
        group_count: groups that are resident together, at least 1.

    Raises:
        TypeError: a value is not an integer.
        ValueError: a value is 0, negative or above 2**32 - 1.
    Source:
        docs/from-the-crate.md; occupancy as in the CUDA C++ Programming Guide, "Occupancy Calculator".
    """

    group_width: int
    group_count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "group_width", _at_least_one("group_width", self.group_width))
        object.__setattr__(self, "group_count", _at_least_one("group_count", self.group_count))

    @property
    def lane_count(self) -> int:
        """Lanes of all groups together; may be above 2**32 - 1."""
        return self.group_width * self.group_count

    @classmethod
    def for_device(
        cls, *, multiprocessors: int, groups_per_multiprocessor: int, group_width: int, leave: float = 0.0
    ) -> ResidentGeometry:
        """Geometry that fills a GPU: groups = max(1, n - ceil(n * leave)), n = multiprocessors * groups of each.

        Args:
            multiprocessors: of the device, u32, at least 1.
            groups_per_multiprocessor: what the occupancy query says for this kernel, width and shared memory; u32,
                at least 1 (0 means that the kernel does not fit: ask again with a smaller width).
            group_width: lanes of a group, u32, at least 1.
            leave: share of the groups that are not taken, 0 <= leave < 1, for other work on the device.
        Raises:
            TypeError: an argument is not a number of the kind asked for.
            ValueError: an argument is outside its bounds, or the groups are above 2**32 - 1.
        """
        groups = _at_least_one("multiprocessors", multiprocessors) * _at_least_one(
            "groups_per_multiprocessor", groups_per_multiprocessor
        )
        return cls(group_width, _less_share(groups, leave))

    @classmethod
    def for_cores(cls, cores: int, *, leave: float = 0.0) -> ResidentGeometry:
        """Geometry of a CPU engine: one worker a core, max(1, cores - ceil(cores * leave)), each of width 1.

        Args:
            cores: that this process may use (affinity and quota taken off), u32, at least 1.
            leave: share of the cores that are not taken, 0 <= leave < 1.
        Raises:
            TypeError: an argument is not a number of the kind asked for.
            ValueError: an argument is outside its bounds.
        """
        return cls(1, _less_share(_at_least_one("cores", cores), leave))


def _at_least_one(name: str, value: int) -> int:
    value = _u32(name, value)
    if value == 0:
        raise ValueError(f"{name} must be from 1 to {U32_MAX}, not 0")
    return value


def _less_share(groups: int, leave: float) -> int:
    if isinstance(leave, bool) or not isinstance(leave, int | float | Fraction):
        raise TypeError(f"leave must be a number from 0 up to but not including 1, not {type(leave).__name__}")
    if not 0 <= leave < 1:
        raise ValueError(f"leave must be from 0 up to but not including 1, not {leave}")
    # Exact on what was written: 10 groups less 0.8 are 2, where floats make 1.9999999999999996.
    share = Fraction(leave).limit_denominator(1_000_000)
    return max(1, groups - math.ceil(groups * share))


SizingPolicy = MegakernelSizingPolicy
LaunchGeometry = MegakernelLaunchGeometry
GridRequest = MegakernelGridRequest
GridLimits = MegakernelGridLimits
GridPlan = MegakernelGridPlan
