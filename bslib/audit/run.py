"""The audit from the first forward pass to the answer."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bslib.audit import evidence
from bslib.audit.evidence import LADDER, Overlay
from bslib.audit.judging import Sizes, calibration, decide, leave_one_out_p, level_of, size_test
from bslib.audit.partial import Partial
from bslib.audit.report import Audit
from bslib.calling import check_counts, check_inputs, check_model, check_points, digest_of, evaluating, trial_images
from bslib.detectors.logit_shift import logit_shift_variance
from bslib.detectors.strip import strip_entropy
from bslib.engine import fast_dtype
from bslib.entropy import entropy
from bslib.fields import check_seed
from bslib.measure import class_counts, predict
from bslib.patterns import check_images, frozen_weights
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
    check_seed(seed)
    classes, chosen = _checked(model, images, labels, tested, trigger, steps)
    if isinstance(references, nn.Module) and not isinstance(references, nn.ModuleList):
        raise ValueError(f"references must be a sequence of networks, got {type(references).__name__}: use references=[network]")
    references = list(references or ())
    for wrong in (network for network in references if not isinstance(network, nn.Module)):
        raise ValueError(f"references must be networks, got {wrong!r}")
    if names is not None and len(names) != len(images):
        raise ValueError(f"names must be one for each of {len(images)} images, got {len(names)}")
    images = images.detach()
    trigger = trigger and Overlay(*(part.detach().to(images) for part in trigger))
    job = _Job(model, images, classes, chosen, int(seed), int(steps), cache and Path(cache), progress, say)
    if len({job.digest, *(digest_of(network, images) for network in references)}) <= len(references):
        raise ValueError("references must differ from the network and from each other, got one twice")
    if references and not job.differentiable:
        raise ValueError("references need a network with gradients: without them there are no trigger candidates to compare")
    level = level_of(len(references), trigger=trigger is not None)
    seconds: dict[str, float] = {}

    def note(stage: str) -> None:
        seconds[stage] = round(time.monotonic() - begin - sum(seconds.values()), 2)

    with job.partial.alone(say):
        begin = time.monotonic()
        checked = evidence.clean_accuracy(model, bare, images, labels, classes)
        w = job.partial.get("noise", lambda: {"W": job.w_of(job.points, LADDER)})["W"]
        at, informative = evidence.choose_sigma(w)
        fractions = (w > 0).mean(1)
        say(f"at sigma {LADDER[at]:g}, W is above 0 for {fractions[at]:.0%} of the clean images; tests use this level")
        inputs = job.inputs(w, [f"image {i}" for i in range(len(images))] if names is None else names)
        note("noise levels")
        if checked["accuracy"]:
            say(f"clean accuracy {checked['accuracy']['as given']:.1%}" + (checked["doubt"] and f": {checked['doubt']}"))
        candidates = job.candidates(model, job.partial, say) if job.differentiable else _none(classes)
        note("trigger candidates")
        others = np.stack([job.reference_norms(network) for network in references]) if references else None
        note("references")
        null = [] if others is None else leave_one_out_p(others)
        # With references, an accused network is more suspicious than each of them.
        sizes = size_test(candidates.norms, candidates.success, others, level=min(level, *null, 1.0))
        rows, held_out = job.rows(candidates, sizes, w, at), np.full(classes, np.nan)
        for row in rows:
            held_out[row["class"]] = row["success held out"]
        note("W with candidates")
        own = None if trigger is None else job.own_trigger(trigger, w)
        if own:
            sent, by_chance = f"{own['success']:.1%} of other images to class {own['class']}", f"{own['random patches']:.1%}"
            say(f"your trigger sends {sent}, random patches of its shape at most {by_chance} (p = {own['p']:.2g})")
        note("your trigger")
    answer = decide(
        sizes,
        pixels=images[0, 0].numel(),
        held_out=held_out,
        null=null,
        trigger=None if own is None else (own["p"], own["success"]),
        doubt=checked["doubt"],
        gaps=job.gaps(),
        narrow=job.narrow(),
    )
    say(f"{answer.verdict}: {'; '.join(answer.reasons)}")
    found = asdict(answer) | {
        "sizes": {
            "most suspicious class": sizes.smallest,
            "p": sizes.lowest,
            "level": level,
            "detectable below": sizes.critical,
            "Neural Cleanse index": anomaly_index(candidates.norms, candidates.success) if classes > 2 else None,
            "p of references": null,
        },
        "classes": rows,
        "noise": {
            "sigmas": list(LADDER),
            "W above 0": fractions.tolist(),
            "mean W": w.mean(1).tolist(),
            "chosen": LADDER[at],
            "degenerate": not informative,
        },
        "inputs": inputs,
        "trigger": own,
        "calibration": calibration(),
        "images": {"number": len(images), "shape": list(images.shape[1:]), **checked},
        "network": {"classes": classes, "parameters": sum(p.numel() for p in model.parameters()), "digest": job.digest},
        "settings": job.settings | {"references": len(references)},
        "about": dict(about or {}),
        "seconds": seconds,
        "made with": {
            "bslib": code_version(),
            "torch": version("torch"),
            "device": device_name(images.device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    few = job.points[:4]
    pictures = {"clean": few} | candidates.pictures() | ({} if trigger is None else {"trigger": trigger(few)})
    return Audit(found, {name: images.cpu().numpy() for name, images in pictures.items()})


class _Candidates(NamedTuple):
    """Trigger candidates by class, and arrays (classes,) with their sizes and success; NaN for classes without."""

    overlays: dict[int, Overlay]
    norms: NDArray[np.float64]
    success: NDArray[np.float64]

    def smallest(self) -> list[int]:
        """The classes with the smallest candidates, the smallest first; candidates without success come last."""
        return sorted(self.overlays, key=lambda k: (np.isnan(self.success[k]), self.norms[k]))[:COMPARED]

    def pictures(self) -> dict[str, Tensor]:
        """Masks and patterns of the smallest candidates."""
        pairs = [self.overlays[k] for k in self.smallest()]
        return {f"{name}s": torch.stack([getattr(pair, name) for pair in pairs]) for name in Overlay._fields if pairs}


@dataclass
class _Job:
    """The network, both halves of the images, and what all stages share."""

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
        with frozen_weights(self.model) as network, torch.enable_grad():
            self.differentiable = network(self.images[:1].clone().requires_grad_()).requires_grad

    def w_of(self, images: Tensor, sigmas: Sequence[float]) -> NDArray[Any]:
        """W of each image at each noise level, shape (S, B). The noise depends on an image's place, not on what it carries."""
        ids = range(len(images))
        return entropy(class_counts(self.model, images, list(sigmas), COPIES, seed=self.seed, ids=ids, progress=self.progress))

    def inputs(self, w: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """List suspicious images, at the lowest level at which nearly all images have W above 0."""
        loud = next((s for s, row in enumerate(w) if (row > 0).mean() >= 0.9), len(LADDER) - 1)
        held = self.held[:MEASURED].numpy()
        listed = evidence.suspicious(w[loud], self.predicted[held], [names[i] for i in held])
        return {"sigma": LADDER[loud], "examined": len(held), "listed": listed}

    def candidates(self, model: nn.Module, partial: Partial, say: Callable[[str], None]) -> _Candidates:
        """Make the trigger candidates of a network, some classes at a time."""
        options: dict[str, Any] = {"classes": self.classes, "seed": self.seed, "dtype": fast_dtype(self.images.device)}

        def craft(targets: list[int], **more: Any) -> dict[str, NDArray[Any]]:
            made = reverse_triggers(model, self.crafting, targets=targets, samples=SAMPLES, **options, **more)
            return {name: getattr(made, name).cpu().numpy() for name in ("masks", "patterns", "success")}

        found = _none(self.classes)
        groups = [self.chosen[start : start + AT_A_TIME] for start in range(0, len(self.chosen), AT_A_TIME)]
        if not partial.has(f"candidates-{groups[-1][0]}"):
            for _ in range(2):  # the first is slower than the others
                begin = time.monotonic()
                craft(groups[0], steps=1, progress=False)
            most = (time.monotonic() - begin) * self.steps * len(groups) / 60
            say(f"trigger candidates for {len(self.chosen)} classes: at most {most:.1f} minutes, usually half of that")
        for targets in groups:
            full = functools.partial(craft, targets, steps=self.steps, progress=self.progress)
            part = partial.get(f"candidates-{targets[0]}", full)
            found.norms[targets], found.success[targets] = part["masks"].sum((1, 2, 3)), part["success"]
            masks, patterns = (torch.from_numpy(part[name]).to(self.images.device) for name in ("masks", "patterns"))
            found.overlays.update({k: Overlay(*pair) for k, *pair in zip(targets, masks, patterns, strict=True)})
            say("size of the candidate of each class, in pixels: " + ", ".join(f"{k}: {found.norms[k]:.1f}" for k in targets))
        return found

    def reference_norms(self, network: nn.Module) -> NDArray[Any]:
        """Sizes of a reference network's candidates, shape (classes,), NaN without success. They are kept for later audits."""
        if (there := class_count(network, self.images)) != self.classes:
            raise ValueError(f"references must have {self.classes} classes as the network, got one with {there}")
        key = self.settings | _identity(network, self.crafting, predict(network, self.crafting))
        found = self.candidates(network, Partial(self.cache, key), lambda text: self.say(f"reference: {text}"))
        return np.where(np.isnan(found.success), np.nan, found.norms)

    def rows(self, candidates: _Candidates, sizes: Sizes, w: NDArray[Any], at: int) -> list[dict[str, Any]]:
        """One row a class; the smallest candidates are also measured with W, STRIP and the logit shift."""
        smallest, held, clean = candidates.smallest(), self.images[self.held], self.predicted[self.held]
        rows: list[dict[str, Any]] = []
        with bar(total=len(candidates.overlays), desc="W with candidates", unit="class", show=self.progress) as shown:
            for k, overlay in candidates.overlays.items():
                row = {
                    "class": k,
                    "norm": candidates.norms[k],
                    "success": candidates.success[k],
                    "success held out": evidence.held_out_success(self.model, held, clean, overlay, k),
                    "p": sizes.p[k],
                }
                rows.append(row | (self._with_candidate(k, overlay, w, at) if k in smallest else {}))
                shown.update()
        return rows

    def _with_candidate(self, k: int, overlay: Overlay, w: NDArray[Any], at: int) -> dict[str, Any]:
        """W with a candidate at the chosen noise level and its neighbours, STRIP and the logit shift; low is suspicious."""
        few, near = self.points[: MEASURED // 2], LADDER[max(0, at - 1) : at + 2]
        tested = self.partial.get(f"W-{k}", lambda: {"W": self.w_of(overlay(few), near)})["W"]
        shown = overlay(few[:50])
        return {
            "W": _compared(near, w[max(0, at - 1) : at + 2, : len(few)], tested),
            "STRIP": float(strip_entropy(self.model, shown, self.crafting[:50]).mean()),
            "logit shift": logit_shift_variance(self.model, few[:50], shown),
        }

    def own_trigger(self, trigger: Overlay, w: NDArray[Any]) -> dict[str, Any]:
        """Test the user's own trigger, and measure W with it at each noise level."""
        own = evidence.own_trigger(self.model, self.images[self.held], self.predicted[self.held], trigger, seed=self.seed)
        return own | {"W": _compared(LADDER, w, self.w_of(trigger(self.points), LADDER))}

    def gaps(self) -> list[str]:
        """List reasons why classes have no candidate."""
        gaps = [] if self.differentiable else ["the network gives no gradients, so there are no trigger candidates"]
        if len(self.chosen) < self.classes:
            gaps.append(f"only {len(self.chosen)} of {self.classes} classes were tested")
        return gaps

    def narrow(self) -> str:
        """Say so if most images are predicted as one class."""
        counts = np.bincount(self.predicted)
        if (most := counts.max() / len(self.predicted)) <= (1 + 1 / self.classes) / 2:
            return ""
        reason = f"{most:.0%} of the images are predicted as class {counts.argmax()}"
        return f"{reason}: wrong normalisation, or too few images of other classes?"


def _none(classes: int) -> _Candidates:
    return _Candidates({}, *np.full((2, classes), np.nan))


def _compared(sigmas: Sequence[float], clean: NDArray[Any], tested: NDArray[Any]) -> dict[str, Any]:
    return {f"{sigma:g}": evidence.compare_w(*pair) for sigma, *pair in zip(sigmas, clean, tested, strict=True)}


def _checked(
    model: nn.Module, images: Tensor, labels: Tensor | None, tested: Sequence[int] | None, trigger: Overlay | None, steps: int
) -> tuple[int, list[int]]:
    """Check arguments of :func:`audit`; return the number of classes, and those to make candidates for, ascending."""
    check_points(model, images)
    check_counts(steps=steps)
    if images.ndim != 4 or len(images) < 20:
        raise ValueError(f"an audit needs at least 20 images (B, C, H, W), got shape {tuple(images.shape)}")
    check_images(images)
    if labels is not None and not isinstance(labels, Tensor):
        raise ValueError(f"labels must be an int64 tensor, got {type(labels).__name__}: use torch.as_tensor(labels)")
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
        raise ValueError(f"labels must be int64, one an image, got {labels.dtype} of shape {tuple(labels.shape)}")
    classes = class_count(model, images)
    if trigger is not None:
        _check_overlay(trigger, images)
    if trigger is not None and (covered := float(trigger.mask.mean())) > LARGEST_TRIGGER:
        reason = f"the trigger covers {covered:.0%} of the image"
        raise ValueError(f"{reason}: more than {LARGEST_TRIGGER:.0%}, such as a picture of a class, moves clean networks too")
    try:
        chosen = sorted({operator.index(k) for k in (range(classes) if tested is None else tested)})
    except TypeError:
        raise ValueError(f"tested must be a sequence of classes, got {tested!r}") from None
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < classes:
        raise ValueError(f"tested classes must be from 0 to {classes - 1}, got {chosen}")
    return classes, chosen


def _check_overlay(trigger: Overlay, images: Tensor) -> None:
    """Raise a ValueError unless a trigger is an overlay in [0, 1] for such images."""
    if not isinstance(trigger, Overlay) or not all(isinstance(part, Tensor) for part in trigger):
        got = type(trigger).__name__
        raise ValueError(f"trigger must be a bslib.audit.evidence.Overlay(mask, pattern), two tensors, got {got}")
    wanted = ((1, *images.shape[2:]), tuple(images.shape[1:]))
    for name, part, shape in zip(Overlay._fields, trigger, wanted, strict=True):
        if not part.is_floating_point() or part.shape != shape or not ((part >= 0) & (part <= 1)).all():
            got = f"{part.dtype} of shape {tuple(part.shape)}"
            got += f" from {part.min().item():g} to {part.max().item():g}" if part.numel() else ""
            raise ValueError(f"the trigger's {name} must be float of shape {shape} in [0, 1], got {got}")


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
