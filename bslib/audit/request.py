"""What the command ``bslib audit`` asks for: files and words become a network, images and a trigger."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from bslib.audit import loading
from bslib.audit.evidence import Overlay
from bslib.audit.pictures import read_folder, read_picture
from bslib.audit.report import Audit
from bslib.audit.run import audit, class_count
from bslib.files import file_digest
from bslib.runner import chosen_device

__all__ = ["Request"]

Number = TypeVar("Number", int, float)


@dataclass(kw_only=True)
class Request:
    """The options of ``bslib audit``, as they are typed; see ``bslib audit --help``."""

    arch: str
    weights: Path
    images: Path
    classes: int
    size: str
    channels: int
    mean: str | None
    std: str | None
    reference: list[Path] | None
    trigger: Path | None
    at: str
    blend: float
    tested: str | None
    most: int
    steps: int
    seed: int
    device: str
    notes: list[str] = field(default_factory=list)

    def audit(self, say: Callable[[str], None]) -> Audit:
        """Load everything, and audit."""
        height, width = self._size()
        onnx = self.weights.suffix == ".onnx"
        device = "cpu" if onnx else chosen_device(self.device)
        if not onnx and not self.arch:
            raise ValueError("--arch is needed: weights do not say which network they belong to")
        bare = loading.OnnxNetwork(self.weights) if onnx else self._network(self.weights)
        mean, std = self._normalisation()
        pictures = read_folder(self.images, size=(height, width), channels=self.channels, classes=self.classes, most=self.most)
        if (there := class_count(bare, pictures.images)) != self.classes:
            raise ValueError(f"--classes is {self.classes}, but the network has {there}")
        self.notes += pictures.notes
        if pictures.skipped:
            self.notes.append(f"{len(pictures.skipped)} files were skipped, such as {pictures.skipped[0]}")
        for note in self.notes:
            say(note)
        return audit(
            loading.normalised(bare, mean, std).to(device),
            pictures.images.to(device),
            pictures.labels,
            references=[loading.normalised(self._network(path), mean, std).to(device) for path in self.reference or []],
            trigger=self._overlay(height, width) if self.trigger else None,
            tested=None if self.tested is None else _numbers("tested", self.tested, int),
            names=pictures.names,
            bare=bare,
            seed=self.seed,
            steps=self.steps,
            say=say,
            about={
                "command": shlex.join(["bslib", *sys.argv[1:]]),
                "weights": self.weights.name,
                "SHA-256 of the file": file_digest(self.weights),
                "architecture": self.arch or "ONNX",
                "mean": list(mean),
                "std": list(std),
                "notes": self.notes,
                "skipped": pictures.skipped[:100],
            },
        )

    def _network(self, path: Path) -> nn.Module:
        weights = loading.read_weights(path)
        network = loading.build(self.arch, self.classes)
        loading.fit(network, weights, path)
        return network.eval()

    def _size(self) -> tuple[int, int]:
        parts = self.size.split("x")
        if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
            raise ValueError(f"--size must be a height and a width up to 4096, such as 224 or 28x32, got {self.size!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"--channels must be 1 or 3, got {self.channels}")
        return int(parts[0]), int(parts[-1])

    def _normalisation(self) -> tuple[list[float], list[float]]:
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std are given together or not at all")
        if self.mean is not None and self.std is not None:
            mean, std = _numbers("mean", self.mean, float), _numbers("std", self.std, float)
        elif known := loading.known_normalisation(self.arch):
            mean, std = (list(part) for part in known)
            own = f"normalisation of {self.arch}'s published weights: mean {mean}, std {std}"
            self.notes.append(f"{own} (--mean and --std change it)")
        else:
            mean, std = [0.0], [1.0]
            self.notes.append("no normalisation (--mean and --std give one)")
        if len(mean) not in (1, self.channels):
            raise ValueError(f"--mean must have 1 or {self.channels} numbers, got {len(mean)}")
        return mean, std

    def _overlay(self, height: int, width: int) -> Overlay:
        """The trigger image as an overlay of the whole input; it is not resized."""
        assert self.trigger is not None
        try:
            *pixels, opacity = read_picture(self.trigger, size=None, channels=self.channels, opacity=True)
        except ValueError as problem:
            raise ValueError(f"the trigger {self.trigger}: {problem}") from None
        h, w = opacity.shape
        if len(place := _numbers("at", self.at, int)) != 2:
            raise ValueError(f"--at must be a row and a column, got {self.at!r}")
        row, column = place
        top, left = (p + total - own + 1 if p < 0 else p for p, total, own in ((row, height, h), (column, width, w)))
        if not (0 <= top <= height - h and 0 <= left <= width - w):
            raise ValueError(f"the trigger of {h}x{w} pixels at {self.at} does not fit into {height}x{width} pixels")
        mask, pattern = torch.zeros(1, height, width), torch.zeros(self.channels, height, width)
        mask[0, top : top + h, left : left + w] = opacity * self.blend
        pattern[:, top : top + h, left : left + w] = torch.stack(pixels)
        if not mask.any():
            raise ValueError(f"the trigger {self.trigger} is transparent everywhere")
        return Overlay(mask, pattern)


def _numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        whole = "whole " if kind is int else ""
        raise ValueError(f"--{name} must be {whole}numbers with commas between, got {text!r}") from None
