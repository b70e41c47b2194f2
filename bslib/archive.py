"""Export records to a single file and import them on another machine; every record is verified on import."""

from __future__ import annotations

import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from bslib.files import atomic_path
from bslib.progress import bar
from bslib.specs import NetworkSpec, Spec
from bslib.store import Record, Store, missing_specs

__all__ = ["ImportResult", "export_records", "import_records"]

#: Allowed names of archive members. No other name is unpacked, so no file is written outside the folder.
_MEMBER = re.compile(r"[a-z]+/[0-9a-f]{20}(\.json|(\.[0-9a-f]{16})?\.npz)")

#: The largest accepted size of an unpacked archive, in bytes.
MOST_BYTES = 2**31


class ImportResult(NamedTuple):
    """Result of :func:`import_records`.

    Parameters
    ----------
    new, known : list of Spec
        Records that were imported, and records that the store already had.
    different : list of Spec
        Records that were left out, because the store has another result or a network with other weights.
    replaced : list of NetworkSpec
        Networks whose records were removed from the store, because the file has other weights.
    """

    new: list[Spec]
    known: list[Spec]
    different: list[Spec]
    replaced: list[NetworkSpec]


def export_records(store: Store, file: Path) -> tuple[int, int]:
    """Write the records of a store, without weights, atomically into one zip file.

    Returns
    -------
    written, stale : int
        The numbers of records that were written, and that were left out since they were made from what has changed, such as
        earlier weights of a network.

    Raises
    ------
    ValueError
        If a record is corrupt, or there is none to write.
    """
    records = {record.spec: record for record in store.iter_records()}
    stale = missing_specs(records, store, records.__getitem__)
    for spec in stale:
        del records[spec]
    if not records:
        raise ValueError(f"the store {store.folder} has no records")
    with tempfile.TemporaryDirectory() as folder, atomic_path(Path(file)) as part:
        copy = Store(Path(folder))
        for record in records.values():
            copy.put(record)
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:  # arrays are already compressed
            for path in sorted(Path(folder).glob("*/*")):
                archive.write(path, path.relative_to(folder).as_posix())
    return len(records), len(stale)


def import_records(file: Path, store: Store, *, replace: bool = False, progress: bool = True) -> ImportResult:
    """Import the records of a file written by :func:`export_records` into a store; existing records are not overwritten.

    The records of one network are imported together, after a run that computes some of them has finished with it.

    Parameters
    ----------
    file : Path
    store : Store
    replace : bool
        Whether a network of the file replaces the store's network with other weights. All other records of the store's network
        are removed then, so that no network has records of two sets of weights. Otherwise, and if the file lacks the record of
        the network itself, the file's records of it are left out.
    progress : bool
        Show a progress bar if the import takes longer than two seconds.

    Raises
    ------
    ValueError
        If the file is not such an archive or contains a corrupt record; nothing is imported in that case. After an import that
        was interrupted, another one finishes it: the record of a replaced network is written last.
    """
    try:
        with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
            if strange := [name for name in archive.namelist() if not _MEMBER.fullmatch(name)]:
                raise ValueError(f"{strange[0]!r} is no record")
            if (size := sum(member.file_size for member in archive.infolist())) > MOST_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, more than {MOST_BYTES:,}")
            archive.extractall(folder)
            if (size := sum(map(_unpacked, Path(folder).glob("*/*.npz")))) > MOST_BYTES:
                raise ValueError(f"its arrays unpack to {size:,} bytes, more than {MOST_BYTES:,}")
            records = list(Store(Path(folder)).iter_records())
            texts, arrays = ({n.split(".")[0] for n in archive.namelist() if n.endswith(end)} for end in ("json", "npz"))
            if not records or not arrays <= texts:
                raise ValueError("it holds no records, or something besides")
    except Exception as problem:  # zipfile raises almost any exception for a damaged file
        raise ValueError(f"{file} cannot be imported: {problem}") from None
    weights = _weights_by_network(records, file)
    groups: dict[Spec, list[Record]] = {}
    for record in records:
        groups.setdefault(record.spec.shared, []).append(record)
    there: dict[NetworkSpec | None, list[Spec]] = {}  # once for all groups: reading a store takes seconds
    for record in store.iter_records() if replace else ():
        there.setdefault(record.spec.on_network, []).append(record.spec)
    arrived = ImportResult([], [], [], [])
    with bar(total=len(records), desc="importing", unit="record", show=progress) as shown:
        for group in groups.values():
            with store.alone(group[0].spec):
                networks = {record.spec.on_network for record in group if record.spec.on_network is not None}
                others = {n for n in networks if n in store and store.get(n).result["weights"] != weights[n]}
                replaced = {record.spec for record in group if record.spec in others} if replace else set()
                old = {spec for network in replaced for spec in there.get(network, ())}
                for spec in old - {record.spec for record in group}:
                    store.remove(spec)
                _put(group, store, others, replaced, arrived)
                for network in replaced:
                    store.weights_path(network).unlink(missing_ok=True)
            shown.update(len(group))
    return arrived


def _unpacked(arrays: Path) -> int:
    """The size of a file of arrays when it is unpacked, from its directory."""
    with zipfile.ZipFile(arrays) as file:
        return sum(member.file_size for member in file.infolist())


def _put(
    records: list[Record], store: Store, others: set[NetworkSpec], replaced: set[NetworkSpec], arrived: ImportResult
) -> None:
    """Import the records of one group; ``others`` are the networks that the store has with other weights."""
    arrived.replaced.extend(sorted(replaced, key=lambda network: network.key))
    for record in sorted(records, key=lambda record: record.spec in replaced):
        network = record.spec.on_network
        if network in others and network not in replaced:
            arrived.different.append(record.spec)
        elif network in replaced or record.spec not in store:  # what a base store has of the old network is hidden by the new
            store.put(record)
            arrived.new.append(record.spec)
        else:
            same = store.get(record.spec).same_result(record)
            (arrived.known if same else arrived.different).append(record.spec)


def _weights_by_network(records: list[Record], file: Path) -> dict[NetworkSpec, Any]:
    """The digest of the weights that a file's records of each network name."""
    weights: dict[NetworkSpec, Any] = {}
    for record in records:
        network, named = record.spec.on_network, record.result.get("weights")
        if network is not None and weights.setdefault(network, named) != named:
            raise ValueError(f"{file} cannot be imported: it has records of several sets of weights of the network {network.key}")
    return weights
