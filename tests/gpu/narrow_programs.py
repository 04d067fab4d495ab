"""Random straight programs of 32-bit values: what kernel/narrow.cuh interprets, which random_program rarely makes."""

from __future__ import annotations

import random
from typing import Final

from vyre.engines.cuda.handlers import NARROW
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import OPCODES, Group, MemType, Type

_MEMORY: Final = (MemType.f32, MemType.i32, MemType.u32)
_OPS: Final = tuple(op for op in OPCODES if op.group is Group.numeric and op.name.replace(".", "_") in NARROW)


def narrow_program(seed: int) -> Program:
    """Loads, constants, parameters, up to 40 operations, selections and one to three stores."""
    rng = random.Random(f"narrow {seed}")
    b = Builder(f"narrow_{seed}")
    held: dict[Type, list[int]] = {Type.i32: [], Type.f32: []}
    inputs = [rng.choice(_MEMORY) for _ in range(rng.randint(1, 3))]
    params = [rng.choice((MemType.f32, MemType.i32)) for _ in range(rng.randint(0, 2))]
    for i, dtype in enumerate(inputs):
        b.input(f"x{i}", dtype)
    outputs = [rng.choice(_MEMORY) for _ in range(rng.randint(1, 3))]
    for i, dtype in enumerate(outputs):
        b.output(f"y{i}", dtype)
    for i, dtype in enumerate(params):
        b.param(f"p{i}", dtype)
    for i, dtype in enumerate(inputs):
        held[dtype.type].append(b.op(f"{dtype.type.name}.load", imm=i))
    fixed: dict[Type, list[int]] = {Type.i32: [], Type.f32: []}
    for i, dtype in enumerate(params):
        fixed[dtype.type].append(b.op(f"{dtype.type.name}.param", imm=i))
    for t in held:
        for _ in range(2):
            value = (
                rng.choice((0, 1, -1, 7, 31, 1 << 20)) if t is Type.i32 else rng.choice((0.0, -1.5, 3e38, 1e-40, 0.1))
            )
            fixed[t].append(b.const(t, value))
        held[t] = held[t] or fixed[t][:1]

    def some(t: Type) -> int:
        # Constants and parameters often, old values seldom: few registers live at once.
        latest, uniform = held[t][-2:], fixed[t]
        return rng.choice(uniform if rng.random() < 0.3 else latest if rng.random() < 0.95 else held[t])

    for _ in range(rng.randint(1, 30)):
        if rng.random() < 0.1:
            t = rng.choice((Type.i32, Type.f32))
            held[t].append(b.op(f"{t.name}.select", some(t), some(t), some(Type.i32)))
            continue
        op = rng.choice(_OPS)
        assert op.result is not None
        held[op.result].append(b.op(op.name, *(some(t) for t in op.args)))
    for i, dtype in enumerate(outputs):
        b.op(f"{dtype.type.name}.store", some(dtype.type), imm=i)
    return b.build()
