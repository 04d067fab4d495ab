"""Random functions give, element for element, what Python gives; `python tests/test_front_random.py FIRST COUNT` runs more."""

import re
import sys

import numpy as np
import pytest

from random_functions import Writer
from vyre.engines.reference import execute
from vyre.errors import CompileError
from vyre.program.opcodes import FaultCode
from vyre.program.python import compile_function

VALUES = np.array([-7, -1, 0, 1, 2, 3, 5, 8, 12, 40], np.int64)
A, B = np.repeat(VALUES, len(VALUES)), np.tile(VALUES, len(VALUES))


def check(seed, folder):
    """True where the function compiled and agreed, False where it was refused for a variable without a value."""
    source = Writer(seed).function()
    path = folder / f"random_{seed}.py"
    path.write_text(source)
    names = {}
    exec(compile(source, str(path), "exec"), names)
    try:
        compiled = compile_function(names["f"])
    except CompileError as error:
        if not re.search(r"'d' (may have|has) no value here|unknown name 'd'", error.message):
            raise
        return False
    result = execute(compiled.program, [A, B], [], [], 0, len(A))
    try:
        want = [names["f"](a, b) for a, b in zip(A.tolist(), B.tolist(), strict=True)]
    except ZeroDivisionError:
        want = None
    if want is None:
        assert result.fault, f"seed {seed}\n{source}"
        assert result.fault.code == FaultCode.divide_by_zero, f"seed {seed}\n{source}"
        return True
    assert result.fault is None, f"seed {seed}: {result.fault}\n{source}"
    assert result.outputs[0].tolist() == want, f"seed {seed}\n{source}"
    return True


@pytest.mark.parametrize("block", range(4))
def test_random_functions_give_what_python_gives(block, tmp_path):
    agreed = sum(check(seed, tmp_path) for seed in range(30 * block, 30 * block + 30))
    assert agreed > 12


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    first, count = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        agreed = sum(check(seed, Path(folder)) for seed in range(first, first + count))
    print(f"{agreed} of {count} functions agreed, the others were refused for a variable without a value")
