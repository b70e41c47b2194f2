"""Jobs: a spec carried out. All that is heavy happens here, and ends in a record."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bslib.calling import evaluating
from bslib.datasets import Dataset, load, to_float
from bslib.detectors import logit_shift_variance, strip_entropy
from bslib.drawings import changed_digests
from bslib.engine import compile_for_inference, fast_dtype
from bslib.measure import class_counts, predict, standard_noise
from bslib.networks import build
from bslib.patterns.neural_cleanse import Candidates, anomaly_index, patched, reverse_triggers
from bslib.patterns.universal import perturbed, universal_perturbation
from bslib.poisoning import poison
from bslib.specs import (
    CleanseSpec,
    CountsSpec,
    ImagesSpec,
    NetworkSpec,
    PredictionsSpec,
    ScoresSpec,
    Spec,
    ToySpec,
    UniversalSpec,
)
from bslib.store import Record, Store, plain_text
from bslib.training import accuracy, load_weights, save_weights, train
from bslib.triggers import PATTERNS, pattern

__all__ = ["compute", "draw_points", "draw_points_of_each_class"]


def compute(spec: Spec, store: Store, *, device: str, progress: bool = True) -> Record:
    """Compute what ``spec`` asks for; nothing is put into the store but a network's weights and checkpoints.

    Parameters
    ----------
    spec : Spec
    store : Store
        Where the weights of networks are found and kept.
    device : str
        A torch device.
    progress : bool
        Show a bar for what takes longer than two seconds.

    Returns
    -------
    Record
        With its provenance.
    """
    started = time.monotonic()
    result, arrays, data = _JOBS[type(spec)](spec, store, torch.device(device), progress)
    seconds = time.monotonic() - started + result.pop("seconds before", 0.0)
    if digests := changed_digests(spec.triggers):
        result["triggers"] = digests
    engine = {"engine": result.pop("engine")} if "engine" in result else {}
    provenance = {
        "code": code_version(),
        "torch": torch.__version__,
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "seconds": round(seconds, 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    } | engine
    source = {} if data is None else {"name": data.name, "fingerprint": data.fingerprint, "source": data.source}
    return Record(spec, result, arrays, source, provenance)


def draw_points(available: int, points: int, seed: int) -> np.ndarray:
    """Which images make a batch: ``points`` different numbers below ``available``, int64, shape (points,).

    The first k of a batch are the batch of k points of the same seed.

    >>> draw_points(100, 5, seed=0).shape
    (5,)
    """
    if points < 1:
        raise ValueError(f"at least 1 image is needed, got {points}")
    if points > available:
        raise ValueError(f"{points} images were asked for, and there are only {available}")
    return np.random.default_rng([seed, 1]).permutation(available)[:points]


def draw_points_of_each_class(labels: np.ndarray, points: int, seed: int) -> np.ndarray:
    """Which test images make a batch of ``points`` of each class, class after class, int64, shape (classes * points,).

    >>> draw_points_of_each_class(np.array([0, 1, 0, 1]), 1, seed=0).shape
    (2,)
    """
    members = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
    return np.concatenate([own[draw_points(len(own), points, seed)] for own in members])


def split_test_set(available: int) -> tuple[np.ndarray, np.ndarray]:
    """The test set in two halves, the same for every network: what patterns are crafted on, and what they are measured on.

    >>> [len(half) for half in split_test_set(101)]
    [50, 51]
    """
    order = np.random.default_rng([0, 5]).permutation(available)
    return order[: available // 2], order[available // 2 :]


Parts = tuple[dict[str, Any], dict[str, np.ndarray], Dataset | None]


def _train_network(spec: NetworkSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    data = load(spec.dataset)
    images, labels = data.train_images, data.train_labels
    if spec.train_size is not None:
        chosen = draw_points(len(images), spec.train_size, spec.seed)
        images, labels = images[chosen], labels[chosen]
    if spec.attack is not None:
        poisoned = poison(
            images,
            labels,
            pattern(spec.attack.trigger),
            spec.attack.threat_model,
            target=spec.attack.target,
            classes=len(data.classes),
            seed=spec.seed,
        )
        images, labels = poisoned.images, poisoned.labels
    network = build(spec.network, classes=len(data.classes), seed=spec.seed).to(device)
    dtype = fast_dtype(device)
    path = store.weights_path(spec)
    began = time.monotonic()
    seconds = train(
        network,
        images,
        labels,
        epochs=spec.epochs,
        seed=spec.seed,
        learning_rate=spec.learning_rate,
        batch_size=spec.batch_size,
        weight_decay=spec.weight_decay,
        augment=spec.augment,
        dtype=dtype,
        checkpoint=checkpoint_path(spec, store, device),
        description=f"training {spec.network} on {spec.dataset}, seed {spec.seed}",
        progress=progress,
    )
    before = max(0.0, seconds - (time.monotonic() - began))  # what an interrupted run had done
    save_weights(network, path)
    result = {
        "seconds before": before,
        "clean_accuracy": accuracy(network, data.test_images, data.test_labels),
        "train_accuracy": accuracy(network, images[:10_000], labels[:10_000]),
        "test_images": len(data.test_images),
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": weights_digest(path),
        "precision": str(dtype).removeprefix("torch."),
        "engine": "eager, channels last",
    }
    return result, {}, data


def _count_classes(spec: CountsSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    data = load(spec.network.dataset)
    network, weights = _trained(spec.network, data, store, device)
    chosen = _measured_on(spec, data)
    batches = _carrying(spec, data.test_images[chosen], store)
    images = torch.cat(batches).to(device)
    ids = chosen.tolist() if spec.paired else None
    with evaluating(network) as logits:
        engine = compile_for_inference(logits, images, passes=len(images) * max(spec.ns) * len(spec.sigmas))
        counts = class_counts(network, images, spec.sigmas, spec.ns, seed=spec.seed, ids=ids, engine=engine, progress=progress)
    arrays = {
        "counts": counts.astype(np.int32),
        "images": np.tile(chosen, len(batches)),
        "labels": np.tile(data.test_labels[chosen].numpy(), len(batches)),
        "predicted": predict(network, images),
    }
    precision = str(engine.dtype).removeprefix("torch.")
    return {"weights": weights, "precision": precision, "engine": engine.what} | _pattern_of(spec, store), arrays, data


def _measured_on(spec: CountsSpec, data: Dataset) -> np.ndarray:
    """Which test images make the batch."""
    if spec.by_class:
        return draw_points_of_each_class(data.test_labels.numpy(), spec.points, spec.seed)
    if spec.held_out:
        _, measuring = split_test_set(len(data.test_images))
        return measuring[draw_points(len(measuring), spec.points, spec.seed)]
    return draw_points(len(data.test_images), spec.points, spec.seed)


def _carrying(spec: CountsSpec | ScoresSpec, images: Tensor, store: Store) -> list[Tensor]:
    """The uint8 images as float batches with what the spec says they carry: one batch, or one for each candidate."""
    if spec.pattern is None:
        return [to_float(images if spec.trigger is None else pattern(spec.trigger)(images))]
    crafted = {name: torch.from_numpy(array) for name, array in store.get(spec.pattern).arrays.items()}
    if isinstance(spec.pattern, UniversalSpec):
        return [perturbed(to_float(images), crafted["perturbation"])]
    pairs = zip(crafted["masks"], crafted["patterns"], strict=True)
    return [patched(to_float(images), mask, colours) for mask, colours in pairs]


def _crafted_on(data: Dataset, count: int, seed: int) -> Tensor:
    """So many uint8 images from the half of the test set that W is not measured on."""
    crafting, _ = split_test_set(len(data.test_images))
    return data.test_images[crafting[draw_points(len(crafting), count, seed)]]


def _pattern_of(spec: CountsSpec | ScoresSpec, store: Store) -> dict[str, str]:
    """Which result of crafting a batch carried, for a record: a pattern that is crafted anew may be another one."""
    return {} if spec.pattern is None else {"pattern": store.get(spec.pattern).checksum}


def _perturb(spec: UniversalSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    data = load(spec.network.dataset)
    network, weights = _trained(spec.network, data, store, device)
    images = _crafted_on(data, spec.images, spec.seed)
    found = universal_perturbation(
        network,
        to_float(images).to(device),
        bound=spec.bound / 255,
        passes=spec.passes,
        batch_size=spec.batch_size,
        seed=spec.seed,
        progress=progress,
    )
    _, measuring = split_test_set(len(data.test_images))
    others = to_float(data.test_images[measuring]).to(device)
    arrays = {
        "perturbation": found.perturbation.cpu().numpy(),
        "fooling_rates": np.array(found.fooling_rates),
        "without": predict(network, others).astype(np.int16),
        "with": predict(network, perturbed(others, found.perturbation)).astype(np.int16),
    }
    return {"weights": weights, "precision": "float32"}, arrays, data


def _cleanse(spec: CleanseSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    data = load(spec.network.dataset)
    network, weights = _trained(spec.network, data, store, device)
    images, dtype = _crafted_on(data, spec.images, spec.seed), fast_dtype(device)
    found = reverse_triggers(
        network,
        to_float(images).to(device),
        classes=len(data.classes),
        samples=spec.samples,
        steps=spec.steps,
        seed=spec.seed,
        dtype=dtype,
        progress=progress,
    )
    arrays = {name: getattr(found, name).cpu().numpy() for name in ("masks", "patterns", "success", "steps")}
    rng = np.random.default_rng([spec.seed, 6])
    _, measuring = split_test_set(len(data.test_images))
    others = {
        "test": (data.test_images, data.test_labels, measuring[: spec.checked]),
        "train": (data.train_images, data.train_labels, rng.permutation(len(data.train_labels))[: spec.checked]),
    }
    for name, (pictures, labels, chosen) in others.items():
        arrays[f"success_{name}"] = _sent(network, pictures[chosen], labels[chosen], found, device)
    precision = str(dtype).removeprefix("torch.")
    index = anomaly_index(found.norms.cpu(), found.success.cpu())
    return {"weights": weights, "precision": precision, "anomaly_index": index}, arrays, data


def _sent(network: nn.Module, images: Tensor, labels: Tensor, found: Candidates, device: torch.device) -> np.ndarray:
    """The share of images of other classes that each candidate sends to its class, shape (K,)."""
    shares = []
    for k, (mask, colours) in enumerate(zip(found.masks, found.patterns, strict=True)):
        others = to_float(images[labels != k]).to(device)
        shares.append(float((predict(network, patched(others, mask, colours)) == k).mean()))
    return np.array(shares)


def _score(spec: ScoresSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    data = load(spec.network.dataset)
    network, weights = _trained(spec.network, data, store, device)
    _, measuring = split_test_set(len(data.test_images))
    overlays = _crafted_on(data, spec.overlays, spec.seed)
    images = data.test_images[measuring[draw_points(len(measuring), spec.points, spec.seed)]]
    clean, over = (to_float(part).to(device) for part in (images, overlays))
    batches = [batch.to(device) for batch in _carrying(spec, images, store)]
    arrays = {"strip": np.stack([strip_entropy(network, batch, over).cpu().numpy() for batch in batches])}
    if spec.trigger is not None or spec.pattern is not None:
        arrays["logit_variance"] = np.array([logit_shift_variance(network, clean, batch) for batch in batches])
    return {"weights": weights, "precision": "float32"} | _pattern_of(spec, store), arrays, data


def _predict(spec: PredictionsSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    data = load(spec.network.dataset)
    network, weights = _trained(spec.network, data, store, device)
    images, labels = data.test_images, data.test_labels.numpy()
    if spec.images is not None:
        chosen = draw_points(len(images), spec.images, spec.network.seed)
        images, labels = images[chosen], labels[chosen]
    if spec.trigger is not None:
        images = pattern(spec.trigger)(images)
    predicted = predict(network, to_float(images).to(device))
    arrays = {"predicted": predicted.astype(np.int16), "labels": labels.astype(np.int16)}
    return {"weights": weights, "precision": "float32"}, arrays, data


def _trained(spec: NetworkSpec, data: Dataset, store: Store, device: torch.device) -> tuple[nn.Module, str]:
    """A network with its weights from beside the store, and their digest, which is the one that the network's record names."""
    network = build(spec.network, classes=len(data.classes), seed=spec.seed).to(device)
    path = store.weights_path(spec)
    load_weights(network, path)
    digest = weights_digest(path)
    if spec in store and store.get(spec).result["weights"] != digest:
        raise ValueError(f"{path} holds other weights than the record of its network names; remove it to train the network again")
    return network, digest


def _choose_images(spec: ImagesSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    data = load(spec.dataset)
    labels = data.test_labels.numpy()
    order = draw_points(len(labels), len(labels), spec.seed)
    # The classes take turns: the k-th image of each before the (k + 1)-th of any.
    turn = np.empty(len(labels), dtype=np.int64)
    for c in range(len(data.classes)):
        members = np.flatnonzero(labels[order] == c)
        turn[members] = np.arange(len(members))
    draw_points(len(labels), spec.images, spec.seed)  # refuses more than there are
    chosen = order[np.lexsort((labels[order], turn))][: spec.images]
    images = data.test_images[chosen]
    arrays = {"images": images.numpy(), "labels": labels[chosen]}
    if spec.stamped:
        stamped = [trigger(image) for trigger, image in zip(PATTERNS.values(), images[: len(PATTERNS)], strict=True)]
        arrays["stamped"] = torch.stack(stamped).numpy()
    return {"classes": list(data.classes)}, arrays, data


def _measure_toy(spec: ToySpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Points in the plane in three classes, some of the first relabelled as if poisoned; where W is looked at is in the spec.

    Arrays: ``train`` (M, 2), ``train_labels`` (M,) and ``poisoned`` (M,); ``grid`` (G, G), the predicted class over [-1, 1]^2,
    rows along y; ``points`` (P, 2), their noisy copies ``noisy`` (P, n, 2) and ``counts`` (1, P, 3).
    """
    x, labels, poisoned = _toy_data(spec.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    axis = torch.linspace(-1, 1, 201)
    plane = torch.cartesian_prod(axis, axis).flip(1)
    points = torch.tensor(spec.points)
    arrays = {
        "train": x.numpy(),
        "train_labels": labels.numpy(),
        "poisoned": poisoned.numpy(),
        "grid": predict(network, plane).reshape(201, 201).astype(np.int8),
        "points": points.numpy(),
        "noisy": (points[:, None] + spec.sigma * standard_noise(points, spec.n, seed=spec.seed)).numpy(),
        "counts": class_counts(network, points, spec.sigma, spec.n, seed=spec.seed).astype(np.int32),
    }
    return {"train_accuracy": float((predict(network, x) == labels.numpy()).mean())}, arrays, None


def _toy_data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """600 points: class 0 above a wavy line, 1 and 2 left and right below it; an island in class 0 is poisoned."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (600, 2))
    labels = np.where(x[:, 1] > 0.2 * np.sin(4 * x[:, 0]), 0, np.where(x[:, 0] < 0, 1, 2))
    poisoned = np.hypot(x[:, 0] + 0.5, x[:, 1] - 0.55) < 0.16
    labels[poisoned] = 2
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels), torch.tensor(poisoned)


_JOBS: dict[type[Spec], Callable[..., Parts]] = {
    NetworkSpec: _train_network,
    CountsSpec: _count_classes,
    PredictionsSpec: _predict,
    UniversalSpec: _perturb,
    CleanseSpec: _cleanse,
    ScoresSpec: _score,
    ImagesSpec: _choose_images,
    ToySpec: _measure_toy,
}


def checkpoint_path(spec: NetworkSpec, store: Store, device: torch.device | str) -> Path:
    """Where an unfinished training is kept: by device and precision, so that none goes on with another's."""
    device, dtype = torch.device(device), fast_dtype(torch.device(device))
    kind = f"{device.type}-{str(dtype).removeprefix('torch.')}"
    return store.weights_path(spec).with_suffix(f".{kind}.checkpoint.safetensors")


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file, in hexadecimal: which network exactly a record speaks of."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def device_name(device: torch.device) -> str:
    """The device in words: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return plain_text(torch.cuda.get_device_name(device))
    return plain_text(str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine()))


def code_version() -> str:
    """The package's version and, in a checkout, its commit; a ``+`` says that the package was changed since."""
    try:
        number = version("bslib")
    except PackageNotFoundError:
        number = "unknown"
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return f"{number} ({git('rev-parse', '--short=12', 'HEAD')}{'+' if git('status', '--porcelain', '.') else ''})"
    except (OSError, subprocess.CalledProcessError):
        return number
