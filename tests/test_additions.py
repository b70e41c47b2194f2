"""A trigger, a threat model, a data set, a detector and a chapter, added to a copy of the package as CONTRIBUTING.md says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bslib.chapters import plan_of, sizes_of

ROOT = Path(__file__).parents[1]

USE = """
import json, sys
from pathlib import Path
from bslib.chapters import plan_of
from bslib.chapters.correlation.results import load, quantities
from bslib.chapters.correlation.figures import success_against_w
from bslib.chapters.patterns import others, results as patterns
from bslib.render import downloads
from bslib.runner import run
from bslib.store import Store

store = Store(Path(sys.argv[2]))
for chapter in ("correlation", "patterns", "brightness"):
    run(plan_of(chapter, sys.argv[1]), store, device="cpu", jobs=1, progress=False)
(part,) = load(profile=sys.argv[1], store=store).values()
detectors = others.detectors(patterns.load(profile=sys.argv[1], store=store)["digits"])
print(json.dumps({
    "targets": sorted({network.attack.target for network in part.networks}),
    "triggers": sorted({network.attack.trigger for network in part.networks}),
    "success of trigger 7": part.pairs().groupby("trigger")["success"].max()[7],
    "figure": type(success_against_w(part)).__name__,
    "download": "success_against_w-stripes.csv" in downloads({"stripes": part}, [success_against_w]).data,
    "detectors": list(detectors.index),
    "chapter": [spec.kind for spec in plan_of("brightness", sys.argv[1])],
    "recorded triggers": store.get(part.networks[0]).result.get("triggers"),
    "keys": [s.key for chapter in sys.argv[3:] for s in plan_of(chapter, "paper") if getattr(s, "detector", "") != "confidence"],
}))
"""


def blocks() -> list[tuple[str, str | None, str]]:
    """The code of CONTRIBUTING.md that names its place: the file, the name in it that it is added to, and the code."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    found = re.findall(r"^```\w+\n# ([\w/.]+)(?:, in (\w+))?\n(.*?)^```$", text, re.M | re.S)
    return [(path, name or None, code) for path, name, code in found]


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with the package, extended."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "bslib", folder / "bslib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "_toc.yml").touch()
    for path, name, code in blocks():
        target = folder / path
        if name is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(code)
        else:  # before the bracket that closes the assignment
            pattern = rf"(^{name}\b[^\n]*[({{]\n.*?)(^[)}}])"
            text = target.read_text()
            end = re.search(pattern, text, re.M | re.S).start(2)
            target.write_text(text[:end] + code + text[end:])
    return folder


def test_each_addition_is_one_file_and_one_line_at_most():
    places = [(path, name) for path, name, _ in blocks()]
    assert places == [
        ("bslib/drawings.py", "DRAWINGS"),
        ("bslib/threat_models.py", "THREAT_MODELS"),
        ("bslib/datasets/stripes.py", None),
        ("bslib/datasets/__init__.py", "DATASETS"),
        ("bslib/detectors/confidence.py", None),
        ("bslib/detectors/__init__.py", "DETECTORS"),
        ("bslib/chapters/brightness/plan.py", None),
        ("bslib/chapters/__init__.py", "CHAPTERS"),
        ("own.toml", None),
    ]


def test_what_is_added_is_planned_computed_and_shown_and_nobody_elses_specs_change(extended):
    """The keys of the paper's plans stay but for the new detector's, whose specs are new."""
    chapters = ("wobbliness", "parameters", "surface", "correlation", "patterns")
    environment = os.environ | {"PYTHONPATH": str(extended), "MPLBACKEND": "agg", "BSLIB_CACHE": str(extended / "cache")}
    command = [sys.executable, "-c", USE, "own.toml", extended / "records", *chapters]
    done = subprocess.run(command, cwd=extended, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["targets"] == [0, 1] and found["triggers"] == [5, 7] and found["success of trigger 7"] > 0.9
    assert found["figure"] == "Figure" and found["download"] and found["chapter"] == ["network", "counts"]
    assert found["detectors"] == ["W", "STRIP", "logit variance", "confidence"]
    assert set(found["recorded triggers"]) == {"7"}
    keys = [spec.key for chapter in chapters for spec in plan_of(chapter, "paper")]
    assert found["keys"] == keys and len(keys) > 500


SIZE = "[[parameters]]\ndataset = 'digits'\nnetwork = 'small-fashion'\nnetworks = 1\npoints = 5\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[paramters]]\n", "has tables of paramters; chapters are wobbliness"),
        ("[parameters]\npoints = 5\n", r"must be tables, each headed \[\[parameters\]\]"),
        ("parameters = 3\n", r"must be tables, each headed \[\[parameters\]\]"),
        ("[[parameters]]\ndataset = 'digits'\n", "chapter parameters: .*missing"),
        (SIZE + "epochs = '3'\n", "epochs .* int.*got '3'"),
        (SIZE + "epochs = 3\nn = 7\n", "n .* one of its ns"),
        (2 * (SIZE + "epochs = 3\n"), "one table for each"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused_in_a_line(tmp_path, text, message):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        sizes_of("parameters", str(tmp_path / "own.toml"))
    assert "\n" not in str(caught.value) and str(tmp_path / "own.toml") in str(caught.value)


def test_a_profile_that_is_edited_is_read_again(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("")
    assert sizes_of("wobbliness", str(path)) == [] == plan_of("wobbliness", str(path))
    path.write_text("[[wobbliness]]\ndataset = 'digits'\n")
    os.utime(path, ns=(1, 1))
    assert [size.dataset for size in sizes_of("wobbliness", str(path))] == ["digits"]
