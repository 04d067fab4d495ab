"""Figures that were measured: their schema, their check against targets, their table and their picture.

Leaves to others: measuring (benchmarks/bench_*.py, which write what ``schema`` reads).
"""
