"""The user's cache folder, atomic file writes, locks between processes, and workers that end with their parent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

__all__ = ["atomic_path", "cache_folder", "exit_with_parent", "file_digest", "locked"]


def cache_folder() -> Path:
    """Return the folder for reproducible files: ``$BSLIB_CACHE``, or ``bslib`` in the user's cache if it is not set.

    The folder is not created.

    >>> cache_folder().is_absolute() or "BSLIB_CACHE" in os.environ
    True
    """
    if named := os.environ.get("BSLIB_CACHE"):
        return Path(named).expanduser()
    from platformdirs import user_cache_path  # not needed where the folder is named, such as on a bare GPU machine

    return user_cache_path("bslib", appauthor=False)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, and delete it on an exception.

    Readers see the old file or the complete new file, never a partial one. The new file is flushed to disk before it is renamed,
    and its folder after that.

    Parameters
    ----------
    path
        Path of the finished file. Its folder is created if it does not exist.

    Yields
    ------
    Path
        The file to write to, with the suffix of ``path``.

    Raises
    ------
    OSError
        If the file cannot be written, for example because the disk is full. The message names the path.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "answer.txt") as part:
    ...     _ = part.write_text("42")
    >>> (folder / "answer.txt").read_text(), len(list(folder.iterdir()))
    ('42', 1)
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file that could be replaced, but a folder or a special file: name another one")
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
            raise OSError(problem.errno, problem.strerror, str(path)) from None  # errors of writes to an open file have no name
        part.chmod(0o644)
        part.replace(path)
        if os.name != "nt":  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # flushes the new name
            except OSError as problem:
                if problem.errno != errno.EINVAL:  # some network file systems do not flush folders
                    raise
            finally:
                os.close(folder)
    finally:
        part.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def exit_with_parent() -> None:
    """Let a process of ``multiprocessing`` exit when its parent does, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers call this

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive file lock against all processes on all machines that share the folder.

    The kernel releases the lock when its holder exits for any reason, so a killed process does not block others. The file is
    removed on release. Processes that waited for it detect the removal and create it again.

    Parameters
    ----------
    path : Path
        The lock file. Its folder is created if it does not exist.
    wait : bool
        Whether to wait until another holder releases the lock.

    Yields
    ------
    bool
        Whether the lock is held. It is always true if ``wait`` is true.

    Raises
    ------
    OSError
        If the folder is not writable, its file system has no locks, or the path exists and is not a regular file (for example a
        symbolic link). The message names the path or folder.

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
            with contextlib.suppress(PermissionError):  # Windows cannot remove an open file
                path.unlink(missing_ok=True)


def _acquired(path: Path, *, wait: bool) -> AcquireReturnProxy[FileLock]:
    """Acquire the lock of the file now at a path; a lock on a file removed in the meantime would exclude nobody."""
    handles: list[int] = []
    lock = FileLock(path, fallback_to_soft=False, on_acquired=handles.append)  # a soft lock would outlive a killed holder
    while True:
        held = lock.acquire(blocking=wait)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samefile(handles[-1], path):
                return held
        lock.release()
