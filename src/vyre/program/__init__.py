"""What a program is. The package is also the decorator: ``@vyre.program``.

A subpackage is an attribute of its package, so ``vyre.program`` names this module as soon as anything below it is
imported; being called, it is the decorator of ``vyre.program.python``.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from vyre.program.python import program

        return program(*args, **options)


sys.modules[__name__].__class__ = _Callable
