"""What may not change while the package is rearranged: keys, records, the ledger's numbers and verdicts, the figures' tables.

``golden.json`` holds it. Where a change is meant, ``python -m tests.test_golden`` writes it anew, and the commit says why.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from collections import Counter
from pathlib import Path

import pytest

from bslib import ledger
from bslib.chapters import CHAPTERS, plan_of
from bslib.profiles import PROFILES
from bslib.statistics import Estimates
from bslib.store import PUBLISHED, open_store

GOLDEN = Path(__file__).with_name("golden.json")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keys(profile: str, chapter: str) -> str:
    """How many specs of each kind a plan has, and a digest of their keys in order."""
    plan = plan_of(chapter, profile)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(spec.kind for spec in plan).items()))
    return f"{kinds}: {digest(' '.join(spec.key for spec in plan))}"


def records() -> str:
    """How many records are committed, and a digest of their keys and checksums."""
    texts = open_store(PUBLISHED).folder.glob("*/*.json")
    found = sorted(f"{path.stem} {json.loads(path.read_text())['checksum']}" for path in texts)
    return f"{len(found)}: {digest(' '.join(found))}"


def judged(numbers: dict[str, Estimates]) -> dict[str, str]:
    """Each claim's verdict and quantities, to six digits."""
    rows = ledger.as_data(ledger.entries(numbers))
    return {row["id"]: " ".join([row["verdict"], *map(in_digits, row["measured"].items())]) for row in rows}


def in_digits(quantity: tuple[str, dict]) -> str:
    name, estimate = quantity
    return f"{name}={estimate['value']:.6g} [{estimate['low']:.6g}, {estimate['high']:.6g}]"


def tables(notebook: dict) -> dict[str, str]:
    """A digest of each figure's table in an executed notebook."""
    html = "".join("".join(o.get("data", {}).get("text/html", "")) for c in notebook["cells"] for o in c.get("outputs", []))
    found = re.findall(r'download="(\w+-[\w-]+)\.csv" href="data:text/csv;base64,([^"]+)"', html)
    return {name: digest(b64decode(content).decode()) for name, content in found}


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_keys(profile, chapter, golden):
    assert keys(profile, chapter) == golden["keys"][profile][chapter]


def test_records(golden):
    assert records() == golden["records"]


def test_numbers_and_verdicts(published_numbers, golden):
    assert judged(published_numbers) == golden["ledger"]


def write() -> None:
    """Everything but the figures' tables, which ``tests/notebooks/test_papermill.py`` compares."""
    plans = {profile: {chapter: keys(profile, chapter) for chapter in CHAPTERS} for profile in PROFILES}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"tables": {}}
    golden |= {"keys": plans, "records": records(), "ledger": judged(ledger.numbers(profile="paper", store=PUBLISHED))}
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
