"""How bytes arrive: columns of files cut into chunks, the way chosen for each file, memory lent per chunk.

source and formats say what there is to read, plan chooses the way and says why, reader carries it out into the
memory of pool, sink takes results. Nothing here decides what runs.
"""
