r"""Fast forward passes: OpenVINO on a CPU, a copy with folded batch norms on a GPU.

Forward passes are almost the whole cost of W, so converting the network pays off for long computations.
:func:`compile_for_inference` decides whether to convert, compares the converted network's logits with the model's own, and
describes the engine in words for the records.

Where the hardware multiplies in bfloat16, the forward passes run in bfloat16. Images whose two largest logits are nearly tied are
re-evaluated in float32 (:class:`NearTieFallback`). The labels are therefore those of float32.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bslib.calling import HOOKS, Logits, check_model, digest_of, dtype_of, same_logits, trial_images, warn_caller

__all__ = ["ENGINES", "Compiled", "NearTieFallback", "compile_for_inference", "fast_dtype", "import_openvino"]

#: The choices of ``engine``.
ENGINES = ("auto", "openvino", "eager")
#: Images in a pass of a converted network, on a CPU (the fastest of 64, 128 and 256 on two cores) and on a GPU.
BATCH, BATCH_ON_GPU = 64, 1024
#: Largest accepted difference between the logits of a converted network and of the model, relative to the largest logit.
LOGIT_TOLERANCE = 1e-3
#: Two logits are nearly tied if they are closer than this many units in the last place of the lower precision.
NEAR_TIE_ULPS = 6
#: Approximate duration of a conversion: seconds, plus seconds for each module (measured with torchvision's networks).
CONVERSION = (1.0, 0.03)
#: On so many images of the first batch, a converted network is compared with the model, and a large batch with a small one.
CHECKED = 16
#: Operations on floats whose result jumps when a value changes a little, besides those that return whole numbers or truths.
STEPS = {"ceil", "floor", "floor_divide", "fmod", "heaviside", "remainder", "round", "sign", "threshold", "trunc"}
#: A pass that takes longer than this many seconds is timed only once.
PATIENCE = 0.2
#: Smallest fraction of the eager time that a conversion saves, in bfloat16 and in float32.
SAVED = {torch.bfloat16: 0.5, torch.float32: 0.1}


#: Maps float32 images (b, ...) to logits (b, C).
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Compiled:
    """A network prepared for many forward passes, valid inside the context of :func:`bslib.calling.evaluating`."""

    network: Forward
    #: Precision of most of the passes.
    dtype: torch.dtype
    #: Number of images to pass at a time.
    batch_size: int
    #: The engine in words.
    what: str
    #: The model itself, if ``network`` is a conversion of it or runs in lower precision.
    own: Forward | None = None

    def checked(self, images: Tensor, logits: Tensor, most: int) -> Compiled:
        """Return this if its logits for at most so many of the images are the model's, else what to go on with.

        That is the same with larger near ties; or, with a warning, the conversion in float32 or the model itself, and then what
        was computed before may be wrong. Trial images lie in [0, 1]. Other images, such as the rows of a table, may reach parts
        of a network that these do not.
        """
        if self.own is None:
            return self
        some = slice(None, None, math.ceil(len(images) / most))
        images, every, wanted = images[some], logits.float(), self.own(images[some]).float()
        found = every[some]
        if isinstance(self.network, NearTieFallback):
            fallback = self.network.judged(found, wanted)
            if fallback is not None:
                return self if fallback is self.network else replace(self, network=fallback)
            warn_caller(f"{self.what}: large rounding errors for these images, so float32 is used, as with dtype=torch.float32")
            exact, what = self.network.exact, f"{self.what}, then float32: large rounding errors"
            kept = replace(self, network=exact, dtype=torch.float32, what=what, own=None if exact is self.own else self.own)
            return kept.checked(images, exact(images), most)
        if same_logits(found, wanted, LOGIT_TOLERANCE, among=every):
            return self
        remedy = "as with engine='eager', dtype=torch.float32"
        warn_caller(f"{self.what}: other logits than the model's for these images, so the model runs as it is, {remedy}")
        return replace(
            self, network=self.own, dtype=torch.float32, what=f"{self.what}, then eager, float32: other logits", own=None
        )


def compile_for_inference(
    network: Logits,
    x: Tensor,
    *,
    engine: str = "auto",
    dtype: torch.dtype | None = None,
    passes: int | None = None,
    stochastic: bool = False,
) -> Compiled:
    """Check a network, and convert it to a faster engine if the computation is long enough to pay for the conversion.

    The result is cached for the next call with the same network (weights, plain attributes, hooks), number of threads and input
    shape.

    Parameters
    ----------
    network : Logits
        From :func:`bslib.calling.evaluating`, within its context.
    x : float32 Tensor, shape (B, ...)
        Example of the input. Only its shape and device are used, never its values.
    engine : {"auto", "openvino", "eager"}
        "auto" uses OpenVINO on a CPU and a copy with folded batch norms on a GPU. It runs the model unconverted if the expected
        saving on ``passes`` images, from timing a few, is below the cost of conversion, or if the conversion fails, changes the
        logits or is no faster. "openvino" converts at any cost or raises an error; "eager" never converts.
    dtype : torch.dtype, optional
        Precision of the passes. The default is bfloat16 with near ties in float32, if the hardware multiplies in bfloat16,
        rounding errors are far below a near tie and no operation jumps, as comparisons do; otherwise float32. A model in float64
        runs in float64. A model in half precision has its near ties evaluated in float32, if a copy of it runs in float32.
    passes : int, optional
        Total number of images that will be evaluated. The default assumes many.
    stochastic : bool
        The network's output is random. It runs unconverted.

    Raises
    ------
    ValueError
        As for :func:`bslib.calling.check_model`; also for an unknown engine or dtype, or for "openvino" if it cannot run the
        model, which must be in float32 and not stochastic.

    >>> from bslib.calling import evaluating
    >>> with evaluating(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))) as network:
    ...     compile_for_inference(network, torch.rand(2, 1, 2, 2), passes=1000).what
    'eager, float32: the work is short'
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    own = dtype_of(network.model, x)
    if engine == "openvino" and (stochastic or own != torch.float32):
        got = "a stochastic one" if stochastic else f"one in {own}"
        raise ValueError(f"engine {engine!r} runs deterministic models in float32, got {got}: use engine='auto'")
    wanted = _precision(own, dtype, x.device)
    candidate = _Candidate(network, x, own, wanted, by_default=dtype is None, trial=trial_images(x).to(own))
    kept = _kept_for(network.model, (x.shape[1:], x.device, torch.get_num_threads(), digest_of(network.model)))
    key = (engine, dtype, stochastic, network.output)
    known = kept.get(key)
    if known is None or not same_logits(known.logits, network(candidate.trial), 1e-5):
        known = _Known(check_model(network, candidate.trial, stochastic=stochastic))
    if stochastic or own != torch.float32 or engine == "eager":
        exactly = stochastic or (own == torch.float32 and candidate.is_short(known, passes))
        compiled = candidate.eager(known, "the network is stochastic" if stochastic else "", exactly=exactly)
    elif known.converted is not None:
        compiled = known.converted
        if isinstance(compiled.network, NearTieFallback):
            compiled.network.seen = compiled.network.near = 0  # the new images may have fewer near ties
    elif engine == "auto" and (known.unsuitable or candidate.is_short(known, passes)):
        compiled = candidate.eager(known, known.unsuitable or "the work is short", exactly=not known.unsuitable)
    else:
        try:
            compiled = known.converted = candidate.converted(engine, known)
        except _Unsuitable as reason:
            if engine != "auto":
                raise ValueError(f"engine {engine!r} was asked for, and cannot run this model: {reason}") from None
            known.unsuitable = str(reason)
            compiled = candidate.eager(known, known.unsuitable)
    kept[key] = known
    changed = compiled is known.converted or isinstance(compiled.network, NearTieFallback)
    watched = network if changed and own == torch.float32 and not stochastic else None
    return replace(compiled, own=watched)


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies in bfloat16, float32 elsewhere.

    >>> fast_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
    True
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capable = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if capable else torch.float32


def _precision(own: torch.dtype, asked: torch.dtype | None, device: torch.device) -> torch.dtype:
    if asked is None:
        return fast_dtype(device) if own == torch.float32 else own
    allowed = {torch.float32: (torch.float32, torch.bfloat16, torch.float16), torch.float64: (torch.float64,)}
    if asked not in allowed.get(own, (own, torch.float32)):
        raise ValueError(f"dtype must be the model's own ({own}), or for one in float32 bfloat16 or float16, got {asked!r}")
    return asked


@dataclass
class NearTieFallback:
    """Compute logits in low precision, and re-evaluate images whose two largest logits are nearly tied in float32.

    Rounding therefore decides very few labels. If most images are nearly tied, the remaining batches run in float32 only. A near
    tie is a difference below 6 units in the last place of the largest logit (0.047 of it in bfloat16), or below four times the
    largest rounding error on trial images, which matters where logits cancel. On 57,800 noisy images, with the paper's three
    networks and torch's autocast, no label changed whose logits differed by more than 0.021 of the largest.

    Parameters
    ----------
    quick, exact : callable
        Map images (b, ...) to logits (b, C), in low precision and in float32.
    dtype : torch.dtype
        The low precision.
    error : float
        Largest rounding error of a logit that is expected, from trial images and from those that :meth:`judged` has seen.

    >>> fallback = NearTieFallback(nn.Identity(), nn.Identity(), torch.bfloat16)
    >>> fallback.near_ties(torch.tensor([[9.0, 8.9], [9.0, 1.0]])).tolist()
    [True, False]
    """

    quick: Forward
    exact: Forward
    dtype: torch.dtype
    error: float = 0.0
    seen: int = 0
    near: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Map float32 images (b, ...) to float32 logits (b, C)."""
        if self.seen > 512 and self.near > self.seen / 2:
            return self.exact(x)
        logits = self.quick(x).float()
        near = self.near_ties(logits)
        count = int(near.sum())
        self.seen, self.near = self.seen + len(x), self.near + count
        if count:
            logits[near] = self.exact(x[near]).float()
        return logits

    def near_ties(self, logits: Tensor) -> Tensor:
        """Return which of the low-precision logits (b, C) are nearly tied, bool (b,); infinite logits and NaN count as tied."""
        first, second = logits.topk(2).values.unbind(1)
        return ~(first - second > self._near(logits))

    def judged(self, logits: Tensor, exact: Tensor) -> NearTieFallback | None:
        """Return this if the rounding errors of logits are as expected, and one that expects them if they are larger.

        None if an image's errors exceed half of a near tie, so that they could have changed its label.
        """
        errors = torch.where(logits == exact, 0, (logits - exact).abs()).amax(1)  # infinite logits have no difference
        if not (errors <= self._near(logits) / 2).all():
            return None
        error = float(errors.max())
        return self if error <= 2 * self.error else replace(self, error=error, seen=0, near=0)

    def _near(self, logits: Tensor) -> Tensor:
        """Return the largest difference of two logits that is a near tie, for each image (b,)."""
        return (NEAR_TIE_ULPS * torch.finfo(self.dtype).eps * logits.abs().amax(1)).clamp_min(4 * self.error)


class _Unsuitable(Exception):
    """An engine cannot run a network; the message says why."""


@dataclass
class _Known:
    """Cached results for a model. It holds copies only, since a reference to the model would keep the model alive."""

    logits: Tensor
    converted: Compiled | None = None
    unsuitable: str = ""
    #: Seconds per image of the unconverted model: in a batch of a few images, and in a full pass.
    few: float | None = None
    pace: float | None = None
    #: Rounding error of the model under autocast; infinite if autocast is not worth using.
    error: float | None = None


#: By the id of a model: the state that its cached results belong to, and the results by engine, precision and output.
_KEPT: dict[int, tuple[tuple[Any, ...], dict[tuple[Any, ...], _Known]]] = {}


def _kept_for(model: nn.Module, state: tuple[Any, ...]) -> dict[tuple[Any, ...], _Known]:
    """Return the cached results for a model in this state. They are deleted with the model, or when its state changes."""
    if id(model) not in _KEPT:
        weakref.finalize(model, _KEPT.pop, id(model), None)
    if id(model) not in _KEPT or _KEPT[id(model)][0] != state:
        _KEPT[id(model)] = (state, {})
    return _KEPT[id(model)][1]


@dataclass
class _Candidate:
    """A network to be converted, with an example of its input and the allowed precision."""

    network: Logits
    x: Tensor
    own: torch.dtype
    dtype: torch.dtype
    by_default: bool
    trial: Tensor

    @cached_property
    def images(self) -> Tensor:
        """Trial images for a full pass."""
        return trial_images(self.x, BATCH if self.x.device.type == "cpu" else BATCH_ON_GPU)

    @cached_property
    def reading(self) -> _Reading:
        """What the operations of a forward pass are like."""
        reading = _Reading()
        try:
            with reading:
                self.network(self.trial)
        except Exception as problem:  # torch.compile(fullgraph=True) does not run where operations are watched
            reading.problem, reading.continuous = type(problem).__name__, False
        return reading

    def few(self, known: _Known) -> float:
        """Seconds per image of the unconverted model in a batch of a few images."""
        if known.few is None:
            known.few = _timed(self.network, self.trial)[1] / len(self.trial)
        return known.few

    def pace(self, known: _Known) -> float:
        """Seconds per image of the unconverted model in a full pass, or in a batch of a few images if that is already slow."""
        if known.pace is None:
            slow = self.few(known) * len(self.trial) > PATIENCE
            known.pace = self.few(known) if slow else _timed(self.network, self.images)[1] / len(self.images)
        return known.pace

    def is_short(self, known: _Known, passes: int | None) -> bool:
        """Return whether a conversion, including its trial passes, would cost more time than it saves."""
        if passes is None:
            return False
        saved = passes * SAVED.get(self.dtype, 0.1) - 4 * len(self.images)  # in images
        cost = CONVERSION[0] + CONVERSION[1] * sum(1 for _ in self.network.modules())
        return self.few(known) * saved < cost or self.pace(known) * saved < cost

    def converted(self, engine: str, known: _Known) -> Compiled:
        """Convert the network with an engine that records its graph, and check that the logits are unchanged."""
        make, name = _maker(engine, self.x.device)
        if any(getattr(module, kind, None) for module in self.network.modules() for kind in HOOKS):
            raise _Unsuitable("it has hooks, which must see every module at work")
        if self.reading.problem:
            raise _Unsuitable(f"its operations cannot be watched ({self.reading.problem})")
        if self.reading.seen:
            raise _Unsuitable("its forward reads values of tensors, which a recorded graph cannot follow")
        try:
            variant = make(self.network, self.x)
            exact = variant(torch.float32)
            found = exact(self.trial)
        except Exception as problem:  # converters may raise any exception for a module that they do not support
            raise _Unsuitable(f"{name} cannot run it ({type(problem).__name__})") from None
        if not same_logits(found, known.logits, LOGIT_TOLERANCE):
            raise _Unsuitable(f"{name} gives other logits")
        network, seconds = self._guarded(None if self.dtype == torch.float32 else variant(self.dtype), exact)
        if engine == "auto" and seconds > self.pace(known) * len(self.images):
            raise _Unsuitable(f"{name} is no faster")
        return self._described(network, name, floats=2**20)

    def eager(self, known: _Known, why: str, *, exactly: bool = False) -> Compiled:
        """Return the unconverted model; with ``exactly``, in the model's own precision unless a precision was requested."""
        if self.own in (torch.bfloat16, torch.float16) and not (exactly and self.dtype == self.own):
            try:
                exact = Logits(copy.deepcopy(self.network.model).float(), self.network.output)
                exact(self.trial.float())
            except Exception as problem:  # its forward may convert its input, and its attributes may not be copied
                why = f"no copy in float32 ({type(problem).__name__})"
                if self.dtype != self.own:
                    raise ValueError(f"the model runs in {self.own} only, got dtype={self.dtype}: {why}") from None
                return self._described(self._as_it_is, "eager", why)
            lower = NearTieFallback(self._as_it_is, exact, self.own)
            return self._described(lower if self.dtype == self.own else exact, "eager", why)
        if self.dtype == self.own or (exactly and self.by_default):
            return self._described(self._as_it_is, "eager", why)
        quick = _autocast(self.network, self.dtype)
        if known.error is None:
            network, _ = self._guarded(quick, self.network)
            known.error = network.error if isinstance(network, NearTieFallback) else math.inf
        fallback = NearTieFallback(quick, self.network, self.dtype, known.error)
        return self._described(fallback if math.isfinite(known.error) else self.network, "eager", why)

    def _as_it_is(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.own))

    def _guarded(self, quick: Forward | None, exact: Forward) -> tuple[Forward, float]:
        """Return ``quick`` with near ties in ``exact``, and the seconds of a full pass.

        If no precision was requested, return ``exact`` where rounding is large or ``quick`` saves little.
        """
        logits, seconds = _timed(exact, self.images)
        if quick is None:
            return exact, seconds
        try:
            rounded, quickly = _timed(quick, self.images)
        except Exception as problem:  # a forward that mixes its layers' results with float32 may fail
            if self.by_default:
                return exact, seconds
            raise ValueError(f"the model cannot run in {self.dtype} ({type(problem).__name__}): use torch.float32") from None
        error = float((rounded.float() - logits).abs().max())
        harmless = 4 * error < NEAR_TIE_ULPS * torch.finfo(self.dtype).eps * float(logits.abs().max())
        if self.by_default and not (harmless and quickly < 0.85 * seconds and self.reading.continuous):
            return exact, seconds
        if not self.reading.continuous:
            reason = "the model compares its values or picks among them, where rounding can change the logits by much"
            reason = f"its operations cannot be watched ({self.reading.problem})" if self.reading.problem else reason
            warn_caller(f"{self.dtype} may change labels that are no near ties: {reason}; dtype=torch.float32 does not")
        return NearTieFallback(quick, exact, self.dtype, error), quickly

    def _described(self, network: Forward, name: str, why: str = "", *, floats: int = 2**17) -> Compiled:
        lower = isinstance(network, NearTieFallback)
        dtype = self.dtype if lower or self.own != torch.float32 else torch.float32
        most = 2**12 if self.x.device.type == "cpu" else 2**14
        batch = max(BATCH, min(most, floats * most // 2**12 // self.x[0].numel() // BATCH * BATCH))
        words = f"{name}, {str(dtype).removeprefix('torch.')}" + ", near ties in float32" * lower + (why and f": {why}")
        return Compiled(network, dtype, batch, words)


def _autocast(network: Logits, dtype: torch.dtype) -> Forward:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=dtype):
            return network(x)

    return run


def _timed(network: Forward, images: Tensor) -> tuple[Tensor, float]:
    """Return the logits and the seconds of a pass: the minimum of two passes, or of one pass if it is slow."""
    shortest = math.inf
    for _ in range(2):
        began = time.perf_counter()
        logits = network(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        shortest = min(shortest, time.perf_counter() - began)
        if shortest > PATIENCE:
            break
    return logits, shortest


class _Reading(TorchDispatchMode):
    """Detect whether a forward pass reads values of tensors, for example to branch on them, and whether it has jumps.

    Where a gate compares values or picks the largest, a rounding error may change the logits by far more than itself.
    """

    seen, continuous, problem = False, True, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        self.seen = self.seen or func in reads
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__.rstrip("_")
        of_floats = any(isinstance(value, Tensor) and value.is_floating_point() for value in args)
        returned = found if isinstance(found, tuple | list) else [found]
        whole = any(isinstance(part, Tensor) and not (part.is_floating_point() or part.is_complex()) for part in returned)
        # The places of a pooling's maxima are not used, and masks are compared with a number that they hold exactly.
        harmless = "pool" in name or func in (torch.ops.aten.eq.Scalar, torch.ops.aten.ne.Scalar)
        self.continuous = self.continuous and not (of_floats and (name in STEPS or (whole and not harmless)))
        return found


# Engines: each maps a network and its input to a function that returns the network in a given precision.

Variants = Callable[[torch.dtype], Forward]


def _maker(engine: str, device: torch.device) -> tuple[Callable[[Logits, Tensor], Variants], str]:
    if device.type == "cuda" and engine == "auto":
        return _folded, "batch norms folded"
    if device.type != "cpu":
        raise _Unsuitable(f"OpenVINO runs on CPUs, the model is on {device}")
    try:
        ov = import_openvino()
    except ImportError:
        raise _Unsuitable("OpenVINO is not installed (pip install 'bslib[fast]')") from None
    return _on_openvino, f"OpenVINO {ov.__version__.split('-')[0]}"


def import_openvino() -> Any:
    """Import ``openvino`` without ``openvino_telemetry``, which would send a message at every import; return the module."""
    if "openvino" not in sys.modules:
        telemetry = sys.modules.get("openvino_telemetry")
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino.tools.ovc
        except ImportError:
            pass
        finally:
            del sys.modules["openvino_telemetry"]
            if telemetry is not None:
                sys.modules["openvino_telemetry"] = telemetry
    import openvino

    return openvino


def _on_openvino(network: Logits, x: Tensor) -> Variants:
    ov = import_openvino()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = ov.convert_model(
            network, example_input=trial_images(x, 3)[1:], input=[BATCH, *x.shape[1:]], share_weights=False
        )

    def variant(dtype: torch.dtype) -> Forward:
        if dtype not in (torch.float32, torch.bfloat16):
            raise _Unsuitable(f"OpenVINO has no {dtype} on this CPU")
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # with pinning, concurrent processes would all run on the first core
        }
        return _OpenVinoNetwork(ov.Core().compile_model(converted, "CPU", options), (BATCH, *x.shape[1:]))

    return variant


class _OpenVinoNetwork:
    """Logits by OpenVINO, in passes of ``BATCH`` images; the last pass is padded."""

    def __init__(self, compiled: Any, shape: tuple[int, ...]) -> None:
        self.request = compiled.create_infer_request()
        self.filled = np.zeros(shape, np.float32)

    def __call__(self, x: Tensor) -> Tensor:
        logits = []
        for part in x.split(BATCH):
            images = part.contiguous().numpy()
            if len(part) < BATCH:
                self.filled[: len(part)] = images
                images = self.filled
            found = self.request.infer([images], share_inputs=True)[0]
            logits.append(torch.from_numpy(found[: len(part)]))
        return torch.cat(logits)


def _folded(network: Logits, x: Tensor) -> Variants:
    from torch.fx.experimental.optimization import fuse

    # The model alone: what picks the logits out of its answer looks at the answer's type, which tracing does not know.
    folded = Logits(fuse(network.model), network.output)

    def variant(dtype: torch.dtype) -> Forward:
        copied = copy.deepcopy(folded).to(dtype).to(memory_format=torch.channels_last)
        layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        return lambda images: copied(images.to(dtype).contiguous(memory_format=layout)).float()

    return variant
