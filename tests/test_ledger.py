"""Claims that can be judged, and verdicts that follow from intervals and nothing else."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import re
import tomllib
from base64 import b64decode
from html import escape
from importlib.resources import files
from pathlib import Path

import pytest
from scipy import stats as scipy_stats

from bslib import cards
from bslib.cards import KINDS, format_estimate, kind_of, label, ledger_page, moved_rules, open_claims, score, score_bar, verdicts
from bslib.chapters import CHAPTERS, plan_of, sizes_of
from bslib.chapters.parameters.results import ParameterResults, quantities
from bslib.chapters.surface import results as surface
from bslib.ledger import VERDICTS, Claim, Entry, Test, as_data, claims_of, entries, findings_of, judge, repeats_needed
from bslib.render import bounds_text, evidence_in_words, findings, headlines, in_short, provenance_table
from bslib.specs import PredictionsSpec
from bslib.statistics import Estimate, Estimates
from bslib.store import PUBLISHED, Record, Records, Store, open_store

WITH_CLAIMS = [name for name in CHAPTERS if files("bslib.chapters").joinpath(name, "claims.toml").is_file()]


def claim_of(*tests: Test) -> Claim:
    return Claim(id="c", where="here", says="so", paper="1", reading="r", tests=tests)


@pytest.fixture(scope="module")
def paper_quantities(made_up_half):
    """At the paper's sizes, but for fewer points: they change no name."""
    sizes = enumerate(sizes_of("parameters", "paper"))
    return quantities({s.dataset: made_up_half(dataclasses.replace(s, points=20, networks=2), seed=k) for k, s in sizes})


# --- the claims --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", WITH_CLAIMS)
def test_claims_are_whole(chapter):
    claims = claims_of(chapter)
    assert len({claim.id for claim in claims}) == len(claims) > 0
    for claim in claims:
        for name in ("id", "where", "says", "paper", "reading"):
            assert getattr(claim, name).strip(), f"{claim.id}: {name} is empty"
        assert claim.tests
        for test in claim.tests:
            bounds = [bound for bound in (test.at_least, test.at_most) if bound is not None]
            assert bounds and all(math.isfinite(bound) for bound in bounds), claim.id
            assert bounds == sorted(bounds), f"{claim.id}: nothing is at least {bounds[0]} and at most {bounds[-1]}"


def test_the_file_is_read_completely():
    raw = tomllib.loads(files("bslib.chapters").joinpath("parameters", "claims.toml").read_text(encoding="utf-8"))
    assert set(raw) == {"page", "claim", "finding"}
    assert [c["id"] for c in raw["claim"]] == [claim.id for claim in claims_of("parameters")]


def test_every_claim_speaks_of_what_the_chapter_computes(paper_quantities):
    asked = {test.quantity for claim in claims_of("parameters") for test in claim.tests}
    assert asked <= set(paper_quantities)
    for name in asked:
        estimate = paper_quantities[name]
        assert all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))), name
        assert estimate.low <= estimate.high and estimate.repeats == 2, name


def cards_of(html: str) -> list[str]:
    """The cards of a page, which Markdown has to pass through as they are."""
    assert "\n" not in html
    return re.findall("<article.*?</article>", html)


def test_with_all_records_every_claim_has_a_verdict(paper_quantities):
    cards = cards_of(verdicts("parameters", paper_quantities))
    assert len(cards) == len(claims_of("parameters")) and not any("not yet run" in card for card in cards)
    for claim, card in zip(claims_of("parameters"), cards, strict=True):
        assert escape(claim.says) in card and f'data-verdict="{judge(claim, paper_quantities)}"' in card
    assert str(paper_quantities["accuracy.fashion-mnist"]) in cards[0] and "88%" in cards[0]


def test_half_the_records_judge_half_the_claims(made_up_half):
    first, second = sizes_of("parameters", "paper")
    halves = [made_up_half(dataclasses.replace(first, points=20)), ParameterResults(second, "paper", 0, Records({}))]
    found = quantities({half.size.dataset: half for half in halves})
    judged = {claim.id for claim in claims_of("parameters") if judge(claim, found) != "not yet run"}
    assert judged == {claim.id for claim in claims_of("parameters") if "fashion" in claim.id} | {"reruns-agree"}


def test_smoke_yields_no_verdict(made_up_half):
    found = quantities({size.dataset: made_up_half(size, "smoke") for size in sizes_of("parameters", "smoke")})
    cards = cards_of(verdicts("parameters", found))
    assert found and cards and all('data-verdict="not yet run"' in card and "<svg" not in card for card in cards)


def test_no_record_yields_no_verdict():
    assert {judge(claim, Estimates()) for claim in claims_of("parameters")} == {"not yet run"}


# --- outcomes and verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "low", "high", "outcome"),
    [
        ({"at_least": 0}, 0.1, 0.3, True),
        ({"at_least": 0}, 0.0, 0.3, True),
        ({"at_least": 0}, -0.1, 0.3, None),
        ({"at_least": 0}, -0.1, 0.0, None),
        ({"at_least": 0}, -0.3, -0.1, False),
        ({"at_most": 1}, 0.5, 1.0, True),
        ({"at_most": 1}, 0.5, 1.5, None),
        ({"at_most": 1}, 1.1, 1.5, False),
        ({"at_least": 0, "at_most": 1}, 0.0, 1.0, True),
        ({"at_least": 0, "at_most": 1}, -5.0, 5.0, None),
        ({"at_least": 0, "at_most": 1}, -5.0, 0.5, None),
        ({"at_least": 0, "at_most": 1}, 0.5, 5.0, None),
        ({"at_least": 0, "at_most": 1}, 2.0, 5.0, False),
        ({"at_least": 0, "at_most": 1}, -2.0, -1.0, False),
    ],
)
def test_the_interval_decides(bounds, low, high, outcome):
    test = Test(quantity="q", **bounds)
    for value in (low, (low + high) / 2, high):  # where in it the value lies does not matter
        assert test.outcome(Estimate(value, low, high, 5)) is outcome


HOLDS, FAILS, OPEN = (Estimate(v, v - 1, v + 1, 5) for v in (2.0, -2.0, 0.0))


@pytest.mark.parametrize("estimates", list(itertools.product([HOLDS, FAILS, OPEN, None], repeat=2)))
def test_verdicts_by_truth_table(estimates):
    claim = claim_of(*(Test(quantity=f"q{k}", at_least=0.0) for k in range(2)))
    found = {f"q{k}": estimate for k, estimate in enumerate(estimates) if estimate}
    otherwise = "in part" if HOLDS in estimates else "not reproduced" if FAILS in estimates else "too little evidence"
    expected = "not yet run" if None in estimates else {(HOLDS, HOLDS): "reproduced"}.get(estimates, otherwise)
    assert judge(claim, found) == judge(claim, Estimates(found)) == expected


def test_a_verdict_needs_a_number():
    """A quantity that could not be computed neither confirms nor refutes."""
    claim = claim_of(Test(quantity="q", at_least=0.0))
    assert judge(claim, {"q": Estimate(math.nan, math.nan, math.nan, 5)}) not in ("reproduced", "not reproduced")


@pytest.mark.parametrize("change", [{"quantities": "q"}, {"at_leest": 1.0}])
def test_a_misspelt_rule_is_an_error(change):
    with pytest.raises(TypeError):
        Test(**{"quantity": "q", **change})


# --- the whole ledger --------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def published() -> list[Record]:
    """The published records, without their arrays."""
    return [dataclasses.replace(record, arrays={}) for record in open_store(PUBLISHED).iter_records()]


@pytest.fixture(scope="module")
def ledger(published_numbers):
    return entries(published_numbers)


def test_the_ledger_has_every_claim_once_in_the_order_of_the_book(ledger):
    chapters = [path.parent.name for path in (ROOT / "bslib/chapters").glob("*/claims.toml")]
    assert {entry.chapter for entry in ledger} == set(chapters)
    assert [entry.claim for entry in ledger] == [c for chapter in CHAPTERS if chapter in chapters for c in claims_of(chapter)]
    ids = [entry.claim.id for entry in ledger]
    assert len(ids) == len(set(ids)) >= 48


def test_pages_and_figures_that_the_ledger_names_are_there(ledger):
    for entry in ledger:
        notebook = json.loads((ROOT / "notebooks" / f"{entry.page}.ipynb").read_text())
        figures = {cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in notebook["cells"]}
        assert entry.claim.figure is None or entry.claim.figure in figures, entry.claim.id


def test_the_page_has_a_card_for_each_entry(ledger):
    cards = cards_of(ledger_page(ledger))
    assert len(cards) == len(ledger)
    for entry, card in zip(ledger, cards, strict=True):
        claim = entry.claim
        assert f'id="{claim.id}"' in card and f'href="ledger.html#{claim.id}"' in card
        assert f'data-verdict="{entry.verdict}"' in card and escape(claim.says) in card and escape(claim.paper) in card
        assert all(format_estimate(estimate) in card for estimate in entry.measured.values())
        assert claim.figure is None or f'href="{entry.page}.html#{claim.figure}"' in card
        for dataset in ("fashion-mnist", "cifar10"):
            asked = any(f".{dataset}" in test.quantity for test in claim.tests)
            assert asked == (dataset in re.search('data-sets="(.*?)"', card)[1].split())


def test_the_files_of_the_ledger_hold_every_claim(ledger):
    found = re.findall(r'download="ledger\.(\w+)" href="data:[^,]*,([^"]+)"', ledger_page(ledger))
    files = {name: b64decode(content).decode() for name, content in found}
    assert json.loads(files["json"]) == as_data(ledger)
    rows = list(csv.DictReader(io.StringIO(files["csv"])))
    assert len(rows) == sum(len(entry.claim.tests) for entry in ledger)
    first = next(entry for entry in ledger if entry.measured)
    row = next(row for row in rows if row["id"] == first.claim.id)
    assert float(row["value"]) == pytest.approx(first.measured[row["quantity"]].value, rel=1e-5)


def test_marks_and_verdict_agree(ledger):
    """A reader who knows the rule can tell the verdict from the marks on the card."""
    for entry, card in zip(ledger, cards_of(ledger_page(ledger)), strict=True):
        card = card.split("By the calibrated test")[0]
        marks = re.findall('class="fares">([✓✗~])', card)
        if entry.verdict == "not yet run":
            continue
        assert len(marks) == len(entry.claim.tests) == card.count("<circle")
        given = {mark for mark, test in zip(marks, entry.claim.tests, strict=True) if test.given}
        own = {
            mark
            for mark, test in zip(marks, entry.claim.tests, strict=True)
            if not test.given and not (test.refutes and mark == "✓")
        }
        assert card.count(", can only refute</small>") == sum(test.refutes for test in entry.claim.tests)
        if given - {"✓"}:
            wanted = "setting not met" if "✗" in given else "too little evidence"
        else:
            otherwise = "in part" if "✓" in own else "not reproduced" if "✗" in own else "too little evidence"
            wanted = "reproduced" if own == {"✓"} else otherwise
        assert entry.verdict == wanted, entry.claim.id


@pytest.mark.parametrize(("value", "shaded"), [(-1.0, False), (0.0, True), (2.0, True)])
def test_a_dot_lies_in_the_shade_where_the_value_is_within_the_bound(value, shaded):
    claim = claim_of(Test(quantity="q", at_least=-0.5))
    card = cards.card(
        Entry(chapter="c", page="p", claim=claim, measured={"q": Estimate(value, value - 1, value + 1, 5)}, verdict="in part")
    )
    start, width = (float(x) for x in re.search(r'"zone" x="([\d.-]+)%" width="([\d.]+)%"', card).groups())
    dot = float(re.search(r'circle cx="([\d.]+)%', card)[1])
    assert (start <= dot <= start + width + 0.01) is shaded and start + width == pytest.approx(100, abs=0.02)


@pytest.mark.parametrize(
    ("quantity", "words"),
    [
        ("active_less_clean.fashion-mnist.0.05", ("active minus clean", "Fashion-MNIST", "σ = 0.05")),
        ("spread_at_0.01.cifar10", ("spread at 0.01", "CIFAR-10", "")),
        ("range_of_means_0.005_to_0.15.cifar10", ("range of means 0.005 to 0.15", "CIFAR-10", "")),
        ("largest_step.cifar10.less.fashion-mnist", ("largest step", "CIFAR-10 minus Fashion-MNIST", "")),
        ("share_of_clean.0.1.less.0.5.fashion-mnist", ("fraction of clean", "Fashion-MNIST", "σ = 0.1 minus σ = 0.5")),
        ("auc_own_at.fashion-mnist.0.25.1", ("area (AUC) own trigger at", "Fashion-MNIST", "σ = 0.25, trigger 1")),
        ("auc_universal_at.fashion-mnist.26", ("area (AUC) universal at", "Fashion-MNIST", "bound 26/255")),
    ],
)
def test_names_of_quantities_become_words(quantity, words):
    assert label(quantity) == words
    assert label("kept.cifar10.1", noise=True)[2] == "σ = 1"


def test_the_repeats_needed_are_enough_and_one_fewer_is_not():
    """Against Student's interval of a sample with the same mean and standard deviation."""
    claim, sd = claim_of(Test(quantity="q", at_least=0.0)), 1.0
    for mean in (0.1, 0.4, -0.3):

        def interval(n, mean=mean):
            low, high = scipy_stats.t.interval(0.95, n - 1, loc=mean, scale=sd / n**0.5)
            return Estimate(mean, low, high, n)

        wanted = repeats_needed(claim, {"q": interval(5)})
        outcomes = [claim.tests[0].outcome(interval(n)) for n in (wanted - 1, wanted)]
        assert outcomes == [None, mean > 0]


def test_the_repeats_needed_where_all_agree_are_those_of_wilsons_interval():
    claim, z2 = claim_of(Test(quantity="q", at_least=0.95)), 1.96**2
    wanted = repeats_needed(claim, {"q": Estimate(1.0, 10 / (10 + z2), 1.0, 10)})
    assert (wanted - 1) / (wanted - 1 + z2) < 0.95 <= wanted / (wanted + z2)


def test_too_little_evidence_says_how_many_networks_would_decide(ledger):
    for entry, card in zip(ledger, cards_of(ledger_page(ledger)), strict=True):
        lacking = entry.verdict == "too little evidence"
        assert lacking == ("would decide" in card or "would be needed" in card), entry.claim.id
        assert (entry.verdict == "setting not met") == ("The claim presupposes" in card)


def test_rules_that_moved_are_listed_with_their_date(ledger):
    lines = re.findall("<li>.*?</li>", moved_rules(ledger))
    dated = [entry.claim.id for entry in ledger if entry.claim.moved]
    assert not [entry.claim.id for entry in ledger if re.search(r"\d (Nov|Dec)ember", entry.claim.reading)], "said in one place"
    assert all("ember" in line for line in lines) and sorted(re.findall(r'"ledger.html#([\w-]+)"', "".join(lines))) == sorted(
        dated
    )


def test_a_number_held_to_two_bounds_is_shown_once():
    twice = (Test(quantity="q", at_least=0.5), Test(quantity="q", at_least=1.0))
    claim = dataclasses.replace(claims_of("parameters")[0], tests=twice)
    assert bounds_text(claim, {"q": Estimate(0.8, 0.6, 1.0, 5)}) == {"q": "≥ 0.5 ✓, ≥ 1 ~"}
    assert bounds_text(claim, {}) == {}


def test_the_score_counts_every_entry(ledger):
    words = score(ledger)
    kinds = {kind: [entry.claim.id for entry in ledger if kind_of(entry) == kind] for kind in KINDS}
    assert kinds["arithmetic"] == ["t1-networks-17", "t1-networks-20", "t2-pairs-79"]
    assert {"smoother-cifar", "t1-within-triggers", "not-a-single-image"} <= set(kinds["ours"])
    assert "fashion-accuracy" in kinds["tuned"] and sum(map(len, kinds.values())) == len(ledger)
    bar = dict(re.findall(r'data-is="([^"]+)" [^>]*><b>(\d+)</b>', score_bar(ledger)))
    for verdict in VERDICTS:
        count = sum(entry.verdict == verdict for entry in ledger if kind_of(entry) == "paper")
        assert int(bar.get(verdict, 0)) == count
        assert (f"{count} {verdict}" in words.split(";")[0].split(", ")) == (count > 0)
    assert f"; {len(kinds['paper'])} claims in all" in words
    apart = ["3 on how the paper's own numbers fit together", f"{len(kinds['tuned'])} that our settings were chosen for"]
    assert words.endswith("; ".join([*apart, f"{len(kinds['ours'])} that we ask besides"]))


def test_the_score_says_what_one_network_judged(ledger):
    first, second = (entry for entry in ledger if entry.claim.id in ("mean-grows-fashion", "most-at-small-sigma"))
    alone = dataclasses.replace(first, measured={name: dataclasses.replace(e, repeats=1) for name, e in first.measured.items()})
    assert score([alone, second]) == "2 reproduced; 2 claims in all, 1 of them judged by a single seed"
    assert score([first, second]) == "2 reproduced; 2 claims in all"


def test_what_can_only_refute_is_no_evidence_for_a_claim():
    tests = (Test(quantity="q", at_least=0.0), Test(quantity="p", at_least=0.05, refutes=True))
    claim = dataclasses.replace(claims_of("parameters")[0], tests=tests)
    same, other = Estimate(0.4, 0.4, 0.4, 0), Estimate(0.01, 0.01, 0.01, 0)
    yes, open_, wide = Estimate(1, 0.5, 1.5, 5), Estimate(0.1, -1, 1, 5), Estimate(0.1, 0.01, 0.2, 5)
    verdicts = {(q, p): judge(claim, {"q": q, "p": p}) for q in (yes, open_) for p in (same, wide, other)}
    assert verdicts[yes, same] == "reproduced" and verdicts[yes, wide] == verdicts[yes, other] == "in part"
    assert verdicts[open_, same] == verdicts[open_, wide] == "too little evidence" and verdicts[open_, other] == "not reproduced"
    assert repeats_needed(claim, {"q": open_, "p": wide}) == repeats_needed(claim, {"q": open_, "p": same}) is not None


def test_what_is_given_has_to_hold():
    tests = (Test(quantity="q", at_least=0.0), Test(quantity="p", at_least=0.2, given=True))
    claim = dataclasses.replace(claims_of("parameters")[0], tests=tests)
    for p, verdict in ((HOLDS, "reproduced"), (OPEN, "too little evidence"), (FAILS, "setting not met")):
        assert judge(claim, {"q": HOLDS, "p": p}) == verdict
    assert judge(claim, {"q": FAILS, "p": HOLDS}) == "not reproduced" and judge(claim, {"q": HOLDS}) == "not yet run"
    assert bounds_text(claim, {"q": HOLDS, "p": FAILS})["p"] == "(given ≥ 0.2 ✗)"


def test_the_ledger_as_data_is_json(ledger):
    data = json.loads(json.dumps(as_data(ledger)))
    assert [row["verdict"] for row in data] == [entry.verdict for entry in ledger]
    first = next(row for row in data if row["measured"])
    assert set(next(iter(first["measured"].values()))) == {"value", "low", "high", "repeats"}
    assert [bound["quantity"] for bound in first["bounds"]] == [test.quantity for test in claims_of("parameters")[0].tests]


# --- findings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", WITH_CLAIMS)
def test_findings_are_borne_out_by_the_published_records(chapter, published_numbers):
    """What the book says of its own accord is true of the records that it is rendered from."""
    expected = findings_of(chapter)
    for finding in expected:
        for test in finding.tests:
            assert test.outcome(published_numbers[chapter][test.quantity]) is True, (finding.id, test)
    lines = findings(chapter, published_numbers[chapter]).splitlines()
    lines += in_short({chapter: published_numbers[chapter]}).splitlines()[1:-1]
    assert len(lines) == len(expected) and not any("Not borne out" in line or "Not yet run" in line for line in lines)


def test_every_number_of_a_finding_is_in_its_sentence(published_numbers):
    for chapter, own in published_numbers.items():
        for finding in findings_of(chapter):
            assert all(f"{{{k}}}" in finding.says for k in range(len(finding.tests))), finding.id
            lines = [*findings(chapter, own).splitlines(), *in_short({chapter: own}).replace("**", "").splitlines()]
            line = next(line for line in lines if finding.says.split("{")[0] in line)
            assert all(format_estimate(own[test.quantity]) in line for test in finding.tests)


def test_a_finding_that_records_contradict_says_so(published_numbers):
    own = published_numbers["parameters"]
    first = next(finding for finding in findings_of("parameters") if not finding.short)
    assert findings("parameters", own).startswith("- " + first.says[:20])
    for estimate in (FAILS, OPEN):
        assert findings("parameters", {**own, first.tests[0].quantity: estimate}).startswith("- **Not borne out")


def test_the_short_answers_of_all_chapters_end_with_the_evidence(published_numbers):
    lines = in_short(published_numbers, evidence="Much.").splitlines()
    assert lines[0] == ":::{admonition} In short" and lines[-2:] == ["- **How much evidence.** Much.", ":::"]
    assert len(lines) == 3 + sum(0 < finding.short < 10 for chapter in WITH_CLAIMS for finding in findings_of(chapter))
    assert "[" not in "".join(lines) and "[" in in_short(published_numbers)


def test_the_evidence_counts_networks_and_points(published):
    words = evidence_in_words(profile="paper", store=PUBLISHED)
    kinds = [
        "copy" if record.spec.kind == "network" and record.spec.treatment else record.spec.kind
        for record in published
        if record.spec.kind in ("network", "domain")
    ]
    copies = kinds.count("copy")
    for counted, there in ((r"(\d+) networks", len(kinds) - copies), (r"(\d+) copies of some", copies)):
        assert sum(map(int, re.findall(counted, words))) == there > 0


def test_the_first_sentence_of_the_book_is_true(published_numbers):
    """It has no numbers, so these hold it: smoother under little noise, not under much or under T2; a detector that errs."""
    surface, pairs, patterns = (published_numbers[name] for name in ("surface", "correlation", "patterns"))
    assert all(surface[f"active_less_clean.{data}.0.1"].high < 0 for data in ("fashion-mnist", "cifar10"))
    assert surface["active_less_clean.fashion-mnist.1"].low > 0
    assert pairs["less_clean.fashion-mnist.5"].low > -0.05
    assert patterns["auc_own.fashion-mnist.4"].high < 0.9 and patterns["own_success.fashion-mnist.4"].low > 0.5
    assert patterns["clean_found.fashion-mnist"].low > 0.05


def test_a_claim_on_the_papers_test_is_judged_by_the_calibrated_one_as_well():
    (claim,) = (claim for claim in claims_of("patterns") if claim.id == "universal-fashion")
    assert claim.calibrated and [test.given for test in claim.tests] == [False, True]
    fooled, paper = Estimate(0.5, 0.4, 0.6, 9), Estimate(0.5, 0.4, 0.6, 9)
    own = {"fooled_universal_at.fashion-mnist.26": fooled, "auc_universal_at.fashion-mnist.26": paper}
    both = Estimates(own | {"auc_universal_at_calibrated.fashion-mnist.26": Estimate(0.1, 0, 0.2, 9)})
    entry = next(e for e in entries({"patterns": both}) if e.claim.id == claim.id)
    other = entry.calibrated
    assert (entry.verdict, other.verdict) == ("reproduced", "not reproduced")
    assert list(other.measured) == ["auc_universal_at_calibrated.fashion-mnist.26", "fooled_universal_at.fashion-mnist.26"]
    bounds = [[(t.at_least, t.at_most, t.given) for t in judged.tests] for judged in (claim, other.claim)]
    assert bounds[0] == bounds[1]
    html, (row,) = cards.card(entry), as_data([entry])
    assert "By the calibrated test: <b>not reproduced</b>" in html and html.count("fooled universal at") == 1
    assert row["verdict by the calibrated test"] == "not reproduced" and row["verdict"] == "reproduced"
    assert "fashion-accuracy" in {e.claim.id for e in entries({"parameters": Estimates()}) if e.calibrated is None}


def test_open_claims_are_those_without_an_answer(ledger):
    found = re.findall(r'ledger.html#([\w-]+)"', open_claims(ledger))
    assert sorted(found) == sorted(e.claim.id for e in ledger if e.verdict in ("too little evidence", "setting not met"))


def test_the_landing_page_has_the_headlines_alone(published_numbers):
    wanted = [finding.says.split(". ")[0] for c in WITH_CLAIMS for finding in findings_of(c) if finding.headline]
    lines = headlines(published_numbers).splitlines()
    assert len(lines) == len(wanted) >= 3 and not any("{" in says for says in wanted)
    assert all(line.startswith(f"- **{says}.** ") for line, says in zip(lines, wanted, strict=True))


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.5, 0.4, 0.6, 5), "0.500 [0.400, 0.600]"),
        (Estimate(-1.25, -2, 0, 5), "\N{MINUS SIGN}1.250 [\N{MINUS SIGN}2.000, 0.000]"),
        (Estimate(3e-4, 1e-4, 5e-4, 5), "3.0e\N{MINUS SIGN}04 [1.0e\N{MINUS SIGN}04, 5.0e\N{MINUS SIGN}04]"),
        (Estimate(2e-4, -0.01, 0.01, 5), "0.000 [\N{MINUS SIGN}0.010, 0.010]"),
        (Estimate(1.0, 1.0, 1.0, 5), "1.000 [1.000, 1.000]"),
        (Estimate(7e-5, 7e-5, 7e-5, 0), "7.0e\N{MINUS SIGN}05"),
        (Estimate(10, 10, 10, 1), "10"),
        (Estimate(10.5, 10.5, 10.5, 3), "10.500 [10.500, 10.500]"),
    ],
)
def test_few_digits_that_say_enough(estimate, text):
    assert format_estimate(estimate) == text


def test_what_is_changed_in_a_record_changes_the_verdict(tmp_path):
    """A store over the published one in which every prediction of one trigger is wrong."""
    store = Store(tmp_path / "records", base=open_store(PUBLISHED))
    for spec in plan_of("surface", "paper"):
        if isinstance(spec, PredictionsSpec) and spec.trigger == 1 and spec in store:
            record = store.get(spec)
            wrong = {**record.arrays, "predicted": (record.arrays["labels"] + 1) % 10}
            store.put(dataclasses.replace(record, arrays=wrong))
    changed = surface.load(profile="paper", store=Store(tmp_path / "records", writable=False, base=store.base))
    found = entries({"surface": surface.quantities(changed)})
    verdict = {entry.claim.id: entry.verdict for entry in found}
    assert verdict["larger-fashion-active"] == "not reproduced"


# --- where it comes from -----------------------------------------------------------------------------------------


def test_the_provenance_accounts_for_every_published_record(published):
    *rows, empty, total = provenance_table(profile="paper", store=PUBLISHED).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert empty == "" and sum(int(row[2]) for row in cells) == len(published)
    assert total.startswith(f"{len(published)} of the ")
    for row in cells:
        own = [
            record
            for record in published
            if record.spec.kind == row[1]
            and (record.data.get("fingerprint", "")[:8] in row[0] if record.data else "plane" in row[0])
        ]
        assert len(own) == int(row[2])
        for column, name in ((4, "device"), (5, "torch"), (6, "code")):
            texts = sorted({record.provenance[name] for record in own})
            assert row[column].split("<br>") == (texts if len(texts) <= 4 else [*texts[:3], f"and {len(texts) - 3} more"])
        hours, minutes, seconds = map(int, row[3].split(":"))
        assert abs(3600 * hours + 60 * minutes + seconds - sum(record.provenance["seconds"] for record in own)) <= 0.5


def test_the_provenance_of_an_empty_store_is_an_empty_table(tmp_path):
    assert provenance_table(profile="paper", store=Store(tmp_path, writable=False)).splitlines()[-1].startswith("0 of the ")
