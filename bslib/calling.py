"""Calls to user-supplied networks: in eval mode, on a copy of the input, returning logits, after checks of the network.

A user's network may write into its input, return a dictionary, keep dropout on or normalise over the batch. W is defined only for
a network that is a function of one image. All code in this package therefore calls networks through this module.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
import math
import operator
import os
import random
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "Logits", "check_alone", "check_batch", "check_counts", "check_inputs", "check_logits", "check_model", "check_points",
    "dtype_of", "evaluating", "same_logits", "trial_images",
]  # fmt: skip

#: Largest difference between two outputs for one image that count as equal, relative to the largest logit.
SAME_ANSWER = 1e-4
#: The same for noisy images and after a measurement, where features may be large and rounding with them.
DEPENDS = 1e-2
#: Image-shaped input outside this range triggers a warning: its features are probably not meant to lie in [0, 1].
FEATURE_RANGE = (-0.25, 1.25)
#: With these seeds, the first draws of Python, NumPy and torch fall on both sides of 0.5, as do torch's Bernoulli draws; with the
#: last two they are below 0.02 and above 0.98, so that what happens in one call of fifty happens here.
SEEDS = (0, 1, 3, 7, 287052, 1471999)

#: Attributes of a module that hold its hooks, which a converted copy would not call.
HOOKS = ("_forward_hooks", "_forward_pre_hooks")

_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
#: One thread of the process at a time calls networks: two models may share a module, and torch's settings are global.
_USING = threading.RLock()
#: torch's settings of float32 precision. On GPUs, convolutions use TF32 by default.
_PRECISIONS: tuple[Any, ...] = operator.attrgetter(
    "cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"
)(torch.backends)


def _lock_anew() -> None:
    """Replace the lock, which another thread of the parent may have held at the fork."""
    global _USING
    _USING = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock_anew)


@contextlib.contextmanager
def _true_float32() -> Iterator[None]:
    """Context with IEEE float32, without TF32 or bfloat16, in the whole process."""
    before, cudnn, tf32 = [backend.fp32_precision for backend in _PRECISIONS], torch.backends.cudnn, None
    with contextlib.suppress(RuntimeError):  # torch refuses to read the old setting where the new ones differ
        tf32 = cudnn.allow_tf32
    try:
        if tf32 is not None:  # so that models can still read it
            cudnn.allow_tf32 = False
        for backend in _PRECISIONS:
            backend.fp32_precision = "ieee"
        yield
    finally:
        if tf32 is not None:
            cudnn.allow_tf32 = tf32
        for backend, precision in zip(_PRECISIONS, before, strict=True):
            backend.fp32_precision = "none"  # the setting of all backends together, which the user may change later
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


class _Refused(ValueError):
    """W cannot be computed from the output of a model."""


class Logits(nn.Module):
    """A model as a function from a batch (b, ...) to logits (b, C).

    Parameters
    ----------
    model : torch.nn.Module
        Returns logits, an object with an attribute ``logits``, or a tuple or mapping that holds them. A single logit becomes two
        classes with the threshold at 0.
    output : str or int, optional
        Which entry of the tuple or mapping, or attribute of the object, holds the logits.

    >>> Logits(nn.Identity())(torch.tensor([[2.0], [-3.0]])).tolist()
    [[0.0, 2.0], [0.0, -3.0]]
    """

    def __init__(self, model: nn.Module, output: str | int | None = None) -> None:
        super().__init__()
        if isinstance(output, bool) or not isinstance(output, str | int | None):
            raise ValueError(f"output must be the name or the index of what holds the logits, got {output!r}")
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, ...) to (b, C). The model receives a clone, which it may modify, and may write into its output again."""
        out = _selected(self.model(x.clone()), self.output)
        if out.ndim != 2 or len(out) != len(x) or out.shape[1] < 1:
            hint = ": end it with unsqueeze(1) for one logit an image" if out.ndim == 1 and len(out) == len(x) else ""
            raise _Refused(f"the model must map {len(x)} images to logits of shape ({len(x)}, C), got {tuple(out.shape)}{hint}")
        return torch.cat([torch.zeros_like(out), out], 1) if out.shape[1] == 1 else out.clone()


def _selected(out: Any, output: str | int | None) -> Tensor:
    """Extract the tensor of logits from a model's output."""
    found = out
    if output is not None:
        try:
            found = None if isinstance(out, Tensor) else out[output]
        except (KeyError, IndexError, TypeError):
            found = getattr(out, str(output), None)  # of a data class or named tuple
        if found is None:
            raise _Refused(f"output={output!r} names nothing in what the model returned: {_contents(out)}")
    elif not isinstance(out, Tensor) and hasattr(out, "logits"):
        found = out.logits
    if not isinstance(found, Tensor):
        hint = "wrap the model in a module that returns them (for W alone, output=... can name the entry that holds them)"
        raise _Refused(f"the model must return logits, a tensor of shape (b, C), got {_contents(found)}: {hint}")
    if not found.is_floating_point():
        raise _Refused(f"the model must return logits as floats, got {found.dtype}: return scores, not predicted classes")
    if found.layout != torch.strided:
        raise _Refused(f"the model must return logits as a dense tensor, got {found.layout}: use to_dense()")
    return found


def _contents(out: Any) -> str:
    names = f" with {', '.join(map(repr, out))}" if isinstance(out, dict) else f" of {len(out)}" if isinstance(out, tuple) else ""
    return type(out).__name__ + names


@contextlib.contextmanager
def evaluating(model: nn.Module, output: str | int | None = None) -> Iterator[Logits]:
    """Put the model in eval mode, without gradients and autocast, in true float32; restore modes and settings afterwards.

    One thread of the process at a time can be inside, whichever model it uses; others wait. TF32 and bfloat16 are off for the
    whole process inside the context, since torch's settings of float32 precision are global.

    Parameters
    ----------
    model : torch.nn.Module
        Modules that do not support ``eval()``, such as exported programs, keep the mode they were created in.
    output : str or int, optional
        As for :class:`Logits`.

    >>> model = nn.Dropout()
    >>> with evaluating(model) as network:
    ...     network(torch.ones(1, 2)).tolist(), model.training
    ([[1.0, 1.0]], False)
    >>> model.training
    True
    """
    with _USING, _true_float32(), contextlib.ExitStack() as stack:
        modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
        try:
            try:
                model.eval()
            except NotImplementedError:  # of a part, such as an exported program: the parts after it were not reached
                for module in (module for module, training in modes if training):
                    with contextlib.suppress(NotImplementedError):
                        module.eval()
            stack.enter_context(torch.no_grad())
            for device in {"cpu", *(t.device.type for t in _state(model))} - {"meta"}:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield Logits(model, output)
        finally:
            for module, training in modes:
                if module.training != training:  # layers such as LoRA's undo in train() what they did in eval()
                    with contextlib.suppress(NotImplementedError):
                        module.train(training)
                module.training = training


def _state(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def digest_of(model: nn.Module, *tensors: Tensor) -> str:
    """Return the SHA-256 of a model and of further tensors, in hexadecimal.

    Of the model count parameters, buffers, the types of its modules with the code of their forward, their hooks, and their plain
    attributes: numbers, texts, arrays, tensors, and lists, tuples and dictionaries of them. Of a function count the name, the
    code, the defaults, and the numbers, texts and functions that it uses by name; of other attributes only the type. A model that
    counts its passes in such a value therefore has another digest after each.

    >>> digest_of(nn.Linear(1, 1)) == digest_of(nn.Linear(1, 1))
    False
    >>> digest_of(nn.LeakyReLU(0.1)) == digest_of(nn.LeakyReLU(0.2))
    False
    """
    digest, seen = hashlib.sha256(), dict[int, str]()
    numbered = ((f"#{k}", tensor) for k, tensor in enumerate(tensors))
    # A list, because scripted modules make new objects for their tensors, and ids in ``seen`` must not be used again.
    state = [*model.named_parameters(), *model.named_buffers(), *numbered]
    for name, tensor in state:
        for part in _described(name, tensor, seen):
            digest.update(part)
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__qualname__};".encode())
        hooks = [hook for kind in HOOKS for hook in (getattr(module, kind, None) or {}).values()]
        for function in (getattr(type(module), "forward", None), *hooks):
            digest.update(_code_of(function))
        for own in sorted(vars(module).keys() - _OF_EVERY_MODULE):
            for part in _described(f"{name}.{own}", vars(module)[own], seen):
                digest.update(part)
    return digest.hexdigest()


def _described(name: str, value: Any, seen: dict[int, str]) -> Iterator[Any]:
    """Yield bytes that tell values of an attribute apart; ``seen`` has the names of tensors and containers by their ids."""
    if isinstance(value, _PLAIN):
        yield f"{name} {value!r};".encode()
    elif not isinstance(value, Tensor | np.ndarray | list | tuple | dict):
        yield f"{name} ".encode() + _code_of(value)
    elif id(value) in seen:
        yield f"{name} is {seen[id(value)]};".encode()
    elif isinstance(value, list | tuple | dict):
        seen[id(value)] = name
        yield f"{name} {type(value).__qualname__} of {len(value)};".encode()
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _described(f"{name}[{key!r}]", part, seen)
    else:
        seen[id(value)] = name
        yield f"{name} {value.dtype} {tuple(value.shape)};".encode()
        yield value.tobytes() if isinstance(value, np.ndarray) else _bytes_of(value)


def _code_of(function: Any) -> bytes:
    """The name and the code of a function, and the plain values and the code of functions that it uses by name."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if not isinstance(code, types.CodeType):
        return f"{name};".encode()
    values: dict[str, Any] = {}
    with contextlib.suppress(TypeError, ValueError):  # no function, or a name without a value yet
        used = inspect.getclosurevars(function)
        values = {**used.globals, **used.nonlocals}
    plain = {key: value for key, value in values.items() if isinstance(value, _PLAIN) and not key.startswith("__")}
    plain |= {f"default {k}": v for k, v in enumerate(getattr(function, "__defaults__", None) or ()) if isinstance(v, _PLAIN)}
    codes = [_bytes_of_code(value.__code__) for _, value in sorted(values.items()) if inspect.isfunction(value)]
    return b"".join((f"{name} {sorted(plain.items())!r};".encode(), _bytes_of_code(code), *codes))


@functools.lru_cache(maxsize=1024)
def _bytes_of_code(code: types.CodeType) -> bytes:
    constants = (_bytes_of_code(c) if isinstance(c, types.CodeType) else _ordered(c).encode() for c in code.co_consts)
    return b"".join((code.co_code, repr(code.co_names).encode(), *constants))


def _ordered(constant: Any) -> str:
    """The representation of a constant, in which sets have the same order in every process."""
    if isinstance(constant, tuple | frozenset):
        parts = [_ordered(part) for part in constant]
        return f"{type(constant).__name__}{parts if isinstance(constant, tuple) else sorted(parts)}"
    return repr(constant)


def _bytes_of(tensor: Tensor) -> Any:
    if tensor.device.type == "meta":
        return b""
    dense = (tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()).resolve_conj().resolve_neg()
    # Bytes, since NumPy has no bfloat16.
    return dense.cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def dtype_of(model: nn.Module, x: Tensor | None = None) -> torch.dtype:
    """Return the dtype of the model's first floating-point parameter or buffer, or float32 if it has none.

    Of a model with several, such as a frozen half-precision part, float32 is returned if it takes images like ``x`` in float32.

    >>> dtype_of(nn.Linear(1, 1).double()), dtype_of(nn.ReLU())
    (torch.float64, torch.float32)
    """
    dtypes = list(dict.fromkeys(t.dtype for t in _state(model) if t.is_floating_point())) or [torch.float32]
    if x is not None and len(dtypes) > 1:
        with contextlib.suppress(Exception):  # user code may raise any exception for input that it does not support
            model(trial_images(x).float())
            return torch.float32
    return dtypes[0]


# Inputs


def check_points(model: nn.Module, x: Tensor) -> None:
    """Raise a ValueError that names the value and the remedy if W cannot be measured for the model and points.

    >>> check_points(nn.Flatten(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: x must be float32 with features in [0, 1], got torch.uint8: for pixel values use x.float() / 255
    """
    if not isinstance(model, nn.Module):
        callable_ = hasattr(model, "predict") or callable(model)
        hint = ": wrap it in a torch.nn.Module whose forward returns logits" if callable_ else ""
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}{hint}")
    if not isinstance(x, Tensor):
        hint = ": use torch.as_tensor(x, dtype=torch.float32)" if isinstance(x, np.ndarray | list) else ""
        raise ValueError(f"x must be a float32 tensor of shape (B, ...), got {type(x).__name__}{hint}")
    if x.is_nested or x.layout != torch.strided:
        raise ValueError("x must be a dense tensor of shape (B, ...), got a nested or sparse one: use x.to_dense()")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must be a batch of shape (B, ...) with at least one image, got shape {tuple(x.shape)}")
    if x.dtype != torch.float32:
        hint = "use x.float()" if x.is_floating_point() else "for pixel values use x.float() / 255"
        hint += "; of token ids, measure their embeddings" if x.dtype in (torch.int32, torch.int64) else ""
        raise ValueError(f"x must be float32 with features in [0, 1], got {x.dtype}: {hint}")
    check_inputs(model, x, precision=False)
    low, high = (end.item() for end in x.aminmax())
    if x.ndim == 4 and not FEATURE_RANGE[0] <= low <= high <= FEATURE_RANGE[1]:
        warn_caller(
            f"x has features from {low:g} to {high:g}, sigma is meant for features in [0, 1]: divide pixel values by 255, and "
            "have the model normalise, as in torch.nn.Sequential(torchvision.transforms.v2.Normalize(mean, std), model)"
        )


def warn_caller(message: str) -> None:
    """Warn at the line outside this package that called it (Python 3.11 has no ``skip_file_prefixes``)."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def check_inputs(model: nn.Module, *batches: Tensor, precision: bool = True) -> None:
    """Raise a ValueError if a batch is not floating point, not finite, or not on the model's device and in its precision.

    Without ``precision``, batches may have another precision than the model.

    >>> check_inputs(nn.Linear(2, 1), torch.tensor([[0.0, torch.nan]]))
    Traceback (most recent call last):
    ValueError: x must be finite, got NaN or infinity among its features
    """
    if any(nn.parameter.is_lazy(tensor) for tensor in _state(model)):
        raise ValueError("the model has parameters without a shape yet: call it once on an image first")
    state = next(_state(model), None)
    own = next((tensor.dtype for tensor in _state(model) if tensor.is_floating_point()), None)
    for x in batches:
        if not isinstance(x, Tensor):
            raise ValueError(f"x must be a tensor, got {type(x).__name__}: use torch.as_tensor(x, dtype=torch.float32)")
        if not x.is_floating_point():
            raise ValueError(f"x must be float with features in [0, 1], got {x.dtype}: for pixel values use x.float() / 255")
        if x.device.type == "meta":
            raise ValueError("x is on the device 'meta', which has no values: make it on the CPU or a GPU")
        if state is not None and state.device != x.device:
            raise ValueError(f"x and the model must be on one device, got x on {x.device}, the model on {state.device}")
        if precision and own not in (None, x.dtype):
            hint = "use x.float()" if own == torch.float32 else "use model.float()"
            raise ValueError(f"x must have the model's precision, {own}, got {x.dtype}: {hint}")
        if not x.isfinite().all():
            raise ValueError("x must be finite, got NaN or infinity among its features")


def check_counts(**counts: object) -> None:
    """Raise a ValueError that names the argument unless each count is a whole number of 1 or more.

    >>> check_counts(steps=0)
    Traceback (most recent call last):
    ValueError: steps must be a whole number of 1 or more, got 0
    """
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, got {number!r}")


# The check before the first measurement

_REMEDY = "mend it (W alone can count its answers as they come, with stochastic=True)"


def trial_images(x: Tensor, count: int = 2) -> Tensor:
    """Return images of uniform noise, bright to dark, that depend only on the shape, dtype and device of ``x`` (B, ...)."""
    generator = torch.Generator("cpu").manual_seed(0)
    uniform = torch.rand(count, *x.shape[1:], generator=generator, device="cpu", dtype=torch.float32)
    fading = torch.linspace(1, 0.5, count, device="cpu", dtype=torch.float32).view(-1, *[1] * (x.ndim - 1))
    return (uniform * fading).to(x.device, x.dtype)


def check_model(network: Logits, trial: Tensor, *, stochastic: bool = False) -> Tensor:
    """Check that a network is a function of one image: re-evaluation and a batch of one must give the same logits.

    The state of the random generators of Python, NumPy and torch is restored. ``trial`` is from :func:`trial_images`, in the
    model's dtype; the network's logits for it are returned. With ``stochastic``, logits may differ.

    Raises
    ------
    ValueError
        If the network fails on such images, or returns NaN or different logits for one image. The message names the remedy.
    """
    with _generators_kept(trial.device):
        tried = trial
        try:
            first, *again = [_seeded(network, trial, seed) for seed in SEEDS]
            tried = trial[:1]
            alone = first if stochastic else torch.cat([network(image[None]) for image in trial])
        except _Refused:
            raise
        except Exception as problem:  # user code may raise any exception for input that it does not support
            reason = (str(problem).splitlines() or [""])[0]
            hint = _layout_hint(trial)
            raise ValueError(
                f"the model cannot be called with a batch of shape {tuple(tried.shape)}: {type(problem).__name__}: {reason}{hint}"
            ) from problem
    check_logits(first)
    if not stochastic:
        if not all(same_logits(first, other, ulps=4) for other in again):
            raise ValueError(f"the model answers the same image differently when it is asked again, by chance: {_REMEDY}")
        if not same_logits(first, alone):
            raise ValueError(f"the model's answer to an image depends on the other images of the batch: {_REMEDY}")
    with _generators_kept(trial.device):
        doubtful = _like_a_probability(first) and not any(_leaves_unit_interval(network, far * trial) for far in (100, -100))
    if doubtful:
        warn_caller("the model's single output lies in [0, 1]: if it is a probability, return its logit (the threshold is 0)")
    return first


def _like_a_probability(logits: Tensor) -> bool:
    """Whether they may come from a single output in [0, 1]."""
    return logits.shape[1] == 2 and not logits[:, 0].any() and bool(((logits[:, 1] >= 0) & (logits[:, 1] <= 1)).all())


def _leaves_unit_interval(network: Logits, far: Tensor) -> bool:
    """Whether the single output leaves [0, 1] for such features: a logit does, unless the model normalises them."""
    try:
        found = network(far)
    except Exception:  # user code may raise any exception for input that it does not support
        return False
    return not bool(found.isnan().any()) and not _like_a_probability(found)


def check_logits(logits: Tensor) -> None:
    """Raise a ValueError if logits hold NaN, of which nothing can be counted, crafted or scored.

    >>> check_logits(torch.tensor([[0.0, torch.nan]]))
    Traceback (most recent call last):
    ValueError: the model's logits hold NaN: it diverged in training, its precision is too low, or noise left its range
    """
    if logits.isnan().any():
        reasons = "it diverged in training, its precision is too low, or noise left its range"
        raise ValueError(f"the model's logits hold NaN: {reasons}")


def check_alone(network: Logits, images: Tensor) -> tuple[Tensor, Tensor]:
    """Check on the brightest and the darkest of the images measured that the answer to each is its own.

    Trial images lie in [0, 1], and noisy ones need not: a model may scale its batch only where a feature exceeds 1.

    Returns
    -------
    images, logits : Tensor
        Up to four of the images, and the network's logits for them.

    Raises
    ------
    ValueError
        If the logits of an image differ from those that it gets alone.
    """
    low, high = images.flatten(1).aminmax(dim=1)
    some = images[sorted({int(end) for of in (low, high) for end in (of.argmin(), of.argmax())})]
    together, alone = network(some), torch.cat([network(image[None]) for image in some])
    # Large features leave rounding errors far above those of trial images; a batch that is scaled is off by much more.
    if not together.isnan().any() and not same_logits(together, alone, DEPENDS):
        raise ValueError(f"the model's answer to a noisy image depends on the other images of the batch: {_REMEDY}")
    return some, together


def check_batch(network: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, most: int, dtype: torch.dtype) -> None:
    """Raise a ValueError if at most so many of the images get other logits in a batch of their own, or if logits hold NaN.

    Trial batches have two images. A model may normalise over its batch, or have no room for all of it, only where it is large.
    """
    check_logits(logits)
    some = slice(None, None, math.ceil(len(images) / most))
    if not same_logits(network(images[some]), logits[some], max(DEPENDS, 16 * torch.finfo(dtype).eps), among=logits):
        raise ValueError(f"the model's answer to an image depends on the other images of a large batch, or on chance: {_REMEDY}")


def same_logits(
    one: Tensor, other: Tensor, tolerance: float = SAME_ANSWER, ulps: int = 16, *, among: Tensor | None = None
) -> bool:
    """Return whether two tensors of logits (b, C) agree up to rounding.

    Rounding is relative to the largest absolute value, also of the logits ``among`` which they are. Values above 100 times the
    largest of all images' two best logits are left out of that and compared relative to themselves, since some models add -1e9 to
    mask a class. A difference of ``ulps`` units in the last place is always allowed.

    >>> same_logits(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.00001]]))
    True
    """
    if one.shape != other.shape:
        return False
    finite = one.isfinite()
    if not one[~finite].equal(other[~finite]):
        return False
    if not finite.any():
        return True
    every = one if among is None else among
    top, sizes = every.topk(min(2, every.shape[-1])).values, every[every.isfinite()].abs()
    usual = sizes[sizes <= 100 * top[top.isfinite()].abs().max()] if top.isfinite().any() else sizes[:0]
    sizes = one[finite].abs()
    tolerance = max(tolerance, ulps * torch.finfo(one.dtype).eps)
    return bool(((one - other)[finite].abs() <= tolerance * sizes.clamp_min(usual.max() if len(usual) else 0)).all())


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
