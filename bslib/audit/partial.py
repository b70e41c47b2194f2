"""Results of the slow stages, kept in the cache folder: the same command goes on where it was stopped, or is repeated fast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bslib.files import atomic_path, cache_folder, locked

__all__ = ["Partial"]

Arrays = dict[str, np.ndarray[Any, Any]]


class Partial:
    """Arrays by name in ``audit/KEY`` of the cache folder; the key is a digest of the network, the images and all settings.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     part = Partial(Path(folder), {"seed": 0})
    ...     first = part.get("one", lambda: {"x": np.ones(2)})
    ...     part.get("one", lambda: {"x": np.zeros(2)})["x"].tolist()
    [1.0, 1.0]
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]
        self.folder = (folder or cache_folder() / "audit") / key

    def has(self, name: str) -> bool:
        """Whether an earlier run wrote arrays of this name."""
        return (self.folder / f"{name}.npz").is_file()

    def get(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of this name, computed now if no earlier run finished them. A damaged file is computed again."""
        path = self.folder / f"{name}.npz"
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                kept = {key: file[key] for key in file.files}
            if kept.pop("names").tolist() == list(kept):
                return kept
        except Exception:  # NumPy and zipfile raise almost any exception for a damaged file
            pass
        found = compute()
        with atomic_path(path) as part, part.open("wb") as out:
            np.savez_compressed(out, **found, names=list(found))  # type: ignore[arg-type]
        return found

    @contextmanager
    def alone(self, say: Callable[[str], None]) -> Iterator[None]:
        """Wait for another process that audits the same network with the same settings, then keep others waiting."""
        lock = self.folder.with_suffix(".lock")
        with locked(lock, wait=False) as mine:
            if mine:
                yield
                return
        say("another process audits this network with the same settings: waiting for it")
        with locked(lock):
            yield
