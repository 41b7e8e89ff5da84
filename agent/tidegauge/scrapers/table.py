"""The function table of NVML: the library, or what stands in its place.

Below the bindings there is only this: an object with NVML's functions as attributes. A table of one's
own sees the very calls that the library would, with their ctypes arguments, so what lies above,
the bindings included, runs as it does on a machine with a GPU.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml


def install(table: object) -> None:
    """Have the bindings call `table`, in this process from now on."""
    pynvml.nvmlLib = table
    pynvml._nvmlGetFunctionPointer_cache.clear()


def outputs(arguments: tuple[Any, ...]) -> dict[int, Any]:
    """The arguments that a call may write to, by place: what is passed by reference, and arrays."""
    found = {}
    for place, argument in enumerate(arguments):
        if type(argument).__name__ == "CArgObject":  # of ctypes.byref, which has no public name
            found[place] = argument._obj
        elif isinstance(argument, ctypes.Array):
            found[place] = argument
    return found
