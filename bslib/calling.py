"""How anybody's network is called: in eval mode, on a copy of the input, for its logits, and checked before it is trusted.

A network comes with habits: it writes into its input, returns a dictionary, keeps dropout on, or normalises over the batch. W is
defined for a network that is a function of one image, so everything in this package that calls a network does it from here.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import random
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Logits", "check_inputs", "check_model", "check_points", "dtype_of", "evaluating", "trial_images"]

#: How far two answers to one image may lie apart, relative to the largest logit, before they count as different.
SAME_ANSWER = 1e-4
#: Image-shaped input beyond these is hardly meant to have features in [0, 1].
FEATURE_RANGE = (-0.25, 1.25)
#: Under these seeds the first draws of Python, NumPy and torch lie on both sides of one half, and so do torch's coin tosses.
SEEDS = (0, 1, 3, 7)

_KEPT: dict[int, Kept] = {}
_KEPT_LOCK = threading.Lock()
#: torch's switches for what float32 means: on GPUs TF32 is the default of convolutions.
_PRECISIONS: tuple[Any, ...] = operator.attrgetter(
    "cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"
)(torch.backends)


class _TrueFloat32:
    """float32 as it is written, without TF32 or bfloat16. torch's switches are global: the last one to leave sets them back."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.before: list[str] = []

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.before = [backend.fp32_precision for backend in _PRECISIONS]
                for backend in _PRECISIONS:
                    backend.fp32_precision = "ieee"
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                for backend, precision in zip(_PRECISIONS, self.before, strict=True):
                    backend.fp32_precision = precision


_TRUE_FLOAT32 = _TrueFloat32()


class Kept:
    """What is kept for a model while it lives: a lock, so that one thread at a time uses it, and what others put here."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.compiled: Any = None


def kept_for(model: nn.Module) -> Kept:
    """The :class:`Kept` of a model; it goes when the model goes."""
    with _KEPT_LOCK:
        if id(model) not in _KEPT:
            _KEPT[id(model)] = Kept()
            weakref.finalize(model, _KEPT.pop, id(model), None)
        return _KEPT[id(model)]


class _Refused(ValueError):
    """What a model returned is not what W can be taken from."""


class Logits(nn.Module):
    """A model as a function from a batch (b, ...) to logits (b, C).

    Parameters
    ----------
    model : torch.nn.Module
        Returns logits, or an object with ``logits``, or a tuple or mapping that holds them. A single logit becomes two classes
        with the threshold at 0.
    output : str or int, optional
        Which entry of a tuple or mapping holds the logits.

    >>> Logits(nn.Identity())(torch.tensor([[2.0], [-3.0]])).tolist()
    [[0.0, 2.0], [0.0, -3.0]]
    """

    def __init__(self, model: nn.Module, output: str | int | None = None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Tensor:
        """From (b, ...) to (b, C). The model gets a clone, which it may write into."""
        out = _selected(self.model(x.clone()), self.output)
        if out.ndim != 2 or len(out) != len(x) or out.shape[1] < 1:
            hint = ": end it with unsqueeze(1) for one logit an image" if out.ndim == 1 and len(out) == len(x) else ""
            raise _Refused(f"the model must map {len(x)} images to logits of shape ({len(x)}, C), got {tuple(out.shape)}{hint}")
        return torch.cat([torch.zeros_like(out), out], 1) if out.shape[1] == 1 else out


def _selected(out: Any, output: str | int | None) -> Tensor:
    """The tensor of logits in what a model returned."""
    found = out
    if output is not None:
        try:
            found = out[output]
        except (KeyError, IndexError, TypeError):
            raise _Refused(f"output={output!r} names nothing in what the model returned: {_contents(out)}") from None
    elif not isinstance(out, Tensor) and hasattr(out, "logits"):
        found = out.logits
    if not isinstance(found, Tensor):
        hint = "name the entry that holds them with output=..., or wrap the model in a module that returns them"
        raise _Refused(f"the model must return logits, a tensor of shape (b, C), got {_contents(found)}: {hint}")
    return found


def _contents(out: Any) -> str:
    names = f" with {', '.join(map(repr, out))}" if isinstance(out, dict) else f" of {len(out)}" if isinstance(out, tuple) else ""
    return type(out).__name__ + names


@contextlib.contextmanager
def evaluating(model: nn.Module, output: str | int | None = None) -> Iterator[Logits]:
    """The model in eval mode, without gradients and autocast, in true float32; afterwards everything is as it was.

    One thread at a time; others wait. torch's switches for lower float32 precision are global: they are off for the whole
    process while this lasts.

    Parameters
    ----------
    model : torch.nn.Module
        Modules that refuse ``eval()``, as exported programs do, stay in the mode that they were made in.
    output : str or int, optional
        As for :class:`Logits`.

    Yields
    ------
    Logits

    >>> model = nn.Dropout()
    >>> with evaluating(model) as network:
    ...     network(torch.ones(1, 2)).tolist(), model.training
    ([[1.0, 1.0]], False)
    >>> model.training
    True
    """
    with kept_for(model).lock, _TRUE_FLOAT32, contextlib.ExitStack() as stack:
        modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
        try:
            with contextlib.suppress(NotImplementedError):
                model.eval()
            stack.enter_context(torch.no_grad())
            for device in {"cpu", *(t.device.type for t in _state(model))}:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield Logits(model, output)
        finally:
            for module, training in modes:
                module.training = training


def _state(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating point parameter or buffer, else float32.

    >>> dtype_of(nn.Linear(1, 1).double()), dtype_of(nn.ReLU())
    (torch.float64, torch.float32)
    """
    return next((t.dtype for t in _state(model) if t.is_floating_point()), torch.float32)


# Inputs


def check_points(model: nn.Module, x: Tensor) -> None:
    """Refuse what W cannot be measured on; a ValueError names the value and the remedy.

    >>> check_points(nn.Flatten(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: x must be float32 with features in [0, 1], got torch.uint8: for pixel values use x.float() / 255
    """
    if not isinstance(model, nn.Module):
        hint = (
            ": wrap it in a torch.nn.Module whose forward returns logits" if hasattr(model, "predict") or callable(model) else ""
        )
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}{hint}")
    if not isinstance(x, Tensor):
        hint = ": use torch.as_tensor(x, dtype=torch.float32)" if isinstance(x, np.ndarray | list) else ""
        raise ValueError(f"x must be a float32 tensor of shape (B, ...), got {type(x).__name__}{hint}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must be a batch of shape (B, ...) with at least one image, got shape {tuple(x.shape)}")
    if x.dtype != torch.float32:
        hint = "use x.float()" if x.is_floating_point() else "for pixel values use x.float() / 255"
        raise ValueError(f"x must be float32 with features in [0, 1], got {x.dtype}: {hint}")
    check_inputs(model, x)
    low, high = x.aminmax()
    if x.ndim == 4 and not FEATURE_RANGE[0] <= low <= high <= FEATURE_RANGE[1]:
        warnings.warn(
            f"x has features from {low:g} to {high:g}, sigma is meant for features in [0, 1]: divide pixel values by 255, and "
            "have the model normalise, as in torch.nn.Sequential(torchvision.transforms.Normalize(mean, std), model)",
            stacklevel=4,
        )


def check_inputs(model: nn.Module, *batches: Tensor) -> None:
    """Refuse batches that are not float or not finite, or lie on another device than the model; a ValueError says which.

    >>> check_inputs(nn.Linear(2, 1), torch.tensor([[0.0, torch.nan]]))
    Traceback (most recent call last):
    ValueError: x must be finite, got NaN or infinity among its features
    """
    state = next(_state(model), None)
    for x in batches:
        if not x.is_floating_point():
            raise ValueError(f"x must be float with features in [0, 1], got {x.dtype}: for pixel values use x.float() / 255")
        if x.device.type == "meta":
            raise ValueError("x is on the device 'meta', which has no values: make it on the CPU or a GPU")
        if state is not None and state.device != x.device:
            raise ValueError(f"x and the model must be on one device, got x on {x.device}, the model on {state.device}")
        if not x.isfinite().all():
            raise ValueError("x must be finite, got NaN or infinity among its features")


# The check before the first measurement


def trial_images(x: Tensor, count: int = 2) -> Tensor:
    """Uniform noise with the shape, dtype and device of ``x`` (B, ...), from bright to dark; the same for all values of ``x``."""
    generator = torch.Generator("cpu").manual_seed(0)
    uniform = torch.rand(count, *x.shape[1:], generator=generator, device="cpu", dtype=torch.float32)
    fading = torch.linspace(1, 0.5, count, device="cpu", dtype=torch.float32).view(-1, *[1] * (x.ndim - 1))
    return (uniform * fading).to(x.device, x.dtype)


def check_model(network: Logits, trial: Tensor, *, stochastic: bool = False) -> Tensor:
    """Refuse a network that is no function of one image: asked again, or alone, it has to give the same answer.

    Parameters
    ----------
    network : Logits
        From :func:`evaluating`.
    trial : Tensor, shape (b, ...)
        From :func:`trial_images`, in the model's dtype.
    stochastic : bool
        Accept a network whose answers differ.

    Returns
    -------
    Tensor, shape (b, C)
        Its logits.

    Raises
    ------
    ValueError
        When it cannot be called with such images, or answers differently; the message says what to do. The generators of Python,
        NumPy and torch are left as they were.
    """
    with _generators_kept(trial.device):
        try:
            first, *again = [_seeded(network, trial, seed) for seed in SEEDS]
            alone = first if stochastic else torch.cat([network(image[None]) for image in trial])
        except _Refused:
            raise
        except Exception as problem:  # whatever a module raises when it gets what it was not made for
            reason = (str(problem).splitlines() or [""])[0]
            hint = _layout_hint(trial)
            raise ValueError(
                f"the model cannot be called with a batch of shape {tuple(trial.shape)}: {type(problem).__name__}: {reason}{hint}"
            ) from problem
    if first.isnan().any():
        raise ValueError("the model's logits hold NaN: it may have diverged in training, or its precision is too low")
    if not stochastic:
        remedy = "mend it, or pass stochastic=True to count its answers as they come"
        if not all(same_logits(first, other) for other in again):
            raise ValueError(f"the model answers the same image differently when it is asked again, by chance: {remedy}")
        if not same_logits(first, alone):
            raise ValueError(f"the model's answer to an image depends on the other images of the batch: {remedy}")
    if first.shape[1] == 2 and not first[:, 0].any() and ((first[:, 1] >= 0) & (first[:, 1] <= 1)).all():
        warnings.warn(
            "the model's single output lies in [0, 1]: if it is a probability, return its logit (the threshold is 0)",
            stacklevel=4,
        )
    return first


def same_logits(one: Tensor, other: Tensor, tolerance: float = SAME_ANSWER) -> bool:
    """Whether two tensors of logits agree up to rounding, relative to the largest.

    >>> same_logits(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.00001]]))
    True
    """
    if one.shape != other.shape:
        return False
    finite = one.isfinite()
    if not one[~finite].equal(other[~finite]):
        return False
    scale = one[finite].abs().max() if finite.any() else torch.zeros(())
    tolerance = max(tolerance, 16 * torch.finfo(one.dtype).eps)
    return bool(((one - other)[finite].abs() <= tolerance * scale).all())


def _layout_hint(trial: Tensor) -> str:
    _, *shape = trial.shape
    if len(shape) == 2:
        return "; if x is one image (C, H, W), use x[None]"
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4):
        return "; if x is (B, H, W, C), use x.permute(0, 3, 1, 2)"
    return ""


def _seeded(network: nn.Module, x: Tensor, seed: int) -> Tensor:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if x.is_cuda:
        torch.cuda.manual_seed(seed)
    out: Tensor = network(x)
    return out


@contextlib.contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
