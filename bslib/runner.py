"""The runner: carries out what a store lacks of a plan, one network after another.

A network and everything measured on it stay together: it is trained once (or its weights are found beside the store), measured,
and each record is written as soon as it exists. Interrupted at any point, the same call goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from tqdm.auto import tqdm

from bslib.jobs import carry_out, weights_digest
from bslib.specs import CountsSpec, NetworkSpec, Spec
from bslib.store import Store

__all__ = ["run"]

#: Threads of a job on the CPU. Fixed, since training with another number of threads rounds differently and gives another network.
THREADS = 2


def run(plan: Iterable[Spec], store: Store, *, device: str = "auto", threads: int = THREADS, progress: bool = True) -> None:
    """Compute every record of ``plan`` that ``store`` lacks.

    Parameters
    ----------
    plan : iterable of Spec
        Carried out in this order, except that the measurements of a network follow it.
    store : Store
    device : str
        "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1".
    threads : int
        Threads of a job on the CPU; they are in the provenance of the records.
    progress : bool
        Show a bar over the plan.

    Raises
    ------
    ValueError
        For a device that this machine does not have.
    """
    device = chosen_device(device)
    groups = _groups(plan)
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, os.cpu_count() or 1))
    try:
        with tqdm(total=sum(map(len, groups.values())), desc="plan", unit="record", disable=not progress) as bar:
            for network, specs in groups.items():
                missing = [spec for spec in specs if spec not in store]
                if network is not None and missing:
                    missing = _after_network(network, specs, store, device)
                for spec in missing:
                    store.put(carry_out(spec, store, device=device))
                bar.update(len(specs))
    finally:
        torch.set_num_threads(before)


def chosen_device(device: str) -> str:
    """The device that a name stands for on this machine.

    >>> chosen_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, and this machine has {torch.cuda.device_count()} CUDA devices")
    if kind.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return device


def _groups(plan: Iterable[Spec]) -> dict[NetworkSpec | None, list[Spec]]:
    """The plan by the network that a spec needs; under None what needs none."""
    groups: dict[NetworkSpec | None, list[Spec]] = {}
    for spec in dict.fromkeys(plan):
        needs = spec if isinstance(spec, NetworkSpec) else spec.network if isinstance(spec, CountsSpec) else None
        groups.setdefault(needs, []).append(spec)
    return groups


def _after_network(network: NetworkSpec, specs: list[Spec], store: Store, device: str) -> list[Spec]:
    """Have the network's weights at hand; return what has to be measured on them.

    Weights are kept beside the store. Where they are gone, or are not the ones that the network's record speaks of, the network
    is trained again, and what was measured on other weights is measured again too: all records of a network speak of one network.
    """
    path = store.weights_path(network)
    if not (network in store and path.is_file() and weights_digest(path) == store.get(network).result["weights"]):
        store.put(carry_out(network, store, device=device))
    weights = store.get(network).result["weights"]
    measurements = [spec for spec in specs if spec != network]
    return [spec for spec in measurements if spec not in store or store.get(spec).result["weights"] != weights]
