"""Rules that strangers send as text, applied to a stream of records: thousands of them, none compiled twice.

A rule is checked and bounded before it runs: it can compute with the columns it is given, and nothing else.

    python examples/scoring_rule.py
"""

from __future__ import annotations

import numpy as np

import vyre

COLUMNS = {"age": vyre.f32, "income": vyre.f32, "late": vyre.i32}

RULES = [
    "0.3*age + 2*log(income) - 5*late",
    "where(late > 2, 0, sqrt(income) / 10)",
    "min(100, income / 1000) * (age >= 18)",  # bool is no number here
    "__import__('os').system('echo gotcha')",
    "age.real + 1",
    "where(age > 30 and income > 2e4, 10.0, 1.0) + late % 3",
]


def main(rows: int = 10_000) -> None:
    rng = np.random.default_rng(3)
    columns = {
        "age": rng.uniform(10, 90, rows).astype(np.float32),
        "income": rng.lognormal(10, 1, rows).astype(np.float32),
        "late": rng.integers(0, 6, rows, dtype=np.int32),
    }
    accepted = 0
    with vyre.open() as session:
        for text in RULES:
            try:
                rule = vyre.expression(text, types=COLUMNS, max_instructions=200)
            except vyre.CompileError as error:
                print(f"refused       {text}\n              {error.message}")
                continue
            result = session.run(rule, {name: columns[name] for name in rule.inputs})
            print(f"mean {np.asarray(result['value']).mean():8.2f} {text}")
            accepted += 1
    assert accepted == 3


if __name__ == "__main__":
    main()
