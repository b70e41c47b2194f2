"""CIFAR-10, from the original batches, a folder of images, or an archive of JPEG images."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from bslib.datasets import DATASETS, Dataset, dataset_of
from bslib.datasets.places import found_or_downloaded
from bslib.files import atomic_path, cache_folder, file_digest

_BATCHES = "cifar-10-batches-py"
_ARCHIVE = "cifar10-jpeg.tar.xz"
_ARCHIVE_SHA256 = "2fe3f73ccba4e47e4a2c25cbfe9a3b2d88417d26992f2d907ef3cbcc38de25c1"
_CLASSES = DATASETS["cifar10"].classes
_IMAGES_PER_CLASS = {"train": 5000, "test": 1000}
_REMEDY = f"export BSLIB_DATA=<folder with cifar-10-batches-py, cifar10/{{train,test}} or {_ARCHIVE}>"
_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def load(name: str) -> Dataset:
    """Load and verify CIFAR-10."""
    return found_or_downloaded(name, _read, download="CIFAR10", folder=_BATCHES, remedy=_REMEDY)


def _read(folder: Path) -> Dataset | None:
    """Read the data set from ``folder`` in any supported layout; None if it is not there."""
    if (folder / _BATCHES).is_dir():
        return _read_batches(folder)
    if all((folder / "cifar10" / split).is_dir() for split in _IMAGES_PER_CLASS):
        return _read_images(folder / "cifar10")
    if (folder / _ARCHIVE).is_file():
        return _read_archive(folder / _ARCHIVE)
    return None


def _read_batches(folder: Path) -> Dataset:
    """Read the original batches. They are pickles; torchvision opens them only after verifying all md5 sums."""
    from torchvision.datasets import CIFAR10  # takes as long to import as torch itself

    try:
        train, test = (CIFAR10(folder, train=train) for train in (True, False))
    except RuntimeError as error:
        reason = f"{folder / _BATCHES} is incomplete or altered (its md5 sums are not CIFAR-10's)"
        raise ValueError(f"{reason}: delete it and try again") from error
    tensors = []
    for part in (train, test):
        tensors += [torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)]
    return dataset_of("cifar10", tensors, "CIFAR-10")


def _read_images(root: Path) -> Dataset:
    """Read a folder ``{train,test}/<class>/<image>``. It cannot be verified by checksums, so its source describes it."""
    paths = [path for path in root.glob("*/*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file()]
    jpeg = any(path.suffix.lower() != ".png" for path in paths)
    kind = "JPEG (not the original pixels)" if jpeg else "PNG (not verified to be the original pixels)"
    files = ((path.relative_to(root).as_posix(), path.read_bytes()) for path in paths)
    return _decoded(files, root, f"CIFAR-10, from a folder of images re-encoded as {kind}")


def _read_archive(archive: Path) -> Dataset:
    """Read the archive of JPEG images. It is verified, decoded once, and then read from the cache."""
    digest = file_digest(archive)
    if digest != _ARCHIVE_SHA256:
        raise ValueError(f"{archive} is truncated or altered (its SHA-256 is {digest}, not {_ARCHIVE_SHA256}): copy it again")
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
    """Read the decoded images that ``_read_archive`` cached, and verify their fingerprint."""
    remedy = f"{cached} is truncated or altered: delete it, and it is made again"
    try:
        with safe_open(cached, framework="pt") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint")
            dataset = dataset_of("cifar10", map(file.get_tensor, _TENSORS), source)
    except SafetensorError as error:
        raise ValueError(remedy) from error
    if dataset.fingerprint != fingerprint:
        raise ValueError(remedy)
    return dataset


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield ``<split>/<class>/<image>`` and its bytes. Nothing is extracted to disk, so member names cannot escape a folder."""
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None and len(parts) == 4 and parts[0] == "cifar10":
                yield "/".join(parts[1:]), content.read()


def _decoded(files: Iterable[tuple[str, bytes]], place: Path, source: str) -> Dataset:
    """Decode ``(split/class/image, content)`` pairs; images are sorted by class, then by file name."""
    wanted = {(split, label): count for split, count in _IMAGES_PER_CLASS.items() for label in _CLASSES}
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
        tensors.append(torch.tensor([_CLASSES.index(label) for _, label, _ in chosen]))
    return dataset_of("cifar10", tensors, source)


def _pixels(content: bytes, what: str) -> torch.Tensor:
    """Decode a JPEG or PNG file to a uint8 tensor of shape (3, 32, 32)."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            width, height = image.size  # in the header: nothing is decoded yet
            if (width, height) != (32, 32):
                raise ValueError(f"{what} is {width}x{height} pixels, not 32x32: copy it again")
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError) as error:  # Pillow raises either, depending on where the file is corrupt
        raise ValueError(f"{what} cannot be decoded: copy it again") from error
