r"""What makes forward passes and training fast: a network is rewritten into one that rounds differently and no more.

The whole project costs forward passes, and the time of one goes where arithmetic is not: into batch norms, and into writing
activations to memory and reading them again. So a copy of the network is traced (:mod:`torch.fx`) and three things are replaced
in it, wherever it has them:

- a convolution and the batch norm behind it become one convolution;
- a convolution of few channels, the 2 x 2 maximum behind it and a ReLU become one loop, which never writes what the maximum
  drops;
- a 3 x 3 convolution of many channels becomes Winograd's F(4 x 4, 3 x 3), a quarter of the multiplications, at stride 2 little
  more than half of them (Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, 2016), and takes what is added to
  it and the ReLU behind it along.

The last two are C (``kernels.c``, compiled once with the C compiler of the machine and kept in the cache folder) and for float32
on a CPU. In lower precision the second stays, since what it spares is memory; the third does not, since it is in float32, and
hardware that multiplies in bfloat16 is faster without it. Where there is no compiler, or a network cannot be traced, what remains
of the three is done; where nothing remains, the network runs as it is. :func:`prepare` says which, and records keep what it says.

:func:`trainable` does the like where gradients are needed, with the network's own weights: batch norms, sums and convolutions of
stride 2 stay as they are.

Which of it is done depends on the network, its precision and the machine, never on how much is asked for: labels do not hang on
the company that a point was measured in.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bslib.loops import (
    Library,
    PooledConvolution,
    TrainablePooledConvolution,
    TrainableWinogradConvolution,
    WinogradConvolution,
    library_for,
)

__all__ = ["ENGINES", "Careful", "Prepared", "prepare", "trainable"]

#: The choices of ``engine``.
ENGINES = ("auto", "fast", "eager")
#: How far the rewritten network's logits may lie from its own, as a share of the largest; more where the precision is low.
ROUNDING = 1e-3
#: How far gradients may.
KINKS = 0.05
#: How near to each other logits are close, in units of the lower precision and of the largest logit.
CLOSE = 6
#: The floats that the largest activation of a batch should have at the most.
ACTIVATION = 2**22


class Prepared(NamedTuple):
    """A network ready for many forward passes.

    Parameters
    ----------
    network : torch.nn.Module
        What to call: the model itself, or a rewritten copy that speaks of the weights of this moment.
    batch_size : int
        How many images to give it at a time.
    what : str
        What was done, in words, or why nothing was.
    """

    network: nn.Module
    batch_size: int
    what: str


def prepare(model: nn.Module, x: Tensor, *, engine: str = "auto", dtype: torch.dtype | None = None) -> Prepared:
    """Rewrite a network for speed; the model itself is left as it is.

    In a lower precision than its own it is asked twice where the answer hangs on rounding: see :class:`Careful`.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode, with gradients off.
    x : Tensor, shape (B, ...)
        What it will be given; shape, dtype and device count. The copy is tried on 2 images of uniform noise, always the same, and
        dropped where its logits are not the model's own.
    engine : {"auto", "fast", "eager"}
        "auto" does what can be done; "fast" insists that something is; "eager" runs the model as it is.
    dtype : torch.dtype, optional
        Precision of the forward pass; that of ``x``, which is to be the model's own, when not given.

    Returns
    -------
    Prepared

    Raises
    ------
    ValueError
        For an unknown engine, or "fast" where nothing could be done; the message says why.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    >>> with torch.no_grad():
    ...     prepare(model, torch.rand(2, 1, 8, 8)).what
    'fast: 1 batch norm folded'
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if dtype not in (None, x.dtype):
        return _prepared_in(dtype, model, x, engine)
    lower = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
    usual = 128 if x.device.type == "cpu" else 2048
    if engine == "eager":
        return Prepared(model, usual, "eager: as asked")
    try:
        if _is_hooked(model):
            raise _Unchanged("it has hooks, which must see every module at work")
        trial = _trial(x)
        own = _logits(model, trial)
        network, done = _rewritten(model, library_for(x), trial, lower=lower)
        largest = _checked(network, own, trial, max(ROUNDING, 10 * torch.finfo(lower or x.dtype).eps))
    except _Unchanged as reason:
        if engine == "fast":
            raise ValueError(f"engine 'fast' was asked for, and the model can only be run as it is: {reason}") from None
        return Prepared(model, usual, f"eager: {reason}")
    fitting = max(64, min(512, ACTIVATION // largest // 64 * 64))
    return Prepared(network, fitting if x.device.type == "cpu" else usual, f"fast: {done}")


class Careful(nn.Module):
    """The logits of a network under autocast, and those of its own precision wherever the two largest lie close together.

    So rounding decides next to no label. "Close" is nearer than 6 units of the lower precision, in units of the largest logit:
    0.047 for bfloat16. There, rounding turned no label whose two largest logits lay further apart than 0.010, of 48,000 noisy
    images of the two Fashion networks (sigma from 0.05 to 1), and 0.021, of 9,800 of a ResNet-18 on CIFAR-10 (0.05 to 0.5); one
    in 20 to 25 is close at sigma 0.1. Probabilities are no logits: rounding moves them further, in units of the largest.

    Parameters
    ----------
    quick, exact : torch.nn.Module
        The network as it is to run under autocast, and as it is in its own precision (on a GPU by torch's settings for that).
    dtype : torch.dtype
        The lower precision.

    >>> careful = Careful(nn.Linear(2, 2), nn.Identity(), torch.bfloat16)
    >>> careful.close(torch.tensor([[9.0, 8.9], [9.0, 1.0]])).tolist()
    [True, False]
    """

    def __init__(self, quick: nn.Module, exact: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.quick, self.exact, self.dtype = quick, exact, dtype

    def forward(self, x: Tensor) -> Tensor:
        """From (b, ...) to logits (b, C), in the precision of ``x``."""
        with torch.autocast(x.device.type, dtype=self.dtype):
            logits = self.quick(x.clone())  # a network may change what it is given
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
            return logits  # for the caller to refuse, or one class
        close, logits = self.close(logits), logits.to(x.dtype, copy=True)
        if close.any():
            with torch.autocast(x.device.type, enabled=False):
                logits[close] = self.exact(x[close]).to(x.dtype)
        return logits

    def close(self, logits: Tensor) -> Tensor:
        """Whose label rounding could decide, bool (b,), of logits (b, C) in the lower precision; infinite ones and NaN are."""
        first, second = logits.float().topk(2).values.unbind(1)
        return ~((first - second) / logits.float().abs().amax(1) >= CLOSE * torch.finfo(self.dtype).eps)


def _prepared_in(dtype: torch.dtype, model: nn.Module, x: Tensor, engine: str) -> Prepared:
    if x.dtype != torch.float32 or dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be the model's own ({x.dtype}), or bfloat16 or float16 for a float32 model, got {dtype!r}")
    with torch.autocast(x.device.type, dtype=dtype):
        quick = prepare(model, x, engine=engine)
    with torch.autocast(x.device.type, enabled=False):
        exact = prepare(model, x, engine="auto" if engine == "fast" else engine)
    how = f"{quick.what}; {str(dtype).removeprefix('torch.')}, close calls in float32 ({exact.what})"
    return Prepared(Careful(quick.network, exact.network, dtype), quick.batch_size, how)


def trainable(network: nn.Module, x: Tensor, *, dtype: torch.dtype | None = None) -> tuple[nn.Module, str]:
    """What to call instead of a network while it is trained: its own graph, with its own weights, through the C loops.

    Convolutions of many channels, and those of few that a 2 x 2 maximum follows, differ by rounding; all else is the network's
    own, as it stands at this moment: what its ``forward`` asks of ``self`` is not asked again.

    Parameters
    ----------
    network : torch.nn.Module
        In training mode, or in eval mode for the gradients of images (``bslib.patterns.crafting``).
    x : float32 Tensor, shape (B, ...)
        Images as it will get them; it is tried on two of uniform noise. What the network keeps of what it sees, and torch's
        generator, are left as they were.
    dtype : torch.dtype, optional
        Precision that it will be trained in, under autocast where that is not float32; it is tried in float32 all the same.

    Returns
    -------
    torch.nn.Module
        The network itself where nothing can be replaced, or where the graph gives other logits or other gradients.
    str
        What was done, in words, or why nothing was.

    >>> network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    >>> fast, what = trainable(network, torch.rand(2, 1, 8, 8))
    >>> {id(p) for p in fast.parameters()} == {id(p) for p in network.parameters()}
    True
    """
    try:
        lower = dtype not in (None, x.dtype) or torch.is_autocast_enabled(x.device.type)
        graph, done = _through_the_loops(network, library_for(x), lower=lower)
        trial = _trial(x)
        own, of_own = _tried(network, network, trial)
        try:
            other, of_other = _tried(graph, network, trial)
        except Exception as problem:  # as for `prepare`
            raise _Unchanged(f"rewritten, it cannot be run ({type(problem).__name__})") from None
        _compare(other, own, ROUNDING)
        _compare_gradients(of_other, of_own)
    except _Unchanged as reason:
        return network, f"eager: {reason}"
    return graph, f"fast: {done}"


def _through_the_loops(network: nn.Module, library: Library | str, *, lower: bool) -> tuple[fx.GraphModule, str]:
    """The graph of a network with trainable modules where they fit, and what was done in words."""
    if isinstance(library, str):
        raise _Unchanged(library)
    if _is_hooked(network):
        raise _Unchanged("it has hooks, which must see every module at work")
    graph = _traced(network)
    pooled = _pool_in_place(graph, lambda conv, clip: TrainablePooledConvolution(conv, library, clip=clip))
    winograd = 0
    for node, conv in _called_once(graph).items():
        if not lower and type(conv) is nn.Conv2d and TrainableWinogradConvolution.fits(conv):
            relus = [follower for follower in _followers(node, 1) if _is_relu(follower)]
            module = TrainableWinogradConvolution(conv, library, clip=bool(relus))
            _put(graph, node, module, node.all_input_nodes[:1], instead_of=relus)
            winograd += 1
    graph.recompile()
    return graph, _words({"pooled convolution": pooled, "Winograd convolution": winograd})


def _tried(one: nn.Module, network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """The logits of ``one``, and the gradients of images and weights of ``network``, which stays as it was."""
    kept, x = [buffer.clone() for buffer in network.buffers()], x.clone().requires_grad_()
    wanted = [x, *(parameter for parameter in network.parameters() if parameter.requires_grad)]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        logits = one(x)
        weights = torch.linspace(-1, 1, logits.numel(), device=x.device, dtype=logits.dtype).view(logits.shape)
        found: list[Tensor | None] = [None] * len(wanted)  # as where all of it is under ``torch.no_grad``
        if logits.requires_grad:
            found = list(torch.autograd.grad((logits * weights).sum(), wanted, allow_unused=True))
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), kept, strict=True):
            buffer.copy_(before)
    return logits.detach(), found


def _compare_gradients(of_other: list[Tensor | None], of_own: list[Tensor | None]) -> None:
    """A graph has no ``torch.no_grad`` of its network; and where a ReLU is near 0, rounding turns into more."""
    for other, own in zip(of_other, of_own, strict=True):
        alike = other is own if other is None or own is None else (other - own).norm() <= KINKS * own.norm() + 1e-6
        if not alike:  # NaN too
            raise _Unchanged("rewritten, it has other gradients")


class _Unchanged(Exception):
    """Nothing is gained, or nothing can be; the message says why."""


def _trial(x: Tensor) -> Tensor:
    """Two images that have the shape, dtype and device of ``x`` and nothing else of it: what is done hangs on no point."""
    uniform = torch.rand(2, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    return uniform.to(x.device, x.dtype)


def _is_hooked(model: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in model.modules() for kind in kinds)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """What the model itself gives."""
    own = model(x)
    if not (isinstance(own, Tensor) and own.is_floating_point() and own.isfinite().all()):
        raise _Unchanged("its output is no tensor of finite numbers")
    return own


def _checked(network: fx.GraphModule, own: Tensor, x: Tensor, rounding: float) -> int:
    """The size of a network's largest activation for one image, once it has given the model's own logits for a few."""
    try:
        other = ShapeProp(network).propagate(x)
    except Exception as problem:  # whatever modules say to what they were not made for
        raise _Unchanged(f"rewritten, it cannot be run ({type(problem).__name__})") from None
    _compare(other, own, rounding)
    return max(_shape(node).numel() for node in network.graph.nodes) // len(x)


def _compare(other: Tensor, own: Tensor, rounding: float) -> None:
    if other.shape != own.shape:
        raise _Unchanged(f"rewritten, it gives the shape {tuple(other.shape)} instead of {tuple(own.shape)}")
    off = float((other - own).abs().max() / own.abs().max().clamp(min=1e-30))
    if not off <= rounding:  # NaN too
        raise _Unchanged(f"rewritten, its logits are {off:.0e} of the largest off")


# Rewriting


def _rewritten(model: nn.Module, library: Library | str, x: Tensor, *, lower: torch.dtype | None) -> tuple[fx.GraphModule, str]:
    """A copy with the replacements made where they fit at the precision of autocast, and what was done in words."""
    network = _traced(model, copied=True)
    ShapeProp(network).propagate(x)
    done = {"batch norm folded": _fold_batch_norms(network)}
    if not isinstance(library, str):
        done["pooled convolution"] = _pool_in_place(network, lambda conv, clip: PooledConvolution(conv, library, clip=clip))
        done["Winograd convolution"] = 0 if lower else _use_winograd(network, library)
    _flatten_in_place(network)
    if lower:
        _round_weights(network, lower)
    words = _words(done, "" if not isinstance(library, str) else library)
    network.graph.lint()
    network.recompile()
    network.delete_all_unused_submodules()
    return network.to(memory_format=torch.channels_last), words


def _words(done: Mapping[str, int], why_not_more: str = "") -> str:
    """What was done; where that is nothing, it is as it was."""
    words = [f"{count} {name if count == 1 else _plural(name)}" for name, count in done.items() if count]
    if not words:
        raise _Unchanged("; ".join(filter(None, ["nothing in it can be replaced", why_not_more])))
    return ", ".join(filter(None, [*words, why_not_more]))


def _traced(model: nn.Module, *, copied: bool = False) -> fx.GraphModule:
    """The graph of a model, on its own modules or on copies of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fx.symbolic_trace(copy.deepcopy(model) if copied else model)
    except Exception as problem:  # whatever a stranger's modules raise when copied, and their forward when given a proxy
        raise _Unchanged(f"torch.fx cannot trace it ({type(problem).__name__})") from None


def _plural(name: str) -> str:
    return name.replace("norm ", "norms ") if "norm" in name else f"{name}s"


def _fold_batch_norms(network: fx.GraphModule) -> int:
    """Each batch norm behind a convolution into its weights; returns how many."""
    modules, count = _called_once(network), 0
    for node in list(network.graph.nodes):
        conv = modules.get(node)
        for follower in _followers(node, 1):
            norm = modules.get(follower)
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats:
                _put(network, node, fuse_conv_bn_eval(conv, norm), node.all_input_nodes[:1], instead_of=[follower])
                count += 1
    return count


def _pool_in_place(network: fx.GraphModule, make: Callable[[nn.Conv2d, bool], nn.Module]) -> int:
    """Each convolution of few channels that a 2 x 2 maximum follows; ``make`` takes its clip."""
    modules, count = _called_once(network), 0
    for node in list(network.graph.nodes):
        conv = modules.get(node)
        if type(conv) is not nn.Conv2d or not PooledConvolution.fits(conv):
            continue
        followers, inputs = _followers(node, 2), node.all_input_nodes[:1]
        pools, relus = [[is_one(follower) for follower in followers] for is_one in (_halves, _is_relu)]
        if (pools, relus) in (([True, False], [False, True]), ([False, True], [True, False])):  # the two commute
            _put(network, node, make(conv, True), inputs, instead_of=followers)
        elif pools[:1] == [True]:
            _put(network, node, make(conv, False), inputs, instead_of=followers[:1])
        else:
            continue
        count += 1
    return count


def _use_winograd(network: fx.GraphModule, library: Library) -> int:
    modules, count = _called_once(network), 0
    for node in list(network.graph.nodes):
        conv = modules.get(node)
        if type(conv) is not nn.Conv2d or not WinogradConvolution.fits(conv):
            continue
        followers = _followers(node, 2)
        added = _added_to(node, followers[0]) if followers else None
        relus = [follower for follower in followers[0 if added is None else 1 :][:1] if _is_relu(follower)]
        module = WinogradConvolution(conv, library, clip=bool(relus))
        inputs = node.all_input_nodes[:1]
        if added is None:
            _put(network, node, module, inputs, instead_of=relus)
        else:  # in the sum's place, since what is added may come after the convolution
            _put(network, followers[0], module, [*inputs, added], instead_of=relus)
            network.graph.erase_node(node)
        count += 1
    return count


def _flatten_in_place(network: fx.GraphModule) -> None:
    """A linear layer behind a flattened image takes the features as they lie, channels last."""
    modules = _called_once(network)
    for node in list(network.graph.nodes):
        followers = _followers(node, 2)
        linear = modules.get(followers[-1]) if len(followers) == 2 else None
        if type(linear) is nn.Linear and _is_flatten(followers[0]) and len(_shape(node)) == 4:
            permuted = copy.deepcopy(linear)
            by_channel = linear.weight.detach().unflatten(1, (_shape(node)[1], -1))
            permuted.weight = nn.Parameter(by_channel.transpose(1, 2).flatten(1), requires_grad=False)
            _put(network, followers[0], _FlattenChannelsLast(), [node])
            _put(network, followers[1], permuted, [followers[0]])


def _round_weights(network: fx.GraphModule, dtype: torch.dtype) -> None:
    """Once what autocast does at every call; the modules are copies."""
    for module in _called_once(network).values():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)


def _called_once(network: fx.GraphModule) -> dict[fx.Node, nn.Module]:
    """The nodes that call a module which no other node calls, and these modules."""
    modules = dict(network.named_modules(remove_duplicate=False))
    calls = {node: modules[node.target] for node in network.graph.nodes if node.op == "call_module"}
    times = Counter(id(module) for module in calls.values())
    return {node: module for node, module in calls.items() if times[id(module)] == 1}


def _followers(node: fx.Node, most: int) -> list[fx.Node]:
    """The chain of nodes behind one, each the only one that uses the result before it."""
    chain: list[fx.Node] = []
    while len(node.users) == 1 and len(chain) < most:
        node = next(iter(node.users))
        chain.append(node)
    return chain


def _put(
    network: fx.GraphModule, node: fx.Node, module: nn.Module, inputs: list[fx.Node], *, instead_of: Iterable[fx.Node] = ()
) -> None:
    """Have ``node`` call ``module``, in place of what it did and of the nodes that follow."""
    name = f"{node.name}_{type(module).__name__}"
    network.add_submodule(name, module)
    node.op, node.target, node.args, node.kwargs = "call_module", name, tuple(inputs), {}
    for follower in instead_of:
        node.meta = follower.meta
        follower.replace_all_uses_with(node)
        network.graph.erase_node(follower)


def _shape(node: fx.Node) -> torch.Size:
    """The shape of what a node gives, as it was seen; an empty one where that is no tensor."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return torch.Size([0]) if shape is None else shape


def _called(node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    owner = node.graph.owning_module
    assert owner is not None
    return owner.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_relu(node: fx.Node) -> bool:
    named = {"call_function": (functional.relu, torch.relu), "call_method": ("relu", "relu_")}.get(node.op, ())
    return node.target in named or type(_called(node)) is nn.ReLU


def _is_flatten(node: fx.Node) -> bool:
    """Whether a node makes one row of each image, channels first."""
    named = {"call_function": (torch.flatten,), "call_method": ("flatten",)}.get(node.op, ())
    before = _shape(node.all_input_nodes[0])
    return (node.target in named or type(_called(node)) is nn.Flatten) and _shape(node) == (before[0], before[1:].numel())


def _added_to(node: fx.Node, follower: fx.Node) -> fx.Node | None:
    """What ``follower`` adds to the result of ``node``, where that is a tensor of its shape; else None."""
    named = {"call_function": (operator.add, operator.iadd, torch.add), "call_method": ("add", "add_")}.get(follower.op, ())
    if follower.target not in named or len(follower.args) != 2 or follower.kwargs:
        return None
    in_place = follower.target in (operator.iadd, "add_")
    others = [arg for arg in follower.args if isinstance(arg, fx.Node) and arg is not node]
    if len(others) != 1 or (in_place and follower.args[0] is not node):
        return None
    shape, dtype = _shape(others[0]), getattr(others[0].meta.get("tensor_meta"), "dtype", None)
    return others[0] if (shape, dtype) == (_shape(node), torch.float32) else None


def _halves(node: fx.Node) -> bool:
    """Whether a node is the maximum over 2 x 2 pixels."""
    wanted = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    if node.target is functional.max_pool2d:
        options = dict(zip(wanted, node.args[1:], strict=False)) | node.kwargs
    elif type(pool := _called(node)) is nn.MaxPool2d:
        options = {name: getattr(pool, name) for name in pool.__constants__}
    else:
        return False
    options = {name: value for name, value in options.items() if (name, value) != ("stride", None)}
    return all(value in (wanted.get(name), (wanted.get(name),) * 2) for name, value in options.items())


class _FlattenChannelsLast(nn.Module):
    """One row of each image, in the order in which a channels-last result lies in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)
