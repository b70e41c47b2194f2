"""Where files go, and how they get there: the user's cache folder and atomic writes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic_path", "cache_folder"]


def cache_folder() -> Path:
    """The folder for everything that can be made again: ``$BSLIB_CACHE``, else ``bslib`` in the user's cache.

    The folder is named here, not made.

    >>> cache_folder().is_absolute() or "BSLIB_CACHE" in os.environ
    True
    """
    if named := os.environ.get("BSLIB_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "bslib"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well, and vanishes when it does not.

    A reader sees the old file or the new one, never half of one: the new one is flushed to disk before it takes the name.

    Parameters
    ----------
    path
        Where the finished file shall be; its folder is made when it does not exist.

    Yields
    ------
    Path
        The file to write to, with the suffix of ``path``.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "answer.txt") as part:
    ...     _ = part.write_text("42")
    >>> (folder / "answer.txt").read_text(), len(list(folder.iterdir()))
    ('42', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
