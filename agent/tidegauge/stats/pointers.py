"""Reading memory that Arrow owns, at addresses that Arrow's C data interface tells."""

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
