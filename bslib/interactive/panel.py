"""The lab in a notebook: W of any network for any images, counted in a background thread while sliders are moved.

If the notebook is executed without a user, for example by papermill, a picture of the initial state is shown instead.
"""

from __future__ import annotations

import base64
import html
import io
import math
import numbers
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from bslib.calling import check_counts, check_logits, dtype_of, evaluating
from bslib.engine import Compiled, compile_for_inference
from bslib.entropy import plug_in
from bslib.measure import class_counts, standard_noise
from bslib.triggers import Trigger

try:
    import ipywidgets as widgets
    from IPython.core.getipython import get_ipython
    from IPython.display import Image
except ImportError:
    raise ImportError("the lab in a notebook needs ipywidgets: pip install '.[book]' in a clone of the book") from None

__all__ = ["Answer", "Lab", "Question", "lab"]

#: Number of noisy copies classified between two checks of the sliders.
BATCH = 64
#: Minimum number of seconds between two pictures, because drawing takes longer than counting.
REDRAW = 0.3
#: Maximum number of classes drawn; if there are more, only the most frequent ones are drawn.
MOST_CLASSES = 20
#: The entry of the trigger menu for no trigger.
NONE = "none"
COLOURS = ("#2f6fb7", "#b4531a", "#1b9e77", "#8a8f98")


class Question(NamedTuple):
    """The settings of the sliders: index of the image, name of the trigger, noise level and number of noisy copies."""

    point: int
    trigger: str
    sigma: float
    n: int


class Answer(NamedTuple):
    """The results so far.

    Parameters
    ----------
    image, noisy : float32 Tensor, shape (C, H, W)
        The image with its trigger, and one noisy copy of it.
    predicted : dict of str to int
        For each network, the predicted class of the image without noise.
    counts : dict of str to int64 ndarray, shape (classes,)
        For each network, how often each class was predicted.
    """

    question: Question
    image: Tensor
    noisy: Tensor
    predicted: dict[str, int]
    counts: dict[str, NDArray[np.int64]]

    @property
    def samples(self) -> int:
        """The number of noisy copies that each network has classified."""
        return int(next(iter(self.counts.values())).sum())


def lab(
    model: nn.Module | Mapping[str, nn.Module],
    images: Tensor,
    *,
    sigma: float = 0.1,
    n: int = 250,
    trigger: Trigger | Mapping[str, Trigger] | None = None,
    classes: Sequence[str] | None = None,
    index: int = 0,
    seed: int = 0,
) -> Any:
    """Return a panel with sliders for image, trigger, sigma and n that updates class counts and W as they are computed.

    The counts are those of :func:`bslib.measure.class_counts` with ``ids=[index]``, so an image gets the same noise with and
    without a trigger. The noise of one image is kept in memory and takes n times the size of the image.

    Parameters
    ----------
    model : torch.nn.Module or mapping of str to torch.nn.Module
        Maps (b, C, H, W) to logits (b, classes). Several networks, given by name, are shown side by side.
    images : float32 Tensor, shape (B, C, H, W)
        Images in [0, 1] with 1 or 3 channels, on the model's device.
    sigma : float
        Initial noise level.
    n : int
        Initial number of noisy copies.
    trigger : Trigger or mapping of str to Trigger, optional
        Triggers that can be stamped on the image.
    classes : sequence of str, optional
        Names of the classes. Default: their numbers.
    index : int
        Index of the initial image.
    seed : int
        Seed of the noise.

    Returns
    -------
    Lab or IPython.display.Image
        An image if the notebook is executed without a user.

    Raises
    ------
    ValueError
        As for :func:`~bslib.measure.class_counts`; also if ``images`` has another layout, the index is out of range, the number
        of class names is wrong, or a trigger does not fit the images.
    RuntimeError
        If called outside a notebook.

    >>> lab(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4), n=100)
    Traceback (most recent call last):
    RuntimeError: the lab needs a Jupyter notebook, which shows it: in a script call bslib.wobbliness
    """
    if get_ipython() is None:  # in a script, a thread that still runs at exit would make Python abort
        raise RuntimeError("the lab needs a Jupyter notebook, which shows it: in a script call bslib.wobbliness")
    models = dict(model) if isinstance(model, Mapping) else {"network": model}
    triggers = dict(trigger) if isinstance(trigger, Mapping) else {} if trigger is None else {"trigger": trigger}
    measuring, start = Measuring(models, images, triggers, seed), Question(index, NONE, sigma, n)
    count = measuring.check(start)
    names = [str(name) for name in np.ravel(range(count) if classes is None else classes)]
    if len(names) != count:
        raise ValueError(f"classes must name each of the {count} outputs of the network, got {', '.join(names)[:80] or 'none'}")
    if _nobody_watches():
        *_, answer = measuring.answers(start)
        return Image(_png(answer, names), alt=_in_words(answer, names))
    return Lab(measuring, names, start)


class Measuring:
    """The computation of the panel: incremental counts for one question at a time."""

    def __init__(self, models: Mapping[str, nn.Module], images: Tensor, triggers: Mapping[str, Trigger], seed: int) -> None:
        self.models, self.images, self.triggers, self.seed = models, images, triggers, seed
        self._noise: tuple[int, Tensor] | None = None

    def check(self, question: Question) -> int:
        """Raise an error for invalid input before a thread starts; returns the number of classes."""
        images, (index, _, sigma, n) = self.images, question
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"images must have shape (B, C, H, W) with 1 or 3 channels, got {shape}")
        if not isinstance(index, numbers.Integral) or not 0 <= index < len(images):
            raise ValueError(f"index must be a whole number from 0 to {len(images) - 1}, got {index!r}")
        if not isinstance(sigma, numbers.Real):
            raise ValueError(f"sigma must be a number, got {sigma!r}")
        check_counts(n=n)
        if not self.models:
            raise ValueError("model must be a network, or at least one network by name, got none")
        if NONE in self.triggers:
            raise ValueError(f"trigger must not be named {NONE!r}, which is the menu's entry for no trigger")
        for trigger in self.triggers.values():
            if not callable(trigger):
                raise ValueError(f"trigger must be a Trigger, or triggers by name, got {type(trigger).__name__}")
            trigger(images[:1])
        image = images[index : index + 1]
        counts = [class_counts(model, image, sigma, 1, seed=self.seed, progress=False) for model in self.models.values()]
        classes = [found.shape[-1] for found in counts]
        if len(set(classes)) != 1:
            raise ValueError(f"the networks must have the same classes, got {', '.join(map(str, classes))}")
        return classes[0]

    def answers(self, question: Question) -> Iterator[Answer]:
        """Yield the results after every batch of noisy copies; the last counts equal those of ``class_counts``."""
        image = self.images[question.point]
        if question.trigger != NONE:
            image = self.triggers[question.trigger](image)
        compiled = {name: self._compiled(model, image[None]) for name, model in self.models.items()}

        def logits_of(name: str, images: Tensor) -> Tensor:
            with evaluating(self.models[name]):
                found = compiled[name].network(images)
            check_logits(found)
            return found

        logits = {name: logits_of(name, image[None]) for name in self.models}
        predicted = {name: int(found.argmax()) for name, found in logits.items()}
        counts = {name: np.zeros(found.shape[1], np.int64) for name, found in logits.items()}
        noise = self._noise_of(question)
        noisy = image + question.sigma * noise[0]
        for batch in noise.split(BATCH):
            for name in self.models:
                labels = logits_of(name, torch.add(image, batch, alpha=question.sigma)).argmax(1)
                counts[name] = counts[name] + np.bincount(labels.cpu().numpy(), minlength=len(counts[name]))
            yield Answer(question, image, noisy, predicted, dict(counts))

    def _compiled(self, model: nn.Module, images: Tensor) -> Compiled:
        """Return the model in eager mode, because the user may train it further; labels are those of ``class_counts``."""
        with evaluating(model) as network:
            dtype = torch.float32 if dtype_of(model, images) == torch.float32 else None
            return compile_for_inference(network, images, engine="eager", dtype=dtype)

    def _noise_of(self, question: Question) -> Tensor:
        """Return the noise, which is redrawn only if the image changes or n exceeds the number of stored copies."""
        if self._noise is None or self._noise[0] != question.point or len(self._noise[1]) < question.n:
            image = self.images[question.point][None]
            drawn = standard_noise(image, question.n, seed=self.seed, ids=[question.point])[0]
            self._noise = (question.point, drawn)
        return self._noise[1][: question.n]


class Lab(widgets.VBox):
    """The widget that :func:`lab` returns: sliders, a picture of the counts, a progress bar, and a stop button."""

    def __init__(self, measuring: Measuring, classes: Sequence[str], start: Question) -> None:
        self._measuring, self._classes = measuring, classes
        self._lock = threading.Condition()
        self._asked: Question | None = None  # the newest question that no thread has started on
        self._busy = self._stopped = False
        self._answer: Answer | Exception | None = None

        wide: dict[str, Any] = {"style": {"description_width": "9em"}, "layout": widgets.Layout(width="95%")}
        self.index = widgets.IntSlider(start.point, 0, len(measuring.images) - 1, description="Image", **wide)
        self.trigger = widgets.Dropdown(options=[NONE, *measuring.triggers], value=NONE, description="Trigger", **wide)
        self.sigma = widgets.FloatSlider(start.sigma, min=0, max=max(1, start.sigma), step=0.01, description="Noise σ", **wide)
        self.n = widgets.IntSlider(start.n, min(10, start.n), max(1000, start.n), 10, description="Noisy copies n", **wide)
        self.stop = widgets.Button(description="Stop", tooltip="Stop counting; the next move of a slider starts again")
        self.progress = widgets.IntProgress(description="Classified", **wide)
        self.picture = widgets.HTML()
        self._controls = (self.index, self.trigger, self.sigma, self.n)
        for control in self._controls:
            control.observe(self._ask, "value")
        self.stop.on_click(self._stop)
        super().__init__([*self._controls, widgets.HBox([self.progress, self.stop]), self.picture])
        self._ask()

    def wait(self, timeout: float | None = None) -> Answer:
        """Wait until counting has finished or was stopped, and return the results.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        RuntimeError
            If the network failed; the message contains the original error.
        """
        with self._lock:
            if not self._lock.wait_for(lambda: not self._busy, timeout):
                raise TimeoutError(f"the counts are not there after {timeout} seconds")
            if not isinstance(self._answer, Answer):
                raise RuntimeError(f"the computation failed: {self._answer}") from self._answer
            return self._answer

    def _ask(self, change: Any = None) -> None:
        """Start on the newest question; a computation in progress is abandoned."""
        with self._lock:
            self._asked, self._stopped = Question(*(control.value for control in self._controls)), False
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._work, daemon=True).start()

    def _stop(self, button: Any = None) -> None:
        self._stopped = True

    def _work(self) -> None:
        """Answer questions until there are none left; only one thread does this at a time."""
        while True:
            with self._lock:
                question, self._asked = self._asked, None
                if question is None:
                    self._busy = False
                    self._lock.notify_all()
                    return
            try:
                self._work_on(question)
            except Exception as problem:  # an exception in this thread would be lost otherwise
                self._answer = problem
                self.picture.value = f"The computation failed: {html.escape(str(problem))}"

    def _work_on(self, question: Question) -> None:
        drawn = time.monotonic()
        for answer in self._measuring.answers(question):
            self.progress.max, self.progress.value = question.n, answer.samples
            if self._asked is not None:
                return
            last = self._stopped or answer.samples == question.n
            if last or time.monotonic() - drawn > REDRAW:
                self._answer = answer
                words = html.escape(_in_words(answer, self._classes))
                picture = base64.b64encode(_png(answer, self._classes)).decode()
                self.picture.value = f'<img alt="{words}" src="data:image/png;base64,{picture}" style="max-width: 100%">'
                drawn = time.monotonic()
            if last:
                return


def _nobody_watches() -> bool:
    """Whether the front end of the kernel does not allow user input, as with papermill and nbconvert."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and not kernel.get_parent("shell")["content"].get("allow_stdin", True)


def _in_words(answer: Answer, classes: Sequence[str]) -> str:
    """Describe the picture in words, with one sentence per network."""
    asked = answer.question
    said = [f"Image {asked.point}, trigger {asked.trigger}, σ = {asked.sigma:g}, {answer.samples} of {asked.n} noisy copies."]
    for name, counts in answer.counts.items():
        seen = ", ".join(f"{classes[k]} {counts[k]}" for k in np.argsort(-counts)[:MOST_CLASSES] if counts[k])
        said.append(f"{name}: W = {plug_in(counts):.3f}; {seen}.")
    return " ".join(said)


def _png(answer: Answer, classes: Sequence[str]) -> bytes:
    """Draw the image, a noisy copy of it, and a histogram of the predicted classes for each network."""
    asked, networks = answer.question, len(answer.counts)
    total = np.sum(list(answer.counts.values()), axis=0)
    drawn = np.sort(np.argsort(-total, kind="stable")[:MOST_CLASSES])
    figure = Figure(figsize=(2.9 + 2.9 * networks, max(2.6, 0.9 + 0.2 * len(drawn))), layout="constrained")
    grid = figure.add_gridspec(2, 1 + networks, width_ratios=[1, *[2] * networks])
    for row, (title, shown) in enumerate((("image", answer.image), ("a noisy copy", answer.noisy))):
        axis = figure.add_subplot(grid[row, 0])
        axis.imshow(shown.detach().cpu().permute(1, 2, 0).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    for column, (name, counts) in enumerate(answer.counts.items()):
        axis = figure.add_subplot(grid[:, 1 + column])
        axis.barh(range(len(drawn)), counts[drawn], color=COLOURS[column % len(COLOURS)])
        axis.set(xlim=(0, asked.n), ylim=(len(drawn) - 0.5, -0.5), xlabel=f"of {asked.n} copies, σ = {asked.sigma:g}")
        axis.set_yticks(range(len(drawn)), [classes[k] for k in drawn], fontsize=8, parse_math=False)
        axis.spines[["top", "right"]].set_visible(False)
        says = f"W = {plug_in(counts):.3f} of {math.log(len(classes)):.3f}\nwithout noise: {classes[answer.predicted[name]]}"
        axis.set_title(f"{name}: {says}", fontsize=9, loc="left", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
