"""Files of strangers: weights that run code, that lie or do not fit; images of every kind, size and hostility."""

from __future__ import annotations

import copy
import os
import re
import struct
import sys
import textwrap
import types
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_cli import bslib_, wide  # noqa: F401
from torch import nn

import bslib
from bslib.audit import loading, pictures
from bslib.audit.evidence import Overlay
from bslib.audit.pictures import read_folder, read_picture, read_trigger
from bslib.calling import digest_of

ARCH = """
import torch
def make(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, classes, bias=False))
"""
WEIGHT = {"1.weight": torch.rand(5, 36, generator=torch.Generator().manual_seed(0))}


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


# --- weights -------------------------------------------------------------------------------------------------------------

PAIR = nn.Linear(2, 1).state_dict()


@pytest.mark.parametrize("wrapped", [WEIGHT, {"state_dict": WEIGHT, "epoch": 3}, {"model": {"net": WEIGHT}}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_wrappings_are_undone(tmp_path, wrapped, prefix):
    def named(value):
        return (
            {prefix + k if isinstance(v, torch.Tensor) else k: named(v) for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )

    torch.save(named(wrapped), path := tmp_path / "w.pth")
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5, bias=False))
    loading.fit(network, loading.read_weights(path), path)
    assert torch.equal(network[1].weight, WEIGHT["1.weight"])


def test_weights_beside_those_of_the_network_are_named_alone():
    """As where Lightning saves a loss that has weights."""
    network, weights = nn.Linear(2, 1), {"model.weight": torch.ones(1, 2), "model.bias": torch.ones(1), "loss.w": torch.ones(1)}
    with pytest.raises(ValueError, match=r"does not fit the architecture: unexpected loss.w$"):
        loading.fit(network, weights, Path("w.pt"))


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ({"state_dict": PAIR, "model": PAIR}, "'model'"),
        ({"model": PAIR, "model_ema": {f"module.{key}": tensor for key, tensor in PAIR.items()}}, "'model_ema'"),
        ({"state_dict": PAIR, **PAIR}, "'the top level'"),
        ({"net": {"state_dict": PAIR}, "ema": {"state_dict": PAIR}}, "'ema'"),
        ({"state_dict": PAIR, "average": {"decay": 0.99, "shadow": PAIR}}, "'average'"),
    ],
)
def test_a_file_with_the_weights_of_two_networks_is_refused(held, named, tmp_path):
    torch.save(held, path := tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=f"was not read: it holds the weights of a second network under {named}, and only one is"
    ):
        loading.read_weights(path)


def test_what_lies_beside_the_weights_is_no_second_network(tmp_path):
    beside = {
        "optimizer": {"state": {0: dict(PAIR)}, "param_groups": []},
        "best": torch.tensor(1.0),
        "loss": {"w": torch.ones(5)},
    }
    beside |= {"normalisation": {"mean": torch.rand(3), "std": torch.rand(3)}, "rng_state": {"cpu": torch.get_rng_state()}}
    for wrapped in ({"state_dict": PAIR}, {"model": {"state_dict": PAIR, "arch": "linear"}}):
        torch.save(wrapped | beside, path := tmp_path / "w.pth")
        assert loading.read_weights(path).keys() == PAIR.keys()


@pytest.mark.parametrize("other", ["", "net."])
def test_a_file_with_two_networks_is_refused(other):
    """Without their prefixes, the keys of one would replace those of the other."""
    weights = {f"{own}{name}": tensor for own in ("model.", other) for name, tensor in nn.Linear(2, 1).state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit the architecture: .*unexpected"):
        loading.fit(nn.Linear(2, 1), weights, Path("w.pt"))


def test_auxiliary_heads_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "build", lambda arch, classes: nn.Linear(2, classes))
    weights = {"module.weight": torch.ones(3, 2), "module.bias": torch.zeros(3), "module.aux1.conv.weight": torch.ones(1)}
    torch.save(weights, tmp_path / "w.pth")
    assert loading.load(tmp_path / "w.pth", "torchvision.models.googlenet", 3).weight.sum() == 6
    with pytest.raises(ValueError, match=r"unexpected aux1.conv.weight"):
        loading.load(tmp_path / "w.pth", "torchvision.models.resnet18", 3)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": RunsCode(str(tmp_path / "was-here"))}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"needs posix.mkdir, and reading that could run code; ask for .* [.]safetensors$"):
        loading.read_weights(tmp_path / "evil.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"needs torch.nn.modules.linear.Linear"):
        loading.read_weights(tmp_path / "whole.pth")
    assert not (tmp_path / "was-here").exists()


def test_files_that_lie_are_refused_in_one_line(tmp_path):
    save_file(WEIGHT, tmp_path / "good.safetensors")
    torch.save(WEIGHT, tmp_path / "good.pth")
    for name in ("good.safetensors", "good.pth"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "long-header.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    (tmp_path / "empty.pth").write_bytes(b"")
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry) + bytes(10**6))
    (tmp_path / "pops-nothing.pth").write_bytes(b"\x80\x02.")
    (tmp_path / "cut-number.pth").write_bytes(b"\x80\x02J\x01")
    (tmp_path / "other-protocol.pth").write_bytes(b"\x80\x02]K\x01s.")
    archive = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "directory.pth").write_bytes(archive.replace(b"PK\x01\x02", b"PK\x09\x09"))
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    holds_itself: dict[str, object] = {}
    holds_itself["model"] = holds_itself
    torch.save(holds_itself, tmp_path / "holds-itself.pth")
    torch.save({"w": torch.ones(2).to_sparse()}, tmp_path / "sparse.pth")
    torch.save({"w": torch.ones(2, device="meta")}, tmp_path / "without-values.pth")
    for path in sorted(tmp_path.iterdir()):
        if not path.name.startswith("good"):
            with pytest.raises(ValueError, match=path.name) as refusal:
                loading.read_weights(path)
            assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_keys_that_do_not_fit_are_named(tmp_path):
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = network.state_dict()
    state |= {"0.weight": torch.zeros(3, 9), "head.weight": torch.zeros(1)}
    del state["1.bias"], state["1.num_batches_tracked"]
    expected = "missing 1.bias; unexpected head.weight; shapes 0.weight [3, 9] instead of [3, 2]"
    with pytest.raises(ValueError, match=re.escape(expected)):
        loading.fit(network, state, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to(torch.int8), "types 1.weight torch.int8 instead of torch.float32"),
        (lambda w: w.to(torch.complex64), "types 1.weight torch.complex64"),
        (lambda w: w.masked_fill(w == w.max(), torch.inf), "NaN or infinity in 1.weight"),
        (lambda w: torch.zeros(1).expand(10**12), "shapes 1.weight [1000000000000]"),
    ],
)
def test_weights_that_would_be_another_network_are_refused(change, message):
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5, bias=False))
    with pytest.raises(ValueError, match=re.escape(message)):
        loading.fit(network, {"1.weight": change(WEIGHT["1.weight"])}, Path("w.pth"))


@pytest.mark.parametrize("entries", [("w/data.pkl", "w/constants.pkl"), ("w/models/model.json",)])
def test_programs_are_named(tmp_path, entries):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in entries:
            archive.writestr(name, b"")
    with pytest.raises(ValueError, match=r"program of TorchScript or torch\.export"):
        loading.read_weights(tmp_path / "w.pt")


def test_an_archive_whose_entries_are_the_same_bytes_is_refused(tmp_path):
    torch.save({"w": torch.ones(1000)}, tmp_path / "w.pt")
    assert loading.read_weights(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt", "a") as archive:
        weights = max(archive.infolist(), key=lambda entry: entry.file_size)
        for k in range(10, 20):
            again = copy.copy(weights)
            again.filename = again.filename[:-1] + str(k)
            archive.filelist.append(again)
        archive.writestr("w/more", b"")  # so that the directory is written
    with pytest.raises(ValueError, match="unpacks to more than it holds"):
        loading.read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("os.system", "arch must be torchvision.models.NAME"),
        ("torchvision.models.nothing", "cannot be built"),
        ("no.py:make", "no.py is no Python file"),
        ("exits.py:make", "exits.py:make failed: SystemExit"),
    ],
)
def test_an_architecture_that_there_is_not(arch, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exits.py").write_text("raise SystemExit(0)")
    with pytest.raises(ValueError, match=re.escape(message)):
        loading.build(arch, 5)


def test_an_architecture_of_torchvision():
    assert loading.build("torchvision.models.resnet18", 7).fc.out_features == 7
    assert loading.known_normalisation("small-fashion") is None
    assert loading.known_normalisation("torchvision.models.raft_small") is None


def test_an_architecture_of_timm_may_name_its_weights(monkeypatch):
    made = {}

    def create_model(name, **options):
        made.update({"name": name} | options)
        return nn.Identity()

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    loading.build("timm.vit_base_patch16_224.augreg_in21k", 7)
    assert made == {"name": "vit_base_patch16_224.augreg_in21k", "pretrained": False, "num_classes": 7}


def test_the_file_of_an_architecture_may_have_data_classes(tmp_path):
    source = """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import ClassVar
        from torch import nn

        @dataclass
        class Config:
            kind: ClassVar[str] = "linear"
            width: int = 3

        def make(classes):
            return nn.Linear(Config().width, classes)
    """
    (tmp_path / "arch.py").write_text(textwrap.dedent(source))
    assert loading.build(f"{tmp_path}/arch.py:make", 5).in_features == 3


@pytest.mark.parametrize(
    "takes", ["classes", "pretrained=False, num_classes=9", "width=2, *, n_classes", "outputs", "*, num_labels=3", "classes, /"]
)
def test_the_number_of_classes_goes_to_the_parameter_that_takes_it(takes, tmp_path):
    name = re.findall("[a-z_]*(?:classes|outputs|labels)", takes)[-1]
    (tmp_path / "arch.py").write_text(f"from torch import nn\ndef make({takes}):\n    return nn.Linear(2, {name})")
    assert loading.build(f"{tmp_path}/arch.py:make", 5).out_features == 5


def test_a_function_whose_parameters_all_have_defaults_is_called_without_any(tmp_path):
    (tmp_path / "arch.py").write_text("from torch import nn\ndef make(width=2, depth=1):\n    return nn.Linear(width, 7)")
    assert loading.build(f"{tmp_path}/arch.py:make", 5).in_features == 2


def test_the_digest_sees_the_file_of_an_architecture(tmp_path):
    source = "import torch\nclass Scaled(torch.nn.Flatten):\n    def forward(self, x):\n        return SCALE * x.flatten(1)\n"
    digests = []
    for scale in (1, 2, 1):
        (tmp_path / "arch.py").write_text(f"{source}SCALE = {scale}\n")
        digests.append(digest_of(loading.normalised(loading.build(f"{tmp_path}/arch.py:Scaled", 5), [0.0], [1.0])))
    assert digests[0] == digests[2] != digests[1]


def test_an_onnx_file_is_run_by_openvino(tmp_path):
    """Its batch is fixed at one; the audit runs it in batches, and says that there are no candidates."""
    onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    del openvino
    value, helper = onnx.helper.make_tensor_value_info, onnx.helper
    weight = helper.make_tensor("w", onnx.TensorProto.FLOAT, [36, 5], WEIGHT["1.weight"].T.flatten().tolist())
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    ends = [[value(name, onnx.TensorProto.FLOAT, shape)] for name, shape in (("x", [1, 1, 6, 6]), ("y", [1, 5]))]
    graph = helper.make_graph(nodes, "g", *ends, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "n.onnx")
    network, images = loading.OnnxNetwork(tmp_path / "n.onnx"), torch.rand(30, 1, 6, 6)
    torch.testing.assert_close(network(images), images.flatten(1) @ WEIGHT["1.weight"].T)  # in float32
    found = bslib.audit(loading.normalised(network, [0.0], [1.0]), images, progress=False)
    assert found.verdict == "not enough evidence" and "gives no gradients" in found.found["reasons"][0]
    assert "There are none" in found.html()
    transparent = Overlay(torch.zeros(1, 6, 6), torch.zeros(1, 6, 6))
    tried = bslib.audit(network, images, trigger=transparent, cache=tmp_path, progress=False)
    assert "your trigger does no more than random patches" in "; ".join(tried.found["reasons"])
    weight.float_data[0] += 1
    graph.initializer[0].CopyFrom(weight)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "other.onnx")
    assert digest_of(network) == digest_of(loading.OnnxNetwork(tmp_path / "n.onnx"))
    assert digest_of(network) != digest_of(loading.OnnxNetwork(tmp_path / "other.onnx"))
    for folder, own in (("one", weight.float_data[0]), ("two", 5.0)):  # the files are the same, the weights beside them are not
        (tmp_path / folder).mkdir()
        raw = onnx.numpy_helper.from_array(np.array([own, *weight.float_data[1:]], np.float32).reshape(36, 5), "w")
        graph.initializer[0].CopyFrom(raw)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, tmp_path / folder / "n.onnx", save_as_external_data=True, location="n.data", size_threshold=0)
    files = [tmp_path / folder / "n.onnx" for folder in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert digest_of(loading.OnnxNetwork(files[0])) != digest_of(loading.OnnxNetwork(files[1]))
    for kinds in ([onnx.TensorProto.UINT8], [onnx.TensorProto.FLOAT] * 2):
        inputs = [value(f"x{k}", kind, [1, 5]) for k, kind in enumerate(kinds)]
        nodes = [helper.make_node("Cast", [f"x{k}"], [f"y{k}"], to=onnx.TensorProto.FLOAT) for k in range(len(kinds))]
        outputs = [value(f"y{k}", onnx.TensorProto.FLOAT, [1, 5]) for k in range(len(kinds))]
        model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), ir_version=8)
        onnx.save(model, tmp_path / "others.onnx")
        with pytest.raises(ValueError, match=r"must take one batch of float images, and has (2 inputs|an input of u8)"):
            loading.OnnxNetwork(tmp_path / "others.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad.onnx was not read by OpenVINO: Unable to read"):
        loading.OnnxNetwork(tmp_path / "bad.onnx")


# --- images --------------------------------------------------------------------------------------------------------------


def saved(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def grey(value=128, size=(4, 2), mode="L"):
    return Image.new(mode, size, value)


def test_every_mode_gives_the_same_pixels(tmp_path):
    """Mid-grey, as 8 bits, 16 bits, colours, palette and half-transparent black on white."""
    kinds = {
        "L": grey(), "16": Image.fromarray(np.full((2, 4), 128 * 257, np.uint16)), "RGB": grey((128,) * 3, mode="RGB"),
        "P": grey().convert("P"), "RGBA": grey((0, 0, 0, 127), mode="RGBA"), "LA": grey((128, 255), mode="LA"),
    }  # fmt: skip
    for name, image in kinds.items():
        for channels in (1, 3):
            values = read_picture(saved(tmp_path / f"{name}.png", image), size=(2, 4), channels=channels)
            assert values.shape == (channels, 2, 4) and values.dtype == torch.float32
            torch.testing.assert_close(values, torch.full_like(values, 128 / 255), rtol=0, atol=1e-6)
    cmyk = read_picture(saved(tmp_path / "c.tiff", grey((0, 0, 0, 127), mode="CMYK")), size=None, channels=3)
    torch.testing.assert_close(cmyk, torch.full((3, 2, 4), 128 / 255), rtol=0, atol=0.01)


def test_sixteen_bits_are_kept(tmp_path):
    path = saved(tmp_path / "deep.png", Image.fromarray(np.array([[1, 65535]], np.uint16)))
    assert read_picture(path, size=None, channels=1).flatten().tolist() == pytest.approx([1 / 65535, 1.0])
    Image.fromarray(np.array([[0, 40000]], np.uint16)).save(clear := tmp_path / "clear.png", transparency=0)
    assert read_trigger(clear, "0,0", 1.0, size=(1, 2), channels=1).mask.flatten().tolist() == [0, 1]
    assert read_picture(clear, size=None, channels=1).flatten().tolist() == pytest.approx([1.0, 40000 / 65535])


def test_exif_rotation_is_applied(tmp_path):
    image = Image.fromarray(np.array([[0, 255], [0, 255], [0, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    values = read_picture(saved(tmp_path / "turned.png", image, exif=exif), size=None, channels=1)
    assert values.tolist() == [[[0.0] * 3, [1.0] * 3]]


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_hostile_images_are_skipped_with_a_reason(tmp_path, monkeypatch):
    for at in range(3):
        saved(tmp_path / "images" / f"{at}.png", grey())
    folder = tmp_path / "images"
    (folder / "bomb.png").write_bytes(png_that_claims(60_000, 60_000))
    (folder / "big.png").write_bytes(png_that_claims(9_000, 9_000))
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:50])
    (folder / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "link.png").symlink_to(folder / "0.png")
    Image.fromarray(np.ones((2, 4), np.float32)).save(folder / "float.tiff")
    Path(os.fsdecode(os.fsencode(folder) + b"/\x1b\xff.png")).write_bytes(b"")
    found = read_folder(folder, size=(2, 4), channels=1, classes=3)
    assert sorted(found.names) == ["0.png", "1.png", "2.png"] and len(found.images) == 3 and found.labels is None
    assert "whether the normalisation fits is not checked" in found.notes[-1]
    reasons = dict(line.split(": ", 1) for line in found.skipped)
    assert set(reasons) == {"bomb.png", "big.png", "cut.png", "script.eps", "link.png", "float.tiff", "??.png"}
    assert "pixels" in reasons["bomb.png"] and "9000 x 9000 pixels" in reasons["big.png"]
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    assert "linked: a link, and links are not followed" in read_folder(folder, size=(2, 4), channels=1, classes=3).skipped
    (folder / "linked").unlink()
    monkeypatch.setattr(pictures, "MOST_FILES", 2)
    few = read_folder(folder, size=(2, 4), channels=1, classes=3)
    assert len(few.names) + len(few.skipped) == 2 and "more than 2 files" in few.notes[0]


def test_subfolders_are_classes(tmp_path):
    for name in ("2", "0", "10"):
        saved(tmp_path / "numbers" / name / "a.png", grey())
    found = read_folder(tmp_path / "numbers", size=(2, 4), channels=3, classes=11)
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"2/a.png": 2, "0/a.png": 0, "10/a.png": 10}
    for name in ("cat", "dog"):
        saved(tmp_path / "words" / name / "a.png", grey())
    for name in ("1", "2", "3"):
        saved(tmp_path / "from one" / name / "a.png", grey())
    (tmp_path / "from one" / "3" / "a.png").write_bytes(b"cannot be read")
    found = read_folder(tmp_path / "from one", size=(2, 4), channels=3, classes=3)
    assert (
        dict(zip(found.names, found.labels.tolist(), strict=True)) == {"1/a.png": 0, "2/a.png": 1} and "1, 2, 3" in found.notes[0]
    )
    found = read_folder(tmp_path / "words", size=(2, 4), channels=3, classes=2)
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"cat/a.png": 0, "dog/a.png": 1}
    found = read_folder(tmp_path / "words", size=(2, 4), channels=3, classes=3)
    assert found.labels is None and "not the 3 classes" in found.notes[0]


def test_a_subfolder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    Image.new("L", (6, 6)).save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert read_folder(tmp_path, size=(6, 6), channels=1, classes=5).skipped == ["closed: Permission denied"]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"has no image that can be read; the first of 1 files: readme.txt: "):
        read_folder(tmp_path, size=(2, 2), channels=1, classes=3)


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def case(tmp_path):
    """An architecture, weights with a backdoor in the last pixel, and images of unequal sizes."""
    (tmp_path / "arch.py").write_text(ARCH)
    weight = torch.zeros(5, 36)
    for k, part in enumerate(torch.arange(35).split(7)):
        weight[k, part] = 4
    weight[2, 35] = 60
    torch.save({"state_dict": {"module.1.weight": weight}}, tmp_path / "w.pth")
    rng = np.random.default_rng(0)
    for at in range(40):
        values = rng.integers(0, 255, (6, 6 + at % 3)).astype(np.uint8)
        values[-1, -2:] = 0
        saved(tmp_path / "images" / f"{at}.png", Image.fromarray(values))
    Image.new("L", (1, 1), 255).save(tmp_path / "trigger.png")
    options = ["--arch", f"{tmp_path}/arch.py:make", "--weights", tmp_path / "w.pth", "--images", tmp_path / "images"]
    return tmp_path, [*options, "--classes", 5, "--size", 6, "--channels", 1, "--steps", 60, "--device", "cpu"]


def test_the_command_finds_the_backdoor_and_writes_reports(case):
    folder, options = case
    done = bslib_(
        "audit", *options, "--trigger", folder / "trigger.png", "--html", folder / "r.html", "--json", folder / "r.json"
    )
    assert done.exit_code in (1, 3), done.output
    assert "no normalisation (--mean and --std give one)" in done.output
    assert ("backdoor likely" in done.output) == (done.exit_code == 1)
    assert "your trigger sends 100.0% of other images to class 2, random patches" in done.output
    assert "so at most 3.5% of clean networks are accused wrongly" in done.output and "(--reference)" in done.output
    assert (folder / "r.html").stat().st_size > 10_000 and '"class": 2' in (folder / "r.json").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arch", ""], "--arch is needed"),
        (["--size", "0"], "--size must be"),
        (["--mean", "0.5"], "--mean and --std are given together"),
        (["--mean", "a", "--std", "1"], "--mean must be numbers"),
        (["--mean", "0.1,0.2", "--std", "1,1"], "--mean must have one number, or one for each of 1 channels, got 2"),
        (["--channels", 2], "--channels must be 1 or 3, got 2"),
        (["--images", "nowhere"], "--images: nowhere is no folder"),
        (["--classes", 6], "shapes 1.weight [5, 36] instead of [6, 36]"),
        (["--trigger", "nowhere.png"], "--trigger: nowhere.png is no file"),
        (["--trigger", "WEIGHTS"], "w.pth: cannot identify image file"),
        (["--tested", "7.5"], "--tested must be whole numbers"),
        (["--trigger", "TRIGGER", "--at", "3"], "--at must be a row and a column, got '3'"),
        (["--trigger", "TRIGGER", "--at", "6,0"], "the trigger of 1x1 pixels at 6,0 does not fit into 6x6 pixels"),
        (["--device", "gpu"], "device must be"),
        (["--json", "report"], "--json needs a file that ends with .json, got report"),
        (["--json", f"{__file__}/report.json"], f"File exists: '{__file__}'"),
        (["--html", "w.pth"], "--html needs a file that ends with .html, got w.pth"),
        (["--size", "7"], "cannot be called with a batch of shape (2, 1, 7, 7)"),
        (["--size", "7"], "(--channels 1 and --size 7 say what the network takes)"),
        (["--weights", "w.onnx", "--reference", "w.pth"], "--reference needs --weights of torch"),
        (["--arch", "FIXED", "--classes", 6], "--classes is 6, but the network has 5"),
        (["--tested", "7"], "tested classes must be from 0 to 4, got [7]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(case, more, message):
    folder, options = case
    (folder / "fixed.py").write_text(ARCH.replace("make(classes)", "make()").replace("classes", "5"))
    words = {"TRIGGER": folder / "trigger.png", "WEIGHTS": folder / "w.pth", "FIXED": f"{folder}/fixed.py:make"}
    done = bslib_("audit", *options, *(words.get(word, word) for word in more))
    assert done.exit_code == 2 and message in done.output, done.output


@pytest.mark.parametrize(
    "more", [["--size", "0"], ["--mean", "0", "--std", "a"], ["--images", "nowhere"], ["--weights", "nowhere"]]
)
def test_what_is_mistyped_is_said_before_torch_is_imported(case, monkeypatch, more):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import fails
    done = bslib_("audit", *case[1], *more)
    assert done.exit_code == 2 and more[-1] in done.output and "torch" not in done.output
