"""State that survives a restart: a file of frames, replaced whole, that shows when it is damaged.

A file is 16 bytes that tell its format, then frames: length (8 bytes, little-endian), CRC-32 of it and the
bytes (4), and as many bytes; an empty frame is the last. It is written beside its place and put there by a
rename, after a sync: there is the old state or the new one, never a part. A frame is checked before anybody
parses it.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

MAGIC = b"tidegauge state1"
_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CRC.size


class StateError(Exception):
    """A state, or a part of one, that cannot be used, and why."""


class StateFile:
    """One state of an agent, in `folder`.

    `NAME.state` is written now and then, and lags behind. `NAME.stopped` holds all: it was written by an
    agent that took no more rows, and becomes NAME.state before another one takes any.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self._folder = Path(folder)
        self._lagging = self._folder / f"{name}.state"
        self._complete = self._folder / f"{name}.stopped"
        self._aside = self._folder / f"{name}.unused"

    def take(self) -> bool:
        """Whether the state holds all that there was. From now on it does not. To be called before `read`.

        A folder that refuses this leaves the older state, if there is one.
        """
        try:
            self._complete.replace(self._lagging)
            _sync(self._folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("the state in %s cannot be used: %s", self._complete, error)
            return False
        return True

    def read(self) -> Iterator[bytes]:
        """The frames written last; none where there is no state.

        Raises:
            StateError: at last, when a frame is damaged, the file's end missing or it of another format. What
                was given is sound, also what lay behind the damage.
        """
        try:
            with self._lagging.open("rb") as file:
                yield from _frames(file)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"it cannot be read: {error.strerror}") from error

    def write(self, frames: Iterable[bytes], *, complete: bool = False) -> int:
        """Replace the state; returns the file's size in bytes.

        Raises:
            OSError: where the disk refuses. The state before stays.
        """
        target = self._complete if complete else self._lagging
        partial = target.with_suffix(".partial")
        self._folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(MAGIC)
            for frame in chain(frames, (b"",)):
                length = _LENGTH.pack(len(frame))
                file.write(length + _CRC.pack(zlib.crc32(frame, zlib.crc32(length))))
                file.write(frame)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        partial.replace(target)
        _sync(self._folder)
        return size

    def set_aside(self, reasons: Iterable[str]) -> None:
        """Keep a copy of a state that was not used in all its parts, and say why, in one warning."""
        why, where = "; ".join(dict.fromkeys(reasons)), self._lagging
        try:
            shutil.copyfile(where, self._aside)
        except OSError as error:
            log.warning(
                "the state of %s was not used: %s (nor can it be kept: %s)", self._lagging, why, error
            )
        else:
            log.warning("the state of %s was not used: %s; it is kept as %s", where, why, self._aside)


def _frames(file: BinaryIO) -> Iterator[bytes]:
    left = os.fstat(file.fileno()).st_size - len(MAGIC)
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        known = magic[:-1] == MAGIC[:-1]
        raise StateError("it is of another version of the agent" if known else "it is no state")
    damaged = False
    while (left := left - _HEADER_BYTES) >= 0:
        length = file.read(_LENGTH.size)
        [crc], [size] = _CRC.unpack(file.read(_CRC.size)), _LENGTH.unpack(length)
        if size > left:
            break
        left -= size
        frame = file.read(size)
        if zlib.crc32(frame, zlib.crc32(length)) != crc:
            # It may be the length: then no checksum behind it holds.
            damaged = True
        elif size:
            yield frame
        elif damaged:
            break
        else:
            return
    raise StateError("it is damaged" if damaged else "its end is missing")


def _sync(folder: Path) -> None:
    """Make a rename in it last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
