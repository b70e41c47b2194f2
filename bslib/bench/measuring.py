"""The benchmark: how fast W and training are here, against what one would otherwise use, and against the machine itself.

Contenders of a part take turns in one run; medians of the repetitions. Peers run as their users run them; and once
more in a process whose C allocator keeps large blocks (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``), since a good part
of what a plain loop costs on a CPU is memory that is given back to the system and asked for again.

The result is data; :mod:`bslib.bench.page` makes a table and a page of it.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bslib.bench.page import SCHEMA
from bslib.chapters import CHAPTERS, plan_of
from bslib.datasets import load, to_float
from bslib.entropy import entropy
from bslib.jobs import code_version, device_name, draw_points
from bslib.measure import class_counts, evaluating, standard_noise
from bslib.networks import NETWORKS, build
from bslib.progress import bar
from bslib.specs import CleanseSpec, CountsSpec
from bslib.speed import Careful, prepare, trainable
from bslib.training import accuracy, fast_dtype, train

__all__ = ["PARTS", "earlier", "measure"]

#: What glibc is told in the second run of the peers: keep blocks below 1 GiB, never give memory back.
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
SIGMA = 0.1
#: What each network is trained and asked on.
DATA = {"small-fashion": "fashion-mnist", "larger-fashion": "fashion-mnist", "resnet18": "cifar10"}
#: The learning rate for one epoch alone was chosen on the last 10,000 training images, seeds 0 and 1, of 0.05, 0.1, 0.2 and 0.4.
ONE_EPOCH: dict[str, Any] = {"learning_rate": 0.1, "progress": False}

Result = dict[str, Any]
Contender = Callable[[], Any]


def measure(
    only: Sequence[str] | None = None,
    *,
    device: str = "cpu",
    repeats: int = 5,
    quick: bool = False,
    progress: bool = True,
    keep: Callable[[Result], None] = lambda found: None,
    before: Result | None = None,
) -> Result:
    """Run the benchmark.

    Parameters
    ----------
    only : sequence of str, optional
        Names in :data:`PARTS`; all when not given.
    device : str
    repeats : int
        Of everything that is timed; each number is the median.
    quick : bool
        Tiny sizes, to see that it works: the numbers mean nothing.
    progress : bool
    keep : callable
        Called with what is known after every part.
    before : dict, optional
        An earlier result of this machine, whose other parts stay.

    Returns
    -------
    dict
        JSON-able: schema, machine, settings, and an entry for each part.

    Raises
    ------
    ValueError
        For a part that does not exist, fewer than one repetition, or an earlier result of another machine or of other settings.
    FileNotFoundError
        Where a data set is not at hand; before anything is measured.
    """
    chosen = list(PARTS) if not only else list(only)
    if unknown := [name for name in chosen if name not in PARTS]:
        raise ValueError(f"parts are {', '.join(PARTS)}, got {unknown[0]!r}")
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    for data in sorted({data for name in chosen for data in NEEDS.get(name, ("fashion-mnist",))}):
        load(data)
    place = torch.device(device)
    found: Result = {
        "schema": SCHEMA,
        "machine": _machine(place),
        "settings": {"repeats": repeats, "quick": quick, "allocator": {k: v for k in TUNED if (v := os.environ.get(k))}},
        "parts": {},
    }
    if before is not None:
        _add(before, found)
    with bar(total=len(chosen), desc="bench", unit="part", show=progress) as shown:
        for name in chosen:
            shown.set_postfix_str(name)
            found["parts"][name] = {**PARTS[name](place, repeats, quick), "measured": _now()}
            keep(found)
            shown.update()
    return found


# W


def _counts(device: torch.device, repeats: int, quick: bool) -> Result:
    points, n = (4, 20) if quick else (100, 250)
    images = _images("fashion-mnist", points).to(device)
    wanted = {torch.float32: 3.0, torch.bfloat16: 7.0}
    return {"points": points, "n": n, "runs": _against_peers("larger-fashion", images, n, wanted, device, repeats, quick)}


def _resnet(device: torch.device, repeats: int, quick: bool) -> Result:
    points, n = (1, 4) if quick else (4, 250)
    images = _images("cifar10", points).to(device)
    wanted = {torch.float32: 3.0, torch.bfloat16: 3.0}
    return {"points": points, "n": n, "runs": _against_peers("resnet18", images, n, wanted, device, repeats, quick)}


def _precisions(device: torch.device) -> list[torch.dtype]:
    """float32, and bfloat16 where the hardware multiplies in it."""
    return list(dict.fromkeys([torch.float32, fast_dtype(device)]))


def _tuned(device: torch.device, repeats: int, quick: bool) -> Result:
    """W against its peers once more, in a process with another allocator setting."""
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return {"allocator": None, "parts": {}}
    options = {"only": ["counts", "resnet"], "repeats": repeats, "quick": quick, "progress": False}
    other = _in_a_process(f"print(json.dumps(measuring.measure(**{options!r})))", TUNED)
    return {"allocator": TUNED, "parts": other["parts"]}


def _against_peers(
    name: str, images: Tensor, n: int, wanted: Mapping[torch.dtype, float], device: torch.device, repeats: int, quick: bool
) -> list[Result]:
    """Class counts by us in each precision and by others in float32, in turns.

    In bfloat16 our time hangs on how many calls are close, so on the weights.
    """
    ours, _ = _briefly_trained(name, device, quick)
    plain = NETWORKS[name](10).to(device)  # as one would write it, in torch's usual layout
    plain.load_state_dict(ours.state_dict())
    plain.eval()
    count = partial(class_counts, ours, images, SIGMA, n, seed=0, progress=False)
    contenders: dict[str, Contender] = {}
    for dtype in _precisions(device):
        contenders[f"ours {dtype}"] = partial(count, dtype=dtype)
        contenders[f"eager {dtype}"] = partial(count, dtype=dtype, engine="eager")
    peers: dict[str, Contender] = {"textbook loop": partial(textbook_counts, plain, images, SIGMA, n)}
    missing = {}
    try:
        peers["ART"] = _art(plain, images, n)
    except ImportError as problem:
        missing["ART"] = f"{problem}; pip install adversarial-robustness-toolbox"
    seconds = _in_turns(contenders | peers, repeats, device)
    runs = []
    for dtype in _precisions(device):
        of_one = {who: seconds[f"{who} {dtype}"] for who in ("ours", "eager")} | {who: seconds[who] for who in peers}
        with evaluating(ours):
            network, _, what = prepare(ours, images, dtype=dtype)
            close = _share_close(network, images) if isinstance(network, Careful) else None
        told: Result = {"network": name, "precision": str(dtype).removeprefix("torch."), "engine": what, "close": close}
        told |= {"wanted": wanted[dtype], "seconds": of_one, "missing": missing}
        runs.append(told | _rates(of_one, len(images) * n))
    return runs


def _rates(seconds: Mapping[str, list[float]], copies: int) -> Result:
    """How many noisy copies a second are ours, and how much longer the others take, by medians."""
    medians = {who: statistics.median(times) for who, times in seconds.items()}
    ratios = {who: median / medians["ours"] for who, median in medians.items() if who != "ours"}
    return {"images_per_second": copies / medians["ours"], "ratios": ratios}


def _share_close(network: Careful, images: Tensor) -> float:
    """The share of noisy copies that are asked twice, of 64 an image."""
    with torch.autocast(images.device.type, dtype=network.dtype):
        noisy = (image + SIGMA * noise for image, noise in zip(images, standard_noise(images, 64, seed=0), strict=True))
        return float(torch.cat([network.close(network.quick(copies)) for copies in noisy]).float().mean())


@torch.no_grad()
def textbook_counts(model: nn.Module, images: Tensor, sigma: float, n: int, classes: int = 10) -> np.ndarray:
    """Class counts as the public code of randomized smoothing takes them: image after image, one batch of noise each.

    >>> textbook_counts(nn.Flatten(), torch.rand(2, 3), 0.1, 5, classes=3).sum(1)
    array([5, 5])
    """
    counts = np.zeros((len(images), classes), dtype=int)
    for k, image in enumerate(images):
        batch = image.repeat(n, *[1] * image.ndim)
        predictions = model(batch + torch.randn_like(batch) * sigma).argmax(1)
        for label in predictions.cpu().numpy():
            counts[k, label] += 1
    return counts


def _art(model: nn.Module, images: Tensor, n: int) -> Contender:
    """The counts of adversarial-robustness-toolbox's smoothed classifier."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    smoothed = PyTorchRandomizedSmoothing(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        device_type="gpu" if images.is_cuda else "cpu",
        sample_size=n,
        scale=SIGMA,
    )
    arrays = images.cpu().numpy()
    return lambda: np.stack([smoothed._prediction_counts(image, n=n) for image in arrays])


# The machine


def _peak(device: torch.device, repeats: int, quick: bool) -> Result:
    """How much of the speed of a large matrix product a forward pass has, in multiplications of the direct method."""
    size = 256 if quick else 2048
    runs: list[Result] = []
    peaks: dict[str, float] = {}
    for dtype in _precisions(device):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for name in ("larger-fashion", "resnet18"):
            network, _ = _briefly_trained(name, device, quick)
            points, n = (1, 4) if quick else (20 if name == "larger-fashion" else 1, 256)
            images = _images(DATA[name], points).to(device)
            options: dict[str, Any] = {"seed": 0, "progress": False, "dtype": dtype}
            seconds = _in_turns(
                {
                    "product": partial(torch.matmul, a, b),
                    "W": partial(class_counts, network, images, SIGMA, n, **options),
                },
                repeats,
                device,
            )
            peak = 2 * size**3 / statistics.median(seconds["product"])
            rate = points * n / statistics.median(seconds["W"])
            work = operations(network, images[:1])
            wanted = {torch.float32: 0.75, torch.bfloat16: 0.5}[dtype] if name == "larger-fashion" else None
            precision = str(dtype).removeprefix("torch.")
            peaks.setdefault(precision, peak)
            runs.append(
                {
                    "network": name,
                    "precision": precision,
                    "peak": peak,
                    "operations": work,
                    "images_per_second": rate,
                    "share": rate * work / peak,
                    "wanted": wanted,
                }
            )
    return {"size": size, "peaks": peaks, "runs": runs}


def operations(network: nn.Module, image: Tensor) -> int:
    """Floating point operations of a forward pass of one image, as torch counts them: two for each product.

    >>> operations(nn.Linear(3, 2), torch.rand(1, 3))
    12
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, evaluating(network):
        network(image)
    return int(counter.get_total_flops())


def _memory(device: torch.device, repeats: int, quick: bool) -> Result:
    """Peak memory of a process that measures W, for few and for many copies."""
    ns = (64, 128) if quick else (250, 10_000)
    peaks = {}
    for n in ns:
        call = f"print(measuring.peak_memory({str(device)!r}, {n}))"
        peaks[str(n)] = statistics.median(_in_a_process(call, {}) for _ in range(min(repeats, 3)))
    return {"peak_mib": peaks, "ratio": peaks[str(ns[-1])] / peaks[str(ns[0])]}


def peak_memory(device: str, n: int) -> float:
    """MiB at the most, for n copies of two images: of this process, or of the GPU."""
    network = build("larger-fashion", seed=0).to(device)
    class_counts(network, _images("fashion-mnist", 2).to(device), SIGMA, n, seed=0, progress=False)
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_of_this_process()


def peak_of_this_process() -> float:
    """MiB of memory that this process has held at the most.

    >>> peak_of_this_process() > 10
    True
    """
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss has the size of the process that started this one in it
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _scaling(device: torch.device, repeats: int, quick: bool) -> Result:
    """The time of four times the points with four times the copies, by 16 times the time of the fewer."""
    points, n = (2, 16) if quick else (50, 256)
    network = build("larger-fashion", seed=0).to(device)
    images = _images("fashion-mnist", 4 * points).to(device)
    seconds = _in_turns(
        {
            "once": partial(class_counts, network, images[:points], SIGMA, n, seed=0, progress=False),
            "16 times": partial(class_counts, network, images, SIGMA, 4 * n, seed=0, progress=False),
        },
        repeats,
        device,
    )
    ratio = statistics.median(seconds["16 times"]) / (16 * statistics.median(seconds["once"]))
    return {"points": points, "n": n, "seconds": seconds, "ratio": ratio}


# Training


def _training(device: torch.device, repeats: int, quick: bool) -> Result:
    """One epoch of ours, and one of the usual loop: torchvision's data set, DataLoader, ToTensor, Adam."""
    data = load("fashion-mnist")
    images, labels = data.train_images, data.train_labels
    tests = (data.test_images, data.test_labels)
    if quick:
        images, labels, tests = images[:512], labels[:512], (tests[0][:200], tests[1][:200])
    seconds: dict[str, list[float]] = {"ours": [], "DataLoader": []}
    accuracies: dict[str, list[float]] = {"ours": [], "DataLoader": []}
    with tempfile.TemporaryDirectory() as folder:
        write_fashion_mnist(Path(folder), images, labels)
        for seed in range(repeats):
            network = build("larger-fashion", seed=seed).to(device)
            peer = build("larger-fashion", seed=seed).to(device).to(memory_format=torch.contiguous_format)
            dtype = fast_dtype(device)
            runs: dict[str, tuple[nn.Module, Contender]] = {
                "ours": (network, partial(train, network, images, labels, epochs=1, seed=seed, dtype=dtype, **ONE_EPOCH)),
                "DataLoader": (peer, partial(usual_epoch, peer, Path(folder), device)),
            }
            for who, (trained, run) in runs.items():
                seconds[who].append(_timed(run, device))
                accuracies[who].append(accuracy(trained, *tests))
    mean = {who: statistics.fmean(values) for who, values in accuracies.items()}
    return {
        "images": len(images),
        "seconds": seconds,
        "accuracy": accuracies,
        "ratio": statistics.median(seconds["DataLoader"]) / statistics.median(seconds["ours"]),
        "difference": mean["ours"] - mean["DataLoader"],
        "steps": [step for name in ("larger-fashion", "resnet18") for step in _steps(name, device, repeats, quick)],
    }


def _steps(name: str, device: torch.device, repeats: int, quick: bool) -> list[Result]:
    """Forward and back through a network in training, through the C loops and by torch alone; none where there are no loops."""
    batch = 8 if quick else 128
    own = build(name, seed=0).to(device)
    x = _images(DATA[name], batch).to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10
    dtype = fast_dtype(device)
    fast, what = trainable(own.train(), x, dtype=dtype)
    if fast is own:
        return []

    def step(network: nn.Module) -> None:
        own.zero_grad()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()

    seconds = _in_turns({"ours": partial(step, fast), "torch alone": partial(step, own)}, repeats, device)
    each = {who: statistics.median(times) / batch for who, times in seconds.items()}
    return [{"network": name, "engine": what, "seconds_an_image": each, "ratio": each["torch alone"] / each["ours"]}]


def usual_epoch(network: nn.Module, folder: Path, device: torch.device) -> None:
    """An epoch as the tutorials write it."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import FashionMNIST

    data = FashionMNIST(str(folder), train=True, transform=transforms.ToTensor())
    optimizer = torch.optim.Adam(network.parameters())
    network.train()
    for x, y in DataLoader(data, batch_size=128, shuffle=True, num_workers=2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()


def write_fashion_mnist(folder: Path, images: Tensor, labels: Tensor) -> None:
    """Images and labels as the files that torchvision's FashionMNIST looks for; the test files repeat the training ones."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, tensor in (("images-idx3", images.squeeze(1)), ("labels-idx1", labels)):
            array = tensor.numpy().astype(np.uint8)
            head = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            (raw / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())


# What did not help


def _detours(device: torch.device, repeats: int, quick: bool) -> Result:
    """Other ways through the first layers of the larger Fashion network, and through all of it; in seconds an image."""
    x = _images("fashion-mnist", 8 if quick else 128).to(device)
    network = build("larger-fashion", seed=0).to(device)
    missing: dict[str, str] = {}
    with evaluating(network):
        first = ways_through_the_first_layers(network[:3], x)  # type: ignore[index]
        whole: dict[str, Contender] = {"as it is": partial(network, x), "rewritten": partial(prepare(network, x).network, x)}
        began = time.perf_counter()
        compiled = torch.compile(network, options={"freezing": True}, dynamic=False)
        try:
            compiled(x)
            whole["torch.compile"] = partial(compiled, x)
        except Exception as problem:  # whatever is not there that it needs
            missing["torch.compile"] = str(problem).splitlines()[0]
        compiling = time.perf_counter() - began
        seconds = {"first layers": _in_turns(first, repeats, device), "whole network": _in_turns(whole, repeats, device)}
    each = {part: {who: statistics.median(t) / len(x) for who, t in times.items()} for part, times in seconds.items()}
    return {"batch": len(x), "seconds_an_image": each, "compiling": compiling, "missing": missing}


def ways_through_the_first_layers(front: nn.Sequential, x: Tensor) -> dict[str, Contender]:
    """A 3 x 3 convolution of one channel, the 2 x 2 maximum and a ReLU, in ways that all give (b, filters, h, w)."""
    conv: Any = front[0]
    filters = conv.out_channels
    # At stride 2, four kernels for each filter, in the corners of 4 x 4: one for each place that the maximum is taken over.
    corners = [nn.functional.pad(conv.weight, (j, 1 - j, i, 1 - i)) for i in range(2) for j in range(2)]
    kernels, bias = torch.cat(corners), conv.bias.repeat(4)
    strided = kernels.contiguous(memory_format=torch.channels_last)
    by_pixel = kernels.reshape(4 * filters, 16).t().contiguous()

    def at_stride_2() -> Tensor:
        four = nn.functional.conv2d(x, strided, bias, stride=2).permute(0, 2, 3, 1)
        return four.unflatten(3, (4, filters)).amax(3).relu_().permute(0, 3, 1, 2)

    def by_patches() -> Tensor:
        patches = x[:, 0].unfold(1, 4, 2).unfold(2, 4, 2)
        four = torch.addmm(bias, patches.reshape(-1, 16), by_pixel)
        return four.view(*patches.shape[:3], 4, filters).amax(3).relu_().permute(0, 3, 1, 2)

    return {
        "one loop": partial(prepare(front, x).network, x),
        "three steps": partial(front, x),
        "three steps, 8 images at a time": lambda: torch.cat([front(part) for part in x.split(8)]),
        "one convolution of stride 2, then the maximum": at_stride_2,
        "one product with patches, then the maximum": by_patches,
    }


# Rounding


def _rounding(device: torch.device, repeats: int, quick: bool) -> Result:
    """What the faster way, and bfloat16, change in W on the same noise, for the three networks after a short training."""
    runs = []
    sizes = {"small-fashion": (50, 1000), "larger-fashion": (50, 1000), "resnet18": (10, 250)}
    for name, size in sizes.items():
        points, n = (2, 20) if quick else size
        network, trained_on = _briefly_trained(name, device, quick)
        data = load(DATA[name])
        tests = draw_points(len(data.test_labels), min(1000, len(data.test_labels)), 0)
        images = to_float(data.test_images[tests[:points]]).to(device)
        count = partial(class_counts, network, images, SIGMA, n, seed=0, progress=False)
        reference = count(engine="eager")
        with torch.autocast(device.type, dtype=torch.bfloat16):
            alone = count()
        others = {"the faster way": count(), "bfloat16, close calls in float32": count(dtype=torch.bfloat16), "bfloat16": alone}
        runs += [
            {
                "network": name,
                "trained_on": trained_on,
                "accuracy": accuracy(network, data.test_images[tests], data.test_labels[tests]),
                "by": by,
                "points": points,
                "n": n,
                "labels": int(reference.sum()),
                "labels_changed": int(np.abs(other - reference).sum() // 2),
                "mean_W": float(entropy(reference).mean()),
                "change": float(np.abs(entropy(other) - entropy(reference)).mean()),
                "monte_carlo": float(monte_carlo_error(reference).mean()),
            }
            for by, other in others.items()
        ]
    return {"sigma": SIGMA, "runs": runs}


@functools.cache
def _briefly_trained(name: str, device: torch.device, quick: bool) -> tuple[nn.Module, str]:
    """A network that gives answers, and what it was trained on in words; the same for all parts.

    A ResNet-18 after 1,000 images is so unsure that a third of its calls are close; one of the book's, that 1 in 20 are.
    """
    data = load(DATA[name])
    count, epochs = (64, 1) if quick else (5000, 2) if name == "resnet18" else (10_000, 1)
    # Drawn, not the first ones: a data set may come sorted by class.
    rows = draw_points(len(data.train_labels), count, 0)
    network = build(name, seed=0).to(device)
    images, labels, dtype = data.train_images[rows], data.train_labels[rows], fast_dtype(device)
    train(network, images, labels, epochs=epochs, seed=0, batch_size=64, dtype=dtype, progress=False)
    return network, f"{count} images, {epochs} epochs"


def monte_carlo_error(counts: np.ndarray) -> np.ndarray:
    r"""The standard error of W at each point, by the delta method: :math:`\sqrt{(\sum p \log^2 p - W^2)/n}`.

    >>> float(monte_carlo_error(np.array([75, 25])).round(4))
    0.0476
    """
    n = counts.sum(-1)
    p = counts / n[..., None]
    logs = np.log(np.where(p > 0, p, 1))
    variance = (p * logs**2).sum(-1) - (p * logs).sum(-1) ** 2
    return np.sqrt(np.maximum(variance, 0) / n)


# The plan


def _plan(device: torch.device, repeats: int, quick: bool) -> Result:
    """How long all forward passes of the paper's profile take at the speed of this machine, in the precision of its records."""
    passes: dict[str, int] = {}
    for spec in {spec for chapter in CHAPTERS for spec in plan_of(chapter, "paper") if isinstance(spec, CountsSpec)}:
        batches = 10 if spec.by_class or isinstance(spec.pattern, CleanseSpec) else 1
        amount = spec.points * batches * max(spec.ns) * len(spec.sigmas)
        passes[spec.network.network] = passes.get(spec.network.network, 0) + amount
    rates = {}
    for name in passes:
        network, _ = _briefly_trained(name, device, quick)
        points, n = (1, 4) if quick else (2, 256) if name == "resnet18" else (50, 256)
        images = _images(DATA[name], points).to(device)
        contender = partial(class_counts, network, images, SIGMA, n, seed=0, dtype=fast_dtype(device), progress=False)
        rates[name] = points * n / statistics.median(_in_turns({"W": contender}, repeats, device)["W"])
    return {"passes": passes, "images_per_second": rates, "hours": {name: passes[name] / rates[name] / 3600 for name in passes}}


#: Name to what it measures.
PARTS: dict[str, Callable[[torch.device, int, bool], Result]] = {
    "counts": _counts,
    "resnet": _resnet,
    "tuned": _tuned,
    "peak": _peak,
    "training": _training,
    "memory": _memory,
    "scaling": _scaling,
    "rounding": _rounding,
    "plan": _plan,
    "detours": _detours,
}
#: The data sets of the parts that need others than Fashion-MNIST.
NEEDS = {"resnet": ("cifar10",)} | dict.fromkeys(("tuned", "peak", "rounding", "plan"), ("cifar10", "fashion-mnist"))


# Time


def _in_turns(contenders: Mapping[str, Contender], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender at each repetition, after one round that is not counted."""
    seconds: dict[str, list[float]] = {who: [] for who in contenders}
    for turn in range(repeats + 1):
        for who, run in contenders.items():
            took = _timed(run, device)
            if turn:
                seconds[who].append(took)
    return seconds


def _timed(run: Contender, device: torch.device) -> float:
    def settled() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = settled()
    run()
    return settled() - began


def _in_a_process(statement: str, environment: Mapping[str, str]) -> Any:
    """What a statement prints, as JSON, in a fresh process with as many threads and other environment variables."""
    script = (
        f"import json, torch; from bslib.bench import measuring; torch.set_num_threads({torch.get_num_threads()}); {statement}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a process of the benchmark failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout)


def _machine(device: torch.device) -> dict[str, Any]:
    packages: dict[str, str | None] = {}
    for name in ("torch", "torchvision", "numpy", "adversarial-robustness-toolbox"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "device": device_name(device),
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": fast_dtype(device) == torch.bfloat16,
        "system": platform.platform(aliased=True, terse=True),
        "python": platform.python_version(),
        "packages": packages,
    }


def _now() -> dict[str, str]:
    return {"code": code_version(), "date": datetime.now(UTC).isoformat(timespec="seconds")}


def earlier(path: Path) -> Result:
    """A result that :func:`measure` has made.

    Raises
    ------
    ValueError
        When the file holds none, or one of another schema.
    """
    try:
        before = json.loads(path.read_text("utf-8"))
        if before["schema"] == SCHEMA and {"machine", "settings", "parts"} <= set(before):
            return dict(before)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no result of bslib bench in the form of this version: name another file")


def _add(before: Result, found: Result) -> None:
    """Put the parts of an earlier result into a new one."""
    for key in ("machine", "settings"):
        for what, now in found[key].items():
            if (then := before[key].get(what)) != now:
                raise ValueError(f"the earlier result has {what} {then!r} ({key}), this run has {now!r}: name another file")
    found["parts"] |= before["parts"]


def _images(name: str, count: int) -> Tensor:
    """The first test images of a data set, as float."""
    return to_float(load(name).test_images[:count])
