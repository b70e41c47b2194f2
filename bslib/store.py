"""Records and the store: the result of each spec, with its provenance.

A record consists of up to two files named after the key of its spec. ``KEY.json`` is human-readable and holds the spec, the
numbers and the provenance. ``KEY.npz`` holds the arrays, if there are any. Both files are written atomically, the JSON file last,
so a record is never partially written. A checksum covers the spec, the data set, the numbers and the arrays. It does not cover
times and hosts, so that two independent runs can be compared. Reading a record that does not match its key or its checksum raises
an error that names the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bslib.drawings import changed_digests
from bslib.files import atomic_path, cache_folder
from bslib.specs import DetectorSpec, NetworkSpec, ScoresSpec, Spec, spec_from

__all__ = ["PUBLISHED", "Record", "Records", "Store", "missing_specs", "open_store", "plain_text", "published_folder"]

FORMAT = 1

#: Largest accepted sizes of a record's text and of its unpacked arrays in bytes, checked before they are read or unpacked.
MOST_TEXT, MOST_ARRAYS = 2**22, 2**28

#: The name of the committed store that the published book is rendered from; ``open_store`` opens it read-only.
PUBLISHED = "published"

#: Exceptions that numpy and zipfile raise for a truncated or corrupt file, besides OSError and ValueError.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


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
    """

    spec: Spec
    result: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Identifies this result among results of the same spec: a network's weights digest, otherwise the checksum."""
        return str(self.result["weights"]) if isinstance(self.spec, NetworkSpec) else self.checksum

    @property
    def checksum(self) -> str:
        """SHA-256 of the spec, the result, the data set and the content of the arrays, in hexadecimal."""
        digest = hashlib.sha256()
        plain = {"spec": self.spec.as_dict(), "result": dict(self.result), "data": dict(self.data)}
        digest.update(json.dumps(plain, sort_keys=True).encode())
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


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
        return self._file(spec).is_file() or (self.base is not None and spec in self.base)

    def get(self, spec: Spec) -> Record:
        """Return the record of ``spec``.

        Raises
        ------
        KeyError
            If there is no such record.
        ValueError
            If the record is corrupt, does not match its file name, or has another format; the message names the file.
        """
        path = self._file(spec)
        if (record := _read(path)) is not None:
            found = {one.spec.key: one for one in _in_todays_kinds(record)}
            if spec.key not in found:
                raise ValueError(f"the record {path} cannot be used: its spec has the key {record.spec.key}")
            return found[spec.key]
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
        if not self.writable:
            raise PermissionError(f"the store {self.folder} is read-only: name another one with --store")
        for name in ("result", "data", "provenance"):
            _check_plain(getattr(record, name), name)
        if objects := [name for name, array in record.arrays.items() if array.dtype.hasobject]:
            raise ValueError(f"arrays of a record hold numbers or text, not objects: {', '.join(objects)}")
        text = json.dumps(
            {
                "format": FORMAT,
                "spec": record.spec.as_dict(),
                "result": dict(record.result),
                "data": dict(record.data),
                "provenance": dict(record.provenance),
                "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in record.arrays.items()},
                "checksum": record.checksum,
            },
            indent=1,
        )
        path = self._json(record.spec)
        path.unlink(missing_ok=True)  # remove the old JSON first: new arrays must never be paired with an old JSON file
        if record.arrays:
            with atomic_path(path.with_suffix(".npz")) as part, part.open("wb") as file:
                np.savez_compressed(file, **record.arrays)  # type: ignore[arg-type]
        with atomic_path(path) as part:
            part.write_text(text + "\n", encoding="utf-8")

    def remove(self, spec: Spec) -> None:
        """Remove the record of ``spec`` from this folder, if it is there; a network's weights go with it.

        Raises
        ------
        PermissionError
            When the store is read-only.
        """
        if not self.writable:
            raise PermissionError(f"the store {self.folder} is read-only: name another one with --store")
        path = self._file(spec)
        path.unlink(missing_ok=True)  # The JSON goes first, so that none names arrays that are gone.
        path.with_suffix(".npz").unlink(missing_ok=True)
        if isinstance(spec, NetworkSpec):
            self.weights_path(spec).unlink(missing_ok=True)

    def iter_records(self) -> Iterator[Record]:
        """Iterate over the records of this folder, then over the base's other records; sorted by kind and key, and verified."""
        for path in sorted(self.folder.glob("*/[!.]*.json")):  # leftover temporary files of killed processes begin with a dot
            if (record := _read(path)) is not None:
                yield from (one for one in _in_todays_kinds(record) if self._file(one.spec) == path)
        for record in self.base.iter_records() if self.base is not None else ():
            if not self._file(record.spec).is_file():
                yield record

    def bytes_of(self, spec: Spec) -> int:
        """Return the size of the record of ``spec`` on disk, in bytes; 0 if there is none."""
        path = self._file(spec)
        if not path.is_file():
            return 0 if self.base is None else self.base.bytes_of(spec)
        return sum(part.stat().st_size for part in path.parent.glob(f"{path.stem}.[jn]*"))

    def weights_path(self, spec: NetworkSpec) -> Path:
        """Return the path of a network's weights; they are kept beside the records but never committed."""
        return self.folder / "weights" / f"{spec.key}.safetensors"

    def _json(self, spec: Spec) -> Path:
        return self.folder / spec.kind / f"{spec.key}.json"

    def _file(self, spec: Spec) -> Path:
        """Return the file of the record of ``spec``: its own, or the combined file of earlier versions if only that exists."""
        path = self._json(spec)
        combined = spec.combined if isinstance(spec, DetectorSpec) and not path.is_file() else None
        return path if combined is None or not self._json(combined[0]).is_file() else self._json(combined[0])


class Records(Mapping[Spec, Record]):
    """The records of a plan that exist so far, by spec, and the specs whose records are missing.

    Attributes
    ----------
    missing : tuple of Spec
        In the order of the plan.
    """

    def __init__(self, found: Mapping[Spec, Record], missing: Iterable[Spec] = ()) -> None:
        self._found, self.missing = dict(found), tuple(missing)

    def __getitem__(self, spec: Spec) -> Record:
        return self._found[spec]

    def __iter__(self) -> Iterator[Spec]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def missing_specs(plan: Iterable[Spec], store: Store, get: Callable[[Spec], Record] | None = None) -> list[Spec]:
    """Return the specs of a plan whose records are missing from a store or stale.

    A record is stale if it was computed with other weights, patterns or trigger drawings than the current ones. A network whose
    weights were lost, for example, is retrained, perhaps on another machine, and then has other weights. Records measured on the
    old weights are stale. ``get`` replaces ``Store.get``, for example by a version that caches records.
    """
    get = get or store.get
    once = functools.cache(get)  # many specs share the record of one network
    return [spec for spec in plan if spec not in store or _is_stale(spec, store, get, once)]


def _is_stale(spec: Spec, store: Store, get: Callable[[Spec], Record], once: Callable[[Spec], Record]) -> bool:
    try:
        result = get(spec).result
        if result.get("triggers", {}) != changed_digests(spec.triggers):
            return True
        needed = spec.needs.items()
        return any(needs in store and result.get(name) != once(needs).identity for name, needs in needed)
    except KeyError:  # another run is rewriting it
        return True


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
    return Store(Path(store).expanduser())


def published_folder() -> Path:
    """Return the folder of the committed records, in the checkout of this package or of the current folder."""
    candidates = [Path(__file__).resolve().parents[1], *(Path.cwd() / "_").parents]
    return next((c / "book/records" for c in candidates if (c / "_toc.yml").is_file()), candidates[0] / "book/records")


def _in_todays_kinds(record: Record) -> list[Record]:
    """Split a ``ScoresSpec`` record of earlier versions into one per detector; leave others unchanged."""
    if not isinstance(record.spec, ScoresSpec):
        return [record]
    arrays = {detector: record.arrays.get(name) for detector, name in ScoresSpec.arrays.items()}
    return [
        replace(record, spec=record.spec.alone(detector), arrays={"scores": array})
        for detector, array in arrays.items()
        if array is not None
    ]


def _read(path: Path) -> Record | None:
    """Return the record at a path; None if the file does not exist. Retries while another run replaces the file."""
    while (version := _version(path)) is not None:
        try:
            return _parse(path)
        except ValueError:
            if _version(path) == version:
                raise
    return None


def _version(path: Path) -> tuple[int, int] | None:
    """Return the inode and modification time of a file, which change whenever it is rewritten; None if it does not exist."""
    try:
        return (found := path.stat()).st_ino, found.st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parse(path: Path) -> Record:
    try:
        if path.stat().st_size > MOST_TEXT:
            raise ValueError(f"its text has {path.stat().st_size:,} bytes, more than {MOST_TEXT:,}")
        text = json.loads(path.read_text(encoding="utf-8"))
        if text["format"] > FORMAT:
            raise ValueError(f"it has format {text['format']}, this version reads up to {FORMAT}: update bslib")
        if text["format"] < FORMAT:
            raise ValueError(f"it has format {text['format']}, this version reads from {FORMAT} on")
        if not all(isinstance(text[part], dict) for part in ("result", "data", "provenance")):
            raise ValueError("its result, data or provenance is no JSON object")
        arrays = {}
        if text["arrays"]:
            with path.with_suffix(".npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                if (size := sum(member.file_size for member in file.zip.infolist())) > MOST_ARRAYS:
                    raise ValueError(f"its arrays unpack to {size:,} bytes, more than {MOST_ARRAYS:,}")
                arrays = {name: file[name] for name in text["arrays"]}
        record = Record(spec_from(text["spec"]), text["result"], arrays, text["data"], text["provenance"])
        if record.spec.key != path.stem:
            raise ValueError(f"its spec has the key {record.spec.key}")
        if record.checksum != text["checksum"]:
            raise ValueError("its content does not fit its checksum")
        for name in ("result", "data", "provenance"):
            _check_plain(getattr(record, name), name)
        if not isinstance(record.provenance.get("seconds", 0), int | float):
            raise ValueError("its seconds are no number")
    except (*DAMAGE, OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"the record {path} cannot be used: {problem}; remove it, and bslib run computes it again") from None
    return record
