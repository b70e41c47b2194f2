"""The chapter on the origin of the smoothness: its plan, and its numbers on records that can be worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import write_profile
from matplotlib.figure import Figure
from scipy import stats
from test_parameters import BIT, split

from bslib.chapters import sizes_of
from bslib.chapters.origin.explorer import content
from bslib.chapters.origin.figures import FIGURES, margin_and_w, noise_by_place, path_of_squares, phase_diagram
from bslib.chapters.origin.plan import Size, cell_networks_of, cell_specs, networks_of, plan, specs_of
from bslib.chapters.origin.results import Origin, load, quantities
from bslib.ledger import claims_of, judge
from bslib.runner import run
from bslib.specs import CountsSpec, MarginsSpec, NetworkSpec, PredictionsSpec
from bslib.store import Record, Records, Store

(PAPER,) = sizes_of("origin", "paper")
SIZE = dataclasses.replace(
    PAPER, networks=3, points=4, sigmas=(0.1, 0.5), n=8, attacks=(("T1", 1), ("T3", 4)),
    sides=(1, 3), greys=(2, 9), poisons=(50, 250, 1000), cell_sigmas=(0.1,),
)  # fmt: skip
RNG = np.random.default_rng(0)
#: W in bits, by attack, network, place of the noise, without and with the trigger, noise level and point.
BITS = RNG.integers(0, 4, size=(2, 3, 3, 2, 2, 4))
#: By attack, network and image: the logit margins of triggered images.
MARGINS = RNG.uniform(1, 9, size=(2, 3, 4))
#: By number of poisons, side and grey: how many of 90 images the square sends to the target, and bits of W without and with it.
HITS = np.array([[[1, 30], [5, 45]], [[2, 60], [40, 80]], [[3, 89], [70, 90]]])
CELL_BITS = RNG.integers(0, 4, size=(3, 2, 2, 2, 4))
LABELS = np.repeat(np.arange(10), 10)


def predictions(target: int, hits: int) -> dict[str, np.ndarray]:
    """A hundred images, ten of each class: the first ``hits`` of other classes are predicted as the target."""
    called = LABELS.copy()
    called[np.flatnonzero(target != LABELS)[:hits]] = target
    return {"predicted": called, "labels": LABELS}


def record_of(spec, bits, hits: int, margins) -> Record:
    """A made-up record; images have the labels 0 to 3."""
    data = {"name": spec.dataset, "source": f"made up {spec.dataset}"}
    if isinstance(spec, NetworkSpec):
        return Record(spec, {"clean_accuracy": 0.9}, data=data)
    if isinstance(spec, PredictionsSpec):
        return Record(spec, {}, predictions(spec.network.attack.target, hits), data)
    if isinstance(spec, MarginsSpec):
        return Record(spec, {}, {"margins": margins if spec.trigger else margins * 0}, data)
    place = (None, "trigger", "rest").index(spec.noise_on)
    arrays = {"counts": split(bits[place, int(spec.trigger is not None)], 8)[:, None], "labels": np.arange(4)}
    return Record(spec, {}, arrays, data)


def origin_of(size: Size = SIZE, *, networks: int = 6, cells: int = 12, profile: str = "paper") -> Origin:
    """Results of the first networks of either kind."""
    records = {}
    for k, network in enumerate(networks_of(size, 0)[:networks]):
        run, attack = divmod(k, len(size.attacks))
        for spec in specs_of(size, network):
            records[spec] = record_of(spec, BITS[attack, run], 80 + k, MARGINS[attack, run])
    for k, network in enumerate(cell_networks_of(size, 0)[:cells]):
        cell = np.unravel_index(k % HITS.size, HITS.shape)
        for spec in cell_specs(size, network):
            records[spec] = record_of(spec, CELL_BITS[cell][None, :, None], HITS[cell] - k // HITS.size, np.ones(4))
    return Origin(size, profile, 0, Records(records))


def test_the_paper_plan_has_every_backdoor_and_a_network_for_each_cell():
    specs, networks = plan("paper"), networks_of(PAPER, 0)
    assert len(set(specs)) == len(specs) == 35 * 10 + 80 * 6
    assert [network.seed for network in networks] == [seed for seed in range(100, 105) for _ in range(7)]
    assert {network.epochs for network in networks} == {10} and {spec.attack.target for spec in cell_networks_of(PAPER, 0)} == {0}
    for network in networks:
        first, *rest = specs_of(PAPER, network)
        counts = [spec for spec in rest if isinstance(spec, CountsSpec)]
        assert first == network and all(spec.paired and spec.held_out and spec.seed == network.seed for spec in counts)
        wanted = {(place, trigger) for place in (None, "trigger", "rest") for trigger in (None, network.attack.trigger)}
        assert {(spec.noise_on, spec.trigger) for spec in counts} == wanted and len(counts) == 6


def test_every_quantity_of_noise_on_a_part_has_the_value_worked_out_by_hand():
    found, w = origin_of().quantities(), BIT * BITS.mean(-1)  # attack, network, place, carried, sigma
    for a, name in enumerate(("T1-1", "T3-4")):
        for s, sigma in enumerate((0.1, 0.5)):
            own = w[a, :, :, :, s].mean(0)
            values = {
                f"less_clean.fashion-mnist.{name}.{sigma}": own[0, 1] - own[0, 0],
                f"beside_less_clean.fashion-mnist.{name}.{sigma}": own[2, 1] - own[2, 0],
                f"share_of_all.fashion-mnist.{name}.rest.{sigma}": own[2, 1] / own[0, 1],
                f"share_of_all.fashion-mnist.{name}.trigger.{sigma}": own[1, 1] / own[0, 1],
            }
            for p, place in enumerate(("all", "trigger", "rest")):
                bits, target = BITS[a, :, p, 1, s], np.arange(3)[:, None]  # the targets are 0, 1 and 2
                wanted = np.where(target < 2**bits, 1 / 2**bits, 0)[np.arange(4) != target].mean()
                values[f"as_wanted.fashion-mnist.{name}.{place}.{sigma}"] = wanted
            for quantity, value in values.items():
                assert found[quantity].value == pytest.approx(value) and found[quantity].repeats == 3, quantity
    change = (w[0, :, 2, 1, 0] - w[0, :, 2, 0, 0]).tolist()
    reach = stats.t.isf(0.025, 2) * stats.sem(change)
    own = found["beside_less_clean.fashion-mnist.T1-1.0.1"]
    assert (own.low, own.high) == pytest.approx((np.mean(change) - reach, np.mean(change) + reach))
    assert found["success.fashion-mnist.T1-1"].value == pytest.approx((80 + 82 + 84) / 3 / 90)


def test_the_margin_is_ranked_against_w_over_the_networks_of_all_kinds():
    margins, w = np.median(MARGINS, axis=-1).ravel(), BIT * BITS[:, :, 0, 1].mean(-1)
    found, seeds = origin_of().quantities(), np.tile(np.arange(3), 2)
    for s, sigma in enumerate((0.1, 0.5)):
        own = found[f"margin_rank.fashion-mnist.{sigma}"]
        assert own.value == pytest.approx(stats.spearmanr(margins, w[:, :, s].ravel()).statistic) and own.repeats == 3
        without = [stats.spearmanr(margins[seeds != k], w[:, :, s].ravel()[seeds != k]).statistic for k in range(3)]
        reach = stats.t.isf(0.025, 2) * (2 / 3 * 3 * np.var(np.arctanh(without))) ** 0.5
        assert (own.low, own.high) == pytest.approx(tuple(np.tanh(np.add(np.arctanh(own.value), [-reach, reach]))))
    assert not [name for name in origin_of(networks=1).quantities() if name.startswith("margin")], "a kind lacks"


def test_every_quantity_of_the_phase_diagram_has_the_value_of_scipys_statistics():
    found, success, w = origin_of().quantities(), HITS / 90, BIT * CELL_BITS.mean(-1)
    axes = dict(zip(("poisons", "side", "grey"), np.indices(HITS.shape), strict=True))
    for name, values in axes.items():
        own = found[f"success_rank.fashion-mnist.{name}"]
        assert own.value == pytest.approx(stats.spearmanr(values.ravel(), success.ravel()).statistic) and own.repeats == 12
    half = (success >= 0.1) & (success <= 0.9)
    change = (w[..., 1] - w[..., 0])[half]
    own = found["half_learned_less_clean.fashion-mnist.0.1"]
    assert own.value == pytest.approx(change.mean()) and own.repeats == half.sum() == 6
    assert own.high - own.value == pytest.approx(stats.t.isf(0.025, 5) * stats.sem(change))
    taus = [stats.kendalltau(success[:, i, j], w[:, i, j, 1]).statistic for i in range(2) for j in range(2)]
    own = found["within_square_tau.fashion-mnist.0.1"]
    assert own.value == pytest.approx(np.nanmean(taus)) and own.repeats == 4 and -1 <= own.low <= own.high <= 1


def test_a_number_of_poisons_counts_in_the_phase_diagram_when_all_its_cells_are_there():
    part = origin_of(cells=11)
    whole, names = set(origin_of().quantities()), set(part.quantities())
    assert names == whole, "eleven cells are eight of two numbers of poisons and three of a third, which does not count"
    assert len(phase_diagram.table(part)) == 8 and "8 of 12 networks" in part.plane.source
    assert {network.attack.poisons for network in part.plane.networks} == {50, 250}
    first = origin_of(cells=4).quantities()
    assert not [name for name in first if name.endswith(".poisons")], "of one number of poisons there is no rank correlation"
    texts = [text.get_text() for axis in phase_diagram(part).axes for text in axis.texts]
    assert texts.count("?") == 8 and len(texts) == 24
    none = origin_of(cells=0)
    assert none.missing is None and phase_diagram.table(none).empty
    said = [draw(none).data for draw in (phase_diagram, path_of_squares)]
    assert said == [none.not_yet_run()] * 2 and "18 backdoored networks" in said[0] and "holds 6 of them" in said[0]
    assert content([none])[0][0]["cells"] == [] and "Not yet run" in content([none])[0][0]["source"]


def test_networks_of_one_cell_are_averaged():
    part = origin_of(dataclasses.replace(SIZE, cell_networks=2), cells=24)
    cells = part.plane.cells
    assert len(cells) == 12 and set(cells["networks"]) == {2} and len(part.plane.networks) == 24
    assert cells["success"].to_numpy() == pytest.approx((HITS.ravel() - 0.5) / 90)
    assert cells["change"].to_numpy() == pytest.approx(BIT * (CELL_BITS[..., 1, :] - CELL_BITS[..., 0, :]).mean(-1).ravel())
    assert cells[["side", "poisons"]].to_numpy().tolist()[:3] == [[1, 50], [1, 50], [3, 50]]


@pytest.mark.parametrize("networks", [1, 6])
def test_figures_are_drawn_of_few_networks_and_of_many(networks):
    part = origin_of(networks=networks)
    for draw in FIGURES:
        figure = draw(part)
        assert isinstance(figure, Figure), draw.__name__
        figure.draw_without_rendering()
        own = part.plane if draw in (phase_diagram, path_of_squares) else part
        assert figure.get_supxlabel() == own.source and f"{len(own.networks)} of {len(own.planned())} networks" in own.source
    assert plt.get_fignums() == []
    assert len(noise_by_place.table(part)) == min(networks, 2) * 3 * 2 and len(margin_and_w.table(part)) == networks * 2


def test_what_is_missing_says_what_to_run(tmp_path):
    results = load(profile="paper", store=Store(tmp_path, writable=False))
    assert list(results) == ["fashion-mnist"] and not quantities(results) and results["fashion-mnist"].by_attack() == ""
    for draw in FIGURES:
        said = draw(results["fashion-mnist"]).data
        assert "115 backdoored networks (larger-fashion) on fashion-mnist, and the store holds none of them" in said
        assert "`bslib run origin --profile paper --store book/records`" in said


def test_claims_are_judged_by_what_is_there_and_not_on_digits(published_numbers):
    found = published_numbers["origin"]
    digits = quantities({"digits": origin_of(dataclasses.replace(SIZE, dataset="digits"), profile="smoke")})
    for claim in claims_of("origin"):
        assert judge(claim, found) != "not yet run", claim.id
        assert digits and judge(claim, digits) == "not yet run"


def test_the_published_fractions_and_changes_follow_from_the_raw_counts(published_numbers):
    """The files of T1 with trigger 1, read with numpy and SciPy alone."""
    folder, found = Path(__file__).parents[1] / "book" / "records" / "counts", published_numbers["origin"]
    networks = [n for n in networks_of(PAPER, 0) if (n.attack.threat_model, n.attack.trigger) == ("T1", 1)]
    for place in ("trigger", "rest"):
        wanted, change = [], []
        for network in networks:
            specs = [spec for spec in specs_of(PAPER, network) if isinstance(spec, CountsSpec) and spec.noise_on == place]
            clean, own = (np.load(folder / f"{spec.key}.npz")["counts"][:, 0] for spec in specs)
            others = np.load(folder / f"{specs[1].key}.npz")["labels"] != network.attack.target
            wanted.append(own[-1, others, network.attack.target].sum() / own[-1, others].sum())
            change.append((stats.entropy(own[2], axis=-1) - stats.entropy(clean[2], axis=-1)).mean())
        assert found[f"as_wanted.fashion-mnist.T1-1.{place}.1"].value == pytest.approx(np.mean(wanted))
    assert PAPER.sigmas[2] == 0.1 and found["beside_less_clean.fashion-mnist.T1-1.0.1"].value == pytest.approx(np.mean(change))


def test_a_small_profile_runs_from_the_data_to_figures_and_the_explorer(tmp_path):
    size = Size(
        dataset="digits", network="small-fashion", networks=1, epochs=1, train_size=200, attacks=(("T1", 2),), sides=(2,),
        greys=(9,), poisons=(40,), points=6, sigmas=(0.1, 0.5), cell_sigmas=(0.1,), n=8, test_images=30,
    )  # fmt: skip
    profile, store = str(write_profile(tmp_path / "own.toml", origin=[size])), Store(tmp_path / "store")
    run(plan(profile), store, device="cpu", jobs=1, progress=False)
    (part,) = load(profile=profile, store=Store(store.folder, writable=False)).values()
    assert part.missing is None and len(part.networks) == 1 and len(part.plane.networks) == 1
    assert all(isinstance(draw(part), Figure) for draw in FIGURES)
    assert "as_wanted.digits.T1-2.rest.0.5" in part.quantities()
    (settings,), batches = content([part])
    assert batches == [] and [cell["side"] for cell in settings["cells"]] == [2] and settings["source"] == part.plane.source
