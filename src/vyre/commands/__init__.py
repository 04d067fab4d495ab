"""The commands of ``vyre``, one module each; ``vyre.cli`` finds them and imports only the one that is run.

Owns: what a command takes and prints. Leaves to others: all work. A module's ``command`` is its click command; heavy
imports stand inside the functions that need them, so that ``vyre --help`` and a typing error answer at once.
"""
