"""Unix sockets to listen on: under their name only when their mode is set, and never another's."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 1.0


@contextmanager
def naming(path: str, mode: int) -> Iterator[str]:
    """A name to bind to; on leaving, the socket gets `mode` and then the name `path`.

    Nobody can connect in between: the name is not known and the mode is the owner's alone. A socket that
    nobody listens on any more is replaced.

    Raises:
        OSError: EADDRINUSE where somebody listens on `path`, EEXIST where it is no socket.
    """
    refuse_if_taken(path)
    temporary = f"{path}.{os.getpid() % 10**7:x}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of a process that had this number before
    before = os.umask(0o177)
    try:
        yield temporary
    finally:
        os.umask(before)
    os.chmod(temporary, mode)
    os.rename(temporary, path)


def bound(path: str, mode: int) -> socket.socket:
    """A socket bound to `path`. Raises OSError, as `naming`."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with naming(path, mode) as temporary:
            made.bind(temporary)
            made.listen()
    except BaseException:
        made.close()
        raise
    made.setblocking(False)
    return made


def refuse_if_taken(path: str) -> None:
    """Raises OSError where `path` is not free and no socket left behind."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is something that is no socket", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, "somebody listens there", path)


class Owned:
    """A socket's name that is ours to remove, as long as it leads to what we have put there."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        found = os.lstat(path)
        self._made = (found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove the name, unless another process has taken it."""
        with contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._made:
                self._path.unlink()
