"""What the benchmark found, as a table and as a page of the book; reads the committed results and measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from bslib.store import published_folder

__all__ = ["SCHEMA", "as_page", "committed", "figure", "table"]

#: The shape of a result; another number where it changes.
SCHEMA = 1

Result = Mapping[str, Any]


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


def table(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What a result says, as rows: what was measured, the number, what it is to be compared with.

    >>> table({"parts": {"memory": {"peak_mib": {"250": 300.0, "10000": 303.0}, "ratio": 1.01}}})
    [('peak memory, n = 10000 against n = 250', '1.01', 'at most 1.10')]
    """
    rows = []
    for title, parts in (("", found["parts"]), (", allocator tuned", found["parts"].get("tuned", {}).get("parts", {}))):
        for part in (parts[name] for name in ("counts", "resnet") if name in parts):
            for entry in part["runs"]:
                for peer, ratio in entry["ratios"].items():
                    wanted = f"at least {entry['wanted']}" if peer != "eager" else ""
                    rows.append((f"W, {entry['network']}, {entry['precision']}, against {peer}{title}", f"{ratio:.1f} x", wanted))
                rows.extend((f"{entry['network']}: {peer}{title}", "not measured", why) for peer, why in entry["missing"].items())
    parts = found["parts"]
    for entry in parts.get("peak", {}).get("runs", []):
        wanted = f"at least {entry['wanted']:.0%}" if entry["wanted"] else ""
        rows.append((f"share of the GEMM peak, {entry['network']}, {entry['precision']}", f"{entry['share']:.0%}", wanted))
    if "training" in parts:
        entry = parts["training"]
        rows.append(("one epoch of the larger Fashion network, against DataLoader", f"{entry['ratio']:.1f} x", "at least 4"))
        rows.append(("clean accuracy after it, less the peer's", f"{entry['difference']:+.3f}", "within 0.005"))
    if "memory" in parts:
        first, *_, last = parts["memory"]["peak_mib"]
        rows.append((f"peak memory, n = {last} against n = {first}", f"{parts['memory']['ratio']:.2f}", "at most 1.10"))
    if "scaling" in parts:
        rows.append(("time for 16 times the points x n, by 16", f"{parts['scaling']['ratio']:.2f}", "0.90 to 1.10"))
    for entry in parts.get("rounding", {}).get("runs", []):
        rows.append(
            (
                f"change of W by {entry['by']}, {entry['network']}, in Monte-Carlo errors",
                f"{entry['change'] / entry['monte_carlo']:.3f}",
                f"{entry['labels_changed']} of {entry['labels']} labels",
            )
        )
    rows.extend(
        (f"the paper's whole plan, {name}", f"{hours:.1f} h", "W alone")
        for name, hours in parts.get("plan", {}).get("hours", {}).items()
    )
    return rows


def as_page(results: Mapping[str, Result]) -> str:
    """All results as Markdown: a machine, its numbers, the detours; or which command makes one."""
    if not results:
        return "**Not yet run.** `bslib bench --json book/bench/NAME.json` measures this machine."
    return "\n\n".join(_section(name, result) for name, result in results.items())


def _section(name: str, result: Result) -> str:
    machine, parts = result["machine"], result["parts"]
    engines = {run["network"]: run["engine"] for part in ("counts", "resnet") for run in parts.get(part, {}).get("runs", [])}
    peaks = ", ".join(f"{peak / 1e9:.0f} GFLOP/s in {dtype}" for dtype, peak in parts.get("peak", {}).get("peaks", {}).items())
    days, codes = (
        sorted({part["measured"][key][:length] for part in parts.values()}) for key, length in (("date", 10), ("code", 99))
    )
    lines = [
        f"**{machine['device']}**",
        "",
        f"`{name}.json`, {', '.join(days)}: {machine['threads']} of {machine['cores']} cores, "
        f"torch {machine['packages']['torch']}, code {', '.join(codes)}; medians of {result['settings']['repeats']}."
        + (f" A large matrix product runs at {peaks}." if peaks else "")
        + ("" if machine["bfloat16"] else " This machine does not multiply in bfloat16, so its rows in bfloat16 are not there."),
        "",
        *(f"- {network}: {engine}" for network, engine in engines.items()),
        "",
        "| | here | wanted |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in table(result)),
    ]
    if detours := parts.get("detours"):
        for part, times in detours["seconds_an_image"].items():
            head = [f"| larger Fashion network, {part}, {detours['batch']} at a time | µs an image |", "|---|---|"]
            lines += ["", *head, *(f"| {who} | {seconds * 1e6:.1f} |" for who, seconds in times.items())]
        lines += ["", f"`torch.compile` took {detours['compiling']:.0f} s before its first result."]
        lines += [f"{who}: {why}" for who, why in detours["missing"].items()]
    return "\n".join(lines)


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
