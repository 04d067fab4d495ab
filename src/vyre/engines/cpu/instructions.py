"""Lowering of the instructions that are not plain arithmetic: traps, memory, results and control.

Owns: what records each of them becomes. Leaves to others: arithmetic (tileform), where things lie (lowering).
"""

from __future__ import annotations

from typing import Final

from vyre.engines.cpu import plan as p
from vyre.engines.cpu.abi import LANES, PTR_INPUTS, PTR_OUTPUTS, SCRATCH_SLOTS
from vyre.engines.cpu.lowering import FIELDS, VIRTUAL, State
from vyre.program.opcodes import AccKind, MemType


def _define(
    low: State,
    dst: int,
    plan: p.Plan,
    wave: int,
    name: str,
    a: int = 0,
    b: int = 0,
    c: int = 0,
    imm: int = 0,
    aux: int = 0,
) -> None:
    """A record that computes ``dst``: into fresh scratch, its home, an output, or under the mask. Never in place."""
    size, pc = plan.size, low.pc
    bit = 1 << dst
    if low.facts.blend[pc]:
        temporary = low.alloc(size)
        low.emit(name, temporary, a, b, c, imm, aux)
        low.emit(f"blend.{size}", low.home(dst, size), temporary)
        low.release(temporary, size)
        return
    if low.pinned & bit:
        target = low.home(dst, size)
    elif pc in low.forward:
        low.drop(bit)
        target = low.loc[dst] = PTR_OUTPUTS + low.forward[pc]
    else:
        target = low.alloc(size)
        low.drop(bit)
        low.have |= bit
        low.loc[dst] = target
    low.emit(name, target, a, b, c, imm, aux)


def _assign(low: State, dst: int, size: int, location: int) -> None:
    """``dst`` := what lies at ``location``, by name where that is possible."""
    bit = 1 << dst
    if low.pinned & bit and dst < VIRTUAL:
        blended = low.facts.blend[low.pc]
        target = low.home(dst, size)
        if location < 0:
            bits, aux, _, _ = low.uniforms[~location]
            low.emit(f"blend.u.{size}" if blended else f"fill.{size}", target, imm=bits, aux=aux)
        elif location != target:
            low.emit(f"{'blend' if blended else 'copy'}.{size}", target, location)
        return
    if 0 <= location < SCRATCH_SLOTS:
        low.users[location] += 1  # before the old value goes: it may be the same slot
        low.drop(bit)
        low.have |= bit
    else:
        low.drop(bit)
    low.loc[dst] = location


def _trapping(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, a, b, _, _ = instruction
    la = low.vector(low.loc[a])
    lb = low.vector(low.loc[b]) if plan.args > 1 else 0
    _define(low, dst, plan, wave, plan.names[0] + (".masked" if low.mask else ""), la, lb)


def _load(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, _, _, _, imm = instruction
    dtype = low.program.inputs[imm].dtype
    if dtype.is_identity:
        _assign(low, dst, plan.size, PTR_INPUTS + imm)
    else:
        _define(low, dst, plan, wave, f"load.{dtype.name}", PTR_INPUTS + imm)


def _store(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, _, a, _, _, imm = instruction
    virtual = low.deferred.get(imm)
    location = low.loc[a]
    if virtual is not None:
        _set_virtual(low, virtual, location, a)
    elif location != PTR_OUTPUTS + imm:
        dtype = low.program.outputs[imm].dtype
        low.emit(p.store_name(dtype, low.mask > 0), PTR_OUTPUTS + imm, low.vector(location))


def _set_virtual(low: State, virtual: int, location: int, register: int) -> None:
    """A value that waits for the end: under the mask into its home, else by name unless it may change or be an input."""
    size, bit = low.size[virtual], 1 << virtual
    if low.pinned & bit:
        if location < 0:
            bits, aux, _, _ = low.uniforms[~location]
            low.emit(f"blend.u.{size}" if low.mask else f"fill.{size}", low.home(virtual, size), imm=bits, aux=aux)
        else:
            low.emit(f"{'blend' if low.mask else 'copy'}.{size}", low.home(virtual, size), location)
    elif location >= PTR_INPUTS or low.pinned >> register & 1:
        low.drop(bit)
        low.loc[virtual] = low.alloc(size)
        low.have |= bit
        low.emit(f"copy.{size}", low.loc[virtual], location)
    else:
        _assign(low, virtual, size, location)


def _const(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, _, _, _, imm = instruction
    _assign(low, dst, plan.size, low.uniform(low.program.constants[imm], 0, plan.size))


def _param(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, _, _, _, imm = instruction
    _assign(low, dst, plan.size, low.uniform(0, imm + 1, plan.size))


def _mov(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, a, _, _, _ = instruction
    location = low.loc[a]
    if low.pinned >> a & 1 and not low.pinned >> dst & 1:
        _define(low, dst, plan, wave, f"copy.{plan.size}", location)
    elif dst != a:
        _assign(low, dst, plan.size, location)


def _select(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, a, b, c, _ = instruction
    la, lb, lc = low.loc[a], low.loc[b], low.vector(low.loc[c])
    imm = aux = 0
    name = plan.names[0]
    if lb < 0 <= la:
        name = plan.uniform_b[0]
        imm, aux, _, _ = low.uniforms[~lb]
        lb = 0
    elif la < 0 <= lb:
        name = plan.uniform_a[0]
        imm, aux, _, _ = low.uniforms[~la]
        la = 0
    else:
        la, lb = low.vector(la), low.vector(lb)
    _define(low, dst, plan, wave, name, la, lb, lc, imm, aux)


def _table_get(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, a, _, _, imm = instruction
    verb = "table_page" if imm in low.paged else "table_get"
    name = f"{verb}.{low.program.tables[imm].dtype.name}" + (".masked" if low.mask else "")
    _define(low, dst, plan, wave, name, low.vector(low.loc[a]), imm=imm)


def _index(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _define(low, instruction[1], plan, wave, "index")


def _atomic(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, _, a, b, _, imm = instruction
    la, lb = low.vector(low.loc[a]), low.vector(low.loc[b])
    low.emit(plan.names[0] + (".masked" if low.mask else ""), 0, la, lb, imm=imm)


def _acc(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, _, a, _, _, imm = instruction
    acc = low.program.accumulators[imm]
    factors = low.factors.get(low.pc)
    if factors is not None:
        low.emit(f"{plan.op.name}.mul" + (".masked" if low.mask else ""), 0, *factors, imm=imm)
        return
    name = plan.op.name + (".update" if imm in low.partial else "") + (".masked" if low.mask else "")
    aux = acc.bins if acc.kind is AccKind.histogram else 0
    low.emit(name, 0, low.vector(low.loc[a]), imm=imm, aux=aux)


def _emit(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, _, a, _, _, imm = instruction
    waiting = low.flags.get(imm)
    if waiting is None:
        dtype = low.program.emits[imm].dtype
        low.emit(p.emit_name(dtype, "masked" if low.mask else "all"), 0, low.vector(low.loc[a]), imm=imm)
        return
    value, flag = waiting
    _set_virtual(low, value, low.loc[a], a)
    low.emit("blend.u.4" if low.mask else "fill.4", low.loc[flag], imm=1)


def _if(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    nested = low.mask > 0
    low.mask += LANES
    if low.pc in low.direct:
        record = low.emit("test.nested" if nested else "test")
    else:
        record = low.emit("if.nested" if nested else "if", 0, low.vector(low.loc[instruction[2]]))
    low.blocks.append((record, 0))


def _else(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    opener, _ = low.blocks.pop()
    record = low.emit("else.nested" if low.mask > LANES else "else")
    low.aim(opener, record)
    low.blocks.append((record, 0))


def _loop(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    nested = low.mask > 0
    low.mask += LANES
    homes = (
        low.homes[low.pc] & ~low.have
    )  # a slot taken further on may be scratch of an earlier instruction of the body
    while homes:
        register = homes.bit_length() - 1
        homes ^= 1 << register
        low.home(register, low.size[register])
    record = low.emit("loop.nested" if nested else "loop")
    low.blocks.append((record, 1))
    low.reserved.append(low.reserved[-1] | low.carried[low.pc])


def _br_if(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    record = low.emit("br_if", 0, low.vector(low.loc[instruction[2]]))
    low.aim(record, low.blocks[-1][0] + 1)


def _end(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    opener, loop = low.blocks.pop()
    low.mask -= LANES
    if loop:
        low.reserved.pop()
    else:
        low.aim(opener, len(low.out) // FIELDS)


def _unreachable(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    low.emit("unreachable.masked" if low.mask else "unreachable")


def _nothing(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    pass


def _return(low: State, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    for acc in low.partial:
        low.emit("sum.close", imm=acc)
    for stream, (value, flag) in low.flags.items():
        dtype: MemType = low.program.emits[stream].dtype
        low.emit(p.emit_name(dtype, "flagged"), 0, low.loc[value], low.loc[flag], imm=stream)
    for output, virtual in low.deferred.items():
        dtype = low.program.outputs[output].dtype
        low.emit(p.store_name(dtype, False), PTR_OUTPUTS + output, low.vector(low.loc[virtual]))


OTHERS: Final = {
    p.TRAPPING: _trapping, p.LOAD: _load, p.STORE: _store, p.CONST: _const, p.PARAM: _param, p.MOV: _mov, p.SELECT: _select,
    p.TABLE_GET: _table_get, p.INDEX: _index, p.ATOMIC: _atomic, p.ACC: _acc, p.EMIT: _emit, p.IF: _if, p.ELSE: _else,
    p.END: _end, p.LOOP: _loop, p.BR_IF: _br_if, p.UNREACHABLE: _unreachable, p.NOTHING: _nothing, p.RETURN: _return,
}  # fmt: skip
