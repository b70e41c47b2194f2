"""A folder of images as one tensor. Files are strangers': their number and sizes are bounded, and none is skipped silently."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import pad

from bslib.audit.evidence import Overlay
from bslib.progress import bar

__all__ = ["Pictures", "read_folder", "read_picture", "read_trigger"]

#: Largest number of files that are listed, of bytes in a file, and of pixels in an image.
MOST_FILES, MOST_BYTES, MOST_PIXELS = 100_000, 2**26, 2**26
#: Formats that are decoded; Pillow knows more, some of which run other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


class Pictures(NamedTuple):
    """The result of :func:`read_folder`.

    Parameters
    ----------
    images : float32 Tensor, shape (B, C, H, W)
        In [0, 1].
    labels : int64 Tensor, shape (B,), or None
    names : list of B str
        Paths relative to the folder.
    skipped : list of str
        Files that were not read, with the reason.
    notes : list of str
        What the reader of the report should know.
    """

    images: Tensor
    labels: Tensor | None
    names: list[str]
    skipped: list[str]
    notes: list[str]


def read_folder(folder: Path, *, size: tuple[int, int], channels: int, classes: int, most: int = 1000) -> Pictures:
    """Read the images of a folder and of its subfolders, at most ``most``, drawn at random.

    Links are not followed. Subfolders are classes if their names are the numbers below ``classes``, or if there are ``classes``
    of them (in alphabetical order, as in torchvision's ``ImageFolder``).

    Raises
    ------
    ValueError
        If the folder has no readable image.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of images")
    skipped: list[str] = []
    files, notes, kept = list(itertools.islice(_files(folder, skipped), MOST_FILES + 1)), [], []
    if len(files) > MOST_FILES:
        notes.append(f"the folder has more than {MOST_FILES:,} files; the others were not looked at")
    order = np.random.default_rng(0).permutation(len(files[:MOST_FILES]))
    images: list[Tensor] = []
    with bar(total=min(most, len(order)), desc="images", unit="image") as shown:
        for at in order:
            if len(images) == most:
                notes.append(f"{most} of {len(order)} files were drawn at random; the others were not read")
                break
            try:
                images.append(read_picture(files[at], size=size, channels=channels))
                kept.append(files[at].relative_to(folder))
            except ValueError as problem:
                skipped.append(_printable(f"{files[at].relative_to(folder)}: {problem}"))
            shown.update()
    if not images:
        reason = f"; the first of {len(skipped)} files: {skipped[0]}" if skipped else ""
        raise ValueError(f"{folder} has no image that can be read{reason}")
    labels, note = _labels([path.parts[0] if len(path.parts) > 1 else "" for path in kept], folder, classes)
    return Pictures(torch.stack(images), labels, [_printable(path) for path in kept], skipped, notes + ([note] if note else []))


def read_picture(path: Path, *, size: tuple[int, int] | None, channels: int, opacity: bool = False) -> Tensor:
    """Read one image as float32 (C, H, W) in [0, 1], resized to ``size`` (H, W) if one is given.

    EXIF rotation is applied, 16 bits are kept, and transparency is laid on white, or becomes one more channel with ``opacity``.

    Raises
    ------
    ValueError
        If the file is too large or cannot be decoded. The size is checked before pixels are decoded.
    """
    if not path.is_file() or path.is_symlink():
        raise ValueError("a link, and links are not followed" if path.is_symlink() else "no regular file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels, at most {MOST_PIXELS:,} are decoded")
            if opened.mode == "F" or (opened.mode, opened.format) == ("I", "TIFF"):
                raise ValueError("32 bits a pixel, whose white is not known")
            picture = ImageOps.exif_transpose(opened)
    except Exception as problem:  # Pillow's decoders raise many kinds, down to SyntaxError
        reason = (str(problem).splitlines() or [""])[0].replace(str(path), "").strip(" '")
        raise ValueError((reason or type(problem).__name__)[:120]) from None
    return _to_tensor(picture, size, channels, opacity)


def read_trigger(path: Path, at: str, blend: float, *, size: tuple[int, int], channels: int) -> Overlay:
    """Read a trigger as an overlay of images of ``size``, without resizing it.

    Its upper left corner is at "row,column"; negative numbers count from the other side to its last row and column.
    """
    try:
        picture = read_picture(path, size=None, channels=channels, opacity=True)
    except ValueError as problem:
        raise ValueError(f"the trigger {path}: {problem}") from None
    try:
        row, column = map(int, at.split(","))
    except ValueError:
        raise ValueError(f"--at must be a row and a column, got {at!r}") from None
    (height, width), (h, w) = size, picture.shape[1:]
    top, left = (p + total - own + 1 if p < 0 else p for p, total, own in ((row, height, h), (column, width, w)))
    if not (0 <= top <= height - h and 0 <= left <= width - w):
        raise ValueError(f"the trigger of {h}x{w} pixels at {at} does not fit into {height}x{width} pixels")
    if not (mask := picture[-1:] * blend).any():
        raise ValueError(f"the trigger {path} is transparent everywhere")
    return Overlay(*(pad(part, (left, width - left - w, top, height - top - h)) for part in (mask, picture[:-1])))


def _to_tensor(picture: Image.Image, size: tuple[int, int] | None, channels: int, opacity: bool) -> Tensor:
    if picture.mode.startswith("I"):  # 16 bits
        values = np.asarray(picture, dtype=np.float32)
        clear = values == picture.info.get("transparency", -1)
        grey = Image.fromarray(values / 65535 if opacity else np.where(clear, np.float32(1), values / 65535))
        layers = [grey] * channels + [Image.fromarray(np.float32(~clear))] * opacity
    else:
        rgba = picture.convert("RGBA")
        seen = rgba if opacity else Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        colours = seen.convert("RGB").split() if channels == 3 else [seen.convert("RGB").convert("L")]
        bands = [*colours, *rgba.split()[3:] * opacity]
        layers = [Image.fromarray(np.asarray(band, dtype=np.float32) / 255) for band in bands]
    if size is not None and picture.size != size[::-1]:
        layers = [layer.resize(size[::-1], Image.Resampling.BILINEAR) for layer in layers]
    return torch.from_numpy(np.stack([np.asarray(layer) for layer in layers])).clamp(0, 1)


def _printable(text: object) -> str:
    """Replace characters that steer a terminal or are no text."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _files(folder: Path, skipped: list[str]) -> Iterator[Path]:
    """Yield files and links, which are not followed, without hidden folders such as ``.ipynb_checkpoints``.

    Folders that cannot be read are added to ``skipped``.
    """

    def skip(problem: OSError) -> None:
        skipped.append(_printable(f"{os.path.relpath(problem.filename, folder)}: {problem.strerror}"))

    for parent, folders, names in os.walk(folder, onerror=skip):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in sorted(names + links))


def _labels(parents: list[str], folder: Path, classes: int) -> tuple[Tensor | None, str]:
    """Labels from the names of subfolders, or None and the reason."""
    remedy = f"so whether the normalisation fits is not checked: name subfolders 0 to {classes - 1}"
    if not any(parents):
        return None, f"no subfolders and no labels, {remedy}"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if all(name.isdecimal() and int(name) < classes for name in {*names, *parents}):
        return torch.tensor([int(name) for name in parents]), ""
    if len(names) == classes and all(parents):
        note = f"classes by subfolder, in this order: {_printable(', '.join(names))[:300]}"
        return torch.tensor([names.index(name) for name in parents]), note
    return None, f"the subfolders are not the {classes} classes of the network and give no labels, {remedy}"
