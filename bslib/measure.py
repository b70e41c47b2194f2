r"""The wobbliness W of a classifier around a point (Eqs. 1 and 2 of the paper), for any network.

A point x is copied n times. Independent isotropic Gaussian noise is added to each copy (in pixel space, never clipped), and the
network classifies the copies (Eq. 1). The *class counts*, how often each class is predicted, approximate the smoothed classifier
(Eq. 2). W is the entropy of these frequencies (Eq. 3, :mod:`bslib.entropy`). W is 0 where noise never changes the prediction.

The noise of a point depends only on the seed and on the point. Results therefore do not depend on the order of the points, on the
rest of the batch, on the chunk size or on the number of sigmas. Noise is drawn in blocks of 64 samples, each from its own
generator keyed on (seed, point, block). The first 250 of 1,000 samples therefore give the n = 250 result. All sigmas share one
standard normal draw, so curves over sigma are paired.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bslib.calling import (
    DEPENDS,
    check_alone,
    check_batch,
    check_counts,
    check_logits,
    check_points,
    dtype_of,
    evaluating,
    same_logits,
)
from bslib.engine import CHECKED, Compiled, NearTieFallback, compile_for_inference
from bslib.entropy import entropy
from bslib.progress import bar

__all__ = ["class_counts", "counts_and_engine", "predict", "standard_noise", "wobbliness"]

#: Samples in a block of noise. Changing this number changes the noise of every seed.
BLOCK = 64
#: After the first batch, a converted network is compared with the model on one image in so many.
ONE_IN = 256
#: The largest n: the records' counts have 32 bits.
MOST_COPIES = 2**31 - 1
#: Noise values transformed in one pass, few enough to stay in the processor's cache.
TOGETHER = 2**16


def wobbliness(
    model: nn.Module,
    x: Tensor,
    sigma: float | Sequence[float] = 0.1,
    n: int | Sequence[int] = 250,
    *,
    seed: int = 0,
    estimator: str = "plug-in",
    ids: Sequence[Hashable] | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    output: str | int | None = None,
    stochastic: bool = False,
    progress: bool = True,
) -> NDArray[np.float64]:
    """Compute W around each image of a batch (Eqs. 1 to 3); it is 0 where noise never changes the predicted class.

    Noise is added to the images as given. If the model needs normalised images, include the normalisation in the model, as in
    ``nn.Sequential(torchvision.transforms.v2.Normalize(mean, std), model)``. Otherwise sigma's unit differs between channels.

    Parameters
    ----------
    model, x, seed, ids, mask, dtype, batch_size, engine, output, stochastic, progress
        As for :func:`class_counts`.
    sigma : float or sequence of S floats
        Standard deviation of the noise, in units of the features.
    n : int or sequence of N ints
        Number of noisy copies of each image.
    estimator : {"plug-in", "miller-madow", "grassberger"}
        Entropy estimator. The paper uses the first.

    Returns
    -------
    ndarray of float, shape (B,), (S, B), (N, B) or (S, N, B)
        Axes: sigma (if a sequence), n (if a sequence), images.

    Raises
    ------
    ValueError
        As for :func:`class_counts`; also for an unknown estimator.

    >>> model = nn.Linear(2, 2)
    >>> W = wobbliness(model, torch.rand(3, 2), sigma=[0.1, 0.2])
    >>> W.shape, bool((W >= 0).all()), bool((W <= math.log(2)).all())
    ((2, 3), True, True)
    """
    how: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size, "engine": engine, "output": output, "stochastic": stochastic}
    counts = class_counts(model, x, sigma, n, seed=seed, ids=ids, mask=mask, progress=progress, **how)
    return entropy(counts[0] if np.ndim(sigma) == 0 else counts, estimator=estimator)


def class_counts(
    model: nn.Module,
    x: Tensor,
    sigma: float | Sequence[float],
    n: int | Sequence[int] = 250,
    *,
    seed: int,
    ids: Sequence[Hashable] | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    output: str | int | None = None,
    stochastic: bool = False,
    progress: bool = True,
) -> NDArray[np.int64]:
    r"""Count how often each class is predicted over n noisy copies of each image (Eqs. 1 and 2).

    .. math:: \text{counts}_k(x) = \sum_{i=1}^n f_k(x + \sigma z_i), \qquad z_i \sim \mathcal N(0, I)

    The noise of an image is a function of the seed and of its pixels (or id), on CPUs and on GPUs of one model. The counts
    therefore do not depend on ``batch_size``, ``engine``, the number of threads, the order of the images, the other images,
    sigmas and n in the call, or torch's settings, except where rounding decides between two logits.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (b, ...) to logits (b, C), or to an object, tuple or mapping that holds them. A single logit counts as two classes
        with the threshold at 0. The model runs in eval mode; its training modes are restored afterwards. One thread of a process
        measures at a time; others wait. The output for an image must be deterministic and independent of the rest of the batch;
        chance that shows in fewer than one of fifty calls, or that comes from a generator of the model's own, may pass unseen.
    x : float32 Tensor, shape (B, ...)
        Images or other points, on the model's device. Features usually lie in [0, 1], the range that sigma refers to.
    sigma : float or sequence of S floats
        Standard deviation of the noise, in units of the features.
    n : int or sequence of N ints
        Number of noisy copies of each image. A sequence gives the counts of each prefix of one run of ``max(n)`` copies.
    seed : int
        Seed of the noise.
    ids : sequence of B hashables, optional
        Keys of each image's noise, ints or strings; by default its float32 pixels. A clean image and its triggered copy get the
        same noise if they have the same id.
    mask : bool Tensor, shape (...), optional
        Where noise is added; the other features stay as they are. The noise is that of the call without a mask, so results are
        paired. Everywhere by default.
    dtype : torch.dtype, optional
        Precision of the forward passes. The default is bfloat16 with near ties in float32 where the hardware multiplies in
        bfloat16 (:class:`bslib.engine.NearTieFallback`); this gives the labels of float32. ``torch.float32`` uses float32 only.
    batch_size : int, optional
        Most noisy copies in a forward pass of the model; above 64, whole blocks of 64. A converted network takes 64 at a time.
        The default on a CPU is 64 to 4,096, depending on the image size. Memory grows with the batch size and the result (8 bytes
        for each of S * N * B * C counts), but not with n.
    engine : {"auto", "openvino", "eager"}
        Runs the forward passes (see :func:`bslib.engine.compile_for_inference`). On a CPU, "auto" converts the network to
        OpenVINO if it is installed and the expected saving exceeds the cost of the conversion. Otherwise it runs unconverted.
    output : str or int, optional
        Which entry or attribute holds the logits, if the model returns a tuple, a mapping or an object.
    stochastic : bool
        Accept a model whose output is random or depends on the rest of the batch. The counts are then one random draw.
    progress : bool
        Show a progress bar when the run takes longer than two seconds.

    Returns
    -------
    ndarray of int64, shape (S, B, C), or (S, N, B, C) where n is a sequence
        Sums to n over the last axis. S is 1 for a single sigma.

    Raises
    ------
    ValueError
        If sigma is negative or not finite, n is below 1, the batch is empty, x is not float32, is not finite or is on another
        device than the model, ids or mask do not fit, the engine is unknown, or the model's output is not (b, C), contains NaN or
        differs between evaluations of the same image, with the rest of the batch or with what was seen before. The message names
        the value received.

    Warns
    -----
    UserWarning
        If features of images lie far outside [0, 1], the range that sigma refers to; if a converted network or one in bfloat16
        gives other logits than the model for some of the images. All counts are then counted in float32, by the model itself if
        need be.

    >>> model = nn.Linear(2, 3)
    >>> counts = class_counts(model, torch.rand(4, 2), sigma=[0.1, 0.5], n=[10, 100], seed=0)
    >>> counts.shape, counts.sum(-1)[0, :, 0].tolist()
    ((2, 2, 4, 3), [10, 100])
    """
    how: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size, "engine": engine, "output": output, "stochastic": stochastic}
    return counts_and_engine(model, x, sigma, n, seed=seed, ids=ids, mask=mask, progress=progress, **how)[0]


def counts_and_engine(
    model: nn.Module,
    x: Tensor,
    sigma: float | Sequence[float],
    n: int | Sequence[int],
    *,
    seed: int,
    ids: Sequence[Hashable] | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    output: str | int | None = None,
    stochastic: bool = False,
    progress: bool = True,
) -> tuple[NDArray[np.int64], str]:
    """Return :func:`class_counts` and, for the provenance of a record, what ran the forward passes in words.

    >>> counts_and_engine(nn.Linear(2, 3), torch.rand(4, 2), 0.1, 10, seed=0)[1]
    'eager, float32: the work is short'
    """
    sigmas, prefixes = _checked_sigmas(sigma), _checked_prefixes(n)
    check_points(model, x)
    keys = _point_keys(x, ids, seed)
    if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == x.shape[1:]):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a tensor, bool of shape {tuple(x.shape[1:])}, got {got}")
    order = sorted(set(prefixes))
    edges = torch.tensor(order, device=x.device)
    if batch_size is not None:
        check_counts(batch_size=batch_size)

    counts: Tensor | None = None  # (S, N segments, B, C), allocated when the first logits give C
    total = len(x) * order[-1] * len(sigmas)
    shown = bar(total=total, desc="W", unit="image", unit_scale=True, show=progress)
    with shown, evaluating(model, output) as network, _failures_named(x):
        compiled = compile_for_inference(network, x, engine=engine, dtype=dtype, passes=total, stochastic=stochastic)
        while counts is None:  # once more where a conversion was given up, since its earlier counts may be wrong as well
            for s, batch, noisy in _noisy(x, keys, order[-1], sigmas, mask, batch_size or compiled.batch_size):
                if counts is None and not stochastic:
                    extremes, answers = check_alone(network, noisy.to(dtype_of(model, noisy)))
                    if compiled.own is not None:
                        compiled = compiled.checked(extremes, _passed(compiled, extremes, batch_size), len(extremes))
                some = min(CHECKED, batch_size or CHECKED) if counts is None else math.ceil(len(noisy) / ONE_IN)
                compiled, logits = _checked_logits(compiled, noisy, some, batch_size, stochastic=stochastic)
                if logits is None:
                    counts = None
                    shown.reset()
                    break
                labels = _labels(logits)
                if counts is None:
                    counts = torch.zeros(len(sigmas), len(order), len(x), logits.shape[1], dtype=torch.int64, device=x.device)
                segment = torch.bucketize(batch.sample, edges, right=True)  # the first prefix that includes each sample
                counts[s].index_put_((segment, batch.point, labels), torch.ones_like(labels), accumulate=True)
                shown.update(len(noisy))
        if not stochastic and not same_logits(answers, network(extremes), DEPENDS):
            raise ValueError("the model answers the same image differently after the measurement: it remembers what it has seen")
    for k in range(1, len(order)):  # cumulative, in place: with many points and classes, a copy would need the most memory
        counts[:, k] += counts[:, k - 1]
    nested = counts.cpu().numpy()
    if prefixes != order:
        nested = nested[:, [order.index(m) for m in prefixes]]
    return nested[:, 0] if np.ndim(n) == 0 else nested, compiled.what


def predict(model: nn.Module, x: Tensor) -> NDArray[np.int64]:
    """Predict the classes (B,) of a batch without noise, in float32 or in the model's own precision.

    >>> predict(nn.Identity(), torch.tensor([[0.2, 0.8], [0.9, 0.1]])).tolist()
    [1, 0]
    """
    check_points(model, x)
    with evaluating(model) as network, _failures_named(x):
        dtype = torch.float32 if dtype_of(model, x) == torch.float32 else None
        compiled, found = compile_for_inference(network, x, dtype=dtype, passes=len(x)), list[Tensor]()
        parts = x.split(compiled.batch_size)
        while len(found) < len(parts):
            compiled, logits = _checked_logits(compiled, parts[len(found)], 1 if found else CHECKED)
            if logits is None:
                found.clear()
                continue
            found.append(_labels(logits))
        return torch.cat(found).cpu().numpy()


def standard_noise(x: Tensor, n: int, *, seed: int, ids: Sequence[Hashable] | None = None) -> Tensor:
    """Return the standard normal noise that :func:`class_counts` multiplies by sigma and adds to n copies of each image.

    The parameters are as there. The noise is float32, of shape (B, n, ...).

    >>> x = torch.rand(2, 3)
    >>> bool((standard_noise(x, 1000, seed=0)[:, :250] == standard_noise(x, 250, seed=0)).all())
    True
    """
    check_counts(n=n)
    blocks = math.ceil(n / BLOCK)
    drawn = [_blocks([(key, b) for b in range(blocks)], x).flatten(0, 1)[:n] for key in _point_keys(x, ids, seed)]
    return torch.stack(drawn)


class _Batch(NamedTuple):
    point: Tensor  # (b,) index of the image of each noisy copy
    sample: Tensor  # (b,) index of the noisy copy among those of its image
    noise: Tensor  # (b, ...) standard normal


def _batches(keys: Sequence[int], n: int, x: Tensor, batch_size: int) -> Iterator[_Batch]:
    """Yield all samples of all points, block by block, in batches of about ``batch_size``."""
    per_pass = max(1, batch_size // min(n, BLOCK))
    firsts = range(0, n, BLOCK)
    for start in range(0, len(keys) * len(firsts), per_pass):
        blocks = np.arange(start, min(start + per_pass, len(keys) * len(firsts)))
        of_block, first = blocks // len(firsts), blocks % len(firsts) * BLOCK
        samples = first[:, None] + np.arange(BLOCK)
        wanted = torch.from_numpy(samples < n)
        noise = _blocks([(keys[p], f // BLOCK) for p, f in zip(of_block.tolist(), first.tolist(), strict=True)], x)
        yield _Batch(
            torch.from_numpy(np.broadcast_to(of_block[:, None], samples.shape).copy())[wanted].to(x.device),
            torch.from_numpy(samples)[wanted].to(x.device),
            noise.flatten(0, 1) if wanted.all() else noise[wanted.to(x.device)],
        )


def _noisy(
    x: Tensor, keys: Sequence[int], n: int, sigmas: Sequence[float], mask: Tensor | None, batch_size: int
) -> Iterator[tuple[int, _Batch, Tensor]]:
    """Yield the index of a sigma, a batch of samples and the noisy images; of each batch, the images with most noise first."""
    widest_first = sorted(range(len(sigmas)), key=sigmas.__getitem__, reverse=True)
    for batch in _batches(keys, n, x, batch_size):
        noise = batch.noise if mask is None else batch.noise * mask.to(x.device)
        images = x[batch.point]
        for s in widest_first:
            yield s, batch, torch.add(images, noise, alpha=sigmas[s])


def _blocks(blocks: Sequence[tuple[int, int]], x: Tensor) -> Tensor:
    """Draw the standard normal noise of (key, number) blocks, shape (blocks, BLOCK, ...); a function of them and the device."""
    shape = (BLOCK, *x.shape[1:])
    size = math.prod(shape)
    if x.device.type == "cuda":
        return torch.stack([_block_on_gpu(key, block, shape, x.device) for key, block in blocks])
    # torch's CPU generator uses only 32 of its seed's 64 bits, so streams could collide. numpy's generator uses all 128 bits of
    # the key, and the Box-Muller transform of its raw output is as fast as torch.randn.
    raw = np.empty((len(blocks), size // 2), np.uint64)
    for row, keyed in zip(raw, blocks, strict=True):
        row[:] = np.random.SFC64(np.random.SeedSequence(keyed)).random_raw(size // 2)
    noise = torch.empty(len(blocks), size, dtype=torch.float32, device="cpu")
    together = max(1, TOGETHER // size)  # many small blocks in one pass, or one pass for each large block
    for some, out in zip(torch.from_numpy(raw.view(np.int32)).split(together), noise.split(together), strict=True):
        bits = some.view(len(some), 2, -1).to(torch.float32)  # explicit: the user may have changed torch's default dtype
        uniform = bits[:, 0].mul(2.0**-32).add_(0.5).clamp_(min=2.0**-26)  # in (0, 1], so that the logarithm is finite
        radius, angle = uniform.log_().mul_(-2).sqrt_(), bits[:, 1].mul(2 * math.pi * 2.0**-32)
        torch.mul(radius, angle.cos(), out=out[:, : size // 2])
        torch.mul(radius, angle.sin_(), out=out[:, size // 2 :])
    return noise.view(len(blocks), *shape).to(x.device)


def _block_on_gpu(key: int, block: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    keyed = hashlib.blake2b(block.to_bytes(8, "big"), key=key.to_bytes(16, "big"), digest_size=8).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(keyed, "big", signed=True))
    return torch.randn(math.prod(shape), generator=generator, device=device, dtype=torch.float32).view(shape)


def _point_keys(x: Tensor, ids: Sequence[Hashable] | None, seed: int) -> list[int]:
    """Hash the seed and each point's id or pixels to a 128-bit key."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    ids = ids.tolist() if isinstance(ids, Tensor) else ids
    if ids is None:
        pixels = (x.detach().float() + 0.0).cpu().contiguous().numpy()  # + 0.0 turns -0.0 into 0.0, the same pixel
        names = [b"pixels" + image.tobytes() for image in pixels]
    else:
        if not isinstance(ids, Sequence | np.ndarray):
            raise ValueError(f"ids must be a sequence of ints or strings, got {type(ids).__name__}")
        if len(ids) != len(x):
            raise ValueError(f"ids must name each of the {len(x)} images, got {len(ids)} ids")
        for wrong in (i for i in ids if not isinstance(i, (int, str, np.integer))):
            raise ValueError(f"ids must be ints or strings, got {wrong!r} of type {type(wrong).__name__}")
        names = [f"{'str' if isinstance(i, str) else 'int'}:{i}".encode() for i in ids]
    person = hashlib.blake2b(str(int(seed)).encode(), digest_size=16).digest()
    return [int.from_bytes(hashlib.blake2b(name, person=person, digest_size=16).digest(), "big") for name in names]


@contextlib.contextmanager
def _failures_named(x: Tensor) -> Iterator[None]:
    """Raise a ValueError of one line where a model fails, as on features outside [0, 1] or where a batch is too large for it."""
    try:
        yield
    except (ValueError, Warning, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as problem:  # user code may raise any exception
        reason = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
        hint = "noise takes features out of [0, 1], and batches are large unless batch_size=64"
        raise ValueError(f"the model fails on batches of images of shape {tuple(x.shape[1:])}: {reason} ({hint})") from problem


def _checked_logits(
    compiled: Compiled, images: Tensor, some: int, most: int | None = None, *, stochastic: bool = False
) -> tuple[Compiled, Tensor | None]:
    """Return what to go on with and its logits for a batch, at most ``some`` of them compared with the model's.

    None in place of logits means that those of earlier batches may be wrong as well. A forward pass has at most ``most`` images.
    """
    logits = _passed(compiled, images, most)
    kept = compiled.checked(images, logits, some)
    if kept is not compiled:
        if not isinstance(kept.network, NearTieFallback):
            return kept, None
        logits = _passed(kept, images, most)  # errors are larger here, but changed no label that was compared
    if not stochastic and kept.own is None:  # a conversion was compared with a small batch of the model's
        check_batch(kept.network, images, logits, some, kept.dtype)
    return kept, logits


def _passed(compiled: Compiled, images: Tensor, most: int | None) -> Tensor:
    """The logits of images, which a block of noise makes more than the largest batch that the user wants."""
    return torch.cat([compiled.network(part) for part in images.split(int(most or len(images)))])


def _labels(logits: Tensor) -> Tensor:
    """The predicted classes (Eq. 1), shape (b,)."""
    check_logits(logits)
    return logits.argmax(1)


def _checked_sigmas(sigma: float | Sequence[float]) -> list[float]:
    if isinstance(sigma, str | bool):
        raise ValueError(f"sigma must be a number or a sequence of numbers, got {sigma!r}")
    try:
        values = np.atleast_1d(np.asarray(sigma, dtype=float))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"sigma must be a number or a sequence of numbers, got {sigma!r}") from None
    if values.ndim > 1 or not values.size:
        raise ValueError(f"sigma must be a number or a flat sequence of at least one, got shape {values.shape}")
    sigmas: list[float] = values.tolist()
    for s in sigmas:
        if not 0 <= s <= torch.finfo(torch.float32).max:
            raise ValueError(f"sigma must be a finite number of 0 or more, got {s}")
    return sigmas


def _checked_prefixes(n: int | Sequence[int]) -> list[int]:
    try:
        values = np.atleast_1d(np.asarray(n)).tolist()
    except ValueError:
        raise ValueError(f"n must be a whole number or a flat sequence of them, got {n!r}") from None
    if not values:
        raise ValueError("n must be a whole number or a sequence of at least one, got an empty sequence")
    for m in values:
        check_counts(n=m)
        if m > MOST_COPIES:
            raise ValueError(f"n must be at most {MOST_COPIES:,}, got {m:,}")
    return values
