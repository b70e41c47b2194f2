"""What makes the pages good to read: API pages, links from figures to code, meanings on hover, notebooks for plain Jupyter."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from functools import cache
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import bslib

API = "book/executed/api"


# --- one API page a module


@cache
def documented() -> dict[str, ModuleType]:
    """The modules of the package that have public names."""
    names = sorted(found.name for found in pkgutil.walk_packages(bslib.__path__, "bslib."))
    modules = {name: importlib.import_module(name) for name in names}
    return {name: module for name, module in modules.items() if public(module)}


def public(module: ModuleType) -> list[str]:
    """The names in ``__all__``, or all without an underscore; without functions and classes of other modules."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        return [name for name, own in vars(module).items() if not name.startswith("_") and inspect.getmodule(own) is module]
    foreign = {name for name, own in vars(module).items() if inspect.isfunction(own) or inspect.isclass(own)}
    return [name for name in listed if name not in foreign or getattr(module, name).__module__ in (module.__name__, "builtins")]


def write_api_pages(root: Path) -> None:
    folder = root / API
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in documented().items():
        page = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members: {', '.join(public(module))}\n```\n"
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text("utf-8") != page:
            path.write_text(page, "utf-8")


def forget_unlisted(app: Sphinx, env: Any) -> None:
    """Drop modules without source, which viewcode lists although it has no page of them."""
    env._viewcode_modules = {name: entry for name, entry in getattr(env, "_viewcode_modules", {}).items() if entry}


class Modules(SphinxDirective):
    """A list of all API pages with the first sentence of each module."""

    def run(self) -> list[nodes.Node]:
        first = {name: (module.__doc__ or "").strip().splitlines()[0] for name, module in documented().items()}
        return self.parse_text_to_nodes("\n".join(f"- [{name}](executed/api/{name}.md): {text}" for name, text in first.items()))


# --- from a figure to the function that draws it


def link_code(app: Sphinx, doctree: nodes.document) -> None:
    """Add to each figure's caption a link to the source of the function that its cell calls."""
    cells = [node for node in doctree.findall(nodes.container) if node.get("nb_element") == "cell_code"]
    texts = {id(cell): "\n".join(block.astext() for block in cell.findall(nodes.literal_block)) for cell in cells}
    imported = dict(
        (name.strip(), module)
        for module, names in re.findall(r"^from (bslib[\w.]*) import ([^(\n]+)$", "\n".join(texts.values()), re.MULTILINE)
        for name in names.split(",")
    )
    up = "../" * app.env.docname.count("/")
    for cell in cells:
        call = re.search(r"^(\w+)\.(\w+)\(", texts[id(cell)], re.MULTILINE)
        caption = next(iter(cell.findall(nodes.caption)), None)
        if not call or caption is None or call[1] not in imported:
            continue
        function = inspect.unwrap(getattr(importlib.import_module(f"{imported[call[1]]}.{call[1]}"), call[2]))
        place = f"{up}_modules/{function.__module__.replace('.', '/')}.html#{function.__qualname__}"
        if app.builder.name == "html":
            link = nodes.reference("", call[2], refuri=place, internal=True)
            caption += [nodes.Text(" Code: "), link, nodes.Text(".")]


# --- meanings on hover


#: Words of the glossary that are mostly verbs elsewhere.
VERBS = {"cover", "poisons", "repeat", "spread", "store"}


def link_terms(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Link the first use of each word of the glossary on a page, with its meaning as a title."""
    if page == "book/glossary" or page.startswith((API, "book/api")) or app.builder.name != "html":
        return
    glossary = app.env.get_doctree("book/glossary")
    meanings = {}
    for item in glossary.findall(nodes.definition_list_item):
        term = next(iter(item.findall(nodes.term)))
        meanings[term.astext()] = (term["ids"][0], " ".join(next(iter(item.findall(nodes.definition))).astext().split()))
    address = app.builder.get_relative_uri(page, "book/glossary")
    skip = (nodes.reference, nodes.title, nodes.literal, nodes.literal_block, nodes.math, nodes.caption, nodes.raw)
    texts = [
        text
        for paragraph in doctree.findall(nodes.paragraph)
        for text in paragraph.findall(nodes.Text)
        if not any(isinstance(parent, skip) for parent in _parents(text))
    ]
    for term in sorted(meanings.keys() - VERBS, key=len, reverse=True):
        pattern = re.compile(rf"\b{re.escape(term)}(?:s|es)?\b", re.IGNORECASE if term.islower() else 0)
        for place, text in enumerate(texts):
            if found := pattern.search(text.astext()):
                identifier, meaning = meanings[term]
                link = nodes.reference(
                    "", found[0], refuri=f"{address}#{identifier}", internal=True, reftitle=meaning, classes=["term"]
                )
                before, after = nodes.Text(text.astext()[: found.start()]), nodes.Text(text.astext()[found.end() :])
                text.parent.replace(text, [before, link, after])
                texts[place : place + 1] = [before, after]
                break


def _parents(node: nodes.Node) -> Any:
    while node := node.parent:
        yield node


# --- the head of a page


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """A title that does not say the book's name twice, and a description from the first paragraph."""
    if page == app.config.root_doc:
        context["title"] = "What was found"
    if doctree is not None and (first := next(iter(doctree.findall(nodes.paragraph)), None)) is not None:
        text = escape(" ".join(first.astext().split())[:200])
        context["metatags"] = context.get("metatags", "") + f'<meta name="description" content="{text}">'


def offer_launch(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """A button that opens a notebook in Binder, once the repository has an address."""
    address, notebook = app.config.book_repository.rstrip("/"), f"notebooks/{page.rpartition('/')[2]}.ipynb"
    if address and (Path(app.srcdir) / notebook).is_file():
        place = address.removeprefix("https://github.com/")
        url = f"https://mybinder.org/v2/gh/{place}/HEAD?urlpath=lab/tree/{notebook}"
        button = {"type": "link", "url": url, "icon": "fas fa-rocket", "tooltip": "Run this page in Binder", "label": "launch"}
        context["header_buttons"].append(button)


# --- notebooks that plain Jupyter can show


def plain_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Rewrite the notebooks that readers download: words for roles and directives, and captions under figures."""
    if error or app.builder.name != "html":
        return
    for path in Path(app.outdir, "_sources").rglob("*.ipynb"):
        page = path.relative_to(Path(app.outdir, "_sources")).with_suffix("").as_posix()
        notebook = json.loads(path.read_text("utf-8"))
        figures = {
            name: ".".join(map(str, n)) for docs in app.env.toc_fignumbers.values() for name, n in docs.get("figure", {}).items()
        }
        cells = []
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "markdown":
                cell["source"] = _plain("".join(cell["source"]), figures, app).splitlines(keepends=True)
            cells.append(cell)
            figure = cell["metadata"].get("mystnb", {}).get("figure")
            if figure and figure.get("name") in app.env.toc_fignumbers.get(page, {}).get("figure", {}):
                text = f"**Figure {figures[figure['name']]}.** {_plain(figure['caption'], figures, app)}"
                cells.append({"cell_type": "markdown", "id": f"caption-{number}", "metadata": {}, "source": [text]})
        path.write_text(json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False), "utf-8")


def _plain(text: str, figures: dict[str, str], app: Sphinx) -> str:
    def cite(match: re.Match[str]) -> str:
        entries = app.env.get_domain("cite").bibdata.data.entries
        named = []
        for key in match[2].split(","):
            entry = entries[key.strip()]
            people = [" ".join(person.last_names) for person in entry.persons["author"]]
            who = people[0] if len(people) == 1 else " and ".join(people) if len(people) == 2 else f"{people[0]} et al."
            named.append(f"{who}, {entry.fields['year']}" if match[1] == "p" else f"{who} ({entry.fields['year']})")
        return f"({'; '.join(named)})" if match[1] == "p" else " and ".join(named)

    text = re.sub(r"\{cite:([pt])\}`([^`]+)`", cite, text)
    text = re.sub(r"\{numref\}`([^`]+)`", lambda match: f"Figure {figures[match[1]]}", text)
    text = re.sub(r"\{[\w:]+\}`(?:[^`<]*<)?([^`>]+)>?`", r"`\1`", text)
    text = re.sub(r"^:::+ ?\{[\w-]+\} ?(.*)$", r"**\1**", text, flags=re.MULTILINE)
    text = re.sub(r"^(:::+|:class:.*)$", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\.(?:md|ipynb)[^)]*\)", r"*\1*", text)


def setup(app: Sphinx) -> dict[str, bool]:
    write_api_pages(Path(app.srcdir))
    app.add_directive("modules", Modules)
    app.connect("env-updated", forget_unlisted)
    app.connect("doctree-read", link_code)
    app.connect("doctree-resolved", link_terms)
    app.add_config_value("book_repository", "", "html")
    app.connect("html-page-context", describe)
    app.connect("html-page-context", offer_launch, priority=600)  # the theme makes its buttons at 501
    app.connect("build-finished", plain_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
