"""Every layout that a data set may come in, and every way in which a file may be wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, FashionMNIST

from bslib import datasets
from bslib.datasets import DATASETS, cifar10, load, places, to_float
from bslib.datasets import idx as idx_files
from bslib.files import file_digest

DEBIAN = idx_files._DEBIAN_FASHION_MNIST
ARCHIVES = [Path(folder, cifar10._ARCHIVE) for folder in os.environ.get("BSLIB_DATA", "").split(os.pathsep) if folder]
ARCHIVE = next((path for path in ARCHIVES if path.is_file()), None)

needs_debian = pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
needs_archive = pytest.mark.skipif(ARCHIVE is None, reason="needs cifar10-jpeg.tar.xz in BSLIB_DATA")


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path) -> Path:
    """The folder that is searched: no data, no cache and no network but what a test brings itself."""
    monkeypatch.setenv("BSLIB_DATA", str(tmp_path / "here"))
    monkeypatch.setenv("BSLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BSLIB_OFFLINE", "1")
    monkeypatch.setattr(idx_files, "_DEBIAN_FASHION_MNIST", tmp_path / "debian")
    load.cache_clear()
    yield tmp_path / "here"
    load.cache_clear()


# --- stand-ins ---------------------------------------------------------------------------------------------------


@pytest.fixture
def idx(monkeypatch) -> dict[str, bytes]:
    """Fashion-MNIST with 20 training and 10 test images, whose checksums are taken for the real ones."""
    random = np.random.RandomState(0)
    files = {}
    for split, count in (("train", 20), ("t10k", 10)):
        pixels = random.randint(0, 256, size=count * 784).astype(np.uint8).tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        files[f"{split}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, count, 28, 28) + pixels
        files[f"{split}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, count) + labels
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert set(hashes) == set(idx_files._IDX_SHA256)
    monkeypatch.setattr(idx_files, "_IDX_SHA256", {name: hashes[name] for name in idx_files._IDX_SHA256})
    return files


def write_idx(folder: Path, files: dict[str, bytes], *, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
        else:
            (folder / name).write_bytes(content)
    return folder


def picture(seed: int, *, side: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, size=(3, side, side)).astype(np.uint8))


def encoded(pixels: torch.Tensor, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, {"jpg": "JPEG", "png": "PNG"}[kind])
    return file.getvalue()


@pytest.fixture
def tiny(monkeypatch):
    """CIFAR-10 has two training images and one test image of each class."""
    monkeypatch.setattr(cifar10, "_IMAGES_PER_CLASS", {"train": 2, "test": 1})


def cifar10_files(kind: str = "jpg") -> dict[str, bytes]:
    """``{split}/{class}/{number}.{kind}`` and its bytes, in an order that is not sorted."""
    names = [f"train/{label}/{n:04}.{kind}" for n in (1, 0) for label in reversed(cifar10._CLASSES)]
    names += [f"test/{label}/0000.{kind}" for label in cifar10._CLASSES]
    return {name: encoded(picture(seed), kind) for seed, name in enumerate(names)}


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / "cifar10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_archive(monkeypatch, folder: Path, members: dict[str, bytes]) -> Path:
    """An archive of these members, whose checksum is taken for the real one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / cifar10._ARCHIVE
    with tarfile.open(path, "w:xz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar10, "_ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def write_batches(monkeypatch, folder: Path) -> Path:
    """Pickles like the authors' of CIFAR-10, one image each, whose md5 sums torchvision takes for the real ones."""
    batches = folder / CIFAR10.base_folder
    batches.mkdir(parents=True)

    def write(name: str, content: dict) -> str:
        (batches / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((batches / name).read_bytes()).hexdigest()

    def batch(name: str, seed: int) -> list[str]:
        return [name, write(name, {"data": picture(seed).reshape(1, -1).numpy(), "labels": [seed]})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{seed}", seed) for seed in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 9)])
    md5 = write("batches.meta", {"label_names": list(cifar10._CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5})
    return batches


def check_invariants(dataset: datasets.Dataset) -> None:
    for images, labels in ((dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels)):
        assert images.dtype == torch.uint8 and images.ndim == 4 and images.is_contiguous()
        assert labels.dtype == torch.int64 and labels.shape == images.shape[:1]
        assert labels.min() >= 0 and labels.max() < len(dataset.classes)


# --- digits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "fingerprint"),
    [
        ("digits", (1, 28, 28), "986a3cc7aed0eb0bae692a59892e450be9d93b4fd679a057a26e7a52a8998e52"),
        ("digits-rgb", (3, 32, 32), "ba78a904a4226bfd4b835f7d4daa30f5ee64574674ca565b79428ce03eb2e5ea"),
    ],
)
def test_digits_are_the_same_everywhere(name, shape, fingerprint):
    dataset = load(name)
    check_invariants(dataset)
    assert dataset.name == name and dataset.classes == tuple("0123456789")
    assert dataset.train_images.shape == (1297, *shape) and dataset.test_images.shape == (500, *shape)
    assert dataset.fingerprint == fingerprint
    assert "scikit-learn" in dataset.source


def test_digits_are_split_without_overlap_and_by_class():
    dataset = load("digits")
    # All 1,797 originals differ, so an image on both sides would show as fewer distinct ones.
    assert len(np.unique(load_digits().data, axis=0)) == 1797
    rows = torch.cat([dataset.train_images, dataset.test_images]).flatten(1).numpy()
    assert len(np.unique(rows, axis=0)) == 1797
    shares = dataset.test_labels.bincount() / (dataset.train_labels.bincount() + dataset.test_labels.bincount())
    assert torch.allclose(shares, torch.full((10,), 500 / 1797), atol=0.005)


def test_digits_span_the_range_of_uint8():
    images = load("digits").train_images
    assert images.min() == 0 and images.max() == 255


def test_coloured_digits_are_the_same_digits():
    grey, coloured = load("digits"), load("digits-rgb")
    assert torch.equal(grey.train_labels, coloured.train_labels) and torch.equal(grey.test_labels, coloured.test_labels)
    # A corner is background, which is dark; every image has its own colour.
    corners = coloured.train_images[:, :, 0, 0]
    assert corners.max() < 160 and len(corners.unique(dim=0)) > 1000
    # Where the grey image is brighter the coloured one is, too.
    small = torch.nn.functional.interpolate(grey.train_images.double(), size=(32, 32), mode="bilinear").flatten(1)
    colour = coloured.train_images.double().mean(1).flatten(1)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(small[:50].numpy(), colour[:50].numpy(), strict=True)]
    assert min(correlations) > 0.95


def test_load_gives_the_same_object_again():
    assert load("digits") is load("digits")


def test_a_fingerprint_tells_shapes_and_order_apart():
    images, labels = torch.zeros(2, 1, 2, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)

    def fingerprint(*tensors):
        return datasets.dataset_of("digits", tensors, "").fingerprint

    same = fingerprint(images, labels, images, labels)
    assert same == fingerprint(images.clone(), labels, images, labels)
    assert same == fingerprint(images.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), labels, images, labels)
    assert same != fingerprint(images.reshape(2, 1, 3, 2), labels, images, labels)
    assert same != fingerprint(images, labels, images, labels + 1)


def test_unknown_name():
    with pytest.raises(ValueError, match=f"unknown data set 'Digits': choose one of {', '.join(DATASETS)}"):
        load("Digits")


def test_to_float():
    features = to_float(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16))
    assert features.dtype == torch.float32 and features.shape == (1, 1, 16, 16)
    assert features.min() == 0 and features.max() == 1
    with pytest.raises(TypeError, match="must be uint8, not float32"):
        to_float(features)
    with pytest.raises(TypeError, match="must be uint8, not ndarray of uint8"):
        to_float(np.zeros(3, dtype=np.uint8))


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------


@needs_debian
def test_the_real_fashion_mnist(monkeypatch):
    monkeypatch.setattr(idx_files, "_DEBIAN_FASHION_MNIST", DEBIAN)
    dataset = load("fashion-mnist")
    check_invariants(dataset)
    assert dataset.train_images.shape == (60_000, 1, 28, 28) and dataset.test_images.shape == (10_000, 1, 28, 28)
    assert dataset.train_labels.bincount().tolist() == [6000] * 10
    assert dataset.test_labels.bincount().tolist() == [1000] * 10
    assert dataset.train_labels[:5].tolist() == [9, 0, 0, 3, 0] and dataset.classes[9] == "Ankle boot"
    assert to_float(dataset.train_images).mean().item() == pytest.approx(0.2860, abs=1e-4)  # the mean everyone uses
    assert dataset.fingerprint == "201c823bca541dcfaa8df4ddedc381680391a3e168dabcba7d0d6299af51dcbd"
    assert dataset.source == "Fashion-MNIST"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("layout", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_layouts_of_fashion_mnist(here, idx, layout, packed):
    write_idx(here / layout, idx, packed=packed)
    dataset = load("fashion-mnist")
    check_invariants(dataset)
    assert dataset.train_images.shape == (20, 1, 28, 28)
    assert dataset.test_labels.tolist() == list(range(10))
    assert dataset.train_images[1].flatten().tolist() == list(idx["train-images-idx3-ubyte"][16 + 784 : 16 + 2 * 784])


def test_torchvision_reads_the_same(here, idx):
    write_idx(here / "FashionMNIST" / "raw", idx, packed=False)
    train = FashionMNIST(here, train=True)
    assert torch.equal(load("fashion-mnist").train_images[:, 0], train.data)
    assert torch.equal(load("fashion-mnist").train_labels, train.targets)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def altered_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def not_gzip(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


def other_content(path: Path) -> None:
    path.write_bytes(gzip.compress(b"something else"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "packed"),
    [
        (truncated, True),
        (altered_inside, True),
        (not_gzip, True),
        (other_content, True),
        (empty, True),
        (truncated, False),
        (altered_inside, False),
    ],
)
def test_a_damaged_file_is_named(here, idx, damage, packed):
    path = write_idx(here, idx, packed=packed) / f"train-images-idx3-ubyte{'.gz' * packed}"
    damage(path)
    with pytest.raises(ValueError) as caught:
        load("fashion-mnist")
    assert str(path) in str(caught.value) and "apt-get install" in str(caught.value) and "\n" not in str(caught.value)


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


def test_the_original_batches(monkeypatch, here):
    write_batches(monkeypatch, here)
    dataset = load("cifar10")
    check_invariants(dataset)
    assert dataset.train_labels.tolist() == [1, 2, 3, 4, 5] and dataset.test_labels.tolist() == [9]
    assert torch.equal(dataset.train_images[2], picture(3)) and torch.equal(dataset.test_images[0], picture(9))
    assert dataset.source == "CIFAR-10" and dataset.classes[3] == "cat"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_batch_with_a_wrong_md5_is_never_unpickled(monkeypatch, tmp_path, here, name):
    batches = write_batches(monkeypatch, here)
    (batches / name).write_bytes(pickle.dumps({"data": Bomb(tmp_path / "exploded")}))
    with pytest.raises(ValueError, match="md5") as caught:
        load("cifar10")
    assert str(batches) in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_tree_of_images(here, tiny, kind):
    files = cifar10_files(kind)
    write_tree(here, files)
    dataset = load("cifar10")
    check_invariants(dataset)
    assert dataset.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert dataset.test_labels.tolist() == list(range(10))
    assert ("JPEG (not the original pixels)" in dataset.source) == (kind == "jpg")
    # Sorted by class, then by file name; PNG keeps every pixel, JPEG about all of them.
    seeds = {name: seed for seed, name in enumerate(files)}
    first_two = [picture(seeds[f"train/airplane/{n:04}.{kind}"]) for n in (0, 1)]
    if kind == "png":
        assert torch.equal(dataset.train_images[:2], torch.stack(first_two))
    else:
        errors = (dataset.train_images[:2, None].float() - torch.stack(first_two).float()).abs().mean((2, 3, 4))
        assert (errors.argmin(1) == torch.arange(2)).all()


@pytest.mark.parametrize(
    ("path", "found"), [("train/cat/0001.jpg", "train/cat, not 2"), ("train/zebra/0.jpg", "train/zebra, not 0")]
)
def test_a_tree_with_an_image_or_a_class_too_few_or_too_many(here, tiny, path, found):
    files = cifar10_files()
    if files.pop(path, None) is None:
        files[path] = files["train/cat/0000.jpg"]
    write_tree(here, files)
    with pytest.raises(ValueError, match=f"has 1 images in {found}"):
        load("cifar10")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cannot be decoded"),
        (b"not an image", "cannot be decoded"),
        (encoded(picture(0), "jpg")[:300], "cannot be decoded"),
        (encoded(picture(0), "png")[:300], "cannot be decoded"),
        (encoded(picture(0, side=28), "jpg"), "is 28x28 pixels, not 32x32"),
    ],
)
def test_a_tree_with_a_bad_image(here, tiny, content, complaint):
    write_tree(here, cifar10_files() | {"test/dog/0000.jpg": content})
    with pytest.raises(ValueError, match=complaint) as caught:
        load("cifar10")
    assert "test/dog/0000.jpg" in str(caught.value) and "\n" not in str(caught.value)


def in_archive(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"cifar10/{name}": content for name, content in files.items()}


def test_the_archive_is_decoded_once(monkeypatch, tmp_path, here, tiny):
    write_archive(monkeypatch, here, in_archive(cifar10_files()))
    first = load("cifar10")
    check_invariants(first)
    assert first.source == "CIFAR-10, re-encoded as JPEG (not the original pixels)"
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1

    def refuse(archive):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cifar10, "_members", refuse)
    load.cache_clear()
    second = load("cifar10")
    assert second is not first and second.fingerprint == first.fingerprint and second.source == first.source
    assert torch.equal(second.train_images, first.train_images)


def test_the_archive_holds_what_its_tree_holds(monkeypatch, here, tiny):
    files = cifar10_files()
    write_archive(monkeypatch, here, in_archive(files))
    from_archive = load("cifar10")
    load.cache_clear()
    write_tree(here, files)  # it comes before the archive
    from_tree = load("cifar10")
    assert from_tree.source != from_archive.source and from_tree.fingerprint == from_archive.fingerprint


@pytest.mark.parametrize("damage", [truncated, altered_inside])
def test_a_damaged_archive_is_named(monkeypatch, tmp_path, here, tiny, damage):
    path = write_archive(monkeypatch, here, in_archive(cifar10_files()))
    damage(path)
    with pytest.raises(ValueError, match="SHA-256") as caught:
        load("cifar10")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [truncated, altered_inside, empty])
def test_a_damaged_copy_in_the_cache_is_named(monkeypatch, tmp_path, here, tiny, damage):
    write_archive(monkeypatch, here, in_archive(cifar10_files()))
    load("cifar10")
    load.cache_clear()
    (cached,) = (tmp_path / "cache" / "data").iterdir()
    damage(cached)
    with pytest.raises(ValueError, match="delete it, and it is made again") as caught:
        load("cifar10")
    assert str(cached) in str(caught.value)
    cached.unlink()
    assert len(load("cifar10").train_images) == 20


def test_no_member_of_an_archive_leads_out_of_it(monkeypatch, tmp_path, here, tiny):
    evil = {name: b"evil" for name in ("../evil", "cifar10/../evil", str(tmp_path / "evil"), "cifar10/train/evil")}
    write_archive(monkeypatch, here, evil | in_archive(cifar10_files()))
    before = set(tmp_path.rglob("*")) | set(tmp_path.parent.iterdir())
    assert len(load("cifar10").train_images) == 20
    new = (set(tmp_path.rglob("*")) | set(tmp_path.parent.iterdir())) - before
    assert all(path.is_relative_to(tmp_path / "cache") for path in new)


def test_a_member_in_a_false_class_is_refused(monkeypatch, here, tiny):
    files = in_archive(cifar10_files())
    files["cifar10/train/../evil.jpg"] = encoded(picture(0), "jpg")
    write_archive(monkeypatch, here, files)
    with pytest.raises(ValueError, match=r"train/\.\., not 0"):
        load("cifar10")


def test_the_original_pixels_come_before_a_copy(monkeypatch, here, tiny):
    write_batches(monkeypatch, here)
    write_tree(here, cifar10_files())
    assert load("cifar10").source == "CIFAR-10"


@needs_archive
def test_the_real_archive():
    """Every picture is in its place; a twentieth of them, decoded, has CIFAR-10's own channel means, which JPEG keeps."""
    assert file_digest(ARCHIVE) == cifar10._ARCHIVE_SHA256
    members = list(cifar10._members(ARCHIVE))
    of_each = {f"{split}/{label}": n for split, n in cifar10._IMAGES_PER_CLASS.items() for label in cifar10._CLASSES}
    assert Counter(name.rpartition("/")[0] for name, _ in members) == of_each
    pictures = torch.stack([cifar10._pixels(content, name) for name, content in members[::20]])
    means = pictures.float().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)


# --- where to look -----------------------------------------------------------------------------------------------


def test_search_order(monkeypatch, tmp_path, idx):
    """$BSLIB_DATA, its folders in order, then the cache, then Debian; a wrong file shows who was asked."""
    first, second = tmp_path / "first", tmp_path / "second"
    places = [first, second, tmp_path / "cache" / "data", tmp_path / "debian"]
    monkeypatch.setenv("BSLIB_DATA", os.pathsep.join([str(tmp_path / "absent"), str(first), str(second)]))
    for place in places:
        write_idx(place, dict.fromkeys(idx, b"wrong"))
    for place in places:
        with pytest.raises(ValueError) as caught:
            load("fashion-mnist")
        assert str(caught.value).startswith(str(place / "train-images-idx3-ubyte.gz"))
        (place / "t10k-labels-idx1-ubyte.gz").unlink()  # an incomplete set is passed over
    with pytest.raises(FileNotFoundError):
        load("fashion-mnist")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_not_found_names_every_place_and_the_remedy(monkeypatch, tmp_path, name):
    monkeypatch.setenv("BSLIB_DATA", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    with pytest.raises(FileNotFoundError) as caught:
        load(name)
    message = str(caught.value)
    for wanted in (name, tmp_path / "one", tmp_path / "two", tmp_path / "cache" / "data", "BSLIB_OFFLINE=1"):
        assert str(wanted) in message
    assert "export BSLIB_DATA=" in message and "\n" not in message
    if name == "fashion-mnist":
        assert str(tmp_path / "debian") in message and "apt-get install dataset-fashion-mnist" in message
    assert not (tmp_path / "cache").exists()


def test_download(monkeypatch, tmp_path, idx):
    def download(self):
        assert socket.getdefaulttimeout() == places.DOWNLOAD_TIMEOUT
        write_idx(Path(self.raw_folder), idx, packed=False)

    monkeypatch.setattr(FashionMNIST, "download", download)
    monkeypatch.delenv("BSLIB_OFFLINE")
    dataset = load("fashion-mnist")
    assert dataset.train_images.shape == (20, 1, 28, 28)
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir()] == ["FashionMNIST"]
    assert socket.getdefaulttimeout() is None
    monkeypatch.setenv("BSLIB_OFFLINE", "1")
    load.cache_clear()
    assert load("fashion-mnist").fingerprint == dataset.fingerprint


def test_download_of_cifar10(monkeypatch, tmp_path):
    elsewhere = write_batches(monkeypatch, tmp_path / "elsewhere")
    monkeypatch.setattr(CIFAR10, "download", lambda self: elsewhere.rename(Path(self.root, CIFAR10.base_folder)))
    monkeypatch.delenv("BSLIB_OFFLINE")
    assert load("cifar10").source == "CIFAR-10"
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir()] == [CIFAR10.base_folder]


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("Error downloading:\nno route"), TimeoutError("no route")])
@pytest.mark.parametrize(("name", "kind"), [("fashion-mnist", FashionMNIST), ("cifar10", CIFAR10)])
def test_a_download_that_fails_leaves_nothing_behind(monkeypatch, tmp_path, name, kind, error):
    def download(self):
        Path(self.root, "half").write_bytes(b"half")
        raise error

    monkeypatch.setattr(kind, "download", download)
    monkeypatch.delenv("BSLIB_OFFLINE")
    with pytest.raises(FileNotFoundError, match="no route") as caught:
        load(name)
    assert "export BSLIB_DATA=" in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "data").iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_huge_picture_is_refused_from_its_header(tmp_path):
    """A PNG whose header says 60,000 x 60,000 pixels."""
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big")
    chunk = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = header + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    with pytest.raises(ValueError, match=r"60000x60000 pixels, not 32x32|cannot be decoded"):
        cifar10._pixels(content, "a.png")
