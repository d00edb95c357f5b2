"""What torch and transformers import and no model's process needs: left out until it is used.

`torch._dynamo`, which compiles models, is imported by transformers for decorators that do nothing
where no model is compiled, and for a class that few models use. scikit-learn is imported by it for
assisted generation with a confidence threshold alone, which is not served. Together they are 40 %
of the CPU time of the imports of such a process (9.4 s, then 5.7 s, on a busy machine).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_TRACED = f"{_COMPILER}._trace_wrapped_higher_order_op"


class _Later(ModuleType):
    """A module that is imported when something is taken from it that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        # Python asks each module for these; a package's path is what its submodules need.
        if name.startswith("__") and (self.__name__, name) != (_COMPILER, "__path__"):
            raise AttributeError(name)
        return getattr(_compiler(self.__name__), name)


def _compiler(name: str) -> ModuleType:
    """The module itself, in the place of what stood for it."""
    for each in (_COMPILER, _TRACED):
        if isinstance(sys.modules.get(each), _Later):
            del sys.modules[each]
    return import_module(name)


def _unmarked(fn: Any = None, *_: object, **__: object) -> Any:
    """In the place of decorators that tell the compiler what to do with a function."""
    return (lambda function: function) if fn is None else fn


def _transform_get_item_to_index() -> Any:
    """A context in which masks are made element by element, of the compiler's class."""
    return _compiler(_TRACED).TransformGetItemToIndex()


def import_torch() -> None:
    """Imports torch without what is not needed. Call it before transformers is imported."""
    import_module("torch")  # which asks for the compiler if it seems to be there
    if _COMPILER in sys.modules:
        return
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]  # as if not installed
    compiler, traced = _Later(_COMPILER), _Later(_TRACED)
    for decorator in ("disable", "allow_in_graph"):
        vars(compiler)[decorator] = _unmarked
    vars(traced)["TransformGetItemToIndex"] = _transform_get_item_to_index
    sys.modules |= {_COMPILER: compiler, _TRACED: traced}
