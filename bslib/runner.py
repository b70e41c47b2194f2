"""The runner: carries out what a store lacks of a plan, several networks at a time.

A network and everything measured on it stay together: it is trained once (or its weights are found beside the store), measured,
and each record is written as soon as it exists. Interrupted at any point, the same call goes on where it was.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait

import torch
from tqdm.auto import tqdm

from bslib.jobs import carry_out, weights_digest
from bslib.specs import CountsSpec, NetworkSpec, Spec
from bslib.store import Store, lacking

__all__ = ["chosen_device", "run"]

#: Threads of a job on the CPU. Training with another number of threads rounds differently and gives another network; every
#: machine has one thread, and two jobs of one thread are faster than one job of two.
THREADS = 1


def run(plan: Iterable[Spec], store: Store, *, device: str = "auto", jobs: int | None = None, progress: bool = True) -> None:
    """Compute every record of ``plan`` that ``store`` lacks.

    Parameters
    ----------
    plan : iterable of Spec
        Carried out in this order, except that the measurements of a network follow it.
    store : Store
    device : str
        "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1".
    jobs : int, optional
        Networks at a time, each in a process of its own; when not given, one for each core, or one on a GPU.
    progress : bool
        Show a bar over the records of the plan.

    Raises
    ------
    ValueError
        For a device that this machine does not have, or fewer than one job.
    """
    device = chosen_device(device)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    plan = list(dict.fromkeys(plan))
    groups = [group for group in _groups(plan) if lacking(group, store)]
    if groups:
        store.folder.mkdir(parents=True, exist_ok=True)  # a place that cannot be written to is found out before the work
    jobs = min(jobs or (os.cpu_count() or 1 if device == "cpu" else 1), len(groups))
    with tqdm(total=len(plan), initial=_done(plan, store), desc="plan", unit="record", disable=not progress or not groups) as bar:
        if jobs <= 1:
            for group in groups:
                for _ in run_group(group, store, device, progress):
                    bar.update()
        else:
            with _pool(jobs) as pool:
                futures = [pool.submit(_run_whole_group, group, store, device) for group in groups]
                for _ in _watch(futures):
                    bar.update(_done(plan, store) - bar.n)


def run_group(group: list[Spec], store: Store, device: str, progress: bool) -> Iterator[Spec]:
    """Carry out what a store lacks of the specs that need one network; yields each spec whose record was written.

    Where the network's weights are gone from beside the store, or are not the ones that its record speaks of, it is trained
    again, and what was measured on other weights is measured again too: all records of a network speak of one network.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        missing = lacking(group, store)
        network = network_of(group[0])
        if network is not None:
            if not _has_weights(network, store):
                store.put(carry_out(network, store, device=device, progress=progress))
                yield network
            missing = lacking(group, store)
        for spec in missing:
            store.put(carry_out(spec, store, device=device, progress=progress))
            yield spec
    finally:
        torch.set_num_threads(threads)


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
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, and this machine has {torch.cuda.device_count()} CUDA devices")
    return "cpu" if kind.type == "cpu" else device


def network_of(spec: Spec) -> NetworkSpec | None:
    """The network that a spec is or is measured on; None where it needs none."""
    if isinstance(spec, NetworkSpec):
        return spec
    return spec.network if isinstance(spec, CountsSpec) else None


def _groups(plan: Iterable[Spec]) -> list[list[Spec]]:
    """The plan by the network that a spec needs, and each spec that needs none by itself."""
    groups: dict[Spec, list[Spec]] = {}
    for spec in plan:
        groups.setdefault(network_of(spec) or spec, []).append(spec)
    return list(groups.values())


def _has_weights(network: NetworkSpec, store: Store) -> bool:
    path = store.weights_path(network)
    return network in store and path.is_file() and weights_digest(path) == store.get(network).result["weights"]


def _run_whole_group(group: list[Spec], store: Store, device: str) -> None:
    for _ in run_group(group, store, device, progress=False):
        pass


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Fresh interpreters: a forked one would inherit the state of torch's thread pools.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Have this worker end when the process that started it is killed; it would go on computing and writing without it."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers call this

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _watch(futures: list[Future[None]]) -> Iterator[None]:
    """Yields once a second until all are done; stops the workers when one fails or the user interrupts."""
    try:
        while True:
            done, waiting = wait(futures, timeout=1, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            yield
            if not waiting:
                return
    except BaseException:
        for future in futures:
            future.cancel()
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise


def _done(plan: list[Spec], store: Store) -> int:
    return sum(spec in store for spec in plan)
