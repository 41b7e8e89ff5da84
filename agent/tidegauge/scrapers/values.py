"""ctypes values as plain ones for JSON, and back.

Structures become objects, arrays lists without the zeros at their end, strings text, unions the
number that their bytes are. A pointer is something of NVML's, such as a device: it becomes a name.
"""

from __future__ import annotations

import ctypes
from typing import Any

Plain = Any
"""What JSON can hold."""

_POINTER = ctypes.POINTER(ctypes.c_int).__mro__[1]  # ctypes' base of all pointers, which has no public name


class Names:
    """Names for addresses, such as Device1: given in order of appearance, the other way round too."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._addresses: dict[str, int] = {}

    def name(self, pointer: Any) -> str | None:
        """The name of what a pointer points to; None for NULL."""
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if address is None:
            return None
        if address not in self._names:
            kind = type(pointer).__name__.removeprefix("LP_struct_c_nvml").removesuffix("_t")
            count = sum(one.rstrip("0123456789") == kind for one in self._addresses) + 1
            self._names[address] = f"{kind}{count}"
            self._addresses[self._names[address]] = address
        return self._names[address]

    def address(self, name: str | None) -> int | None:
        """An address that stands for the name. Nothing is there."""
        if name is None:
            return None
        if name not in self._addresses:
            self._addresses[name] = 0x1000 + 16 * len(self._addresses)
            self._names[self._addresses[name]] = name
        return self._addresses[name]


def is_pointer(value: object) -> bool:
    """Whether it is a ctypes pointer."""
    return isinstance(value, _POINTER)


def plain(value: Any, names: Names) -> Plain:
    """A ctypes value as a plain one."""
    if is_pointer(value):
        return names.name(value)
    if isinstance(value, ctypes.Union):
        return int.from_bytes(bytes(value), "little")
    if isinstance(value, ctypes.Structure):
        return {field[0]: plain(getattr(value, field[0]), names) for field in value._fields_}
    if isinstance(value, ctypes.Array):
        if value._type_ is ctypes.c_char:
            return value.value.decode("utf-8", "replace")
        return _trimmed([plain(one, names) for one in value])
    if isinstance(value, ctypes._SimpleCData):
        value = value.value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def fill(value: Any, recorded: Plain, names: Names) -> None:
    """Write a plain value into a ctypes one, as far as there is room."""
    if is_pointer(value):
        ctypes.c_void_p.from_address(ctypes.addressof(value)).value = names.address(recorded)
    elif isinstance(value, ctypes.Union):
        size = ctypes.sizeof(value)
        ctypes.memmove(ctypes.addressof(value), recorded.to_bytes(size, "little"), size)
    elif isinstance(value, ctypes.Structure):
        for name, kind, *_ in value._fields_:
            if name in recorded:
                _fill_member(value, name, kind, recorded[name], names)
    elif isinstance(value, ctypes.Array):
        if value._type_ is ctypes.c_char:
            value.value = recorded.encode()[: len(value)]
        else:
            for place, one in enumerate(recorded[: len(value)]):
                if isinstance(value[place], int | float):
                    value[place] = one
                else:
                    fill(value[place], one, names)
    else:
        value.value = recorded


def _fill_member(structure: Any, name: str, kind: Any, recorded: Plain, names: Names) -> None:
    if issubclass(kind, _POINTER):
        setattr(structure, name, ctypes.cast(ctypes.c_void_p(names.address(recorded)), kind))
    elif isinstance(recorded, str):
        setattr(structure, name, recorded.encode())
    elif issubclass(kind, ctypes.Structure | ctypes.Union | ctypes.Array):
        fill(getattr(structure, name), recorded, names)
    else:
        setattr(structure, name, recorded)


def _trimmed(values: list[Plain]) -> list[Plain]:
    while values and not _any(values[-1]):
        values.pop()
    return values


def _any(value: Plain) -> bool:
    if isinstance(value, dict):
        return any(_any(one) for one in value.values())
    return bool(value)
