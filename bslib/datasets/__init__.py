"""Data sets as tensors in memory; each is verified and has a fingerprint that is stored in the records.

The digits are part of scikit-learn. The full data sets are searched for in ``$BSLIB_DATA`` (one folder, or several as in
``$PATH``), in the ``data`` folder of the cache, and in Debian's folder (Fashion-MNIST). If they are not found, they are
downloaded, unless ``BSLIB_OFFLINE=1``. A folder may contain:

=================  ====================================================================================================
``fashion-mnist``  the four idx files, gzipped or not: in the folder, in ``fashion-mnist/`` or in ``FashionMNIST/raw/``
``cifar10``        ``cifar-10-batches-py/``, else ``cifar10/{train,test}/<class>/*.jpg`` (or png), else
                   ``cifar10-jpeg.tar.xz``
=================  ====================================================================================================

To add a data set, add a module with a function ``load(name)`` and an entry in :data:`DATASETS`. Importing this package does not
import torch, so that plans can look up class names without it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["DATASETS", "Dataset", "Source", "changed_digests", "class_count", "load", "to_float"]


class Source(NamedTuple):
    """The module of this package whose ``load`` reads a data set, and the names of its classes in the order of the labels."""

    module: str
    classes: tuple[str, ...]


#: The data sets by name.
#:
#: :meta hide-value:
DATASETS: dict[str, Source] = {
    "digits": Source("digits", tuple("0123456789")),
    "digits-rgb": Source("digits", tuple("0123456789")),
    "fashion-mnist": Source(
        "idx", ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    ),
    # In the order of CIFAR-10's original labels, which is alphabetical.
    "cifar10": Source("cifar10", ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")),
}


#: The data sets whose content the tests or checksums pin, with their modules.
_PINNED = {"digits": "digits", "digits-rgb": "digits", "fashion-mnist": "idx", "cifar10": "cifar10"}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory. All callers of :func:`load` share the same tensors, so copy them before modifying them.

    Attributes
    ----------
    name : str
        One of ``DATASETS``, or of :data:`bslib.domains.DOMAINS`.
    train_images, test_images : torch.Tensor
        uint8, of shape (N, C, H, W); for other domains, rows, texts or series, as :func:`bslib.domains.load` says.
    train_labels, test_labels : torch.Tensor
        int64, of shape (N,).
    classes : tuple of str
        Names of the classes, in the order of the labels.
    fingerprint : str
        SHA-256 of the shapes, dtypes and bytes of the four tensors, in hexadecimal.
    source : str
        Description of where the images come from, displayed with results.

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


def changed_digests(names: Iterable[str]) -> dict[str, str]:
    """Return the digests of added data sets: of their classes and of the source of their modules. Each record stores its own.

    >>> changed_digests(["digits", "cifar10"])
    {}
    """
    added = {name: source for name in names if (source := _source(name)).module != _PINNED.get(name)}
    digests = {}
    for name, source in added.items():
        file = Path(__file__).with_name(f"{source.module}.py")
        code = file.read_bytes() if file.is_file() else b""  # a module may come from elsewhere
        digests[name] = hashlib.sha256(repr(source).encode() + code).hexdigest()[:16]
    return digests


def class_count(name: str) -> int:
    """Return the number of classes of a data set.

    >>> class_count("cifar10")
    10
    """
    return len(_source(name).classes)


@functools.cache
def load(name: str) -> Dataset:
    """Load and verify a data set of ``DATASETS``; further calls in the same process return the same object.

    ``digits`` (grey, 28x28) and ``digits-rgb`` (coloured, 32x32) need no files.

    Raises
    ------
    ValueError
        If the name is unknown, or a file is truncated or corrupt.
    FileNotFoundError
        If the files are not found and cannot be downloaded.

    >>> digits = load("digits-rgb")
    >>> digits.test_images.shape, digits.test_images.dtype, digits.classes[3]
    (torch.Size([500, 3, 32, 32]), torch.uint8, '3')
    """
    data: Dataset = import_module(f"bslib.datasets.{_source(name).module}").load(name)
    return data


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 pixels of any shape to float32 in [0, 1], the scale on which sigma is defined.

    Raises
    ------
    TypeError
        If ``images`` is not uint8, because its range would then be unknown.

    >>> import torch
    >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    if str(images.dtype) != "torch.uint8":  # a string comparison avoids importing torch
        kind = str(images.dtype)
        got = kind.removeprefix("torch.") if kind.startswith("torch.") else f"{type(images).__name__} of {kind}"
        raise TypeError(f"images must be uint8, not {got}")
    return images.float() / 255


def dataset_of(name: str, tensors: Iterable[torch.Tensor], source: str, classes: tuple[str, ...] | None = None) -> Dataset:
    """Build a :class:`Dataset`, with its fingerprint, from (train images, train labels, test images, test labels).

    ``classes`` are the names of the classes of a data set that is not in :data:`DATASETS`.
    """
    train_images, train_labels, test_images, test_labels = (tensor.contiguous() for tensor in tensors)
    digest = hashlib.sha256()
    for tensor in (train_images, train_labels, test_images, test_labels):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().data)
    classes = classes or _source(name).classes
    return Dataset(name, train_images, train_labels, test_images, test_labels, classes, digest.hexdigest(), source)


def _source(name: str) -> Source:
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    return DATASETS[name]
