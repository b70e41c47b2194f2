"""The two networks of the live lab: export to compact ONNX files for the browser, and import as torch modules.

Weights are rounded to 8 bits with one scale per output channel. The ONNX graph multiplies weights and scales, so the browser
loads a quarter of the size and computes in float32. The export measures how well the rounded networks agree with the trained
ones. The result is stored in ``lab.json`` beside the networks, with the specs, records and digests they come from.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bslib.calling import evaluating
from bslib.chapters import plan_of
from bslib.datasets import to_float
from bslib.entropy import plug_in
from bslib.files import atomic_path, file_digest
from bslib.measure import standard_noise
from bslib.networks import build
from bslib.progress import bar
from bslib.specs import NetworkSpec
from bslib.store import PUBLISHED, Record, Store, open_store, published_folder
from bslib.training import load_weights
from bslib.triggers import PATTERNS, Trigger, pattern

__all__ = ["Agreement", "Examples", "agreement", "examples", "export", "networks", "store_of"]

FORMAT = 1
#: Minimum fraction of equal labels for an export; below it, the lab would show another network than the one in the book.
LEAST_AGREEMENT = 0.99


class Examples(NamedTuple):
    """The contents of the live lab as Python objects.

    Parameters
    ----------
    clean, backdoored : torch.nn.Module
        The same architecture trained without and with the attack, with weights rounded to 8 bits.
    images : float32 Tensor, shape (12, 1, 28, 28)
        Test images.
    labels : int64 Tensor, shape (12,)
    classes : tuple of str
    trigger : Trigger
        The trigger that the backdoored network was trained on.
    """

    clean: nn.Module
    backdoored: nn.Module
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    trigger: Trigger


class Agreement(NamedTuple):
    """Agreement of two networks under the same noise.

    Parameters
    ----------
    copies : int
        Number of noisy copies that both networks classified.
    labels : float
        Fraction of them for which both networks predict the same class.
    w_mean, w_max : float
        Mean and largest absolute difference of W over images and noise levels.
    """

    copies: int
    labels: float
    w_mean: float
    w_max: float


def networks() -> dict[str, NetworkSpec]:
    """Return the live lab's networks: the first network of the surface chapter, paper profile, and the same without attack.

    >>> {name: spec.attack is not None for name, spec in networks().items()}
    {'clean': False, 'backdoored': True}
    """
    first = next(spec for spec in plan_of("surface", "paper") if isinstance(spec, NetworkSpec))
    return {"clean": dataclasses.replace(first, attack=None), "backdoored": first}


def examples(folder: str | Path | None = None) -> Examples:
    """Load the networks, images and trigger of the live lab, without training.

    Parameters
    ----------
    folder : str or Path, optional
        As for :func:`export`. Default: ``book/_static/live`` in the clone of this package or of the current folder.

    Raises
    ------
    FileNotFoundError
        If the files do not exist.
    ValueError
        If a file is corrupt; the message names it.
    """
    folder = Path(folder) if folder is not None else published_folder().parent / "_static" / "live"
    if not (folder / "lab.json").is_file():
        raise FileNotFoundError(f"no live lab in {folder}: run this inside a clone of the repository, or name the folder")
    _onnx()
    try:
        return _read(folder)
    except Exception as problem:  # json, base64 and onnx raise almost any exception for a damaged file
        raise ValueError(f"the live lab in {folder} cannot be used ({problem}): run `bslib lab export` again") from None


def _read(folder: Path) -> Examples:
    about = json.loads((folder / "lab.json").read_text(encoding="utf-8"))
    if about["format"] != FORMAT:
        raise ValueError(f"lab.json has format {about['format']}, this version reads {FORMAT}: update bslib")
    pixels = np.frombuffer(base64.b64decode(about["images"]["pixels"]), np.uint8).reshape(about["images"]["shape"])
    read = {}
    for name, spec in networks().items():
        content = (folder / f"{name}.onnx").read_bytes()
        if hashlib.sha256(content).hexdigest() != about["networks"][name]["sha256"]:
            raise ValueError(f"{name}.onnx does not fit its digest in lab.json")
        read[name] = _network_from(content, spec, len(about["classes"]))
    return Examples(
        read["clean"],
        read["backdoored"],
        to_float(torch.from_numpy(pixels.copy())),
        torch.tensor(about["images"]["labels"]),
        tuple(about["classes"]),
        _trained_trigger(),
    )


def store_of(store: str | Path | Store | None) -> Store:
    """Open the store of ``bslib lab``: as :func:`bslib.store.open_store`, but a folder has the published records as base."""
    if store is None or store == PUBLISHED or isinstance(store, Store):
        return open_store(store)
    return Store(open_store(store).folder, base=open_store(PUBLISHED))


def export(
    store: str | Path | Store | None, out: str | Path, *, sigmas: Sequence[float] = (0.05, 0.1, 0.3), n: int = 250
) -> dict[str, Agreement]:
    """Write the files of the live lab: ``clean.onnx``, ``backdoored.onnx`` and, last, ``lab.json``.

    Parameters
    ----------
    store, out
        The store with the trained weights and their records, as for :func:`store_of`, and the folder for the files.
    sigmas, n
        Noise levels and number of noisy copies of each image with which the rounded networks are compared with the trained ones.
        The images are those of the lab, clean and with the trained trigger.

    Raises
    ------
    FileNotFoundError
        If the weights of a network are missing; the message names the command that trains it.
    ValueError
        If weights do not match their record, or the agreement of a rounded network with the trained one is too low.
    """
    source, out = store_of(store), Path(out)
    shown = plan_of("wobbliness", "paper")[1]  # the 12 test images on the page about the measure W
    pictures = (source if shown in source else open_store(PUBLISHED)).get(shown)
    classes, levels = pictures.result["classes"], torch.tensor(pictures.arrays["images"])
    images = to_float(levels)
    compared = torch.cat([images, to_float(_trained_trigger()(levels))])
    files: dict[str, bytes] = {}
    about: dict[str, dict[str, Any]] = {}
    found: dict[str, Agreement] = {}
    for name, spec in networks().items():
        trained, record = _trained(spec, source, len(classes))
        files[f"{name}.onnx"] = content = _onnx_bytes(trained, images.shape[1:])
        rounded = _network_from(content, spec, len(classes))
        found[name] = agreement(trained, rounded, compared, sigmas, n, description=f"comparing {name}")
        if found[name].labels < LEAST_AGREEMENT:
            raise ValueError(f"the rounded {name} network agrees with the trained one on only {found[name].labels:.1%} of labels")
        about[name] = {
            "spec": spec.as_dict(),
            "key": spec.key,
            "record": record.checksum,
            "weights": record.result["weights"],
            "trigger": getattr(spec.attack, "trigger", None),
            "target": getattr(spec.attack, "target", None),
            "file": f"{name}.onnx",
            "sha256": hashlib.sha256(content).hexdigest(),
            "agreement": {"sigmas": list(sigmas), "n": n, **found[name]._asdict()},
        }
    files["lab.json"] = (json.dumps(_lab(pictures, about), indent=1) + "\n").encode()
    for name, content in files.items():
        with atomic_path(out / name) as part:
            part.write_bytes(content)
    return found


def _lab(pictures: Record, about: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of ``lab.json``."""
    levels = pictures.arrays["images"]
    return {
        "format": FORMAT,
        "classes": pictures.result["classes"],
        "images": {
            "spec": pictures.spec.as_dict(),
            "record": pictures.checksum,
            "source": pictures.data["source"],
            "shape": list(levels.shape),
            "labels": pictures.arrays["labels"].tolist(),
            "pixels": base64.b64encode(levels.tobytes()).decode(),
        },
        "triggers": {number: _levels(trigger) for number, trigger in PATTERNS.items()},
        "networks": about,
    }


def agreement(
    one: nn.Module, other: nn.Module, images: Tensor, sigmas: Sequence[float], n: int, *, description: str = ""
) -> Agreement:
    """Compare two networks on ``n`` noisy copies of each float image (B, C, H, W) at each noise level.

    >>> agreement(nn.Flatten(), nn.Flatten(), torch.rand(2, 1, 1, 3), [0.1, 0.2], 5)
    Agreement(copies=20, labels=1.0, w_mean=0.0, w_max=0.0)
    """
    same, differences = 0, []
    with bar(total=len(images) * len(sigmas), desc=description, unit="batch") as shown:
        for image in images:
            noise = standard_noise(image[None], n, seed=0)[0]
            for sigma in sigmas:
                labels = [_labels(network, image + sigma * noise) for network in (one, other)]
                same += int((labels[0] == labels[1]).sum())
                w = [plug_in(np.bincount(called)).item() for called in labels]
                differences.append(abs(w[0] - w[1]))
                shown.update()
    copies = len(images) * len(sigmas) * n
    return Agreement(copies, same / copies, float(np.mean(differences)), float(np.max(differences)))


def _labels(network: nn.Module, images: Tensor) -> Any:
    with evaluating(network) as logits:
        return logits(images).argmax(1).numpy()


def _trained(spec: NetworkSpec, source: Store, classes: int) -> tuple[nn.Module, Record]:
    path = source.weights_path(spec)
    train = f"bslib lab train --store {source.folder}"
    if spec not in source or not path.is_file():
        raise FileNotFoundError(f"no weights of network {spec.key} in {source.folder}: `{train}` trains it")
    record = source.get(spec)
    if file_digest(path) != record.result["weights"]:
        raise ValueError(f"{path} is not the network that its record speaks of: `{train}` trains it again")
    network = build(spec.network, classes=classes, seed=spec.seed)
    load_weights(network, path)
    return network.eval(), record


def _trained_trigger() -> Trigger:
    attack = networks()["backdoored"].attack
    assert attack is not None  # the network is backdoored
    return pattern(attack.trigger)


def _levels(trigger: Trigger) -> list[list[int | None]]:
    """Return a trigger as rows of grey levels from 0 to 255, None for unchanged pixels; aligned to the lower right corner."""
    levels = trigger(torch.zeros(1, *trigger.mask.shape, dtype=torch.uint8))[0].numpy().astype(object)
    levels[~trigger.mask.numpy()] = None
    return levels.tolist()


# ONNX


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        missing = "the live lab's networks are ONNX files, and onnx is missing"
        raise RuntimeError(f"{missing}: pip install '.[lab]' in a clone of the book") from None
    return onnx


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight (out, ...) to int8 with a scale (out, 1, ...); their product differs from it by at most half a step."""
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (weight / scale).round().to(torch.int8), scale


def _onnx_bytes(network: nn.Module, shape: Iterable[int]) -> bytes:
    """Convert a network of convolutions, pooling, ReLU and dense layers to an ONNX file with 8-bit weights.

    A weight ``0.weight`` is stored as ``0.weight.int8`` and ``0.weight.scale``. Cast and Mul nodes combine them; a runtime does
    this once, when it loads the file.
    """
    onnx = _onnx()
    node, info, float32 = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes, last = [], "x"
    stored: dict[str, Tensor] = {}
    for number, layer in enumerate(network.children()):
        inputs, out = [last], f"out.{number}"
        if isinstance(layer, nn.Conv2d | nn.Linear):
            name = f"{number}.weight"
            weight, bias = (parameter.detach() for parameter in layer.parameters())
            whole, scale = _rounded(weight)
            stored |= {f"{name}.int8": whole, f"{name}.scale": scale, f"{number}.bias": bias}
            nodes.append(node("Cast", [f"{name}.int8"], [f"{name}.float"], to=float32))
            nodes.append(node("Mul", [f"{name}.float", f"{name}.scale"], [name]))
            inputs += [name, f"{number}.bias"]
        operator, attributes = _operator(layer)
        nodes.append(node(operator, inputs, [out], **attributes))
        last = out
    kept = [onnx.numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in stored.items()]
    ends = [info("x", float32, ["n", *shape])], [info(last, float32, ["n", None])]
    graph = onnx.helper.make_graph(nodes, "network", *ends, kept)
    model = onnx.helper.make_model(graph, producer_name="bslib", ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _operator(layer: nn.Module) -> tuple[str, Mapping[str, Any]]:
    match layer:
        case nn.Conv2d(kernel_size=kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
            return "Conv", {"kernel_shape": list(kernel)}
        case nn.MaxPool2d(kernel_size=int(size), stride=int(stride), padding=0, dilation=1, ceil_mode=False):
            return "MaxPool", {"kernel_shape": [size, size], "strides": [stride, stride]}
        case nn.Linear():
            return "Gemm", {"transB": 1}
        case nn.ReLU():
            return "Relu", {}
        case nn.Flatten(start_dim=1, end_dim=-1):
            return "Flatten", {"axis": 1}
    raise ValueError(f"a network of the live lab is made of plain convolutions, pooling, ReLU and dense layers, got {layer}")


def _network_from(content: bytes, spec: NetworkSpec, classes: int) -> nn.Module:
    """Build the torch module of an ONNX file written by :func:`_onnx_bytes`; external tensor files are never read."""
    onnx = _onnx()
    tensors = onnx.load_model_from_string(content).graph.initializer
    stored = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in tensors}
    for name in [name.removesuffix(".int8") for name in stored if name.endswith(".int8")]:
        stored[name] = stored.pop(f"{name}.int8").float() * stored.pop(f"{name}.scale")
    network = build(spec.network, classes=classes, seed=spec.seed)
    network.load_state_dict(stored)
    return network.eval()
