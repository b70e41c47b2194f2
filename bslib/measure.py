r"""The wobbliness W of a classifier around a point: Eqs. 1 and 2 of the paper, on any network.

A point x is copied n times, each copy gets its own isotropic Gaussian noise (in pixel space, never clipped), and the network
classifies them (Eq. 1). How often each class came out, its *class counts*, approximates the smoothed classifier (Eq. 2); the
entropy of these frequencies is W (Eq. 3, :mod:`bslib.entropy`). W is 0 where noise never changes the label.

Which noise a point gets depends on the seed and on the point alone, so a result can be taken apart and put together again: in
any order, in any company, in chunks of any size, one sigma or ten. The noise comes in blocks of 64 samples, each drawn by a
generator of its own that is keyed on (seed, point, block); the first 250 of 1,000 samples are therefore the n = 250 result.
One standard normal draw serves every sigma, so that curves over sigma are paired.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bslib.entropy import entropy, log_of
from bslib.progress import bar
from bslib.speed import prepare

__all__ = ["class_counts", "standard_noise", "wobbliness"]

#: Samples in a block of noise. Part of what a seed means: another number gives other noise.
BLOCK = 64


def wobbliness(
    model: nn.Module,
    x: Tensor,
    sigma: float | Sequence[float] = 0.1,
    n: int | Sequence[int] = 250,
    *,
    seed: int = 0,
    estimator: str = "plug-in",
    base: float | None = None,
    ids: Sequence[Hashable] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    progress: bool = True,
) -> NDArray[np.float64]:
    """W around every image of a batch (Eqs. 1 to 3): 0 where noise never changes the predicted class.

    Noise is added to the images as they are given. Where the model wants them normalised, it has to do so itself, as in
    ``nn.Sequential(torchvision.transforms.Normalize(mean, std), model)``; else sigma has another unit in each channel.

    Parameters
    ----------
    model, x, seed, ids, dtype, batch_size, engine, progress
        As for :func:`class_counts`.
    sigma : float or sequence of S floats
        Standard deviation of the noise, in units of the features.
    n : int or sequence of N ints
        Noisy copies of each image.
    estimator : {"plug-in", "miller-madow", "grassberger"}
        How W is taken from the counts; the first is the paper's.
    base : float, optional
        Base of the logarithm; nats when not given.

    Returns
    -------
    ndarray of float, shape (B,), (S, B), (N, B) or (S, N, B)
        An axis for sigma where it is a sequence, then one for n where it is a sequence, then the images.

    Raises
    ------
    ValueError
        As :func:`class_counts`; also for an unknown estimator or base.

    >>> model = nn.Linear(2, 2)
    >>> W = wobbliness(model, torch.rand(3, 2), sigma=[0.1, 0.2])
    >>> W.shape, bool((W >= 0).all()), bool((W <= math.log(2)).all())
    ((2, 3), True, True)
    """
    log_of(base)  # a base that is none is refused before the computation, not after it
    counts = class_counts(
        model, x, sigma, n, seed=seed, ids=ids, dtype=dtype, batch_size=batch_size, engine=engine, progress=progress
    )
    if np.ndim(sigma) == 0:
        counts = counts[0]
    return entropy(counts, estimator=estimator, base=base)


def class_counts(
    model: nn.Module,
    x: Tensor,
    sigma: float | Sequence[float],
    n: int | Sequence[int] = 250,
    *,
    seed: int,
    ids: Sequence[Hashable] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    progress: bool = True,
) -> NDArray[np.int64]:
    r"""How often each class is predicted over n Gaussian copies of every image (Eqs. 1 and 2).

    .. math:: \text{counts}_k(x) = \sum_{i=1}^n f_k(x + \sigma z_i), \qquad z_i \sim \mathcal N(0, I)

    The noise of an image is a function of the seed and of its pixels (or id), on CPUs and on GPUs of one model. So the counts do
    not depend on ``batch_size``, on the number of threads, on the order of the images, or on which other images, sigmas and n are
    asked for, except where rounding decides between two logits: none of 320,000 labels of the paper's small network changed
    between batches of 64 and of 1,000. Nor does what makes it fast (``engine``) hang on any of these.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (b, ...) to logits (b, C). It is put in eval mode and gets its modes back. It must treat images independently.
    x : float32 Tensor, shape (B, ...)
        Images or other points, on the model's device. Features usually lie in [0, 1]; that is what gives sigma its meaning.
    sigma : float or sequence of S floats
        Standard deviation of the noise, in units of the features.
    n : int or sequence of N ints
        Noisy copies of each image; a sequence gives the counts of each prefix of one run of ``max(n)`` copies.
    seed : int
        Seed of the noise.
    ids : sequence of B hashables, optional
        What the noise of each image is keyed on, an int or a string; its float32 pixels when not given. Give a clean image and
        its triggered copy the same id and they get the same noise.
    dtype : torch.dtype, optional
        Precision of the forward pass; the model's own when not given. A lower one than the model's runs under autocast, and once
        more in the model's own where two classes are so close that rounding could decide (:class:`bslib.speed.Careful`).
    batch_size : int, optional
        Noisy copies in a forward pass, rounded to whole blocks of 64; when not given, 64 to 512 on a CPU, by the size of the
        network's activations, and 2,048 elsewhere. Memory depends on it alone, not on n or B.
    engine : {"auto", "fast", "eager"}
        "auto": as a faster copy of the network that differs by rounding, where one can be made; "eager": as it is; "fast": refuse
        where none can be made. :func:`bslib.speed.prepare` says what is done to a network.
    progress : bool
        Show a bar when the run takes longer than two seconds.

    Returns
    -------
    ndarray of int64, shape (S, B, C), or (S, N, B, C) where n is a sequence
        Sums to n over the last axis. S is 1 for a single sigma.

    Raises
    ------
    ValueError
        Naming the value received: sigma negative or not finite, n below 1, an empty batch, x not float32 or not finite or on
        another device than the model, ids that do not fit, a model whose output is not (b, C) or holds NaN, an unknown engine.

    >>> model = nn.Linear(2, 3)
    >>> counts = class_counts(model, torch.rand(4, 2), sigma=[0.1, 0.5], n=[10, 100], seed=0)
    >>> counts.shape, counts.sum(-1)[0, :, 0].tolist()
    ((2, 2, 4, 3), [10, 100])
    """
    sigmas, prefixes = _checked_sigmas(sigma), _checked_prefixes(n)
    own_dtype = _check_points(model, x)
    keys = _point_keys(x, ids, seed)
    order = sorted(set(prefixes))
    edges = torch.tensor(order, device=x.device)
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be a whole number of 1 or more, got {batch_size!r}")

    counts: Tensor | None = None  # (S, N segments, B, C), made when the first logits tell C
    total = len(x) * order[-1] * len(sigmas)
    with (
        evaluating(model),
        bar(total=total, desc="W", unit="image", unit_scale=True, show=progress) as shown,
    ):
        network, usual, _ = prepare(model, x[:1].to(own_dtype), engine=engine, dtype=dtype)
        for batch in _batches(keys, order[-1], x, batch_size or usual):
            segment = torch.bucketize(batch.sample, edges, right=True)  # between which two prefixes a sample lies
            images = x[batch.point]
            for s, level in enumerate(sigmas):
                logits = network(torch.add(images, batch.noise, alpha=level).to(own_dtype))
                labels = _labels(logits, len(images))
                if counts is None:
                    counts = torch.zeros(len(sigmas), len(order), len(x), logits.shape[1], dtype=torch.int64, device=x.device)
                counts[s].index_put_((segment, batch.point, labels), torch.ones_like(labels), accumulate=True)
                shown.update(len(images))
    assert counts is not None  # a batch of at least one point has at least one sample
    nested = counts.cumsum(1).cpu().numpy()[:, [order.index(m) for m in prefixes]]
    return nested[:, 0] if np.ndim(n) == 0 else nested


def standard_noise(x: Tensor, n: int, *, seed: int, ids: Sequence[Hashable] | None = None) -> Tensor:
    """The standard normal noise that :func:`class_counts` multiplies with sigma and adds to each image.

    Parameters
    ----------
    x : float32 Tensor, shape (B, ...)
    n : int
        Samples for each image.
    seed, ids
        As for :func:`class_counts`.

    Returns
    -------
    float32 Tensor, shape (B, n, ...)

    >>> x = torch.rand(2, 3)
    >>> bool((standard_noise(x, 1000, seed=0)[:, :250] == standard_noise(x, 250, seed=0)).all())
    True
    """
    (samples,) = _checked_prefixes(n)
    blocks = math.ceil(samples / BLOCK)
    drawn = [torch.cat([_block(key, b, x) for b in range(blocks)])[:samples] for key in _point_keys(x, ids, seed)]
    return torch.stack(drawn)


class _Batch(NamedTuple):
    point: Tensor  # (b,) which image a noisy copy belongs to
    sample: Tensor  # (b,) its number among the copies of that image
    noise: Tensor  # (b, ...) standard normal


def _batches(keys: Sequence[int], n: int, x: Tensor, batch_size: int) -> Iterator[_Batch]:
    """All samples of all points, block after block, in forward passes of about ``batch_size``."""
    per_pass = max(1, batch_size // min(n, BLOCK))
    work = itertools.product(range(len(keys)), range(0, n, BLOCK))
    while chunk := list(itertools.islice(work, per_pass)):
        rows = [min(BLOCK, n - first) for _, first in chunk]
        yield _Batch(
            torch.tensor([p for p, _ in chunk]).repeat_interleave(torch.tensor(rows)).to(x.device),
            torch.cat([torch.arange(first, first + r) for (_, first), r in zip(chunk, rows, strict=True)]).to(x.device),
            torch.cat([_block(keys[p], first // BLOCK, x)[:r] for (p, first), r in zip(chunk, rows, strict=True)]),
        )


def _block(key: int, block: int, x: Tensor) -> Tensor:
    """The standard normal noise of one block of one point, shape (BLOCK, ...); a function of its key and the kind of device."""
    shape = (BLOCK, *x.shape[1:])
    size = math.prod(shape)
    if x.device.type == "cuda":
        keyed = hashlib.blake2b(block.to_bytes(8, "big"), key=key.to_bytes(16, "big"), digest_size=8).digest()
        generator = torch.Generator(x.device).manual_seed(int.from_bytes(keyed, "big", signed=True))
        return torch.randn(size, generator=generator, device=x.device).view(shape)
    # torch's generator on the CPU would use only 32 of its seed's 64 bits, which lets streams collide; numpy's takes all 128
    # bits of the key, and Box and Muller's transform of its raw output is as fast as torch.randn.
    raw = np.random.SFC64(np.random.SeedSequence([key, block])).random_raw(size // 2)
    bits = torch.from_numpy(raw.view(np.int32)).view(2, -1)
    uniform = bits[0].mul(2.0**-32).add_(0.5).clamp_(min=2.0**-26)  # in (0, 1]: its logarithm is finite
    radius = uniform.log_().mul_(-2).sqrt_()
    angle = bits[1].mul(2 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()]).view(shape).to(x.device)


def _point_keys(x: Tensor, ids: Sequence[Hashable] | None, seed: int) -> list[int]:
    """128 bits for each point, from the seed and from the point's id or pixels."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    if ids is None:
        pixels = (x.detach() + 0.0).cpu().contiguous().numpy()  # + 0.0: a negative zero is the same pixel
        names = [b"pixels" + image.tobytes() for image in pixels]
    else:
        if len(ids) != len(x):
            raise ValueError(f"ids must name each of the {len(x)} images, got {len(ids)} ids")
        wrong = next((i for i in ids if not isinstance(i, (int, str, np.integer))), None)
        if wrong is not None:
            raise ValueError(f"ids must be ints or strings, got {wrong!r} of type {type(wrong).__name__}")
        names = [f"{'str' if isinstance(i, str) else 'int'}:{i}".encode() for i in ids]
    person = hashlib.blake2b(str(int(seed)).encode(), digest_size=16).digest()
    return [int.from_bytes(hashlib.blake2b(name, person=person, digest_size=16).digest(), "big") for name in names]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode it was in.

    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     inside = model.training
    >>> inside, model.training
    (False, True)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _labels(logits: Tensor, images: int) -> Tensor:
    """The predicted classes (Eq. 1), shape (b,)."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model must return logits, a tensor of shape (b, C), got {type(logits).__name__}: wrap it in one that does"
        )
    if logits.ndim != 2 or len(logits) != images or logits.shape[1] < 1:
        raise ValueError(f"the model must map {images} images to logits of shape ({images}, C), got {tuple(logits.shape)}")
    if logits.isnan().any():
        raise ValueError("the model's logits hold NaN: it may have diverged in training, or its precision is too low")
    return logits.argmax(1)


def _checked_sigmas(sigma: float | Sequence[float]) -> list[float]:
    if np.ndim(sigma) > 1:
        raise ValueError(f"sigma must be a number or a flat sequence, got {np.ndim(sigma)} dimensions")
    try:
        sigmas = [float(s) for s in np.atleast_1d(np.asarray(sigma, dtype=float))]
    except OverflowError:
        sigmas = [math.inf]
    if not sigmas:
        raise ValueError("sigma must be a number or a sequence of at least one, got an empty sequence")
    for s in sigmas:
        if not 0 <= s <= torch.finfo(torch.float32).max:
            raise ValueError(f"sigma must be a finite number of 0 or more, got {s}")
    return sigmas


def _checked_prefixes(n: int | Sequence[int]) -> list[int]:
    values = np.atleast_1d(np.asarray(n)).tolist()
    if not values:
        raise ValueError("n must be a whole number or a sequence of at least one, got an empty sequence")
    for m in values:
        if isinstance(m, bool) or not isinstance(m, int) or m < 1:
            raise ValueError(f"n must be a whole number of 1 or more, got {m!r}")
    return values


def _check_points(model: nn.Module, x: Tensor) -> torch.dtype:
    """Refuse what cannot be measured; return the dtype that the model computes in."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a float32 tensor of shape (B, ...), got {type(x).__name__}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must be a batch of shape (B, ...) with at least one image, got shape {tuple(x.shape)}")
    if x.dtype != torch.float32:
        hint = "divide by 255 first" if x.dtype == torch.uint8 else "call x.float() first"
        raise ValueError(f"x must be float32 with features in [0, 1], got {x.dtype}: {hint}")
    check_inputs(model, x)
    state = itertools.chain(model.parameters(), model.buffers())
    return next((t.dtype for t in state if t.is_floating_point()), x.dtype)


def check_inputs(model: nn.Module, *batches: Tensor) -> None:
    """Refuse batches that are not float or not finite, or lie on another device than the model; a ValueError says which.

    >>> check_inputs(nn.Linear(2, 1), torch.tensor([[0.0, math.nan]]))
    Traceback (most recent call last):
    ValueError: x must be finite, got NaN or infinity among its features
    """
    state = next(itertools.chain(model.parameters(), model.buffers()), None)
    for x in batches:
        if not x.is_floating_point():
            raise ValueError(f"x must be float with features in [0, 1], got {x.dtype}")
        if state is not None and state.device != x.device:
            raise ValueError(f"x and the model must be on one device, got x on {x.device}, the model on {state.device}")
        if not x.isfinite().all():
            raise ValueError("x must be finite, got NaN or infinity among its features")
