"""Profiles: how much of everything, as data. ``smoke`` runs anywhere in minutes, ``paper`` has the paper's sizes."""

from __future__ import annotations

from dataclasses import dataclass

from bslib.specs import AttackSpec, NetworkSpec
from bslib.store import PUBLISHED
from bslib.threat_models import threat_model_named

__all__ = [
    "PROFILES",
    "CorrelationSize",
    "ParametersSize",
    "PatternsSize",
    "Profile",
    "SurfaceSize",
    "ToySize",
    "TrainedSize",
    "profile_named",
]

SIGMAS = (0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0)
NS = (10, 25, 50, 100, 250, 500, 1000)
#: Epochs of a ResNet-18 on CIFAR-10 where the paper underfits it to about 60 % clean accuracy: two reached 78 %.
UNDERFITTED = 1


@dataclass(frozen=True, kw_only=True)
class TrainedSize:
    """The networks that a part of a chapter trains.

    Parameters
    ----------
    dataset, network : str
    networks : int
        How many (for each trigger, where there are several), with seeds of their own.
    epochs : int
    train_size : int, optional
        Training images; all when not given.
    learning_rate : float
    augment : bool
    classes : int
        Classes of the data set.
    """

    dataset: str
    network: str
    networks: int
    epochs: int
    train_size: int | None = None
    learning_rate: float = 0.05
    augment: bool = False
    classes: int = 10

    def attacked_network(self, seed: int, threat_model: str, trigger: int) -> NetworkSpec:
        """One of these networks, backdoored; the target classes take turns with the seed.

        >>> PROFILES["paper"].surface[0].attacked_network(13, "T1", trigger=1).attack.target
        3
        """
        target = threat_model_named(threat_model).target_of_run(seed, self.classes)
        return self.network_spec(seed, AttackSpec(threat_model=threat_model, trigger=trigger, target=target))

    def network_spec(self, seed: int, attack: AttackSpec | None = None) -> NetworkSpec:
        """One of these networks, clean or attacked.

        >>> PROFILES["paper"].parameters[0].network_spec(seed=3).seed
        3
        """
        return NetworkSpec(
            dataset=self.dataset,
            network=self.network,
            seed=seed,
            epochs=self.epochs,
            train_size=self.train_size,
            learning_rate=self.learning_rate,
            augment=self.augment,
            attack=attack,
        )


@dataclass(frozen=True, kw_only=True)
class ParametersSize(TrainedSize):
    """One data set's half of the Parameters chapter (one row of Fig. 2).

    Parameters
    ----------
    points : int
        Test images in the batch.
    ns, n_sigmas
        The sweep over n: the numbers of noisy copies, and the noise levels at which it is made.
    sigmas, n
        The sweep over sigma: the noise levels, and the number of noisy copies.
    """

    points: int
    ns: tuple[int, ...] = NS
    n_sigmas: tuple[float, ...] = (0.1, 0.25)
    sigmas: tuple[float, ...] = SIGMAS
    n: int = 250


@dataclass(frozen=True, kw_only=True)
class SurfaceSize(TrainedSize):
    """One data set's part of the chapter on the surface effect (Fig. 4).

    Parameters
    ----------
    active, inactive : int
        The pattern that the networks are trained on with T1, and one that they never see.
    test_images : int, optional
        Images that accuracies and success are measured on; the whole test set when not given.
    points : int
        Test images around which W is measured, clean and with either trigger.
    batch : int
        Points in one of the paper's box plots.
    sigmas, n
        Noise levels and noisy copies.
    """

    test_images: int | None = None
    active: int = 1
    inactive: int = 4
    points: int
    batch: int
    sigmas: tuple[float, ...] = SIGMAS
    n: int = 250


@dataclass(frozen=True, kw_only=True)
class CorrelationSize(TrainedSize):
    """One data set's part of the chapter on success and W (one plot of Fig. 5).

    Parameters
    ----------
    threat_model : {"T1", "T2", "T3"}
        Under T2 each class of a network gives a pair of success and mean W, under the others each network.
    triggers : tuple of int
        The patterns that networks are trained on.
    test_images : int, optional
        Images that success is measured on; the whole test set when not given.
    points : int
        Triggered test images behind a pair.
    clean_points : int
        Clean test images of each class or network.
    sigmas, ns
        Noise levels, the one that the claims are held to first, and numbers of noisy copies, the paper's last.
    """

    threat_model: str
    test_images: int | None = None
    triggers: tuple[int, ...] = (3, 5)
    points: int
    clean_points: int
    sigmas: tuple[float, ...] = (0.1, 0.05, 0.25, 0.01, 0.5, 0.2, 0.15, 1.0, 0.75, 0.005)
    ns: tuple[int, ...] = (50, 250)


@dataclass(frozen=True, kw_only=True)
class PatternsSize(TrainedSize):
    """One data set's part of the chapter on patterns that smooth (Figs. 6 and 7).

    Parameters
    ----------
    networks : int
        So many clean networks, and so many with each trigger.
    detector_only : int
        So many more of each kind that only the detector is tried on, since crafting patterns takes far longer.
    threat_model : {"T1", "T3"}
    triggers : tuple of int
        The patterns that networks are trained on; W is measured around all six.
    test_images : int, optional
        Images that the success of a network's own trigger is measured on; the whole test set when not given.
    points : int
        Test images in a batch of the detector.
    sigmas, n
        Noise levels, the one that the claims are held to first, and noisy copies.
    bounds : tuple of int
        Sup norms of the universal perturbations, in 255ths, the one that the claims are held to first.
    crafted_on : int
        Test images that a universal perturbation or Neural Cleanse's candidates are made from.
    passes : int
        At most so many passes of the universal perturbation.
    samples, steps : int
        Images that a step of Neural Cleanse sees, and at most so many steps.
    compared : int, optional
        On one network it is run with so many images a step as well; on none when None.
    checked : int
        Test and training images that its candidates' success is measured on.
    pattern_points : int
        Test images in a batch with a crafted pattern.
    pattern_sigmas : tuple of float
        Noise levels at which these are measured; each one of ``sigmas``.
    scored, overlays : int
        Images that other detectors are asked about, and the clean images that STRIP lays on each.
    """

    detector_only: int = 0
    threat_model: str
    triggers: tuple[int, ...] = (1, 3, 4)
    test_images: int | None = None
    points: int
    sigmas: tuple[float, ...] = (0.1, 0.05, 0.25, 0.5, 0.01)
    n: int = 250
    bounds: tuple[int, ...] = (10, 4, 8, 16, 26)
    crafted_on: int = 500
    passes: int = 10
    samples: int = 64
    compared: int | None = 1000  # the authors'
    steps: int = 1000
    checked: int = 5000
    pattern_points: int
    pattern_sigmas: tuple[float, ...] = (0.1, 0.05, 0.25)
    scored: int = 100
    overlays: int = 100


@dataclass(frozen=True, kw_only=True)
class ToySize:
    """Fig. 1: where in the plane W is measured, the noise level and the noisy copies."""

    points: tuple[tuple[float, float], ...] = ((-0.55, -0.65), (0.45, 0.2), (0.0, 0.0), (-0.5, 0.55))
    sigma: float = 0.12
    n: int = 250


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The sizes of every chapter, and the store that a book of this profile is rendered from when none is named.

    Parameters
    ----------
    name : str
    store : str, optional
        As for :func:`bslib.store.open_store`.
    toy : ToySize
    parameters : tuple of ParametersSize
        Fashion-MNIST's row of Fig. 2 and CIFAR-10's, or what stands in for them.
    surface : tuple of SurfaceSize
        Fashion-MNIST's part of the surface effect and CIFAR-10's, likewise.
    correlation : tuple of CorrelationSize
        Fashion-MNIST's part of success and W and CIFAR-10's, likewise.
    patterns : tuple of PatternsSize
        Fashion-MNIST's part of the patterns that smooth and CIFAR-10's, likewise.
    """

    name: str
    store: str | None
    toy: ToySize
    parameters: tuple[ParametersSize, ParametersSize]
    surface: tuple[SurfaceSize, ...] = ()
    correlation: tuple[CorrelationSize, ...] = ()
    patterns: tuple[PatternsSize, ...] = ()


#: The profiles by name.
#:
#: :meta hide-value:
PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        name="smoke",
        store=None,
        toy=ToySize(),
        parameters=(
            ParametersSize(dataset="digits", network="small-fashion", networks=2, epochs=6, points=25),
            ParametersSize(
                dataset="digits-rgb",
                network="resnet18",
                networks=1,
                epochs=2,
                train_size=96,
                augment=True,
                points=5,
                ns=(10, 25, 50),
                n_sigmas=(0.1,),
                sigmas=(0.01, 0.1, 0.25),
                n=50,
            ),
        ),
        surface=(
            SurfaceSize(dataset="digits", network="small-fashion", networks=2, epochs=6, points=20, batch=5, n=100),
            SurfaceSize(
                dataset="digits-rgb",
                network="resnet18",
                networks=1,
                epochs=2,
                train_size=96,
                test_images=40,
                points=4,
                batch=1,
                sigmas=(0.1, 0.25),
                n=20,
            ),
        ),
        correlation=(
            CorrelationSize(
                dataset="digits",
                network="small-fashion",
                epochs=4,
                threat_model="T2",
                networks=1,
                points=5,
                clean_points=3,
                sigmas=(0.1, 0.25),
                ns=(25, 50),
            ),
            CorrelationSize(
                dataset="digits-rgb",
                network="resnet18",
                epochs=1,
                train_size=64,
                threat_model="T1",
                networks=1,
                test_images=40,
                points=3,
                clean_points=2,
                sigmas=(0.1,),
                ns=(10, 20),
            ),
        ),
        patterns=(
            PatternsSize(
                dataset="digits",
                network="small-fashion",
                networks=1,
                epochs=6,
                threat_model="T3",
                triggers=(1, 5),
                points=20,
                sigmas=(0.1, 0.25),
                n=50,
                bounds=(16, 48),
                crafted_on=60,
                passes=2,
                samples=32,
                compared=64,
                steps=60,
                checked=100,
                pattern_points=10,
                pattern_sigmas=(0.1,),
                scored=10,
                overlays=10,
            ),
            PatternsSize(
                dataset="digits-rgb",
                network="resnet18",
                networks=1,
                epochs=1,
                train_size=64,
                threat_model="T1",
                triggers=(1,),
                test_images=40,
                points=3,
                sigmas=(0.1,),
                n=10,
                bounds=(16,),
                crafted_on=8,
                passes=1,
                samples=2,
                compared=None,
                steps=2,
                checked=10,
                pattern_points=2,
                pattern_sigmas=(0.1,),
                scored=2,
                overlays=2,
            ),
        ),
    ),
    "paper": Profile(
        name="paper",
        store=PUBLISHED,
        toy=ToySize(),
        parameters=(
            ParametersSize(dataset="fashion-mnist", network="small-fashion", networks=5, epochs=2, points=250),
            ParametersSize(
                dataset="cifar10",
                network="resnet18",
                networks=5,
                epochs=10,  # the paper's 200 on a GPU; ten are hours of a core a network
                learning_rate=0.1,
                augment=True,
                points=250,
                sigmas=SIGMAS[:7],
            ),
        ),
        surface=(
            SurfaceSize(dataset="fashion-mnist", network="larger-fashion", networks=5, epochs=3, points=100, batch=25),
            SurfaceSize(
                dataset="cifar10",
                network="resnet18",
                networks=5,
                epochs=UNDERFITTED,
                learning_rate=0.1,
                points=100,
                batch=25,
                sigmas=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0),  # the paper has none; all ten are 1.5 hours of a core a network
            ),
        ),
        correlation=(
            CorrelationSize(
                dataset="fashion-mnist",
                network="larger-fashion",
                epochs=3,
                threat_model="T2",
                networks=5,
                points=250,
                clean_points=50,
            ),
            CorrelationSize(
                dataset="cifar10",
                network="resnet18",
                epochs=UNDERFITTED,
                learning_rate=0.1,
                threat_model="T1",
                networks=12,
                points=250,
                clean_points=100,
            ),
        ),
        patterns=(
            PatternsSize(
                dataset="fashion-mnist",
                network="larger-fashion",
                epochs=10,  # with 250 poisons a trigger needs so many
                threat_model="T3",
                networks=3,
                detector_only=4,  # three of each kind had left open whether trigger 4 smooths
                points=250,
                pattern_points=100,
            ),
            PatternsSize(
                dataset="cifar10",
                network="resnet18",
                epochs=UNDERFITTED,
                learning_rate=0.1,
                threat_model="T1",
                networks=3,
                points=250,
                pattern_points=100,
                compared=None,
            ),
        ),
    ),
}


def profile_named(name: str) -> Profile:
    """The profile of that name, or a ValueError that names the choices.

    >>> profile_named("paper").parameters[0].networks
    5
    """
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}")
    return PROFILES[name]
