"""The audit from the first forward pass to the answer."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bslib.audit import evidence
from bslib.audit.evidence import LADDER, Overlay
from bslib.audit.judging import LEVEL, Sizes, calibration, decide, leave_one_out_p, size_test
from bslib.audit.loading import OnnxNetwork
from bslib.audit.partial import Partial, digest_of
from bslib.audit.report import Audit
from bslib.calling import check_points, dtype_of, evaluating
from bslib.engine import fast_dtype
from bslib.measure import predict
from bslib.patterns import check_counts
from bslib.patterns.neural_cleanse import reverse_triggers
from bslib.progress import bar
from bslib.provenance import code_version, device_name
from bslib.statistics import anomaly_index

__all__ = ["audit"]

#: Classes whose candidates are made together, and saved together.
AT_A_TIME = 5
#: Updates of a step, the most steps, and the images that the candidates are made from.
SAMPLES, STEPS, CRAFTED = 64, 300, 500
#: Images that W is measured on, noisy copies of each, and candidates that W is measured with.
MEASURED, COPIES, COMPARED = 200, 64, 10


def audit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    references: Sequence[nn.Module] = (),
    trigger: Overlay | None = None,
    tested: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    bare: nn.Module | None = None,
    about: Mapping[str, Any] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    cache: Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Audit a network, and answer whether it is backdoored.

    Half of the images are for making trigger candidates, the other half for measuring. A stopped audit goes on where it was,
    if it is called again with the same network, images and settings.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (b, C, H, W) in [0, 1] to logits; normalisation belongs inside.
    images : float32 Tensor, shape (B, C, H, W)
        Clean images in [0, 1], on the model's device, of all classes, at least 20; some hundreds are better.
    labels : int64 Tensor, shape (B,), optional
        True classes; only for the clean accuracy.
    references : sequence of Module
        Clean networks for the same classes: the null distribution. Best of the same architecture, trained on the same data.
    trigger : Overlay, optional
        A trigger that you suspect, as opacity (1, H, W) and pixels (C, H, W).
    tested : sequence of int, optional
        Classes to make candidates for, ascending; all when not given.
    names : sequence of B str, optional
        Names of the images in the report.
    bare : torch.nn.Module, optional
        The network without its normalisation, to try others.
    about : mapping, optional
        Facts for the report, such as the command.
    seed : int
        Seed of the split, of the candidates and of the noise.
    steps : int
        Most steps of Neural Cleanse.
    cache : Path, optional
        Folder for results of the slow stages; ``audit`` in the cache folder when not given.
    progress : bool
        Show progress bars.
    say : callable
        Called with a sentence whenever there is a finding.

    Returns
    -------
    Audit
        Its ``verdict`` is "backdoor likely", "no sign found" or "not enough evidence"; it displays itself in a notebook.

    Raises
    ------
    ValueError
        For fewer than 20 images, or arguments that do not fit the network. The message names the value.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> audit(network, torch.rand(20, 1, 4, 4), steps=1, progress=False).verdict
    'not enough evidence'
    """
    classes = _checked(model, images, labels, steps)
    chosen = list(range(classes)) if tested is None else sorted(set(tested))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < classes:
        raise ValueError(f"tested classes must be from 0 to {classes - 1}, got {list(tested or [])}")
    settings = {"tested": chosen, "seed": seed, "steps": steps, "samples": SAMPLES, "copies": COPIES, "sigmas": list(LADDER)}
    digest = digest_of(model, images)
    partial = Partial(cache, settings | {"network": digest})
    job = _Job(model, images, classes, chosen, seed, steps, partial, progress, say)
    names = list(names) if names is not None else [f"image {i}" for i in range(len(images))]

    with partial.alone():
        with job.clock("noise levels"):
            checked = evidence.clean_accuracy(model, bare, images, labels, classes)
            noise, inputs = job.noise(), job.inputs(names)
        if checked["accuracy"]:
            say(f"clean accuracy {checked['accuracy']['as given']:.1%}" + (checked["doubt"] and f": {checked['doubt']}"))
        doubts = [checked["doubt"]] if checked["doubt"] else []
        gaps = [] if job.differentiable else ["an ONNX file gives no gradients, so there are no trigger candidates"]
        gaps += [f"only {len(chosen)} of {classes} classes were tested"] if len(chosen) < classes else []
        with job.clock("trigger candidates"):
            norms, success = job.candidates()
        with job.clock("references"):
            others = np.stack([job.reference_norms(network, cache) for network in references]) if references else None
        null = [] if others is None else leave_one_out_p(others)
        # An accused network is more suspicious than each reference, and a trigger of the user's halves the level.
        sizes = size_test(norms, success, others, level=min(LEVEL / (1 if trigger is None else 2), *null, 1.0))
        with job.clock("W with candidates"):
            rows = job.rows(sizes, norms, success)
        with job.clock("your trigger"):
            own = None if trigger is None else job.own_trigger(trigger)
        confirmed = next((row["success held out"] for row in rows if row["class"] == sizes.smallest), float("nan"))
        tried = None if own is None else (own["p"], own["success"])
        size = images[0, 0].numel()
        answer = decide(
            sizes, classes=classes, pixels=size, confirmed=confirmed, null=null, trigger=tried, doubts=doubts, gaps=gaps
        )
    say(f"{answer.verdict}: {'; '.join(answer.reasons)}")
    found = asdict(answer) | {
        "sizes": {
            "most suspicious class": sizes.smallest,
            "p": sizes.lowest,
            "detectable below": sizes.critical,
            "Neural Cleanse index": anomaly_index(norms, success) if classes > 2 else None,
            "p of references": null,
        },
        "classes": rows,
        "noise": noise,
        "inputs": inputs,
        "trigger": own,
        "calibration": calibration(),
        "images": {"number": len(images), "shape": list(images.shape[1:]), **checked},
        "network": {"classes": classes, "parameters": sum(p.numel() for p in model.parameters()), "digest": digest},
        "settings": settings | {"references": len(references)},
        "about": dict(about or {}),
        "seconds": job.clock.seconds,
        "made with": {
            "bslib": code_version(),
            "torch": version("torch"),
            "device": device_name(images.device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    return Audit(found, job.pictures)


class _Job:
    """The stages of one audit, and what they share."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        classes: int,
        chosen: list[int],
        seed: int,
        steps: int,
        partial: Partial,
        progress: bool,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.images, self.classes, self.chosen = model, images, classes, chosen
        self.seed, self.steps, self.partial, self.progress, self.say = seed, steps, partial, progress, say
        order = torch.from_numpy(np.random.default_rng([seed, 10]).permutation(len(images)))
        self.crafting = images[order[: len(images) // 2][:CRAFTED]]
        self.held = order[len(images) // 2 :]
        self.points = images[self.held[:MEASURED]]
        self.predicted = predict(model, images)
        self.differentiable = not any(isinstance(module, OnnxNetwork) for module in model.modules())
        self.pictures: dict[str, NDArray[Any]] = {"clean": self.points[:4].cpu().numpy()}
        self.clock = _Clock()

    def noise(self) -> dict[str, Any]:
        """Measure W of clean images at each noise level, and choose one."""
        self.w = self.partial.get("noise", lambda: {"W": self._w(self.points, LADDER)})["W"]
        self.at, informative = evidence.choose_sigma(LADDER, self.w)
        fractions = (self.w > 0).mean(1)
        self.say(
            f"at sigma {LADDER[self.at]:g}, W is above 0 for {fractions[self.at]:.0%} of the clean images; tests use this level"
        )
        return {
            "sigmas": list(LADDER),
            "W above 0": fractions.tolist(),
            "mean W": self.w.mean(1).tolist(),
            "chosen": LADDER[self.at],
            "degenerate": not informative,
        }

    def inputs(self, names: Sequence[str]) -> dict[str, Any]:
        """List suspicious images, at the lowest level at which nearly all images have W above 0."""
        loud = next((s for s, row in enumerate(self.w) if (row > 0).mean() >= 0.9), len(LADDER) - 1)
        held = self.held[:MEASURED].numpy()
        listed = evidence.suspicious(self.w[loud], self.predicted[held], [names[i] for i in held])
        return {"sigma": LADDER[loud], "examined": len(held), "listed": listed}

    def candidates(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Make the trigger candidates; return their sizes and success, shape (classes,), NaN for classes without."""
        self.overlays: dict[int, Overlay] = {}
        norms, success = np.full((2, self.classes), np.nan)
        if self.differentiable:
            for targets, part in self._groups(self.model, self.partial, self.say):
                norms[targets], success[targets] = part["masks"].sum((1, 2, 3)), part["success"]
                pairs = zip(*(torch.from_numpy(part[name]).to(self.images.device) for name in ("masks", "patterns")), strict=True)
                self.overlays |= dict(zip(targets, itertools.starmap(Overlay, pairs), strict=True))
            for name in ("mask", "pattern"):
                shown = [getattr(self.overlays[k], name).cpu().numpy() for k in self._smallest(norms, success)]
                self.pictures[f"{name}s"] = np.stack(shown)
        return norms, success

    def reference_norms(self, network: nn.Module, cache: Path | None) -> NDArray[Any]:
        """Sizes of a reference network's candidates, shape (classes,), NaN without success. They are kept for later audits."""
        if (there := _class_count(network, self.images)) != self.classes:
            raise ValueError(f"references must have {self.classes} classes as the network, got one with {there}")
        key = {"reference": digest_of(network, self.crafting), "tested": self.chosen, "seed": self.seed, "steps": self.steps}
        norms = np.full(self.classes, np.nan)
        for targets, part in self._groups(network, Partial(cache, key), lambda text: self.say(f"reference: {text}")):
            norms[targets] = np.where(np.isnan(part["success"]), np.nan, part["masks"].sum((1, 2, 3)))
        return norms

    def rows(self, sizes: Sizes, norms: NDArray[Any], success: NDArray[Any]) -> list[dict[str, Any]]:
        """One row a class; the smallest candidates are also measured with W, STRIP and the logit shift."""
        smallest = self._smallest(norms, success)
        rows: list[dict[str, Any]] = []
        with bar(total=len(self.overlays), desc="W with candidates", unit="class", show=self.progress) as shown:
            for k, overlay in self.overlays.items():
                held_out = evidence.held_out_success(self.model, self.images[self.held], self.predicted[self.held], overlay, k)
                row = {"class": k, "norm": norms[k], "success": success[k], "success held out": held_out, "p": sizes.p[k]}
                rows.append(row | (self._with_candidate(k, overlay) if k in smallest else {}))
                shown.update()
        return rows

    def own_trigger(self, trigger: Overlay) -> dict[str, Any]:
        """Test the user's own trigger, and measure W with it at each noise level."""
        own = evidence.own_trigger(self.model, self.images[self.held], self.predicted[self.held], trigger, seed=self.seed)
        w = self._w(trigger(self.points), LADDER)
        own["W"] = {f"{s:g}": evidence.compare_w(*pair) for s, *pair in zip(LADDER, self.w, w, strict=True)}
        self.pictures["trigger"] = trigger(self.points[:4]).cpu().numpy()
        return own

    def _smallest(self, norms: NDArray[Any], success: NDArray[Any]) -> list[int]:
        """The classes with the smallest candidates, the smallest first; candidates without success come last."""
        return sorted(self.overlays, key=lambda k: (np.isnan(success[k]), norms[k]))[:COMPARED]

    def _with_candidate(self, k: int, overlay: Overlay) -> dict[str, Any]:
        """W with a candidate at the chosen noise level and its neighbours, STRIP, and the logit shift."""
        levels, few = range(max(0, self.at - 1), min(self.at + 2, len(LADDER))), self.points[: MEASURED // 2]
        sigmas = [LADDER[s] for s in levels]
        w = self.partial.get(f"W-{k}", lambda: {"W": self._w(overlay(few), sigmas)})["W"]
        pairs = zip(levels, w, strict=True)
        tests = {f"{LADDER[s]:g}": evidence.compare_w(self.w[s][: len(few)], tested) for s, tested in pairs}
        return {"W": tests, **evidence.describe(self.model, few[:50], overlay, self.crafting[:50])}

    def _w(self, images: Tensor, sigmas: Sequence[float]) -> NDArray[Any]:
        return evidence.w_of(self.model, images, sigmas, COPIES, seed=self.seed, progress=self.progress)

    def _groups(
        self, model: nn.Module, partial: Partial, say: Callable[[str], None]
    ) -> Iterator[tuple[list[int], dict[str, NDArray[Any]]]]:
        """Yield some classes at a time, with their masks, patterns and success."""
        groups = [self.chosen[start : start + AT_A_TIME] for start in range(0, len(self.chosen), AT_A_TIME)]

        def compute(targets: list[int], steps: int, progress: bool) -> dict[str, NDArray[Any]]:
            found = reverse_triggers(
                model,
                self.crafting,
                classes=self.classes,
                targets=targets,
                samples=SAMPLES,
                steps=steps,
                seed=self.seed,
                dtype=fast_dtype(self.images.device),
                progress=progress,
            )
            return {name: getattr(found, name).cpu().numpy() for name in ("masks", "patterns", "success")}

        for _ in range(2):  # the first is slower than the others
            begin = time.monotonic()
            compute(groups[0], 1, False)
        most = (time.monotonic() - begin) * self.steps * len(groups) / 60
        say(f"trigger candidates for {len(self.chosen)} classes: at most {most:.1f} minutes, usually half of that")
        for targets in groups:
            part = partial.get(f"candidates-{targets[0]}", functools.partial(compute, targets, self.steps, self.progress))
            sizes = ", ".join(f"{k}: {mask.sum():.1f}" for k, mask in zip(targets, part["masks"], strict=True))
            say(f"size of the candidate of each class, in pixels: {sizes}")
            yield targets, part


def _checked(model: nn.Module, images: Tensor, labels: Tensor | None, steps: int) -> int:
    """Check the arguments of :func:`audit`; return the number of classes."""
    check_points(model, images)
    check_counts(steps=steps)
    if images.ndim != 4 or len(images) < 20:
        raise ValueError(f"an audit needs at least 20 images (B, C, H, W), got shape {tuple(images.shape)}")
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
        raise ValueError(f"labels must be int64, one an image, got {labels.dtype} of shape {tuple(labels.shape)}")
    return _class_count(model, images)


def _class_count(model: nn.Module, images: Tensor) -> int:
    with evaluating(model) as network:
        return int(network(images[:1].to(dtype_of(model))).shape[1])


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.monotonic() - begin, 2)
