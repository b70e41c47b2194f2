"""The command ``bslib audit``: files and words become a network, images and a trigger. Importing it does not import torch."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from bslib.files import file_digest

__all__: list[str] = []  # `bslib audit --help` is its documentation

Number = TypeVar("Number", int, float)


def audit(
    weights: Annotated[Path, typer.Option(help="safetensors, a state dict of torch.save, or ONNX. No code in it is run.")],
    images: Annotated[Path, typer.Option(help="Folder of clean images of all classes; subfolders are classes.")],
    arch: Annotated[
        str,
        typer.Option(
            help="torchvision.models.NAME, timm.NAME, one of the book's networks such as small-fashion, or FILE.py:FUNCTION, "
            "which runs that file. Not needed for ONNX."
        ),
    ] = "",
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 10,
    size: Annotated[str, typer.Option(help="Height and width of the network's input, such as 224 or 28x32.")] = "224",
    channels: Annotated[int, typer.Option(help="1 (grey) or 3.")] = 3,
    mean: Annotated[str | None, typer.Option(help="Means of the normalisation, such as 0.5,0.5,0.5.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviations; --mean 0 --std 1 is none.")] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Weights of a clean network of the same architecture; several make the answer sharper."),
    ] = None,
    trigger: Annotated[Path | None, typer.Option(help="An image that may be the trigger; it may be transparent.")] = None,
    at: Annotated[
        str, typer.Option(help="Row and column of its upper left corner; negative: of its last ones, -1 at the far edge.")
    ] = "-1,-1",
    blend: Annotated[float, typer.Option(min=0, max=1, help="Its opacity.")] = 1.0,
    tested: Annotated[str | None, typer.Option(help="Only these classes, such as 0,5,7.")] = None,
    most: Annotated[int, typer.Option(min=20, help="Most images.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Most steps of Neural Cleanse.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    html: Annotated[Path | None, typer.Option(help="File for the report.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for all numbers.")] = None,
) -> None:
    """Is this network backdoored? Exit code 0: no sign found; 1: backdoor likely; 3: not enough evidence; 2: an error."""
    for name, path in (("html", html), ("json", as_json)):
        if path and (path.suffix != f".{name}" or path.is_dir()):
            raise ValueError(f"--{name} needs a file that ends with .{name}, got {path}")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()  # an audit takes minutes: is there room for its report?
    shape = _shape(size, channels)
    onnx = weights.suffix == ".onnx"
    if not onnx and not arch:
        raise ValueError("--arch is needed: weights do not say which network they belong to")
    if onnx and reference:
        raise ValueError("--reference needs --weights of torch: an ONNX network has no gradients, so no candidates to compare")
    for name, path in (("weights", weights), *(("reference", path) for path in reference or []), ("trigger", trigger)):
        if path and not path.is_file():
            raise ValueError(f"--{name}: {path} is no file")
    if not images.is_dir():
        raise ValueError(f"--images: {images} is no folder")
    chosen = None if tested is None else _numbers("tested", tested, int)
    typed = _typed_normalisation(mean, std, channels)

    # What can be checked without torch has been: importing it takes seconds.
    import torch

    from bslib.audit import loading, run
    from bslib.audit.pictures import read_folder, read_trigger
    from bslib.runner import chosen_device

    place = "cpu" if onnx else chosen_device(device)
    bare = loading.OnnxNetwork(weights) if onnx else loading.load(weights, arch, classes)
    try:
        there = run.class_count(bare, torch.zeros(1, channels, *shape))
    except ValueError as error:
        if "cannot be called" not in str(error):
            raise
        raise ValueError(f"{error} (--channels {channels} and --size {size} say what the network takes)") from None
    if there != classes:
        raise ValueError(f"--classes is {classes}, but the network has {there}")
    normalisation, notes = (typed, []) if typed else _usual_normalisation(arch)
    network, *others = (
        loading.normalised(made, *normalisation).to(place)
        for made in (bare, *(loading.load(path, arch, classes) for path in reference or []))
    )
    overlay = read_trigger(trigger, at, blend, size=shape, channels=channels) if trigger else None
    pictures = read_folder(images, size=shape, channels=channels, classes=classes, most=most)
    notes += pictures.notes
    if pictures.skipped:
        notes.append(f"{len(pictures.skipped)} files were skipped, such as {pictures.skipped[0]}")
    for note in notes:
        typer.echo(note)
    found = run.audit(
        network,
        pictures.images.to(place),
        pictures.labels,
        references=others,
        trigger=overlay,
        tested=chosen,
        names=pictures.names,
        bare=bare,
        seed=seed,
        steps=steps,
        say=typer.echo,
        about={
            "command": shlex.join(["bslib", *sys.argv[1:]]),
            "weights": weights.name,
            "SHA-256 of the file": file_digest(weights),
            "architecture": arch or "ONNX",
            "mean": normalisation[0],
            "std": normalisation[1],
            "notes": notes,
            "skipped": pictures.skipped[:100],
        },
    )
    typer.echo(found.false_alarms())
    for path in filter(None, (html, as_json)):
        found.save(path)
        typer.echo(f"The report is in {path}")
    raise typer.Exit(found.exit_code)


def _shape(size: str, channels: int) -> tuple[int, int]:
    parts = size.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise ValueError(f"--size must be a height and a width up to 4096, such as 224 or 28x32, got {size!r}")
    if channels not in (1, 3):
        raise ValueError(f"--channels must be 1 or 3, got {channels}")
    return int(parts[0]), int(parts[-1])


def _typed_normalisation(mean: str | None, std: str | None, channels: int) -> list[list[float]] | None:
    """The mean and the standard deviation; None if they were not typed."""
    if (mean is None) != (std is None):
        raise ValueError("--mean and --std are given together or not at all")
    if mean is None or std is None:
        return None
    found = [_numbers("mean", mean, float), _numbers("std", std, float)]
    if len(found[0]) not in (1, channels):
        raise ValueError(f"--mean must have one number, or one for each of {channels} channels, got {len(found[0])}")
    return found


def _usual_normalisation(arch: str) -> tuple[list[list[float]], list[str]]:
    """That of an architecture's published weights, or none; and a note that says so."""
    from bslib.audit.loading import known_normalisation

    known = known_normalisation(arch)
    if known is None:
        return [[0.0], [1.0]], ["no normalisation (--mean and --std give one)"]
    mean, std = map(list, known)
    return [mean, std], [f"normalisation of {arch}'s published weights: mean {mean}, std {std} (--mean and --std change it)"]


def _numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        whole = "whole " if kind is int else ""
        raise ValueError(f"--{name} must be {whole}numbers with commas between, got {text!r}") from None
