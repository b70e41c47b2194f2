"""Neural Cleanse (Wang et al., 2019): for each class, the smallest patch with which every image is predicted as the class.

A patch is a mask m and a pattern p; an image x becomes (1 - m) x + m p. Both are optimised for success with a penalty on the size
of the mask. A schedule raises the penalty weight lambda while success is high, and lowers it otherwise. A class whose patch is
much smaller than the others is suspicious, since the patch may be the trigger of a backdoor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bslib.calling import check_inputs
from bslib.patterns import check_counts, check_images, frozen_weights
from bslib.progress import bar

__all__ = ["Candidates", "Schedule", "patched", "reverse_triggers"]

EPSILON = 1e-7


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


def reverse_triggers(
    model: nn.Module,
    images: Tensor,
    *,
    classes: int,
    samples: int = 1000,
    batch_size: int = 32,
    steps: int = 1000,
    learning_rate: float = 0.1,
    seed: int,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Candidates:
    """Optimise a trigger candidate for each class; classes run in one batch, each with its own state and schedule.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits (B, classes); used in eval mode.
    images : float32 Tensor, shape (B, C, H, W)
        In [0, 1], of all classes.
    classes : int
        Number of classes K.
    samples : int
        Images per step, in ``samples // batch_size`` updates. Success and norm are averaged over the updates. The authors use
        1,000.
    batch_size : int
        Images per update and class, at most ``samples`` and the number of images.
    steps : int
        Maximum number of steps for each class.
    learning_rate : float
        Learning rate of Adam. The betas are the authors' 0.5 and 0.9.
    seed : int
        Seed of the initial values and of the order of the images.
    dtype : torch.dtype
        Precision of the model. Precisions below float32 use autocast; masks and patterns stay in float32.
    progress : bool
        Show a progress bar when the run takes longer than two seconds.

    Returns
    -------
    Candidates

    Raises
    ------
    ValueError
        For an empty batch, fewer than one step, images outside [0, 1], or more classes than the model has.
    """
    check_images(images)
    check_inputs(model, images)
    check_counts(samples=samples, batch_size=batch_size, steps=steps, classes=classes)
    batch_size = min(batch_size, samples, len(images))
    updates = samples // batch_size
    rng = np.random.default_rng([seed, 4])
    masks, patterns = (_start(rng, (classes, c, *images.shape[2:]), images.device) for c in (1, images.shape[1]))
    optimizer = torch.optim.Adam([masks, patterns], lr=learning_rate, betas=(0.5, 0.9))
    schedules = [Schedule() for _ in range(classes)]
    never = torch.full((classes,), torch.nan, dtype=torch.float32, device="cpu")
    kept = Candidates(_bounded(masks), _bounded(patterns), never, torch.zeros(classes, dtype=torch.int64, device="cpu"))
    order: list[int] = []
    lower = torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32)
    with (
        frozen_weights(model) as network,
        bar(total=steps, desc="Neural Cleanse", unit="step", show=progress) as shown,
    ):
        for _ in range(steps):
            active = [k for k in range(classes) if not schedules[k].done]
            if not active:
                break
            seen = torch.zeros(2, len(active), dtype=torch.float64, device=images.device)
            weights = torch.tensor([schedules[k].weight for k in active], dtype=torch.float32, device=images.device)
            for _ in range(updates):
                if len(order) < batch_size:
                    order = order + rng.permutation(len(images)).tolist()
                chosen, order = order[:batch_size], order[batch_size:]
                seen += _update(network, images[chosen], masks, patterns, active, weights, optimizer, lower) / updates
            success, norms = seen.tolist()
            mask, pattern = _bounded(masks), _bounded(patterns)
            for at, k in enumerate(active):
                kept.steps[k] += 1
                better = schedules[k].update(success[at], norms[at])
                if better or schedules[k].best == float("inf"):
                    kept.masks[k], kept.patterns[k] = mask[k], pattern[k]
                    kept.success[k] = success[at] if better else torch.nan
            shown.update()
            shown.set_postfix(classes=len(active), refresh=False)
    return kept


def _update(
    model: nn.Module,
    images: Tensor,
    masks: Tensor,
    patterns: Tensor,
    active: list[int],
    weights: Tensor,
    optimizer: torch.optim.Optimizer,
    lower: torch.autocast,
) -> Tensor:
    """Take an Adam step for all active classes; return success and mask norm before the step, shape (2, active)."""
    with torch.enable_grad():
        mask, pattern = _bounded(masks[active], keep=True), _bounded(patterns[active], keep=True)
        x = patched(images[None], mask[:, None], pattern[:, None])  # (K, B, C, H, W)
        with lower:
            logits = model(x.flatten(0, 1).contiguous(memory_format=torch.channels_last)).float()
        if logits.shape[1] <= max(active):
            raise ValueError(f"candidates for {max(active) + 1} classes were asked for, and the model has {logits.shape[1]}")
        wanted = torch.tensor(active, device=images.device).repeat_interleave(len(images))
        losses = functional.cross_entropy(logits, wanted, reduction="none").view(len(active), -1).mean(1)
        norms = mask.flatten(1).sum(1)
        masks.grad, patterns.grad = torch.autograd.grad((losses + weights * norms).sum(), [masks, patterns])
    optimizer.step()
    hits = (logits.argmax(1) == wanted).view(len(active), -1).float().mean(1)
    return torch.stack([hits, norms.detach()]).double()


def _start(rng: np.random.Generator, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw parameters whose bounded values are uniform in [0, 1]."""
    uniform = torch.from_numpy(rng.random(shape, dtype=np.float32)).to(device)
    return torch.arctanh((uniform - 0.5) * (2 - EPSILON)).requires_grad_()


def _bounded(theta: Tensor, *, keep: bool = False) -> Tensor:
    """Map parameters to [0, 1]; without ``keep``, the result is detached and clipped, since rounding may leave the interval."""
    value = torch.tanh(theta) / (2 - EPSILON) + 0.5
    return value if keep else value.detach().clamp(0, 1)
