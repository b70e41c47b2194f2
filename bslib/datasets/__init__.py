"""Data sets as whole tensors, verified, each with a fingerprint that goes into the records.

The digits ship inside scikit-learn. The full data sets are looked for in ``$BSLIB_DATA`` (one folder, or several as in
``$PATH``), in the ``data`` folder of the cache, in Debian's folder (Fashion-MNIST), and are downloaded last of all;
``BSLIB_OFFLINE=1`` forbids the download. What a folder may hold:

=================  ====================================================================================================
``fashion-mnist``  the four idx files, gzipped or not: in the folder, in ``fashion-mnist/`` or in ``FashionMNIST/raw/``
``cifar10``        ``cifar-10-batches-py/``, else ``cifar10/{train,test}/<class>/*.jpg`` (or png), else
                   ``cifar10-jpeg.tar.xz``
=================  ====================================================================================================

A new data set is a module with a function ``load(name)`` and a line in :data:`DATASETS`. Importing this package does not import
torch, so that plans can ask for class names.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["DATASETS", "Dataset", "Source", "class_count", "load", "to_float"]


class Source(NamedTuple):
    """Where a data set is read, and what its labels mean.

    Parameters
    ----------
    module : str
        The module of this package whose ``load`` reads it.
    classes : tuple of str
        The names of the classes, in the order of the labels.
    """

    module: str
    classes: tuple[str, ...]


#: The data sets by name.
DATASETS: dict[str, Source] = {
    "digits": Source("digits", tuple("0123456789")),
    "digits-rgb": Source("digits", tuple("0123456789")),
    "fashion-mnist": Source(
        "idx", ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    ),
    # In the order of CIFAR-10's own labels, which is alphabetical.
    "cifar10": Source("cifar10", ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")),
}


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


def class_count(name: str) -> int:
    """How many classes a data set has.

    >>> class_count("cifar10")
    10
    """
    return len(_source(name).classes)


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
    data: Dataset = import_module(f"bslib.datasets.{_source(name).module}").load(name)
    return data


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

    >>> import torch
    >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    if str(images.dtype) != "torch.uint8":  # without importing torch
        raise TypeError(f"images must be uint8, not {str(images.dtype).removeprefix('torch.')}")
    return images.float() / 255


def dataset_of(name: str, tensors: Iterable[torch.Tensor], source: str) -> Dataset:
    """A :class:`Dataset` of train images, train labels, test images and test labels, in this order, with its fingerprint."""
    train_images, train_labels, test_images, test_labels = (tensor.contiguous() for tensor in tensors)
    digest = hashlib.sha256()
    for tensor in (train_images, train_labels, test_images, test_labels):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().data)
    classes = _source(name).classes
    return Dataset(name, train_images, train_labels, test_images, test_labels, classes, digest.hexdigest(), source)


def _source(name: str) -> Source:
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    return DATASETS[name]
