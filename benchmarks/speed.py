"""How fast W and training are on this machine, against what one would otherwise use; ``--help`` tells the options.

The contenders of a comparison take turns in each round; ``torch.utils.benchmark`` runs each twice before it takes the time.
The result is a list of rows with the seconds of every round, and :mod:`bslib.timings` makes the book's page of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from bslib import timings
from bslib.calling import evaluating
from bslib.datasets import load, to_float
from bslib.engine import NearTieFallback, compile_for_inference, fast_dtype
from bslib.files import atomic_path
from bslib.jobs.base import draw_points
from bslib.measure import class_counts, standard_noise
from bslib.networks import NETWORKS, build
from bslib.provenance import code_version, device_name
from bslib.training import accuracy, train

Row = dict[str, Any]
Run = Callable[[], Any]
CPU = torch.device("cpu")
SIGMA, N = 0.1, 250
#: The noise levels at which labels are compared.
SIGMAS = (0.05, 0.1, 0.25, 0.5)
#: The precision of our contenders; None is that of the default call.
OURS: dict[str, torch.dtype | None] = {"default": None, "float32": torch.float32}
#: Data, size of the images, images for W, labels to compare; and of the training: images, epochs, batch size, learning rate.
SETUPS = {
    "small-fashion": ("fashion-mnist", 28, 40, 100_000, (10_000, 1, 64, 0.05)),
    "larger-fashion": ("fashion-mnist", 28, 40, 100_000, (10_000, 1, 64, 0.05)),
    "resnet18": ("cifar10", 32, 4, 4_000, (5_000, 2, 64, 0.05)),
    "mobilenet-v3-small-96": ("cifar10", 96, 8, 20_000, (2_000, 2, 16, 0.05)),
    "efficientnet-b0-96": ("cifar10", 96, 4, 4_000, (1_500, 1, 16, 0.02)),
    "resnet18-224": ("cifar10", 224, 1, 1_000, (512, 1, 16, 0.01)),
}
#: What ``--quick`` takes: small data, and one network of each kind, since to convert a network is slow even for tiny sizes.
TINY = {"fashion-mnist": "digits", "cifar10": "digits-rgb"}
QUICK = ("larger-fashion", "resnet18-224")
MLP = "mlp-8-64-3"


@cache
def prepared(name: str, quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """A briefly trained network (near ties depend on the weights), test images for W, and more of them for the labels."""
    torch.manual_seed(0)
    if name == MLP:
        points = torch.rand(500, 8)
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)), points[:10] if quick else points, points
    source, size, points_of_w, labels_compared, training = SETUPS[name]
    if quick:
        source, size, points_of_w, labels_compared, training = TINY[source], min(size, 32), 1, 1000, (16, 1, 16, 0.01)
    data, (count, epochs, batch_size, rate) = load(source), training

    def drawn(images: Tensor, count: int) -> Tensor:
        chosen = images[draw_points(len(images), count, 0)]
        same = size == chosen.shape[-1]
        return chosen if same else interpolate(chosen.float(), size=size, mode="bilinear").round().to(torch.uint8)

    network, labels = untrained(name), data.train_labels[draw_points(len(data.train_labels), count, 0)]
    how: Row = {"epochs": epochs, "seed": 0, "batch_size": batch_size, "learning_rate": rate, "dtype": fast_dtype(CPU)}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if quick else os.cpu_count() or 1)
    train(network, drawn(data.train_images, count), labels, **how, progress=False)
    torch.set_num_threads(threads)
    images = to_float(drawn(data.test_images, labels_compared // (len(SIGMAS) * N)))
    return network, images[:points_of_w], images


def untrained(name: str) -> nn.Module:
    """One of bslib's networks, or a torchvision network of ten classes, whose name ends with the size of the images."""
    if name in NETWORKS:
        return build(name, seed=0)
    from torchvision import models

    network: nn.Module = models.get_model(name.rpartition("-")[0].replace("-", "_"), num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torch's own: the averages follow within a few steps
    return network


def in_turns(contenders: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """The seconds of each contender in each round."""
    threads = torch.get_num_threads()
    timers = {who: Timer("run()", globals={"run": run}, num_threads=threads) for who, run in contenders.items()}
    warm = {who: timed(run) for who, run in contenders.items()}
    slow = {who for who, seconds in warm.items() if seconds > 1}  # a Timer would warm each up twice more in every round
    turns = [
        {who: timed(contenders[who]) if who in slow else t.timeit(1).median for who, t in timers.items()} for _ in range(rounds)
    ]
    return {who: [turn[who] for turn in turns] for who in contenders}


def timed(run: Run) -> float:
    """The seconds of a single call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ours(model: nn.Module, images: Tensor, n: int, dtype: torch.dtype | None = None) -> Run:
    """Class counts by this package."""
    return partial(class_counts, model, images, SIGMA, n, seed=0, dtype=dtype, progress=False)


@torch.no_grad()
def textbook_counts(model: nn.Module, images: Tensor, sigma: float, n: int, classes: int) -> np.ndarray:
    """Class counts as the public code of randomized smoothing takes them: image after image, one batch of noise each.

    >>> textbook_counts(nn.Flatten(), torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]), 0.1, 5, classes=3).tolist()
    [[0, 5, 0], [5, 0, 0]]
    """
    counts = np.zeros((len(images), classes), dtype=int)
    for k, image in enumerate(images):
        batch = image.repeat(n, *[1] * image.ndim)
        for label in model(batch + torch.randn_like(batch) * sigma).argmax(1).numpy():
            counts[k, label] += 1
    return counts


def art_counts(model: nn.Module, images: Tensor, n: int, classes: int) -> Run:
    """The counts of the smoothed classifier of the Adversarial Robustness Toolbox."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    how: Row = {"nb_classes": classes, "device_type": "cpu", "sample_size": n, "scale": SIGMA}
    smoothed = PyTorchRandomizedSmoothing(model, loss=nn.CrossEntropyLoss(), input_shape=tuple(images.shape[1:]), **how)
    return lambda: np.stack([smoothed._prediction_counts(image, n=n) for image in images.numpy()])


def engine_of(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None, passes: int | None = None) -> Row:
    """What runs a network's passes in words, and which share of noisy images has a near tie.

    Without ``passes`` the network is converted as for a long computation, and calls that follow use what was made.
    """
    with evaluating(model) as network:
        compiled = compile_for_inference(network, x, dtype=dtype, passes=passes)
        found: Row = {"precision": str(compiled.dtype).removeprefix("torch."), "engine": compiled.what}
        if isinstance(compiled.network, NearTieFallback):
            noisy = (x[:4, None] + SIGMA * standard_noise(x[:4], 64, seed=0)).flatten(0, 1)
            found["near ties"] = float(compiled.network.near_ties(compiled.network.quick(noisy).float()).float().mean())
    return found


def w(rounds: int, quick: bool) -> Iterator[Row]:
    """Class counts by the default call, in float32, by the textbook loop and by ART, in a long computation.

    So networks are converted where that makes them faster; how long the conversion and the first call take is a row of its own.
    """
    n = 4 if quick else N
    for name in (*(QUICK if quick else SETUPS), MLP):
        network, images, _ = prepared(name, quick)
        row: Row = {"what": "W", "network": name, "precision": "float32", "units": len(images) * n}
        models = {who: copy.deepcopy(network) for who in OURS}  # one conversion is kept for a model
        runs = {who: ours(models[who], images, n, dtype) for who, dtype in OURS.items()}
        first = {who: timed(partial(engine_of, models[who], images, OURS[who])) + timed(run) for who, run in runs.items()}
        plain, classes = copy.deepcopy(network).to(memory_format=torch.contiguous_format).eval(), 3 if name == MLP else 10
        runs["textbook loop"] = partial(textbook_counts, plain, images, SIGMA, n, classes)
        if name in NETWORKS:  # the loop's time is ART's, too
            runs["ART"] = art_counts(plain, images, n, classes)
        for who, seconds in in_turns(runs, rounds).items():
            how = engine_of(models[who], images, OURS[who]) if who in OURS else {"engine": "eager, float32"}
            yield row | how | {"contender": who, "seconds": seconds}
            if who in OURS:
                yield row | how | {"what": "first call", "contender": who, "seconds": [first[who]]}


def labels(rounds: int, quick: bool) -> Iterator[Row]:
    """How many labels of the default call differ from those of the model as it is: half the difference of the counts."""
    for name in QUICK if quick else SETUPS:
        network, _, images = prepared(name, quick)
        count = partial(class_counts, network, images, SIGMAS, 4 if quick else N, seed=0, progress=False)
        exact, found = count(dtype=torch.float32, engine="eager"), count()
        row: Row = {"what": "labels", "network": name, "contender": "default", "seconds": [], "units": int(exact.sum())}
        yield row | engine_of(network, images, None, row["units"]) | {"changed": int(np.abs(found - exact).sum() // 2)}


def epoch(rounds: int, quick: bool) -> Iterator[Row]:
    """One epoch of the larger Fashion network and the accuracy after it, against the usual loop; nothing runs before a round."""
    data, dtype = load("digits" if quick else "fashion-mnist"), fast_dtype(CPU)
    examples = data.train_images, data.train_labels
    own = partial(train, epochs=1, learning_rate=0.1, dtype=dtype, progress=False)  # a rate chosen on training images held out
    runs: dict[str, Callable[..., Any]] = {"bslib": own, "DataLoader": usual_epoch}
    row: Row = {"what": "epoch", "network": "larger-fashion", "units": len(data.train_labels)}
    rows = {who: row | {"contender": who, "seconds": [], "accuracy": []} for who in runs}
    for who, precision in (("bslib", str(dtype).removeprefix("torch.")), ("DataLoader", "float32")):
        rows[who] |= {"precision": precision, "engine": f"eager, {precision}"}
    for seed in range(rounds):
        for who, run in runs.items():
            network = build("larger-fashion", seed=seed)
            rows[who]["seconds"].append(timed(partial(run, network, *examples, seed=seed)))
            rows[who]["accuracy"].append(accuracy(network, data.test_images, data.test_labels))
    yield from rows.values()


def usual_epoch(network: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """An epoch as the tutorials write it, with torchvision's data set."""
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import ToTensor

    data = FashionMNIST.__new__(FashionMNIST)  # its files may be elsewhere
    data.data, data.targets, data.transform, data.target_transform = images.squeeze(1), labels, ToTensor(), None
    torch.manual_seed(seed)
    network.to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.Adam(network.parameters())
    for x, y in DataLoader(data, batch_size=128, shuffle=True, num_workers=2):
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()


def peak(rounds: int, quick: bool) -> Iterator[Row]:
    """The operations a second of W in a long computation, and of a large matrix product in the precision that W runs in."""
    size, n = (64, 4) if quick else (2048, 256)
    for name, points in (("larger-fashion", 1),) if quick else (("larger-fashion", 20), ("resnet18", 1)):
        network, _, images = prepared(name, quick)
        with FlopCounterMode(display=False) as counter, evaluating(network) as logits:
            logits(images[:1])
        for who, dtype in OURS.items():
            how = engine_of(model := copy.deepcopy(network), images, dtype)
            a = torch.randn(size, size).to(getattr(torch, how["precision"]))
            runs: dict[str, Run] = {"product": partial(torch.matmul, a, a.clone()), "W": ours(model, images[:points], n, dtype)}
            seconds = in_turns(runs, rounds)
            row: Row = {"what": "peak", "network": name, "contender": who, "seconds": seconds["W"], "units": points * n, **how}
            rate = 2 * size**3 / statistics.median(seconds["product"])
            share = counter.get_total_flops() * row["units"] / statistics.median(seconds["W"]) / rate
            yield row | {"peak share": share, "peak": rate, "operations": counter.get_total_flops()}


def memory(rounds: int, quick: bool) -> Iterator[Row]:
    """The most memory that a fresh process holds, for few and for many copies of two images, by the same engine."""
    for n in (4,) if quick else (N, 10_000):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            found = fresh.submit(peak_memory, n, quick, torch.get_num_threads()).result()
        yield {"what": "memory", "network": "larger-fashion", "contender": "default", "seconds": [], "units": 2 * n, **found}


def peak_memory(n: int, quick: bool, threads: int) -> Row:
    """W of n copies of two images in this process, and its MiB at the most, as Linux tells it."""
    torch.set_num_threads(threads)
    network, images = build("larger-fashion", seed=0), to_float(load("digits" if quick else "fashion-mnist").test_images[:2])
    how = engine_of(network, images)
    ours(network, images, n)()
    return how | {"MiB": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10}


def scaling(rounds: int, quick: bool) -> Iterator[Row]:
    """The time of few copies, and of four times the points with four times the copies each, in a long computation."""
    points, n = (1, 4) if quick else (25, 128)
    network, _, images = prepared("larger-fashion", quick)
    images = images[:1].repeat(4, 1, 1, 1) if quick else images[: 4 * points]
    how = engine_of(network, images)
    runs = {"once": ours(network, images[:points], n), "16 times": ours(network, images, 4 * n)}
    for (who, seconds), units in zip(in_turns(runs, rounds).items(), (points * n, 16 * points * n), strict=True):
        yield {"what": "scaling", "network": "larger-fashion", "contender": who, "seconds": seconds, "units": units, **how}


PARTS = {"W": w, "labels": labels, "epoch": epoch, "peak": peak, "memory": memory, "scaling": scaling}


def machine() -> Row:
    """What the numbers depend on besides the code."""
    facts: Row = {"device": device_name(CPU), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    can = torch.cpu.get_capabilities()
    facts |= {"amx": bool(can.get("amx_bf16") and can.get("amx_tile")), "avx512_bf16": bool(can.get("avx512_bf16"))}
    for name in ("torch", "torchvision", "openvino", "numpy"):
        facts[name] = version(name) if find_spec(name) else None
    return facts


def main() -> None:
    """Measure the parts asked for, one after the other."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the result, written after every part; --only keeps its others")
    parser.add_argument("--rounds", type=int, default=5, help="each number is their median")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of OpenVINO; a job of bslib run has one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works: the numbers mean nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: Row = {
        "machine": machine(),
        "settings": {"rounds": options.rounds, "quick": options.quick},
        "measured": {},
        "rows": [],
    }
    if options.only and options.json and options.json.exists():
        before = json.loads(options.json.read_text("utf-8"))
        if (before["machine"], before["settings"]) != (result["machine"], result["settings"]):
            parser.error(f"{options.json} was measured on another machine or with other settings: name another file")
        result = before
    for source in TINY:
        load(TINY[source] if options.quick else source)  # one that is missing is said before anything is measured
    code = code_version()  # of what is measured, whatever is committed meanwhile
    for part in options.only or PARTS:
        began = time.perf_counter()
        rows = [{"part": part, **row} for row in PARTS[part](options.rounds, options.quick)]
        result["rows"] = [row for row in result["rows"] if row["part"] != part] + rows
        result["measured"][part] = {"code": code, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        if options.json:
            with atomic_path(options.json) as file:
                file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    print(timings.table(result))


if __name__ == "__main__":
    main()
