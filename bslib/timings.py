"""Speed of W: a figure, text and tables from the results that ``benchmarks/speed.py`` writes to ``book/bench``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from bslib.markdown import markdown_table
from bslib.store import published_folder

__all__ = ["committed", "figure", "prose", "rows", "table", "tables"]

Result = Mapping[str, Any]


def committed() -> dict[str, Result]:
    """Return the results in ``book/bench`` by file name."""
    folder = published_folder().parent / "bench"
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def rows(result: Result) -> list[dict[str, Any]]:
    """Return the rows with medians and the speed-up per image over the baseline: usual loop, DataLoader or shorter scaling run.

    >>> row = {"what": "W", "network": "a", "units": 10}
    >>> loop, ours = row | {"contender": "textbook loop", "seconds": [8]}, row | {"contender": "default", "seconds": [1, 2, 9]}
    >>> [(row["seconds"], row["speed-up"]) for row in rows({"rows": [loop, ours]})]
    [(8, 1.0), (2, 4.0)]
    """
    found = [{k: statistics.median(v) if v and isinstance(v, list) else v for k, v in row.items()} for row in result["rows"]]
    usual = {(r["what"], r["network"]): r for r in found if r["contender"] in ("textbook loop", "DataLoader", "once")}
    for row in found:
        if (other := usual.get((row["what"], row["network"]))) and row["seconds"]:
            row["speed-up"] = other["seconds"] / other["units"] / (row["seconds"] / row["units"])
    return found


def figure(results: Mapping[str, Result]) -> Figure | None:
    """Plot the speed-up over the textbook loop by network, one panel per machine; None if there are no results of W."""
    panels = {f"{r['machine']['device']} ({n})": [row for row in rows(r) if row["what"] == "W"] for n, r in results.items()}
    if not any(panels.values()):
        return None
    drawn = Figure(figsize=(7, 3.5 * len(panels)), layout="constrained")
    for axis, (title, found) in zip(drawn.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        networks = list(dict.fromkeys(row["network"] for row in found))
        for who, color, shift in (("default", "#1b6ca8", -0.2), ("float32", "#9aa5b1", 0.2)):
            bars = {networks.index(row["network"]) + shift: row["speed-up"] for row in found if row["contender"] == who}
            axis.bar_label(axis.barh(list(bars), list(bars.values()), 0.4, color=color, label=who), fmt="%.1f", padding=3)
        axis.set_yticks(range(len(networks)), networks)
        axis.set(title=title, xlabel="times as fast as the textbook loop", ylim=(len(networks) - 0.5, -0.5), xmargin=0.1)
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return drawn


def prose(results: Mapping[str, Result]) -> str:
    """Describe the cost of W, what makes it fast, and which networks run in eager mode; without results, the command to run.

    >>> prose({})
    '**Not yet run.** `python benchmarks/speed.py --json book/bench/NAME.json` measures this machine.'
    """
    found = [(result["machine"]["device"], row) for result in results.values() for row in rows(result)]
    default = [(device, row) for device, row in found if row["what"] == "W" and row["contender"] == "default"]
    if not default:
        return "**Not yet run.** `python benchmarks/speed.py --json book/bench/NAME.json` measures this machine."
    large = [(device, row) for device, row in default if row["network"] == "larger-fashion"]
    costs = [f"{r['seconds']:.2g} s on {device} (the textbook loop: {r['seconds'] * r['speed-up']:.2g} s)" for device, r in large]
    eager = [f"{row['network']} on {device}" for device, row in default if row["engine"].startswith("eager")]
    changed, labels = (sum(row[key] for _, row in found if row["what"] == "labels") for key in ("changed", "units"))
    differ = "differs" if changed == 1 else "differ"
    compared = f", and {changed:,} of {labels:,} noisy labels {differ} from those of float32 alone" if labels else ""
    return (
        f"The larger Fashion network classifies {large[0][1]['units']:,} noisy copies in {' and in '.join(costs)}. What makes it "
        "fast is OpenVINO, and bfloat16 where the CPU multiplies in it; images whose two largest logits are nearly tied run once "
        f"more in float32{compared}. A network stays as it is (*eager*) where the expected time does not make up for a "
        f"conversion, or where it is no faster; here: {', '.join(eager) or 'none'}."
    )


def table(result: Result) -> str:
    """Return a description of the machine and a Markdown table of all rows.

    >>> row = {"what": "memory", "network": "a", "contender": "default", "seconds": [], "units": 5000, "MiB": 300.4}
    >>> print(table({"machine": {"amx": False}, "measured": {}, "rows": [row | {"engine": "eager"}]}).splitlines()[-1])
    | memory | a | default | 5,000 |  |  | MiB 300 | eager |
    """
    found = rows(result)
    head = ["what", "network", "contender", "images", "seconds", "speed-up", "also", "what runs"]
    facts = [f"{key} {value}" for key, value in result["machine"].items()]
    facts += [f"{part}: code {measured['code']}, {measured['date'][:10]}" for part, measured in result["measured"].items()]
    lines = []
    for row in sorted(found, key=lambda row: [other["what"] for other in found].index(row["what"])):
        also = ", ".join(f"{k} {_said(row[k])}" for k in ("near ties", "changed", "MiB", "peak share", "accuracy") if k in row)
        cells = [row["what"], row["network"], row["contender"], row["units"], row["seconds"], row.get("speed-up", "")]
        lines.append([_said(cell) for cell in (*cells, also, row["engine"])])
    return f"{'; '.join(facts)}.\n\n{markdown_table(head, lines)}"


def tables(results: Mapping[str, Result]) -> str:
    """Return the tables of all machines, each in a collapsed HTML section."""
    folded = (f"<details>\n<summary>Medians of {n}</summary>\n\n{table(r)}\n\n</details>" for n, r in results.items())
    return "\n\n".join(folded) or "There are no tables yet."


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value or "")
