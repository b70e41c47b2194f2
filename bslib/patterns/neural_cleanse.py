"""Neural Cleanse (Wang et al., 2019): for each class, the smallest patch with which every image is predicted as the class.

A patch is a mask m and a pattern p; an image x becomes (1 - m) x + m p. Both are optimised for success with a penalty on the size
of the mask. A schedule raises the penalty weight lambda while success is high, and lowers it otherwise. A class whose patch is
much smaller than the others is suspicious, since the patch may be the trigger of a backdoor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bslib.calling import check_counts, check_inputs
from bslib.fields import check_seed
from bslib.patterns import check_gradients, check_images, frozen_weights
from bslib.progress import bar
from bslib.training import layout_of

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Candidates", "Schedule", "patched", "reverse_triggers"]

EPSILON = 1e-7
#: Most features of the images in one update, on a CPU and on a GPU, unless a single class needs more. Memory grows with them.
MOST_FEATURES, MOST_ON_GPU = 2**20, 2**24


class Candidates(NamedTuple):
    """Result of :func:`reverse_triggers`, with one entry per class.

    Parameters
    ----------
    masks : float32 Tensor, shape (K, 1, H, W)
    patterns : float32 Tensor, shape (K, C, H, W)
    success : float32 Tensor, shape (K,)
        The fraction of images that were predicted as the class in the step whose mask was kept. NaN if no mask reached the
        threshold; the last mask is then kept.
    steps : int64 Tensor, shape (K,)
        Number of steps until the class stopped.
    """

    masks: Tensor
    patterns: Tensor
    success: Tensor
    steps: Tensor

    @property
    def norms(self) -> Tensor:
        """L1 norms of the masks, shape (K,)."""
        return self.masks.flatten(1).sum(1)


def patched(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Return (1 - mask) * images + mask * pattern, for mask (1, H, W) and pattern (C, H, W).

    >>> patched(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.5]]]), torch.ones(1, 1, 2)).tolist()
    [[[[1.0, 0.5]]]]
    """
    return (1 - mask) * images + mask * pattern


@dataclass
class Schedule:
    """The authors' schedule of lambda for one class, with early stopping; call :meth:`update` once per step.

    lambda starts at 0. It becomes ``first`` after ``patience`` consecutive steps with a success of at least ``threshold``. It
    then doubles after every ``patience`` consecutive successes, and is divided by 2 ** 1.5 after every ``patience`` consecutive
    failures. The class is done when lambda has moved in both directions and the smallest successful mask has not shrunk for
    5 * ``patience`` steps.
    """

    threshold: float = 0.99
    first: float = 1e-3
    patience: int = 5
    weight: float = 0.0
    best: float = float("inf")
    done: bool = False
    _before: float = float("inf")
    _stale: int = 0
    _set: int = 0
    _ups: int = 0
    _downs: int = 0
    _went_up: bool = False
    _went_down: bool = False

    def update(self, success: float, norm: float) -> bool:
        """Update the schedule with the success and mask norm of a step; return whether the mask is the best so far.

        >>> schedule = Schedule()
        >>> [schedule.update(success, 9.0) for success in (0.5, 1.0, 1.0, 1.0, 1.0, 1.0)], schedule.weight
        ([False, True, False, False, False, False], 0.001)
        """
        good = success >= self.threshold
        better = good and norm < self.best
        self.best = norm if better else self.best
        if self.best < float("inf"):
            self._stale = self._stale + 1 if self.best >= self._before else 0
        self._before = self.best
        self.done = self._went_up and self._went_down and self._stale >= 5 * self.patience
        if not self.done:
            self._move(good)
        return better

    def _move(self, good: bool) -> None:
        if self.weight == 0 and good:
            self._set += 1
            if self._set >= self.patience:
                self.weight = self.first
                self._ups, self._downs, self._went_up, self._went_down = 0, 0, False, False
        else:
            self._set = 0
        self._ups, self._downs = (self._ups + 1, 0) if good else (0, self._downs + 1)
        if self._ups >= self.patience:
            self.weight *= 2
            self._ups, self._went_up = 0, True
        elif self._downs >= self.patience:
            self.weight /= 2**1.5
            self._downs, self._went_down = 0, True


@torch.inference_mode(False)  # whatever the caller's mode is
def reverse_triggers(
    model: nn.Module,
    images: Tensor,
    *,
    classes: int,
    targets: Sequence[int] | None = None,
    samples: int = 1000,
    batch_size: int = 32,
    steps: int = 1000,
    seed: int,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Candidates:
    """Optimise a trigger candidate for each class, each with its own state and schedule.

    Classes run side by side in one batch, or in chunks if one batch of all would need much memory. A candidate does not depend
    on the other classes, except by rounding.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits (B, classes); used in eval mode.
    images : float32 Tensor, shape (B, C, H, W)
        In [0, 1], of all classes.
    classes : int
        Number of classes K.
    targets : sequence of int, optional
        The classes that get a candidate, in ascending order; all when not given. A class gets the same candidate either way.
    samples : int
        Images per step, in ``samples // batch_size`` updates. Success and norm are averaged over the updates. The authors use
        1,000.
    batch_size : int
        Images per update and class, at most ``samples`` and the number of images.
    steps : int
        Maximum number of steps for each class.
    seed : int
        Seed of the initial values and of the order of the images.
    dtype : torch.dtype
        Precision of the model. Precisions below float32 use autocast; masks and patterns stay in float32.
    progress : bool
        Show a progress bar when the run takes longer than two seconds.

    Returns
    -------
    Candidates
        One entry for each of ``targets``.

    Raises
    ------
    ValueError
        For an empty batch, fewer than one step, images outside [0, 1], targets that are no classes, more classes than the model
        has, an invalid seed, or a mask that becomes NaN.
    """
    check_images(images)
    check_inputs(model, images)
    check_counts(samples=samples, batch_size=batch_size, steps=steps, classes=classes)
    check_seed(seed)
    chosen = list(range(classes)) if targets is None else list(targets)
    if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < classes:
        raise ValueError(f"targets must be ascending classes from 0 to {classes - 1}, got {chosen}")
    batch_size = min(batch_size, samples, len(images))
    rng = np.random.default_rng([seed, 4])
    masks, patterns = (_uniform(rng, (classes, c, *images.shape[2:]), chosen).to(images.device) for c in (1, images.shape[1]))
    # The starting values are where the results will be: a chunk reads its own before it writes them.
    never = torch.full((len(chosen),), torch.nan, dtype=torch.float32, device="cpu")
    kept = Candidates(masks, patterns, never, torch.zeros(len(chosen), dtype=torch.int64, device="cpu"))
    most = MOST_FEATURES if images.device.type == "cpu" else MOST_ON_GPU
    size = max(1, most // (batch_size * images[0].numel()))
    chunks = [range(len(chosen))[start : start + size] for start in range(0, len(chosen), size)]
    lower = torch.autocast(images.device.type, dtype=dtype, enabled=dtype in (torch.float16, torch.bfloat16))
    layout, _ = layout_of(model, images[:2])
    with (
        frozen_weights(model) as network,
        bar(total=steps * len(chunks), desc="Neural Cleanse", unit="step", show=progress) as shown,
    ):
        for number, chunk in enumerate(chunks, start=1):
            run = _Run(network, images, [chosen[at] for at in chunk], samples // batch_size, batch_size, lower, layout)
            part = Candidates(*(value[chunk.start : chunk.stop] for value in kept))
            run.optimise(part, steps, copy.deepcopy(rng), shown)
            shown.update(number * steps - shown.n)
    return kept


@dataclass
class _Run:
    """The optimisation of a chunk of classes, side by side."""

    network: nn.Module
    images: Tensor
    targets: list[int]
    updates: int
    batch_size: int
    lower: torch.autocast
    layout: torch.memory_format

    def optimise(self, kept: Candidates, steps: int, rng: np.random.Generator, shown: tqdm[Any]) -> None:
        """Replace the uniform starting values in ``kept`` by the candidates."""
        masks, patterns = (_parameters(start) for start in kept[:2])
        optimizer = torch.optim.Adam([masks, patterns], lr=0.1, betas=(0.5, 0.9))  # the authors' numbers
        schedules = [Schedule() for _ in self.targets]
        order: list[int] = []
        for _ in range(steps):
            active = [k for k, schedule in enumerate(schedules) if not schedule.done]
            if not active:
                break
            seen = torch.zeros(2, len(active), dtype=torch.float64, device=self.images.device)
            weights = torch.tensor([schedules[k].weight for k in active], dtype=torch.float32, device=self.images.device)
            for _ in range(self.updates):
                if len(order) < self.batch_size:
                    order = order + rng.permutation(len(self.images)).tolist()
                chosen, order = order[: self.batch_size], order[self.batch_size :]
                seen += self._update(self.images[chosen], masks, patterns, active, weights, optimizer) / self.updates
            success, norms = seen.tolist()
            if not all(map(math.isfinite, norms)):
                raise ValueError("a mask became NaN: the model's logits or gradients are NaN or infinite")
            mask, pattern = _bounded(masks), _bounded(patterns)
            for at, k in enumerate(active):
                kept.steps[k] += 1
                better = schedules[k].update(success[at], norms[at])
                if better or schedules[k].best == float("inf"):
                    kept.masks[k], kept.patterns[k] = mask[k], pattern[k]
                    kept.success[k] = success[at] if better else torch.nan
            shown.update()
            shown.set_postfix(classes=len(active), refresh=False)

    def _update(
        self,
        images: Tensor,
        masks: Tensor,
        patterns: Tensor,
        active: list[int],
        weights: Tensor,
        optimizer: torch.optim.Optimizer,
    ) -> Tensor:
        """Take an Adam step for all active classes; return success and mask norm before the step, shape (2, active)."""
        targets = [self.targets[k] for k in active]
        with torch.enable_grad():
            mask, pattern = _bounded(masks[active], keep=True), _bounded(patterns[active], keep=True)
            x = patched(images[None], mask[:, None], pattern[:, None])  # (K, B, C, H, W)
            with self.lower:
                logits = self.network(x.flatten(0, 1).to(images.dtype).contiguous(memory_format=self.layout)).float()
            if logits.shape[1] <= max(targets):
                raise ValueError(f"candidates for {max(targets) + 1} classes were asked for, and the model has {logits.shape[1]}")
            check_gradients(logits)
            wanted = torch.tensor(targets, device=images.device).repeat_interleave(len(images))
            losses = functional.cross_entropy(logits, wanted, reduction="none").view(len(active), -1).mean(1)
            norms = mask.flatten(1).sum(1)
            masks.grad, patterns.grad = torch.autograd.grad((losses + weights * norms).sum(), [masks, patterns])
        optimizer.step()
        hits = (logits.argmax(1) == wanted).view(len(active), -1).float().mean(1)
        return torch.stack([hits, norms.detach()]).double()


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], chosen: list[int]) -> Tensor:
    """Draw uniform starting values of all classes, and keep those of the chosen ones."""
    return torch.from_numpy(rng.random(shape, dtype=np.float32))[chosen if len(chosen) < shape[0] else slice(None)]


def _parameters(uniform: Tensor) -> Tensor:
    """Parameters whose bounded values are ``uniform``."""
    return torch.arctanh((uniform - 0.5) * (2 - EPSILON)).requires_grad_()


def _bounded(theta: Tensor, *, keep: bool = False) -> Tensor:
    """Map parameters to [0, 1]; without ``keep``, the result is detached and clipped, since rounding may leave the interval."""
    value = torch.tanh(theta) / (2 - EPSILON) + 0.5
    return value if keep else value.detach().clamp(0, 1)
