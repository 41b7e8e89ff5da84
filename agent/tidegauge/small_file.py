"""Files that somebody else writes, and that are small: configuration, certificates, secrets."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LARGEST = 2**20
"""Bytes. The CAs of a whole system are a quarter of that."""


def read_small(path: str | Path, *, pipes: bool = False) -> bytes:
    """The content of a file, which is not read further than `LARGEST`.

    A pipe is read only where that is asked for: whoever looks again would wait for it for ever.

    Raises:
        OSError: where it cannot be read, or is larger, or a pipe.
    """
    waiting = 0 if pipes else os.O_NONBLOCK
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | waiting)) as file:
        if not pipes and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe", str(path))
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, "it is larger than 1 MiB", str(path))
    return content
