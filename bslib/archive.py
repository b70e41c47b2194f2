"""A store as one file, so that records made on one machine can go to another; each is checked on arrival."""

from __future__ import annotations

import re
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from bslib.files import atomic_path
from bslib.progress import bar
from bslib.specs import Spec
from bslib.store import DAMAGE, Store

__all__ = ["ImportResult", "export_records", "import_records"]

#: What a member of an archive may be called: nothing else is unpacked, so nothing leaves its folder.
_MEMBER = re.compile(r"[a-z]+/[0-9a-f]{20}\.(json|npz)")


#: An archive that unpacks to more is refused.
MOST_BYTES = 2**31


class ImportResult(NamedTuple):
    """What :func:`import_records` did: which records are new, were there, or were there with another result."""

    new: list[Spec]
    known: list[Spec]
    different: list[Spec]


def export_records(store: Store, file: Path, specs: list[Spec] | None = None) -> int:
    """Write records of a store into one zip file, atomically; weights are left out.

    Parameters
    ----------
    store : Store
    file : Path
    specs : list of Spec, optional
        Which records, as far as the store has them; all when not given.

    Returns
    -------
    int
        How many records the file holds.

    Raises
    ------
    ValueError
        When a record is damaged, or there is none to write.
    """
    records = list(store.iter_records()) if specs is None else [store.get(spec) for spec in dict.fromkeys(specs) if spec in store]
    if not records:
        raise ValueError(f"the store {store.folder} has none of these records")
    with tempfile.TemporaryDirectory() as folder, atomic_path(Path(file)) as part:
        copy = Store(Path(folder))
        for record in records:
            copy.put(record)
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:  # arrays are compressed already
            for path in sorted(Path(folder).glob("*/*")):
                archive.write(path, path.relative_to(folder).as_posix())
    return len({record.spec for record in records})


def import_records(file: Path, store: Store, *, progress: bool = True) -> ImportResult:
    """Put the records of a file that :func:`export_records` wrote into a store; one that the store has stays as it is.

    Parameters
    ----------
    file : Path
    store : Store
    progress : bool
        Show a bar when it takes longer than two seconds.

    Raises
    ------
    ValueError
        When the file is no such archive, or a record in it is damaged; nothing is put then.
    """
    try:
        with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
            if strange := [name for name in archive.namelist() if not _MEMBER.fullmatch(name)]:
                raise ValueError(f"{strange[0]!r} is no record")
            if (size := sum(member.file_size for member in archive.infolist())) > MOST_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, more than {MOST_BYTES:,}")
            archive.extractall(folder)
            records = list(Store(Path(folder)).iter_records())
            found = {f"{record.spec.kind}/{record.spec.key}" for record in records}
            if not records or {name.rsplit(".", 1)[0] for name in archive.namelist()} != found:
                raise ValueError("it holds no records, or something besides")
    except (*DAMAGE, OSError, ValueError) as problem:
        raise ValueError(f"{file} cannot be imported: {problem}") from None
    arrived = ImportResult([], [], [])
    with bar(total=len(records), desc="importing", unit="record", show=progress) as shown:
        for record in records:
            if record.spec not in store:
                store.put(record)
                arrived.new.append(record.spec)
            else:
                same = store.get(record.spec).checksum == record.checksum
                (arrived.known if same else arrived.different).append(record.spec)
            shown.update()
    return arrived
