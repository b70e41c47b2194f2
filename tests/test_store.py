"""Records come back as they were put, or are refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import bslib.runner
from bslib import detectors
from bslib import store as store_module
from bslib.chapters import CHAPTERS, plan_of, records_for
from bslib.datasets import DATASETS, Source
from bslib.profiles import profile_named
from bslib.specs import AttackSpec, CountsSpec, DetectorSpec, ImagesSpec, NetworkSpec
from bslib.store import FORMAT, PUBLISHED, Record, Store, definitions, missing_specs, open_store, published_folder
from bslib.threat_models import THREAT_MODELS, ThreatModel

NETWORK = NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1)
COUNTS = CountsSpec(network=NETWORK, points=3, sigmas=(0.1,), ns=(10, 25), seed=0)
IMAGES = ImagesSpec(dataset="digits", images=2, seed=0)
RECORD = Record(
    COUNTS,
    result={"weights": "ab" * 32, "share": 0.1 + 0.2},
    arrays={
        "counts": np.arange(60, dtype=np.int32).reshape(1, 2, 3, 10),
        "labels": np.array([3, 1, 2]),
        "grid": np.zeros((0, 4), np.int8),
        "columns": np.asfortranarray(np.eye(3, dtype=">f4")),
    },
    data={"name": "digits", "fingerprint": "f" * 64, "source": "Ziffern, größer"},
    provenance={"seconds": 1.5, "threads": 1},
)
BARE = Record(NETWORK, result={"clean_accuracy": 0.9})


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "store")
    store.put(RECORD)
    return store


def path_of(store: Store, spec=COUNTS, suffix: str = ".json") -> Path:
    folder = store.folder / spec.kind
    return next(folder.glob(f"{spec.key}.*npz")) if suffix == ".npz" else folder / f"{spec.key}{suffix}"


def files_of(store: Store) -> dict[str, bytes]:
    return {str(p.relative_to(store.folder)): p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}


def edit(store: Store, change, spec=COUNTS) -> None:
    text = json.loads(path_of(store, spec).read_text(encoding="utf-8"))
    change(text)
    path_of(store, spec).write_text(json.dumps(text), encoding="utf-8")


def assert_refused(store: Store, spec=COUNTS, why: str = "") -> None:
    """By ``get`` and by ``iter_records``, with the file's name and what to do."""
    for read in (lambda: store.get(spec), lambda: list(store.iter_records())):
        with pytest.raises(ValueError) as caught:
            read()
        message = str(caught.value)
        assert str(path_of(store, spec)) in message and why in message
        assert "remove it, and bslib run computes it again" in message


# --- round trip --------------------------------------------------------------------------------------------------


def test_a_record_comes_back_whole(store):
    found = Store(store.folder).get(COUNTS)
    assert found.spec == COUNTS and found.checksum == RECORD.checksum
    assert (found.result, found.data, found.provenance) == (RECORD.result, RECORD.data, RECORD.provenance)
    assert set(found.arrays) == set(RECORD.arrays)
    for name, array in RECORD.arrays.items():
        assert found.arrays[name].dtype == array.dtype and found.arrays[name].shape == array.shape
        assert np.array_equal(found.arrays[name], array)
    arrays = f"counts/{COUNTS.key}.{RECORD.checksum[:16]}.npz"
    assert set(files_of(store)) == {f"counts/{COUNTS.key}.json", arrays}


def test_a_record_without_arrays_is_one_file(store):
    store.put(BARE)
    assert store.get(NETWORK).result == BARE.result and len(list((store.folder / "network").iterdir())) == 1
    assert [record.spec for record in store.iter_records()] == [COUNTS, NETWORK]


def test_put_replaces(store):
    newer = dataclasses.replace(RECORD, result={"weights": "cd" * 32}, arrays={"counts": np.ones((1, 2), np.int64)})
    store.put(newer)
    assert store.get(COUNTS).result == newer.result and list(store.get(COUNTS).arrays) == ["counts"]
    assert len(files_of(store)) == 2, "the old arrays are gone"


@pytest.mark.parametrize(
    "change",
    [
        {"spec": dataclasses.replace(COUNTS, seed=1)},
        {"result": {**RECORD.result, "share": 0.3}},
        {"data": {**RECORD.data, "fingerprint": "e" * 64}},
        {"arrays": {**RECORD.arrays, "labels": np.array([3, 1, 1])}},
        {"arrays": {**RECORD.arrays, "labels": np.array([3, 1, 2], np.int32)}},
        {"arrays": {**RECORD.arrays, "grid": np.zeros((4, 0), np.int8)}},
        {"arrays": {("label" if name == "labels" else name): a for name, a in RECORD.arrays.items()}},
    ],
    ids=["spec", "result", "data", "value", "dtype", "shape", "name"],
)
def test_the_checksum_covers(change):
    assert dataclasses.replace(RECORD, **change).checksum != RECORD.checksum


def test_the_checksum_leaves_out_times_and_memory_layout():
    elsewhere = {**RECORD.arrays, "counts": np.asfortranarray(RECORD.arrays["counts"])}
    other = dataclasses.replace(RECORD, provenance={"seconds": 99}, arrays=elsewhere)
    assert other.checksum == RECORD.checksum


def test_no_two_records_have_the_same_checksum_by_the_same_bytes():
    """In format 1, which joins the words by blanks, these two do."""
    one = Record(COUNTS, {}, {"a |u1 (0,)b": np.ones(1, np.uint8)})
    other = Record(COUNTS, {}, {"a": np.ones(0, np.uint8), "b": np.ones(1, np.uint8)})
    assert one.checksum != other.checksum and not one.same_result(other)
    assert dataclasses.replace(one, format=1).checksum == dataclasses.replace(other, format=1).checksum
    arrays = [{"x": np.zeros(())}, {"x": np.zeros(1)}, {"x": np.zeros((1, 1))}]
    assert len({Record(COUNTS, {}, one).checksum for one in arrays}) == 3
    assert len({Record(COUNTS, {}, one, format=1).checksum for one in arrays}) == 2


def test_provenance_that_was_changed_is_refused(store):
    """Also by somebody who says that the record is of format 1, in which it had no checksum."""
    edit(store, lambda text: text["provenance"].update(device="another"))
    assert_refused(store, why="its provenance does not fit its checksum")
    edit(store, lambda text: text.update(format=1))
    path_of(store, suffix=".npz").rename(path_of(store).with_suffix(".npz"))
    assert_refused(store, why="its content does not fit its checksum")


def test_records_of_format_1_are_read_and_kept_by_their_own_rule(store):
    """A record that names their checksum stays valid, in a store where they are copied or computed again in today's format."""
    old = dataclasses.replace(RECORD, format=1)
    store.put(old)
    assert set(files_of(store)) == {f"counts/{COUNTS.key}.json", f"counts/{COUNTS.key}.npz"}
    assert store.get(COUNTS).checksum == old.checksum != RECORD.checksum and store.get(COUNTS).format == 1
    assert store.get(COUNTS).same_result(RECORD) and RECORD.same_result(old)
    assert old.identities == RECORD.identities == {old.checksum, RECORD.checksum}
    store.put(RECORD)
    assert store.get(COUNTS).format == FORMAT and len(files_of(store)) == 2


def test_absent_is_a_key_error_that_names_the_key(store):
    assert IMAGES not in store
    with pytest.raises(KeyError, match=IMAGES.key):
        store.get(IMAGES)
    assert list(Store(store.folder / "nowhere").iter_records()) == []


# --- atomic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["savez_compressed", "write_text"])
@pytest.mark.parametrize("present", [False, True], ids=["new", "replacing"])
def test_a_put_that_fails_leaves_the_old_record(tmp_path, monkeypatch, stage, present):
    store = Store(tmp_path)
    if present:
        store.put(RECORD)

    def half(target, *arguments, **more):
        with target.open("wb") if isinstance(target, Path) else contextlib.nullcontext(target) as file:
            file.write(b"half a rec")
        raise OSError("disk full")

    monkeypatch.setattr(np if stage == "savez_compressed" else Path, stage, half)
    with pytest.raises(OSError, match="disk full"):
        store.put(dataclasses.replace(RECORD, result={}))
    monkeypatch.undo()
    assert [record.checksum for record in store.iter_records()] == [RECORD.checksum] * present
    assert b"half a rec" not in files_of(store).values()
    store.put(RECORD)
    assert store.get(COUNTS).checksum == RECORD.checksum and len(files_of(store)) == 2


def test_a_result_that_json_cannot_hold_leaves_the_old_record(store):
    with pytest.raises(ValueError, match=r"its result: share holds '0\.5', which is no finite number"):
        store.put(dataclasses.replace(RECORD, result={"share": np.float32(0.5)}))
    assert store.get(COUNTS).result == RECORD.result


HOSTILE = [
    "\n\n```{literalinclude} /etc/passwd\n```",
    "a {py:obj}`role`",
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "a | new | cell",
    "[a link](file:///etc/passwd)",
    "\x1b[31mred",
    "&lt;",
    "long" * 100,
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("part", ["data", "provenance", "result"])
def test_a_record_that_would_be_read_as_markup_is_refused(store, part, text, monkeypatch):
    """Its source, device and so on are shown on the book's pages."""
    hostile = dataclasses.replace(RECORD, **{part: getattr(RECORD, part) | {"source": text}})
    with pytest.raises(ValueError, match=f"its {part}: source holds .*, which is no plain text"):
        store.put(hostile)
    forge(store, hostile, monkeypatch)
    with pytest.raises(ValueError, match=r"cannot be used: .* which is no plain text"):
        store.get(COUNTS)


def forge(store: Store, record: Record, monkeypatch) -> None:
    """Write a record as somebody would who computes the right checksums."""
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_check", lambda record: None)
        store.put(record)


def test_numbers_that_are_none_are_refused(store, monkeypatch):
    forge(store, dataclasses.replace(RECORD, provenance={"seconds": None}), monkeypatch)
    with pytest.raises(ValueError, match="its seconds are no number"):
        store.get(COUNTS)
    with pytest.raises(ValueError, match="no finite number"):
        store.put(dataclasses.replace(RECORD, result={"share": float("nan")}))


def test_what_a_killed_writer_leaves_is_no_record(store):
    # SIGKILL, or the runner's own terminate(), gives atomic_path no chance to clean up: this is what stays then.
    (path_of(store).parent / f".{COUNTS.key}-x1y2z3.json").write_text('{"format": 1, "spec"')
    assert [record.spec for record in store.iter_records()] == [COUNTS]


def test_a_record_that_is_replaced_while_it_is_read(store, monkeypatch):
    """By another run: its arrays are new when its text is still the old one. The reader gets the new record."""
    newer, parse = dataclasses.replace(RECORD, arrays={"counts": np.ones((1, 2), np.int64)}), store_module._parse

    def slow(path):
        monkeypatch.setattr(store_module, "_parse", parse)
        text = path_of(store).read_bytes()
        store.put(newer)
        replaced = path_of(store).read_bytes()
        path_of(store).write_bytes(text)
        try:
            return parse(path)  # fails: text and arrays are of two records
        finally:
            path_of(store).unlink()
            path_of(store).write_bytes(replaced)

    monkeypatch.setattr(store_module, "_parse", slow)
    assert store.get(COUNTS).checksum == newer.checksum
    monkeypatch.setattr(store_module, "_parse", lambda *_: path_of(store).unlink() or parse(path_of(store)))
    with pytest.raises(KeyError):
        store.get(COUNTS)
    assert store_module.missing_specs([COUNTS], store) == [COUNTS]


# --- damaged and foreign -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_no_flipped_bit_goes_unnoticed(store, suffix):
    """One bit of each byte: refused by name, or it was in what no number depends on (times; the zip's attributes)."""
    path = path_of(store, suffix=suffix)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3 if suffix == ".json" else 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 7)
        path.write_bytes(damaged)
        try:
            found = store.get(COUNTS)
        except ValueError as problem:
            assert str(path_of(store)) in str(problem)
            refused += 1
        else:
            assert found.checksum == RECORD.checksum, f"byte {place} of {len(whole)}"
    assert refused > len(whole) / 4


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_truncated_files_are_refused(store, suffix):
    path = path_of(store, suffix=suffix)
    whole = path.read_bytes()
    zip_of_nothing = b"PK\x05\x06" + bytes(18)
    for content in (*(whole[:length] for length in (0, 1, 10, len(whole) // 2, len(whole) - 3)), zip_of_nothing):
        path.write_bytes(content)
        assert_refused(store)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text["result"].update(share=0.3), "checksum"),
        (lambda text: text["spec"].update(flavour="1"), "no field flavour"),
        (lambda text: text.update(format=FORMAT + 1), f"format {FORMAT + 1}"),
        (lambda text: text.update(format=0), "format 0"),
    ],
    ids=["another number", "a spec of a newer version", "a newer format", "an older format"],
)
def test_an_altered_text_is_refused(store, change, why):
    edit(store, change)
    assert_refused(store, why=why)


def test_altered_arrays_are_refused(store):
    arrays = {**RECORD.arrays, "labels": np.array([3, 1, 9])}
    np.savez_compressed(path_of(store, suffix=".npz"), **arrays)
    assert_refused(store, why="checksum")


def test_lost_arrays_are_refused(store):
    path_of(store, suffix=".npz").unlink()
    assert_refused(store)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"format": 1}', '{"format": null}', "\xff"])
def test_json_that_is_no_record_is_refused(store, text):
    path_of(store).write_text(text, encoding="latin-1")
    assert_refused(store)


def test_a_record_under_another_name_is_refused(store):
    other = dataclasses.replace(COUNTS, seed=1)
    for path in path_of(store).parent.iterdir():
        path.rename(path.with_name(path.name.replace(COUNTS.key, other.key)))
    assert other in store
    assert_refused(store, other, why=COUNTS.key)


class Bomb:
    """Its pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_neither_written_nor_read(store, tmp_path):
    objects = np.array([Bomb(tmp_path / "exploded")] * 3, dtype=object)
    with pytest.raises(ValueError, match="objects"):
        store.put(dataclasses.replace(RECORD, arrays={"labels": objects}))
    assert store.get(COUNTS).checksum == RECORD.checksum, "the old one stays"
    np.savez_compressed(path_of(store, suffix=".npz"), **{**RECORD.arrays, "labels": objects})
    assert_refused(store, why="allow_pickle")
    with zipfile.ZipFile(path_of(store, suffix=".npz")) as file:  # the bomb was live
        assert b"touch" in file.read("labels.npy")
    assert not (tmp_path / "exploded").exists()


def test_arrays_that_unpack_to_too_much_are_refused_unread(store, monkeypatch):
    """A quarter of a gigabyte of zeros in a few kilobytes: refused from the sizes in the archive's directory."""
    with (
        zipfile.ZipFile(path_of(store, suffix=".npz"), "w", zipfile.ZIP_DEFLATED) as file,
        file.open("counts.npy", "w") as member,
    ):
        for _ in range(2**8 + 1):
            member.write(bytes(2**20))
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("they are unpacked"))
    assert_refused(store, why="unpack to 269,484,032 bytes, more than")


def test_a_text_that_is_too_long_is_refused_unread(store):
    path_of(store).write_text(" " * (store_module.MOST_TEXT + 1))
    assert_refused(store, why="bytes, more than")


# --- stale -------------------------------------------------------------------------------------------------------


def test_a_threat_model_that_changes_makes_its_records_stale(store, monkeypatch):
    attacked = dataclasses.replace(NETWORK, attack=AttackSpec(threat_model="T1", trigger=1, target=0))
    counts = dataclasses.replace(COUNTS, network=attacked)
    plan = [NETWORK, COUNTS, attacked, counts]
    for spec in plan:
        store.put(Record(spec, {"weights": "same"}))
    assert missing_specs(plan, store) == []
    monkeypatch.setitem(THREAT_MODELS, "T1", ThreatModel(name="T1", fraction=0.2, one_target=True))
    assert missing_specs(plan, store) == [attacked, counts]
    store.put(Record(attacked, {"weights": "same", **definitions(attacked)}))
    assert missing_specs(plan, store) == [counts]
    monkeypatch.undo()
    assert missing_specs(plan, store) == [attacked]


def test_an_added_data_set_that_changes_makes_its_records_stale(store, monkeypatch):
    monkeypatch.setitem(DATASETS, "digits", Source("cifar10", tuple("0123456789")))
    assert missing_specs([COUNTS], store) == [COUNTS]
    store.put(dataclasses.replace(RECORD, result={**RECORD.result, **definitions(COUNTS)}))
    assert missing_specs([COUNTS], store) == []
    monkeypatch.setitem(DATASETS, "digits", Source("idx", tuple("0123456789")))
    assert missing_specs([COUNTS], store) == [COUNTS]


def test_an_added_detector_that_changes_makes_its_records_stale(store, monkeypatch, tmp_path):
    spec = DetectorSpec(detector="confidence", network=NETWORK, points=3, overlays=3, seed=0)
    monkeypatch.setattr(detectors, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "confidence.py").write_text("one")
    store.put(Record(spec, {"weights": "ab" * 32, **definitions(spec)}))
    assert definitions(spec)["detectors"] and missing_specs([spec], store) == []
    (tmp_path / "confidence.py").write_text("two")
    assert missing_specs([spec], store) == [spec]


def test_records_of_other_data_than_their_network_are_stale(store):
    for fingerprint, stale in [("f" * 64, []), ("e" * 64, [COUNTS])]:
        store.put(Record(NETWORK, {"weights": "ab" * 32}, data={"fingerprint": fingerprint}))
        assert missing_specs([NETWORK, COUNTS], store) == stale


def test_no_published_record_is_stale():
    published = open_store(PUBLISHED)
    plan = dict.fromkeys(spec for chapter in CHAPTERS for spec in plan_of(chapter, "paper"))
    assert missing_specs(plan, published) == [spec for spec in plan if spec not in published]


# --- read-only, base, names --------------------------------------------------------------------------------------


def test_a_read_only_store_refuses_to_put(store):
    before = files_of(store)
    with pytest.raises(PermissionError, match="read-only") as caught:
        Store(store.folder, writable=False).put(RECORD)
    assert str(store.folder) in str(caught.value) and files_of(store) == before


def test_a_read_only_store_reads_a_record_once_and_again_when_it_is_rewritten(store, monkeypatch):
    read, seen = store_module._parse, []
    monkeypatch.setattr(store_module, "_parse", lambda path: seen.append(path) or read(path))
    closed = Store(store.folder, writable=False)
    counts = closed.get(COUNTS).arrays["counts"]
    assert closed.get(COUNTS).arrays["counts"] is counts and len(seen) == 1
    with pytest.raises(ValueError, match="read-only"):
        counts += 1  # the next reader would see it
    store.put(dataclasses.replace(RECORD, result={"weights": "cd" * 32}))
    assert closed.get(COUNTS).result == {"weights": "cd" * 32} and len(seen) == 2
    store.remove(COUNTS)
    with pytest.raises(KeyError):
        closed.get(COUNTS)


def test_the_base_is_read_and_never_written(store, tmp_path):
    before, top = files_of(store), Store(tmp_path / "top", base=Store(store.folder, writable=False))
    assert COUNTS in top and top.get(COUNTS).checksum == RECORD.checksum
    with pytest.raises(KeyError):
        top.get(NETWORK)
    top.put(BARE)
    newer = dataclasses.replace(RECORD, result={"weights": "cd" * 32})
    top.put(newer)
    assert top.get(COUNTS).result == newer.result
    assert files_of(store) == before and COUNTS in Store(top.folder)
    found = {record.spec: record.checksum for record in top.iter_records()}
    assert found == {COUNTS: newer.checksum, NETWORK: BARE.checksum}, "a record in place of another's hides it"
    assert len(list(top.iter_records())) == 2


def test_open_store(own_cache, monkeypatch, tmp_path):
    published = open_store(PUBLISHED)
    assert published.folder == published_folder() == Path(store_module.__file__).parents[1] / "book/records"
    assert not published.writable and profile_named("paper").store == PUBLISHED
    mine = open_store()
    assert mine.folder == own_cache / "records" and mine.writable
    assert mine.base.folder == published.folder and not mine.base.writable
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/x").folder == tmp_path / "x" and open_store(str(tmp_path)).folder == tmp_path
    assert open_store(mine) is mine
    (tmp_path / "file").touch()
    for path in ("", tmp_path / "file"):
        with pytest.raises(ValueError, match=f"the store must be a folder, got '{path}'"):
            open_store(path)


# --- records_for -------------------------------------------------------------------------------------------------


def test_a_read_only_store_leaves_out_what_is_missing(store, monkeypatch):
    monkeypatch.setattr(bslib.runner, "run", lambda *_, **__: pytest.fail("a read-only store computes nothing"))
    plan = [IMAGES, COUNTS, NETWORK, IMAGES]
    records = records_for(iter(plan), Store(store.folder, writable=False))
    assert list(records) == [COUNTS] and records[COUNTS].checksum == RECORD.checksum


def test_a_writable_store_is_completed(store):
    images = dataclasses.replace(IMAGES, dataset="digits-rgb")
    records = records_for([images, COUNTS], store)
    assert list(records) == [images, COUNTS]
    assert records[images].arrays["images"].shape == (2, 3, 32, 32)
    assert records[COUNTS].provenance == RECORD.provenance  # what was there was left alone
    assert images in Store(store.folder)


def test_records_of_two_versions_of_a_data_set_are_not_mixed(store):
    with pytest.raises(ValueError, match="the records on digits come from 2 versions of it"):
        records_for([IMAGES, COUNTS], store)


def test_each_record_is_read_once(store, monkeypatch):
    """That it is not stale, and what is in it."""
    read, parse = [], store_module._parse
    monkeypatch.setattr(store_module, "_parse", lambda path: read.append(path) or parse(path))
    assert list(records_for([COUNTS], Store(store.folder, writable=False))) == [COUNTS] and len(read) == 1


def test_what_is_complete_is_not_run(store, monkeypatch):
    monkeypatch.setattr(bslib.runner, "run", lambda *_, **__: pytest.fail("nothing was missing"))
    assert list(records_for([COUNTS], store)) == [COUNTS]
