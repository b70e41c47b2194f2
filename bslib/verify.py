"""Verification: recompute a sample of a store's records and compare each result with the stored one.

On the same kind of processor, with the same versions, precision and a single thread, results are reproduced bit for bit. On other
machines, a retrained network has other weights, and another kind of device draws other noise. The new result is then tested for
agreement within chance. If the network is the same, it is compared with the old result. Otherwise the difference is compared with
the spread of its siblings, the records that differ only in the seed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bslib.files import file_digest
from bslib.jobs import job_of
from bslib.runner import run
from bslib.specs import NetworkSpec
from bslib.statistics import within_chance
from bslib.store import Record, Store

__all__ = ["Check", "sample", "verify", "with_key"]


class Check(NamedTuple):
    """The outcome of verifying one record.

    Parameters
    ----------
    record : Record
        The record in the store.
    outcome : {"identical", "agrees", "differs", "cannot be told"}
    remark : str
        The numbers on which the outcome is based.
    """

    record: Record
    outcome: str
    remark: str


def sample(store: Store, count: int, *, seed: int, kind: str | None = None) -> list[Record]:
    """Draw ``count`` random records from a store, optionally of one kind; all if there are fewer.

    Raises
    ------
    ValueError
        If there are no such records, or ``count`` is less than 1.

    >>> from bslib.store import open_store
    >>> len(sample(open_store("published"), 3, seed=0))
    3
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"a sample has at least 1 record, got {count!r}")
    records = [record for record in store.iter_records() if kind in (None, record.spec.kind)]
    if not records:
        raise ValueError(f"the store {store.folder} has no records{f' of kind {kind!r}' if kind else ''}")
    chosen = np.random.default_rng(seed).permutation(len(records))[:count]
    return [records[k] for k in sorted(chosen)]


def with_key(store: Store, key: str) -> Record:
    """Return the only record whose key starts with ``key``.

    Raises
    ------
    ValueError
        If there is no such record, or more than one.

    >>> from bslib.store import open_store
    >>> with_key(open_store("published"), "no key")
    Traceback (most recent call last):
    ValueError: the key of one record must start with 'no key', got 0 such records
    """
    found = [record for record in store.iter_records() if record.spec.key.startswith(key)]
    if len(found) != 1:
        raise ValueError(f"the key of one record must start with {key!r}, got {len(found)} such records")
    return found[0]


def verify(records: list[Record], store: Store, *, device: str = "auto", progress: bool = True) -> Iterator[Check]:
    """Recompute records one after the other, each in a temporary store, and compare each with the original.

    A network is reused if its weights are kept beside the store and match its record; otherwise it is retrained. The store that
    the records come from is not modified. ``device`` is as for :func:`bslib.runner.run`.
    """
    everything = list(store.iter_records())
    for record in records:
        spec = record.spec
        with tempfile.TemporaryDirectory() as folder:  # one per record, so that copied records are not reused
            anew = Store(Path(folder))
            if spec.on_network is not None and spec.on_network != spec:
                _bring_weights(spec.on_network, store, anew)
            run([spec], anew, device=device, jobs=1, progress=progress)
            new = anew.get(spec)
            # The record may name a pattern by the checksum of an earlier format, and earlier class counts held their precision.
            old = record.result
            same = {name: old[name] for name, need in spec.needs.items() if old.get(name) in anew.get(need).identities}
            same |= {"precision": old["precision"]} if "precision" in old and "precision" not in new.result else {}
            yield _compare(record, replace(new, result={**new.result, **same}), everything)


def _bring_weights(network: NetworkSpec, store: Store, anew: Store) -> None:
    path = store.weights_path(network)
    if network in store and path.is_file() and file_digest(path) == store.get(network).result["weights"]:
        anew.put(store.get(network))
        anew.weights_path(network).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, anew.weights_path(network))


def _compare(old: Record, new: Record, everything: list[Record]) -> Check:
    if old.same_result(new):
        return Check(old, "identical", "every bit")
    if old.data != new.data:
        return Check(old, "differs", f"computed on other data: {new.data.get('source')}")
    if any(not np.array_equal(old.arrays[name], new.arrays[name]) for name in ("images", "labels") if name in old.arrays):
        return Check(old, "differs", "other images or other labels")
    # Training or crafting on another processor gives another network or pattern.
    same_inputs = all(old.result.get(name) == new.result.get(name) for name in old.spec.needs)
    compare = getattr(job_of(old.spec), "compare", None)
    if same_inputs and compare is not None:
        agrees, remark = compare(old, new)
        return Check(old, "agrees" if agrees else "differs", remark)
    summary, again = (record.spec.summary(record.result, record.arrays) for record in (old, new))
    if summary is None or again is None:
        return Check(old, "cannot be told", "the results are not the same")
    kind = old.spec.without_seeds()
    others = [record for record in everything if record.spec != old.spec and record.spec.without_seeds() == kind]
    if len(others) < 3:
        return Check(old, "cannot be told", f"another network or pattern, and only {len(others)} siblings to judge by")
    siblings = np.stack([np.asarray(record.spec.summary(record.result, record.arrays)) for record in others])
    spread = np.maximum(np.std(siblings, axis=0, ddof=1), 1e-3) * 2**0.5
    agrees, remark = within_chance(np.abs(again - summary) / spread, len(others) - 1, "spreads of its siblings")
    return Check(old, "agrees" if agrees else "differs", remark)
