"""Progress bars that appear after two seconds, one line for each process."""

from __future__ import annotations

import multiprocessing
import re
from typing import Any

from tqdm.auto import tqdm

__all__ = ["bar"]


def bar(*, show: bool = True, **options: Any) -> tqdm[Any]:
    """Create a tqdm bar that appears after two seconds and is cleared when it closes.

    A worker process draws its bar on the line of its process number, below the bar of the plan.

    Parameters
    ----------
    show : bool
        Whether to draw the bar.
    options
        Options of tqdm: total, desc, unit ...

    >>> with bar(total=3, show=False) as b:
    ...     _ = b.update()
    """
    number = re.search(r"-(\d+)$", multiprocessing.current_process().name)
    position = int(number[1]) if number else None
    return tqdm(disable=not show, delay=2, leave=False, position=position, **options)
