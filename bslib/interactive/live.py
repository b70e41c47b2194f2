"""The live lab's two networks: exported small enough for a browser, and read back as torch modules.

Weights are rounded to 8 bits with one scale for each output channel; the ONNX graph multiplies them out again, so a browser loads
a quarter of the size and computes in float32. How far the rounded networks agree with the trained ones is measured when they are
exported and stands, with the specs, records and digests they come from, in ``lab.json`` beside them.
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
from bslib.files import atomic_path
from bslib.measure import standard_noise
from bslib.measure import wobbliness as wobbliness_of
from bslib.networks import build
from bslib.progress import bar
from bslib.provenance import weights_digest
from bslib.specs import NetworkSpec
from bslib.store import PUBLISHED, Record, Store, open_store, published_folder
from bslib.training import load_weights
from bslib.triggers import PATTERNS, Trigger, pattern

__all__ = ["Agreement", "Examples", "agreement", "examples", "export", "networks", "store_of"]

FORMAT = 1
#: Below this share of equal labels an export is refused: the reader would see another network than the book speaks of.
LEAST_AGREEMENT = 0.99


class Examples(NamedTuple):
    """What the live lab shows, for Python.

    Parameters
    ----------
    clean, backdoored : torch.nn.Module
        The same architecture, trained without and with the attack; weights rounded to 8 bits.
    images : float32 Tensor, shape (12, 1, 28, 28)
        Test images.
    labels : int64 Tensor, shape (12,)
    classes : tuple of str
    trigger : Trigger
        The one that the backdoored network was trained on.
    """

    clean: nn.Module
    backdoored: nn.Module
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    trigger: Trigger


class Agreement(NamedTuple):
    """How far two networks agree under the same noise.

    Parameters
    ----------
    copies : int
        Noisy copies that both classified.
    labels : float
        The share of them that both call the same.
    w_mean, w_max : float
        The mean and the largest absolute difference of W, over images and noise levels.
    """

    copies: int
    labels: float
    w_mean: float
    w_max: float


def networks() -> dict[str, NetworkSpec]:
    """The networks of the live lab: the first of the surface chapter at the paper's size, and the same without the attack.

    >>> {name: spec.attack is not None for name, spec in networks().items()}
    {'clean': False, 'backdoored': True}
    """
    first = next(spec for spec in plan_of("surface", "paper") if isinstance(spec, NetworkSpec))
    return {"clean": dataclasses.replace(first, attack=None), "backdoored": first}


def examples(folder: str | Path | None = None) -> Examples:
    """The live lab's networks, images and trigger, without any training.

    Parameters
    ----------
    folder
        Where :func:`export` put them; ``book/_static/live`` of the clone that this package or the current folder is in unless
        given.

    Raises
    ------
    FileNotFoundError
        When they are not there.
    ValueError
        When they are damaged; the message names the file.
    """
    folder = Path(folder) if folder is not None else published_folder().parent / "_static" / "live"
    if not (folder / "lab.json").is_file():
        raise FileNotFoundError(f"no live lab in {folder}: run this inside a clone of the repository, or name the folder")
    about = json.loads((folder / "lab.json").read_text(encoding="utf-8"))
    if about["format"] != FORMAT:
        raise ValueError(f"{folder / 'lab.json'} has format {about['format']}, this version reads {FORMAT}: update bslib")
    pixels = np.frombuffer(base64.b64decode(about["images"]["pixels"]), np.uint8).reshape(about["images"]["shape"])
    read = {}
    for name, spec in networks().items():
        content = (folder / f"{name}.onnx").read_bytes()
        if hashlib.sha256(content).hexdigest() != about["networks"][name]["sha256"]:
            raise ValueError(f"{folder / name}.onnx does not fit its digest in lab.json: run `bslib lab export` again")
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
    """The store that ``bslib lab`` works with: as :func:`bslib.store.open_store`, a folder with the published records beneath."""
    if store is None or store == PUBLISHED or isinstance(store, Store):
        return open_store(store)
    return Store(Path(store).expanduser(), base=open_store(PUBLISHED))


def export(
    store: str | Path | Store | None, out: str | Path, *, sigmas: Sequence[float] = (0.05, 0.1, 0.3), n: int = 250
) -> dict[str, Agreement]:
    """Write the live lab's files: ``clean.onnx``, ``backdoored.onnx`` and, last, ``lab.json``.

    Parameters
    ----------
    store
        Where the trained weights lie beside their records; as for :func:`store_of`.
    out
        The folder for the files.
    sigmas : sequence of float
        Noise levels at which the rounded networks are compared with the trained ones.
    n : int
        Noisy copies of each image in that comparison; the images are those of the lab, clean and with the trained trigger.

    Returns
    -------
    dict of str to Agreement
        For each network.

    Raises
    ------
    FileNotFoundError
        When there are no weights of a network; the message names the command that makes them.
    ValueError
        When weights are not those of their record, or a rounded network agrees too little with the trained one.
    """
    source, out = store_of(store), Path(out)
    pictures = _pictures(source)
    classes, levels = pictures.result["classes"], torch.from_numpy(pictures.arrays["images"])
    images, triggered = to_float(levels), to_float(_trained_trigger()(levels))
    files: dict[str, bytes] = {}
    about: dict[str, dict[str, Any]] = {}
    found: dict[str, Agreement] = {}
    for name, spec in networks().items():
        trained, record = _trained(spec, source, len(classes))
        files[name] = _onnx_bytes(trained, images.shape[1:])
        rounded = _network_from(files[name], spec, len(classes))
        both = torch.cat([images, triggered])
        found[name] = agreement(trained, rounded, both, sigmas, n, description=f"comparing {name}")
        if found[name].labels < LEAST_AGREEMENT:
            raise ValueError(f"the rounded {name} network agrees with the trained one on only {found[name].labels:.1%} of labels")
        about[name] = _origin(record) | {
            "file": f"{name}.onnx",
            "bytes": len(files[name]),
            "sha256": hashlib.sha256(files[name]).hexdigest(),
            "predicted": _labels(rounded, images).tolist(),
            "wobbliest": int(wobbliness_of(rounded, images, progress=False).argmax()),
            "agreement": {"sigmas": list(sigmas), "n": n, **found[name]._asdict()},
        }
    lab = {
        "format": FORMAT,
        "classes": classes,
        "images": {
            "spec": pictures.spec.as_dict(),
            "record": pictures.checksum,
            "source": pictures.data["source"],
            "shape": list(levels.shape),
            "labels": pictures.arrays["labels"].tolist(),
            "pixels": base64.b64encode(levels.numpy().tobytes()).decode(),
        },
        "triggers": {number: _levels(trigger) for number, trigger in PATTERNS.items()},
        "networks": about,
    }
    for name, content in files.items():
        with atomic_path(out / f"{name}.onnx") as part:
            part.write_bytes(content)
    with atomic_path(out / "lab.json") as part:
        part.write_text(json.dumps(lab, indent=1) + "\n", encoding="utf-8")
    return found


def agreement(
    one: nn.Module, other: nn.Module, images: Tensor, sigmas: Iterable[float], n: int, *, seed: int = 0, description: str = ""
) -> Agreement:
    """What two networks make of the same noisy copies of float images (B, C, H, W), ``n`` of each at each noise level.

    >>> agreement(nn.Flatten(), nn.Flatten(), torch.rand(2, 1, 1, 3), [0.1, 0.2], 5)
    Agreement(copies=20, labels=1.0, w_mean=0.0, w_max=0.0)
    """
    sigmas = list(sigmas)
    same, differences = 0, []
    with bar(total=len(images) * len(sigmas), desc=description, unit="batch") as shown:
        for image in images:
            noise = standard_noise(image[None], n, seed=seed)[0]
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


def _pictures(source: Store) -> Record:
    """The dozen test images of the page on the measure W."""
    spec = plan_of("wobbliness", "paper")[1]
    return (source if spec in source else open_store(PUBLISHED)).get(spec)


def _trained(spec: NetworkSpec, source: Store, classes: int) -> tuple[nn.Module, Record]:
    path = source.weights_path(spec)
    train = f"bslib lab train --store {source.folder}"
    if spec not in source or not path.is_file():
        raise FileNotFoundError(f"no weights of network {spec.key} in {source.folder}: `{train}` trains it")
    record = source.get(spec)
    if weights_digest(path) != record.result["weights"]:
        raise ValueError(f"{path} is not the network that its record speaks of: `{train}` trains it again")
    network = build(spec.network, classes=classes, seed=spec.seed)
    load_weights(network, path)
    return network.eval(), record


def _trained_trigger() -> Trigger:
    attack = networks()["backdoored"].attack
    assert attack is not None  # it is the backdoored one
    return pattern(attack.trigger)


def _origin(record: Record) -> dict[str, Any]:
    """Which spec, record and weights a network comes from."""
    assert isinstance(record.spec, NetworkSpec)
    attack = record.spec.attack
    return {
        "spec": record.spec.as_dict(),
        "key": record.spec.key,
        "record": record.checksum,
        "weights": record.result["weights"],
        "clean_accuracy": record.result["clean_accuracy"],
        "trigger": attack.trigger if attack else None,
        "target": attack.target if attack else None,
    }


def _levels(trigger: Trigger) -> list[list[int | None]]:
    """A trigger as grey levels from 0 to 255 row by row, None where it leaves the pixel; it ends in the lower right corner."""
    stamped = trigger(torch.zeros(1, *trigger.mask.shape, dtype=torch.uint8))[0]
    return [
        [int(level) if covered else None for level, covered in zip(*row, strict=True)]
        for row in zip(stamped, trigger.mask, strict=True)
    ]


# ONNX


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise RuntimeError(
            "the live lab's networks are ONNX files, and onnx is missing: pip install '.[lab]' in a clone of the book"
        ) from None
    return onnx


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (out, ...) as int8 and its scale (out, 1, ...), so that their product is the weight to half a step."""
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (weight / scale).round().to(torch.int8), scale


def _onnx_bytes(network: nn.Module, shape: Iterable[int]) -> bytes:
    """A network made of convolutions, pooling, ReLU and dense layers as an ONNX file with weights of 8 bits.

    A weight ``0.weight`` of the network is stored as ``0.weight.int8`` and ``0.weight.scale``. Cast and Mul put them together: a
    runtime does so once, when it loads the file.
    """
    onnx = _onnx()
    from onnx import helper, numpy_helper

    nodes, stored, last = [], [], "x"

    def store(name: str, tensor: Tensor) -> None:
        stored.append(numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))

    for number, layer in enumerate(network.children()):
        inputs, out = [last], f"out.{number}"
        if isinstance(layer, nn.Conv2d | nn.Linear):
            name = f"{number}.weight"
            whole, scale = _rounded(layer.weight.detach())
            store(f"{name}.int8", whole)
            store(f"{name}.scale", scale)
            store(f"{number}.bias", layer.bias if layer.bias is not None else torch.zeros(len(whole)))
            nodes.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=onnx.TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name]))
            inputs += [name, f"{number}.bias"]
        operator, attributes = _operator(layer)
        nodes.append(helper.make_node(operator, inputs, [out], **attributes))
        last = out
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, ["n", None])],
        stored,
    )
    model = helper.make_model(graph, producer_name="bslib", ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
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
    """The torch module of an ONNX file that :func:`_onnx_bytes` wrote; only tensors in the file itself are read."""
    onnx = _onnx()
    stored = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load_model_from_string(content).graph.initializer
    }
    network = build(spec.network, classes=classes, seed=spec.seed)
    network.load_state_dict(
        {
            name: stored[f"{name}.int8"].float() * stored[f"{name}.scale"] if f"{name}.int8" in stored else stored[name]
            for name in network.state_dict()
        }
    )
    return network.eval()
