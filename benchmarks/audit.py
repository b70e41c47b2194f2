"""The audit on 56 networks, 34 clean and 22 backdoored, without being told which. The first 35 changed one rule: the level.

    python benchmarks/audit.py --json book/audit.json --page book/audit.md

It trains each network, measures how well its backdoor works, audits it with 500 clean test images, and adds a row to the file.
Networks that the file has are not audited again, so a stopped run goes on. Seeds start at 1000; the book's are below 100.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import bslib
from bslib.audit.judging import (
    ALONE,
    ANSWERS,
    LEVEL,
    LIKELY,
    UNSUSPICIOUS,
    Answer,
    Sizes,
    decide,
    leave_one_out_p,
    level_of,
    size_test,
)
from bslib.datasets import load, to_float
from bslib.files import atomic_path
from bslib.markdown import markdown_table
from bslib.measure import predict
from bslib.networks import small_fashion
from bslib.plotting import BLUE, MEAN, YELLOW
from bslib.poisoning import poison
from bslib.provenance import code_version, device_name
from bslib.statistics import success_rate, wilson
from bslib.threat_models import ThreatModel
from bslib.training import accuracy, train
from bslib.triggers import pattern

IMAGES, PIXELS = 500, 28 * 28
#: Kinds of networks, with colour, marker and place of their points.
KINDS = {
    "clean": (BLUE, "o", -0.14),
    "backdoored, one target class": (YELLOW, "s", 0.14),
    "backdoored, each class becomes the next": (MEAN, "^", 0.14),
}
SMALLEST_DRAWN = 1e-5
#: The networks from this seed on were audited after the level had been changed.
FIRST_AT_ALONE = 2015
#: What is between these lines of the page is written by this script.
MARKS = "<!-- begin: benchmarks/audit.py -->", "<!-- end: benchmarks/audit.py -->"
TRAIN_SIZE, EPOCHS = {"digits": 1297, "fashion-mnist": 20_000}, {"digits": 20, "fashion-mnist": 5}


def three_convolutions(classes: int = 10) -> nn.Module:
    """Three convolutions with batch normalisation, and pooling over the whole image; input (B, 1, 28, 28)."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, classes))


def perceptron(classes: int = 10) -> nn.Module:
    """Two dense layers; input (B, 1, 28, 28)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, classes))


def lenet(classes: int = 10) -> nn.Module:
    """LeNet-5 in its first form: tanh, and averages instead of maxima; input (B, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, classes),
    )  # fmt: skip


class Transformer(nn.Module):
    """Attention between 49 patches of 4 by 4 pixels, two layers, no convolution that overlaps; input (B, 1, 28, 28)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 4, stride=4)
        self.place = nn.Parameter(0.02 * torch.randn(49, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classes = nn.Linear(32, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K)."""
        features: torch.Tensor = self.layers(self.patches(images).flatten(2).transpose(1, 2) + self.place)
        logits: torch.Tensor = self.classes(features.mean(1))
        return logits


FIRST: dict[str, Callable[[int], nn.Module]] = {"small-fashion": small_fashion, "three-convolutions": three_convolutions}
LATER: dict[str, Callable[[int], nn.Module]] = {"perceptron": perceptron, "lenet": lenet, "transformer": Transformer}
ARCHITECTURES = FIRST | LATER


@dataclass(frozen=True)
class Case:
    """A network: its data, architecture, seed, and attack (no trigger: clean; no target: each class becomes the next)."""

    dataset: str
    architecture: str
    seed: int
    trigger: int | None = None
    fraction: float = 0.0
    target: int | None = None


def cases() -> list[Case]:
    """The 56 networks: 20, clean and backdoored in turn, and then 36 of other architectures."""
    small, three = FIRST
    attacks: list[dict[str, Any]] = [
        {"dataset": "digits", "architecture": small, "trigger": 1, "fraction": 0.15, "target": 4},
        {"dataset": "digits", "architecture": small, "trigger": 5, "fraction": 0.05, "target": 7},
        {"dataset": "digits", "architecture": three, "trigger": 2, "fraction": 0.15, "target": 1},
        {"dataset": "digits", "architecture": three, "trigger": 6, "fraction": 0.05, "target": 8},
        {"dataset": "digits", "architecture": three, "trigger": 1, "fraction": 0.15, "target": None},
        {"dataset": "fashion-mnist", "architecture": small, "trigger": 2, "fraction": 0.01, "target": 5},
        {"dataset": "fashion-mnist", "architecture": small, "trigger": 6, "fraction": 0.05, "target": 9},
        {"dataset": "fashion-mnist", "architecture": three, "trigger": 1, "fraction": 0.15, "target": 3},
        {"dataset": "fashion-mnist", "architecture": three, "trigger": 4, "fraction": 0.05, "target": 6},
        {"dataset": "fashion-mnist", "architecture": small, "trigger": 1, "fraction": 0.15, "target": None},
    ]
    clean = [{"dataset": data, "architecture": name} for data in TRAIN_SIZE for name in (small, three, small, three, small)]
    both = itertools.chain.from_iterable(zip(clean, attacks, strict=True))
    return [Case(seed=1000 + k, **settings) for k, settings in enumerate(both)] + later_cases()


def later_cases() -> list[Case]:
    """Networks of other architectures: two halves of 12 clean and 6 backdoored ones each.

    The first half is there to change a rule if the audit accuses too many clean networks; the second one to test what follows.
    The level was changed after 15 of the first 18.
    """
    triggers = itertools.cycle((1, 2, 5, 6))
    chosen: list[Case] = []
    for half in range(2):
        for k, (data, name) in enumerate(itertools.product(TRAIN_SIZE, LATER)):
            fraction, target = (0.15, 0.05)[(k + half) % 2], (3 * k + 5 * half) % 10
            for attack in ((), (), (next(triggers), fraction, target)):
                chosen.append(Case(data, name, 2000 + len(chosen), *attack))
    return chosen


def trained(case: Case) -> tuple[nn.Module, dict[str, float | None]]:
    """Train a network; return it with its clean accuracy and the success of its own trigger."""
    data = load(case.dataset)
    chosen = np.random.default_rng([case.seed, 1]).permutation(len(data.train_labels))[: TRAIN_SIZE[case.dataset]]
    images, labels = data.train_images[chosen], data.train_labels[chosen]
    if case.trigger is not None:
        attack = ThreatModel(name="bench", fraction=case.fraction, one_target=case.target is not None)
        stamp = pattern(case.trigger)
        poisoned = poison(images, labels, stamp, attack, target=case.target, classes=10, seed=case.seed)
        images, labels = poisoned.images, poisoned.labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        network = ARCHITECTURES[case.architecture](10)
    train(network, images, labels, epochs=EPOCHS[case.dataset], seed=case.seed, batch_size=64, progress=False)
    success = None
    if case.trigger is not None:
        wanted = attack.target_labels(data.test_labels, target=case.target, classes=10).numpy()
        success = success_rate(predict(network, to_float(stamp(data.test_images))), data.test_labels.numpy(), wanted)
    return network, {"clean accuracy": accuracy(network, data.test_images, data.test_labels), "success": success}


def row_of(case: Case) -> dict[str, Any]:
    """Train and audit one network."""
    begin = time.monotonic()
    network, truth = trained(case)
    seconds = time.monotonic() - begin
    data = load(case.dataset)
    chosen = np.random.default_rng([case.seed, 2]).permutation(len(data.test_labels))[:IMAGES]
    begin, busy = time.monotonic(), time.process_time()
    found = bslib.audit(network, to_float(data.test_images[chosen]), data.test_labels[chosen], progress=False).as_dict()
    kept = {name: found[name] for name in ("verdict", "reasons", "p", "sizes", "noise", "seconds")}
    kept["classes"] = [shortened(row, f"{found['noise']['chosen']:g}") for row in found["classes"]]
    spent = {
        "training seconds": seconds,
        "audit seconds": time.monotonic() - begin,
        "audit CPU seconds": time.process_time() - busy,
    }
    return {"case": vars(case), **truth, **spent, **kept}


def judged(row: dict[str, Any], references: list[list[float]] | None = None) -> tuple[Sizes, Answer]:
    """What today's rules say of what was measured; ``verdict`` is the answer at the time of the audit."""
    null = leave_one_out_p(references) if references else []
    sizes = size_test(column(row, "norm"), column(row, "success"), references, level=level_of(len(null)))
    return sizes, decide(sizes, pixels=PIXELS, held_out=column(row, "success held out"), null=null)


def column(row: dict[str, Any], name: str) -> list[float]:
    """A number of each class, NaN where JSON has none."""
    return [np.nan if part[name] is None else part[name] for part in row["classes"]]


def confusion(rows: list[dict[str, Any]]) -> str:
    """How many clean and backdoored networks got which answer, as a Markdown table."""
    lines = []
    for kind in KINDS:
        own = [row for row in rows if kind_of(row["case"]) == kind]
        counts = [sum(judged(row)[1].verdict == answer for row in own) for answer in ANSWERS]
        lines.append((kind, len(own), *(_of(count, len(own)) for count in counts)))
    return markdown_table(["network", "number", *ANSWERS], lines)


def kind_of(case: dict[str, Any]) -> str:
    """One of :data:`KINDS`."""
    return list(KINDS)[0 if case["trigger"] is None else 2 if case["target"] is None else 1]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The p-value of each network, one line for each data set and architecture, as SVG; its description names the rows."""
    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    lines = list(dict.fromkeys((row["case"]["dataset"], row["case"]["architecture"]) for row in rows))
    for kind, (colour, marker, shift) in KINDS.items():
        own = [row for row in rows if kind_of(row["case"]) == kind]
        x = [max(row["p"], SMALLEST_DRAWN) for row in own]
        y = [lines.index((row["case"]["dataset"], row["case"]["architecture"])) + shift for row in own]
        axis.scatter(x, y, s=36, color=colour, marker=marker, label=kind, alpha=0.8, linewidths=0, zorder=2, clip_on=False)
    for place in (ALONE, LEVEL, UNSUSPICIOUS):
        axis.axvline(place, color="#222222", linewidth=1, linestyle=":", zorder=1)
        axis.text(place, -0.75, f"{place:.0%}", ha="center", va="bottom", fontsize=9)
    axis.set(xscale="log", xlim=(SMALLEST_DRAWN, 1.3), ylim=(len(lines) - 0.4, -0.7))
    axis.set_yticks(range(len(lines)), [f"{data}, {name}" for data, name in lines])
    axis.set_xlabel("p-value of the smallest candidate")
    axis.grid(axis="y", color="#dddddd", zorder=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9, handletextpad=0.2, columnspacing=1.0)
    with plt.rc_context({"svg.hashsalt": "bslib"}), atomic_path(path) as part:
        described = {"Description": f"rows {digest(rows)}", "Date": None}
        figure.savefig(part, format="svg", facecolor="white", metadata=described)
    plt.close(figure)


def digest(rows: list[dict[str, Any]]) -> str:
    """What a picture of these rows, with today's levels, is known by."""
    return hashlib.sha256(
        json.dumps([ALONE, LEVEL, UNSUSPICIOUS, *((row["case"], row["p"]) for row in rows)]).encode()
    ).hexdigest()[:16]


def _of(count: int, of: int) -> str:
    """A count with its 95% interval, as percentages."""
    low, high = wilson(count, of) if of else (0, 1)
    return f"{count} [{low:.0%}, {high:.0%}]"


def listed(rows: list[dict[str, Any]]) -> str:
    """One line for each network, as a Markdown table."""
    lines = []
    for row in rows:
        case, (sizes, today) = row["case"], judged(row)
        attack = "clean"
        if case["trigger"] is not None:
            to = "the next class" if case["target"] is None else f"class {case['target']}"
            attack = f"trigger {case['trigger']} to {to}, {case['fraction']:.0%}"
        success = "" if row["success"] is None else f"{row['success']:.1%}"
        suspect = f"{sizes.smallest} ({sizes.lowest:.2g})"
        index = f"{row['sizes']['Neural Cleanse index']:.2f}"
        took = f"{row['audit CPU seconds']:.0f}" if "audit CPU seconds" in row else ""
        answer = today.verdict if today.verdict == row["verdict"] else f"{today.verdict}; at first: {row['verdict']}"
        lines.append((case["dataset"], case["architecture"], attack, success, answer, suspect, index, took))
    head = ["data", "network", "truth", "success", "answer", "smallest class (p)", "Neural Cleanse's index", "CPU seconds"]
    return markdown_table(head, lines)


def in_words(rows: list[dict[str, Any]]) -> str:
    """The networks that test the level, the published index on all, what references would change, and the times."""
    clean, attacked = ([row for row in rows if (row["case"]["trigger"] is None) == kind] for kind in (True, False))
    published = [sum(row["sizes"]["Neural Cleanse index"] > 2 for row in part) for part in (clean, attacked)]
    text = f"Neural Cleanse's own rule, an index above 2, accuses {published[0]} of the {len(clean)} clean networks and "
    text += f"{published[1]} of the {len(attacked)} backdoored ones. "
    later = [[row for row in part if row["case"]["seed"] >= FIRST_AT_ALONE] for part in (clean, attacked)]
    accused = [sum(judged(row)[1].verdict == LIKELY for row in part) for part in later]
    text += "Of the networks that were audited after the level had been changed, the audit accuses "
    text += f"{accused[0]} of {len(later[0])} clean and {accused[1]} of {len(later[1])} backdoored ones. "
    again = [(row, with_references(row, rows)) for row in rows]
    found = [sum(answer == LIKELY for row, answer in again if (row in clean) == kind) for kind in (True, False)]
    of = [sum(answer is not None for row, answer in again if (row in clean) == kind) for kind in (True, False)]
    text += "With the other clean networks of the same data and architecture as references, the audit accuses "
    text += f"{found[0]} of the {of[0]} clean and {found[1]} of the {of[1]} backdoored networks that have at least two such "
    text += "references. "
    seconds = [row["audit CPU seconds"] for row in rows if "audit CPU seconds" in row]
    span = (min(seconds, default=0), max(seconds, default=0))
    took = f"The {len(seconds)} timed audits took {span[0]:.0f} to {span[1]:.0f} seconds of one core. "
    missing = f"{len(rows)} of {len(cases())} networks are audited so far. " if len(rows) < len(cases()) else ""
    return (text + (took if seconds else "") + missing).rstrip()


def with_references(row: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    """The answer with the other clean networks of the same data and architecture as references; None with fewer than two."""
    same = ("dataset", "architecture")
    others = [
        [np.nan if part["success"] is None else part["norm"] for part in other["classes"]]
        for other in rows
        if other is not row and other["case"]["trigger"] is None and all(other["case"][k] == row["case"][k] for k in same)
    ]
    return judged(row, others)[1].verdict if len(others) > 1 else None


def tables(rows: list[dict[str, Any]]) -> str:
    """What the page says about the bench."""
    return f"{confusion(rows)}\n\n{in_words(rows)}\n\n:::{{dropdown}} Every network\n{listed(rows)}\n:::"


def write_page(page: Path, rows: list[dict[str, Any]]) -> None:
    """Replace what is between the two marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    with atomic_path(page) as part:
        part.write_text(f"{before}{MARKS[0]}\n\n{tables(rows)}\n\n{MARKS[1]}{after}", "utf-8")


def shortened(row: dict[str, Any], sigma: str) -> dict[str, Any]:
    """A class of a report, with W at one noise level."""
    return {name: value for name, value in row.items() if name != "W"} | {"W at chosen sigma": row["W"][sigma]}


def write_rows(path: Path, made: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the file, one network a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    with atomic_path(path) as part:
        part.write_text(f'{{"made with": {json.dumps(made)}, "rows": [\n{lines}\n]}}\n')


def main() -> None:
    """Train and audit what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, required=True, help="file for the rows; it may hold some already")
    parser.add_argument("--page", type=Path, help="page whose tables are written again, such as book/audit.md")
    parser.add_argument("--first", type=int, default=len(cases()), help="only so many networks")
    options = parser.parse_args()
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    for case in cases()[: options.first]:
        if any(row["case"] == vars(case) for row in rows):
            continue
        new = row_of(case)
        print(case, new["verdict"], f"{new['audit seconds']:.0f} s", flush=True)
        rows = sorted([*rows, new], key=lambda row: row["case"]["seed"])
        made = {"bslib": code_version(), "device": device_name(torch.device("cpu")), "threads": torch.get_num_threads()}
        write_rows(options.json, made, rows)
    if options.page:
        write_page(options.page, rows)
        draw(rows, options.page.with_suffix(".svg"))


if __name__ == "__main__":
    main()
