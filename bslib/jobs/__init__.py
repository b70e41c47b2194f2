"""Jobs: one module for each kind of spec, found by its name. All that is heavy happens here, and ends in a record.

A module has a function ``compute(spec, store, device, progress)``, and may have ``compare(old, new)``: whether two records of one
spec, made with the same weights and patterns, are the same but for rounding and noise.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import torch

from bslib.drawings import changed_digests
from bslib.provenance import code_version, device_name
from bslib.specs import Spec
from bslib.store import Record, Store

__all__ = ["compute", "job_of"]


def job_of(spec: Spec) -> Any:
    """The module that computes specs of this kind."""
    return import_module(f"bslib.jobs.{spec.kind}")


def compute(spec: Spec, store: Store, *, device: str, progress: bool = True) -> Record:
    """Compute what ``spec`` asks for; nothing is put into the store but a network's weights and checkpoints.

    Parameters
    ----------
    spec : Spec
    store : Store
        Where the weights of networks are found and kept.
    device : str
        A torch device.
    progress : bool
        Show a bar for what takes longer than two seconds.

    Returns
    -------
    Record
        With its provenance.
    """
    started = time.monotonic()
    result, arrays, data = job_of(spec).compute(spec, store, torch.device(device), progress)
    seconds = time.monotonic() - started + result.pop("seconds before", 0.0)
    if digests := changed_digests(spec.triggers):
        result["triggers"] = digests
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
