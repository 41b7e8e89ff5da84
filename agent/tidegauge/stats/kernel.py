"""How kernels are compiled, kept, and loaded when they are first called.

A kernel is compiled when its module is imported, unless numba's cache has it: then it is loaded when it is
first called, which takes 2 to 5 ms. Many are only ever called by other kernels, which have them inside,
and an agent that gets no log records needs none for those. Loaded at import, all that there are took a
second and 27 MB more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core.caching import FunctionCache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.typeinfer import register_dispatcher

KERNEL = {"cache": True, "nogil": True, "_nrt": False}
"""Options of a kernel that allocates nothing: numba's reference counts are atomic, and where they are of
no use they took two thirds of a reader's time."""

INLINE = KERNEL | {"forceinline": True}
"""Options of what is called for each byte, or each item."""


def kernel(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` of one explicit signature, in numba's cache, but loaded from there at the first use only.

    >>> @kernel("int64(int64)")
    ... def twice(number):
    ...     return 2 * number
    >>> twice(21)
    42
    """

    def decorate(function: Callable[..., Any]) -> Any:
        made: Any = numba.njit(**options | {"cache": False})(function)
        if made is function:  # NUMBA_DISABLE_JIT
            return made
        if options.get("cache"):
            made._cache = Stored(function)
            if made._cache.has(signature):
                _load_at_first_use(made, signature)
                return made
        with register_dispatcher(made):
            made.compile(signature)
        made.disable_compile()
        return made

    return decorate


class Stored(FunctionCache):  # type: ignore[misc]
    """numba's cache of one function, which keeps no more of it than a call takes.

    Not imported are the implementations of all that may be compiled, 56 modules and 15 MB: compiling does it
    itself. Not kept is a kernel's LLVM code, for callers that are compiled later: they read it once more.
    """

    def has(self, signature: Any) -> bool:
        """Whether it is there, compiled from this source for this CPU."""
        file = self._cache_file
        name = file._load_index().get(self._key(signature, cpu_target.target_context))
        return name is not None and os.path.exists(file._data_path(name))

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function, or None where it is not there."""
        rtsys.initialize(target_context)
        key = self._key(signature, target_context)
        with self._guard_against_spurious_io_errors():
            stored = self._cache_file.load(key)
            if stored is None:
                return None
            found = CompileResult._rebuild(target_context, *stored)
            library = found.library
            library._shared_module = None
            library._get_module_for_linking = lambda: self._linkable(key)
            return found._replace(type_annotation="")

    def _linkable(self, key: Any) -> Any:
        """What callers compiled from now on are linked with."""
        (_, _, (_, bitcode)), *_ = self._cache_file.load(key)
        return llvm.parse_bitcode(bitcode)

    def _key(self, signature: Any, target_context: Any) -> Any:
        return self._index_key(signature, target_context.codegen())


def _load_at_first_use(made: Any, signature: Any) -> None:
    """Have `made` compiled for `signature` when it is called, or a caller of it compiled. From any thread."""

    def load() -> None:
        with global_compiler_lock:
            if made._can_compile:
                made.compile(signature)
                made.disable_compile()

    def called(*_: Any, **__: Any) -> Any:
        load()
        return made  # which is then called instead, and has what it is called for

    def linked(args: Any, kws: Any) -> Any:
        load()
        return type(made).get_call_template(made, args, kws)

    made._compile_for_args = called
    made.get_call_template = linked
