"""Progress bars that appear only where something takes longer than two seconds, one line a process."""

from __future__ import annotations

import multiprocessing
import re
from typing import Any

from tqdm.auto import tqdm

__all__ = ["bar"]


def bar(*, show: bool = True, **options: Any) -> tqdm[Any]:
    """A tqdm bar after two seconds, which leaves no trace when it is done.

    A worker process draws its bar on the line of its number, below the bar over the plan.

    Parameters
    ----------
    show : bool
        Whether to draw it at all.
    options
        tqdm's: total, desc, unit ...

    >>> with bar(total=3, show=False) as b:
    ...     _ = b.update()
    """
    number = re.search(r"-(\d+)$", multiprocessing.current_process().name)
    position = int(number[1]) if number else None
    return tqdm(disable=not show, delay=2, leave=False, position=position, **options)
