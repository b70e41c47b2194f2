"""What the book's pages need beyond their theme and the usual extensions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bslib.cost import as_markdown
from bslib.markdown import markdown_table


class Cost(SphinxDirective):
    """What networks cost to compute, by the committed records: a table that is made when the page is."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(as_markdown())


class Reliability(SphinxDirective):
    """What was killed, made to fail and fuzzed: the counts of ``reliability.json`` beside the page."""

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.doc2path(self.env.docname)).with_suffix(".json")
        self.env.note_dependency(str(path))
        found = json.loads(path.read_text("utf-8"))
        hows, kinds = list(found["interrupted"]), ("inputs", "refused", "read as before", "read as changed", "longest seconds")
        changes = {name: [found["interrupted"][how][name] for how in hows] for name in found["interrupted"][hows[0]]}
        fuzzed = {name: [row.get(kind, 0) for kind in kinds] for name, row in found["fuzzed"].items()}
        runs = ", ".join(f"{count} {name}" for name, count in found.get("runs", {}).items())
        runs = runs or "not yet counted; `python benchmarks/reliability.py --json book/reliability.json --only runs` does it"
        total = sum(row["inputs"] for row in found["fuzzed"].values())

        def numbers(rows: Mapping[str, Iterable[float]]) -> list[list[str]]:
            return [[name, *(f"{number:,}" for number in row)] for name, row in rows.items()]

        lines = [
            markdown_table(("file operations, each interrupted once, by", *hows), numbers(changes), right=True), "",
            markdown_table(("fuzzed", *kinds), numbers(fuzzed), right=True), "",
            f"Runs: {runs}. In all {total:,} fuzzed files; the process that read them held at most {found['peak MiB']:,} MiB."
            f" **Broken promises: {len(found['failures'])}.** Code {found['code']}, {found['date'][:10]}.",
        ]  # fmt: skip
        return self.parse_text_to_nodes("\n".join(lines))


def tidy_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Drop thebe, which Jupyter Book always adds and which asks a CDN, and inline scripts that a page has twice."""
    kept, seen = [], set()
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", script) or "")
        body = (getattr(script, "attributes", None) or {}).get("body") or ""
        if "thebe" in name or "THEBE_JS_URL" in body or (body and body in seen):
            continue
        seen.add(body)
        kept.append(script)
    context["script_files"] = kept
    context["css_files"] = [css for css in context.get("css_files", []) if "thebe" not in str(getattr(css, "filename", css))]


def tidy_lists(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Mend two lists for those who hear the page: the bibliography and a signature of several lines.

    Some of the roles docutils gives are deprecated, and no list may have such children. Sphinx sets the parameters of a
    long signature as definitions without a term.
    """
    body = re.sub(r' role="(list|doc-biblioentry|doc-backlink)"', "", context.get("body", ""))
    context["body"] = re.sub(r'<dt class="sig .*?</dt>', _signature_as_list, body, flags=re.DOTALL)


def _signature_as_list(signature: re.Match[str]) -> str:
    text = signature.group().replace("<dl>", '<ul class="parameters">').replace("</dl>", "</ul>")
    return text.replace("<dd>", "<li>").replace("</dd>", "</li>")


def head_examples(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give an example that ends a docstring its heading: napoleon takes it for part of the section above otherwise."""
    first = next((i for i, line in enumerate(lines) if line.startswith(">>>")), None)
    if first is not None and "Examples" not in lines:
        lines[first:first] = ["Examples", "--------", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("cost", Cost)
    app.add_directive("reliability", Reliability)
    app.connect("html-page-context", tidy_scripts, priority=900)
    app.connect("html-page-context", tidy_lists)
    app.connect("autodoc-process-docstring", head_examples, priority=400)  # napoleon comes at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
