"""What W is worth as a defence: the numbers for single images, for batches and for networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bslib.chapters.beyond import nearest
from bslib.chapters.defence import plan
from bslib.chapters.defence.plan import Size
from bslib.chapters.defence.scores import TESTS, detection_rate, flagged
from bslib.chapters.outcomes import BeyondResults, area, defined, mean_of, over_seeds, quantities, w_by_candidate, w_by_sigma
from bslib.entropy import entropy
from bslib.markdown import markdown_table
from bslib.specs import NetworkSpec, Spec
from bslib.statistics import Estimate, anomaly_index, area_replicates

__all__ = ["BATCHES", "Defence", "load", "quantities"]

Floats = NDArray[np.float64]
#: The fractions of clean images that may raise an alarm.
ALARMS = (0.05, 0.01)
#: Points in a batch. A batch is an alarm if p is below ``LEVEL``.
BATCHES, LEVEL = (10, 25, 50, 100), 0.05
ATTACK = ["threat model", "trigger"]
ABOUT = ["network", "seed", *ATTACK]


@dataclass(frozen=True)
class Defence(BeyondResults[Size]):
    """The numbers of the defence chapter on one data set. A high *suspicion* is the sign of a trigger: minus W, for example."""

    chapter: ClassVar[str] = "defence"
    described: ClassVar[str] = "clean and backdoored "

    @property
    def details(self) -> str:
        """The size of a batch, and how many networks are clean."""
        clean = sum(network.attack is None for network in self.networks)
        return f" ({clean} of {self.size.clean_networks} clean ones), {self.size.points} test images each"

    @property
    def backdoored(self) -> list[NetworkSpec]:
        """The networks that have a backdoor."""
        return [network for network in self.networks if network.attack is not None]

    def suspicions(self, network: NetworkSpec) -> Iterator[tuple[str, float, tuple[Floats, Floats]]]:
        """Each score of a backdoored network: name, noise level (NaN for none), suspicion of the clean and the triggered images.

        "two" is the mean of the ranks of STRIP and the margin among all of these images, "three" the mean of these and W's.
        """
        strip, margin = (
            [self.records[of(network, trigger)].arrays[name].ravel().astype(float) for trigger in network.carried]
            for of, name in ((self.size.strip_of, "scores"), (self.size.margins_of, "margins"))
        )
        without_noise = {"STRIP": (-strip[0], -strip[1]), "margin": (margin[0], margin[1])}
        ranks = [stats.rankdata(np.concatenate(pair)) for pair in without_noise.values()]
        halves = np.mean(ranks, axis=0).reshape(2, -1)
        yield from ((name, np.nan, pair) for name, pair in (without_noise | {"two": (halves[0], halves[1])}).items())
        for sigma, clean, triggered in zip(self.size.sigmas, *self.w_of(network), strict=True):
            yield "W", sigma, (-clean, -triggered)
            halves = np.mean([*ranks, stats.rankdata(-np.concatenate([clean, triggered]))], axis=0).reshape(2, -1)
            yield "three", sigma, (halves[0], halves[1])

    @cached_property
    def images(self) -> pd.DataFrame:
        """How well each score tells triggered from clean images on each network.

        Columns network, seed, threat model, trigger, success, score, sigma, auc, and the detection rates "5%" and "1%".
        """
        rows = []
        for network in self.backdoored:
            about = *_about(network), self.success_of(network)
            for name, sigma, pair in self.suspicions(network):
                rows.append((*about, name, sigma, area(*pair), *(detection_rate(*pair, alarms=alarms) for alarms in ALARMS)))
        return pd.DataFrame(rows, columns=[*ABOUT, "success", "score", "sigma", "auc", "5%", "1%"])

    @cached_property
    def copies(self) -> pd.DataFrame:
        """The same of W at one noise level with n noisy copies: columns network, seed, threat model, trigger, n, auc, "5%"."""
        rows = []
        for network in self.backdoored:
            ladder = [plan.ladder_of(self.size, network, trigger) for trigger in network.carried]
            of_n = (-entropy(self.records[spec].arrays["counts"][0]) for spec in ladder)
            rows += [(*_about(network), n, area(*w), detection_rate(*w)) for n, *w in zip(self.size.ns, *of_n, strict=True)]
        return pd.DataFrame(rows, columns=[*ABOUT, "n", "auc", "5%"])

    @cached_property
    def batches(self) -> pd.DataFrame:
        """The tests of small batches against as many points of the second clean batch of the same network.

        Columns network, seed, threat model and trigger (None for clean networks), carried ("clean" or "trigger"), points, sigma,
        test, and alarms: for each pair of batches whether p is below 5%.
        """
        about, pairs, rows = [], [], []
        for network in self.networks:
            second = w_by_sigma(self.records[plan.second_batch_of(self.size, network)])
            for carried, w in zip(("clean", "trigger"), self.w_of(network), strict=False):
                about.append((*_about(network), carried))
                pairs.append((second, w))
        for points in (points for points in BATCHES if points <= self.size.points and pairs):
            clean, tested = (_split(np.stack(of), points) for of in zip(*pairs, strict=True))
            for name, test in TESTS.items():
                for batch, of_levels in zip(about, test(clean, tested) < LEVEL, strict=True):
                    rows += [(*batch, points, *of_level, name) for of_level in zip(self.size.sigmas, of_levels, strict=True)]
        return pd.DataFrame(rows, columns=[*ABOUT, "carried", "points", "sigma", "alarms", "test"])

    @cached_property
    def halves(self) -> pd.DataFrame:
        """The two-sided test of :attr:`batches` on each single score: half of the images with the trigger, the others without.

        STRIP and the margin are recorded for one batch only. Columns network, seed, threat model, trigger, score, sigma, points,
        and for each pair of batches whether there is an alarm: found (the first half has the trigger) and alarms (it has none).
        """
        half, rows = self.size.points // 2, []
        scores = [(n, score) for n in self.backdoored for score in self.suspicions(n) if score[0] in ("STRIP", "margin", "W")]
        for points in (points for points in BATCHES if points <= half and scores):
            triples = [(clean[half:], triggered[:half], clean[:half]) for _, (*_, (clean, triggered)) in scores]
            reference, *tested = (_split(np.stack(of), points) for of in zip(*triples, strict=True))
            outcomes = zip(*(TESTS["two-sided"](reference, own) < LEVEL for own in tested), strict=True)
            rows += [(*_about(n), *score[:2], points, *both) for (n, score), both in zip(scores, outcomes, strict=True)]
        return pd.DataFrame(rows, columns=[*ABOUT, "score", "sigma", "points", "found", "alarms"])

    @cached_property
    def candidates(self) -> pd.DataFrame:
        """Neural Cleanse on each network: the anomaly index of the masks' sizes, and that of the mean W of images with them.

        Columns network, seed, threat model and trigger (None for clean networks), sigma, mask, W.
        """
        rows = []
        for network in plan.cleansed_networks_of(self.size, self.seed):
            crafted, batch = self.size.cleanse_specs(network)
            if crafted in self.records and batch in self.records:
                arrays, mask = self.records[crafted].arrays, self.records[crafted].result["anomaly_index"]
                of_w = [anomaly_index(means, arrays["success"]) for means in w_by_candidate(self.records[batch])]
                rows += [(*_about(network), sigma, mask, index) for sigma, index in zip(batch.sigmas, of_w, strict=True)]
        return pd.DataFrame(rows, columns=[*ABOUT, "sigma", "mask", "W"])

    def network_areas(self, sigma: float) -> dict[str, Estimate]:
        """The area under the ROC curve of both indices, clean against backdoored networks, and W's minus the masks'."""
        table = self.candidates[self.candidates["sigma"] == sigma]
        backdoored = table["trigger"].notna()
        if not 0 < backdoored.sum() < len(table):
            return {}
        w, mask = (area_replicates(table[name], backdoored, table["seed"]) for name in ("W", "mask"))
        less = w._replace(value=w.value - mask.value, without=w.without - mask.without).estimate(within=(-1, 1))
        return {"W": w.estimate(within=(0, 1)), "mask": mask.estimate(within=(0, 1)), "W.less.mask": less}

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter's claims by name; "T1" is a threat model, "T1-4" one of its triggers."""
        if not self.backdoored:
            return {}
        found = self._image_quantities() | self._batch_quantities() | self._network_quantities()
        return defined(found)

    def _image_quantities(self) -> dict[str, Estimate]:
        data, found = self.size.dataset, dict[str, Estimate]()
        for attack, own in _by_attack(self.images):
            for name, value in (("image_auc", "auc"), ("image_rate", "5%")):
                for about, values in own.groupby(["score", "sigma"], dropna=False)[value]:
                    found[f"{name}.{data}.{attack}.{_joined(about)}"] = over_seeds(values)
            found[f"success.{data}.{attack}"] = over_seeds(own.drop_duplicates("network")["success"])
            areas = own.set_index(["network", "score", "sigma"], append=True)["auc"]
            strip, two = (areas.xs(score, level="score").droplevel("sigma") for score in ("STRIP", "two"))
            for sigma in self.size.sigmas:
                w, three = (areas.xs((score, sigma), level=("score", "sigma")) for score in ("W", "three"))
                found[f"image_auc.{data}.{attack}.STRIP.less.W.{sigma:g}"] = over_seeds(strip - w, within=(-1, 1))
                found[f"image_auc.{data}.{attack}.three.less.two.{sigma:g}"] = over_seeds(three - two, within=(-1, 1))
        for attack, own in _by_attack(self.copies):
            of_n = own.set_index(["network", "n"], append=True)["auc"].unstack("n")
            for n in self.size.ns[:-1]:
                less = of_n[n] - of_n[self.size.n]
                found[f"image_auc.{data}.{attack}.{n}.less.{self.size.n}"] = over_seeds(less, within=(-1, 1))
        return found

    def _batch_quantities(self) -> dict[str, Estimate]:
        data, setting = self.size.dataset, ["test", "points", "sigma"]
        clean, triggered = (self.batches[self.batches["carried"] == carried] for carried in ("clean", "trigger"))
        tables = [(f"false_alarms.{data}", clean.set_index("seed"), "alarms", setting)]
        tables += [(f"batch_rate.{data}.{attack}", own, "alarms", setting) for attack, own in _by_attack(triggered)]
        of_score = ["score", "sigma", "points"]
        tables += [(f"half_false_alarms.{data}", self.halves.set_index("seed"), "alarms", of_score)]
        tables += [(f"half_rate.{data}.{attack}", own, "found", of_score) for attack, own in _by_attack(self.halves)]
        return self._half_rates_apart() | {
            f"{name}.{_joined(about)}": over_seeds(alarms)
            for name, table, value, by in tables
            for about, alarms in table.groupby(by, dropna=False)[value]
        }

    def _half_rates_apart(self) -> dict[str, Estimate]:
        """The fraction of batches that the two-sided test finds with STRIP, minus that with W on the same images."""
        found, data = dict[str, Estimate](), self.size.dataset
        for attack, own in _by_attack(self.halves):
            rates = own.assign(found=own["found"].map(np.mean)).set_index(["network", "points"], append=True)
            strip = rates[rates["score"] == "STRIP"]["found"]
            for sigma, of_w in rates[rates["score"] == "W"].groupby("sigma")["found"]:
                for points, apart in (strip - of_w).groupby("points"):
                    found[f"half_rate.{data}.{attack}.STRIP.less.W.{sigma:g}.{points}"] = over_seeds(apart, within=(-1, 1))
        return found

    def _network_quantities(self) -> dict[str, Estimate]:
        data, sigma = self.size.dataset, nearest(self.size.candidate_sigmas)
        found = {f"network_auc.{data}.{name}": own for name, own in self.network_areas(sigma).items()}
        table = self.candidates[self.candidates["sigma"] == sigma]
        backdoored, seeds = table["trigger"].notna().to_numpy(), table["seed"].to_numpy()
        enough = min(len(np.unique(seeds[of])) for of in (backdoored, ~backdoored)) > 1
        for name in ("mask", "W") if enough else ():
            flags = pd.Series(flagged(table[name].to_numpy(), backdoored, seeds), table["seed"])
            for what, of in (("network_rate", backdoored), ("network_false_alarms", ~backdoored)):
                found[f"{what}.{data}.{name}"] = over_seeds(flags[of])
        return found

    def success_table(self) -> str:
        """The success of each backdoor's trigger as a Markdown table."""
        groups = self.images.drop_duplicates("network").groupby(ATTACK, sort=False)["success"]
        lines = [(*attack, len(own), f"{mean_of(own, within=(0, 1)):.1%}") for attack, own in groups]
        return markdown_table([*ATTACK, "networks", "success"], lines)

    def price_table(self) -> str:
        """What each score costs, as a Markdown table: forward passes and the median time, from the records."""
        size, rows = self.size, list[tuple[str, object, str, str]]()
        if not self.backdoored:
            return "(Not yet run.)"
        counts, strips, margins = (
            [of(network, None) for network in self.backdoored] for of in (size.counts_of, size.strip_of, size.margins_of)
        )
        crafted = [spec for spec in self.records if spec.kind == "cleanse"]
        kinds: tuple[tuple[str, int, Sequence[Spec], float], ...] = (
            (f"W, one noise level, {size.n} copies: an image", size.n, counts, len(size.sigmas)),
            ("STRIP: an image", size.strip_of(self.backdoored[0], None).overlays, strips, 1),
            ("logit margin: an image", 1, margins, 1),
            ("Neural Cleanse: a network", 0, crafted, 1 / size.points),
        )
        for name, passes, specs, many in kinds:
            times = pd.DataFrame([dict(self.records[spec].provenance) for spec in specs])
            for device, seconds in times.groupby("device")["seconds"] if len(times) else ():
                rows.append((name, passes or "", f"{seconds.median() / size.points / many:.2g} s", str(device)))
        return markdown_table(["score", "forward passes", "time", "on"], rows, empty="")


load = Defence.load


def _split(w: Floats, points: int) -> Floats:
    """Batches of some points each: (..., B) becomes (..., batches, points); a remainder is not used."""
    batches = w.shape[-1] // points
    return w[..., : batches * points].reshape(*w.shape[:-1], batches, points)


def _by_attack(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each threat model ("T1") and of each of its triggers ("T1-4"), by seed; without clean networks."""
    for by in (ATTACK[:1], ATTACK):
        for attack, own in table.groupby(by, sort=False):
            yield "-".join(f"{part:g}" if isinstance(part, float) else str(part) for part in attack), own.set_index("seed")


def _joined(about: Iterable[Any]) -> str:
    """The end of a quantity's name: its setting, without a noise level where there is none."""
    return ".".join(part if isinstance(part, str) else f"{part:g}" for part in about if part == part)


def _about(network: NetworkSpec) -> tuple[str, int, str | None, int | None]:
    attack = network.attack
    return network.key[:6], network.seed, *((attack.threat_model, attack.trigger) if attack is not None else (None, None))
