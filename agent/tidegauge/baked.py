"""Kernels that were compiled when the image was built, read from where nothing may be written.

Numba takes a cache only where it can write: on a read-only root it says "no locator available" at
import, however full the cache. `NUMBA_CACHE_LOCATOR_CLASSES=tidegauge.baked.Kernels` makes it take
`NUMBA_CACHE_DIR` as it is. What is not in there cannot be saved, and so ends the import with an
OSError: an image that would compile at each start does not start at all.
"""

from __future__ import annotations

import os

from numba.core.caching import UserProvidedCacheLocator


class Kernels(UserProvidedCacheLocator):  # type: ignore[misc]
    """The cache in `NUMBA_CACHE_DIR`, with no trial of whether it can be written to."""

    def ensure_cache_path(self) -> None:
        os.makedirs(self.get_cache_path(), exist_ok=True)
