"""What the benchmark found, as a table and as a page of the book; reads the committed results and measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from bslib.store import published_folder

__all__ = ["SCHEMA", "Row", "as_page", "committed", "figure", "table"]

#: The shape of a result; another number where it changes.
SCHEMA = 2

Result = Mapping[str, Any]
#: How the table says it.
REACHED = {True: "reached", False: "**not reached**", None: ""}


def committed() -> dict[str, Result]:
    """The results in ``book/bench``, by the names of their files.

    Raises
    ------
    ValueError
        For a file of another schema.

    >>> all(result["schema"] == SCHEMA for result in committed().values())
    True
    """
    found = {}
    for path in sorted((published_folder().parent / "bench").glob("*.json")):
        found[path.stem] = json.loads(path.read_text("utf-8"))
        if (schema := found[path.stem].get("schema")) != SCHEMA:
            raise ValueError(f"{path} has schema {schema}, wanted is {SCHEMA}: make it anew with bslib bench --json")
    return found


class Row(NamedTuple):
    """A line of the table.

    Parameters
    ----------
    what, here, wanted : str
        What was measured, the number, and what it was to be; empty where nothing was asked for.
    reached : bool, optional
        Whether it is; None where nothing was asked for.
    """

    what: str
    here: str
    wanted: str = ""
    reached: bool | None = None


def table(found: Mapping[str, Any]) -> list[Row]:
    """What a result says, row by row.

    >>> row, = table({"parts": {"memory": {"peak_mib": {"250": 300.0, "10000": 303.0}, "ratio": 1.01}}})
    >>> row.what, row.here, row.wanted, row.reached
    ('peak memory, n = 10000 against n = 250', '1.010', 'at most 1.1', True)
    """
    parts = found["parts"]
    rows = [*_against_peers(parts, ""), *_against_peers(parts.get("tuned", {}).get("parts", {}), ", allocator tuned")]
    for entry in parts.get("peak", {}).get("runs", []):
        least, share = entry["wanted"], entry["share"]
        what = f"share of the GEMM peak, {entry['network']}, {entry['precision']}"
        rows.append(Row(what, f"{share:.1%}", *((f"at least {least:.0%}", share >= least) if least else ())))
    if "training" in parts:
        ratio, difference = parts["training"]["ratio"], parts["training"]["difference"]
        rows.append(
            Row(
                "one epoch of the larger Fashion network, against DataLoader",
                _ratio(ratio, parts["training"]["seconds"], "DataLoader"),
                "at least 4",
                ratio >= 4,
            )
        )
        rows.append(Row("clean accuracy after it, less the peer's", f"{difference:+.3f}", "-0.005 or more", difference >= -0.005))
    for entry in parts.get("training", {}).get("steps", []):
        rows.append(Row(f"a step of training, {entry['network']}, against torch alone", f"{entry['ratio']:.2f} x"))
    if "memory" in parts:
        (first, *_, last), ratio = parts["memory"]["peak_mib"], parts["memory"]["ratio"]
        rows.append(Row(f"peak memory, n = {last} against n = {first}", f"{ratio:.3f}", "at most 1.1", ratio <= 1.1))
    if "scaling" in parts:
        ratio = parts["scaling"]["ratio"]
        rows.append(Row("time for 16 times the points x n, by 16", f"{ratio:.3f}", "0.9 to 1.1", 0.9 <= ratio <= 1.1))
    for entry in parts.get("rounding", {}).get("runs", []):
        share = entry["change"] / entry["monte_carlo"]
        what = f"change of W by {entry['by']}, {entry['network']} ({entry['labels_changed']} of {entry['labels']} labels)"
        asked = ("at most 0.1", share <= 0.1) if entry["by"] != "bfloat16" else ()  # alone, it is not used
        rows.append(Row(what, f"{share:.3f} Monte-Carlo errors", *asked))
    hours = parts.get("plan", {}).get("hours", {})
    return [*rows, *(Row(f"the paper's whole plan, {name}", f"{time:.1f} h", "W alone") for name, time in hours.items())]


def _against_peers(parts: Mapping[str, Any], how: str) -> Iterator[Row]:
    for entry in (run for name in ("counts", "resnet") for run in parts.get(name, {}).get("runs", [])):
        for peer, ratio in entry["ratios"].items():
            asked = (f"at least {entry['wanted']}", ratio >= entry["wanted"]) if peer != "eager" else ()
            here = _ratio(ratio, entry["seconds"], peer)
            yield Row(f"W, {entry['network']}, {entry['precision']}, against {peer}{how}", here, *asked)
        yield from (Row(f"{entry['network']}: {peer}{how}", "not measured", why) for peer, why in entry["missing"].items())


def _ratio(ratio: float, seconds: Mapping[str, list[float]], peer: str) -> str:
    """The ratio of the medians, and how far the rounds lie apart, in each of which both had their turn.

    >>> _ratio(4.0, {"ours": [1.0, 2.0, 1.0], "loop": [3.0, 5.0, 4.0]}, "loop")
    '4.00 x (2.50 to 4.00)'
    """
    rounds = [theirs / ours for theirs, ours in zip(seconds[peer], seconds["ours"], strict=True)]
    return f"{ratio:.2f} x ({min(rounds):.2f} to {max(rounds):.2f})"


def as_page(results: Mapping[str, Result]) -> str:
    """All results as Markdown: a machine, its numbers, the detours; or which command makes one."""
    if not results:
        return "**Not yet run.** `bslib bench --json book/bench/NAME.json` measures this machine."
    return "\n\n".join(_section(name, result) for name, result in results.items())


def _section(name: str, result: Result) -> str:
    machine, parts = result["machine"], result["parts"]
    runs = [run for part in ("counts", "resnet") for run in parts.get(part, {}).get("runs", [])]
    engines = [f"{run['network']}: {run['engine']}" + _asked_twice(run) for run in runs]
    peaks = ", ".join(f"{peak / 1e9:.0f} GFLOP/s in {dtype}" for dtype, peak in parts.get("peak", {}).get("peaks", {}).items())
    days = sorted({part["measured"]["date"][:10] for part in parts.values()})
    codes = sorted({part["measured"]["code"] for part in parts.values()})
    lines = [
        f"**{machine['device']}**",
        "",
        f"`{name}.json`, {', '.join(days)}: {machine['threads']} of {machine['cores']} cores, "
        f"torch {machine['packages']['torch']}, code {', '.join(codes)}; medians of {result['settings']['repeats']} "
        "rounds, in brackets the smallest and the largest ratio of a round."
        + (f" A large matrix product runs at {peaks}." if peaks else "")
        + ("" if machine["bfloat16"] else " This machine does not multiply in bfloat16, so nothing is timed in it."),
        "",
        *(f"- {engine}" for engine in engines),
        "",
        "| | here | wanted | |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.here} | {row.wanted} | {REACHED[row.reached]} |" for row in table(result)),
    ]
    if detours := parts.get("detours"):
        for part, times in detours["seconds_an_image"].items():
            head = [f"| larger Fashion network, {part}, {detours['batch']} at a time | µs an image |", "|---|---|"]
            lines += ["", *head, *(f"| {who} | {seconds * 1e6:.1f} |" for who, seconds in times.items())]
        lines += ["", f"`torch.compile` took {detours['compiling']:.0f} s before its first result."]
        lines += [f"{who}: {why}" for who, why in detours["missing"].items()]
    return "\n".join(lines)


def _asked_twice(run: Mapping[str, Any]) -> str:
    return "" if run.get("close") is None else f"; {run['close']:.1%} were asked twice"


def figure(results: Mapping[str, Result]) -> Figure | None:
    """Images a second by each contender, a panel for each machine and network; None where there are no results."""
    runs = [
        (result["machine"]["device"], entry, part)
        for result in results.values()
        for name in ("counts", "resnet")
        for part in [result["parts"].get(name)]
        if part
        for entry in part["runs"]
    ]
    if not runs:
        return None
    drawn = Figure(figsize=(7, 1 + 1.5 * len(runs)), layout="constrained")
    for axis, (device, entry, _) in zip(drawn.subplots(len(runs), squeeze=False)[:, 0], runs, strict=True):
        rates = {"ours": entry["images_per_second"]}
        rates |= {who: entry["images_per_second"] / ratio for who, ratio in entry["ratios"].items()}
        bars = axis.barh(list(rates), list(rates.values()), color=["#1b6ca8", *["#9aa5b1"] * (len(rates) - 1)])
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.margins(x=0.12)
        axis.invert_yaxis()
        axis.set_title(f"{entry['network']}, {entry['precision']}, on {device}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("noisy images a second")
    return drawn
