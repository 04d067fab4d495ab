"""Memory order of the ring: which store pairs with which load.

Each pair below is a promise, "whoever reads this also reads what was written before it". The functions that make the
accesses name the pair; the model in tests/test_ring_model.py executes those very functions under delayed stores. Its
tests weaken the releases of TAIL and of the record, and the fence and the last look of a sleeper, and find each; loads are
not delayed there, so a missing acquire would not be found.

| written by                         | read by                              | so that the reader also sees            |
|------------------------------------|--------------------------------------|-----------------------------------------|
| publish: slot status, release      | a poller of the slot, acquire        | the slot's other 15 words               |
| publish: RING_TAIL, release        | claim: RING_TAIL, acquire            | every slot below the tail, stop words   |
| claim: RING_HEAD, compare-and-swap | claim by others                      | that the ticket is taken                |
| complete: sequence_plus_1, release | is_complete, acquire                 | the record, outputs, tables, results    |
| complete: RING_COMPLETED, add      | claim of a fence, acquire            | all effects of every earlier item       |
| acknowledge: slot status, release  | publish: slot status, acquire        | that the record was read before reuse   |
| publish + fence, then SLEEPERS     | sleeper: SLEEPERS + 1, then TAIL     | one of the two sees the other           |
| complete + add, then WAITERS       | waiter: WAITERS + 1, then the record | one of the two sees the other           |

The last two are store-then-load on both sides: they need one total order (a fence or a sequentially consistent
read-modify-write between store and load), not only acquire and release.

On x86-64 every aligned store releases and every load acquires; the store-then-load pairs still need their fence. On
aarch64 the compiled functions carry the order; it is compiled in tests and has not run on such a machine.
"""
