"""What goes wrong under a run: kills, two runs at once, a full disk, a store that cannot be written to or locked."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import chaos
import pytest
from test_cli import assert_refused, bslib_
from test_runner import checksums, complete

from bslib import runner
from bslib.files import atomic_path, locked
from bslib.jobs import compute
from bslib.specs import NetworkSpec
from bslib.store import Store

# --- kills -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_kills_change_no_byte(tmp_path):
    """As `python -m tests.chaos`, with two kills: of a run of two jobs in its training, and of two runs at once.

    The training goes on from its checkpoint. The last run has two jobs, and the quiet one has one: both give the same bytes.
    """
    quiet = Store(tmp_path / "quiet")
    complete(chaos.plan_named("tiny"), quiet)
    said: list[str] = []
    resumed = chaos.disturbed(
        "tiny", tmp_path, chaos.content(quiet), kills=2, longest=2, seed=23, say=lambda line, **_: said.append(line)
    )
    assert sum(line.startswith("kill") for line in said) == 2 and resumed >= 1, said
    assert all(any(what in line for line in said) for what in (" of 1 with 2 jobs", " of 2 with ")), said


def test_a_killed_worker_is_an_error_of_one_line(tmp_path, tiny_plan, monkeypatch):
    monkeypatch.setattr(runner, "_work", _killed)
    with pytest.raises(RuntimeError, match="a worker was killed, perhaps for want of memory: what is finished is kept"):
        complete(tiny_plan, Store(tmp_path), jobs=2)
    waited = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < waited:  # the pool's thread sweeps up after the error
        time.sleep(0.05)
    assert not multiprocessing.active_children() and checksums(Store(tmp_path)) == {}


def _killed(*_, **__) -> None:
    os.kill(os.getpid(), 9)


# --- two runs at once --------------------------------------------------------------------------------------------


def test_two_runs_share_a_store_and_the_work(completed, tiny_plan, tmp_path, monkeypatch):
    """No spec is carried out twice, each run does some, and both end when everything is there."""
    store, done = Store(tmp_path / "store"), []

    def copied(spec, target, **_):
        done.append((threading.current_thread().name, spec))
        time.sleep(0.1)
        if isinstance(spec, NetworkSpec):
            target.weights_path(spec).parent.mkdir(exist_ok=True)
            shutil.copy(completed.weights_path(spec), target.weights_path(spec))
        return completed.get(spec)

    monkeypatch.setattr(runner, "compute", copied)
    runs = [threading.Thread(target=complete, args=(tiny_plan, store), name=name) for name in ("first", "second")]
    for one in runs:
        one.start()
    for one in runs:
        one.join(60)
    assert not any(one.is_alive() for one in runs)
    assert sorted(spec.key for _, spec in done) == sorted(spec.key for spec in tiny_plan)
    assert {name for name, _ in done} == {"first", "second"}
    assert checksums(store) == checksums(completed) and not list(store.folder.rglob("*.lock"))


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    file = tmp_path / "deep" / "one.lock"
    code = "import sys; from pathlib import Path; from bslib.files import locked\n"
    code += "with locked(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "mine\n"
        with locked(file, wait=False) as mine:
            assert not mine
        holder.kill()
        holder.wait()
        assert file.exists(), "a killed process removes nothing"
        with locked(file) as mine:
            assert mine
    assert not file.exists()


def test_who_waits_for_a_lock_gets_the_file_that_is_there(tmp_path):
    """The holder removes the file that others wait at: they hold a new one then, and keep each other out."""
    file, inside, most = tmp_path / "one.lock", [], []

    def hold() -> None:
        for _ in range(20):
            with locked(file) as mine:
                inside.append(mine)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert len(most) == 80 and max(most) == 1


def test_a_lock_on_a_file_that_has_lost_its_name_is_none(tmp_path, monkeypatch):
    """NFS renames a file that is removed while somebody has it open: it still has a link, but nobody else finds it."""
    file, real = tmp_path / "one.lock", fcntl.flock

    def after_a_removal(*request: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        file.rename(tmp_path / ".nfs1")
        real(*request)

    monkeypatch.setattr(fcntl, "flock", after_a_removal)
    with locked(file) as mine, locked(file, wait=False) as other:
        assert (mine, other) == (True, False)


def test_a_lock_is_given_back_when_its_file_cannot_be_removed(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Read-only") as caught, locked(tmp_path / "one.lock"):
        patch.setattr(Path, "unlink", read_only)
    with locked(tmp_path / "one.lock", wait=False) as mine:
        assert mine, caught  # the traceback keeps the lock from being collected


@pytest.mark.parametrize("make", [lambda path, other: path.symlink_to(other), lambda path, other: os.mkfifo(path)])
def test_a_lock_follows_no_link_and_waits_for_no_pipe(make, tmp_path):
    path, other = tmp_path / "one.lock", tmp_path / "victim.txt"
    other.write_text("kept")
    make(path, other)
    with pytest.raises(OSError, match=f"{path} is no lock file"), locked(path):
        pass
    assert other.read_text() == "kept"
    path.unlink()
    path.hardlink_to(other)
    with locked(path) as mine:
        assert mine and other.read_text() == "kept"


def test_signs_of_killed_runs_are_removed(completed, tiny_plan, tmp_path):
    store = Store(shutil.copytree(completed.folder, tmp_path / "store"))
    left, held = store.folder / ".run-0.lock", store.folder / ".run-1.lock"
    left.touch()
    with locked(held), runner._run_marker(store) as sign:
        assert not left.exists() and held.exists() and sign.exists()
    assert not sign.exists() and not held.exists()


def test_what_killed_writers_left_is_removed_after_a_day(completed, tiny_plan, tmp_path):
    """Not before: it may be another run's, which is writing it."""
    store = Store(shutil.copytree(completed.folder, tmp_path / "store"))
    old, new = (store.folder / "counts" / f".{'0' * 20}-{name}.npz" for name in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    with runner._run_marker(store):
        assert not old.exists() and new.exists()
    assert checksums(store) == checksums(completed)


# --- file systems ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_store_without_locks_is_named(tiny_profile, tmp_path, monkeypatch, code):
    """At ENOSYS filelock would go on with a soft lock, which outlives a killed holder."""

    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    result = bslib_("run", "wobbliness", "--profile", "smoke", "--store", tmp_path / "s", "--device", "cpu", "--jobs", 1)
    assert_refused(result, str(tmp_path / "s"), "file system without locks")
    assert not list((tmp_path / "s").rglob("*"))


def on_a_tmpfs(folder: Path, options: str, *run: str) -> subprocess.CompletedProcess:
    """The command with a store on a small tmpfs, in a mount namespace of its own; then what it left there."""
    folder.mkdir()
    script = f'mount -t tmpfs -o {options} tmpfs "$0" && {{ "$@"; code=$?; find "$0" -mindepth 1 -type f; exit $code; }}'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    code = "from bslib.cli import app; app()"
    return subprocess.run([*command, sys.executable, "-c", code, *run, "--store", folder], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("options", "chapter", "words"),
    [
        ("size=200k", "parameters", "No space left on device"),
        ("size=200k,ro", "wobbliness", "cannot be written to: Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_nothing_is_named(tmp_path, tiny_profile, options, chapter, words):
    folder = tmp_path / "store"
    done = on_a_tmpfs(folder, options, "run", chapter, "--profile", tiny_profile, "--device", "cpu", "--jobs", "1")
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("Error")]
    assert done.returncode == 2 and len(lines) == 1 and str(folder) in lines[0] and words in lines[0], done.stderr
    assert "Traceback" not in done.stderr
    left = [line for line in done.stdout.splitlines() if line.startswith(f"{folder}/")]
    assert not [name for name in left if not name.endswith(".npz")], "arrays without their text are no record"


def test_a_file_and_then_its_folder_are_flushed(tmp_path, monkeypatch):
    """In this order: content, name, folder. After a power cut there is the old file or the whole new one."""
    done, replace, fsync = [], Path.replace, os.fsync

    def noted(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", lambda *paths: done.append("replace") or replace(*paths))
    with atomic_path(tmp_path / "a.txt") as part:
        part.write_text("a")
    assert done == ["file", "replace", "folder"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_special_file_is_not_replaced(make, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(OSError, match="is no file that could be replaced"), atomic_path(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_read_only_store_is_refused_before_the_work(completed, tiny_plan):
    with pytest.raises(PermissionError, match="read-only"):
        runner.run(tiny_plan, Store(completed.folder, writable=False), progress=False)


# --- weights -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_weights_is_never_measured(completed, tiny_plan, tmp_path):
    """By the runner they are trained again (test_runner); who carries a spec out alone is told."""
    store = Store(shutil.copytree(completed.folder, tmp_path / "store"))
    path = store.weights_path(tiny_plan[0])
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds other weights than its network's record names") as caught:
        compute(tiny_plan[1], store, device="cpu", progress=False)
    assert str(path) in str(caught.value)
