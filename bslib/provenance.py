"""Provenance of a result: code version and device."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bslib.store import plain_text

__all__ = ["code_version", "device_name"]


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the CPU."""
    if device.type == "cuda":
        return plain_text(torch.cuda.get_device_name(device))
    return plain_text(str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine()))


def code_version() -> str:
    """Return the package version and, in a checkout, the commit, with a ``+`` if there are uncommitted changes."""
    try:
        number = version("bslib")
    except PackageNotFoundError:
        number = "unknown"
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return f"{number} ({git('rev-parse', '--short=12', 'HEAD')}{'+' if git('status', '--porcelain', '.') else ''})"
    except (OSError, subprocess.CalledProcessError):
        return number
