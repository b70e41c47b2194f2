"""Nonsense in, one clear line out: the command line and the public functions under values that nobody should give them."""

from __future__ import annotations

import copy
import inspect
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import bslib_
from torch import nn

import bslib.book
import bslib.detectors.logit_shift
import bslib.detectors.strip
import bslib.store
from bslib import (
    archive,
    chapters,
    datasets,
    detectors,
    entropy,
    ledger,
    measure,
    networks,
    poisoning,
    profiles,
    runner,
    specs,
    statistics,
    training,
    triggers,
    verify,
)
from bslib.patterns import neural_cleanse, universal
from bslib.store import Store, open_store, published_folder
from bslib.threat_models import THREAT_MODELS

FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

# --- the command line --------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(
        ["", "-1", "0", "1e400", "nan", "inf", "99999999999999999999", "published", "paper", "smoke", "cuda:99", "gpu"]
    ),
    # No path leads out of the folder.
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00/~."), max_size=12),
)
COMMANDS = {
    "run": ["--profile", "--store", "--device", "--jobs", "--seed", "--scheduler"],
    "status": ["--profile", "--store", "--seed"],
    "ledger": ["--profile", "--store", "--seed"],
    "verify": ["--store", "--sample", "--seed", "--kind", "--device"],
    "book": ["--profile", "--store", "--seed", "--out"],
    "records export": ["--store"],
    "records import": ["--store"],
}


@st.composite
def typed(draw) -> list[str]:
    """A command with some of its options, or of no command's, their values nonsense as often as not."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    line = [*command.split(), *draw(st.lists(WORDS, max_size=1))]
    for option in draw(st.lists(st.sampled_from([*COMMANDS[command], "--colour"]), max_size=3, unique=True)):
        line += [option, draw(WORDS)]
    return line


@pytest.fixture(scope="module")
def few_records(tmp_path_factory) -> Path:
    """Some of the published records: to read them all takes seconds."""
    folder = tmp_path_factory.mktemp("published")
    for kind in ("domain", "images", "toy"):
        shutil.copytree(published_folder() / kind, folder / kind)
    return folder


@pytest.fixture
def harmless(monkeypatch, tmp_path, few_records):
    """Nothing is computed, built or waited for; what is written lies in a folder of its own; few records are published."""

    def stop(*_, **__):
        raise ValueError("nothing is computed here")

    monkeypatch.setattr(runner, "compute", stop)
    monkeypatch.setattr(runner, "run_group", stop)
    monkeypatch.setattr(runner, "_pool", stop)
    monkeypatch.setattr(bslib.book, "build", stop)
    monkeypatch.setattr(ledger, "numbers", stop)
    monkeypatch.setattr(bslib.cluster, "PATIENCE", 0.5)
    monkeypatch.setattr(bslib.store, "published_folder", lambda: few_records)
    monkeypatch.chdir(tmp_path)


@FUZZ
@given(line=typed())
def test_the_command_line_answers_in_a_line(harmless, line):
    result = bslib_(*line)
    assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
    assert result.exit_code in (0, 2) and "Traceback" not in result.output, (line, result.output)
    if result.exit_code == 2:
        said = [text for text in result.stderr.replace("\r", "\n").splitlines() if text.startswith("Error")]
        assert len(said) == 1 or "Usage:" in result.stderr, (line, result.stderr)


# --- public functions --------------------------------------------------------------------------------------------

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
PIXELS, LABELS = (IMAGES * 255).to(torch.uint8), torch.tensor([0, 1, 2, 0])
NETWORK = {"dataset": "digits", "network": "small-fashion", "seed": 0, "epochs": 1}
QUIET = {"progress": False}
MEASURED = {"model": MODEL, "x": IMAGES, "sigma": 0.1, "n": 5, **QUIET}
TRAINED = {"network": MODEL, "images": PIXELS, "labels": LABELS}
POISONED = {"images": PIXELS, "labels": LABELS, "threat_model": "T1"}
CRAFTED = {"model": MODEL, "images": IMAGES, **QUIET}


def spec_of(kind: str, **fields):
    """A spec as a file would bring it."""
    if kind not in ("network", "images"):
        fields["network"] = {"kind": "network", **NETWORK}
    return specs.spec_from({"kind": kind, **fields})


#: Each function with arguments that it accepts, of which one or two are replaced.
FUNCTIONS: dict[str, tuple[Callable[..., object], dict[str, object]]] = {
    "class_counts": (measure.class_counts, {**MEASURED, "seed": 0, "batch_size": 64}),
    "wobbliness": (measure.wobbliness, MEASURED),
    "entropy": (entropy.entropy, {"counts": np.array([[3, 1], [2, 2]]), "estimator": "plug-in"}),
    "pattern": (triggers.pattern, {"number": 1}),
    "Trigger": (triggers.Trigger, {"mask": torch.ones(2, 2, dtype=torch.bool), "values": torch.ones(1, 2, 2)}),
    "poison": (
        poisoning.poison,
        {**POISONED, "trigger": triggers.pattern(3), "target": 1, "classes": 3, "seed": 0},
    ),
    "target_labels": (THREAT_MODELS["T2"].target_labels, {"labels": LABELS, "target": None, "classes": 3}),
    "load": (datasets.load, {"name": "digits"}),
    "to_float": (datasets.to_float, {"images": PIXELS}),
    "build": (networks.build, {"name": "small-fashion", "classes": 3, "seed": 0}),
    "train": (
        training.train,
        {**TRAINED, "epochs": 1, "seed": 0, "learning_rate": 0.1, "batch_size": 2, **QUIET},
    ),
    "load_weights": (training.load_weights, {"network": MODEL, "path": Path("no-such-file")}),
    "universal_perturbation": (
        universal.universal_perturbation, {**CRAFTED, "bound": 0.1, "passes": 1, "seed": 0}
    ),
    "reverse_triggers": (
        neural_cleanse.reverse_triggers, {**CRAFTED, "classes": 3, "samples": 2, "steps": 2, "seed": 0}
    ),
    "strip_entropy": (detectors.strip.strip_entropy, {"model": MODEL, "images": IMAGES, "overlays": IMAGES}),
    "logit_shift_variance": (detectors.logit_shift.logit_shift_variance, {"model": MODEL, "clean": IMAGES, "patterned": IMAGES}),
    "levene": (statistics.levene, {"clean": np.arange(5.0), "tested": np.arange(4.0), "center": "mean"}),
    "plan_of": (chapters.plan_of, {"chapter": "wobbliness", "profile": "smoke", "seed": 0}),
    "profile_named": (profiles.profile_named, {"name": "smoke"}),
    "chosen_device": (runner.chosen_device, {"device": "cpu"}),
    "run": (runner.run, {"plan": (), "store": Store(Path("nowhere")), "device": "cpu", "jobs": 1, "scheduler": None, **QUIET}),
    "a network's spec": (spec_of, {"kind": "network", **NETWORK, "train_size": 5, "learning_rate": 0.1}),
    "a spec of counts": (spec_of, {"kind": "counts", "points": 3, "sigmas": [0.1], "ns": [5], "seed": 0}),
    "a spec of images": (spec_of, {"kind": "images", "dataset": "digits", "images": 3, "seed": 0}),
    "sample": (lambda **how: verify.sample(open_store("published"), **how), {"count": 1, "seed": 0, "kind": "toy"}),
    "import_records": (archive.import_records, {"file": Path("no-such-file"), "store": Store(Path("nowhere")), **QUIET}),
}  # fmt: skip

NAN = torch.full((4, 1, 4, 4), math.nan)
#: What stands in for an argument of a type. Counts are never huge: who asks for 10**30 steps may wait for them.
NONSENSE: dict[type, list[object]] = {
    int: [-1, 0, -(10**30), 1.5, math.nan, math.inf, "two", None],
    float: [-1.0, math.nan, math.inf, -math.inf, 1e300, 10**400, "two"],
    str: ["", "nonsense", "\x00", "a" * 5000, "../..", "cuda:99", "T9", -1, None],
    torch.Tensor: [
        torch.empty(0), torch.empty(0, 1, 4, 4), torch.ones(()), NAN, -IMAGES, 1e30 * IMAGES, PIXELS, LABELS,
        torch.tensor([0, 1, 2, 99]), IMAGES[:2],
    ],
    np.ndarray: [
        np.empty(0), np.array([math.nan, 1.0]), np.array([-1.0, 2.0]), np.array([[math.inf]]), np.array(["a"]), np.ones(()),
    ],
    nn.Sequential: [nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to("meta")],
    type(Path()): [Path(), Path("/dev/null"), Path("/proc/self/mem"), Path("a" * 5000), Path("\x00")],
    list: [[], [math.nan], [-1], ["two"], [[0.1]]],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:x has features:UserWarning", "ignore:the model's single output:UserWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
@settings(FUZZ, max_examples=20)
@given(data=st.data())
def test_functions_return_or_say_why_in_a_line(harmless, name, data):
    """What is refused is an error of value, type, index or file, and says why."""
    function, accepted = FUNCTIONS[name]
    inspect.signature(function).bind(**accepted)  # otherwise each call would be refused for a misspelt argument
    usable = sorted(key for key, value in accepted.items() if type(value) in NONSENSE)
    changed = {
        key: data.draw(st.sampled_from(NONSENSE[type(accepted[key])]), key)
        for key in data.draw(st.sets(st.sampled_from(usable), min_size=1, max_size=2), "what")
    }
    try:
        function(**copy.deepcopy({**accepted, **changed}))  # training changes its network
    except (ValueError, TypeError, LookupError, OSError) as problem:
        said = str(problem).strip()
        assert len(said.split()) > 2 and "\n" not in said and "not supported between" not in said, repr(problem)
