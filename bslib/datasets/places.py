"""Find the files of a data set, or download them."""

from __future__ import annotations

import http.client
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from bslib.datasets import Dataset
from bslib.files import cache_folder

DOWNLOAD_TIMEOUT = 10.0  # socket timeout in seconds


def found_or_downloaded(
    name: str, read: Callable[[Path], Dataset | None], *, download: str, folder: str, remedy: str, also: Sequence[Path] = ()
) -> Dataset:
    """Read the data set from the first folder that contains it; download it if there is none.

    Parameters
    ----------
    read : callable
        Reads the data set from a folder; returns None if it is not there.
    download : str
        The class of ``torchvision.datasets`` that downloads the data set into ``folder``.
    remedy : str
        Advice for the user if the data set is not found.
    also : sequence of Path
        Additional folders to search.

    Raises
    ------
    ValueError
        If a file is truncated or corrupt.
    FileNotFoundError
        If the files are not found and cannot be downloaded.
    """
    named = os.environ.get("BSLIB_DATA", "").split(os.pathsep)
    places = [*(Path(place).expanduser() for place in named if place), cache_folder() / "data", *also]
    for place in places:
        if (found := read(place)) is not None:
            return found
    try:
        downloaded = _download(download, folder)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())  # torchvision's messages span several lines
        tried = ", ".join([*map(str, places), f"download ({reason})"])
        raise FileNotFoundError(f"{name} not found; tried {tried}. To fix it: {remedy}") from error
    if (found := read(downloaded)) is None:
        raise RuntimeError(f"{downloaded} has no {name} although torchvision has just downloaded it there")
    return found


def _download(name: str, folder: str) -> Path:
    """Download the data set with torchvision into the cache; returns the folder that contains it.

    The files are downloaded to a temporary folder and then moved, so an interrupted download leaves no partial data set.
    """
    if os.environ.get("BSLIB_OFFLINE") == "1":
        raise RuntimeError("not tried, since BSLIB_OFFLINE=1")
    target = cache_folder() / "data"
    target.mkdir(parents=True, exist_ok=True)
    usual_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets no timeout and could wait for minutes
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as part:
            getattr(import_module("torchvision.datasets"), name)(part, download=True)
            if not (target / folder).exists():  # another process may have been faster
                Path(part, folder).rename(target / folder)
    finally:
        socket.setdefaulttimeout(usual_timeout)
    return target
