"""Where a result comes from: the code, the device, and which weights exactly."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bslib.store import plain_text

__all__ = ["code_version", "device_name", "weights_digest"]


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file, in hexadecimal: which network exactly a record speaks of."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def device_name(device: torch.device) -> str:
    """The device in words: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return plain_text(torch.cuda.get_device_name(device))
    return plain_text(str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine()))


def code_version() -> str:
    """The package's version and, in a checkout, its commit; a ``+`` says that the package was changed since."""
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
