"""The figures of the chapter on the surface effect (Figs. 3 and 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bslib.chapters import in_a_clone
from bslib.chapters.beyond import nearest
from bslib.chapters.surface.plan import CONDITIONS
from bslib.chapters.surface.results import Surface
from bslib.plotting import (
    BLUE,
    GREY,
    MEDIAN,
    YELLOW,
    box_table,
    boxes,
    drawn_from,
    finish,
    noise_axis,
    panels,
    points_with_intervals,
    signed,
    words,
)

if TYPE_CHECKING:
    from IPython.display import Markdown

__all__ = ["clean_and_triggered", "difference_to_clean", "paired", "patterns"]


def patterns(surface: Surface) -> Figure | Markdown:
    """Fig. 3: the six trigger patterns, each on a test image of its own, and below it the lower right corner enlarged."""
    if surface.pictures is None:
        option = in_a_clone(surface.profile)
        return words(
            f"**No pictures of {surface.size.dataset} here**: the store has none, and its images are not part of this book. "
            f"`bslib run surface --profile {surface.profile}{option}` makes them where the data set is at hand."
        )
    record = surface.pictures
    stamped = record.arrays["stamped"].transpose(0, 2, 3, 1)
    figure, axes = plt.subplots(2, len(stamped), figsize=(7.2, 2.9), layout="constrained")
    for column, picture in enumerate(stamped):
        for axis, shown in zip(axes[:, column], (picture, picture[-11:, -11:]), strict=True):
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"trigger {column + 1}", fontsize=9)
    return signed(figure, f"{record.data['source']}; record {record.spec.key[:6]}")


def _batches_of_one_network(surface: Surface) -> pd.DataFrame:
    settings = [
        ({"trigger": trigger, "images": carried, "sigma": sigma}, w[None, s])
        for trigger, pair in zip(CONDITIONS[1:], surface.plots(), strict=True)
        for carried, w in zip(("clean", "with trigger"), pair, strict=True)
        for s, sigma in enumerate(surface.size.sigmas)
    ]
    return box_table(settings)


@drawn_from(_batches_of_one_network)
def clean_and_triggered(surface: Surface, table: pd.DataFrame) -> Figure:
    """Fig. 4: W of clean images and of images with the active trigger (left) or an inactive one (right), against sigma.

    As in the paper, one network and four batches of images that are all different.
    """
    figure, axes = panels(2)
    sigmas = surface.size.sigmas
    for axis, (trigger, own) in zip(axes, table.groupby("trigger", sort=False), strict=True):
        for carried, colour, shift in (("clean", BLUE, -0.2), ("with trigger", YELLOW, 0.2)):
            places = np.arange(len(sigmas)) + shift
            boxes(axis, own[own["images"] == carried], "sigma", places=places, colour=colour, width=0.34)
        noise_axis(axis, sigmas)
        axis.set_title(f"{trigger} trigger")
    axes[0].legend(handles=[Patch(color=BLUE, label="clean"), Patch(color=YELLOW, label="with trigger")], frameon=False)
    network, batch = surface.networks[0], surface.size.batch
    source = f"{surface.records[network].data['source']}; one network, four batches of {batch} images"
    return finish(figure, axes, f"{source}; profile {surface.profile}; network {network.key[:6]}")


@drawn_from(Surface.by_sigma)
def difference_to_clean(surface: Surface, table: pd.DataFrame) -> Figure:
    """The change of W when a trigger is added, against sigma: means over networks and images with 95% intervals."""
    figure, axes = panels(2, sharey=False)
    places = np.arange(len(table))
    for kind, colour, shift in (("active", YELLOW, -0.12), ("inactive", GREY, 0.12)):
        name = f"{kind} minus clean"
        points_with_intervals(axes[1], places + shift, table[name], colour, "o", name)
    lines = (("clean", BLUE, "without a trigger"), ("active", YELLOW, "active trigger"), ("inactive", GREY, "inactive trigger"))
    for kind, colour, name in lines:
        axes[0].plot(places, table[kind], "o-", color=colour, label=name)
    axes[0].axhline(np.log(2), color=GREY, linestyle=":", linewidth=1)
    place = axes[0].get_yaxis_transform()
    axes[0].text(0.02, np.log(2), "coin toss between two classes", transform=place, va="bottom", fontsize=7.5)
    axes[1].axhline(0, color=MEDIAN, linewidth=1)
    for axis, title in zip(axes, ("mean of W (nats)", "change of the mean of W (nats)"), strict=True):
        axis.set_title(title)
        noise_axis(axis, table["sigma"])
    axes[0].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(0, 0.6))
    axes[1].legend(frameon=False, fontsize=9)
    return finish(figure, axes, surface.source, y=None)


def _image_by_image(surface: Surface) -> pd.DataFrame:
    """Each image without and with the active trigger, at the noise levels nearest to 0.1 and 0.5."""
    w, sigmas = surface.w(), surface.size.sigmas
    chosen = dict.fromkeys(nearest(sigmas, near) for near in (0.1, 0.5))
    rows = [
        (sigma, network, image, *w[network, :2, sigmas.index(sigma), image])
        for sigma in chosen
        for network in range(len(w))
        for image in range(w.shape[-1])
    ]
    return pd.DataFrame(rows, columns=["sigma", "network", "image", "W clean", "W with the trigger"])


@drawn_from(_image_by_image)
def paired(surface: Surface, table: pd.DataFrame) -> Figure:
    """W of each image with the active trigger against W of the same image without, under the same noise, at two noise levels."""
    levels = list(table.groupby("sigma", sort=False))
    figure, axes = panels(len(levels))
    for axis, (sigma, own) in zip(axes, levels, strict=True):
        axis.scatter(own["W clean"], own["W with the trigger"], s=8, color=BLUE, alpha=0.4, linewidths=0)
        axis.axline((0, 0), slope=1, color=GREY, linewidth=1)
        axis.set(xlabel="W of the clean image", title=rf"$\sigma$ = {sigma:g}")
    return finish(figure, axes, surface.source, y="W with the trigger")


FIGURES = (clean_and_triggered, difference_to_clean, paired)
