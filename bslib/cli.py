"""The command ``bslib``: compute records, see what there is, build the book."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from bslib.audit.command import audit
from bslib.chapters import CHAPTERS, plan_of
from bslib.cost import Rates, by_network
from bslib.profiles import profile_named
from bslib.specs import Spec
from bslib.store import PUBLISHED, Store, missing_specs, open_store

__all__ = ["app"]

console, errors = Console(markup=False), Console(stderr=True, markup=False)


def _say(text: str, **how: Any) -> None:
    """Print to stderr; if nobody can read it, as on a full disk or in a broken pipe, the exit code is still the one meant."""
    with contextlib.suppress(OSError, SystemExit):
        errors.print(text, highlight=False, soft_wrap=True, **how)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would flush once more as it exits, and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Commands(TyperGroup):
    """What the user can mend is said in one line, with exit code 2; Ctrl-C ends with 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("Stopped. What is finished is kept; the same command goes on.")
            raise typer.Exit(130) from None
        except typer.Exit:  # it is a RuntimeError
            raise
        except (ValueError, KeyError, OSError, RuntimeError) as problem:
            text = problem.args[0] if isinstance(problem, KeyError) and problem.args else problem
            said = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in str(text))  # nothing that steers a terminal
            _say(f"Error: {said}", style="red")
            raise typer.Exit(2) from None
        except Exception as problem:  # Python would end with 1, which an audit says of a backdoor
            if type(problem).__module__.split(".")[0] in ("click", "typer"):  # mistyped: typer says what
                raise
            _say(f"{traceback.format_exc()}Error: unexpected, {type(problem).__name__} (see above)", style="red")
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    name="bslib",
    help=(
        "Backdoor smoothing, measured again.\n\n"
        "Heavy work makes [bold]records[/bold]; the book is drawn from records alone. [bold]run[/bold] computes the records that "
        "a store lacks, [bold]status[/bold] says what there is, [bold]book[/bold] builds the pages."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Chapter = StrEnum("Chapter", {name: name for name in CHAPTERS})  # type: ignore[misc]

Chapters = Annotated[list[Chapter] | None, typer.Argument(help="Chapters; all when none is named.")]
ProfileOption = Annotated[
    str,
    typer.Option(
        help="How much: [bold]smoke[/bold] runs anywhere in minutes, [bold]paper[/bold] has the paper's sizes; or a TOML file."
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        help="A folder of records, or [bold]published[/bold]: the committed ones, read-only. "
        "When not given: your own in the cache folder (BSLIB_CACHE), with the published ones beneath.",
        show_default=False,  # the help says it
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first network; the others follow.")]


@app.command()
def run(
    chapters: Chapters = None,
    profile: ProfileOption = "paper",
    store: StoreOption = None,
    device: Device = "auto",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Networks at a time; one for each core, or one on a GPU, when not given.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler whose workers do the work, such as tcp://host:8786.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Compute the records that a store lacks.

    Stop it at any time with Ctrl-C: what is finished is kept, and the same command goes on.
    """  # fmt: skip
    from bslib.runner import run as compute

    target = open_store(store)
    target.check_writable()
    plan = _plan(chapters, profile, seed)
    try:
        compute(plan, target, device=device, jobs=jobs, scheduler=scheduler)
    finally:
        done = len(plan) - len(missing_specs(plan, target))
        console.print(f"{done} of {len(plan)} records of profile {profile} are there; new ones are in {target.folder}")


@app.command()
def status(chapters: Chapters = None, profile: ProfileOption = "paper", store: StoreOption = None, seed: Seed = 0) -> None:
    """What a profile needs, what exists, and how long the rest would take, judged by the records there are."""
    target = open_store(store)
    plans = {chapter: _plan([chapter], profile, seed) for chapter in chapters or list(Chapter)}
    rates = Rates(target)
    console.print(f"Profile {profile}, records in {target.folder}")
    table = Table("Chapter", "Data set", "Network", "Records", "Time left, one job at a time")
    for chapter, plan in plans.items():
        for (dataset, network), specs in by_network(plan).items():
            missing = missing_specs(specs, target)
            left = rates.seconds(missing)
            time = "unknown: no record to judge by" if left is None else f"{timedelta(seconds=round(left))}"
            table.add_row(chapter, dataset, network, f"{len(specs) - len(missing)} of {len(specs)}", time)
    console.print(table)


@app.command()
def ledger(
    profile: ProfileOption = "paper",
    store: StoreOption = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """What the paper claims, what the records say, and the verdicts. Computes nothing anew."""
    from bslib import ledger as pages
    from bslib.cards import format_estimate, score
    from bslib.render import bounds_text

    target = open_store(store)
    read_only = Store(target.folder, writable=False, base=target.base)
    found = pages.entries(pages.numbers(profile=profile, seed=seed, store=read_only, progress=True))
    if as_json:
        typer.echo(json.dumps(pages.as_data(found), indent=1))
        return
    table = Table("Claim", "The paper", "Ours", "Verdict")
    for entry in found:
        bounds = bounds_text(entry.claim, entry.measured)
        ours = "\n".join(f"{format_estimate(entry.measured[name])}\n  {held}" for name, held in bounds.items())
        table.add_row(entry.claim.says, entry.claim.paper, ours, entry.verdict)
    console.print(table)
    console.print(score(found))


@app.command()
def verify(
    store: StoreOption = PUBLISHED,
    sample: Annotated[int, typer.Option(min=1, help="How many records.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
    kind: Annotated[str | None, typer.Option(help="Only records of this kind, such as counts.")] = None,
    key: Annotated[str | None, typer.Option(help="Not a sample, but the record whose key starts so.")] = None,
    device: Device = "auto",
) -> None:
    """Compute some records again, picked at random, and say what agrees. A network without weights is trained again."""
    from bslib.verify import sample as drawn
    from bslib.verify import verify as check
    from bslib.verify import with_key

    target = open_store(store)
    records = drawn(target, sample, seed=seed, kind=kind) if key is None else [with_key(target, key)]
    differ = 0
    for found in check(records, target, device=device):
        console.print(f"{found.record.spec.kind}/{found.record.spec.key}: {found.outcome} ({found.remark})", soft_wrap=True)
        differ += found.outcome == "differs"
    if differ:
        raise ValueError(f"{differ} records do not come out again")


@app.command()
def book(
    profile: ProfileOption = "paper",
    store: Annotated[
        str | None, typer.Option(help="As for run. When not given: published for paper, your own for smoke.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pages; they land in its [bold]html[/bold]. Default: _build in the clone.")
    ] = None,
    assets_only: Annotated[
        bool, typer.Option("--assets-only", help="Only fetch the pinned files that the pages need in a browser.")
    ] = False,
) -> None:
    """Build the book: compute missing records (not in a read-only store), execute the notebooks, render the pages."""
    from bslib import book as pages

    if assets_only:
        pages.fetch_assets(pages.find_root())
        return
    store = store or profile_named(profile).store
    target = open_store(store)
    if target.writable:
        from bslib.runner import run as compute

        compute(_plan(None, profile, seed), target)
    index = pages.build(profile, store, seed, out=out)
    console.print(f"The book is at {index}", style=f"link {index.as_uri()}", soft_wrap=True)


app.command()(audit)


live_lab = typer.Typer(
    help="The two networks of the book's live lab: train them, write them for a browser.", no_args_is_help=True
)
app.add_typer(live_lab, name="lab")


@live_lab.command()
def train(store: StoreOption = None, device: Device = "auto") -> None:
    """Train the networks whose weights a store lacks: about five minutes each on one core."""
    from bslib.interactive.live import networks, store_of
    from bslib.runner import run as compute

    target = store_of(store)
    target.check_writable()
    compute(networks().values(), target, device=device)
    console.print(f"The weights are in {target.folder}", soft_wrap=True)


@live_lab.command()
def export(
    store: StoreOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; book/_static/live of this clone when not given.")
    ] = None,
) -> None:
    """Write the networks with 8-bit weights, and say how far they agree with the trained ones."""
    from bslib.book import find_root
    from bslib.interactive.live import export as write

    folder = out or find_root() / "book" / "_static" / "live"
    for name, found in write(store, folder).items():
        labels = f"{name}: {found.labels:.2%} of {found.copies} labels agree"
        console.print(f"{labels}, W differs by {found.w_mean:.4f} on average, {found.w_max:.4f} at most", soft_wrap=True)
    console.print(f"The files are in {folder}", soft_wrap=True)


records = typer.Typer(help="Move records between machines as one file.", no_args_is_help=True)
app.add_typer(records, name="records")


@records.command("export")
def export_(file: Annotated[Path, typer.Argument(help="The file to write.")], store: StoreOption = None) -> None:
    """Write all records of a store into one file."""
    from bslib.archive import export_records

    written, stale = export_records(open_store(store), file)
    left = f"; {stale} were left out, made from weights, triggers or data that have changed" if stale else ""
    console.print(f"{written} records are in {file}{left}", soft_wrap=True)


@records.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file that `bslib records export` wrote.")],
    store: StoreOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Networks of the file replace those that the store has with other weights.")
    ] = False,
) -> None:
    """Put the records of a file into a store, each checked; what the store has stays, unless networks are replaced."""
    from bslib.archive import import_records

    target = open_store(store)
    arrived = import_records(file, target, replace=replace)
    for network in arrived.replaced:
        attack = f", trigger {network.attack.trigger}" if network.attack else ""
        console.print(f"replaced {network.network} on {network.dataset}, seed {network.seed}{attack} (key {network.key})")
    console.print(f"{len(arrived.new)} records are new in {target.folder}, {len(arrived.known)} were there")
    if arrived.different:
        keys = ", ".join(f"{spec.kind}/{spec.key}" for spec in arrived.different)
        left = f"{len(arrived.different)} have another result here and were left alone"
        raise ValueError(f"{left}; --replace takes whole networks from the file: {keys}")


def _plan(chapters: list[Chapter] | None, profile: str, seed: int) -> list[Spec]:
    plan = (spec for chapter in chapters or list(Chapter) for spec in plan_of(chapter, profile, seed=seed))
    return list(dict.fromkeys(plan))
