"""What the lowering of an instruction has to know of later ones: stores, loads, loops, sums, emits and conditions.

Owns: finding it, in one pass before the first record. Leaves to others: facts that other engines need too (program/analysis).
"""

from __future__ import annotations

from vyre.engines.cpu import plan as p
from vyre.engines.cpu.lowering import IDENTITY, State
from vyre.program.opcodes import AccKind


def survey(low: State) -> None:
    """What has to be known of later instructions: stores, loads, loops, sums and emits."""
    program, facts = low.program, low.facts
    if not facts.has_blocks:
        _survey_straight(low)
        return
    stores: list[tuple[int, int, int, int, bool]] = []
    sums: dict[int, int] = {}
    emits: dict[int, int] = {}
    loops: list[list[int]] = []
    depth = 0
    blend = facts.blend
    alias = pinned = 0
    for pc, (op, dst, a, _, _, imm) in enumerate(program.code):
        plan = p.PLANS[op]
        kind = plan.kind
        if loops and plan.size:
            for loop in loops:
                loop[1] |= 1 << dst
        if blend[pc]:
            pinned |= 1 << dst
        if kind == p.COMPUTE:
            continue
        if kind == p.LOAD:
            low.last_load = loops[0][2] if loops else pc
            alias |= 1 << dst
        elif kind == p.MOV:
            alias |= 1 << dst
        elif kind == p.STORE:
            stores.append((pc, imm, a, depth, bool(loops)))
        elif kind == p.ACC:
            if plan.op.args[0].is_float and program.accumulators[imm].kind is AccKind.sum:
                sums[imm] = sums.get(imm, 0) + (2 if loops else 1)
        elif kind == p.EMIT:
            emits[imm] = emits.get(imm, 0) + 1
        elif kind == p.IF:
            depth += 1
            _decide(low, pc, a)
        elif kind == p.LOOP:
            depth += 1
            low.uses_fuel = True
            loops.append([pc, 0, imm])
        elif kind == p.END:
            depth -= 1
            if loops and loops[-1][2] == pc:
                start, assigned, _ = loops.pop()
                low.carried[start] = facts.live_out[start] & assigned
                pinned |= low.carried[start]
                low.homes[start] = facts.live_out[pc] & assigned
    low.alias, low.pinned = alias & ~pinned, pinned
    for acc, times in sums.items():
        if times > 1:
            low.partial[acc] = True
    for stream, times in emits.items():
        if times > 1:
            size = program.emits[stream].dtype.type.size
            low.flags[stream] = low.virtual(size), low.virtual(4)
            low.pinned |= 1 << low.flags[stream][0] | 1 << low.flags[stream][1]
    _survey_stores(low, stores)


def _decide(low: State, pc: int, condition: int) -> None:
    """Comparisons that do nothing but decide this if, alone or joined by ``and``, go straight into its mask.

    A lane's mask is a byte where a register's lane is four or eight, and the joins vanish.
    """
    code, facts = low.program.code, low.facts
    if (facts.live_out[pc] | facts.held[pc]) >> condition & 1:
        return
    wanted = {condition}
    found: dict[int, str] = {pc: "test"}
    first = at = pc
    while wanted:
        at -= 1
        if at < 0:
            return
        op, dst, a, b, _, _ = code[at]
        plan = p.PLANS[op]
        if plan.size and dst in wanted:
            wanted.remove(dst)
            if facts.blend[at]:
                return
            if op in p.COMPARES:
                found[at] = ".mask.and"
                first = at
                continue
            after = facts.live_out[at] | facts.held[at]
            if op != p.AND or a == b or a in wanted or b in wanted or after >> a & 1 or after >> b & 1:
                return
            found[at] = ""
            wanted |= {a, b}
        elif p.IF <= plan.kind <= p.BR_IF or not wanted.isdisjoint(code[at][2 : 2 + plan.args]):
            return
    found[first] = ".mask"
    low.direct.update(found)


def _survey_straight(low: State) -> None:
    """The same for a program without blocks: what nearly every formula is."""
    program, kinds = low.program, p.KINDS
    stores: list[tuple[int, int, int, int, bool]] = []
    alias = 0
    for pc, instruction in enumerate(program.code):
        kind = kinds[instruction[0]]
        if not kind:
            continue
        if kind == p.LOAD:
            low.last_load = pc
            alias |= 1 << instruction[1]
        elif kind == p.STORE:
            stores.append((pc, instruction[5], instruction[2], 0, False))
        elif kind == p.MOV:
            alias |= 1 << instruction[1]
        elif kind == p.ACC:
            acc = instruction[5]
            if p.PLANS[instruction[0]].op.args[0].is_float and program.accumulators[acc].kind is AccKind.sum:
                if acc in low.partial:
                    low.partial[acc] = True
                else:
                    low.partial[acc] = False
    low.alias = alias
    low.partial = {acc: True for acc, twice in low.partial.items() if twice}
    _survey_stores(low, stores)


def _survey_stores(low: State, stores: list[tuple[int, int, int, int, bool]]) -> None:
    facts = low.facts
    times: dict[int, int] = {}
    deep = {output for _, output, _, depth, _ in stores if depth}
    for pc, output, _, _, in_loop in stores:
        times[output] = times.get(output, 0) + 1
        late = pc > low.last_load and not (facts.live_out[pc] | facts.held[pc]) & low.alias
        if low.wait and (in_loop or not late) and output not in low.deferred:
            virtual = low.deferred[output] = low.virtual(low.program.outputs[output].dtype.type.size)
            if output in deep:
                low.pinned |= 1 << virtual
    for pc, output, register, depth, _ in stores:
        if depth or times[output] > 1 or output in low.deferred or low.pinned >> register & 1:
            continue
        if IDENTITY[low.program.outputs[output].dtype]:
            _find_forward(low, pc, output, register)


def _find_forward(low: State, pc: int, output: int, register: int) -> None:
    """The result that this store stores may go to the output itself, when no later record reads an input."""
    code, facts = low.program.code, low.facts
    bit = 1 << register
    while pc > 0:
        pc -= 1
        plan = p.PLANS[code[pc].op]
        if p.IF <= plan.kind <= p.BR_IF:
            return
        if plan.size and code[pc].dst == register:
            late = pc >= low.last_load and not facts.live_out[pc] & low.alias & ~bit
            if late and pc not in low.forward:
                low.forward[pc] = output
            return
