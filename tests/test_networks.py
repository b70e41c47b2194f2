"""The paper's three networks: sizes, seeds, and the same functions as written in the textbook order."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from bslib.networks import NETWORKS, build

SHAPES = {"small-fashion": (1, 28, 28), "larger-fashion": (1, 28, 28), "resnet18": (3, 32, 32)}


def batch(name: str, images: int = 3) -> torch.Tensor:
    return torch.rand(images, *SHAPES[name], generator=torch.Generator().manual_seed(0))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "count"), [("small-fashion", 76_948), ("larger-fashion", 2_211_114), ("resnet18", 11_173_962)])
def test_parameters_and_shapes(name, count):
    network = build(name, seed=0).eval()
    assert parameters(network) == count and network.training is False
    assert network(batch(name)).shape == (3, 10)
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert isinstance(next(network.children()), nn.Conv2d), "nothing normalises the pixels, so sigma is in their unit"
    assert set(NETWORKS) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_classes_change_the_last_layer_alone(name):
    ten, seven = (build(name, classes=classes, seed=0).eval() for classes in (10, 7))
    assert seven(batch(name)).shape == (3, 7)
    last = list(ten.state_dict())[-2]
    assert parameters(ten) - parameters(seven) == 3 * (ten.state_dict()[last].shape[1] + 1)


@pytest.mark.parametrize("name", SHAPES)
def test_a_network_is_a_function_of_its_seed(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = build(name, seed=1), build(name, seed=1), build(name, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.training
    weights = [network.state_dict() for network in (first, again, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    changed = [key for key in weights[0] if not torch.equal(weights[0][key], weights[2][key])]
    assert {key for key, t in weights[0].items() if t.ndim > 1} <= set(changed)


def textbook(name: str, w: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Convolution, ReLU, pooling, in this order, with the weights in the order of the layers."""
    x = functional.max_pool2d(functional.conv2d(x, w[0], w[1]).relu(), 2)
    x = functional.conv2d(x, w[2], w[3]).relu().flatten(1)
    for weight, bias in zip(w[4:-2:2], w[5:-2:2], strict=True):
        x = (x @ weight.T + bias).relu()
    return x @ w[-2].T + w[-1]


@pytest.mark.parametrize(("name", "tensors"), [("small-fashion", 8), ("larger-fashion", 10)])
def test_pooling_before_the_relu_is_the_textbook_network(name, tensors):
    network = build(name, seed=3)
    weights = [p.detach() for p in network.parameters()]
    assert len(weights) == tensors
    x = batch(name, 20) * 4 - 2
    with torch.no_grad():
        assert torch.allclose(network(x), textbook(name, weights, x), rtol=0, atol=1e-6)


def test_resnet_has_the_stem_for_small_images():
    network = build("resnet18", seed=0).eval()
    seen = {}
    for name in ("conv1", "layer1", "layer4"):
        getattr(network, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape[1:]}))
    with torch.no_grad():
        network(batch("resnet18"))
    assert seen == {"conv1": (64, 32, 32), "layer1": (64, 32, 32), "layer4": (512, 4, 4)}
    # He et al.'s initialisation, by fan out: 3x3 kernels to 64 maps.
    assert float(network.conv1.weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="one of small-fashion, larger-fashion, resnet18, got 'vgg'"):
        build("vgg", seed=0)
