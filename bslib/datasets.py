"""Data sets as whole tensors, verified, each with a fingerprint that goes into the records.

The digits ship inside scikit-learn. The full data sets are looked for in ``$BSLIB_DATA`` (one folder, or several as in
``$PATH``), in the ``data`` folder of the cache, in Debian's folder (Fashion-MNIST), and are downloaded last of all;
``BSLIB_OFFLINE=1`` forbids the download. What a folder may hold:

=================  ====================================================================================================
``fashion-mnist``  the four idx files, gzipped or not: in the folder, in ``fashion-mnist/`` or in ``FashionMNIST/raw/``
``cifar10``        ``cifar-10-batches-py/``, else ``cifar10/{train,test}/<class>/*.jpg`` (or png), else
                   ``cifar10-jpeg.tar.xz``
=================  ====================================================================================================
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.client
import io
import os
import socket
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.functional import interpolate
from tqdm import tqdm

from bslib.files import atomic_path, cache_folder

__all__ = ["DATASETS", "Dataset", "load", "to_float"]

DATASETS: tuple[str, ...] = ("digits", "digits-rgb", "fashion-mnist", "cifar10")

_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# Of the uncompressed files, so that any compressor may have packed them. They are the authors' files: Debian's gzip
# streams, given back the name and time that Debian strips from the header, have the md5 sums that torchvision lists.
_IDX_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

_FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_CIFAR10_BATCHES = "cifar-10-batches-py"
_CIFAR10_ARCHIVE = "cifar10-jpeg.tar.xz"
_CIFAR10_ARCHIVE_SHA256 = "2fe3f73ccba4e47e4a2c25cbfe9a3b2d88417d26992f2d907ef3cbcc38de25c1"
# In the order of CIFAR-10's own labels, which is alphabetical.
_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_IMAGES_PER_CLASS = {"train": 5000, "test": 1000}

_HELP = {
    "fashion-mnist": "apt-get install dataset-fashion-mnist, or export BSLIB_DATA=<folder with the four idx files>",
    "cifar10": f"export BSLIB_DATA=<folder with cifar-10-batches-py, cifar10/{{train,test}} or {_CIFAR10_ARCHIVE}>",
}
_DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer
_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory. Every caller of :func:`load` gets the same tensors: copy before writing into them.

    Attributes
    ----------
    name : str
        One of ``DATASETS``.
    train_images, test_images : torch.Tensor
        uint8, of shape (N, C, H, W).
    train_labels, test_labels : torch.Tensor
        int64, of shape (N,).
    classes : tuple of str
        What the labels mean, in words.
    fingerprint : str
        SHA-256, in hex, over the shapes, dtypes and bytes of the four tensors.
    source : str
        Where the images come from, in words, to be shown beside results.

    >>> load("digits").train_images.shape
    torch.Size([1297, 1, 28, 28])
    """

    name: str
    train_images: torch.Tensor = field(repr=False)
    train_labels: torch.Tensor = field(repr=False)
    test_images: torch.Tensor = field(repr=False)
    test_labels: torch.Tensor = field(repr=False)
    classes: tuple[str, ...]
    fingerprint: str
    source: str


@functools.cache
def load(name: str) -> Dataset:
    """Load a data set, verified; a second call in the same process returns the same object.

    Parameters
    ----------
    name
        One of ``DATASETS``. ``digits`` (grey, 28x28) and ``digits-rgb`` (coloured, 32x32) need no file.

    Returns
    -------
    Dataset
        Its images have shape (N, C, H, W).

    Raises
    ------
    ValueError
        When the name is unknown, or a file is truncated or altered.
    FileNotFoundError
        When the files are nowhere and cannot be downloaded.

    >>> digits = load("digits-rgb")
    >>> digits.test_images.shape, digits.test_images.dtype, digits.classes[3]
    (torch.Size([500, 3, 32, 32]), torch.uint8, '3')
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    if name.startswith("digits"):
        return _digits(name)
    places = _places(name)
    for place in places:
        if (found := _read(name, place)) is not None:
            return found
    try:
        downloaded = _download(name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())  # torchvision's are of several lines
        tried = ", ".join([*map(str, places), f"download ({reason})"])
        raise FileNotFoundError(f"{name} not found; tried {tried}. To fix it: {_HELP[name]}") from error
    if (found := _read(name, downloaded)) is None:
        raise RuntimeError(f"{downloaded} has no {name} although torchvision has just downloaded it there")
    return found


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Turn stored pixels into features in [0, 1], the space in which sigma is measured.

    Parameters
    ----------
    images : torch.Tensor
        uint8, of any shape.

    Returns
    -------
    torch.Tensor
        float32, of the same shape and on the same device.

    Raises
    ------
    TypeError
        When ``images`` is not uint8, since its range is then anybody's guess.

    >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, not {str(images.dtype).removeprefix('torch.')}")
    return images.to(torch.float32) / 255


def _dataset(name: str, tensors: Iterable[torch.Tensor], classes: Iterable[str], source: str) -> Dataset:
    """A `Dataset` of train images, train labels, test images, test labels, in this order, with its fingerprint."""
    train_images, train_labels, test_images, test_labels = (tensor.contiguous() for tensor in tensors)
    digest = hashlib.sha256()
    for tensor in (train_images, train_labels, test_images, test_labels):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().data)
    return Dataset(name, train_images, train_labels, test_images, test_labels, tuple(classes), digest.hexdigest(), source)


def _digits(name: str) -> Dataset:
    """scikit-learn's digits, enlarged: grey at 28x28 or coloured at 32x32."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    side = 32 if name == "digits-rgb" else 28
    grey = torch.from_numpy(bunch.images)[:, None] * (255 / 16)  # pixels are 0 to 16
    grey = interpolate(grey, size=(side, side), mode="bilinear", align_corners=False)
    # Many values lie exactly between two integers. The nudge rounds them up on every machine; it is smaller than any
    # other distance to such a tie (1/3136 at 28x28), so it moves nothing else.
    images = (grey + 1e-4).round().to(torch.uint8)
    if name == "digits-rgb":
        images = _coloured(images)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, random_state=0, stratify=bunch.target)
    source = f"scikit-learn's digits, {'coloured and ' if name == 'digits-rgb' else ''}enlarged to {side}x{side}"
    return _dataset(name, (images[train], labels[train], images[test], labels[test]), map(str, bunch.target_names), source)


def _coloured(grey: torch.Tensor) -> torch.Tensor:
    """Give each (1, H, W) image a bright colour of its own on a dark one: (N, 3, H, W)."""
    random = np.random.RandomState(0)  # unlike the newer generators, its stream never changes between releases
    bright = torch.from_numpy(random.randint(160, 256, size=(len(grey), 3, 1, 1)))
    dark = torch.from_numpy(random.randint(0, 96, size=(len(grey), 3, 1, 1)))
    return ((bright * grey + dark * (255 - grey.long())) // 255).to(torch.uint8)


def _places(name: str) -> list[Path]:
    """The folders to look in, in order."""
    named = os.environ.get("BSLIB_DATA", "").split(os.pathsep)
    places = [Path(folder).expanduser() for folder in named if folder]
    places.append(cache_folder() / "data")
    if name == "fashion-mnist":
        places.append(_DEBIAN_FASHION_MNIST)
    return places


def _read(name: str, folder: Path) -> Dataset | None:
    """The data set in ``folder``, in whichever layout; None when there is none."""
    if name == "fashion-mnist":
        return _read_fashion_mnist(folder)
    if (folder / _CIFAR10_BATCHES).is_dir():
        return _read_cifar10_batches(folder)
    if all((folder / "cifar10" / split).is_dir() for split in _CIFAR10_IMAGES_PER_CLASS):
        return _read_cifar10_images(folder / "cifar10")
    if (folder / _CIFAR10_ARCHIVE).is_file():
        return _read_cifar10_archive(folder / _CIFAR10_ARCHIVE)
    return None


def _download(name: str) -> Path:
    """Download with torchvision into the cache; returns the folder that then holds the data set.

    The files arrive in a temporary folder beside their place, so an interrupted download leaves nothing half done.
    """
    if os.environ.get("BSLIB_OFFLINE") == "1":
        raise RuntimeError("not tried, since BSLIB_OFFLINE=1")
    from torchvision.datasets import CIFAR10, FashionMNIST  # takes as long to import as torch itself

    target = cache_folder() / "data"
    target.mkdir(parents=True, exist_ok=True)
    kind, folder = (FashionMNIST, "FashionMNIST") if name == "fashion-mnist" else (CIFAR10, _CIFAR10_BATCHES)
    usual_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)  # torchvision sets none, and would wait for minutes
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as part:
            kind(part, download=True)
            if not (target / folder).exists():  # another process may have been faster
                Path(part, folder).rename(target / folder)
    finally:
        socket.setdefaulttimeout(usual_timeout)
    return target


def _read_fashion_mnist(folder: Path) -> Dataset | None:
    """The four idx files, where all four are there."""
    for layout in (folder, folder / "fashion-mnist", folder / "FashionMNIST" / "raw"):
        candidates = [(layout / name, layout / f"{name}.gz") for name in _IDX_SHA256]
        paths = [next((path for path in pair if path.is_file()), None) for pair in candidates]
        whole = [path for path in paths if path is not None]
        if len(whole) == len(paths):
            return _dataset("fashion-mnist", map(_read_idx, whole), _FASHION_MNIST_CLASSES, "Fashion-MNIST")
    return None


def _read_idx(path: Path) -> torch.Tensor:
    """Images (N, 1, 28, 28), uint8, or labels (N,), int64, out of a verified idx file."""
    name = path.name.removesuffix(".gz")
    remedy = f"delete it and try again, or: {_HELP['fashion-mnist']}"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = bytearray(file.read())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or altered ({error}): {remedy}") from error
    if hashlib.sha256(content).hexdigest() != _IDX_SHA256[name]:
        raise ValueError(f"{path} is not Fashion-MNIST's {name} (its SHA-256 differs): {remedy}")
    # The header (16 bytes before images, 8 before labels) holds sizes that the checksum has just vouched for.
    if "images" in name:
        return torch.frombuffer(content, dtype=torch.uint8, offset=16).view(-1, 1, 28, 28)
    return torch.frombuffer(content, dtype=torch.uint8, offset=8).to(torch.int64)


def _read_cifar10_batches(folder: Path) -> Dataset:
    """The original pixels. The files are pickles; torchvision opens none before the md5 sums of all are right."""
    from torchvision.datasets import CIFAR10

    try:
        train, test = CIFAR10(folder, train=True), CIFAR10(folder, train=False)
    except RuntimeError as error:
        batches = folder / _CIFAR10_BATCHES
        raise ValueError(
            f"{batches} is incomplete or altered (its md5 sums are not CIFAR-10's): delete it and try again"
        ) from error
    tensors = []
    for part in (train, test):
        tensors += [torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)]
    return _dataset("cifar10", tensors, _CIFAR10_CLASSES, "CIFAR-10")


def _read_cifar10_images(root: Path) -> Dataset:
    """A tree ``{train,test}/<class>/<image>``; nobody has checksums for it, so its source says what it is."""
    paths = [path for path in root.glob("*/*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    jpeg = any(path.suffix.lower() != ".png" for path in paths)
    kind = "JPEG (not the original pixels)" if jpeg else "PNG (not verified to be the original pixels)"
    files = ((path.relative_to(root).as_posix(), path.read_bytes()) for path in paths)
    return _decoded(files, root, f"CIFAR-10, from a folder of images re-encoded as {kind}")


def _read_cifar10_archive(archive: Path) -> Dataset:
    """The archive of JPEG images: verified, decoded once, then read from the cache."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _CIFAR10_ARCHIVE_SHA256:
        raise ValueError(
            f"{archive} is truncated or altered (its SHA-256 is {digest}, not {_CIFAR10_ARCHIVE_SHA256}): copy it again"
        )
    source = "CIFAR-10, re-encoded as JPEG (not the original pixels)"
    cached = cache_folder() / "data" / f"cifar10-jpeg-{digest[:16]}.safetensors"
    if cached.is_file():
        return _read_decoded(cached, source)
    dataset = _decoded(_members(archive), archive, source)
    tensors = {key: getattr(dataset, key) for key in _TENSORS}
    with atomic_path(cached) as part:
        save_file(tensors, part, metadata={"fingerprint": dataset.fingerprint})
    return dataset


def _read_decoded(cached: Path, source: str) -> Dataset:
    """What `_read_cifar10_archive` has put into the cache, if it is still what it was."""
    remedy = f"{cached} is truncated or altered: delete it, and it is made again"
    try:
        with safe_open(cached, framework="pt") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint")
            dataset = _dataset("cifar10", map(file.get_tensor, _TENSORS), _CIFAR10_CLASSES, source)
    except SafetensorError as error:
        raise ValueError(remedy) from error
    if dataset.fingerprint != fingerprint:
        raise ValueError(remedy)
    return dataset


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """``train/<class>/<image>`` and its bytes, read as a stream: nothing is extracted, so no name can lead anywhere."""
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None and len(parts) == 4 and parts[0] == "cifar10":
                yield "/".join(parts[1:]), content.read()


def _decoded(files: Iterable[tuple[str, bytes]], place: Path, source: str) -> Dataset:
    """Decode ``(split/class/image, content)`` pairs; images come sorted by class, then by file name."""
    wanted = {(split, label): count for split, count in _CIFAR10_IMAGES_PER_CLASS.items() for label in _CIFAR10_CLASSES}
    images = {}
    for name, content in tqdm(files, total=sum(wanted.values()), desc="CIFAR-10, decoding", unit="", mininterval=1):
        split, label, file_name = name.split("/")
        images[split, label, file_name] = _pixels(content, f"{name} in {place}")
    keys = sorted(images)
    counts = Counter(key[:2] for key in keys)
    for pair in sorted(wanted.keys() | counts.keys()):
        if counts[pair] != wanted.get(pair, 0):
            folder = "/".join(pair)
            raise ValueError(f"{place} has {counts[pair]} images in {folder}, not {wanted.get(pair, 0)}: copy it again")
    tensors = []
    for split in ("train", "test"):
        chosen = [key for key in keys if key[0] == split]
        tensors.append(torch.stack([images[key] for key in chosen]))
        tensors.append(torch.tensor([_CIFAR10_CLASSES.index(label) for _, label, _ in chosen]))
    return _dataset("cifar10", tensors, _CIFAR10_CLASSES, source)


def _pixels(content: bytes, what: str) -> torch.Tensor:
    """A JPEG or PNG file decoded: uint8, (3, 32, 32)."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError) as error:  # Pillow raises either, depending on where a file is broken
        raise ValueError(f"{what} cannot be decoded: copy it again") from error
    if pixels.shape != (3, 32, 32):
        raise ValueError(f"{what} is {pixels.shape[2]}x{pixels.shape[1]} pixels, not 32x32: copy it again")
    return pixels
