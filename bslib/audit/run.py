"""The audit from the first forward pass to the answer."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from bslib.audit.partial import Partial
from bslib.audit.report import Audit
from bslib.calling import check_counts, check_inputs, check_model, check_points, digest_of, evaluating, trial_images
from bslib.engine import fast_dtype
from bslib.measure import predict
from bslib.patterns.neural_cleanse import reverse_triggers
from bslib.progress import bar
from bslib.provenance import code_version, device_name
from bslib.statistics import anomaly_index

__all__ = ["audit", "class_count"]

#: Classes whose candidates are made together, and saved together.
AT_A_TIME = 5
#: Updates of a step, the most steps, and the images that the candidates are made from.
SAMPLES, STEPS, CRAFTED = 64, 300, 500
#: Images that W is measured on, noisy copies of each, and candidates that W is measured with.
MEASURED, COPIES, COMPARED = 200, 64, 10

#: Largest mean opacity of a trigger of the user's own: a larger part of an image of a class is predicted as that class.
LARGEST_TRIGGER = 0.25


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
    if it is called again with the same network, images, settings and version of bslib. The same network has the same layers,
    weights and attributes, and gives the images the same logits.

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
    if trigger is not None and (covered := float(trigger.mask.mean())) > LARGEST_TRIGGER:
        reason = f"the trigger covers {covered:.0%} of the image"
        raise ValueError(f"{reason}: more than {LARGEST_TRIGGER:.0%}, such as a picture of a class, moves clean networks too")
    names = list(names) if names is not None else [f"image {i}" for i in range(len(images))]
    job = _Job(model, images, classes, _chosen(tested, classes), seed, steps, cache, progress, say)
    if len({job.digest, *(digest_of(network, images) for network in references)}) <= len(references):
        raise ValueError("references must differ from the network and from each other, got one twice")
    level = LEVEL / (1 if trigger is None else 2)
    with job.partial.alone():
        with job.timed("noise levels"):
            checked = evidence.clean_accuracy(model, bare, images, labels, classes)
            noise, inputs = job.noise(), job.inputs(names)
        if checked["accuracy"]:
            say(f"clean accuracy {checked['accuracy']['as given']:.1%}" + (checked["doubt"] and f": {checked['doubt']}"))
        with job.timed("trigger candidates"):
            job.make_candidates()
        with job.timed("references"):
            others = np.stack([job.reference_norms(network) for network in references]) if references else None
        null = [] if others is None else leave_one_out_p(others)
        # An accused network is more suspicious than each reference, and a trigger of the user's halves the level.
        sizes = size_test(job.norms, job.success, others, level=min(level, *null, 1.0))
        with job.timed("W with candidates"):
            rows = job.rows(sizes)
        with job.timed("your trigger"):
            own = None if trigger is None else job.own_trigger(trigger)
    answer = decide(
        sizes,
        classes=classes,
        pixels=images[0, 0].numel(),
        confirmed=next((row["success held out"] for row in rows if row["class"] == sizes.smallest), float("nan")),
        null=null,
        trigger=None if own is None else (own["p"], own["success"]),
        doubts=[checked["doubt"]] if checked["doubt"] else [],
        gaps=job.gaps(),
    )
    say(f"{answer.verdict}: {'; '.join(answer.reasons)}")
    found = asdict(answer) | {
        "sizes": job.sizes_in_numbers(sizes) | {"p of references": null},
        "classes": rows,
        "noise": noise,
        "inputs": inputs,
        "trigger": own,
        "calibration": calibration(),
        "images": {"number": len(images), "shape": list(images.shape[1:]), **checked},
        "network": {"classes": classes, "parameters": sum(p.numel() for p in model.parameters()), "digest": job.digest},
        "settings": job.settings | {"references": len(references)},
        "about": dict(about or {}),
        "seconds": job.seconds,
        "made with": _made_with(images.device),
    }
    return Audit(found, job.pictures)


@dataclass
class _Job:
    """The stages of one audit, and what they share."""

    model: nn.Module
    images: Tensor
    classes: int
    chosen: list[int]
    seed: int
    steps: int
    cache: Path | None
    progress: bool
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        given = {"tested": self.chosen, "seed": self.seed, "steps": self.steps}
        self.settings = given | {"samples": SAMPLES, "copies": COPIES, "sigmas": list(LADDER)}
        self.predicted = predict(self.model, self.images)
        identity = _identity(self.model, self.images, self.predicted)
        self.digest, self.partial = identity["network"], Partial(self.cache, self.settings | identity)
        order = torch.from_numpy(np.random.default_rng([self.seed, 10]).permutation(len(self.images)))
        self.crafting = self.images[order[: len(self.images) // 2][:CRAFTED]]
        self.held = order[len(self.images) // 2 :]
        self.points = self.images[self.held[:MEASURED]]
        self.differentiable = not any(isinstance(module, OnnxNetwork) for module in self.model.modules())
        self.norms, self.success = np.full((2, self.classes), np.nan)
        self.overlays: dict[int, Overlay] = {}
        self.pictures: dict[str, NDArray[Any]] = {"clean": self.points[:4].cpu().numpy()}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note the seconds of a stage."""
        begin = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - begin, 2)

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

    def make_candidates(self) -> None:
        """Make the trigger candidates, their sizes and success; the last two are NaN for classes without."""
        if not self.differentiable:
            return
        for targets, part in self._groups(self.model, self.partial, self.say):
            self.norms[targets], self.success[targets] = part["masks"].sum((1, 2, 3)), part["success"]
            masks, patterns = (torch.from_numpy(part[name]).to(self.images.device) for name in ("masks", "patterns"))
            self.overlays |= {k: Overlay(*pair) for k, *pair in zip(targets, masks, patterns, strict=True)}
        for name in ("mask", "pattern"):
            self.pictures[f"{name}s"] = np.stack([getattr(self.overlays[k], name).cpu().numpy() for k in self._smallest()])

    def gaps(self) -> list[str]:
        """List reasons why classes have no candidate, or one that says little."""
        gaps = [] if self.differentiable else ["an ONNX file gives no gradients, so there are no trigger candidates"]
        if len(self.chosen) < self.classes:
            gaps.append(f"only {len(self.chosen)} of {self.classes} classes were tested")
        counts = np.bincount(self.predicted)
        if (most := counts.max() / len(self.predicted)) > (1 + 1 / self.classes) / 2:
            reason = f"{most:.0%} of the images are predicted as class {counts.argmax()}"
            gaps.append(f"{reason}: wrong normalisation, or too few images of other classes?")
        return gaps

    def reference_norms(self, network: nn.Module) -> NDArray[Any]:
        """Sizes of a reference network's candidates, shape (classes,), NaN without success. They are kept for later audits."""
        if (there := class_count(network, self.images)) != self.classes:
            raise ValueError(f"references must have {self.classes} classes as the network, got one with {there}")
        key = self.settings | _identity(network, self.crafting, predict(network, self.crafting))
        norms = np.full(self.classes, np.nan)
        for targets, part in self._groups(network, Partial(self.cache, key), lambda text: self.say(f"reference: {text}")):
            norms[targets] = np.where(np.isnan(part["success"]), np.nan, part["masks"].sum((1, 2, 3)))
        return norms

    def sizes_in_numbers(self, sizes: Sizes) -> dict[str, Any]:
        """The result of the size test for the report."""
        return {
            "most suspicious class": sizes.smallest,
            "p": sizes.lowest,
            "detectable below": sizes.critical,
            "Neural Cleanse index": anomaly_index(self.norms, self.success) if self.classes > 2 else None,
        }

    def rows(self, sizes: Sizes) -> list[dict[str, Any]]:
        """One row a class; the smallest candidates are also measured with W, STRIP and the logit shift."""
        smallest = self._smallest()
        rows: list[dict[str, Any]] = []
        with bar(total=len(self.overlays), desc="W with candidates", unit="class", show=self.progress) as shown:
            for k, overlay in self.overlays.items():
                held_out = evidence.held_out_success(self.model, self.images[self.held], self.predicted[self.held], overlay, k)
                row = {
                    "class": k,
                    "norm": self.norms[k],
                    "success": self.success[k],
                    "success held out": held_out,
                    "p": sizes.p[k],
                }
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

    def _smallest(self) -> list[int]:
        """The classes with the smallest candidates, the smallest first; candidates without success come last."""
        return sorted(self.overlays, key=lambda k: (np.isnan(self.success[k]), self.norms[k]))[:COMPARED]

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
        for _ in range(2):  # the first is slower than the others
            begin = time.monotonic()
            self._crafted(model, groups[0], steps=1, progress=False)
        most = (time.monotonic() - begin) * self.steps * len(groups) / 60
        say(f"trigger candidates for {len(self.chosen)} classes: at most {most:.1f} minutes, usually half of that")
        for targets in groups:
            craft = functools.partial(self._crafted, model, targets, steps=self.steps, progress=self.progress)
            part = partial.get(f"candidates-{targets[0]}", craft)
            sizes = ", ".join(f"{k}: {mask.sum():.1f}" for k, mask in zip(targets, part["masks"], strict=True))
            say(f"size of the candidate of each class, in pixels: {sizes}")
            yield targets, part

    def _crafted(self, model: nn.Module, targets: list[int], *, steps: int, progress: bool) -> dict[str, NDArray[Any]]:
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


def _checked(model: nn.Module, images: Tensor, labels: Tensor | None, steps: int) -> int:
    """Check the arguments of :func:`audit`; return the number of classes."""
    check_points(model, images)
    check_counts(steps=steps)
    if images.ndim != 4 or len(images) < 20:
        raise ValueError(f"an audit needs at least 20 images (B, C, H, W), got shape {tuple(images.shape)}")
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
        raise ValueError(f"labels must be int64, one an image, got {labels.dtype} of shape {tuple(labels.shape)}")
    return class_count(model, images)


def _chosen(tested: Sequence[int] | None, classes: int) -> list[int]:
    """The classes to make candidates for, ascending."""
    chosen = list(range(classes)) if tested is None else sorted(set(tested))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < classes:
        raise ValueError(f"tested classes must be from 0 to {classes - 1}, got {list(tested or [])}")
    return chosen


def class_count(model: nn.Module, images: Tensor) -> int:
    """Return the number of classes of a network; raise a ValueError if it cannot take such images."""
    check_inputs(model, images[:1])
    with evaluating(model) as network:
        return check_model(network, trial_images(images)).shape[1]


def _identity(model: nn.Module, images: Tensor, predicted: NDArray[np.int64]) -> dict[str, Any]:
    """What results depend on besides the settings. Logits, rounded, tell networks apart whose code differs and nothing else."""
    with evaluating(model) as network:
        answers = network(images[:8]).log_softmax(1).cpu().round(decimals=1).tolist()
    versions = {"bslib": code_version().partition(" ")[0], "measured": MEASURED, "crafted": CRAFTED}
    return versions | {"network": digest_of(model, images), "predicted": predicted.tolist(), "answers": answers}


def _made_with(device: torch.device) -> dict[str, str]:
    return {
        "bslib": code_version(),
        "torch": version("torch"),
        "device": device_name(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
