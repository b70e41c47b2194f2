"""Runs on a cluster: the workers of a Dask scheduler, exposed as ``concurrent.futures`` executors.

The scheduler is trusted. As with every Dask cluster, anyone who can reach it can run arbitrary code on its workers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager
from typing import Any

__all__ = ["GPU", "pools_at"]

#: The resource that a worker with a GPU offers: ``dask worker ADDRESS --nthreads 1 --resources GPU=1``.
GPU = "GPU"

#: Timeout for the scheduler to answer, and for its first worker to join, in seconds.
PATIENCE = 30.0


@contextmanager
def pools_at(address: str, device: str) -> Iterator[dict[str, Executor]]:
    """Connect to a scheduler and yield executors by the device on which their jobs compute: "cpu", "cuda" or both.

    Parameters
    ----------
    address : str
        Address of the scheduler, such as ``tcp://host:8786``.
    device : {"auto", "cpu", "cuda"}
        The device that jobs need. "auto" uses all workers and yields a separate executor for those that offer a GPU.

    Raises
    ------
    ValueError
        If the address or the device is invalid, a worker runs several jobs in one process, or ``device`` is "cuda" and no worker
        offers a GPU.
    ConnectionError
        If no scheduler answers, the connection is lost later, or the scheduler has no workers.
    RuntimeError
        If Dask is not installed, or several workers died while running the same job.
    """
    if not re.fullmatch(r"(tcp|tls|wss?)://(\[[\w:.%]+\]|[^\s/:\[\]]+):\d{1,5}", address):  # at others Dask's client hangs
        raise ValueError(f"scheduler must be an address such as tcp://host:8786, got {address!r}")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"the device of a run on a scheduler must be auto, cpu or cuda, got {device!r}")
    try:
        from distributed import Client, KilledWorker, Security
    except ImportError:
        raise RuntimeError("a run on a scheduler needs Dask: pip install '.[cluster]' in a clone of the book") from None
    if address.startswith(("tls", "wss")) and not Security().get_connection_args("client").get("ssl_context"):
        raise ValueError(f"{address!r} needs Dask's TLS settings, and there are none: see the page on clusters")
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # its errors are raised below, in one line
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as problem:
        raise ConnectionError(f"no Dask scheduler answers at {address!r}: {str(problem).splitlines()[0]}") from None
    try:
        gpus = _gpu_workers(client, address)
        if device == "cuda" and not gpus:
            missing = f"device 'cuda' was asked for, and no worker at {address} offers it"
            raise ValueError(f"{missing}: start one with --resources GPU=1")
        pools: dict[str, Executor] = {}
        if device != "cuda":
            pools["cpu"] = client.get_executor(pure=False)
        if device != "cpu" and gpus:
            pools["cuda"] = client.get_executor(pure=False, resources={GPU: 1})
        yield pools
    except CancelledError:
        raise ConnectionError(f"the scheduler at {address} is gone: what is finished is kept, the same command goes on") from None
    except KilledWorker as problem:
        deaths = problem.allowed_failures + 1
        raise RuntimeError(f"a job was given up after its worker died {deaths} times: {problem.task}") from None
    finally:
        client.close(timeout=1)


def _gpu_workers(client: Any, address: str) -> int:
    """Return the number of workers that offer a GPU; raise an error if there is no worker or one has several threads."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        remedy = f"start some with dask worker {address} --nthreads 1"
        raise ConnectionError(f"the scheduler at {address} has no workers: {remedy}") from None
    workers = client.scheduler_info(n_workers=-1)["workers"]
    for name, worker in workers.items():
        if worker["nthreads"] != 1:
            raise ValueError(f"the worker {name} runs {worker['nthreads']} jobs in one process: start it with --nthreads 1")
    return sum(GPU in worker["resources"] for worker in workers.values())
