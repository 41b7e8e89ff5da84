"""Reading memory that Arrow or a message owns, at addresses that Arrow tells."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _as_pointer(typing_context: Any, address: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


as_pointer: Any = intrinsic(_as_pointer)
"""An integer address as a `void*`, for `numba.carray`."""


def _peek(typing_context: Any, address: Any, index: Any, kind: Any) -> Any:
    value = kind.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], context.get_value_type(value).as_pointer())
        # align=1: in a message values lie anywhere.
        return builder.load(builder.gep(pointer, [arguments[1]]), align=1)

    return value(types.int64, types.int64, kind), generate


peek: Any = intrinsic(_peek)
"""The element at an index of values of a numpy type that begin at an address."""
