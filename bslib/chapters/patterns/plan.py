"""What the chapter on patterns that smooth computes (Secs. 3.2.4 and 4, Figs. 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bslib.chapters import sizes_of
from bslib.chapters.base import TrainedSize
from bslib.chapters.surface.plan import pictures_of
from bslib.detectors import DETECTORS
from bslib.drawings import PAPERS
from bslib.specs import CleanseSpec, CountsSpec, DetectorSpec, NetworkSpec, PredictionsSpec, Spec, UniversalSpec

#: What the images of a batch carry: nothing (None), nothing again (0), or one of the paper's triggers. See :func:`batch_of`.
CONDITIONS = (None, 0, *PAPERS)


@dataclass(frozen=True, kw_only=True)
class Size(TrainedSize):
    """The size of the patterns chapter on one data set (Figs. 6 and 7).

    Parameters
    ----------
    networks : int
        So many clean networks, and so many with each trigger.
    threat_model : {"T1", "T3"}
    triggers : tuple of int
        The patterns that networks are trained on; W is measured around all six.
    further : tuple of int
        So many further networks with each of ``triggers``, whose seeds follow. None when empty.
    only_crafted : int
        So many networks with the last of ``triggers`` for crafted patterns alone, whose seeds follow those of all the others.
    more_triggers : tuple of int
        The patterns of further networks, which are used only for the W detector: no patterns are crafted for them.
    test_images : int, optional
        Images that the success of a network's own trigger is measured on; the whole test set when not given.
    points : int
        Test images in a batch of the detector.
    sigmas, n
        Noise levels, the one that the claims are held to first, and noisy copies.
    bounds : tuple of int
        Sup norms of the universal perturbations, in 255ths; the first is the usual one.
    more_bounds : tuple of int
        Further bounds, which take longer.
    more_bounds_networks : int, optional
        So many networks of each kind get perturbations of these; all when not given.
    crafted_on : int
        Test images that a universal perturbation or Neural Cleanse's candidates are made from.
    passes : int
        At most so many passes of the universal perturbation.
    samples, steps : int
        Images that a step of Neural Cleanse sees, and at most so many steps.
    compared : int
        Neural Cleanse is repeated on one network with this many images per step; 0 skips this.
    checked : int
        Test and training images that its candidates' success is measured on.
    pattern_points : int
        Test images in a batch with a crafted pattern.
    pattern_sigmas : tuple of float
        Noise levels at which these are measured; each one of ``sigmas``.
    scored, overlays : int
        Images that other detectors are asked about, and the clean images that STRIP lays on each.
    """

    threat_model: str
    triggers: tuple[int, ...] = (1, 3, 4)
    further: tuple[int, ...] = ()
    only_crafted: int = 0
    more_triggers: tuple[int, ...] = ()
    test_images: int | None = None
    sigmas: tuple[float, ...] = (0.1, 0.05, 0.25, 0.5, 0.01)
    n: int = 250
    bounds: tuple[int, ...] = (10,)
    more_bounds: tuple[int, ...] = (4, 8, 16, 26)
    more_bounds_networks: int | None = None
    crafted_on: int = 500
    passes: int = 10
    samples: int = 64
    compared: int = 1000  # the authors'
    steps: int = 1000
    checked: int = 5000
    pattern_points: int
    pattern_sigmas: tuple[float, ...] = (0.1, 0.05, 0.25)
    scored: int = 100
    overlays: int = 100

    @property
    def trained(self) -> tuple[int, ...]:
        """The triggers that networks are trained on."""
        return (*self.triggers, *self.more_triggers)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern_sigmas[:1] != self.sigmas[:1] or not {*self.pattern_sigmas} <= {*self.sigmas}:
            raise ValueError(f"pattern_sigmas must begin with the first of sigmas {self.sigmas}, got {self.pattern_sigmas}")
        if not {*self.trained} <= {*PAPERS}:
            raise ValueError(f"the patterns chapter measures {PAPERS}, got {self.triggers} and {self.more_triggers}")
        if {*self.triggers} & {*self.more_triggers}:
            raise ValueError(f"more_triggers {self.more_triggers} must not be among triggers {self.triggers}")
        if len(self.further) not in (0, len(self.triggers)):
            raise ValueError(f"further {self.further} must have a number for each of triggers {self.triggers}, or none")


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter. Those that its claims need come before other noise levels and bounds.

    Triggers come before crafted patterns, and the first network of each kind before the second, so that claims are judged early.

    >>> len(plan("paper"))
    2959
    """
    specs: list[Spec] = []
    for size in sizes_of("patterns", profile):
        networks = sorted(networks_of(size, seed), key=lambda network: network.seed)
        crafted = crafted_networks_of(size, seed)
        specs += [pictures_of(size, seed)]
        specs += [spec for network in networks for spec in specs_of(size, network)]
        specs += [spec for network in crafted for spec in universal_specs(size, network)]
        specs += [spec for network in crafted for spec in cleanse_specs(size, network)]
        specs += [spec for network in only_crafted_networks_of(size, seed) for spec in only_crafted_specs(size, network)]
        specs += [spec for network in only_crafted_networks_of(size, seed) for spec in universal_specs(size, network)]
        specs += [spec for network in crafted for spec in scores_specs(size, network)]
        specs += [spec for network in networks for spec in level_specs(size, network)]
        specs += [spec for network in crafted for spec in further_specs(size, network)]
        specs += [spec for network in crafted for spec in more_bounds_specs(size, network, seed)]
        specs += compared_specs(size, seed)[1:]
    return specs


def networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """Clean networks, and the same number with each trigger, or more."""
    further = dict(zip(size.triggers, size.further, strict=False))
    return [
        size.attacked_network(run, size.threat_model, trigger) if trigger else size.network_spec(run)
        for trigger in (None, *size.trained)
        for run in range(seed, seed + size.networks + further.get(trigger or 0, 0))
    ]


def trained_trigger(network: NetworkSpec) -> int:
    """The trigger that a network was trained on; 0 for a clean network."""
    return 0 if network.attack is None else network.attack.trigger


def crafted_networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The networks that patterns are crafted for, and that the other detectors score, sorted by seed."""
    own = (network for network in networks_of(size, seed) if trained_trigger(network) in (0, *size.triggers))
    return sorted(own, key=lambda network: network.seed)


def only_crafted_networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """Further networks, which W is measured on only around crafted patterns and clean images."""
    first = seed + size.networks + max(size.further, default=0)
    return [size.attacked_network(run, size.threat_model, size.triggers[-1]) for run in range(first, first + size.only_crafted)]


def only_crafted_specs(size: Size, network: NetworkSpec) -> list[Spec]:
    """Such a network, its clean batch, the candidates of Neural Cleanse, and class counts of a batch with each."""
    return [network, batch_of(size, network, None), *cleanse_specs(size, network)]


def specs_of(size: Size, network: NetworkSpec) -> list[Spec]:
    """The network, predictions with its own trigger, and class counts of two clean batches and of one batch for each trigger."""
    specs: list[Spec] = [network]
    if network.attack is not None:
        specs.append(PredictionsSpec(network=network, trigger=network.attack.trigger, images=size.test_images))
    return specs + [batch_of(size, network, trigger) for trigger in CONDITIONS]


def batch_of(size: Size, network: NetworkSpec, trigger: int | None, sigma: float | None = None) -> CountsSpec:
    """Class counts of one batch; every batch has images of its own. Trigger None is the clean reference batch, 0 a second one.

    The spec holds the first noise level alone, or all the others, depending on ``sigma``.
    """
    return CountsSpec(
        network=network,
        points=size.points,
        sigmas=_level_of(size.sigmas, sigma),
        ns=(size.n,),
        seed=10 * network.seed + (0 if trigger is None else 1 + trigger),
        trigger=trigger or None,
        held_out=True,
    )


def universals_of(size: Size, network: NetworkSpec) -> list[UniversalSpec]:
    """The universal perturbations of a network: of the first bounds, then of the further ones, which need not be planned."""
    return [
        UniversalSpec(network=network, images=size.crafted_on, bound=bound, passes=size.passes, batch_size=10, seed=network.seed)
        for bound in (*size.bounds, *size.more_bounds)
    ]


def universal_specs(size: Size, network: NetworkSpec) -> list[Spec]:
    """The universal perturbations of the first bounds, and class counts of a batch with each."""
    first = universals_of(size, network)[: len(size.bounds)]
    return [spec for crafted in first for spec in (crafted, crafted_batch_of(size, crafted))]


def cleanse_of(size: Size, network: NetworkSpec, samples: int | None = None) -> CleanseSpec:
    """Neural Cleanse on a network, optionally with another number of images per step."""
    how = {"images": size.crafted_on, "samples": samples or size.samples, "steps": size.steps, "checked": size.checked}
    return CleanseSpec(network=network, seed=network.seed, **how)


def cleanse_specs(size: Size, network: NetworkSpec) -> list[Spec]:
    """A trigger candidate for each class, and class counts of a batch with each."""
    crafted = cleanse_of(size, network)
    return [crafted, crafted_batch_of(size, crafted)]


def crafted_batch_of(size: Size, pattern: UniversalSpec | CleanseSpec, sigma: float | None = None) -> CountsSpec:
    """Class counts of images with a crafted pattern that was crafted on other images; ``sigma`` as for :func:`batch_of`."""
    return CountsSpec(
        network=pattern.network,
        points=size.pattern_points,
        sigmas=_level_of(size.pattern_sigmas, sigma),
        ns=(size.n,),
        seed=10 * pattern.network.seed + 8,
        held_out=True,
        pattern=pattern,
    )


def score_of(size: Size, network: NetworkSpec, detector: str, **carried: Any) -> DetectorSpec:
    """The scores of a detector for images that carry a trigger, a crafted pattern or nothing."""
    how: dict[str, Any] = {"points": size.scored, "overlays": size.overlays, "seed": network.seed}
    return DetectorSpec(detector=detector, network=network, **how, **carried)


def carried_of(size: Size, network: NetworkSpec) -> list[dict[str, Any]]:
    """What the images carry in the batches on which detectors are compared."""
    carried: list[dict[str, Any]] = [{"trigger": trigger} for trigger in PAPERS]
    return [*carried, {"pattern": universals_of(size, network)[0]}, {"pattern": cleanse_of(size, network)}]


def scores_specs(size: Size, network: NetworkSpec) -> list[DetectorSpec]:
    """The scores of every detector on these batches, and on a clean one for detectors that compare with clean images."""
    clean = [score_of(size, network, name) for name, detector in DETECTORS.items() if detector.against_clean]
    return clean + [score_of(size, network, name, **carried) for carried in carried_of(size, network) for name in DETECTORS]


def level_specs(size: Size, network: NetworkSpec) -> list[Spec]:
    """The batches of the W detector at the other noise levels."""
    return [batch_of(size, network, trigger, further[0]) for trigger in CONDITIONS] if (further := size.sigmas[1:]) else []


def further_specs(size: Size, network: NetworkSpec) -> list[Spec]:
    """Batches with the same crafted patterns at the other noise levels."""
    patterns: list[UniversalSpec | CleanseSpec] = [*universals_of(size, network)[: len(size.bounds)], cleanse_of(size, network)]
    return [crafted_batch_of(size, crafted, further) for further in size.pattern_sigmas[1:2] for crafted in patterns]


def more_bounds_specs(size: Size, network: NetworkSpec, seed: int) -> list[Spec]:
    """Universal perturbations of the other bounds and batches with them, for the networks that get them."""
    if size.more_bounds_networks is not None and network.seed >= seed + size.more_bounds_networks:
        return []
    levels = (None, *size.pattern_sigmas[1:2])
    return [
        spec
        for crafted in universals_of(size, network)[len(size.bounds) :]
        for spec in (crafted, *(crafted_batch_of(size, crafted, sigma) for sigma in levels))
    ]


def compared_specs(size: Size, seed: int) -> list[CleanseSpec]:
    """Neural Cleanse on the first backdoored network, with the usual and with the authors' number of images per step."""
    network = next((network for network in networks_of(size, seed) if network.attack is not None), None)
    if not size.compared or network is None:
        return []
    return [cleanse_of(size, network), cleanse_of(size, network, size.compared)]


def _level_of(sigmas: tuple[float, ...], sigma: float | None) -> tuple[float, ...]:
    """The noise levels that are measured together with ``sigma``: the first alone, or all the others."""
    return sigmas[:1] if sigma in (None, sigmas[0]) else sigmas[1:]
