"""``vyre geometry``: the plan of a finite dispatch as a table or JSON. The arithmetic is vyre.geometry's."""

from __future__ import annotations

import click

from vyre.commands import show


@click.command()
@click.option("--items", type=click.IntRange(min=0), required=True, metavar="N", help="work items to dispatch")
@click.option(
    "--workers", type=click.IntRange(0, 2**32 - 1), default=64, show_default=True, metavar="W", help="workers wanted"
)
@click.option(
    "--max-x",
    type=click.IntRange(0, 2**32 - 1),
    default=256,
    show_default=True,
    metavar="X",
    help="widest group that the device takes, in lanes",
)
@click.option("--json", "json_", is_flag=True, help="print JSON")
def command(items: int, workers: int, max_x: int, json_: bool) -> None:
    """Plan a finite dispatch: how many groups, how wide, over how many ring slots."""
    from vyre.geometry import LaunchGeometry

    geometry = LaunchGeometry.from_item_count(items, workers, max_x)
    lanes = geometry.dispatch_grid[0] * geometry.workgroup_size_x
    stranded = max(geometry.slot_count - lanes, 0)
    if json_:
        show.as_json(
            {
                "item_count": items,
                "worker_count": workers,
                "max_workgroup_size_x": max_x,
                "workgroup_size_x": geometry.workgroup_size_x,
                "slot_count": geometry.slot_count,
                "dispatch_grid": geometry.dispatch_grid,
                "covering_worker_groups": geometry.covering_worker_groups(),
                "lanes": lanes,
                "slots_beyond_lanes": stranded,
            }
        )
        return
    grid = " x ".join(f"{groups:,}" for groups in geometry.dispatch_grid)
    show.table(
        f"{items:,} items, {workers:,} workers, groups of up to {max_x:,} lanes",
        ("", "", ""),
        [
            ("workgroup_size_x", f"{geometry.workgroup_size_x:,}", "lanes of a worker group"),
            ("slot_count", f"{geometry.slot_count:,}", "ring slots, padded to full groups"),
            ("dispatch_grid", grid, "groups that are launched"),
            (
                "covering groups",
                f"{geometry.covering_worker_groups():,}",
                "groups that a lane for each slot would take",
            ),
            ("slots beyond lanes", f"{stranded:,}", "served all the same: workers loop over tickets"),
        ],
        right=(1,),
    )
