"""What else smooths the surface: the numbers of Secs. 3.2.4 and 4 (Figs. 6 and 7)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from bslib.chapters.base import Results
from bslib.chapters.patterns.plan import (
    CONDITIONS,
    Size,
    batch_of,
    carried_of,
    cleanse_of,
    cleanse_specs,
    compared_specs,
    crafted_batch_of,
    detector_specs,
    networks_of,
    pictures_of,
    score_of,
    scores_specs,
    universal_specs,
    universals_of,
)
from bslib.detectors import DETECTORS
from bslib.entropy import entropy
from bslib.markdown import markdown_table
from bslib.specs import CleanseSpec, CountsSpec, DetectorSpec, NetworkSpec, Spec, UniversalSpec
from bslib.statistics import (
    Estimate,
    Estimates,
    area_replicates,
    auc,
    leave_one_out,
    levene,
    share_of_networks,
    success_rate,
)
from bslib.store import Record

__all__ = ["EFFECTIVE", "Patterns", "load", "quantities", "scored"]

Floats = NDArray[np.float64]
#: The success from which a trigger counts as effective.
EFFECTIVE = 0.9
#: The smallest number of networks behind a quantity.
FEWEST_NETWORKS = 3
#: Further noise levels at which the areas are quantities.
COMPARED_SIGMAS = (0.01, 0.25)


@dataclass(frozen=True)
class Patterns(Results[Size]):
    """The numbers of the patterns chapter on one data set. A network counts once the W detector is measured with all triggers."""

    chapter: ClassVar[str] = "patterns"
    described: ClassVar[str] = "clean and backdoored "

    def planned(self) -> list[NetworkSpec]:
        """The planned networks."""
        return networks_of(self.size, self.seed)

    def needed(self, network: NetworkSpec) -> Sequence[Spec]:
        """The network, the success of its own trigger, and the batches of the detector."""
        return detector_specs(self.size, network)

    @cached_property
    def sigmas(self) -> list[float]:
        """The noise levels at which the detector is measured on each of these networks, ascending."""
        batches = list(itertools.product(self.networks, CONDITIONS))
        return sorted(
            sigma
            for sigma in self.size.sigmas
            if batches and all(batch_of(self.size, network, carried, sigma) in self.records for network, carried in batches)
        )

    @property
    def pictures(self) -> Record | None:
        """Images with and without each trigger, or None if the store has none."""
        return self.records.get(pictures_of(self.size, self.seed))

    @property
    def details(self) -> str:
        """The threat model."""
        return f", clean and under {self.size.threat_model}"

    @property
    def missing(self) -> str | None:
        """The message about missing records, unless networks of every kind are complete."""
        kinds = {network.attack.trigger for network in self.networks if network.attack}
        clean = any(network.attack is None for network in self.networks)
        return None if clean and kinds >= {*self.size.triggers} else self.not_yet_run()

    def success(self, network: NetworkSpec) -> float:
        """The attack success rate of a network's own trigger; NaN for a clean network."""
        if network.attack is None:
            return float("nan")
        arrays = self.records[detector_specs(self.size, network)[1]].arrays
        wanted = network.attack.target_labels(arrays["labels"], self.size.classes)
        return success_rate(arrays["predicted"], arrays["labels"], wanted)

    def tests(
        self,
        sigma: float | None = None,
        *,
        batch: int | None = None,
        center: str = "mean",
        points: int | None = None,
        outliers: bool = False,
    ) -> pd.DataFrame:
        """Levene's test of every batch against a clean batch of the same network.

        Parameters
        ----------
        sigma : float, optional
            The first noise level of the size when not given.
        batch : int, optional
            Points in a batch; all when not given. A smaller one gives several batches of different points.
        center, outliers
            As for :func:`bslib.statistics.levene`: "median" with outliers is Brown and Forsythe's test, which is calibrated.
        points : int, optional
            The number of points to use; all when not given.

        Returns
        -------
        DataFrame
            Columns network (its number), carried ("own", "unseen" or "nothing"), trigger, success (of the network's own trigger),
            score and p (:func:`bslib.statistics.levene`).
        """
        return self._tests_once(self.size.sigmas[0] if sigma is None else sigma, batch, center, points, outliers).copy()

    @cached_property
    def _tests_once(self) -> Callable[..., pd.DataFrame]:
        return functools.cache(self._tests)  # many areas use the same tests

    def _tests(self, sigma: float, batch: int | None, center: str, points: int | None, outliers: bool) -> pd.DataFrame:
        rows = []
        for number, network in enumerate(self.networks):
            own = network.attack.trigger if network.attack else None
            clean, success = self._w(batch_of(self.size, network, None, sigma), sigma), self.success(network)
            for trigger in CONDITIONS[1:]:
                tested = self._w(batch_of(self.size, network, trigger, sigma), sigma)
                carried = "nothing" if trigger == 0 else "own" if trigger == own else "unseen"
                for first, second in _batches(clean[:points], tested[:points], batch):
                    found = levene(first, second, center=center, outliers=outliers)
                    rows.append((number, carried, trigger, success, found.score, found.pvalue))
        return pd.DataFrame(rows, columns=["network", "carried", "trigger", "success", "score", "p"])

    def area(
        self,
        sigma: float | None = None,
        *,
        batch: int | None = None,
        center: str = "mean",
        signed: bool = True,
        effective: bool = False,
        own: int | None = None,
        triggers: Sequence[int] | None = None,
    ) -> Estimate:
        """The area under the ROC curve of the W detector. Positives are batches with the network's own trigger.

        Negatives are batches with triggers that the network never saw, of the same networks and of clean ones.

        Parameters
        ----------
        sigma, batch, center
            As for :meth:`tests`.
        signed : bool
            Whether only a smaller variation counts as suspicious, or any difference, as in the paper.
        effective : bool
            Leave out own triggers with a success below 90 %.
        own : int, optional
            Leave out all own triggers but this one.
        triggers : sequence of int, optional
            Of the networks that count, besides clean ones; those of the size's ``triggers`` when not given.
        """
        tests = self.tests(sigma, batch=batch, center=center)
        tests = scored(self.trained_on(tests, triggers), signed=signed, effective=effective)
        if own is not None:
            tests = tests[(tests["carried"] != "own") | (tests["trigger"] == own)]
        return auc(tests["score"], tests["carried"] == "own", tests["network"], strata=self._strata(tests["network"]))

    def trained_on(self, tests: pd.DataFrame, triggers: Sequence[int] | None = None) -> pd.DataFrame:
        """The tests on clean networks and on networks with these triggers; by default the size's ``triggers``."""
        kinds = tests["network"].map(lambda number: 0 if (attack := self.networks[number].attack) is None else attack.trigger)
        return tests[kinds.isin([0, *(self.size.triggers if triggers is None else triggers)])]

    def by_trigger(self) -> pd.DataFrame:
        """How well each trained-in trigger works and is found: success, and the area under the ROC curve at each noise level.

        Returns
        -------
        DataFrame
            A row for each trigger with enough networks and each noise level: trigger, success, sigma and auc, two Estimates.
        """
        rows = []
        for trigger in (*self.size.triggers, *self.size.more_triggers):
            some = [self.success(n) for n in self.networks if n.attack is not None and n.attack.trigger == trigger]
            kinds = sorted({*self.size.triggers, trigger})
            if len(some) >= FEWEST_NETWORKS:
                success = leave_one_out([np.array([value]) for value in some]).estimate(within=(0, 1))
                rows += [(trigger, success, sigma, self.area(sigma, own=trigger, triggers=kinds)) for sigma in self.sigmas]
        return pd.DataFrame(rows, columns=["trigger", "success", "sigma", "auc"])

    def working(self) -> list[int]:
        """The trained-in triggers that meet the setting of the paper's claim: an average success of at least 90 %.

        None as long as a planned trigger has too few networks, since the claim is about all that work.
        """
        table = self.by_trigger()
        if {*table["trigger"]} != {*self.size.triggers, *self.size.more_triggers}:
            return []
        return sorted({row["trigger"] for _, row in table.iterrows() if row["success"].value >= EFFECTIVE})

    def _strata(self, numbers: Iterable[int]) -> list[int]:
        """The trigger of each network, or 0: the networks of each kind are a stratum."""
        return [0 if (attack := self.networks[number].attack) is None else attack.trigger for number in numbers]

    def sensitivity(self) -> pd.DataFrame:
        """The area under the ROC curve for every noise level, batch size, centre, sign and choice of positives."""
        sizes = sorted({batch for batch in (25, 50, 100) if batch < self.size.points} | {self.size.points})
        rows = []
        for sigma, batch, center in itertools.product(self.sigmas, sizes, ("mean", "median")):
            tests = self.trained_on(self.tests(sigma, batch=batch, center=center))
            for signed, effective in itertools.product((True, False), (False, True)):
                some = scored(tests, signed=signed, effective=effective)
                own = some["carried"] == "own"
                if own.any():
                    area = auc(some["score"], own, some["network"], strata=self._strata(some["network"]))
                    rows.append((sigma, batch, center, signed, effective, area))
        return pd.DataFrame(rows, columns=["sigma", "batch", "center", "signed", "effective", "area"])

    def universal(self) -> pd.DataFrame:
        """All universal perturbations: the predictions they change, and Levene's test against clean images.

        Returns
        -------
        DataFrame
            Columns network, bound (255ths), fooled (of the crafting images), fooled held out, classes (the effective number of
            classes that fooled images are predicted as: the exponential of the entropy of their fractions), sigma, score, p, W.
        """
        rows = []
        for number, network in enumerate(self.networks):
            for crafted in universals_of(self.size, network):
                for sigma in self.size.pattern_sigmas:
                    counted = crafted_batch_of(self.size, crafted, sigma)
                    clean_batch = batch_of(self.size, network, None, sigma)
                    if all(spec in self.records for spec in (crafted, counted, clean_batch)):
                        w, clean = self._w(counted, sigma), self._clean(network, sigma)
                        rows.append((number, crafted.bound, *self._fooled(crafted), sigma, *levene(clean, w), float(w.mean())))
        names = ["network", "bound", "fooled", "fooled held out", "classes", "sigma", "score", "p", "W"]
        return pd.DataFrame(rows, columns=names)

    def _fooled(self, crafted: UniversalSpec) -> tuple[float, float, float]:
        """The fractions of crafting images and of other images that are fooled, and the effective number of classes."""
        arrays = self.records[crafted].arrays
        fooled = arrays["with"] != arrays["without"]
        sent = np.bincount(arrays["with"][fooled], minlength=self.size.classes)
        classes = float(np.exp(entropy(sent[None])[0])) if fooled.any() else float("nan")
        return float(arrays["fooling_rates"].max()), float(fooled.mean()), classes

    def universal_areas(self) -> pd.DataFrame:
        """The area under the ROC curve of universal perturbations against clean batches, for each bound and noise level.

        Returns
        -------
        DataFrame
            Columns bound, sigma, auc, fooled (held out) and classes, the last three Estimates over networks.
        """
        rows = []
        every = self.universal()
        for (bound, sigma), own in every[every["sigma"].isin(self.sigmas)].groupby(["bound", "sigma"]):
            nothing = self.tests(cast(float, sigma), points=self.size.pattern_points)
            nothing = nothing[(nothing["carried"] == "nothing") & nothing["network"].isin(own["network"])]
            both = pd.concat([own.assign(carried="universal"), nothing])
            area = auc(both["score"], both["carried"] == "universal", both["network"], strata=self._strata(both["network"]))
            somewhere = own.dropna(subset="classes")  # undefined where no image is fooled
            classes = _over_networks(somewhere, somewhere["classes"])
            rows.append((bound, sigma, area, _over_networks(own, own["fooled held out"], share=True), classes))
        return pd.DataFrame(rows, columns=["bound", "sigma", "auc", "fooled", "classes"])

    def candidates(self) -> pd.DataFrame:
        """All candidates of Neural Cleanse: norm, success, and Levene's test against clean images.

        Returns
        -------
        DataFrame
            Columns network, backdoored, class, own (whether it is the class of the network's backdoor), norm, index (of the
            network), success (on the images that made it), success on test images and on training images, sigma, score and p of
            the paper's test, calibrated score and p of Brown and Forsythe's, and W.
        """
        rows = []
        for number, network in enumerate(self.networks):
            crafted = cleanse_of(self.size, network)
            target = network.attack.target if network.attack is not None else None
            for sigma in self.size.pattern_sigmas:
                counted = crafted_batch_of(self.size, crafted, sigma)
                if any(spec not in self.records for spec in (crafted, counted, batch_of(self.size, network, None, sigma))):
                    continue
                record, clean = self.records[crafted], self._clean(network, sigma)
                norms = record.arrays["masks"].sum((1, 2, 3))
                for k, w in enumerate(self._w(counted, sigma).reshape(len(norms), -1)):
                    about = (number, target is not None, k, target == k, float(norms[k]), record.result["anomaly_index"])
                    success = (float(record.arrays[f"success{part}"][k]) for part in PARTS)
                    calibrated = levene(clean, w, center="median", outliers=True)
                    rows.append((*about, *success, sigma, *levene(clean, w), *calibrated, float(w.mean())))
        names = ["network", "backdoored", "class", "own", "norm", "index", *(f"success{part}" for part in PARTS)]
        return pd.DataFrame(rows, columns=[*names, "sigma", "score", "p", "calibrated score", "calibrated p", "W"])

    def comparison_table(self) -> str:
        """Neural Cleanse on one network with few and with the authors' number of images per step, as a Markdown table."""
        specs = compared_specs(self.size, self.seed)
        if not specs or any(spec not in self.records for spec in specs):
            return "(Not yet run.)"
        network = specs[0].network
        assert network.attack is not None and network.attack.target is not None
        rows, norms = [], []
        for spec in specs:
            record = self.records[spec]
            norms.append(record.arrays["masks"].sum((1, 2, 3)))
            others = np.delete(norms[-1], network.attack.target)
            least = [f"at least {record.arrays[name].min():.1%}" for name in ("success_test", "success_train")]
            sizes = f"{norms[-1][network.attack.target]:.1f}", f"{others.min():.1f} to {others.max():.1f}"
            rows.append((spec.samples, *sizes, f"{record.result['anomaly_index']:.1f}", *least))
        head = (
            "images a step", "mask of the backdoor's class", "the others, smallest to largest", "anomaly index",
            "success on test images", "on training images",
        )  # fmt: skip
        rank = float(spearmanr(*norms).statistic)
        return f"{markdown_table(head, rows)}\n\nSpearman's correlation of the sizes of the ten masks is {rank:.2f}."

    def others(self) -> pd.DataFrame:
        """The scores of W and of other detectors for the same patterns on the same networks; high scores are suspicious.

        Returns
        -------
        DataFrame
            Columns network; carried: "own", "unseen", "universal", or for the candidate of Neural Cleanse with the smallest mask
            "reversed, clean" on a clean network and "reversed, backdoored" on another, where it may be the trigger; "W", Levene's
            score; and for each other detector how much lower its score is than on clean images, or its negative score, NaN where
            it lacks records of a network.
        """
        rows = []
        for number, network in enumerate(self.networks):
            crafted = [*universal_specs(self.size, network), *cleanse_specs(self.size, network)]
            measured = [name for name in DETECTORS if self._has_scores(network, name)]
            if not measured or any(spec not in self.records for spec in crafted):
                continue
            smallest = int(self.records[cleanse_of(self.size, network)].arrays["masks"].sum((1, 2, 3)).argmin())
            for what in carried_of(self.size, network):
                spec = score_of(self.size, network, measured[0], **what)
                carried, at = _carried(spec, network), smallest if isinstance(spec.pattern, CleanseSpec) else 0
                found = {DETECTORS[name].label: self._suspicion(network, name, at, what) for name in measured}
                rows.append({"network": number, "carried": carried, "W": self._score_of(spec, at)} | found)
        return pd.DataFrame(rows, columns=["network", "carried", "W", *(detector.label for detector in DETECTORS.values())])

    def _has_scores(self, network: NetworkSpec, detector: str) -> bool:
        own = [spec for spec in scores_specs(self.size, network) if isinstance(spec, DetectorSpec) and spec.detector == detector]
        return all(spec in self.records for spec in own)

    def _suspicion(self, network: NetworkSpec, detector: str, at: int, what: Mapping[str, Any]) -> float:
        score = float(self.records[score_of(self.size, network, detector, **what)].arrays["scores"][at].mean())
        if not DETECTORS[detector].against_clean:
            return -score
        return float(self.records[score_of(self.size, network, detector)].arrays["scores"].mean()) - score

    def detectors(self) -> pd.DataFrame:
        """The area under the ROC curve of each detector for own triggers, universal perturbations and candidates.

        Negatives are batches with triggers that the network was not trained on.

        Returns
        -------
        DataFrame
            A row for each detector, a column for each pattern, of Estimates.
        """
        scores, table = self.others(), {}
        names = [name for name in scores.columns[2:] if scores[name].notna().any()]
        for carried in ("own", "universal", "reversed, clean", "reversed, backdoored"):
            some = scores[scores["carried"].isin([carried, "unseen"])]
            if set(some["carried"]) == {carried, "unseen"}:
                own = {name: some[some[name].notna()] for name in names}
                table[carried] = {
                    name: auc(of[name], of["carried"] == carried, of["network"], strata=self._strata(of["network"]))
                    for name, of in own.items()
                }
        return pd.DataFrame(table)

    def _better_than_w(self) -> dict[str, Estimate]:
        """The area of each other detector for own triggers minus that of W, on the same batches."""
        scores = self.others()
        some, found = scores[scores["carried"].isin(["own", "unseen"])], {}
        for name in some.columns[3:] if set(some["carried"]) == {"own", "unseen"} else ():
            both = some[some[name].notna()]
            if len(both):
                own, strata = both["carried"] == "own", self._strata(both["network"])
                area, of_w = (area_replicates(both[of], own, both["network"], strata=strata) for of in (name, "W"))
                difference = area._replace(value=area.value - of_w.value, without=area.without - of_w.without)
                found[name] = difference.estimate(within=(-1, 1))
        return found

    def success_table(self) -> str:
        """The success of the networks' own triggers as a Markdown table."""
        rows = []
        for trigger in (*self.size.triggers, *self.size.more_triggers):
            own = [self.success(n) for n in self.networks if n.attack is not None and n.attack.trigger == trigger]
            ends = " to ".join(f"{end:.1%}" for end in sorted({min(own), max(own)})) if own else "(not yet run)"
            rows.append((trigger, len(own), ends))
        return markdown_table(["own trigger", "networks", "success, lowest to highest"], rows)

    def cleanse_table(self) -> str:
        """The results of Neural Cleanse on each network as a Markdown table."""
        rows, table = [], self.candidates()
        for number, own in table[table["sigma"] == self.size.pattern_sigmas[0]].groupby("network"):
            attack = self.networks[cast(int, number)].attack
            name = "clean" if attack is None else f"trigger {attack.trigger}, class {attack.target}"
            smallest = own.sort_values("norm").iloc[0]
            target = "" if attack is None else f"{own.loc[own['own'], 'norm'].iloc[0]:.1f}"
            sizes = f"{smallest['norm']:.1f}, class {smallest['class']}", target, f"{own['norm'].median():.1f}"
            rows.append((name, f"{own['index'].iloc[0]:.1f}", *sizes, f"at least {own['success_train'].min():.1%}"))
        head = ("network", "anomaly index", "smallest mask", "the backdoor's class", "median", "success on training images")
        return markdown_table(head, rows)

    def detectors_table(self) -> str:
        """:meth:`detectors` as a Markdown table."""
        table = self.detectors()
        rows = [(name, *(f"{area:.2f}" for area in row)) for name, row in table.iterrows()]
        return markdown_table(["area under the ROC curve", *table.columns], rows)

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter's claims by name, where there are enough networks."""
        data, sigma, found = self.size.dataset, self.size.sigmas[0], {}
        if self.missing is None:
            found[f"auc.{data}"] = self.area()
            found |= self._detector_quantities()
        areas = self.universal_areas()
        for _, row in areas[areas["sigma"] == sigma].iterrows():
            of_bound = {name: row[name] for name in ("auc", "fooled", "classes")}
            found |= {f"{name}_universal_at.{data}.{row['bound']:g}": value for name, value in of_bound.items()}
            if row["bound"] == self.size.bounds[0]:
                found |= {f"{name}_universal.{data}": value for name, value in of_bound.items()}
        candidates = self.candidates()
        for level, some in candidates.groupby("sigma"):
            found[f"candidates_found_at.{data}.{level:g}"] = _over_networks(some, (some["p"] < 0.05) & (some["score"] > 0))
        candidates = candidates[candidates["sigma"] == sigma]
        if len(candidates):
            clean = candidates[~candidates["backdoored"]]
            less = clean["W"] - [self._clean(self.networks[k], sigma).mean() for k in clean["network"]]
            found[f"candidates_found.{data}"] = _over_networks(candidates, (candidates["p"] < 0.05) & (candidates["score"] > 0))
            calibrated = (candidates["calibrated p"] < 0.05) & (candidates["calibrated score"] > 0)
            found[f"candidates_found_calibrated.{data}"] = _over_networks(candidates, calibrated)
            log_p = -candidates["score"].abs() / np.log(10)
            found[f"candidates_p_varies.{data}"] = _over_networks(
                candidates, (log_p - log_p.groupby(candidates["network"]).transform("median")).abs()
            )
            found[f"candidates_low_p.{data}"] = _over_networks(candidates, (candidates["p"] < 0.001) & (candidates["score"] > 0))
            found[f"candidates_always_train.{data}"] = _over_networks(candidates, candidates["success_train"] >= 0.99)
            found[f"candidates_success_on_clean.{data}"] = _over_networks(clean, clean["success_test"], share=True)
            found[f"candidates_less_clean_on_clean.{data}"] = _over_networks(clean, less)
            found |= self._backdoor_against_patch(clean)
        table = self.detectors()
        found |= {f"detector_auc.{data}.{name}.{carried}": table[carried][name] for carried in table for name in table.index}
        found |= {f"detector_auc.{data}.{name}.less.W.own": estimate for name, estimate in self._better_than_w().items()}
        enough = {name: estimate for name, estimate in found.items() if estimate.networks >= FEWEST_NETWORKS}
        return {name: estimate for name, estimate in enough.items() if np.isfinite(estimate.value)}

    def _backdoor_against_patch(self, patches: pd.DataFrame) -> dict[str, Estimate]:
        """The area of Levene's score for batches with an own trigger against batches with a patch for a clean network."""
        own = self.trained_on(self.tests(points=self.size.pattern_points)).query("carried == 'own'")
        both = pd.concat([own.assign(backdoor=True), patches.assign(backdoor=False)])
        if own.empty or patches.empty:
            return {}
        area = auc(both["score"], both["backdoor"], both["network"], strata=self._strata(both["network"]))
        return {f"backdoor_against_patch.{self.size.dataset}": area}

    def _detector_quantities(self) -> dict[str, Estimate]:
        """Quantities of the W detector, and of the effect of own triggers on mean W."""
        data, tests = self.size.dataset, self.trained_on(self.tests())
        nothing, unseen = (tests[tests["carried"] == carried] for carried in ("nothing", "unseen"))
        found = {
            f"clean_told_apart.{data}": _over_networks(nothing, nothing["p"] < 0.05),
            f"clean_told_apart_calibrated.{data}": self._told_apart("nothing"),
            f"unseen_vary_more.{data}": _over_networks(unseen, (unseen["p"] < 0.05) & (unseen["score"] < 0)),
        }
        compared = {*COMPARED_SIGMAS} & {*self.sigmas}
        found |= {f"auc_at.{data}.{sigma:g}": self.area(sigma) for sigma in compared}
        own = tests[tests["carried"] == "own"]
        found[f"own_success.{data}"] = _over_networks(own, own["success"], share=True)
        if working := self.working():
            found[f"auc_working.{data}"] = self.area(triggers=working)
            found |= {f"auc_working_at.{data}.{sigma:g}": self.area(sigma, triggers=working) for sigma in compared}
        all_own = self.tests().query("carried == 'own'")
        for trigger in (*self.size.triggers, *self.size.more_triggers):
            some, kinds = all_own[all_own["trigger"] == trigger], sorted({*self.size.triggers, trigger})
            if len(some) >= FEWEST_NETWORKS:
                found[f"auc_own.{data}.{trigger}"] = self.area(own=trigger, triggers=kinds)
                areas = {sigma: self.area(sigma, own=trigger, triggers=kinds) for sigma in compared}
                found |= {f"auc_own_at.{data}.{sigma:g}.{trigger}": area for sigma, area in areas.items()}
            networks = [self.networks[k] for k in some["network"]]
            means = [
                [self._w(batch_of(self.size, n, carried), self.size.sigmas[0]).mean() for carried in (n.attack.trigger, None)]
                for n in networks
                if n.attack is not None
            ]
            less = pd.Series([with_it - without for with_it, without in means], index=some.index)
            found[f"own_less_clean.{data}.{trigger}"] = _over_networks(some, less)
            found[f"own_success.{data}.{trigger}"] = _over_networks(some, some["success"], share=True)
        return found

    def _told_apart(self, carried: str) -> Estimate:
        """The fraction of batches that Brown and Forsythe's test tells from clean ones at 5 %, outliers included."""
        tests = self.trained_on(self.tests(center="median", outliers=True))
        some = tests[tests["carried"] == carried]
        return _over_networks(some, some["p"] < 0.05)

    def _score_of(self, spec: DetectorSpec, at: int) -> float:
        """Levene's score of the batch that carries what ``spec`` carries, with ``pattern_points`` points."""
        sigma = self.size.sigmas[0]
        if spec.pattern is None:
            tested = self._w(batch_of(self.size, spec.network, spec.trigger), sigma)[: self.size.pattern_points]
        else:
            w = self._w(crafted_batch_of(self.size, spec.pattern), sigma)
            tested = w[at * self.size.pattern_points : (at + 1) * self.size.pattern_points]
        return levene(self._clean(spec.network, sigma), tested).score

    @cached_property
    def _w(self) -> Callable[[CountsSpec, float], Floats]:
        return functools.cache(self._w_of)

    def _w_of(self, spec: CountsSpec, sigma: float) -> Floats:
        """W of a batch at one of its noise levels, shape (B,)."""
        return entropy(self.records[spec].arrays["counts"][spec.sigmas.index(sigma), 0])

    def _clean(self, network: NetworkSpec, sigma: float) -> Floats:
        """W of ``pattern_points`` clean points."""
        return self._w(batch_of(self.size, network, None, sigma), sigma)[: self.size.pattern_points]


PARTS = ("", "_test", "_train")


load = Patterns.load


def quantities(results: Mapping[str, Patterns]) -> Estimates:
    """The quantities of every data set."""
    return Estimates.of(part.quantities() for part in results.values())


def scored(tests: pd.DataFrame, *, signed: bool = True, effective: bool = False) -> pd.DataFrame:
    """The tests and scores behind an ROC curve; see :meth:`Patterns.area`."""
    kept = tests[(tests["carried"] != "own") | (tests["success"] >= EFFECTIVE)] if effective else tests
    return kept if signed else kept.assign(score=kept["score"].abs())


def _batches(clean: Floats, tested: Floats, size: int | None) -> Iterator[tuple[Floats, Floats]]:
    """Split two batches into pairs of smaller batches of one size. A remainder is not used."""
    size = size or len(clean)
    for start in range(0, len(clean) - size + 1, size):
        yield clean[start : start + size], tested[start : start + size]


def _carried(spec: DetectorSpec, network: NetworkSpec) -> str:
    if spec.pattern is not None:
        if isinstance(spec.pattern, UniversalSpec):
            return "universal"
        return "reversed, clean" if network.attack is None else "reversed, backdoored"
    return "own" if network.attack is not None and network.attack.trigger == spec.trigger else "unseen"


def _over_networks(table: pd.DataFrame, values: pd.Series[Any], *, share: bool = False) -> Estimate:
    """The mean over networks of each network's mean value, with its interval; NaN without values.

    ``share`` says that the values are fractions, so the interval stays in [0, 1]. For booleans, the fraction that is true.
    """
    if table.empty:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    of_each = [own.to_numpy() for _, own in values.groupby(table["network"])]
    if values.dtype == bool:
        return share_of_networks(of_each)
    within = (0, 1) if share else (-np.inf, np.inf)
    return leave_one_out(of_each).estimate(within=within)
