"""Where the files of a data set are looked for, and how they are downloaded when they are nowhere."""

from __future__ import annotations

import http.client
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bslib.datasets import Dataset
from bslib.files import cache_folder

DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer


def found_or_downloaded(
    name: str,
    read: Callable[[Path], Dataset | None],
    *,
    download: Callable[..., Any],
    folder: str,
    remedy: str,
    also: Sequence[Path] = (),
) -> Dataset:
    """The data set from the first place that has it, else downloaded.

    Parameters
    ----------
    name : str
    read : callable
        Reads a folder; None where the data set is not in it.
    download : callable
        Makes the class of torchvision that downloads it.
    folder : str
        The folder that this class makes.
    remedy : str
        What a user can do where it is nowhere.
    also : sequence of Path
        Further places to look in.

    Raises
    ------
    ValueError
        When a file is truncated or altered.
    FileNotFoundError
        When the files are nowhere and cannot be downloaded.
    """
    named = os.environ.get("BSLIB_DATA", "").split(os.pathsep)
    places = [*(Path(place).expanduser() for place in named if place), cache_folder() / "data", *also]
    for place in places:
        if (found := read(place)) is not None:
            return found
    try:
        downloaded = _download(download, folder)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())  # torchvision's are of several lines
        tried = ", ".join([*map(str, places), f"download ({reason})"])
        raise FileNotFoundError(f"{name} not found; tried {tried}. To fix it: {remedy}") from error
    if (found := read(downloaded)) is None:
        raise RuntimeError(f"{downloaded} has no {name} although torchvision has just downloaded it there")
    return found


def _download(download: Callable[..., Any], folder: str) -> Path:
    """Download with torchvision into the cache; returns the folder that then holds the data set.

    The files arrive in a temporary folder beside their place, so an interrupted download leaves nothing half done.
    """
    if os.environ.get("BSLIB_OFFLINE") == "1":
        raise RuntimeError("not tried, since BSLIB_OFFLINE=1")
    target = cache_folder() / "data"
    target.mkdir(parents=True, exist_ok=True)
    usual_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none, and would wait for minutes
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as part:
            download()(part, download=True)
            if not (target / folder).exists():  # another process may have been faster
                Path(part, folder).rename(target / folder)
    finally:
        socket.setdefaulttimeout(usual_timeout)
    return target
