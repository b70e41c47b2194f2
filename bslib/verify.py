"""Records computed again: a sample of a store is carried out anew, and each result is compared with what the store says.

On the same kind of processor, with the same versions, precision and one thread, a result comes back bit for bit. Elsewhere a
network that is trained again is another network, and noise drawn on another kind of device is other noise. What is asked then is
whether the new result is as near as chance lets it be: to the old one where the network is the same, and where it is not, to its
siblings, which differ in the seed alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bslib.entropy import entropy
from bslib.jobs import weights_digest
from bslib.runner import run
from bslib.specs import CountsSpec, ImagesSpec, MeasuredSpec, NetworkSpec, PredictionsSpec, Spec
from bslib.store import Record, Store

__all__ = ["Check", "sample", "verify", "with_key"]

Floats = NDArray[np.float64]
#: The share of honest records that may be said to differ.
CHANCE = 1e-3
#: The share of predictions that rounding may change on another processor.
ROUNDED = 1e-3


class Check(NamedTuple):
    """What became of one record.

    Parameters
    ----------
    record : Record
        The one in the store.
    outcome : {"identical", "agrees", "differs", "cannot be told"}
    remark : str
        The numbers behind it.
    """

    record: Record
    outcome: str
    remark: str


def sample(store: Store, count: int, *, seed: int, kind: str | None = None) -> list[Record]:
    """So many records of a store, or of one kind in it, drawn at random; all where there are fewer.

    Raises
    ------
    ValueError
        When there is none, or fewer than one is asked for.

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
    """The one record whose key starts so.

    Raises
    ------
    ValueError
        When there is none, or more than one.

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
    """Compute records again, one after the other, in a store of their own, and say how each compares.

    A network whose weights lie beside the store, and are those that its record names, is used as it is; another one is trained.

    Parameters
    ----------
    records : list of Record
    store : Store
        Where they come from; nothing in it is changed.
    device : str
        As for :func:`bslib.runner.run`.
    progress : bool

    Yields
    ------
    Check
    """
    everything = list(store.iter_records())
    for record in records:
        spec = record.spec
        needed: list[Spec] = []
        with tempfile.TemporaryDirectory() as folder:  # one for each: nothing is compared with what was brought here for another
            anew = Store(Path(folder))
            if isinstance(spec, MeasuredSpec):
                _bring_weights(spec.network, store, anew)
                needed = [spec.network, *([pattern] if (pattern := getattr(spec, "pattern", None)) else [])]
            run([*needed, spec], anew, device=device, jobs=1, progress=progress)
            yield _compare(record, anew.get(spec), everything)


def _bring_weights(network: NetworkSpec, store: Store, anew: Store) -> None:
    path = store.weights_path(network)
    if network not in store or not path.is_file():
        return
    if weights_digest(path) == store.get(network).result["weights"]:
        anew.put(store.get(network))
        anew.weights_path(network).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, anew.weights_path(network))


def _compare(old: Record, new: Record, everything: list[Record]) -> Check:
    if old.checksum == new.checksum:
        return Check(old, "identical", "every bit")
    if old.data != new.data:
        return Check(old, "differs", f"computed on other data: {new.data.get('source')}")
    if any(not np.array_equal(old.arrays[name], new.arrays[name]) for name in ("images", "labels") if name in old.arrays):
        return Check(old, "differs", "other images or other labels")
    same_pattern = old.result.get("pattern") == new.result.get("pattern")  # crafted on another processor it is another one
    if old.result.get("weights", 0) == new.result.get("weights", 1) and same_pattern:
        if isinstance(old.spec, CountsSpec):
            return _compare_points(old, new)
        if isinstance(old.spec, PredictionsSpec):
            share = float((old.arrays["predicted"] != new.arrays["predicted"]).mean())
            return Check(
                old, "agrees" if share <= ROUNDED else "differs", f"{share:.2%} of the predictions of one network differ"
            )
    measures = _measures(old)
    if measures is None:
        told = isinstance(old.spec, ImagesSpec)  # chosen, not computed: there is nothing to round
        return Check(old, "differs" if told else "cannot be told", "the results are not the same")
    others = [record for record in everything if record.spec != old.spec and _is_sibling(record.spec, old.spec)]
    siblings = [m for record in others if (m := _measures(record)) is not None]
    if len(siblings) < 3:
        return Check(old, "cannot be told", f"another network or pattern, and only {len(siblings)} siblings to judge by")
    again = _measures(new)
    assert again is not None
    spread = np.maximum(np.std(siblings, axis=0, ddof=1), 1e-3) * 2**0.5
    return _within(old, np.abs(again - measures) / spread, len(siblings) - 1, "spreads of its siblings")


def _compare_points(old: Record, new: Record) -> Check:
    """The same network under other noise, or other rounding: the mean difference of W over the points, in standard errors."""
    difference = entropy(new.arrays["counts"]) - entropy(old.arrays["counts"])
    mean, error = difference.mean(-1), difference.std(-1, ddof=1) / difference.shape[-1] ** 0.5
    return _within(old, np.abs(mean) / np.maximum(error, 1e-4), difference.shape[-1] - 1, "standard errors")


def _within(record: Record, off: Floats, freedom: int, unit: str) -> Check:
    """Whether all of some distances, in units that were estimated with so many degrees of freedom, are within chance."""
    bound = float(stats.t.isf(CHANCE / off.size / 2, freedom))
    outcome = "agrees" if off.max() <= bound else "differs"
    return Check(record, outcome, f"at most {off.max():.1f} {unit} apart, and up to {bound:.1f} is chance")


def _measures(record: Record) -> Floats | None:
    """What is compared between networks: accuracy, or mean W at each setting; None where the kind has neither."""
    spec, arrays = record.spec, record.arrays
    if isinstance(spec, NetworkSpec):
        return np.array([record.result["clean_accuracy"]])
    if isinstance(spec, PredictionsSpec):
        return np.array([(arrays["predicted"] == arrays["labels"]).mean()])
    return entropy(arrays["counts"]).mean(-1).ravel() if isinstance(spec, CountsSpec) else None


def _is_sibling(spec: Spec, of: Spec) -> bool:
    return type(spec) is type(of) and _without_seeds(spec) == _without_seeds(of)


def _without_seeds(spec: Any) -> Any:
    """A spec with all seeds, and the target class that follows from one, set to 0."""
    changes: dict[str, Any] = {"seed": 0} if hasattr(spec, "seed") else {}
    if isinstance(spec, MeasuredSpec):
        changes["network"] = _without_seeds(spec.network)
    if isinstance(spec, NetworkSpec) and spec.attack is not None and spec.attack.target is not None:
        changes["attack"] = replace(spec.attack, target=0)
    if (pattern := getattr(spec, "pattern", None)) is not None:
        changes["pattern"] = _without_seeds(pattern)
    return replace(spec, **changes)
