"""Jobs: one module for each kind of spec, with the name of the kind. Jobs do all heavy computation and return records.

Each module has a function ``compute(spec, store, device, progress)``. It may also have ``compare(old, new)``, which tells whether
two records of one spec, computed with the same weights and patterns, differ only by rounding and noise.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import torch

from bslib.provenance import code_version, device_name
from bslib.specs import Spec
from bslib.store import Record, Store, definitions

__all__ = ["compute", "job_of"]


def job_of(spec: Spec) -> Any:
    """Return the module that computes specs of this kind."""
    return import_module(f"bslib.jobs.{spec.kind}")


def compute(spec: Spec, store: Store, *, device: str, progress: bool = True) -> Record:
    """Compute the record of ``spec``. Only weights and checkpoints of networks are written to the store, not the record.

    Parameters
    ----------
    spec : Spec
    store : Store
        The store from which weights are read and to which they are written.
    device : str
        A torch device.
    progress : bool
        Show a progress bar for steps that take longer than two seconds.

    Returns
    -------
    Record
        The record, including its provenance.
    """
    started = time.monotonic()
    result, arrays, data = job_of(spec).compute(spec, store, torch.device(device), progress)
    seconds = time.monotonic() - started + result.pop("seconds before", 0.0)
    result |= {name: digests for name, digests in definitions(spec).items() if digests}
    engine = {"engine": result.pop("engine")} if "engine" in result else {}
    provenance = {
        "code": code_version(),
        "torch": torch.__version__,
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "seconds": round(seconds, 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    } | engine
    source = {} if data is None else {"name": data.name, "fingerprint": data.fingerprint, "source": data.source}
    return Record(spec, result, arrays, source, provenance)
