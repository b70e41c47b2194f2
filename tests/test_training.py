"""The training loop: it learns, it is a function of its seed, and it goes on from where it was stopped."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bslib import training
from bslib.datasets import load
from bslib.networks import build
from bslib.training import accuracy, load_weights, save_weights, shifted_and_mirrored, train

QUIET = {"progress": False}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in network.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Small(nn.Module):
    """A convolution, a batch norm (which has buffers) and a linear layer: every kind of state, little to compute."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Linear(4 * 13 * 13, 10)

    def forward(self, x):
        return self.out(self.norm(self.conv(x)).relu().flatten(1))


# --- learning ----------------------------------------------------------------------------------------------------


def test_it_learns_the_digits(digits):
    network = build("small-fashion", seed=0)
    train(network, digits.train_images, digits.train_labels, epochs=4, seed=0, batch_size=32, **QUIET)
    assert network.training
    assert accuracy(network, digits.test_images, digits.test_labels) > 0.9


def test_a_run_is_a_function_of_its_seed(digits):
    images, labels = digits.train_images[:128], digits.train_labels[:128]

    def trained(seed: int, *, initial: int = 0, **more) -> dict:
        network = Small(initial)
        train(network, images, labels, epochs=2, seed=seed, batch_size=16, **more, **QUIET)
        return weights_of(network)

    before = torch.get_rng_state()
    one = trained(0, augment=True)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert same(one, trained(0, augment=True))
    others = [trained(1, augment=True), trained(0), trained(0, augment=True, initial=1)]
    assert not any(same(one, other) for other in others)


def test_one_step_of_plain_descent_by_hand():
    """A linear network, one batch, no decay: Nesterov's first step is lr * (g + 0.9 g), at a tenth of the peak."""
    images = torch.randint(0, 256, (8, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    weight, bias = (p.detach().clone().requires_grad_() for p in network[1].parameters())
    loss = nn.functional.cross_entropy((images.float() / 255).flatten(1) @ weight.T + bias, labels)
    gradient = torch.autograd.grad(loss, weight)[0]
    train(network, images, labels, epochs=1, seed=0, learning_rate=0.2, weight_decay=0.0, **QUIET)
    expected = weight.detach() - 0.1 * 0.2 * 1.9 * gradient
    assert torch.allclose(network[1].weight, expected, atol=1e-6)


def test_the_schedule_rises_for_a_quarter_and_falls_to_zero(digits, monkeypatch):
    rates = []
    step = training._step
    monkeypatch.setattr(training, "_step", lambda n, o, *rest: rates.append(o.param_groups[0]["lr"]) or step(n, o, *rest))
    images, labels = digits.train_images[:105], digits.train_labels[:105]
    train(Small(), images, labels, epochs=4, seed=0, learning_rate=0.4, batch_size=10, **QUIET)
    assert len(rates) == 40  # the last, incomplete batch of a pass is left out
    assert rates[0] == pytest.approx(0.04) and rates[10] == pytest.approx(0.4) == max(rates)
    assert rates[5] == pytest.approx(0.22) and rates[25] == pytest.approx(0.2)  # both ways linear
    assert rates[39] == pytest.approx(0.4 / 30)  # the next would be 0


def test_every_pass_sees_every_image_once(digits, monkeypatch):
    seen = []
    step = training._step
    monkeypatch.setattr(training, "_step", lambda net, o, d, x, y: seen.append(x.mean((1, 2, 3))) or step(net, o, d, x, y))
    images = torch.arange(0, 240, 2, dtype=torch.uint8).reshape(120, 1, 1, 1).expand(120, 1, 28, 28).contiguous()
    train(Small(), images, digits.train_labels[:120], epochs=2, seed=0, batch_size=30, **QUIET)
    passes = [torch.cat(seen[:4]), torch.cat(seen[4:])]
    assert not torch.equal(*passes)
    for one in passes:
        assert torch.equal((one * 255).round().sort().values, torch.arange(0, 240, 2.0))


@pytest.mark.parametrize(
    ("epochs", "images", "named"), [(0, 10, "epochs .*, got 0"), (-1, 10, "epochs .*, got -1"), (1, 0, "images .*, got 0")]
)
def test_nothing_to_train_on_is_refused(digits, epochs, images, named):
    with pytest.raises(ValueError, match=named):
        train(Small(), digits.train_images[:images], digits.train_labels[:images], epochs=epochs, seed=0, **QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((9,), 10)}, "labels must be from 0 to 9, one for each logit of the network, got 10 to 10"),
        ({"labels": torch.full((9,), -100)}, "got -100 to -100"),  # torch's sign for images that do not count
        ({"noise": -0.1}, "noise must be a finite number of 0 or more, got -0.1"),
        ({"noise": float("nan")}, "got nan"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number of 0 or more, got nan"),
        ({"seed": 0.5}, "seed must be a whole number of 0 or more, got 0.5"),
        ({"network": nn.Flatten()}, "the network has no parameters to train"),
        ({"network": nn.Linear(2, 2, dtype=torch.float64)}, "training needs parameters in float32, got torch.float64"),
    ],
)
def test_what_does_not_fit_is_named(digits, change, message):
    given = {"network": Small(), "images": digits.train_images[:9], "labels": digits.train_labels[:9], "epochs": 1, "seed": 0}
    with pytest.raises(ValueError, match=re.escape(message)):
        train(**given | change, **QUIET)


def test_accuracy_needs_one_label_an_image(digits):
    with pytest.raises(ValueError, match=re.escape("labels must have shape (5,), one an image, got (5, 1)")):
        accuracy(Small(), digits.test_images[:5], digits.test_labels[:5, None])


def test_networks_that_need_the_contiguous_layout_get_it():
    class Viewing(nn.Linear):
        def forward(self, x):
            return super().forward(x.view(len(x), -1))

    images = torch.randint(0, 256, (8, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    viewing, flattening = Viewing(12, 3), nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    flattening[1].load_state_dict(viewing.state_dict())
    for network in (viewing, flattening):
        train(network, images, torch.arange(8) % 3, epochs=2, seed=np.int64(0), batch_size=4, **QUIET)
    torch.testing.assert_close(viewing.weight, flattening[1].weight)


def test_a_loss_that_is_no_number_is_an_error(digits):
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: try a lower learning rate than 1e\+20"):
        train(
            Small(), digits.train_images[:64], digits.train_labels[:64],
            epochs=5, seed=0, learning_rate=1e20, batch_size=16, **QUIET,
        )  # fmt: skip


def test_lower_precision_is_close_and_leaves_float32_weights(digits):
    images, labels, ends = digits.train_images[:128], digits.train_labels[:128], []
    for dtype in (torch.float32, torch.bfloat16):
        network = Small()
        train(network, images, labels, epochs=1, seed=0, batch_size=128, dtype=dtype, **QUIET)
        ends.append(weights_of(network))
    assert {t.dtype for t in ends[1].values()} == {torch.float32, torch.int64}
    start = Small().state_dict()["out.weight"]
    exact, rounded = (end["out.weight"] - start for end in ends)
    assert not torch.equal(exact, rounded) and (exact - rounded).norm() < 0.05 * exact.norm()


def test_noise_is_new_in_each_step_has_its_level_and_is_a_function_of_the_seed(digits, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "_step", lambda n, o, d, x, y: seen.append(x.clone()) or (torch.tensor(0.0), torch.tensor(0)))
    images, labels = torch.full((64, 1, 28, 28), 51, dtype=torch.uint8), digits.train_labels[:64]
    for seed in (0, 0, 1):
        train(Small(), images, labels, epochs=2, seed=seed, batch_size=32, noise=0.2, **QUIET)
    noise = torch.stack(seen).reshape(3, 4, 32, 28, 28) - 0.2
    assert noise.std() == pytest.approx(0.2, rel=0.01) and abs(noise.mean()) < 0.005
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert abs(np.corrcoef(noise[0, 0].ravel(), noise[0, 1].ravel())[0, 1]) < 0.05
    assert torch.equal(images, torch.full_like(images, 51)), "the training set stays as it is"


# --- checkpoints -------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def interrupt_after(monkeypatch, calls: int) -> None:
    step, count = training._step, iter(range(calls))

    def counted(*arguments):
        if next(count, None) is None:
            raise Stop
        return step(*arguments)

    monkeypatch.setattr(training, "_step", counted)


@pytest.mark.parametrize("stop", [1, 8, 13, 23])
@pytest.mark.parametrize("more", [{}, {"augment": True}, {"noise": 0.1}], ids=["plain", "augment", "noise"])
def test_going_on_ends_at_the_same_weights(digits, monkeypatch, tmp_path, stop, more):
    def go(network: nn.Module, checkpoint: Path | None) -> dict:
        images, labels = digits.train_images[:128], digits.train_labels[:128]
        train(network, images, labels, epochs=3, seed=4, batch_size=16, checkpoint=checkpoint, **more, **QUIET)
        return weights_of(network)

    whole = go(Small(), None)
    checkpoint = tmp_path / "c.safetensors"
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, stop)
        with pytest.raises(Stop):
            go(Small(), checkpoint)
    assert int(load_file(checkpoint)["step"]) == stop
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    assert same(whole, go(Small(seed=77), checkpoint))  # the checkpoint brings weights, buffers and momentum
    assert int(load_file(checkpoint)["step"]) > stop, "kept until what comes of the network is safe"
    assert same(whole, go(Small(seed=78), checkpoint)), "a finished one is not trained further"


def test_channels_last_networks_go_on_too(digits, monkeypatch, tmp_path):
    images, labels = digits.train_images[:96], digits.train_labels[:96]
    ends = []
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    for stop in (None, 2):
        network = build("small-fashion", seed=0)
        more = {"epochs": 2, "seed": 0, "batch_size": 32, "checkpoint": tmp_path / f"{stop}.safetensors"}
        if stop:
            with monkeypatch.context() as patch, pytest.raises(Stop):
                interrupt_after(patch, stop)
                train(network, images, labels, **more, **QUIET)
            network = build("small-fashion", seed=0)
        train(network, images, labels, **more, **QUIET)
        ends.append(weights_of(network))
    assert same(*ends)


class Partly(Small):
    """With a frozen layer, an unused one and tied weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.unused, self.tied = nn.Linear(2, 2), nn.Linear(10, 10)
        self.again = nn.Linear(10, 10)
        self.again.weight = self.tied.weight
        self.conv.requires_grad_(False)

    def forward(self, x):
        return self.again(self.tied(super().forward(x)))


def test_partly_trained_networks_go_on_too_and_other_arguments_are_refused(digits, monkeypatch, tmp_path):
    images, labels, checkpoint = digits.train_images[:96], digits.train_labels[:96], str(tmp_path / "c.safetensors")
    more = {"epochs": 2, "seed": 0, "batch_size": 32} | QUIET
    torch.manual_seed(0)
    whole, stopped = (Partly(), Partly())
    stopped.load_state_dict(whole.state_dict())
    train(whole, images, labels, **more)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        interrupt_after(patch, 3)
        train(stopped, images, labels, checkpoint=checkpoint, **more)
    for change in ({"epochs": 3}, {"seed": 1}, {"noise": 0.1}):
        with pytest.raises(ValueError, match=r"of another run .*was asked for.*; remove it to train from the start"):
            train(stopped, images, labels, checkpoint=checkpoint, **more | change)
    fresh = Partly(seed=5)
    train(fresh, images, labels, checkpoint=checkpoint, **more)
    assert same(weights_of(whole), weights_of(fresh))


def test_checkpoints_come_once_a_minute(digits, monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(training, "_save_checkpoint", lambda *_: saved.append(1))
    clock = iter(range(0, 10_000, 25))  # each look at the clock is 25 seconds after the last
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    images, labels = digits.train_images[:160], digits.train_labels[:160]
    train(Small(), images, labels, epochs=1, seed=0, batch_size=16, checkpoint=tmp_path / "c.safetensors", **QUIET)
    assert training.CHECKPOINT_SECONDS == 60 and len(saved) in (3, 4), "one of them at the end"


def damaged_checkpoints() -> dict[str, bytes]:
    class Bomb:
        def __reduce__(self):
            return Path.touch, (Path("exploded"),)

    return {"empty": b"", "noise": b"\x07" * 300, "pickle": pickle.dumps({"step": Bomb()})}


@pytest.mark.parametrize("kind", ["empty", "noise", "pickle", "truncated", "of another network", "no momentum", "no digest"])
def test_a_damaged_checkpoint_is_refused(digits, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "c.safetensors"
    if kind in damaged_checkpoints():
        checkpoint.write_bytes(damaged_checkpoints()[kind])
    else:
        network = nn.Linear(2, 2) if kind == "of another network" else Small()
        momenta = {f"momentum.{name}": p.detach().clone() for name, p in network.named_parameters()}
        state = network.state_dict() | ({} if kind == "no momentum" else momenta)
        state |= {"step": torch.tensor(3), "seconds": torch.tensor(1.0)}
        training._write(state, checkpoint, digest=kind != "no digest")
        if kind == "truncated":
            checkpoint.write_bytes(checkpoint.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"is damaged.*remove it") as caught:
        train(
            Small(), digits.train_images[:64], digits.train_labels[:64],
            epochs=1, seed=0, checkpoint=checkpoint, **QUIET,
        )  # fmt: skip
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)
    assert ("pickle" in str(caught.value)) == (kind == "pickle") and ("digest" in str(caught.value)) == (kind == "no digest")
    assert not (tmp_path / "exploded").exists() and checkpoint.exists()


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path):
    """One bit here and there: refused by name, or it was in what no tensor depends on."""
    network, path = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path / "c.safetensors"
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    training._save_checkpoint(network, optimizer, 7, 1.5, path)
    whole, kept, refused = path.read_bytes(), weights_of(network), 0
    tensors = int.from_bytes(whole[:8], "little") + 8
    for place in range(8, len(whole), 1 if len(whole) < 4000 else 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert training._resume(network, optimizer, path) == (7, 1.5) and same(weights_of(network), kept)
            assert place < tensors, f"byte {place} of {len(whole)}"
        except ValueError as problem:
            assert str(path) in str(problem)
            refused += 1
    assert refused >= len(whole) - tensors


# --- weights -----------------------------------------------------------------------------------------------------


def test_weights_come_back_as_they_were(tmp_path):
    first, path = build("small-fashion", seed=0), tmp_path / "deep" / "w.safetensors"
    save_weights(first, path)
    second = build("small-fashion", seed=1)
    load_weights(second, path)
    assert same(weights_of(first), weights_of(second)) and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["empty", "noise", "pickle", "torch.save", "truncated", "of another network", "absent"])
def test_weights_that_are_none_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.safetensors"
    if kind in damaged_checkpoints():
        path.write_bytes(damaged_checkpoints()[kind])
    elif kind == "truncated":
        save_weights(Small(), path)
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "of another network":
        save_file({"weight": torch.zeros(2)}, path)
    elif kind == "torch.save":
        torch.save(Small().state_dict(), path)
    network = Small()
    before = weights_of(network)
    with pytest.raises(ValueError, match="weights cannot be read from") as caught:
        load_weights(network, str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert ("Missing key(s)" in str(caught.value)) == (kind == "of another network")
    assert ("pickle, which can run code" in str(caught.value)) == (kind in ("pickle", "torch.save"))
    assert same(before, weights_of(network)) and not (tmp_path / "exploded").exists()


def test_the_pickle_was_live(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(damaged_checkpoints()["pickle"])
    assert (tmp_path / "exploded").exists()


# --- augmentation and accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (40, 3, 32, 32), (3, 2, 6, 9)])
def test_shifted_and_mirrored_image_by_image(shape):
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = shifted_and_mirrored(images, seed=[3, 1])
    assert found.shape == images.shape and found.dtype == torch.uint8
    moves = set()
    for image, moved in zip(images, found, strict=True):
        height, width = image.shape[1:]
        canvas = torch.zeros(len(image), height + 8, width + 8, dtype=torch.uint8)
        canvas[:, 4 : 4 + height, 4 : 4 + width] = image
        fits = [
            (down, right, mirrored)
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
            if torch.equal(part := canvas[:, down : down + height, right : right + width], moved)
            or (mirrored and torch.equal(part.flip(2), moved))
        ]
        assert fits, "no shift of up to 4 pixels, mirrored or not, gives this image"
        moves.add(min(fits))
    assert len(moves) > 1


def test_shifts_and_mirrors_are_uniform_and_seeded():
    images = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4], images[:, 0, 4, 5] = 2, 1  # where the 2 is says how far, where the 1 is says whether mirrored
    found = shifted_and_mirrored(images, seed=[0])[:, 0]
    rows, columns = np.where((found == 2).any(2))[1], np.where((found == 2).any(1))[1]
    for places in (rows, columns):
        counts = np.bincount(places, minlength=9)
        assert len(counts) == 9 and counts.min() > 4000 / 9 * 0.8 and counts.max() < 4000 / 9 * 1.2
    inside = columns < 8
    right = found[np.arange(4000)[inside], rows[inside], columns[inside] + 1] == 1
    assert 0.4 < right.float().mean() < 0.6
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.1
    assert torch.equal(found, shifted_and_mirrored(images, seed=[0])[:, 0])
    assert not torch.equal(found, shifted_and_mirrored(images, seed=[1])[:, 0])


def test_accuracy_in_batches_and_in_eval_mode(digits):
    network = Small()
    network.train()
    with torch.no_grad():
        network.eval()
        predicted = network(digits.test_images.float() / 255).argmax(1)
        network.train()
    expected = (predicted == digits.test_labels).float().mean().item()
    statistics = network.norm.running_mean.clone()
    assert len(digits.test_images) % 128 and accuracy(network, digits.test_images, digits.test_labels) == pytest.approx(expected)
    assert network.training and torch.equal(network.norm.running_mean, statistics)


# --- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_graphed_step_does_what_a_step_does(digits, monkeypatch):
    images, labels, ends = digits.train_images[:640], digits.train_labels[:640], []
    for least in (10, 10**9):
        monkeypatch.setattr(training, "GRAPH_STEPS", least)
        network = Small().cuda()
        train(network, images, labels, epochs=2, seed=0, batch_size=32, **QUIET)
        ends.append(weights_of(network))
    for name, weights in ends[0].items():
        torch.testing.assert_close(weights, ends[1][name], rtol=1e-3, atol=1e-4)
