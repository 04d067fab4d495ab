"""vyre: one kernel that stays resident and interprets bytecode."""

__version__ = "0.1.0"
