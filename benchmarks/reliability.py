"""What the package survives: fuzzed files, failing file operations, kills. Writes the counts that the page *Reliability* shows.

    python benchmarks/reliability.py --json book/reliability.json                 # 10 minutes of fuzzing, 100 kills of runs
    python benchmarks/reliability.py --json book/reliability.json --only runs --kills 20

An input that a reader answers as no other before joins the corpus and is changed further. An input that breaks a promise ends the
run with exit code 1; it is kept in ``_build/fuzz``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image
from tqdm import tqdm

from bslib.archive import export_records, import_records
from bslib.files import atomic_path
from bslib.profiles import profile_named
from bslib.provenance import code_version
from bslib.specs import CountsSpec, ImagesSpec, NetworkSpec
from bslib.store import Record, Store

ROOT = Path(__file__).resolve().parents[1]
#: All that a reader of files may raise.
ALLOWED = (ValueError, KeyError, OSError)
#: Parts of files that readers have choked on before.
HOSTILE = (
    b"",
    b"\0",
    b"-1",
    b"null",
    b"1e999",
    b"NaN",
    b"[" * 3000,
    b"18446744073709551616",
    b"9" * 5000,
    b"../",
    b"\xff\xfe",
    b"PK\5\6",
)

NETWORK = NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1)
COUNTS = CountsSpec(network=NETWORK, points=3, sigmas=(0.1,), ns=(10,), seed=0)


def records(weights: str) -> list[Record]:
    """Made-up records of a network with these weights, and of no network."""
    about: dict[str, Any] = {
        "data": {"name": "digits", "fingerprint": "f" * 64},
        "provenance": {"seconds": 1.5, "device": "none"},
    }
    counts = {"counts": np.full((1, 1, 3, 10), len(weights)), "labels": np.arange(3)}
    images = Record(ImagesSpec(dataset="digits", images=2, seed=0), {}, {"images": np.zeros((2, 1, 8, 8), np.uint8)}, **about)
    return [Record(NETWORK, {"weights": weights}, **about), Record(COUNTS, {"weights": weights}, counts, **about), images]


def filled(folder: Path, weights: str = "old") -> Store:
    """A store with these records."""
    store = Store(folder)
    for record in records(weights):
        store.put(record)
    return store


# Fuzzing: a target is some files and how they are read


class Target(NamedTuple):
    """Files by name, a function that reads the folder with them, and whether a changed content must be refused."""

    files: Mapping[str, bytes]
    read: Callable[[Path], object]
    checked: bool


def targets(folder: Path) -> dict[str, Target]:
    """Every reader of files, with valid files."""
    from torch import nn, optim

    from bslib import training
    from bslib.datasets import cifar10, idx
    from bslib.interactive import live

    store = filled(folder / "store")
    export_records(store, folder / "archive.zip")
    network = nn.Linear(3, 2)
    training.save_weights(network, folder / "weights.safetensors")
    optimizer = optim.SGD(network.parameters(), momentum=0.9)
    network(network.weight.new_ones(1, 3)).sum().backward()
    optimizer.step()
    training._save_checkpoint(network, optimizer, 3, 1.5, folder / "checkpoint.safetensors")
    image = io.BytesIO()
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(image, "PNG")
    lab = ROOT / "book/_static/live"

    def imported(place: Path) -> object:
        there = Store(place / "there")
        try:
            import_records(place / "archive.zip", there, progress=False)
        except ALLOWED:
            assert not there.folder.exists(), "a part of an archive was imported"
            raise
        return sorted(record.checksum for record in there.iter_records())

    def stored(place: Path) -> object:
        return [(record.checksum, dict(record.provenance)) for record in Store(place).iter_records()]

    def in_store(name: str) -> dict[str, bytes]:
        return {path.relative_to(store.folder).as_posix(): path.read_bytes() for path in store.folder.glob(f"*/*{name}")}

    def file(name: str) -> dict[str, bytes]:
        return {name: (folder / name).read_bytes()}

    def labels_of(place: Path) -> object:
        with mock.patch.dict(idx._IDX_SHA256, {"train-labels-idx1-ubyte": hashlib.sha256(labels).hexdigest()}):
            return idx._read_idx(place / "train-labels-idx1-ubyte.gz").tolist()

    labels = b"\0\0\x08\x01\0\0\0\x03\1\2\3"
    return {
        "records": Target(in_store(""), stored, True),
        "archives": Target(file("archive.zip"), imported, True),
        "checkpoints": Target(
            file("checkpoint.safetensors"),
            lambda place: training._resume(network, optimizer, place / "checkpoint.safetensors"),
            True,
        ),
        "weights": Target(
            file("weights.safetensors"), lambda place: training.load_weights(network, place / "weights.safetensors"), False
        ),
        "idx files": Target({"train-labels-idx1-ubyte.gz": gzip.compress(labels)}, labels_of, True),
        "images": Target(
            {"a.png": image.getvalue()}, lambda place: cifar10._pixels((place / "a.png").read_bytes(), "a.png").tolist(), False
        ),
        "profiles": Target(
            {"own.toml": (ROOT / "bslib/profiles/smoke.toml").read_bytes()},
            lambda place: profile_named(str(place / "own.toml")),
            False,
        ),
        "live lab": Target(
            {name: (lab / name).read_bytes() for name in ("lab.json", "clean.onnx", "backdoored.onnx")},
            lambda place: live.examples(place).classes,
            False,
        ),
    }


def changed(content: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """A file with one to four changes: bits, a cut, a copy within, a part of another file, or a hostile part."""
    for _ in range(min(4, rng.geometric(0.6))):
        start, stop = sorted(rng.integers(0, len(content) + 1, 2))
        stop = min(stop, start + int(rng.integers(1, 65)))
        match rng.integers(6):
            case 0 if content:
                flipped = bytearray(content)
                flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
                content = bytes(flipped)
            case 1:
                content = content[:start]
            case 2:
                content = content[:start] + content[stop:]
            case 3:
                content = content[:stop] + content[start:]
            case 4:
                place = rng.integers(len(other) + 1)
                content = content[:start] + other[place : place + stop - start] + content[stop:]
            case 5:
                numbers = [found.span() for found in re.finditer(rb"-?\d+", content[:20_000])]
                first, last = numbers[rng.integers(len(numbers))] if numbers else (start, stop)
                content = content[:first] + HOSTILE[rng.integers(len(HOSTILE))] + content[last:]
    return content


@contextlib.contextmanager
def laid_out(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder with these files."""
    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_bytes(content)
        yield Path(folder)


def fuzz(name: str, target: Target, seconds: float, seed: int, failures: list[str]) -> dict[str, Any]:
    """Read changed files for so many seconds; return how many there were, and how many were refused."""
    rng, end = np.random.default_rng(seed), time.monotonic() + seconds
    corpus, answers, longest, kinds = [dict(target.files)], set[str](), 0.0, Counter[str]()
    with laid_out(target.files) as folder:
        expected = target.read(folder)
    while time.monotonic() < end and len(failures) < 10:
        files = dict(corpus[0 if rng.random() < 0.5 else rng.integers(len(corpus))])
        victim = sorted(files)[rng.integers(len(files))]
        files[victim] = changed(files[victim], rng, files[sorted(files)[rng.integers(len(files))]])
        with laid_out(files) as folder:
            began = time.monotonic()
            kind, answer = outcome(target, folder, expected)
            longest = max(longest, time.monotonic() - began)
        kinds[kind] += 1
        if kind == "broken promise":
            failures.append(f"{name}: {answer}")
            (ROOT / "_build/fuzz").mkdir(parents=True, exist_ok=True)
            (ROOT / "_build/fuzz" / f"{name}-{len(failures)}-{Path(victim).name}").write_bytes(files[victim])
        answer = re.sub(r"\d+|'.*?'|/\S+|0x\w+", "_", answer)[:200]
        if answer not in answers and len(corpus) < 200:
            answers.add(answer)
            corpus.append(files)
    return {"inputs": kinds.total(), **kinds, "corpus": len(corpus), "longest seconds": round(longest, 2)}


def outcome(target: Target, folder: Path, expected: object) -> tuple[str, str]:
    """Read a folder: refused, read as before, read as something else where that is allowed, or a broken promise."""
    try:
        found = target.read(folder)
    except ALLOWED as problem:
        return "refused", f"{type(problem).__name__} {problem}"
    except Exception as problem:
        return "broken promise", f"{type(problem).__name__}: {problem}"
    if found == expected:
        return "read as before", ""
    return ("broken promise", "other content was not noticed") if target.checked else ("read as changed", "")


# Interruptions: at each file operation of a change, an error or a kill

#: The operations that the package changes files with.
OPERATIONS: tuple[tuple[Any, str], ...] = (
    (tempfile, "mkstemp"), (np, "savez_compressed"), (Path, "write_text"), (os, "fsync"), (Path, "chmod"), (Path, "replace"),
    (Path, "unlink"),
)  # fmt: skip


class Interrupted:
    """Patches the operations: at number ``at`` they do ``act`` instead; what writes has written half by then."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.done = at, act, 0

    def __enter__(self) -> Interrupted:
        self.stack = contextlib.ExitStack()
        for owner, name in OPERATIONS:
            self.stack.enter_context(mock.patch.object(owner, name, self._wrapped(name, getattr(owner, name))))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _wrapped(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self.done += 1
            if self.done == self.at:
                if name == "savez_compressed":
                    arguments[0].write(b"PK half")
                elif name == "write_text":
                    operation(arguments[0], arguments[1][: len(arguments[1]) // 2], **more)
                self.act()
            return operation(*arguments, **more)

        return counted


def kill_self() -> None:
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail_with(code: int) -> Callable[[], None]:
    """Return a function that fails as a file operation does."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return fail


class Change(NamedTuple):
    """A change of a store that may be interrupted: the store before, and what is done to it."""

    before: Callable[[Path], Store]
    do: Callable[[Store], object]


def changes(folder: Path) -> dict[str, Change]:
    """The changes of a store: putting a record in place of another, imports into nothing and over other networks."""
    archive = folder / "new.zip"
    export_records(filled(folder / "new", "new"), archive)
    new = records("new")
    return {
        "replacing a record": Change(filled, lambda store: store.put(new[1])),
        "importing": Change(Store, lambda store: import_records(archive, store, progress=False)),
        "importing in place": Change(filled, lambda store: import_records(archive, store, replace=True, progress=False)),
    }


def content(store: Store) -> dict[str, str]:
    """The checksums of the records of a store; reading them checks that each is whole."""
    return {record.spec.key: record.checksum for record in store.iter_records()}


def interrupt(name: str, change: Change, how: str, failures: list[str], *, every: int = 1) -> int:
    """Interrupt a change at each of its operations, or every second, third ..., and do it again; return how often."""
    with tempfile.TemporaryDirectory() as folder:
        store = change.before(Path(folder) / "quiet")
        old = content(store)
        with Interrupted(0, kill_self) as quiet:
            change.do(store)
        new = content(store)
    places = range(1, quiet.done + 1, every)
    for at in places:
        with tempfile.TemporaryDirectory() as folder:
            store = change.before(Path(folder) / "store")
            if how == "SIGKILL":
                if (child := os.fork()) == 0:
                    with Interrupted(at, kill_self):
                        change.do(store)
                    os._exit(0)  # not reached: an operation that is killed did not return
                _, status = os.waitpid(child, 0)
                assert os.WIFSIGNALED(status), "the child was not killed"
            else:
                with contextlib.suppress(*ALLOWED), Interrupted(at, fail_with(getattr(errno, how))):
                    change.do(store)
            try:
                found = content(store)
                for key in old.keys() | new.keys():
                    assert found.get(key) in (old.get(key), new.get(key)), f"{key} is neither the old nor the new record"
                change.do(store)
                assert content(store) == new, "doing it again does not finish it"
            except (AssertionError, *ALLOWED) as problem:
                failures.append(f"{name}, {how} at operation {at}: {problem}")
    return len(places)


def run_chaos(options: argparse.Namespace, failures: list[str]) -> dict[str, Any]:
    """Kill runs at random moments (``tests/chaos.py``); count the kills, and the trainings that went on."""
    command = [sys.executable, "-m", "tests.chaos", "--kills", str(options.kills), "--seed", str(options.seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.search(r"(\d+) kills, (\d+) trainings gone on from a checkpoint, no byte differs", done.stdout)
    if done.returncode or not found:
        failures.append(f"kills of runs: {done.stdout[-500:]} {done.stderr[-2000:]}")
        return {"runs": {}}
    return {"runs": {"kills": int(found[1]), "trainings that went on from a checkpoint": int(found[2])}}


def interrupt_all(options: argparse.Namespace, failures: list[str]) -> dict[str, Any]:
    """Interrupt every change by a kill and by errors."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for how in tqdm(("SIGKILL", "ENOSPC", "EIO", "EDQUOT"), desc="interrupting", disable=None):
            todo = changes(Path(folder) / how)
            found[how] = {name: interrupt(name, change, how, failures) for name, change in todo.items()}
    return {"interrupted": found}


def fuzz_all(options: argparse.Namespace, failures: list[str]) -> dict[str, Any]:
    """Fuzz every reader for the same time."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        readers = targets(Path(folder))
        for name, target in tqdm(readers.items(), desc="fuzzing", disable=None):
            found[name] = fuzz(name, target, options.seconds / len(readers), options.seed, failures)
    return {"fuzzed": found, "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10}


PARTS = {"interrupted": interrupt_all, "fuzzed": fuzz_all, "runs": run_chaos}


def main() -> None:
    """Measure the parts asked for, write each into the file, and fail if a promise was broken."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the result, written after every part; --only keeps its others")
    parser.add_argument("--seconds", type=float, default=600, help="of fuzzing, all readers together")
    parser.add_argument("--kills", type=int, default=100, help="of runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    options = parser.parse_args()
    failures: list[str] = []
    result: dict[str, Any] = {}
    about = {"code": code_version(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "seed": options.seed}
    for part in options.only:
        found = PARTS[part](options, failures)
        if options.json and options.json.exists():
            result = json.loads(options.json.read_text("utf-8"))
        result |= about | found | {"failures": failures}
        if options.json:
            with atomic_path(options.json) as file:
                file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
