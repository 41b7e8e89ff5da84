"""What the process does about its own memory."""

from __future__ import annotations

import gc

from numba.core.dispatcher import Dispatcher

from tidegauge import memory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 * 2**20  # the most that glibc takes for M_MMAP_THRESHOLD
_KEPT = 64 * 2**20


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory for the next message.

    By default it maps a megabyte message anew each time: copying one then takes 830 us instead of
    60, all of it page faults. Elsewhere than on glibc this does nothing.
    """
    if mallopt := memory.libc("mallopt"):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def settle() -> None:
    """Give back what starting has left behind, and take what is alive out of the collector's sight.

    Each collection would otherwise walk the 150 k objects of numba and Arrow: 9 % of a loaded agent's
    time. Kernels that had to be compiled keep their LLVM code for callers compiled later; there are none.
    """
    for kernel in [found for found in gc.get_objects() if isinstance(found, Dispatcher)]:
        for compiled in kernel.overloads.values():
            if getattr(compiled.library, "_shared_module", None) is not None:
                compiled.library._shared_module = None
    gc.collect()
    gc.freeze()
    memory.give_back()
