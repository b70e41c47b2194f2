"""Records computed again: what is honest comes out again, what is not is found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from typer.testing import CliRunner

from bslib.cli import app
from bslib.entropy import entropy
from bslib.runner import run
from bslib.specs import AttackSpec, CountsSpec, ImagesSpec, NetworkSpec, PredictionsSpec, UniversalSpec
from bslib.store import Store
from bslib.verify import sample, verify

NETWORKS = [NetworkSpec(dataset="digits", network="small-fashion", seed=seed, epochs=1, train_size=200) for seed in range(5)]
PICTURES = ImagesSpec(dataset="digits", images=3, seed=0)


def counts_of(network: NetworkSpec) -> CountsSpec:
    return CountsSpec(network=network, points=30, sigmas=(0.3,), ns=(64,), seed=network.seed)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("honest"))
    measured = [spec for n in NETWORKS for spec in (n, PredictionsSpec(network=n, images=100), counts_of(n))]
    run([PICTURES, *measured], store, device="cpu", jobs=1, progress=False)
    return store


@pytest.fixture
def store(honest, tmp_path):
    """A copy without weights."""
    copy = Store(tmp_path / "copy")
    for record in honest.iter_records():
        copy.put(record)
    return copy


def files(store: Store) -> dict:
    return {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}


def falsify(store: Store, spec, **result_or_arrays):
    record = store.get(spec)
    part = "arrays" if set(result_or_arrays) & set(record.arrays) else "result"
    store.put(dataclasses.replace(record, **{part: {**getattr(record, part), **result_or_arrays}}))


def outcome(store: Store, spec) -> str:
    (found,) = verify([store.get(spec)], store, device="cpu", progress=False)
    assert found.record.spec == spec and found.remark
    return found.outcome


@pytest.mark.parametrize(
    "spec", [PICTURES, NETWORKS[1], PredictionsSpec(network=NETWORKS[1], images=100), counts_of(NETWORKS[1])]
)
def test_what_is_honest_is_identical_here(honest, store, spec):
    """With the weights at hand, and where the network has to be trained again; neither store is changed."""
    before = files(honest), files(store)
    assert outcome(honest, spec) == outcome(store, spec) == "identical"
    assert (files(honest), files(store)) == before


def test_weights_at_hand_are_not_trained_again(honest, monkeypatch):
    monkeypatch.setattr("bslib.jobs.network.train", lambda *_, **__: pytest.fail("trained"))
    assert outcome(honest, counts_of(NETWORKS[0])) == "identical"


def test_weights_that_are_not_the_records_are_not_used(store, honest):
    """Here those of another network."""
    path = store.weights_path(NETWORKS[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(honest.weights_path(NETWORKS[1]).read_bytes())
    assert outcome(store, counts_of(NETWORKS[0])) == "identical"


def test_false_counts_are_found(honest, tmp_path):
    copy = Store(tmp_path / "copy", base=honest)
    counts = np.zeros_like(honest.get(counts_of(NETWORKS[0])).arrays["counts"])
    counts[..., :2] = 32
    falsify(copy, counts_of(NETWORKS[0]), counts=counts)
    assert outcome(copy, counts_of(NETWORKS[0])) == "differs"


def test_other_noise_on_the_same_network_agrees(honest, tmp_path):
    """As a GPU would draw it: counts of another seed under the name of this one."""
    spec = counts_of(NETWORKS[0])
    other = Store(tmp_path / "other")
    run([NETWORKS[0], dataclasses.replace(spec, paired=True)], other, device="cpu", jobs=1, progress=False)
    copy = Store(tmp_path / "copy", base=honest)
    falsify(copy, spec, counts=other.get(dataclasses.replace(spec, paired=True)).arrays["counts"])
    assert outcome(copy, spec) == "agrees"


def test_another_network_is_judged_by_its_siblings(store):
    """A record as another machine would have made it: other weights, and a result like the siblings', or unlike."""
    for number, expected in ((None, "agrees"), (9.0, "differs")):
        near = store.get(NETWORKS[2]).result["clean_accuracy"]
        falsify(store, NETWORKS[0], weights="of another machine", clean_accuracy=near if number is None else number)
        assert outcome(store, NETWORKS[0]) == expected


def test_without_siblings_it_cannot_be_told(store, tmp_path):
    alone = Store(tmp_path / "alone")
    alone.put(store.get(NETWORKS[0]))
    falsify(alone, NETWORKS[0], weights="of another machine")
    assert outcome(alone, NETWORKS[0]) == "cannot be told"


def test_a_network_is_not_compared_with_what_was_brought_for_its_counts(honest, tmp_path):
    copy = Store(tmp_path / "copy", base=honest)
    falsify(copy, NETWORKS[3], clean_accuracy=0.123)
    copy.weights_path(NETWORKS[3]).parent.mkdir(parents=True)
    copy.weights_path(NETWORKS[3]).write_bytes(honest.weights_path(NETWORKS[3]).read_bytes())
    records = [copy.get(counts_of(NETWORKS[3])), copy.get(NETWORKS[3])]
    assert [found.outcome for found in verify(records, copy, device="cpu", progress=False)][1] != "identical"


def test_predictions_of_one_network_are_compared_one_by_one(honest, tmp_path):
    spec = PredictionsSpec(network=NETWORKS[0], images=100)
    copy, predicted = Store(tmp_path / "copy", base=honest), honest.get(spec).arrays["predicted"].copy()
    predicted[:2] = (predicted[:2] + 1) % 10
    falsify(copy, spec, predicted=predicted)
    assert outcome(copy, spec) == "differs"


def test_points_with_another_pattern_are_not_compared_one_by_one(honest, tmp_path):
    """A pattern that was crafted on another processor smooths other points: as for another network, siblings judge."""
    crafted = [UniversalSpec(network=n, images=20, bound=10, passes=1, batch_size=10, seed=0) for n in NETWORKS]
    specs = [dataclasses.replace(counts_of(p.network), held_out=True, pattern=p) for p in crafted]
    store = Store(tmp_path / "store", base=honest)
    for path in honest.folder.glob("weights/*.safetensors"):
        (store.folder / "weights").mkdir(parents=True, exist_ok=True)
        (store.folder / "weights" / path.name).write_bytes(path.read_bytes())
    run([*crafted, *specs], store, device="cpu", jobs=1, progress=False)
    assert outcome(store, specs[0]) == "identical"
    named = store.get(specs[0]).result["pattern"]
    falsify(store, specs[0], pattern=dataclasses.replace(store.get(crafted[0]), format=1).checksum)
    assert store.get(specs[0]).result["pattern"] != named and outcome(store, specs[0]) == "identical", "in whatever format"
    falsify(store, specs[0], precision="float32")
    assert outcome(store, specs[0]) == "identical", "class counts once held their precision"
    falsify(store, specs[0], pattern=named)
    means = [entropy(store.get(spec).arrays["counts"]).mean() for spec in specs]
    farthest = int(np.abs(np.array(means) - means[0]).argmax())
    falsify(store, specs[0], counts=store.get(specs[farthest]).arrays["counts"])
    assert outcome(store, specs[0]) == "differs"
    falsify(store, specs[0], pattern="of another processor")
    assert outcome(store, specs[0]) == "agrees"


def test_other_images_differ(store):
    falsify(store, PICTURES, labels=store.get(PICTURES).arrays["labels"] + 1)
    assert outcome(store, PICTURES) == "differs"


def test_siblings_differ_in_seeds_and_what_follows_from_them():
    attacks = [AttackSpec(threat_model="T1", trigger=t, target=c) for t, c in ((1, 0), (1, 5), (3, 0))]
    first, sibling, stranger = (counts_of(dataclasses.replace(NETWORKS[k], attack=attack)) for k, attack in enumerate(attacks))
    assert first.without_seeds() == sibling.without_seeds() != stranger.without_seeds()
    assert first.without_seeds() != dataclasses.replace(sibling, points=31).without_seeds()


def test_the_sample_is_drawn_by_its_seed(honest):
    specs = [[record.spec for record in sample(honest, 5, seed=seed)] for seed in (0, 0, 1)]
    assert specs[0] == specs[1] != specs[2] and len(set(specs[0])) == 5
    assert {record.spec.kind for record in sample(honest, 99, seed=0, kind="counts")} == {"counts"}
    with pytest.raises(ValueError, match="no records of kind 'toy'"):
        sample(honest, 1, seed=0, kind="toy")


def test_the_command_says_what_agrees_and_fails_on_what_does_not(store):
    def bslib(*arguments):
        return CliRunner().invoke(
            app, ["verify", "--store", str(store.folder), "--kind", "images", "--device", "cpu", *arguments]
        )

    result = bslib()
    assert result.exit_code == 0 and f"images/{PICTURES.key}: identical" in " ".join(result.output.split())
    result, none = bslib("--key", counts_of(NETWORKS[2]).key[:8]), bslib("--key", "no such key")
    assert result.exit_code == 0 and f"counts/{counts_of(NETWORKS[2]).key}: identical" in " ".join(result.output.split())
    assert none.exit_code == 2 and "'no such key', got 0 such records" in " ".join(none.output.split())
    falsify(store, PICTURES, labels=store.get(PICTURES).arrays["labels"] + 1)
    result = bslib()
    assert result.exit_code == 2 and "1 records do not come out again" in " ".join(result.output.split())
