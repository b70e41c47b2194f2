"""One module a chapter: its plan (specs), its analysis (records to numbers) and its claims (a TOML file beside it)."""

from __future__ import annotations

from importlib import import_module

from bslib.profiles import profile_named
from bslib.specs import Spec
from bslib.store import PUBLISHED

__all__ = ["CHAPTERS", "in_a_clone", "not_yet_run", "plan_of"]

#: The chapters by name, in the order of the book.
CHAPTERS = ("wobbliness", "parameters", "surface", "correlation", "patterns")


def plan_of(chapter: str, profile: str, *, seed: int = 0) -> list[Spec]:
    """Every spec of a chapter.

    >>> len(plan_of("wobbliness", "smoke"))
    2
    """
    if chapter not in CHAPTERS:
        raise ValueError(f"chapter must be one of {', '.join(CHAPTERS)}, got {chapter!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of 0 or more, got {seed!r}")
    plan: list[Spec] = import_module(f"bslib.chapters.{chapter}").plan(profile, seed=seed)
    return plan


def not_yet_run(chapter: str, profile: str, needs: str, *, held: int = 0, seed: int = 0) -> str:
    """What a page says where records are missing: what they need, and the command that computes them to where the page looks.

    >>> print(not_yet_run("surface", "smoke", "5 networks"))
    **Not yet run.** This needs 5 networks, and ... `bslib run surface --profile smoke` computes them.
    """
    store = in_a_clone(profile)
    options, where = store + (f" --seed {seed}" if seed else ""), " in a clone" if store else ""
    return (
        f"**Not yet run.** This needs {needs}, and the store holds {held or 'none'} of them measured. "
        f"`bslib run {chapter} --profile {profile}{options}` computes them{where}."
    )


def in_a_clone(profile: str) -> str:
    """The option with which ``bslib run`` completes, in a clone, the records that a page of a profile is drawn from.

    >>> in_a_clone("paper"), in_a_clone("smoke")
    (' --store book/records', '')
    """
    return " --store book/records" if profile_named(profile).store == PUBLISHED else ""
