"""The command, as it is typed: what it says, and how it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bslib.book
import bslib.cli
import bslib.ledger
import bslib.runner
from bslib.chapters import CHAPTERS, plan_of
from bslib.chapters.parameters.plan import plan
from bslib.cli import app
from bslib.profiles import PROFILES
from bslib.specs import CountsSpec, NetworkSpec
from bslib.store import PUBLISHED, Store, published_folder


def bslib_(*arguments, **more):
    return CliRunner(env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"}).invoke(app, [str(a) for a in arguments], **more)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Where COLUMNS is set, the console has kept it since it was imported."""
    monkeypatch.setattr(bslib.cli.console, "_width", 300)  # `width` would be undone to the width of this moment


@pytest.fixture
def tiny(monkeypatch, tiny_profile):
    monkeypatch.setitem(PROFILES, "smoke", Path(tiny_profile))
    return tiny_profile


@pytest.fixture
def store(completed, tmp_path) -> Store:
    return Store(shutil.copytree(completed.folder, tmp_path / "store"))


def assert_refused(result, *words: str) -> None:
    """Exit code 2, one line on stderr that names the value, no traceback."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    bars = ("plan:", "ledger:", "\r")
    lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith(bars)]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    assert all(word in lines[0] for word in words), result.stderr


# --- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["run", "status", "book", "records"]),
        (
            ["run"],
            ["--profile", "--store", "--device", "--jobs", "--scheduler", "--seed", "smoke", "paper", "published", "Ctrl-C"],
        ),
        (["status"], ["--profile", "--store", "--seed", "exists", "wobbliness"]),
        (["ledger"], ["--profile", "--store", "--seed", "--json", "verdicts"]),
        (["book"], ["--profile", "--store", "--seed", "notebooks", "render"]),
    ],
)
def test_help_says_what_there_is(command, words):
    result = bslib_(*command, "--help")
    assert result.exit_code == 0 and result.stderr == ""
    assert not [word for word in words if word not in result.stdout]


def test_no_arguments_show_the_help():
    assert "Usage" in bslib_().output


def test_looking_needs_no_torch(tmp_path):
    code = (
        "import sys\nfrom bslib.cli import app\n"
        "for line in ('--help', 'run --help', 'status --profile smoke --store s', 'ledger --store s'):\n"
        "    try: app(line.split())\n"
        "    except SystemExit as end: assert end.code in (0, None), end.code\n"
        "    assert 'torch' not in sys.modules, line"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# --- run ---------------------------------------------------------------------------------------------------------


def test_run_computes_what_a_store_lacks(tiny, store, tmp_path):
    specs = plan_of("wobbliness", "smoke")
    done = bslib_("run", "wobbliness", "--profile", "smoke", "--store", store.folder, "--device", "cpu", "--jobs", 1)
    assert done.exit_code == 0, done.output
    assert "2 of 2 records of profile smoke are there" in done.stdout and str(store.folder) in done.stdout
    assert all(spec in store for spec in specs) and len(list(store.iter_records())) == 6 + len(specs)
    dates = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    again = bslib_("run", "wobbliness", "--profile", "smoke", "--store", store.folder)
    assert again.exit_code == 0 and {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == dates


def test_run_hands_its_options_on(tiny, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(bslib.runner, "run", lambda *arguments, **more: calls.append((*arguments, more)))
    store = tmp_path / "s"
    result = bslib_("run", "--profile", "paper", "--store", store, "--device", "cuda:1", "--jobs", 3, "--seed", 7)
    assert result.exit_code == 0, result.output
    ((specs, target, more),) = calls
    assert specs == list(dict.fromkeys(spec for chapter in CHAPTERS for spec in plan_of(chapter, "paper", seed=7)))
    assert target.folder == store and more == {"device": "cuda:1", "jobs": 3, "scheduler": None}
    assert f"0 of {len(specs)} records" in result.stdout


def test_run_without_a_store_uses_the_cache(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("BSLIB_CACHE", str(tmp_path / "mine"))
    calls = []
    monkeypatch.setattr(bslib.runner, "run", lambda specs, target, **_: calls.append(target))
    assert bslib_("run", "wobbliness", "--profile", "smoke").exit_code == 0
    assert calls[0].folder == tmp_path / "mine/records" and calls[0].base.folder == published_folder()


def test_ctrl_c_says_that_nothing_is_lost(tiny, store, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bslib.runner, "run", stopped)
    result = bslib_("run", "parameters", "--profile", "smoke", "--store", store.folder)
    assert result.exit_code == 130 and "6 of 9 records" in result.stdout
    assert result.stderr.strip() == "Stopped. What is finished is kept; the same command goes on."


# --- refusals ----------------------------------------------------------------------------------------------------


def test_the_published_store_is_not_run_into(tiny, monkeypatch):
    monkeypatch.setattr(bslib.runner, "run", lambda *_, **__: pytest.fail("it must not come to this"))
    assert_refused(bslib_("run", "--store", PUBLISHED), "read-only", "--store")


def test_a_store_that_is_a_file_is_named(tiny, tmp_path):
    file = tmp_path / "a-file"
    file.write_text("not a folder")
    assert_refused(bslib_("run", "wobbliness", "--store", file, "--device", "cpu", "--jobs", 1), str(file))
    assert file.read_text() == "not a folder"


def test_a_damaged_record_is_named(tiny, store):
    spec = plan("smoke")[1]
    path = store.folder / "counts" / f"{spec.key}.json"
    path.write_text(path.read_text().replace("digits", "digitz"))
    assert_refused(bslib_("status", "--profile", "smoke", "--store", store.folder), str(path), "remove it")


def test_names_are_neither_markup_nor_commands_to_a_terminal(tiny, tmp_path):
    assert "x[/]y" in bslib_("status", "--profile", "smoke", "--store", tmp_path / "x[/]y").output
    result = bslib_("records", "import", "\x1b[31mred\x07", "--store", tmp_path / "s")
    assert_refused(result, "?[31mred? cannot be imported")
    assert "\x1b[31mred" not in result.output and "\x07" not in result.output


def test_a_long_message_is_one_line_in_a_narrow_terminal(tiny, tmp_path):
    """Nobody can paste a path that was broken at column 80."""
    narrow = CliRunner(env={"COLUMNS": "40", "TERMINAL_WIDTH": "40"})
    assert_refused(narrow.invoke(app, ["run", "--store", str(tmp_path / "s"), "--device", "gpu"]), "'gpu'", "cuda:N")


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["run", "outliers"], "outliers"),
        (["status", "outliers"], "outliers"),
        (["run", "--profile", "large"], "large"),
        (["status", "--profile", "large"], "large"),
        (["book", "--profile", "large"], "large"),
        (["run", "--jobs", "0"], "--jobs"),
        (["run", "--seed", "one"], "--seed"),
        (["run", "--colour", "red"], "--colour"),
        (["walk"], "walk"),
    ],
)
def test_what_is_mistyped_is_named(arguments, value):
    """By typer, which puts the usage above its line."""
    result = bslib_(*arguments)
    assert result.exit_code == 2 and value in result.stderr and "Traceback" not in result.stderr and result.stdout == ""


# --- status ------------------------------------------------------------------------------------------------------


def rows(result) -> list[list[str]]:
    """The cells of the table that was printed."""
    assert result.exit_code == 0, (result.output, result.exception)
    lines = [line for line in result.stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_status_counts(tiny, store):
    result = bslib_("status", "parameters", "--profile", "smoke", "--store", store.folder)
    assert str(store.folder) in result.stdout
    assert rows(result) == [
        ["parameters", "digits", "small-fashion", "6 of 6", "0:00:00"],
        ["parameters", "digits-rgb", "resnet18", "0 of 3", "unknown: no record to judge by"],
    ]


def test_status_of_an_empty_store_makes_nothing(tiny, tmp_path):
    table = rows(bslib_("status", "--profile", "smoke", "--store", tmp_path / "none"))
    assert [row[3] for row in table if row[0] == "parameters"] == ["0 of 6", "0 of 3"]
    assert {row[0] for row in table} == {"wobbliness", "parameters"} and not (tmp_path / "none").exists()


def test_status_reckons_from_what_there_is(tiny, store):
    """The time left is that of the records of the other network: same work, same amount."""
    specs = plan("smoke")[3:6]
    seconds = []
    for spec in plan("smoke")[:3]:
        record = store.get(spec)
        seconds.append(1000 if isinstance(spec, NetworkSpec) else 300 * max(spec.ns) * len(spec.sigmas))
        store.put(type(record)(spec, record.result, record.arrays, record.data, {**record.provenance, "seconds": seconds[-1]}))
    for spec in specs:
        store.remove(spec)
    table = rows(bslib_("status", "parameters", "--profile", "smoke", "--store", store.folder))
    assert table[0][3:] == ["3 of 6", f"{timedelta(seconds=sum(seconds))}"]
    assert {type(spec) for spec in specs} == {NetworkSpec, CountsSpec}


def test_the_ledger_in_the_terminal_and_as_data_say_the_same(published_numbers, monkeypatch):
    def numbers(*, store, **options):
        assert options == {"profile": "paper", "seed": 0, "progress": True}
        assert store.folder == published_folder() and not store.writable
        return published_numbers

    monkeypatch.setattr(bslib.ledger, "numbers", numbers)
    shown, data = (bslib_("ledger", "--store", "published", *more) for more in ((), ("--json",)))
    assert shown.exit_code == data.exit_code == 0
    rows = json.loads(data.stdout)
    verdicts = Counter(row["verdict"] for row in rows if not any(row[kind] for kind in ("arithmetic", "ours", "tuned")))
    assert f"{verdicts.total()} claims in all" in " ".join(shown.stdout.split())
    assert f"{verdicts['reproduced']} reproduced" in " ".join(shown.stdout.split())


def test_the_ledger_of_an_empty_store_computes_nothing(tmp_path):
    rows = json.loads(bslib_("ledger", "--profile", "smoke", "--store", str(tmp_path / "none"), "--json").stdout)
    assert {row["verdict"] for row in rows if not row["arithmetic"]} == {"not yet run"}
    assert not (tmp_path / "none").exists()


# --- book --------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch, tmp_path) -> list:
    """What was run and built, instead of running and building it."""
    calls = []
    page = tmp_path / "index.html"

    def build(profile, store, seed, **more):
        calls.append(("build", {"profile": profile, "store": store, "seed": seed}))
        return page

    monkeypatch.setattr(bslib.book, "build", build)
    monkeypatch.setattr(bslib.book, "fetch_assets", lambda root: calls.append(("assets", {})))
    monkeypatch.setattr(bslib.runner, "run", lambda specs, store, **_: calls.append(("run", (store.folder, len(specs)))))
    return calls


def test_the_paper_book_computes_nothing(built, tmp_path):
    result = bslib_("book")
    assert result.exit_code == 0, result.output
    ((name, options),) = built
    assert name == "build" and (options["profile"], options["store"], options["seed"]) == ("paper", PUBLISHED, 0)
    assert str(tmp_path / "index.html") in result.stdout


def test_the_smoke_book_completes_its_store_first(built, tiny, tmp_path):
    result = bslib_("book", "--profile", "smoke", "--store", tmp_path / "s", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert [name for name, _ in built] == ["run", "build"]
    assert built[0][1] == (tmp_path / "s", 11) and built[1][1]["seed"] == 3


def test_assets_only_builds_nothing(built):
    assert bslib_("book", "--assets-only").exit_code == 0 and [name for name, _ in built] == ["assets"]


def test_a_book_that_fails_is_refused_in_a_line(built, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("notebooks/01_parameters.ipynb failed")

    monkeypatch.setattr(bslib.book, "build", failing)
    assert_refused(bslib_("book"), "01_parameters.ipynb failed")


def test_an_unexpected_error_does_not_end_with_the_code_of_a_backdoor(monkeypatch):
    """Python's own would be 1, which an audit says of a network that is likely backdoored."""
    monkeypatch.setattr(bslib.cli, "open_store", lambda *given: 1 / 0)
    result = bslib_("status")
    assert result.exit_code == 2 and "Error: unexpected, ZeroDivisionError (see above)" in result.stderr


@pytest.mark.parametrize("command", [["records", "import", "none", "--store", "none"], ["ledger", "--profile", "smoke"]])
def test_an_error_that_cannot_be_written_has_its_exit_code_all_the_same(command, tmp_path):
    """Neither that of an error nor that of output for a full disk, with Python's buffers as they usually are."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", "from bslib.cli import app; app()", *command]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, stderr=full, cwd=tmp_path, env=environment).returncode == 2
