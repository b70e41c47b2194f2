"""Records and the store: the result of each spec, with its provenance.

A record consists of up to two files named after the key of its spec. ``KEY.json`` is human-readable and holds the spec, the
numbers and the provenance. ``KEY.CHECKSUM.npz`` holds the arrays, if there are any (``KEY.npz`` in format 1). Both files are
written atomically, the JSON file last; arrays of the replaced record are removed afterwards. At any moment, the old record is
there or the new one. A checksum covers the spec, the data set, the numbers and the arrays. It does not cover times and hosts,
so that two independent runs can be compared; these have a checksum of their own. Reading a record that does not match its key or
its checksums raises an error that names the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bslib import datasets, detectors, drawings, threat_models
from bslib.files import atomic_path, cache_folder, locked
from bslib.specs import DetectorSpec, NetworkSpec, Spec, spec_from

__all__ = [
    "PUBLISHED", "Record", "Records", "Store", "definitions", "missing_specs", "open_store", "plain_text", "published_folder",
]  # fmt: skip

#: The format of new records. Records of format 1, whose provenance has no checksum, are still read, by their own rule.
FORMAT = 2

#: Largest accepted sizes of a record's text and of its unpacked arrays in bytes, checked before they are read or unpacked.
MOST_TEXT, MOST_ARRAYS = 2**22, 2**28

#: The name of the committed store that the published book is rendered from; ``open_store`` opens it read-only.
PUBLISHED = "published"

#: Text allowed in a record. Pages display it, so characters that Markdown, HTML or a terminal would interpret are excluded.
_TEXT = re.compile(r"[\w ,./()+:;'%=~@-]{0,200}")


def plain_text(text: str) -> str:
    """Replace characters that a record may not hold by blanks, and truncate the text to 200 characters.

    >>> plain_text("AMD <EPYC>")
    'AMD  EPYC '
    """
    return "".join(c if _TEXT.fullmatch(c) else " " for c in text)[:200]


def _check_plain(value: Any, name: str, depth: int = 4) -> None:
    """Raise a ValueError if a part of a record holds disallowed text, numbers that are not finite, or deep nesting."""
    if isinstance(value, Mapping | list | tuple) and depth:
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_plain(str(key), f"a name in its {name}")
            _check_plain(inner, f"{name}: {key}", depth - 1)
    elif isinstance(value, str):
        if not _TEXT.fullmatch(value):
            raise ValueError(f"its {name} holds {value[:60]!r}, which is no plain text")
    elif not (value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))):
        raise ValueError(f"its {name} holds {str(value)[:60]!r}, which is no finite number, text or list of them")


@dataclass(frozen=True)
class Record:
    """The result of one spec.

    Parameters
    ----------
    spec : Spec
    result : dict
        Values that JSON can represent, such as accuracies and digests.
    arrays : dict of str to ndarray
        Arrays such as class counts, labels and images.
    data : dict
        Name, fingerprint and source of the data set.
    provenance : dict
        Code version, device, precision, threads, seconds, date.
    format : int
        The version of the rule for the checksum.
    """

    spec: Spec
    result: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def identities(self) -> set[str]:
        """What other records call this result: the digest of a network's weights, otherwise its checksum in any format."""
        if isinstance(self.spec, NetworkSpec):
            return {str(self.result["weights"])}
        return {replace(self, format=version).checksum for version in range(1, FORMAT + 1)}

    def same_result(self, other: Record) -> bool:
        """Return whether two records of any formats have the same spec, result, data set and arrays."""
        return self.checksum == replace(other, format=self.format).checksum

    @property
    def checksum(self) -> str:
        """SHA-256 of the spec, the result, the data set and the content of the arrays, in hexadecimal."""
        digest = hashlib.sha256()
        plain: dict[str, Any] = {"spec": self.spec.as_dict(), "result": dict(self.result), "data": dict(self.data)}
        if self.format > 1:
            plain["format"] = self.format
        digest.update(json.dumps(plain, sort_keys=True).encode())
        for name, array in sorted(self.arrays.items()):
            content = np.ascontiguousarray(array)
            # JSON ends where it ends, so no two records give the same bytes. Format 1 joined the words by blanks.
            words = [name, array.dtype.str, array.shape]
            digest.update((json.dumps(words) if self.format > 1 else f"{name} {array.dtype.str} {content.shape}").encode())
            digest.update(content.tobytes())
        return digest.hexdigest()

    @property
    def provenance_checksum(self) -> str:
        """SHA-256 of the checksum and the provenance, in hexadecimal."""
        return hashlib.sha256(json.dumps([self.checksum, dict(self.provenance)], sort_keys=True).encode()).hexdigest()


class Store:
    """A folder of records that are looked up by spec.

    Parameters
    ----------
    folder : Path
        Created when the first record is written.
    writable : bool
        Whether :meth:`put` is allowed.
    base : Store, optional
        Store in which records are looked up that are missing from this one; never written to.

    >>> import tempfile
    >>> from bslib.specs import ImagesSpec
    >>> store, spec = Store(Path(tempfile.mkdtemp())), ImagesSpec(dataset="digits", images=2, seed=0)
    >>> spec in store
    False
    >>> store.put(Record(spec, result={}, arrays={"labels": np.array([3, 1])}))
    >>> store.get(spec).arrays["labels"].tolist()
    [3, 1]
    """

    def __init__(self, folder: Path, *, writable: bool = True, base: Store | None = None) -> None:
        self.folder, self.writable, self.base = Path(folder), writable, base

    def __contains__(self, spec: Spec) -> bool:
        return self._json(spec).is_file() or (self.base is not None and spec in self.base)

    def get(self, spec: Spec) -> Record:
        """Return the record of ``spec``.

        Raises
        ------
        KeyError
            If there is no such record.
        ValueError
            If the record is corrupt, does not match its file name, or has another format; the message names the file.
        """
        path = self._json(spec)
        if (record := self._read(path)) is not None:
            return record
        if self.base is not None:
            return self.base.get(spec)
        raise KeyError(f"no record of this {spec.kind} spec in {self.folder} (key {spec.key})")

    def put(self, record: Record) -> None:
        """Write a record, replacing an earlier record of the same spec.

        Raises
        ------
        PermissionError
            If the store is read-only.
        """
        self.check_writable()
        _check(record)
        text = {
            "format": record.format,
            "spec": record.spec.as_dict(),
            "result": dict(record.result),
            "data": dict(record.data),
            "provenance": dict(record.provenance),
            "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in record.arrays.items()},
            "checksum": record.checksum,
        }
        if record.format > 1:
            text["provenance_checksum"] = record.provenance_checksum
        path = self._json(record.spec)
        arrays, earlier = _arrays_path(path, text), _array_files(path)
        if arrays in earlier and record.format == 1:
            path.unlink(missing_ok=True)  # its arrays have no name of their own, so the old record goes before they are replaced
        if record.arrays:
            with atomic_path(arrays) as part, part.open("wb") as file:
                np.savez_compressed(file, **record.arrays)  # type: ignore[arg-type]
        with atomic_path(path) as part:
            part.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        for old in earlier:
            if old != arrays or not record.arrays:
                old.unlink(missing_ok=True)

    def remove(self, spec: Spec) -> None:
        """Remove the record of ``spec`` from this folder, if it is there; a network's weights go with it.

        Raises
        ------
        PermissionError
            When the store is read-only.
        """
        self.check_writable()
        path = self._json(spec)
        for old in (path, *_array_files(path)):  # the JSON goes first, so that none names arrays that are gone
            old.unlink(missing_ok=True)
        if isinstance(spec, NetworkSpec):
            self.weights_path(spec).unlink(missing_ok=True)

    def iter_records(self) -> Iterator[Record]:
        """Iterate over the records of this folder, sorted by kind and key, then over the base's other records; all verified."""
        for path in sorted(self.folder.glob("*/[!.]*.json")):  # leftover temporary files of killed processes begin with a dot
            if (record := self._read(path)) is not None:
                yield record
        for record in self.base.iter_records() if self.base is not None else ():
            if not self._json(record.spec).is_file():
                yield record

    def bytes_of(self, spec: Spec) -> int:
        """Return the size of the record of ``spec`` on disk, in bytes; 0 if there is none."""
        path = self._json(spec)
        if not path.is_file():
            return 0 if self.base is None else self.base.bytes_of(spec)
        text = json.loads(path.read_text(encoding="utf-8"))
        return sum(part.stat().st_size for part in (path, *([_arrays_path(path, text)] if text["arrays"] else [])))

    def weights_path(self, spec: NetworkSpec) -> Path:
        """Return the path of a network's weights; they are kept beside the records but never committed."""
        return self.folder / "weights" / f"{spec.key}.safetensors"

    def alone(self, spec: Spec, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Lock the network of ``spec``, with its treatments, or ``spec`` itself if it needs none: :func:`bslib.files.locked`."""
        self.check_writable()
        return locked(self.folder / spec.shared.kind / f"{spec.shared.key}.lock", wait=wait)

    def check_writable(self) -> None:
        """Raise a PermissionError if the store is read-only."""
        if not self.writable:
            raise PermissionError(f"the store {self.folder} is read-only: name another one with --store")

    def _read(self, path: Path) -> Record | None:
        # Several parts of a page ask for the same published records, and reading all takes seconds.
        return _read(path) if self.writable else _read_once(path, _version(path))

    def _json(self, spec: Spec) -> Path:
        return self.folder / spec.kind / f"{spec.key}.json"


#: The records of a plan that exist so far, by spec.
Records = dict[Spec, Record]


def missing_specs(plan: Iterable[Spec], store: Store, get: Callable[[Spec], Record] | None = None) -> list[Spec]:
    """Return the specs of a plan whose records are missing from a store or stale.

    A record is stale if it was computed with other weights, patterns, data or :func:`definitions` than the current ones. A
    network whose weights were lost, for example, is retrained, perhaps on another machine, and then has other weights. Records
    measured on the old weights are stale. ``get`` replaces ``Store.get``, for example by a version that caches records.
    """
    get = get or store.get
    once = functools.cache(get)  # many specs share the record of one network
    return [spec for spec in plan if spec not in store or _is_stale(spec, store, get, once)]


def _is_stale(spec: Spec, store: Store, get: Callable[[Spec], Record], once: Callable[[Spec], Record]) -> bool:
    try:
        record = get(spec)
        if any(record.result.get(name, {}) != digests for name, digests in definitions(spec).items()):
            return True
        needed = {name: once(needs) for name, needs in spec.needs.items() if needs in store}
        return any(
            record.result.get(name) not in found.identities or record.data.get("fingerprint") != found.data.get("fingerprint")
            for name, found in needed.items()
        )
    except KeyError:  # another run has removed it
        return True


def definitions(spec: Spec) -> dict[str, dict[str, str]]:
    """Return digests of the triggers, threat models, data sets and detectors that a spec names, of those that are not original.

    Each record holds those that are not empty. If one changes, the record is stale.

    >>> from bslib.specs import ImagesSpec
    >>> definitions(ImagesSpec(dataset="digits", images=2, seed=0))
    {'triggers': {}, 'threat_models': {}, 'datasets': {}, 'detectors': {}}
    """
    attacked, dataset = (spec.on_network and spec.on_network.attack) or spec, getattr(spec, "dataset", None)
    threat_model = getattr(attacked, "threat_model", None)
    return {
        "triggers": drawings.changed_digests(spec.triggers),
        "threat_models": threat_models.changed_digests([threat_model] if threat_model else []),
        # The data of other domains are no data sets of images.
        "datasets": datasets.changed_digests([dataset] if dataset in datasets.DATASETS else []),
        "detectors": detectors.changed_digests([spec.detector] if isinstance(spec, DetectorSpec) else []),
    }


def open_store(store: str | Path | Store | None = None) -> Store:
    """Open a store by name or folder.

    Parameters
    ----------
    store : str, Path or Store, optional
        ``"published"``: the committed records, read-only. None: the user's own store in the cache folder, with the published
        records as its base. A Store is returned unchanged. Anything else is a folder.

    >>> open_store("some/folder").folder.as_posix()
    'some/folder'
    """
    if isinstance(store, Store):
        return store
    if store == PUBLISHED:
        return Store(published_folder(), writable=False)
    if store is None:
        return Store(cache_folder() / "records", base=Store(published_folder(), writable=False))
    folder = Path(store).expanduser()
    if not str(store) or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"the store must be a folder, got {str(store)!r}")
    return Store(folder)


def published_folder() -> Path:
    """Return the folder of the committed records, in the checkout of this package or of the current folder."""
    candidates = [Path(__file__).resolve().parents[1], *(Path.cwd() / "_").parents]
    return next((c / "book/records" for c in candidates if (c / "_toc.yml").is_file()), candidates[0] / "book/records")


def _read(path: Path) -> Record | None:
    """Return the record at a path; None if the file does not exist. Retries while another run replaces the file."""
    while (version := _version(path)) is not None:
        try:
            return _parse(path)
        except ValueError:
            if _version(path) == version:
                raise
    return None


@functools.lru_cache(maxsize=10_000)
def _read_once(path: Path, version: tuple[int, int] | None) -> Record | None:
    record = _read(path)
    for array in record.arrays.values() if record else ():
        array.flags.writeable = False
    return record


def _version(path: Path) -> tuple[int, int] | None:
    """Return the inode and modification time of a file, which change whenever it is rewritten; None if it does not exist."""
    try:
        return (found := path.stat()).st_ino, found.st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None


def _arrays_path(path: Path, text: Mapping[str, Any]) -> Path:
    return path.with_suffix(".npz" if text["format"] == 1 else f".{text['checksum'][:16]}.npz")


def _array_files(path: Path) -> list[Path]:
    """Return the arrays beside a record's text: its own, and what killed writers of it left."""
    # A tenth of the time of Path.glob, which matters in a folder of thousands of records.
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    return sorted(path.with_name(name) for name in names if name.startswith(f"{path.stem}.") and name.endswith("npz"))


def _parse(path: Path) -> Record:
    try:
        text = json.loads(_regular(path, MOST_TEXT).read_text(encoding="utf-8"))
        if text["format"] not in range(1, FORMAT + 1):
            raise ValueError(f"it has format {text['format']}, this version reads formats 1 to {FORMAT}")
        if not all(isinstance(text[part], dict) for part in ("result", "data", "provenance")):
            raise ValueError("its result, data or provenance is no JSON object")
        if not re.fullmatch("[0-9a-f]{64}", text["checksum"]):
            raise ValueError("its checksum is none")
        arrays = {}
        if text["arrays"]:
            named = _regular(_arrays_path(path, text), MOST_ARRAYS)
            with named.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # np.load leaves damaged files open
                if (size := sum(member.file_size for member in file.zip.infolist())) > MOST_ARRAYS:
                    raise ValueError(f"its arrays unpack to {size:,} bytes, more than {MOST_ARRAYS:,}")
                arrays = {name: file[name] for name in text["arrays"]}
        record = Record(spec_from(text["spec"]), text["result"], arrays, text["data"], text["provenance"], text["format"])
        if record.spec.key != path.stem:
            raise ValueError(f"its spec has the key {record.spec.key}")
        if record.checksum != text["checksum"]:
            raise ValueError("its content does not fit its checksum")
        if record.format > 1 and record.provenance_checksum != text["provenance_checksum"]:
            raise ValueError("its provenance does not fit its checksum")
        _check(record)
    except Exception as problem:  # json, zipfile and numpy raise almost any exception for a damaged file
        raise ValueError(f"the record {path} cannot be used: {problem}; remove it, and bslib run computes it again") from None
    return record


def _regular(path: Path, most: int) -> Path:
    """Return the path of a file; raise a ValueError if it is special, such as a pipe, or larger than ``most`` bytes."""
    if not stat.S_ISREG((found := path.stat()).st_mode) or found.st_size > most:
        raise ValueError(f"{path.name} has {found.st_size:,} bytes, more than {most:,}, or is no file")
    return path


def _check(record: Record) -> None:
    """Raise a ValueError if a record holds anything but numbers and plain text."""
    for name in ("result", "data", "provenance"):
        _check_plain(getattr(record, name), name)
    if not isinstance(record.provenance.get("seconds", 0), int | float):
        raise ValueError("its seconds are no number")
    _check_plain(list(record.arrays), "names of arrays")
    if objects := [name for name, array in record.arrays.items() if array.dtype.kind not in "biufcSU"]:
        raise ValueError(f"arrays of a record hold numbers or text, not objects: {', '.join(objects)}")
