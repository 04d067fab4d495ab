"""``vyre explain``: the listing with the live registers after each instruction, and what the program costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vyre.commands import show

if TYPE_CHECKING:
    from vyre.program.analysis import Analysis
    from vyre.program.ir import Program


@click.command()
@click.argument("program", metavar="P")
@click.option("--type", "types", multiple=True, metavar="NAME=TYPE", help="type of an expression's input")
@click.option("--engine", type=click.Choice(("cuda",)), help="also what this engine makes of it; needs no GPU")
@click.option("--json", "json_", is_flag=True, help="print JSON")
def command(program: str, types: tuple[str, ...], engine: str | None, json_: bool) -> None:
    """Print program P line by line: instruction, live registers after it, NaN fix-ups, traps, and its cost."""
    from vyre.commands.programs import load, parse_types
    from vyre.program.analysis import analyse
    from vyre.program.verifier import verify

    verified = verify(load(program, parse_types(types)))
    facts = analyse(verified.program)
    cost = _cost(verified.program, facts)
    rows = _rows(verified.program, facts)
    image = _on_gpu(verified.program) if engine == "cuda" else None
    if json_:
        show.as_json(
            {
                "name": verified.program.name,
                "identity": verified.identity,
                "declarations": dict(_declarations(verified.program)),
                "code": rows,
                "cost": cost,
            }
            | ({"cuda": image} if image is not None else {})
        )
        return
    click.echo(f"{verified.program.name}, identity {verified.identity.hex()}")
    for kind, entries in _declarations(verified.program):
        click.echo(f"  {kind:<12} {', '.join(entries)}")
    click.echo()
    show.table(
        "",
        ("pc", "line", "instruction", "live", "registers", "notes"),
        [
            (r["pc"], r["line"] or "", "  " * r["depth"] + r["text"], len(r["live"]), _short(r["live"]), r["notes"])
            for r in rows
        ],
        right=(0, 1, 3),
    )
    click.echo()
    show.table("", ("", "", ""), [(c["what"], f"{c['count']:,}", c["unit"]) for c in cost], right=(1,))
    if image is not None:
        click.echo()
        show.table(
            "On the GPU: p is a plane of the warp's register file, # a constant; what nothing names is the accumulator",
            ("pc", "handler", "operands", "notes"),
            [(r["pc"], r["handler"], r["operands"], r["notes"]) for r in image["records"]],
            right=(0,),
        )
        click.echo()
        show.table("", ("", "", ""), [(c["what"], f"{c['count']:,}", c["unit"]) for c in image["cost"]], right=(1,))


def _declarations(program: Program) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = [
        ("inputs", [f"{s.name}: {s.dtype.name}" for s in program.inputs]),
        ("outputs", [f"{s.name}: {s.dtype.name}" for s in program.outputs]),
        ("parameters", [f"{p.name}: {p.dtype.name}" for p in program.params]),
        ("tables", [f"{t.name}: {t.access.name} {t.dtype.name}" for t in program.tables]),
        (
            "accumulators",
            [
                f"{a.name}: {a.kind.name} {a.dtype.name}" + (f"[{a.bins}]" if a.bins else "")
                for a in program.accumulators
            ],
        ),
        ("emits", [f"{s.name}: {s.dtype.name}" for s in program.emits]),
    ]
    return [(kind, entries) for kind, entries in found if entries]


def _rows(program: Program, facts: Analysis) -> list[dict[str, Any]]:
    from vyre.program.opcodes import BY_CODE
    from vyre.program.show import show as spell

    rows = []
    depth = 0
    for pc, instr in enumerate(program.code):
        op = BY_CODE[instr.op]
        if op.name in ("end", "else"):
            depth -= 1
        notes = []
        if facts.canonical[pc]:
            notes.append("NaN made canonical")
        if facts.blend[pc]:
            notes.append("blends")
        if op.traps:
            notes.append("traps: " + ", ".join(trap.name.replace("_", " ") for trap in op.traps))
        live = facts.live_out[pc] | facts.held[pc]
        rows.append(
            {
                "pc": pc,
                "line": program.line_of(pc),
                "depth": depth,
                "text": spell(program, pc),
                "live": [r for r in range(live.bit_length()) if live >> r & 1],
                "notes": "; ".join(notes),
            }
        )
        if op.name in ("if", "else", "loop"):
            depth += 1
    return rows


def _on_gpu(program: Program) -> dict[str, Any]:
    """The rewritten form and its live set."""
    from vyre.engines.cuda.abi import ELEMENTS_PER_LANE, WARP
    from vyre.engines.cuda.lower import lower
    from vyre.engines.cuda.show import SHARED_OF_WARP, header_of, lanes_for, records_of

    image = lower(program)
    header = header_of(image)
    records = [
        {"pc": r.pc, "handler": r.handler, "operands": r.operands, "notes": "; ".join(filter(None, (r.notes, r.way)))}
        for r in records_of(image)
    ]
    lanes = lanes_for(image, SHARED_OF_WARP)
    cost = [
        ("records", len(records), "rewritten instructions"),
        (
            "planes",
            image.planes,
            "32 bits of a register for all elements of a pass; the largest set that is live at once",
        ),
        ("uniform slots", header["slots"], f"constants and parameters, {header['constant_slots']} of them constants"),
        ("block depth", header["depth"], "nested branches and loops"),
        (
            "lanes",
            lanes,
            f"of {WARP} carry {ELEMENTS_PER_LANE} elements each, with {SHARED_OF_WARP:,} bytes a warp (sm_90)",
        ),
        ("elements", lanes * ELEMENTS_PER_LANE, "in a pass of a warp"),
        ("shared memory", image.shared_bytes, "bytes that a warp needs at the least"),
        ("code", len(image.data), "bytes in the arena"),
    ]
    if image.heap_bytes:
        cost.append(("device memory", image.heap_bytes, "bytes per warp for float sums"))
    if image.quick:
        cost.append(("tile", 1, "run by the polling warp itself when it comes alone"))
    return {"records": records, "cost": [{"what": w, "count": c, "unit": u} for w, c, u in cost]}


def _short(registers: list[int]) -> str:
    """Registers with runs drawn together: r0-r3 r7."""
    runs: list[list[int]] = []
    for register in registers:
        if runs and runs[-1][1] == register - 1:
            runs[-1][1] = register
        else:
            runs.append([register, register])
    return " ".join(f"r{a}" if a == b else f"r{a}-r{b}" for a, b in runs)


def _cost(program: Program, facts: Analysis) -> list[dict[str, Any]]:
    """What one element costs. Loop bodies count once: how often they run is known only when they do."""
    from vyre.program.opcodes import BY_CODE, MAX_REGISTERS, Group

    ops = [BY_CODE[instr.op] for instr in program.code]
    groups = {group: sum(op.group is group for op in ops) for group in Group}
    read = sum(stream.dtype.size for stream in program.inputs)
    written = sum(stream.dtype.size for stream in program.outputs)
    emitted = sum(stream.dtype.size for stream in program.emits)
    loops = sum(op.name == "loop" for op in ops)
    cost = [
        ("instructions", len(ops), "in all" + (f"; {loops} loops, bodies counted once" if loops else "")),
        ("numeric", groups[Group.numeric], "arithmetic, comparisons, conversions"),
        ("functions", groups[Group.function], "elementary functions, each many instructions when expanded"),
        ("control", groups[Group.control], "branches, loops and their ends"),
        ("NaN fix-ups", sum(facts.canonical), "results that must be made canonical"),
        ("blends", sum(facts.blend), "results that must keep the lanes of another branch"),
        ("live registers", facts.max_live, f"at most at once, of {MAX_REGISTERS}"),
        ("bytes read", read, "per element"),
        ("bytes written", written, "per element" + (f", and up to {emitted} emitted" if emitted else "")),
        ("fuel", program.fuel, "loop iterations that one element may take"),
    ]
    return [{"what": what, "count": count, "unit": unit} for what, count, unit in cost]
