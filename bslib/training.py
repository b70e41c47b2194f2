"""The training loop of all networks: stochastic gradient descent with momentum and a one-cycle learning rate schedule.

Networks run in channels-last layout, and optionally in bfloat16 under autocast. On a GPU, each step is one CUDA graph, since
launching the kernels one by one takes longer than running them.

The whole data set is one tensor on the device. Order and augmentation are functions of the seed and the step, and the learning
rate is a function of the step. A checkpoint therefore needs only the weights, the momentum and the step number, and a resumed
run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import numbers
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from bslib.calling import check_counts, evaluating
from bslib.datasets import to_float
from bslib.fields import check_seed
from bslib.files import atomic_path
from bslib.measure import predict
from bslib.progress import bar

__all__ = ["accuracy", "load_weights", "save_weights", "train"]

CHECKPOINT_SECONDS = 60.0
#: A CUDA graph is recorded only if more than this number of steps remain.
GRAPH_STEPS = 50

#: Maps a batch of images and labels to the loss and the number of correct predictions.
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    learning_rate: float = 0.05,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    augment: bool = False,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float32,
    checkpoint: str | Path | None = None,
    description: str = "training",
    progress: bool = True,
) -> float:
    """Train ``network`` in place, on its device, and return the training time.

    Parameters
    ----------
    network : torch.nn.Module
        Maps float (B, C, H, W) in [0, 1] to logits (B, classes).
    images : uint8 Tensor, shape (N, C, H, W)
    labels : int64 Tensor, shape (N,)
    epochs : int
        Number of passes over the data. The last incomplete batch of each pass is skipped.
    seed : int
        Seed of the order and of the augmentation.
    learning_rate : float
        Peak rate, reached linearly from a tenth of it over the first quarter of the steps; then the rate falls linearly to 0.
    batch_size : int
        Images in a step, at most the size of the data set.
    weight_decay : float
    augment : bool
        Apply random shifts of up to 4 pixels and random mirroring.
    noise : float
        Standard deviation of Gaussian noise that is added to each image, anew in each step.
    dtype : torch.dtype
        Precision of the forward pass. Precisions below float32 use autocast.
    checkpoint : str or Path, optional
        File that the state is saved to once a minute and at the end. If the file exists, training resumes from it, with the
        arguments of the run that wrote it. The caller removes it once the results of the network are saved.
    description : str
        Text of the progress bar.
    progress : bool
        Show a progress bar with loss, accuracy and time left when training takes longer than two seconds.

    Returns
    -------
    float
        Seconds of training, including those before an interruption.

    Raises
    ------
    ValueError
        For fewer than one epoch, no images, images and labels that do not fit, labels that the network has no logit for, a
        checkpoint that is corrupt or of a run with other arguments, or a loss that is no longer finite.

    >>> from bslib.datasets import load
    >>> from bslib.networks import build
    >>> digits, network = load("digits"), build("small-fashion", seed=0)
    >>> seconds = train(network, digits.train_images, digits.train_labels, epochs=1, seed=0, batch_size=32)
    >>> accuracy(network, digits.test_images, digits.test_labels) > 0.5
    True
    """
    _check(network, images, labels, learning_rate, epochs=epochs, batch_size=batch_size)
    check_seed(seed)
    for name, number in (("weight_decay", weight_decay), ("noise", noise)):
        if not isinstance(number, numbers.Real) or not 0 <= number < torch.finfo(torch.float32).max:
            raise ValueError(f"{name} must be a finite number of 0 or more, got {number!r}")
    device = next(network.parameters()).device
    layout, classes = layout_of(network, to_float(images[:2]).to(device))
    if not 0 <= labels.min() <= labels.max() < classes:
        low, high = labels.min().item(), labels.max().item()
        raise ValueError(f"labels must be from 0 to {classes - 1}, one for each logit of the network, got {low} to {high}")
    batch_size = min(batch_size, len(images))
    run = (
        f"{epochs} epochs of {len(images)} images, seed {seed}, learning rate {float(learning_rate)}, batches of {batch_size}, "
        f"weight decay {float(weight_decay)}, augment {augment}, noise {float(noise)}, {dtype}"
    )
    checkpoint = Path(checkpoint) if checkpoint else None
    total = epochs * (len(images) // batch_size)
    rate = torch.tensor(learning_rate, device=device) if device.type == "cuda" else learning_rate  # a graph reads it from memory
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True)
    first, before = _resume(network, optimizer, checkpoint, run) if checkpoint and checkpoint.exists() else (0, 0.0)
    batches = _batches(images.to(device), labels.to(device), epochs, batch_size, seed, first, augment=augment, noise=noise)
    take_step: Step = functools.partial(_step, network, optimizer, dtype)
    began = saved = time.monotonic()
    network.train()
    with bar(total=total, initial=first, desc=description, unit="step", show=progress) as shown:
        for step, (x, y) in enumerate(batches, start=first):
            _set_rate(optimizer, learning_rate * float(np.interp(step, [0, total / 4, total], [0.1, 1, 0])))
            if step == first and device.type == "cuda" and total - first > GRAPH_STEPS:
                take_step = _graphed(take_step, network, optimizer, x.contiguous(memory_format=layout), y)
            loss, hits = take_step(x.contiguous(memory_format=layout), y)
            done = step + 1
            shown.update()
            if done % 20 == 0 or done == total:  # reading a number synchronises with the device
                if not torch.isfinite(loss):
                    raise ValueError(f"the loss is {loss.item()} at step {done}: try a lower learning rate than {learning_rate}")
                shown.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{hits.item() / batch_size:.3f}", refresh=False)
            if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save_checkpoint(network, optimizer, done, before + time.monotonic() - began, checkpoint, run)
                saved = time.monotonic()
    seconds = before + time.monotonic() - began
    if checkpoint and first < total:
        _save_checkpoint(network, optimizer, total, seconds, checkpoint, run)
    return seconds


def layout_of(network: nn.Module, x: Tensor) -> tuple[torch.memory_format, int]:
    """Return the layout in which a network can be called with images ``x`` (b, C, H, W), and its number of logits.

    Channels last is faster, but a network that flattens with ``x.view(len(x), -1)`` fails on it.

    >>> layout_of(nn.Flatten(), torch.zeros(2, 3, 8, 8))
    (torch.channels_last, 192)
    """
    with evaluating(network) as logits:
        try:
            return torch.channels_last, logits(x.contiguous(memory_format=torch.channels_last)).shape[1]
        except RuntimeError:
            return torch.contiguous_format, logits(x.contiguous()).shape[1]


def _batches(
    images: Tensor, labels: Tensor, epochs: int, batch_size: int, seed: int, first: int, *, augment: bool, noise: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield float images and labels of each step from ``first`` on; each is a function of the seed and the step."""
    per_epoch = len(images) // batch_size
    for step in range(first, epochs * per_epoch):
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == first:
            order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(images))).to(images.device)
        chosen = order[place * batch_size : (place + 1) * batch_size]
        key = [seed, epochs, step]
        x = to_float(shifted_and_mirrored(images[chosen], seed=key) if augment else images[chosen])
        if noise:
            x += noise * _normal(x, seed=key)
        yield x, labels[chosen]


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Compute the accuracy of ``network`` on uint8 ``images`` (N, C, H, W) with ``labels`` (N,), in float32.

    Raises
    ------
    ValueError
        If there are no images, or not one label for each.

    >>> accuracy(nn.Flatten(), torch.tensor([[[[9, 0]]], [[[0, 9]]]], dtype=torch.uint8), torch.tensor([0, 0]))
    0.5
    """
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have shape ({len(images)},), one an image, got {tuple(labels.shape)}")
    device = next((p.device for p in network.parameters()), images.device)
    predicted = torch.from_numpy(predict(network, to_float(images.to(device))))
    return float((predicted == labels.cpu()).double().mean())


def shifted_and_mirrored(images: Tensor, *, seed: list[int]) -> Tensor:
    """Shift each image (b, C, H, W) randomly by up to 4 pixels in each direction, fill with black, and mirror half at random.

    >>> shifted_and_mirrored(torch.ones(2, 3, 8, 8, dtype=torch.uint8), seed=[0]).shape
    torch.Size([2, 3, 8, 8])
    """
    rng = np.random.default_rng(seed)
    count, _, height, width = images.shape
    rows = rng.integers(0, 9, (count, 1)) + np.arange(height)
    columns = rng.integers(0, 9, (count, 1)) + np.arange(width)
    mirror = rng.random(count) < 0.5
    columns[mirror] = columns[mirror, ::-1]
    which, down, across = (
        torch.from_numpy(index).to(images.device)
        for index in (np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    )
    return functional.pad(images, (4, 4, 4, 4))[which, :, down, across].permute(0, 3, 1, 2)


def _normal(like: Tensor, *, seed: list[int]) -> Tensor:
    """Standard normal noise of a tensor's shape on its device; a function of the seed and of the kind of device."""
    number = int(np.random.SeedSequence([*seed, 8]).generate_state(1)[0])
    return torch.randn(like.shape, generator=torch.Generator(like.device).manual_seed(number), device=like.device)


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write a network's weights to a safetensors file atomically.

    Raises
    ------
    OSError
        If the file cannot be written, for example because the disk is full. The message names the file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> save_weights(nn.Linear(2, 1), path)
    >>> sorted(load_file(path))
    ['bias', 'weight']
    """
    _write(network.state_dict(), Path(path))


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load weights written by :func:`save_weights` into ``network``; only tensors are read, so no code can run.

    Raises
    ------
    ValueError
        If the file is truncated or corrupt, or holds the weights of a different network. The message names the file.

    >>> load_weights(nn.Linear(2, 1), Path("no-such-file"))
    Traceback (most recent call last):
    ValueError: weights cannot be read from no-such-file: ...
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as problem:
        raise ValueError(
            f"weights cannot be read from {path}: {_reason(Path(path), problem)}; remove the file to train the network again"
        ) from None


def _check(network: nn.Module, images: Tensor, labels: Tensor, learning_rate: float, **counts: int) -> None:
    """Raise a ValueError for invalid arguments of :func:`train`."""
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 of shape (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, one an image, got {labels.dtype} of shape {tuple(labels.shape)}")
    check_counts(images=len(images), **counts)
    if not isinstance(learning_rate, numbers.Real) or not 0 < learning_rate < torch.finfo(torch.float32).max:
        raise ValueError(f"learning_rate must be a finite number above 0, got {learning_rate!r}")
    if others := {p.dtype for p in network.parameters()} - {torch.float32}:
        raise ValueError(f"training needs parameters in float32, got {', '.join(sorted(map(str, others)))}")
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError("the network has no parameters to train: they are frozen, or there are none")
    if any(p.device.type == "meta" for p in network.parameters()):
        raise ValueError("the network is on the device 'meta', which has no weights: make it on the CPU or a GPU")


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Take a step on a batch; return the loss and the number of correct predictions before the step."""
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = network(x)
        loss = functional.cross_entropy(logits, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), (logits.argmax(1) == y).sum()


def _graphed(step: Step, network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Step:
    """Record a step as a CUDA graph for batches of this shape; recording runs a few steps, which are undone."""
    given = x.clone(), y.clone()
    state = [*network.parameters(), *network.buffers()]
    learned = [p for p in network.parameters() if p.requires_grad]
    momenta = [optimizer.state[p].get("momentum_buffer") for p in learned]
    before = [None if t is None else t.detach().clone() for t in (*state, *momenta)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(*given)
    with torch.no_grad():
        momenta = [_momentum(optimizer, p) for p in learned]
        for tensor, kept in zip((*state, *momenta), before, strict=True):
            tensor.zero_() if kept is None else tensor.copy_(kept)

    def replay(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        given[0].copy_(x)
        given[1].copy_(y)
        graph.replay()
        return result

    return replay


def _write(tensors: dict[str, Tensor], path: Path, *, digest: bool = False, **metadata: str) -> None:
    """Write tensors to a safetensors file atomically; ``digest`` stores a content digest, for files that have no record."""
    # Copies, since the format refuses tensors that share memory, as tied weights do.
    own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    with atomic_path(path) as part:
        try:
            save_file(own, part, metadata=metadata | {"digest": _digest(own)} if digest else None)
        except SafetensorError as problem:
            raise OSError(f"{path} cannot be written: {problem}") from None


def _digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and bytes of CPU tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _save_checkpoint(
    network: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float, checkpoint: Path, run: str = ""
) -> None:
    momenta = {f"momentum.{name}": _momentum(optimizer, p) for name, p in network.named_parameters()}
    state = network.state_dict() | momenta | {"step": torch.tensor(step), "seconds": torch.tensor(seconds)}
    _write(state, checkpoint, digest=True, run=run)


def _momentum(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    """The momentum of a parameter; frozen and unused ones have none, which is the same as zero."""
    momentum: Tensor | None = optimizer.state[parameter].get("momentum_buffer")
    return torch.zeros_like(parameter) if momentum is None else momentum


def _resume(network: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, run: str = "") -> tuple[int, float]:
    """Load weights and momentum from a checkpoint; return the number of steps done and the seconds they took."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
            if metadata.get("digest") != _digest(state):
                raise ValueError("its content does not fit its digest")
            if run and (theirs := metadata.get("run") or run) != run:  # older checkpoints do not say
                raise ValueError(f"it has {theirs}, and {run} was asked for")
        step, seconds = int(state.pop("step")), float(state.pop("seconds"))
        for name, parameter in network.named_parameters():
            momentum = state.pop(f"momentum.{name}")
            # Copy into the parameter's memory layout, which files do not store and a fused optimizer requires.
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        network.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as problem:
        reason = _reason(checkpoint, problem)
        what = f"the checkpoint {checkpoint} is damaged or of another run ({reason})"
        raise ValueError(f"{what}; remove it to train from the start") from None
    return step, seconds


def _reason(path: Path, problem: Exception) -> str:
    """Explain in one line why a file is rejected; first check for a pickle (or a torch.save archive, which holds one)."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            return "it is a pickle, which can run code when it is read, and only safetensors are"
    return " ".join(line.strip() for line in str(problem).splitlines()[:2])[:300]
