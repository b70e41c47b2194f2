"""Where files go, and how they get there: the user's cache folder, atomic writes, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

__all__ = ["atomic_path", "cache_folder", "locked"]


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

    Raises
    ------
    OSError
        When it cannot be written, a full disk included; the message names the path.

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
        try:
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
        except OSError as problem:
            if problem.errno is None or problem.filename is not None:
                raise
            raise OSError(problem.errno, problem.strerror, str(path)) from None  # a write to an open file names none
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock that a file stands for, alone among all processes that ask for it, on every machine that shares the folder.

    The kernel gives the lock back when its holder ends, however that happens, so a killed process blocks nobody. The file is
    removed afterwards; who waited for it notices that and makes it anew.

    Parameters
    ----------
    path : Path
        The file; its folder is made when it does not exist.
    wait : bool
        Whether to wait for another holder.

    Yields
    ------
    bool
        Whether the lock is held: always, or only if nobody else has it where ``wait`` is false.

    Raises
    ------
    OSError
        When the folder cannot be written to, its file system has no locks, or something else lies at the path, as a symbolic
        link; the message names it.

    >>> file = Path(tempfile.mkdtemp()) / "one.lock"
    >>> with locked(file) as mine, locked(file, wait=False) as other:
    ...     mine, other
    (True, False)
    >>> file.exists()
    False
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(f"{path} is no lock file, but a link or a special file: remove it")
    try:
        lock = _acquired(path, wait=wait)
    except Timeout:
        yield False
        return
    except OSError as problem:
        if problem.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise type(problem)(f"{path.parent} cannot be written to: {problem.strerror}") from None
        path.unlink(missing_ok=True)
        reason = f"{path.parent} is on a file system without locks ({problem.strerror})"
        raise OSError(f"{reason}: two runs could not share it, name another folder") from None
    with lock:
        try:
            yield True
        finally:
            with contextlib.suppress(PermissionError):  # Windows removes no file that is open
                path.unlink(missing_ok=True)


def _acquired(path: Path, *, wait: bool) -> AcquireReturnProxy[FileLock]:
    """The lock of the file that lies at a path: on one that has been removed meanwhile, it would keep nobody out."""
    handles: list[int] = []
    lock = FileLock(path, fallback_to_soft=False, on_acquired=handles.append)  # a soft lock would outlive a killed holder
    while True:
        held = lock.acquire(blocking=wait)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samefile(handles[-1], path):
                return held
        lock.release()
