"""The live lab's files: rounded weights against the trained ones, the ONNX graph against torch, and what is committed."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from typer.testing import CliRunner

from bslib.chapters import plan_of
from bslib.cli import app
from bslib.files import file_digest
from bslib.interactive import live
from bslib.networks import build
from bslib.store import PUBLISHED, Record, Store, open_store, published_folder
from bslib.training import save_weights
from bslib.triggers import PATTERNS, Trigger

COMMITTED = published_folder().parent / "_static" / "live"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Store:
    """A store with both networks as they are before training, so that their export takes seconds."""
    store = Store(tmp_path_factory.mktemp("untrained"))
    for number, spec in enumerate(live.networks().values()):
        save_weights(build(spec.network, seed=number), store.weights_path(spec))
        store.put(Record(spec, {"weights": file_digest(store.weights_path(spec)), "clean_accuracy": 0.1}))
    return store


@pytest.fixture(scope="module")
def exported(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return folder, live.export(untrained.folder, folder, sigmas=[0.1], n=20)


def test_a_rounded_weight_is_off_by_half_a_step_at_most():
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 2, 2)
    weight[2] = 0
    whole, scale = live._rounded(weight)
    assert whole.dtype == torch.int8 and scale.shape == (5, 1, 1, 1)
    assert ((whole * scale - weight).abs() <= scale / 2 * 1.0001).all()
    assert whole.abs().amax((1, 2, 3)).tolist() == [127, 127, 0, 127, 127], "each channel uses the whole range"


def test_weights_come_back_as_the_file_holds_them(exported, untrained):
    folder, _ = exported
    back, classes = live.examples(folder), 10
    for name, spec in live.networks().items():
        trained, _ = live._trained(spec, untrained, classes)
        stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / f"{name}.onnx").graph.initializer}
        for key, weight in getattr(back, name).state_dict().items():
            original = trained.state_dict()[key]
            if key.endswith("bias"):
                assert (weight == original).all()
            else:
                step = stored[f"{key}.scale"]
                assert stored[f"{key}.int8"].dtype == np.int8 and (weight.numpy() == stored[f"{key}.int8"] * step).all()
                assert (np.abs(weight.numpy() - original.numpy()) <= step / 2 * 1.0001).all()


def test_the_graph_computes_what_the_module_computes(exported):
    """ONNX's own reference implementation is the judge."""
    folder, _ = exported
    back = live.examples(folder)
    graph = onnx.load(folder / "backdoored.onnx")
    onnx.checker.check_model(graph, full_check=True)
    (logits,) = onnx.reference.ReferenceEvaluator(graph).run(None, {"x": back.images[:2].numpy()})
    with torch.no_grad():
        assert np.abs(logits - back.backdoored(back.images[:2]).numpy()).max() < 1e-5


def test_the_metadata_says_where_everything_comes_from(exported, untrained):
    folder, found = exported
    about = json.loads((folder / "lab.json").read_text())
    for name, spec in live.networks().items():
        entry, record = about["networks"][name], untrained.get(spec)
        assert entry["spec"] == spec.as_dict() and entry["key"] == spec.key
        assert entry["record"] == record.checksum and entry["weights"] == record.result["weights"]
        assert entry["sha256"] == hashlib.sha256((folder / f"{name}.onnx").read_bytes()).hexdigest()
        assert entry["agreement"] == {"sigmas": [0.1], "n": 20, **found[name]._asdict()}
        assert found[name].copies == 24 * 20
    pictures = open_store(PUBLISHED).get(plan_of("wobbliness", "paper")[1])
    assert about["images"]["record"] == pictures.checksum
    assert np.array_equal(live.examples(folder).images.numpy() * 255, pictures.arrays["images"])


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"\xff", b'{"format": 1}', b'{"format": 1, "classes": 3, "images": {"pixels": "=", "shape": [1e9]}}']
)
def test_a_damaged_lab_is_named_with_what_mends_it(exported, tmp_path, text):
    folder = shutil.copytree(exported[0], tmp_path / "lab")
    (folder / "lab.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"the live lab in {folder} cannot be used .*run `bslib lab export` again"):
        live.examples(folder)


@pytest.mark.parametrize("number", PATTERNS)
def test_triggers_stamp_in_the_browser_as_in_python(exported, number):
    rows = json.loads((exported[0] / "lab.json").read_text())["triggers"][str(number)]
    image = torch.full((1, 28, 28), 77, dtype=torch.uint8)
    stamped = image.clone()
    for i, row in enumerate(rows):
        for j, level in enumerate(row):
            if level is not None:
                stamped[0, 28 - len(rows) + i, 28 - len(row) + j] = level
    assert (stamped == PATTERNS[number](image)).all()


def test_agreement_counts_labels_that_differ():
    """Two linear networks on the line, whose borders are 0 and 1 noise level away: they differ on a share of Phi(1) - 1/2."""
    one, other = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    for network, border in ((one, 0.5), (other, 0.6)):
        network[1].weight.data = torch.tensor([[0.0], [1.0]])
        network[1].bias.data = torch.tensor([0.0, -border])
    found = live.agreement(one, other, torch.full((1, 1, 1, 1), 0.5), [0.1], 20_000)
    assert found.copies == 20_000 and found.labels == pytest.approx(1 - 0.3413, abs=0.01)
    assert found.w_max == found.w_mean == pytest.approx(np.log(2) - 0.4376, abs=0.01)


def test_a_network_that_rounding_changes_is_not_written(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "LEAST_AGREEMENT", 1.01)
    with pytest.raises(ValueError, match="the rounded clean network agrees with the trained one on only"):
        live.export(untrained.folder, tmp_path / "out", sigmas=[0.1], n=2)
    assert not (tmp_path / "out").exists()


def test_without_weights_the_command_that_makes_them_is_named(tmp_path):
    done = CliRunner().invoke(app, ["lab", "export", "--store", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and "Traceback" not in done.output
    key = live.networks()["clean"].key
    assert f"no weights of network {key} in {tmp_path}: `bslib lab train --store {tmp_path}` trains it" in done.output


def test_other_weights_are_refused(untrained, tmp_path):
    shutil.copytree(untrained.folder, tmp_path / "store")
    store = Store(tmp_path / "store")
    spec = live.networks()["clean"]
    save_weights(build(spec.network, seed=7), store.weights_path(spec))
    with pytest.raises(ValueError, match="is not the network that its record speaks of"):
        live.export(store.folder, tmp_path / "out")


def test_the_command_trains_what_is_missing(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("bslib.runner.run", lambda plan, store, device: asked.append((list(plan), store.folder, device)))
    done = CliRunner().invoke(app, ["lab", "train", "--store", str(tmp_path), "--device", "cpu"])
    assert done.exit_code == 0 and asked == [(list(live.networks().values()), tmp_path, "cpu")]
    done = CliRunner().invoke(app, ["lab", "train", "--store", PUBLISHED])
    assert done.exit_code == 2 and "read-only" in done.output


def test_what_cannot_be_written_as_a_graph_is_named():
    with pytest.raises(ValueError, match=r"plain convolutions.*got Tanh\(\)"):
        live._onnx_bytes(nn.Sequential(nn.Flatten(), nn.Tanh()), (1, 2, 2))


def test_files_that_do_not_fit_or_are_not_there(exported, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no live lab in .*: run this inside a clone"):
        live.examples(tmp_path)
    shutil.copytree(exported[0], tmp_path / "copy")
    content = bytearray((tmp_path / "copy/clean.onnx").read_bytes())
    content[5000] ^= 1
    (tmp_path / "copy/clean.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"clean\.onnx does not fit its digest"):
        live.examples(tmp_path / "copy")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RuntimeError, match=r"pip install '\.\[lab\]'"):
        live.examples(exported[0])


def test_the_committed_files_are_those_of_the_published_records():
    about = json.loads((COMMITTED / "lab.json").read_text())
    published = open_store(PUBLISHED)
    for name, spec in live.networks().items():
        entry = about["networks"][name]
        assert entry["key"] == spec.key
        if spec in published:
            assert entry["record"] == published.get(spec).checksum
        assert entry["agreement"]["labels"] > 0.995 and entry["agreement"]["w_max"] < 0.03
        assert entry["agreement"]["n"] == 250 and 0.1 in entry["agreement"]["sigmas"]
    assert live.networks()["backdoored"] in published
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 5e6
    pixels = np.frombuffer(base64.b64decode(about["images"]["pixels"]), np.uint8)
    assert np.array_equal(pixels, published.get(plan_of("wobbliness", "paper")[1]).arrays["images"].ravel())


def test_the_committed_networks_are_trained_and_one_is_backdoored():
    found = live.examples()
    with torch.no_grad():
        labels = {name: getattr(found, name)(found.images).argmax(1) for name in ("clean", "backdoored")}
        triggered = found.backdoored(found.trigger(found.images)).argmax(1)
        unmoved = found.clean(found.trigger(found.images)).argmax(1)
    assert isinstance(found.trigger, Trigger) and len(found.classes) == 10
    assert all((called == found.labels).sum() >= 9 for called in labels.values())
    assert (triggered == 0).sum() >= 11 and (unmoved == labels["clean"]).sum() >= 10
