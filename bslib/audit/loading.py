"""Networks from files of strangers: weights are read without running code, and must fit the architecture key by key."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.transforms.v2 import Normalize

from bslib.engine import import_openvino
from bslib.files import file_digest
from bslib.networks import NETWORKS

__all__ = ["NORMALISATIONS", "OnnxNetwork", "build", "fit", "known_normalisation", "load", "normalised", "read_weights"]

#: Largest accepted weights file, in bytes.
MOST_BYTES = 2**34
#: Names under which training scripts save a state dict, and what wrappers put before its keys.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
#: Architectures of torchvision with auxiliary heads.
WITH_AUXILIARY = ("googlenet", "inception_v3")
#: What functions that build a network call the number of classes.
CLASSES = ("classes", "num_classes", "n_classes", "nb_classes", "num_class", "n_class", "nclass", "num_labels", "num_outputs")
#: Means and standard deviations that networks are often trained with.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "-1 to 1": ((0.5,), (0.5,)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.286,), (0.353,)),
}


def load(path: Path, arch: str, classes: int) -> nn.Module:
    """Build an architecture with the weights of a file: :func:`read_weights`, :func:`build` and :func:`fit`."""
    weights = read_weights(path)
    network = build(arch, classes)
    if arch.rpartition(".")[2] in WITH_AUXILIARY:  # heads that are trained along, and have no part in predictions
        weights = {key: tensor for key, tensor in weights.items() if not re.search(r"(^|\.)(aux[12]|AuxLogits)\.", key)}
    fit(network, weights, path)
    return network.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, or from a file of ``torch.save`` with ``weights_only=True``.

    A file that needs more than tensors is refused, and nothing in it is run. The usual wrappings of a state dict are undone.

    Raises
    ------
    ValueError
        In one line, with the path and the reason.

    >>> read_weights(Path("no-such-file"))
    Traceback (most recent call last):
    ValueError: no-such-file is no file
    """
    _check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_archive(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        named = re.search(r"GLOBAL (\S+)", str(problem))
        reason = f"it needs {named[1]}" if named else "it is no file of torch.save, or needs more than tensors"
        remedy = "ask for torch.save(model.state_dict(), ...) or a file that ends with .safetensors"
        raise ValueError(f"{path} was not read: {reason}, and reading that could run code; {remedy}") from None
    except Exception as problem:  # zipfile, torch and its unpickler raise almost any exception for a corrupt file
        reason = (str(problem).splitlines() or [type(problem).__name__])[0].split(". ")[0][:200]
        raise ValueError(f"{path} was not read: it is truncated, corrupt or no weights file ({reason})") from None
    beside: dict[str, Any] = {}
    for _ in WRAPPINGS:  # a pickle can hold itself: no loop until it ends
        name = next((n for n in WRAPPINGS if isinstance(found.get(n), dict)), None) if isinstance(found, dict) else None
        if name is None:
            break
        beside |= {other: part for other, part in found.items() if other != name}
        found = found[name]
    if not isinstance(found, dict) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        what = f"a dictionary with {', '.join(map(repr, list(found)[:5]))}" if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"{path} holds no state dict, but {what}: it should map names to tensors, or hold that as 'state_dict'")
    for key, tensor in found.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{path} was not read: {key} is quantised, sparse or without values; ask for plain float weights")
    _check_single(found, beside, path)
    return {str(key): tensor for key, tensor in found.items()}


def _check_single(weights: dict[str, Tensor], beside: dict[str, Any], path: Path) -> None:
    """Raise a ValueError if a file holds a second network beside these weights, such as its moving average."""
    shapes = [tensor.shape for tensor in weights.values() if tensor.ndim]
    loose = {name: part for name, part in beside.items() if isinstance(part, Tensor)}
    for name, part in {**beside, "the top level": loose}.items():
        alike = sum(tensor.is_floating_point() and tensor.shape in shapes for tensor in _tensors(part))
        if 2 * alike > len(shapes):
            reason = f"it holds the weights of a second network under {name!r}, and only one is audited"
            raise ValueError(f"{path} was not read: {reason}; save the one that you mean by itself")


def _tensors(part: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield the tensors of dictionaries with names; an optimiser has numbers for its parameters."""
    for inner in part.values() if isinstance(part, dict) and all(isinstance(key, str) for key in part) and depth else ():
        if isinstance(inner, Tensor):
            yield inner
        else:
            yield from _tensors(inner, depth - 1)


def fit(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights into a network; raise a ValueError that names keys that do not fit.

    Keys may be missing or unexpected, or hold another shape, integers instead of floats, or parameters that are not finite.
    Prefixes that wrappers put before all keys, such as ``module.``, are removed.

    >>> fit(nn.Linear(2, 1), {"module.weight": torch.ones(1, 2)}, Path("w.pt"))
    Traceback (most recent call last):
    ValueError: w.pt does not fit the architecture: missing bias
    """
    wanted, parameters = network.state_dict(), dict(network.named_parameters())
    while prefix := next((p for p in PREFIXES if _wraps(p, weights, wanted)), ""):
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    pairs = [(key, weights[key], tensor) for key, tensor in wanted.items() if key in weights]
    fitting = [key for key, new, old in pairs if new.shape == old.shape]
    differences = {
        "missing": [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in weights if key not in wanted],
        "shapes": [f"{key} {list(new.shape)} instead of {list(old.shape)}" for key, new, old in pairs if key not in fitting],
        # Copying would round or cut such weights without a word: the network would be another one.
        "types": [
            f"{key} {new.dtype} instead of {old.dtype}"
            for key, new, old in pairs
            if old.is_floating_point() and not new.is_floating_point()
        ],
        "NaN or infinity in": [key for key in fitting if key in parameters and not weights[key].isfinite().all()],
    }
    if any(differences.values()):
        text = "; ".join(f"{what} {listed(names)}" for what, names in differences.items() if names)
        raise ValueError(f"{path} does not fit the architecture: {text}")
    network.load_state_dict(weights, strict=False)


def _wraps(prefix: str, weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Whether a prefix is before all keys, or before all that are wanted, as where a loss has weights of its own.

    Without it no two keys may be one: a file with two networks holds no answer to which is meant.
    """
    under = {key.removeprefix(prefix) for key in weights if key.startswith(prefix)}
    whole = len(under) == len(weights) or under >= wanted.keys()
    apart = len({key.removeprefix(prefix) for key in weights}) == len(weights)
    return bool(under) and whole and apart and not weights.keys() <= wanted.keys()


def build(arch: str, classes: int) -> nn.Module:
    """Build an architecture with random weights.

    Parameters
    ----------
    arch : str
        ``torchvision.models.NAME``, ``timm.NAME``, one of :data:`bslib.networks.NETWORKS`, or ``FILE.py:FUNCTION``. The last
        runs the file; the function gets the number of classes if it has a parameter of one of the usual names, as ``classes``
        or ``num_classes``, or else one without a default.
    classes : int
        Number of outputs.

    >>> build("os.system", 10)
    Traceback (most recent call last):
    ValueError: arch must be torchvision.models.NAME, timm.NAME, FILE.py:FUNCTION or one of ..., got 'os.system'
    """
    file, _, function = arch.rpartition(":")
    if file.endswith(".py"):
        return _built_by(Path(file), function, classes)
    if arch in NETWORKS:
        return NETWORKS[arch](classes)
    if (named := re.fullmatch(r"(torchvision\.models|timm)\.(.*)", arch)) is None:
        choices = f"torchvision.models.NAME, timm.NAME, FILE.py:FUNCTION or one of {', '.join(NETWORKS)}"
        raise ValueError(f"arch must be {choices}, got {arch!r}")
    library, name = named.groups()  # timm's names have a dot before the tag of their weights
    try:
        module = importlib.import_module(library)
    except ImportError:
        raise ValueError(f"arch {arch!r} needs {library.split('.')[0]}: pip install {library.split('.')[0]}") from None
    try:
        if library == "timm":
            network: nn.Module = module.create_model(name, pretrained=False, num_classes=classes)
        else:
            more: dict[str, Any] = {"aux_logits": False} if name in WITH_AUXILIARY else {}
            if "weights_backbone" in inspect.signature(module.get_model_builder(name)).parameters:
                more["weights_backbone"] = None  # by default it would be downloaded
            network = module.get_model(name, weights=None, num_classes=classes, **more)
    except (ValueError, RuntimeError, TypeError) as problem:
        raise ValueError(f"arch {arch!r} cannot be built: {str(problem).splitlines()[0]}") from None
    return network


def known_normalisation(arch: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return the mean and standard deviation of a torchvision architecture's own weights, or None.

    >>> known_normalisation("torchvision.models.resnet18")
    ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    """
    library, _, name = arch.rpartition(".")
    if library != "torchvision.models":
        return None
    transforms = next(iter(get_model_weights(name))).transforms()
    return (transforms.mean, transforms.std) if hasattr(transforms, "mean") else None  # those of a detector have none


def normalised(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Put a normalisation before a network, so that noise is added to pixels in [0, 1]."""
    if len(mean) != len(std) or not all(s > 0 for s in std) or not all(map(math.isfinite, (*mean, *std))):
        raise ValueError(f"mean and std must be as many finite numbers, std above 0, got {list(mean)} and {list(std)}")
    return nn.Sequential(Normalize(mean, std), network)


class OnnxNetwork(nn.Module):
    """An ONNX file, run by OpenVINO. It has no gradients, so there are no trigger candidates."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        _check_file(path)
        try:
            openvino = import_openvino()
        except ImportError:
            raise ValueError("an ONNX file needs OpenVINO: pip install 'bslib[fast]'") from None
        try:
            graph = openvino.Core().read_model(str(path))
            if len(graph.inputs) != 1 or not (kind := graph.inputs[0].get_element_type()).is_real():
                got = f"{len(graph.inputs)} inputs" if len(graph.inputs) != 1 else f"an input of {kind.get_type_name()}"
                raise ValueError(f"{path} must take one batch of float images, and has {got}")
            shape = graph.inputs[0].partial_shape
            shape[0] = -1  # exported files often have a fixed batch
            graph.reshape({graph.inputs[0]: shape})
            # By default it would run in bfloat16 where the hardware has it, with pinned threads on all cores.
            options = {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "ENABLE_CPU_PINNING": False,
            }
            self._compiled = openvino.compile_model(graph, "CPU", options)
        except RuntimeError as problem:
            raise ValueError(f"{path} was not read by OpenVINO: {str(problem).strip().splitlines()[-1][:200]}") from None
        digest = hashlib.sha256(path.read_bytes())
        for node in graph.get_ordered_ops():  # weights may lie in files beside it
            if node.get_type_name() == "Constant":
                digest.update(node.get_data().tobytes())
        self.file_digest = digest.hexdigest()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, C, H, W) to logits, the first output."""
        try:
            return torch.from_numpy(self._compiled(x.detach().numpy())[0].copy())
        except RuntimeError as problem:
            reason = [line for line in str(problem).splitlines() if line.strip()][-1].strip()[:300]
            raise ValueError(f"the ONNX file does not take images of shape {tuple(x.shape[1:])}: {reason}") from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are read")


def _check_archive(path: Path) -> None:
    """Refuse programs, and archives that unpack to more than they hold: torch stores tensors without compression."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size, names = path.stat().st_size, {name.rpartition("/")[2] for name in archive.namelist()}
            if "data.pkl" not in names or "constants.pkl" in names:
                raise ValueError("a program of TorchScript or torch.export, or another archive without a state dict")
            entries = archive.infolist()  # several may point to the same bytes
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
                raise ValueError("the archive unpacks to more than it holds, which those of torch.save do not")


def _built_by(file: Path, function: str, classes: int) -> nn.Module:
    spec = importlib.util.spec_from_file_location(f"_bslib_architecture_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    try:
        spec.loader.exec_module(module)
        make: Callable[..., Any] = getattr(module, function)
        network = _made(make, classes)
    except (Exception, SystemExit) as problem:  # user code may raise any; 0, the code of an exit, would be "no sign found"
        raise ValueError(f"{file}:{function} failed: {type(problem).__name__}: {str(problem).partition(chr(10))[0]}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{file}:{function} must return a torch.nn.Module, got {type(network).__name__}")
    vars(network)["file_digest"] = file_digest(file)
    return network


def _made(make: Callable[..., Any], classes: int) -> Any:
    parameters = inspect.signature(make).parameters
    by_name = (p for p in map(parameters.get, CLASSES) if p is not None and p.kind != p.POSITIONAL_ONLY)
    if named := next(by_name, None):
        return make(**{named.name: classes})
    return make(classes) if any(p.default is p.empty and p.kind <= p.VAR_POSITIONAL for p in parameters.values()) else make()


def listed(names: Sequence[object]) -> str:
    """The first eight names, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(str, names[:8])) + more
