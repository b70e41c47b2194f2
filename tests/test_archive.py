"""A store as one file: what arrives is what was sent, and nothing else is let in."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from bslib.archive import export_records, import_records
from bslib.cli import app
from bslib.specs import CountsSpec, ImagesSpec, NetworkSpec
from bslib.store import Record, Store, missing_specs

NETWORK = NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1)


def record(seed: int, value: int = 0) -> Record:
    spec = ImagesSpec(dataset="digits", images=2, seed=seed)
    return Record(spec, {"value": value}, {"labels": np.array([seed, value])}, {"name": "digits"}, {"seconds": 1.5})


def filled(folder, *records: Record) -> Store:
    store = Store(folder)
    for one in records:
        store.put(one)
    return store


@pytest.fixture
def store(tmp_path):
    return filled(tmp_path / "here", *map(record, range(3)))


@pytest.fixture
def file(store, tmp_path):
    assert export_records(store, tmp_path / "records.zip") == (3, 0)
    return tmp_path / "records.zip"


def test_what_arrives_is_what_was_sent(store, file, tmp_path):
    there = Store(tmp_path / "there")
    arrived = import_records(file, there)
    assert len(arrived.new) == 3 and not arrived.known and not arrived.different
    for sent in store.iter_records():
        got = there.get(sent.spec)
        assert got.checksum == sent.checksum and got.provenance == sent.provenance
        assert np.array_equal(got.arrays["labels"], sent.arrays["labels"])


def test_records_of_the_store_beneath_are_sent_too(store, tmp_path):
    above = Store(tmp_path / "above", base=store)
    above.put(record(3))
    assert export_records(above, tmp_path / "all.zip") == (4, 0)


def measured(network: NetworkSpec, weights: str, value: int, points: int = 2) -> list[Record]:
    """A network with these weights, and counts of it."""
    counts = CountsSpec(network=network, points=points, sigmas=(0.1,), ns=(5,), seed=0)
    return [
        Record(network, {"weights": weights}),
        Record(counts, {"weights": weights}, {"counts": np.full((1, 1, points, 10), value)}),
    ]


@pytest.mark.parametrize("replace", [True, False])
def test_networks_are_replaced_whole_or_left_alone(tmp_path, replace):
    """Network 0 has other weights in the file, and other counts: its old records go, or none of the new ones comes."""
    networks = [dataclasses.replace(NETWORK, seed=seed) for seed in range(3)]
    kept = (record for network, weights in zip(networks, "abc", strict=True) for record in measured(network, weights, 1))
    ours = filled(tmp_path / "ours", *kept)
    sent = [*measured(networks[0], "other", 2, points=3), *measured(networks[1], "b", 2, points=3)]
    theirs = filled(tmp_path / "theirs", *sent)
    ours.weights_path(networks[0]).parent.mkdir()
    ours.weights_path(networks[0]).write_bytes(b"a")
    export_records(theirs, tmp_path / "theirs.zip")
    arrived = import_records(tmp_path / "theirs.zip", ours, replace=replace)
    of = {k: [r for r in ours.iter_records() if r.spec.on_network == network] for k, network in enumerate(networks)}
    assert [{r.result["weights"] for r in of[k]} for k in of] == [{"other" if replace else "a"}, {"b"}, {"c"}]
    assert [len(of[k]) for k in of] == [2, 3, 2], "what the file lacks stays, but for the network that is replaced"
    assert arrived.replaced == (networks[:1] if replace else []) and len(arrived.different) == (0 if replace else 2)
    assert ours.weights_path(networks[0]).exists() != replace
    assert not missing_specs([r.spec for r in ours.iter_records()], ours), "nothing is stale"


def test_a_network_that_a_run_computes_is_imported_after_it(tmp_path):
    ours, theirs = (filled(tmp_path / w, measured(NETWORK, w, 1)[0]) for w in "ab")
    export_records(theirs, tmp_path / "theirs.zip")
    importing = threading.Thread(target=import_records, args=(tmp_path / "theirs.zip", ours), kwargs={"replace": True})
    with ours.alone(NETWORK):
        importing.start()
        importing.join(0.3)
        assert importing.is_alive() and ours.get(NETWORK).result["weights"] == "a"
    importing.join(30)
    assert ours.get(NETWORK).result["weights"] == "b"


def test_networks_of_the_store_beneath_are_replaced_too(tmp_path):
    """Those cannot be removed: the new ones hide them, and what the file lacks of them is stale."""
    base = filled(tmp_path / "base", *measured(NETWORK, "a", 1))
    theirs = filled(tmp_path / "theirs", *measured(NETWORK, "b", 2, points=3))
    ours = Store(tmp_path / "ours", base=Store(base.folder, writable=False))
    export_records(theirs, tmp_path / "theirs.zip")
    arrived = import_records(tmp_path / "theirs.zip", ours, replace=True)
    assert arrived.replaced == [NETWORK] and len(arrived.new) == 2 and not arrived.different
    assert ours.get(NETWORK).result["weights"] == "b"
    stale = missing_specs([r.spec for r in ours.iter_records()], ours)
    assert [spec.points for spec in stale] == [2], "the old counts"


def test_records_of_two_sets_of_weights_or_without_their_network_replace_nothing(tmp_path):
    ours = filled(tmp_path / "ours", *measured(NETWORK, "a", 1))
    mixed = filled(tmp_path / "mixed", measured(NETWORK, "b", 2)[0], measured(NETWORK, "c", 2, points=3)[1])
    alone = filled(tmp_path / "alone", measured(NETWORK, "b", 2, points=3)[1])
    export_records(alone, tmp_path / "alone.zip")
    shutil.make_archive(str(tmp_path / "mixed"), "zip", mixed.folder)
    with zipfile.ZipFile(tmp_path / "mixed.zip") as file, zipfile.ZipFile(tmp_path / "mixed records.zip", "w") as records:
        for name in (name for name in file.namelist() if not name.endswith("/")):
            records.writestr(name, file.read(name))
    with pytest.raises(ValueError, match="several sets of weights"):
        import_records(tmp_path / "mixed records.zip", ours, replace=True)
    arrived = import_records(tmp_path / "alone.zip", ours, replace=True)
    assert not arrived.replaced and len(arrived.different) == 1
    assert {record_.result["weights"] for record_ in ours.iter_records()} == {"a"} and len(list(ours.iter_records())) == 2


def test_what_was_measured_on_other_weights_is_not_sent(tmp_path):
    """As after a run that trained a network again and was stopped before it measured it; such a file would be refused."""
    ours = filled(tmp_path / "ours", measured(NETWORK, "b", 2)[0], *measured(NETWORK, "a", 2)[1:])
    assert export_records(ours, tmp_path / "ours.zip") == (1, 1)
    assert import_records(tmp_path / "ours.zip", Store(tmp_path / "theirs")).new == [NETWORK]


def test_arrays_that_unpack_to_gigabytes_are_refused(tmp_path, monkeypatch):
    store = filled(tmp_path / "ours", *measured(NETWORK, "a", 0, points=3000))
    export_records(store, tmp_path / "ours.zip")
    monkeypatch.setattr("bslib.archive.MOST_BYTES", 100_000)
    assert (tmp_path / "ours.zip").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"its arrays unpack to .* bytes, more than 100,000"):
        import_records(tmp_path / "ours.zip", Store(tmp_path / "theirs"))


def test_a_record_that_is_there_stays(store, file):
    store.put(record(2, value=9))
    arrived = import_records(file, store)
    assert (arrived.new, set(arrived.known), arrived.different) == ([], {record(0).spec, record(1).spec}, [record(2).spec])
    assert store.get(record(2).spec).result["value"] == 9


def test_only_the_result_tells_two_records_apart(store, file):
    store.put(dataclasses.replace(record(0), provenance={"seconds": 99}))
    assert not import_records(file, store).different


def test_an_empty_store_is_not_sent(tmp_path):
    with pytest.raises(ValueError, match="has no records"):
        export_records(Store(tmp_path / "none"), tmp_path / "file.zip")
    assert not list(tmp_path.iterdir())


def altered(file, change):
    """The archive with its members changed by a function of name and content, which may return None."""
    with zipfile.ZipFile(file) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            if (new := change(name, content)) is not None:
                archive.writestr(*new)
    return file


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: (name, content.replace(b'"value": 0', b'"value": 1')),
        lambda name, content: (name, content[:-20] if name.endswith("npz") else content),
        lambda name, content: None if name.endswith("npz") else (name, content),
        lambda name, content: (name.replace("images/", "images/../../"), content),
        lambda name, content: (name + ".py", content),
    ],
    ids=["another number", "cut arrays", "no arrays", "out of its folder", "another name"],
)
def test_a_damaged_or_strange_file_changes_nothing(file, tmp_path, change):
    there = Store(tmp_path / "there" / "records")
    with pytest.raises(ValueError, match=r"records\.zip cannot be imported: "):
        import_records(altered(file, change), there)
    assert not there.folder.exists() and {path.name for path in tmp_path.iterdir()} == {"here", "records.zip"}


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "text").write_text("no archive")
    for name in ("text", "missing"):
        with pytest.raises(ValueError, match=f"{name} cannot be imported"):
            import_records(tmp_path / name, Store(tmp_path / "there"))


def test_the_commands(store, tmp_path):
    def bslib(*arguments):
        return CliRunner().invoke(app, ["records", *map(str, arguments)])

    assert "3 records" in bslib("export", tmp_path / "a.zip", "--store", store.folder).output
    assert "3 records are new" in bslib("import", tmp_path / "a.zip", "--store", tmp_path / "b").output
    store.put(record(0, value=5))
    result = bslib("import", tmp_path / "a.zip", "--store", store.folder)
    assert result.exit_code == 2 and f"images/{record(0).spec.key}" in " ".join(result.output.split())
