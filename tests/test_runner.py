"""The runner computes what is missing, alike in one process and in several, and survives being stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_profile

import bslib.jobs.network as network_job
from bslib import datasets, drawings, jobs, runner, triggers
from bslib.chapters import sizes_of
from bslib.chapters.parameters.plan import networks_of, specs_of
from bslib.jobs import compute
from bslib.runner import chosen_device, run
from bslib.specs import AttackSpec, CountsSpec, ImagesSpec, NetworkSpec, PredictionsSpec, UniversalSpec
from bslib.store import Store

IMAGES = ImagesSpec(dataset="digits", images=12, seed=0)


@pytest.fixture
def store(completed, tmp_path) -> Store:
    """A copy of the completed store, to be damaged."""
    return Store(shutil.copytree(completed.folder, tmp_path / "store"))


@pytest.fixture
def carried_out(monkeypatch) -> list:
    """The specs that the runner has carried out, in order; only in this process, so with one job."""
    specs = []

    def noted(spec, *arguments, **more):
        specs.append(spec)
        return compute(spec, *arguments, **more)

    monkeypatch.setattr(runner, "compute", noted)
    return specs


def complete(plan, store: Store, **more) -> None:
    run(plan, store, device="cpu", progress=False, **{"jobs": 1, **more})


def checksums(store: Store) -> dict[str, str]:
    return {record.spec.key: record.checksum for record in store.iter_records()}


def weights_of(store: Store, plan, seed: int) -> set[str]:
    """The digests of the weights that the records of one network speak of."""
    return {store.get(spec).result["weights"] for spec in plan if spec.on_network.seed == seed}


# --- what is computed --------------------------------------------------------------------------------------------


def test_a_plan_is_carried_out(completed, tiny_plan):
    assert all(spec in completed for spec in tiny_plan)
    assert len(list(completed.iter_records())) == len(tiny_plan) == 6
    for record in completed.iter_records():
        assert record.data["name"] == "digits" and len(record.data["fingerprint"]) == 64
        assert record.provenance["threads"] == 1 and record.provenance["seconds"] >= 0 and record.provenance["code"]
        assert {"device", "torch", "date", "engine"} <= set(record.provenance)
    network, over_n, over_sigma = (completed.get(spec) for spec in tiny_plan[:3])
    assert network.result["parameters"] == 76_948 and network.result["test_images"] == 500
    assert over_n.arrays["counts"].shape == (2, 3, 6, 10) and over_sigma.arrays["counts"].shape == (3, 1, 6, 10)
    assert over_n.arrays["counts"].dtype == np.int32
    weights = sorted(path.name for path in (completed.folder / "weights").iterdir())
    assert weights == sorted(f"{spec.key}.safetensors" for spec in tiny_plan if isinstance(spec, NetworkSpec))


def test_what_is_there_is_left_alone(store, tiny_plan, carried_out):
    complete(tiny_plan, store)
    assert carried_out == []
    store.remove(tiny_plan[2])
    before = checksums(store)
    complete([*tiny_plan, tiny_plan[2]], store)
    assert carried_out == [tiny_plan[2]]
    after = checksums(store)
    assert after.items() > before.items() and len(after) == 6


def test_a_network_of_data_that_have_changed_is_trained_again(store, tiny_plan, carried_out, monkeypatch):
    """Its kept weights are of the old data, and so are its other records."""
    data = datasets.load("digits")
    changed = datasets.dataset_of(
        "digits", (255 - data.train_images, data.train_labels, data.test_images, data.test_labels), data.source
    )
    for module in (runner, jobs.base, network_job):
        monkeypatch.setattr(module, "load", lambda name: changed)
    store.remove(tiny_plan[1])
    complete(tiny_plan, store)
    assert carried_out == tiny_plan[:3], "the other network's records are all there, and nobody asks"
    assert {store.get(spec).data["fingerprint"] for spec in tiny_plan[:3]} == {changed.fingerprint}


def test_a_checkpoint_of_another_trigger_is_not_used(tmp_path, monkeypatch):
    """Killed between the record and the removal of the checkpoint; then the trigger is drawn anew."""
    attack = AttackSpec(threat_model="T1", trigger=1, target=0)
    spec = NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1, train_size=100, attack=attack)
    store = Store(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "remove_checkpoints", lambda *_: None)
        complete([spec], store)
    monkeypatch.setitem(drawings.DRAWINGS, 1, ("####", "####", "####", "    "))
    monkeypatch.setitem(triggers.PATTERNS, 1, triggers.PATTERNS[2])
    complete([spec], store)
    complete([spec], fresh := Store(tmp_path / "fresh"))
    assert store.get(spec).same_result(fresh.get(spec)) and not list(store.folder.rglob("*checkpoint*"))


def test_a_stale_pattern_is_crafted_again_before_it_is_measured(store, tiny_plan, carried_out):
    crafted = UniversalSpec(network=tiny_plan[0], images=20, bound=10, passes=1, batch_size=10, seed=0)
    counts = CountsSpec(network=tiny_plan[0], pattern=crafted, points=2, sigmas=(0.1,), ns=(4,), seed=0)
    complete([crafted, counts], store)
    store.put(dataclasses.replace(record := store.get(crafted), result={**record.result, "weights": "0" * 64}))
    store.remove(counts)
    carried_out.clear()
    complete([counts], store)
    assert carried_out == [crafted, counts] and store.get(counts).result["pattern"] == record.checksum


def test_a_record_that_is_stale_at_once_ends_the_run(store, tiny_plan, monkeypatch):
    def of_other_data(*given, **more):
        return dataclasses.replace(compute(*given, **more), data={"name": "digits", "fingerprint": "0" * 64})

    monkeypatch.setattr(runner, "compute", of_other_data)
    store.remove(tiny_plan[2])
    with pytest.raises(RuntimeError, match=f"1 records are stale .* the first is counts/{tiny_plan[2].key}"):
        complete(tiny_plan, store)


def test_recomputed_records_are_the_same(store, completed, tiny_plan, carried_out):
    for spec in tiny_plan[:3]:
        store.remove(spec)
    complete(tiny_plan, store)
    assert carried_out == tiny_plan[:3] and checksums(store) == checksums(completed)


def test_measurements_bring_their_network(tmp_path, tiny_plan, completed, carried_out):
    store = Store(tmp_path)
    complete(tiny_plan[1:2], store)
    assert carried_out == tiny_plan[:2]
    assert store.get(tiny_plan[1]).checksum == completed.get(tiny_plan[1]).checksum


def test_threads_are_pinned_and_given_back(store, tiny_plan, carried_out, monkeypatch):
    threads = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(runner, "compute", lambda *_, **__: seen.append(torch.get_num_threads()) or pytest.fail("stop"))
    torch.set_num_threads(2)
    try:
        store.remove(tiny_plan[1])
        with pytest.raises(pytest.fail.Exception):
            complete(tiny_plan, store)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# --- the order of the work ---------------------------------------------------------------------------------------

FIRST = NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1, train_size=16)
SECOND = dataclasses.replace(FIRST, seed=1, epochs=4, train_size=400)  # takes longer: the first could run ahead


def counts_at(network: NetworkSpec, sigma: float) -> CountsSpec:
    return CountsSpec(network=network, points=1, sigmas=(sigma,), ns=(2,), seed=0)


#: Comes back to both networks, twice.
RETURNING = [
    FIRST, PredictionsSpec(network=FIRST), SECOND, PredictionsSpec(network=SECOND), IMAGES,
    counts_at(FIRST, 0.1), counts_at(SECOND, 0.1),
    counts_at(FIRST, 0.2), counts_at(SECOND, 0.2),
]  # fmt: skip
STAGES = [RETURNING[:5], RETURNING[5:7], RETURNING[7:]]


def test_a_plan_that_returns_to_a_network_keeps_its_order(tmp_path, carried_out):
    complete(RETURNING, Store(tmp_path))
    assert carried_out == RETURNING  # each network trained once, what is named first finished first


def test_several_jobs_finish_a_stage_before_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_pool", ThreadPoolExecutor)  # no need to wait for processes to start
    monkeypatch.setattr(runner, "_ONE_AT_A_TIME", contextlib.nullcontext())  # as in two processes
    store = Store(tmp_path)
    complete(RETURNING, store, jobs=2)
    written = {spec: (store.folder / spec.kind / f"{spec.key}.json").stat().st_mtime_ns for spec in RETURNING}
    first, second, third = ([written[spec] for spec in stage] for stage in STAGES)
    assert max(first) <= min(second) and max(second) <= min(third)
    for network in (FIRST, SECOND):  # trained once: the weights are no younger than their first record
        assert store.weights_path(network).stat().st_mtime_ns <= written[network]


def test_a_stopped_plan_goes_on_with_the_first_stage(tmp_path, carried_out, monkeypatch):
    store, noted = Store(tmp_path), runner.compute

    def stopped(*arguments, **more):
        if len(carried_out) == 3:
            raise KeyboardInterrupt
        return noted(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "compute", stopped)
        with pytest.raises(KeyboardInterrupt):
            complete(RETURNING, store)
    complete(RETURNING, store)
    assert carried_out == RETURNING


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["lost", "another network's", "truncated"])
def test_lost_weights_are_trained_again(store, completed, tiny_plan, carried_out, damage):
    path = store.weights_path(tiny_plan[0])
    if damage == "another network's":
        shutil.copy(store.weights_path(tiny_plan[3]), path)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    store.remove(tiny_plan[2])
    complete(tiny_plan, store)
    # On this machine training gives the same weights again, so what was measured on them stands.
    assert carried_out == [tiny_plan[0], tiny_plan[2]] and checksums(store) == checksums(completed)


def elsewhere(completed: Store, folder: Path, specs) -> Store:
    """A store from another machine, where the network of these specs came out otherwise; without weights."""
    store = Store(folder)
    for spec in specs:
        record = completed.get(spec)
        store.put(dataclasses.replace(record, result={**record.result, "weights": "0" * 64}))
    return store


@pytest.mark.parametrize("lacking", [1, 2])
def test_all_records_of_a_network_speak_of_one_network(completed, tiny_plan, tmp_path, carried_out, lacking):
    """A base has the network and one of two measurements, but not its weights: all three are made here."""
    base = elsewhere(completed, tmp_path / "base", [spec for spec in tiny_plan[:3] if spec != tiny_plan[lacking]])
    before = checksums(base)
    store = Store(tmp_path / "top", base=Store(base.folder, writable=False))
    complete(tiny_plan[:3], store)
    assert weights_of(store, tiny_plan[:3], 0) == {completed.get(tiny_plan[0]).result["weights"]}
    assert set(carried_out) == set(tiny_plan[:3]) and checksums(base) == before


@pytest.mark.parametrize("done", [0, 1, 2])
@pytest.mark.parametrize("lacking", [1, 2])
def test_stopped_while_making_a_network_anew(completed, tiny_plan, tmp_path, monkeypatch, lacking, done):
    """As above, stopped after so many records: the same call finishes, and all records speak of one network."""
    base = elsewhere(completed, tmp_path / "base", [spec for spec in tiny_plan[:3] if spec != tiny_plan[lacking]])
    store, count = Store(tmp_path / "top", base=Store(base.folder, writable=False)), iter(range(done))

    def stopped(*arguments, **more):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return compute(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "compute", stopped)
        with pytest.raises(KeyboardInterrupt):
            complete(tiny_plan[:3], store)
    complete(tiny_plan[:3], store)
    assert weights_of(store, tiny_plan[:3], 0) == {completed.get(tiny_plan[0]).result["weights"]}


# --- stopped -----------------------------------------------------------------------------------------------------

COMMAND = """
import sys
from bslib import profiles
from bslib.cli import app
app(["run", "parameters", "--profile", sys.argv[2], "--device", "cpu", "--store", sys.argv[1], "--jobs", "2"])
"""
STOPPED_SIZE = {"networks": 6, "points": 10, "ns": (10, 300), "n_sigmas": (0.1,), "sigmas": (0.1, 0.25), "n": 300}


def test_ctrl_c_keeps_what_is_finished(tmp_path, tiny_profile):
    size = dataclasses.replace(sizes_of("parameters", tiny_profile)[0], **STOPPED_SIZE)
    profile = write_profile(tmp_path / "stopped.toml", parameters=[size])
    plan = [spec for network in networks_of(size, 0) for spec in specs_of(size, network)]
    store = Store(tmp_path / "store")
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, store.folder, profile],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    try:
        waited = time.monotonic() + 90
        while not list(store.folder.glob("counts/*.json")) and command.poll() is None and time.monotonic() < waited:
            time.sleep(0.01)
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does: to the command and to its workers
        out, err = command.communicate(timeout=90)
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
    assert command.returncode == 130, err
    assert "Stopped. What is finished is kept; the same command goes on." in err and "Traceback" not in err

    finished = checksums(store)  # every record is whole
    assert 0 < len(finished) < len(plan) and f"{len(finished)} of {len(plan)} records" in " ".join(out.split())
    hidden = [path for path in store.folder.rglob(".*") if path.is_file()]
    assert not [path for path in hidden if path.suffix == ".json"]
    assert not list(store.folder.rglob("*.lock")), "a worker had to be killed"
    complete(plan[:3], store)
    after = checksums(store)
    assert after.items() >= finished.items() and {spec.key for spec in plan[:3]} <= set(after)


def test_a_signal_in_the_midst_of_an_import_stops_a_worker_after_it():
    """An exit inside the callbacks of importlib would be swallowed."""
    code = """if True:
        import importlib._bootstrap, signal, time, types
        from bslib import runner
        signal.signal(signal.SIGTERM, runner._stop)
        names = vars(importlib._bootstrap) | {"signal": signal}
        importing = types.FunctionType((lambda: signal.raise_signal(signal.SIGTERM)).__code__, names)
        importing()
        print("not yet", flush=True)
        time.sleep(5)
        print("never")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "not yet\n"), done.stderr


def test_a_failing_worker_ends_the_run(tmp_path, tiny_plan, monkeypatch):
    """The error of a job comes out of the run as it is."""
    monkeypatch.setattr(runner, "_pool", ThreadPoolExecutor)  # no need to wait for processes to start
    wrong = dataclasses.replace(tiny_plan[0], network="larger-fashion", train_size=5000)
    with pytest.raises(ValueError, match="5000 images were asked for, and there are only 1297"):
        complete([wrong, dataclasses.replace(wrong, seed=1)], Store(tmp_path), jobs=2)
    assert checksums(Store(tmp_path)) == {}


# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "tpu:0", "mps", "meta", "", "cuda:99"])
def test_unknown_devices_are_named(tmp_path, device):
    with pytest.raises(ValueError, match=r"device .*") as caught:
        run([IMAGES], Store(tmp_path), device=device)
    assert repr(device) in str(caught.value) and IMAGES not in Store(tmp_path)


def test_auto_is_what_the_machine_has(monkeypatch):
    for available, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert chosen_device("auto") == expected


@pytest.mark.parametrize("jobs", [0, -2])
def test_fewer_than_one_job_is_refused(tmp_path, jobs):
    with pytest.raises(ValueError, match=f"jobs must be 1 or more, got {jobs}"):
        run([IMAGES], Store(tmp_path), device="cpu", jobs=jobs)


def test_nothing_to_do_is_done(tmp_path):
    complete([], Store(tmp_path / "s"))
    assert not (tmp_path / "s").exists()
