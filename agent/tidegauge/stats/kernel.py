"""How kernels are compiled."""

from __future__ import annotations

KERNEL = {"cache": True, "nogil": True, "_nrt": False}
"""Options of a kernel that allocates nothing: numba's reference counts are atomic, and where they are of
no use they took two thirds of a reader's time."""

INLINE = KERNEL | {"forceinline": True}
"""Options of what is called for each byte, or each item."""
