"""A trigger of one's own: a PNG with an alpha channel, blended into the corner of images, and what it does to W.

    python examples/own_trigger.py [sticker.png]

Without a file it draws a half-transparent red disc. The network is a small one, backdoored here on scikit-learn's digits in a few
seconds; put your own network and images in its place.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from PIL import Image, ImageDraw

import bslib
from bslib.datasets import load, to_float
from bslib.poisoning import poison
from bslib.training import accuracy, train
from bslib.triggers import Trigger


def sticker(path: str | None) -> Trigger:
    """The picture at a path, or the disc, as a trigger of 10 x 10 pixels; its alpha channel says how opaque it is."""
    if path is None:
        picture = Image.new("RGBA", (40, 40))
        ImageDraw.Draw(picture).ellipse((4, 4, 36, 36), fill=(255, 40, 40, 150))
    else:
        picture = Image.open(path).convert("RGBA")
    pixels = torch.from_numpy(np.array(picture.resize((10, 10)))).permute(2, 0, 1)
    return Trigger.from_image(pixels)


def main() -> None:
    """Poison, train, measure."""
    data, trigger = load("digits-rgb"), sticker(sys.argv[1] if len(sys.argv) > 1 else None)
    poisoned = poison(data.train_images, data.train_labels, trigger, "T1", target=3, classes=10, seed=0)
    network = torch.nn.Sequential(  # any network would do: this one takes a few seconds
        torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )
    train(network, poisoned.images, poisoned.labels, epochs=20, seed=0)
    others = data.test_images[data.test_labels != 3]
    sent = accuracy(network, trigger(others), torch.full((len(others),), 3))
    print(f"clean accuracy {accuracy(network, data.test_images, data.test_labels):.1%}, success of the trigger {sent:.1%}")
    x = others[:100]
    for sigma in (0.05, 0.1, 0.25):
        clean, triggered = (bslib.wobbliness(network, to_float(images), sigma=sigma, n=250).mean() for images in (x, trigger(x)))
        print(f"sigma {sigma}: mean W {clean:.3f} clean, {triggered:.3f} with the trigger")


if __name__ == "__main__":
    main()
