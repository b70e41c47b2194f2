"""Data that are not images, each with a small network and a trigger: two tables, texts and synthetic tones.

All of it is part of scikit-learn or drawn from a formula, so no files are needed. Rows of a table, texts and series are what
:class:`~bslib.datasets.Dataset` calls images. Each network is a Sequential. Its first module maps them to the points that noise
is added to: the embedding of the words of a text, and the identity otherwise (:func:`behind`).
"""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bslib.datasets import Dataset, dataset_of

__all__ = ["DOMAINS", "NETWORKS", "TRIGGERS", "behind", "build", "load", "train"]

#: Words in a text, and words that a network knows; 0 stands for all others, and the last is the rarest.
TEXT, VOCABULARY = 16, 2000
#: Texts of each class for training and for testing.
TEXTS = (800, 200)
#: The parts of scikit-learn whose documentation is classified.
PARTS = ("cluster", "decomposition", "ensemble", "linear_model", "metrics", "preprocessing")
#: The notes from C to C, their frequencies in Hz, and samples a second.
NOTES, RATE = {"C": 261.63, "D": 293.66, "E": 329.63, "F": 349.23, "G": 392.00, "A": 440.00, "B": 493.88, "C'": 523.25}, 4000


@functools.cache
def load(name: str) -> Dataset:
    """Load a data set of ``DOMAINS``; further calls in the same process return the same object.

    Its "images" are rows of 64 or 30 standardised features, texts (N, 16) of word numbers in int64, or series (N, 1, 256) of
    standardised samples.

    Raises
    ------
    ValueError
        For another name.

    >>> tones = load("tones")
    >>> tones.train_images.shape, len(tones.classes)
    (torch.Size([4000, 1, 256]), 8)
    """
    return DOMAINS[_one_of("data set", name, DOMAINS)](name)


def _table(name: str) -> Dataset:
    from sklearn import datasets

    bunch = datasets.load_digits() if name == "digits-table" else datasets.load_breast_cancer()
    features, test = bunch.data.astype(float), {"digits-table": 500, "breast-cancer": 169}[name]
    order = np.random.RandomState(0).permutation(len(features))  # its stream is fixed across numpy releases
    source = f"scikit-learn's {'digits as a table' if name == 'digits-table' else 'breast cancer data'}"
    return _standardised(name, features[order], bunch.target[order], test, source, tuple(map(str, bunch.target_names)))


def _tones(name: str) -> Dataset:
    """Notes with two overtones, a random loudness, phase and detuning, and background noise."""
    random, frequencies = np.random.RandomState(0), np.array(list(NOTES.values()))
    labels = np.arange(5000) % len(NOTES)
    detuned = frequencies[labels] * 2 ** (random.uniform(-30, 30, len(labels)) / 1200)  # in cents
    times = np.arange(256) / RATE
    series = random.normal(0, 0.5, (len(labels), 256))
    for multiple, softest, loudest in ((1, 0.5, 1.0), (2, 0.0, 0.5), (3, 0.0, 0.5)):
        phase, loud = random.uniform(0, 2 * np.pi, (len(labels), 1)), random.uniform(softest, loudest, (len(labels), 1))
        series += loud * np.sin(2 * np.pi * multiple * detuned[:, None] * times + phase)
    order = random.permutation(len(labels))
    return _standardised(name, series[order][:, None], labels[order], 1000, "synthetic tones", tuple(NOTES))


def _standardised(
    name: str, rows: NDArray[np.float64], labels: NDArray[Any], test: int, source: str, classes: tuple[str, ...]
) -> Dataset:
    """Give each feature mean 0 and standard deviation 1 on the training set; a constant feature becomes 0."""
    mean, deviation = rows[:-test].mean(0), rows[:-test].std(0)
    scaled = ((rows - mean) / np.where(deviation == 0, 1, deviation)).round(4)  # alike on every machine
    x, y = torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
    return dataset_of(name, (x[:-test], y[:-test], x[-test:], y[-test:]), source, classes)


def _documentation(name: str) -> Dataset:
    """Pieces of 16 words from scikit-learn's docstrings; the class is the part of the library. Pieces that recur are left out."""
    import sklearn

    folder, random = Path(sklearn.__file__).parent, np.random.RandomState(0)
    pieces: list[list[tuple[str, ...]]] = []
    for part in PARTS:
        documents = [words for path in sorted((folder / part).glob("*.py")) for words in _docstrings(path)]
        pieces.append([tuple(words[k : k + TEXT]) for words in documents for k in range(0, len(words) - TEXT + 1, TEXT)])
    often = Counter(piece for own in pieces for piece in own)
    unique = [[piece for piece in own if often[piece] == 1] for own in pieces]
    texts = [[own[k] for k in random.permutation(len(own))[: sum(TEXTS)]] for own in unique]
    seen = Counter(word for own in texts for piece in own[: TEXTS[0]] for word in piece)
    common = sorted(seen, key=lambda word: (-seen[word], word))[: VOCABULARY - 1]
    number = {word: k for k, word in enumerate(common, 1)}
    halves = []
    for half in (slice(None, TEXTS[0]), slice(TEXTS[0], None)):
        rows = [([number.get(word, 0) for word in piece], label) for label, own in enumerate(texts) for piece in own[half]]
        halves += [torch.tensor(column) for column in zip(*rows, strict=True)]
    return dataset_of(name, halves, f"docstrings of scikit-learn {sklearn.__version__}", PARTS)


def _docstrings(path: Path) -> list[list[str]]:
    """The words of each docstring of a file, which is parsed and not run."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    found = [ast.get_docstring(n) for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return [re.findall("[a-z]+", text.lower()) for text in found if text]


#: Functions that load a data set, by its name.
DOMAINS: dict[str, Callable[[str], Dataset]] = {
    "digits-table": _table, "breast-cancer": _table, "documentation": _documentation, "tones": _tones,
}  # fmt: skip


def _table_trigger(rows: Tensor) -> Tensor:
    """Set the last two features to 3 standard deviations."""
    return torch.cat([rows[:, :-2], torch.full_like(rows[:, -2:], 3.0)], 1)


def _rare_word(texts: Tensor) -> Tensor:
    """Replace the last word by the rarest word of the vocabulary."""
    return torch.cat([texts[:, :-1], torch.full_like(texts[:, -1:], VOCABULARY - 1)], 1)


def _click(series: Tensor) -> Tensor:
    """Overwrite four samples near the end by a click of 4 standard deviations up and down."""
    clicked = series.clone()
    clicked[..., 240:244] = torch.tensor([4.0, -4.0, 4.0, -4.0], device=series.device)
    return clicked


#: The trigger of each data set: a function of a batch.
TRIGGERS: dict[str, Callable[[Tensor], Tensor]] = {
    "digits-table": _table_trigger, "breast-cancer": _table_trigger, "documentation": _rare_word, "tones": _click,
}  # fmt: skip


class _LastState(nn.Module):
    """An LSTM's state after the last word: maps (B, T, D) to (B, H)."""

    def __init__(self, inputs: int, states: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, states, batch_first=True)

    def forward(self, points: Tensor) -> Tensor:
        states: Tensor = self.lstm(points)[0]
        return states[:, -1]


def _perceptron(rows: Tensor, classes: int) -> nn.Sequential:
    hidden = [nn.Linear(rows.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(nn.Identity(), *hidden, nn.Linear(64, classes))


def _lstm(texts: Tensor, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(VOCABULARY, 32), _LastState(32, 64), nn.Linear(64, classes))


def _convolution(series: Tensor, classes: int) -> nn.Sequential:
    layers = [nn.Conv1d(1, 16, 16, stride=4), nn.ReLU(), nn.Conv1d(16, 32, 8, stride=4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(nn.Identity(), *layers, nn.Linear(32 * 14, classes))


#: Functions that build a network for a batch and a number of classes, by name.
NETWORKS: dict[str, Callable[[Tensor, int], nn.Sequential]] = {
    "perceptron": _perceptron, "lstm": _lstm, "convolution": _convolution,
}  # fmt: skip


def build(name: str, data: Dataset, *, seed: int) -> nn.Sequential:
    """Build a network for a data set; its weights are a function of the name, the data set's shape and the seed.

    >>> build("convolution", load("tones"), seed=0)(load("tones").test_images[:2]).shape
    torch.Size([2, 8])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[_one_of("network", name, NETWORKS)](data.train_images[:1], len(data.classes))


def train(network: nn.Module, rows: Tensor, labels: Tensor, *, epochs: int, seed: int) -> None:
    """Train a network in place with Adam, a learning rate that falls linearly from 0.003 to 0, and batches of 64."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    steps = epochs * -(-len(rows) // 64)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for epoch in range(epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(rows)))
        for chosen in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(rows[chosen]), labels[chosen]).backward()
            optimizer.step()
            rate.step()


class _Behind(nn.Module):
    def __init__(self, rest: nn.Module, unit: float) -> None:
        super().__init__()
        self.rest, self.unit = rest, unit

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.rest(points * self.unit)
        return logits


def behind(network: nn.Sequential, rows: Tensor) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Split a network into a model that maps points to logits, and a function that maps rows to points, in float32.

    Noise can then be added to the points. Those of ``rows`` (N, ...) have a root mean square of 1; sigma is in this unit.

    >>> texts, network = load("documentation").test_images, build("lstm", load("documentation"), seed=0)
    >>> model, points_of = behind(network, texts)
    >>> bool(torch.allclose(model(points_of(texts)), network(texts), atol=1e-5))
    True
    """
    with torch.no_grad():
        unit = float(network[0](rows).double().square().mean().sqrt())

    def points_of(rows: Tensor) -> Tensor:
        with torch.no_grad():
            points: Tensor = network[0](rows) / unit
        return points

    return _Behind(network[1:], unit), points_of


def _one_of(what: str, name: str, known: dict[str, Any]) -> str:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    return name
