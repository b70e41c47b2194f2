"""The six patterns against their descriptions, and triggers of any kind on any images."""

from __future__ import annotations

import hashlib
import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from bslib.drawings import square
from bslib.triggers import PATTERNS, Trigger, _drawn, pattern

SHAPES = [(1, 28, 28), (3, 32, 32)]


def some_images(shape, *, seed: int = 0, batch: int = 3, dtype=torch.float32) -> Tensor:
    images = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def covered(trigger: Trigger, shape) -> Tensor:
    """Which pixels a trigger overwrites, (H, W): those that no longer hold what no trigger can bring."""
    found = trigger(torch.full(shape, -0.25)) != -0.25
    assert (found == found[:1]).all()  # the same in every channel
    return found[0]


# --- the six -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("number", "places"), [(1, [(-2, -2), (-3, -3), (-2, -4), (-4, -2)]), (3, [(-2, -2)])])
def test_the_patterns_of_gu_et_al_by_hand(number, places, shape):
    """In rows and columns from the lower right."""
    expected = torch.zeros(shape, dtype=torch.bool)
    for row, column in places:
        expected[:, row, column] = True
    assert torch.equal(covered(pattern(number), shape).expand(shape), expected)
    if number == 1:
        assert torch.equal(pattern(1)(torch.zeros(shape)), expected.float())
        assert torch.equal(pattern(1)(torch.zeros(shape, dtype=torch.uint8)), expected.to(torch.uint8) * 255)


def test_there_are_six_and_they_differ():
    assert list(PATTERNS) == [1, 2, 3, 4, 5, 6]
    for shape in SHAPES:
        stamped = [pattern(number)(torch.full(shape, -0.25)) for number in PATTERNS]
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(stamped, 2))
        assert not any(torch.equal(a, b) for a, b in itertools.combinations([(s == -0.25) for s in stamped[2:5]], 2))


@pytest.mark.parametrize("number", PATTERNS)
def test_patterns_lie_in_the_lower_right_corner(number):
    small, large = (covered(pattern(number), shape) for shape in SHAPES)
    assert torch.equal(small, large[4:, 4:]) and large.sum() == small.sum() == pattern(number).mask.sum()
    rows, columns = torch.nonzero(small).T
    assert rows.min() >= 28 - 10 and columns.min() >= 28 - 10 and rows.max() >= 26 and columns.max() >= 26


def test_3_is_the_smallest_and_5_a_larger_smiley():
    sizes = {number: int(trigger.mask.sum()) for number, trigger in PATTERNS.items()}
    assert min(sizes, key=sizes.get) == 3 and max(sizes, key=sizes.get) == 5
    drawn = pattern(5).values[0][:, pattern(5).mask.any(0)]
    assert torch.equal(drawn, drawn.flip(1)) and not torch.equal(drawn, drawn.flip(0))


# --- any trigger, any images -------------------------------------------------------------------------------------


@st.composite
def some_triggers(draw):
    """One of the six, or one of any size and of one channel or three."""
    if number := draw(st.integers(0, 6)):
        return pattern(number)
    h, w, channels = draw(st.integers(1, 28)), draw(st.integers(1, 28)), draw(st.sampled_from([1, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.rand(h, w, generator=generator) < draw(st.floats(0, 1))
    mask[draw(st.integers(0, h - 1)), draw(st.integers(0, w - 1))] = True
    return Trigger(mask, torch.rand(channels, h, w, generator=generator))


def shapes_for(trigger: Trigger):
    return [shape for shape in SHAPES if len(trigger.values) in (1, shape[0])]


def laid_out(trigger: Trigger, shape) -> tuple[Tensor, Tensor]:
    """Values and mask of a trigger, padded to the size of an image."""
    h, w = trigger.mask.shape
    edges = (shape[2] - w, 0, shape[1] - h, 0)
    return pad(trigger.values, edges), pad(trigger.mask, edges)


@given(trigger=some_triggers(), seed=st.integers(0, 1000), dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]))
def test_applying_a_trigger(trigger, seed, dtype):
    for shape in shapes_for(trigger):
        images = some_images(shape, seed=seed, dtype=dtype)
        before = images.clone()
        stamped = trigger(images)
        assert stamped.dtype == dtype and stamped.shape == images.shape
        assert torch.equal(images, before) and stamped.data_ptr() != images.data_ptr()
        assert torch.equal(trigger(stamped), stamped)
        values, mask = laid_out(trigger, shape)
        values = values.mul(255).round() if dtype == torch.uint8 else values
        assert torch.equal(stamped, torch.where(mask, values.to(dtype), images))
        assert torch.equal(torch.stack([trigger(image) for image in images]), stamped)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_empty_batch_stays_empty(shape):
    assert pattern(5)(torch.zeros(0, *shape)).shape == (0, *shape)


# --- one's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_an_own_picture_overwrites_all_of_its_place(shape):
    image = some_images((shape[0], 6, 4), seed=1, batch=1, dtype=torch.uint8)[0]
    images = some_images(shape, dtype=torch.uint8)
    expected = images.clone()
    expected[..., -6:, -4:] = image
    for picture in (image, image.float() / 255):
        assert torch.equal(Trigger.from_image(picture)(images), expected)


def test_an_own_picture_with_a_mask():
    image = torch.tensor([[10, 20, 30], [40, 50, 60]], dtype=torch.uint8)
    mask = torch.tensor([[True, False, False], [False, True, True]])
    stamped = Trigger.from_image(image, mask)(torch.full((3, 4, 5), 7, dtype=torch.uint8))
    expected = torch.full((4, 5), 7, dtype=torch.uint8)
    expected[2, 2], expected[3, 3], expected[3, 4] = 10, 50, 60
    assert torch.equal(stamped, expected.expand(3, 4, 5))


def test_a_trigger_as_large_as_the_image():
    picture = some_images((1, 28, 28), seed=2)[0]
    assert torch.equal(Trigger.from_image(picture)(torch.zeros(2, 1, 28, 28)), picture.expand(2, 1, 28, 28))


TRUE = torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trigger(TRUE.int(), torch.ones(1, 2, 2)), "or (C, h, w), got torch.int32"),
        (lambda: Trigger(TRUE[0], torch.ones(1, 2, 2)), "got torch.bool of (2,)"),
        (lambda: Trigger(2 * TRUE.float(), torch.ones(1, 2, 2)), "mask must lie in [0, 1], got 2 to 2"),
        (lambda: Trigger(torch.ones(3, 2, 2), torch.ones(1, 2, 2))(torch.zeros(1, 8, 8)), "mask has 3 channels"),
        (lambda: Trigger(TRUE, torch.ones(2, 2)), "values must have shape (C, 2, 2), got (2, 2)"),
        (lambda: Trigger(TRUE, torch.ones(1, 2, 3)), "values must have shape (C, 2, 2), got (1, 2, 3)"),
        (lambda: Trigger.from_image(torch.ones(3, 4), TRUE), "values must have shape (C, 2, 2), got (1, 3, 4)"),
        (lambda: Trigger(~TRUE, torch.ones(1, 2, 2)), "got none"),
        (lambda: Trigger(TRUE, torch.full((1, 2, 2), 1.5)), "values must lie in [0, 1], got 1.5 to 1.5"),
        (lambda: Trigger(TRUE, torch.full((1, 2, 2), -0.25)), "values must lie in [0, 1], got -0.25"),
        (lambda: Trigger(TRUE, torch.full((1, 2, 2), torch.nan)), "values must lie in [0, 1], got nan"),
        (lambda: Trigger.from_image(torch.full((2, 2), 255)), "got 255 to 255"),
        (lambda: pattern(5)(torch.zeros(28, 28)), "images must have shape (C, H, W) or (B, C, H, W), got (28, 28)"),
        (lambda: Trigger.from_image(torch.ones(9, 2))(torch.zeros(1, 8, 8)), "9x2 pixels is larger than the images of 8x8"),
        (lambda: Trigger.from_image(torch.ones(2, 9))(torch.zeros(1, 8, 8)), "2x9 pixels is larger than the images of 8x8"),
        (lambda: Trigger.from_image(torch.ones(3, 2, 2))(torch.zeros(1, 8, 8)), "has 3 channels, the images have 1"),
        (lambda: pattern(5).region(torch.zeros(1, 4, 4)), "8x9 pixels is larger than the images of 4x4"),
        (lambda: pattern(1)(torch.full((1, 8, 8), 200.0)), "got values from 200 to 200: divide by 255 first"),
        (lambda: pattern(1)(torch.full((1, 8, 8), -1.0)), "got values from -1 to -1: normalise inside the model"),
        (lambda: pattern(1)(torch.zeros(9, 8, 8, 3)), "got (9, 8, 8, 3): use images.permute(0, 3, 1, 2)"),
        (lambda: pattern(1)(torch.zeros(8, 8, 3)), "got (8, 8, 3): use images.permute(2, 0, 1)"),
        (lambda: Trigger(TRUE.numpy(), torch.ones(1, 2, 2)), "mask and values must be tensors, got ndarray and Tensor"),
        (lambda: pattern(1)(torch.zeros(1, 8, 8).numpy()), "images must be a tensor, got ndarray"),
        (lambda: Trigger.from_image(torch.zeros(8, 8).numpy()), "image must be a tensor, got ndarray"),
        (lambda: Trigger(TRUE, torch.ones(0, 2, 2)), "values must have shape (C, 2, 2), got (0, 2, 2)"),
        (lambda: _drawn("x# ", "## "), "a drawing has rows of one length, of # . digits and blanks, got ('x# ', '## ')"),
        (lambda: _drawn("# ", "###"), "got ('# ', '###')"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_what_the_mask_hides_may_be_anything():
    """A picture's values count only where it overwrites."""
    values = torch.tensor([[[0.5, torch.nan]]])
    assert Trigger(torch.tensor([[True, False]]), values)(torch.zeros(1, 2, 2)).tolist() == [[[0.0, 0.0], [0.5, 0.0]]]


def test_a_float_mask_blends():
    """Nothing, a quarter and all of a bright patch over a dark image; over uint8 rounded to the nearest."""
    trigger = Trigger(torch.tensor([[0.0, 0.25, 1.0]]), torch.tensor([[[1.0, 0.8, 1.0]]]))
    assert torch.allclose(trigger(torch.full((1, 1, 3), 0.4)), torch.tensor([[[0.4, 0.5, 1.0]]]))
    assert trigger(torch.full((2, 1, 1, 3), 10, dtype=torch.uint8)).tolist() == 2 * [[[[10, 58, 255]]]]  # 7.5 + 51


def test_a_mask_may_differ_between_channels():
    mask = torch.tensor([[[True]], [[False]], [[False]]])
    stamped = Trigger(mask, torch.ones(1, 1, 1))(torch.zeros(3, 2, 2))
    assert stamped[:, 1, 1].tolist() == [1.0, 0.0, 0.0] and stamped.sum() == 1


@pytest.mark.parametrize("number", [*PATTERNS, square(1, 2), square(8, 9)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_region_of_a_trigger_is_what_it_overwrites(number, shape):
    region = pattern(number).region(torch.zeros(2, *shape))
    assert region.dtype == torch.bool and region.shape == shape
    assert torch.equal(region, covered(pattern(number), shape).expand(shape))


def test_the_region_of_a_blended_trigger_and_of_a_mask_by_channel():
    blended = Trigger(torch.tensor([[0.0, 0.25, 1.0]]), torch.ones(1, 1, 3))
    assert blended.region(torch.zeros(1, 2, 3)).tolist() == [[[False] * 3, [False, True, True]]]
    red = Trigger(torch.tensor([[[True]], [[False]], [[False]]]), torch.ones(1, 1, 1))
    assert red.region(torch.zeros(3, 1, 1)).flatten().tolist() == [True, False, False]


def test_the_alpha_channel_of_a_picture_is_its_opacity():
    picture = torch.zeros(4, 2, 2, dtype=torch.uint8)
    picture[0], picture[3, 0, 0], picture[3, 1, 1] = 255, 51, 255  # red; a fifth opaque, and opaque
    stamped = Trigger.from_image(picture)(torch.full((3, 2, 2), 0.5))
    assert torch.allclose(stamped[:, 0, 0], torch.tensor([0.6, 0.4, 0.4])) and stamped[:, 1, 1].tolist() == [1.0, 0.0, 0.0]
    assert (stamped[:, 0, 1] == 0.5).all() and (stamped[:, 1, 0] == 0.5).all()


def test_the_patterns_are_those_that_the_records_speak_of():
    """A spec names a pattern by its number: a pattern that changes makes committed records wrong without changing their keys."""
    digest = hashlib.sha256()
    for number, trigger in PATTERNS.items():
        greys = [[round(v * 9) for v in row] for row in trigger.values[0].tolist()]
        digest.update(f"{number}{trigger.mask.tolist()}{greys}".encode())
    assert digest.hexdigest().startswith("4e52401b361f3631")
