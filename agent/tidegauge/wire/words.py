"""Eight bytes at a time: what numba has no expression for and a processor has an instruction for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_WORD, _PRODUCT = ir.IntType(64), ir.IntType(128)


def _load(typing_context: Any, buf: Any, pos: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        # align=1: fields of a message lie anywhere.
        return builder.load(builder.bitcast(pointer, _WORD.as_pointer()), align=1)

    return types.uint64(buf, types.int64), generate


load: Any = intrinsic(_load)
"""The eight bytes at `pos` of a uint8 array, first one lowest. Nothing checks that they are there."""


def _swap(typing_context: Any, value: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


swap: Any = intrinsic(_swap)
"""A word with its bytes in reverse."""


def _fold(typing_context: Any, one: Any, other: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one, other = (builder.zext(argument, _PRODUCT) for argument in arguments)
        product = builder.mul(one, other)
        high = builder.lshr(product, ir.Constant(_PRODUCT, 64))
        return builder.trunc(builder.xor(product, high), _WORD)

    return types.uint64(types.uint64, types.uint64), generate


fold: Any = intrinsic(_fold)
"""The upper half of the 128-bit product of two words, xor the lower one."""
