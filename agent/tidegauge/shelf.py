"""References made from first rows, kept in `state_dir` so that a restart does not forget them."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import quote

from tidegauge.profile import ProfileError, Reference

log = logging.getLogger(__name__)


class Shelf:
    """A folder of references, a file each, replaced whole."""

    def __init__(self, state_dir: str) -> None:
        self._folder = Path(state_dir) / "references"

    def keep(self, reference: Reference) -> None:
        """Write a reference. A disk that refuses costs a warning: the agent goes on without."""
        name = f"{quote(reference.model, safe='')}@{quote(reference.version, safe='')}.parquet"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            reference.save(self._folder / name)
        except (OSError, ProfileError) as error:
            log.warning("the reference of %s will not survive a restart: %s", reference.model, error)

    def load(self) -> list[Reference]:
        """Every reference kept; one that cannot be read is left where it is, with a warning."""
        kept = []
        for path in sorted(self._folder.glob("*.parquet")):
            try:
                kept.append(Reference.load(path, source="first_rows"))
            except ProfileError as error:
                log.warning("a reference kept from earlier is ignored: %s", error)
        return kept
