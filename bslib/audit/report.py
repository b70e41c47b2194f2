"""The audit's result: one HTML page that works offline, or JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bslib.audit.evidence import MOST_LISTED
from bslib.audit.judging import ALONE, ANSWERS, LEVEL, LIKELY, NO_SIGN, OWN
from bslib.files import atomic_path

__all__ = ["SCHEMA", "Audit"]

#: Version of the JSON; it changes when a name disappears or changes its meaning.
SCHEMA = "bslib-audit-1"
COLOURS = {LIKELY: "#c23b22", NO_SIGN: "#1b7f5c"}
BLIND = (
    "What this audit cannot see: backdoors that send each class to another one, not all images to one class (the book's T2); "
    "triggers that are no patch at a fixed place, such as warps, filters, or a change of the whole image; triggers that need "
    "more pixels than classes differ in; attacks made to evade Neural Cleanse; and harm of any other kind. "
    '"No sign found" is not a proof.'
)
CLASS_HEAD = (
    "class", "pixels", "p", "success", "on other images", "W clean", "W with it", "p (lower W)", "score of spread", "STRIP",
    "logit variance",
)  # fmt: skip
STYLE = """<style>
.audit {font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 1em auto; padding: 0 1em; color: #222; background: #fff}
.audit .verdict {color: #fff; padding: .6em 1em; border-radius: 6px; font-size: 1.5em}
.audit table {border-collapse: collapse; margin: .6em 0; font-size: .9em} .audit img {max-width: 100%}
.audit th, .audit td {border-bottom: 1px solid #ddd; padding: .2em .7em; text-align: right}
.audit td:first-child, .audit .facts td {text-align: left}
.audit .flagged {background: #fbe3de} .audit small {color: #555}
</style>"""


@dataclass(frozen=True, repr=False)
class Audit:
    """What an audit found. It displays itself in a notebook; :meth:`save` writes the page or the JSON.

    Parameters
    ----------
    found : dict
        Plain values, as in :meth:`as_dict`.
    pictures : dict of str to ndarray
        Clean images, masks and patterns of the smallest candidates in ascending order, and images with the user's trigger.
    """

    found: Mapping[str, Any]
    pictures: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One of "backdoor likely", "no sign found" and "not enough evidence"."""
        return str(self.found["verdict"])

    @property
    def exit_code(self) -> int:
        """0 for no sign found, 1 for backdoor likely, 3 for not enough evidence."""
        return ANSWERS[self.verdict]

    def __repr__(self) -> str:
        return f"Audit({self.verdict!r}, p={self.found['p']:.3g}, reasons={self.found['reasons']!r})"

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON can hold it: NaN and infinity become None. The page *Audit* has the schema."""
        return dict(_plain({"schema": SCHEMA, **self.found}))

    def save(self, path: str | Path) -> None:
        """Write JSON to a path that ends with ``.json``, and otherwise the HTML page."""
        path = Path(path)
        text = json.dumps(self.as_dict(), indent=1) + "\n" if path.suffix == ".json" else self.html()
        with atomic_path(path) as part:
            part.write_text(text, "utf-8", errors="replace")  # names of files may hold bytes that are no UTF-8

    def html(self) -> str:
        """The report as a page that loads nothing."""
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Audit: ' + escape(self.verdict) + "</title>"
        return f"{head}<body>{self._repr_html_()}</body></html>\n"

    def _repr_html_(self) -> str:
        found, colour = self.as_dict(), COLOURS.get(self.verdict, "#7a6a00")
        flagged = [bool(row["p"] <= found["sizes"]["level"]) for row in self._by_size()]
        parts = [
            f'<p class="verdict" style="background:{colour}"><b>{escape(self.verdict.capitalize())}</b></p>',
            *(f"<p>{escape(reason[:1].upper() + reason[1:])}.</p>" for reason in found["reasons"]),
            f"<p>{escape(self.false_alarms())}</p><p>{BLIND}</p>",
            "<h2>Trigger candidates, the smallest first</h2>" + _image(self._candidates()),
            _table(CLASS_HEAD, self._class_rows(), flagged),
            "<h2>W and noise</h2>" + _image(self._w_curves()) + f"<p>{escape(self._noise())}</p>",
            self._own_trigger() if found["trigger"] else "",
            self._suspicious(),
            "<h2>Networks whose truth is known</h2>" + self._calibration(),
            *(
                f"<h2>{name.capitalize()}</h2>{_facts(found[name])}"
                for name in ("about", "images", "network", "settings", "made with", "seconds")
            ),
        ]
        return f'{STYLE}<div class="audit">{"".join(parts)}</div>'

    def _own_trigger(self) -> str:
        own = dict(self.as_dict()["trigger"])
        tests = own.pop("W")
        table = _table(["sigma", *next(iter(tests.values()))], [[sigma, *test.values()] for sigma, test in tests.items()])
        return "<h2>Your trigger</h2>" + _image(_row_of(self.pictures["trigger"])) + _facts(own) + table

    def _suspicious(self) -> str:
        inputs = self.as_dict()["inputs"]
        text = f"of {inputs['examined']} examined, at sigma {inputs['sigma']:g}. A list to look at: a few calm images are chance."
        table = _table(["image", "predicted as", "W", "median of its class"], [list(row.values()) for row in inputs["listed"]])
        listed = f"The first {MOST_LISTED}" if len(inputs["listed"]) == MOST_LISTED else len(inputs["listed"])
        return f"<h2>Suspicious images</h2><p>{listed} {text}</p>{table}"

    def false_alarms(self) -> str:
        """How often clean networks are accused, in words."""
        sizes, own = self.found["sizes"], OWN if self.found["trigger"] else 0
        level, null = sizes["level"], sizes["p of references"]
        text = f'The answer "backdoor likely" is given at p ≤ {level:.3g} of the smallest candidate'
        text += f", or p ≤ {own:.3g} of your trigger" if own else ""
        text += f", so at most {100 * (level + own):.3g}% of clean networks are accused wrongly, "
        text += "if the logarithms of the candidates' sizes scatter normally. "
        if len(null) > 1:
            accused = sum(p <= level for p in null)
            return f"{text}Of your {len(null)} reference networks, each against the others, {accused} would be accused."
        clean = [row[f"flagged at {ALONE:g}"] for row in self.found["calibration"] if row["trigger"] is None]
        accused, of = (sum(row[name] for row in clean) for name in ("count", "of"))
        text += f"Of the {of} clean networks of the book's records, {accused} are accused at {ALONE:.0%}. " if of else ""
        return f"{text}Some classes have small candidates in every network; clean networks of your own (--reference) show this."

    def _noise(self) -> str:
        noise = self.found["noise"]
        doubt = " At no level is W informative, so these tests say little." if noise["degenerate"] else ""
        use = f"Tests of W use sigma {noise['chosen']:g}."
        return f"{use} With a candidate W is often lower in clean networks too: compare classes.{doubt}"

    def _by_size(self) -> list[dict[str, Any]]:
        """What was found for each class, the smallest candidate first; candidates without success come last."""
        return sorted(self.found["classes"], key=lambda row: (np.isnan(row["success"]), row["norm"]))

    def _class_rows(self) -> list[list[Any]]:
        rows = []
        for row in self._by_size():
            w = row.get("W", {}).get(f"{self.found['noise']['chosen']:g}", {})
            of_w = [w.get(name) for name in ("clean mean", "mean", "p lower", "score")]
            size = [row[name] for name in ("class", "norm", "p", "success", "success held out")]
            rows.append([*size, *of_w, row.get("STRIP"), row.get("logit shift")])
        return rows

    def _calibration(self) -> str:
        rows = [
            [row["data"], row["trigger"] or "clean", *(_share(row[f"flagged at {level:g}"]) for level in (LEVEL, ALONE))]
            for row in self.found["calibration"]
        ]
        return _table(["data", "trigger", "flagged at 5%", "flagged at 1%"], rows)

    def _candidates(self) -> Figure | None:
        if "masks" not in self.pictures:
            return None
        masks, patterns = self.pictures["masks"], self.pictures["patterns"]
        titles = [f"class {row['class']}" for row in self._by_size()[: len(masks)]]
        return _row_of(masks * patterns + (1 - masks) * 0.5, titles)  # on grey, so that black pixels are seen

    def _w_curves(self) -> Figure:
        figure, noise = Figure(figsize=(7, 3), layout="constrained"), self.found["noise"]
        axis = figure.subplots()
        axis.plot(noise["sigmas"], noise["mean W"], "o-", color="#222222", label="clean images")
        worst = self.found["sizes"]["most suspicious class"]
        for row in self.found["classes"]:
            means = [(float(s), test["mean"]) for s, test in row.get("W", {}).items()]
            suspect = row["class"] == worst
            label = f"with the candidate of class {worst}" if suspect else None
            axis.plot(*zip(*means, strict=True), "-", color="#c23b22" if suspect else "#bbbbbb", label=label) if means else None
        axis.set(xscale="log", xlabel="sigma", ylabel="mean W (nats)")
        axis.set_xticks(noise["sigmas"], [f"{sigma:g}" for sigma in noise["sigmas"]])
        axis.minorticks_off()
        axis.legend(frameon=False)
        return figure


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _row_of(images: NDArray[Any], titles: Sequence[str] = ()) -> Figure:
    """Images side by side."""
    figure = Figure(figsize=(1.2 * len(images), 1.5), layout="constrained")
    for at, (axis, image) in enumerate(zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True)):
        shown = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
        axis.imshow(shown.clip(0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(titles[at] if titles else "", fontsize=8)
        axis.axis("off")
    return figure


def _image(figure: Figure | None) -> str:
    if figure is None:
        return "<p>There are none.</p>"
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'


def _table(head: Iterable[str], rows: Sequence[Sequence[Any]], flagged: Sequence[bool] = ()) -> str:
    if not rows:
        return "<p>(none)</p>"
    lines = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"]
    for row, mark in zip(rows, flagged or [False] * len(rows), strict=True):
        lines.append(f"<tr{' class=flagged' * mark}>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else escape(str(value))


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [[name, json.dumps(value) if isinstance(value, Mapping | list) else value] for name, value in facts.items()]
    return f'<div class="facts">{_table(["", ""], rows)}</div>'


def _share(part: Mapping[str, float]) -> str:
    return f"{part['count']} of {part['of']} [{part['low']:.0%}, {part['high']:.0%}]"
