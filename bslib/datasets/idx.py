"""Fashion-MNIST, from its four idx files, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import torch

from bslib.datasets import Dataset, dataset_of
from bslib.datasets.places import found_or_downloaded

_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# Checksums of the uncompressed files, so that the compressor does not matter. The files are the authors' originals: if the name
# and time that Debian strips from the gzip headers are restored, the md5 sums are those that torchvision lists.
_IDX_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
#: No idx file is larger; what an archive may unpack to beyond that is not read.
_MOST_BYTES = 2**26
_REMEDY = "apt-get install dataset-fashion-mnist, or export BSLIB_DATA=<folder with the four idx files>"


def load(name: str) -> Dataset:
    """Load and verify Fashion-MNIST."""
    return found_or_downloaded(
        name, _read, download="FashionMNIST", folder="FashionMNIST", remedy=_REMEDY, also=[_DEBIAN_FASHION_MNIST]
    )


def _read(folder: Path) -> Dataset | None:
    """Read the four idx files from ``folder``; None if one is missing."""
    for layout in (folder, folder / "fashion-mnist", folder / "FashionMNIST" / "raw"):
        candidates = [(layout / name, layout / f"{name}.gz") for name in _IDX_SHA256]
        paths = [next((path for path in pair if path.is_file()), None) for pair in candidates]
        whole = [path for path in paths if path is not None]
        if len(whole) == len(paths):
            return dataset_of("fashion-mnist", map(_read_idx, whole), "Fashion-MNIST")
    return None


def _read_idx(path: Path) -> torch.Tensor:
    """Read and verify an idx file; returns images (N, 1, 28, 28), uint8, or labels (N,), int64."""
    name = path.name.removesuffix(".gz")
    remedy = f"delete it and try again, or: {_REMEDY}"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = bytearray(file.read(_MOST_BYTES))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or altered ({error}): {remedy}") from error
    if hashlib.sha256(content).hexdigest() != _IDX_SHA256[name]:
        raise ValueError(f"{path} is not Fashion-MNIST's {name} (its SHA-256 differs): {remedy}")
    # The header (16 bytes for images, 8 for labels) holds the sizes, which the checksum has already verified.
    if "images" in name:
        return torch.frombuffer(content, dtype=torch.uint8, offset=16).view(-1, 1, 28, 28)
    return torch.frombuffer(content, dtype=torch.uint8, offset=8).to(torch.int64)
