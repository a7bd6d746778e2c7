"""Progress bars, which need tqdm only where they are shown, and searches that go on in steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

_ONLY_IN_TERMINALS = ContextVar("_ONLY_IN_TERMINALS", default=False)


@contextlib.contextmanager
def bars_only_in_terminals() -> Iterator[None]:
    """Inside the block, bars are shown only where stderr is a terminal, so that logs stay short.

    For commands. In Python `progress=True` shows bars in notebooks too, which are no terminals.
    """
    token = _ONLY_IN_TERMINALS.set(True)
    try:
        yield
    finally:
        _ONLY_IN_TERMINALS.reset(token)


class Bar(Protocol):
    """What searches do with a bar."""

    def update(self, n: float = 1) -> Any: ...

    def set_postfix(self, ordered_dict: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def make_bar(text: str, total: int, *, initial: int = 0, progress: bool) -> Bar | None:
    """A bar of tqdm that vanishes when it is closed; None without `progress`.

    Raises:
        ImportError: tqdm is not installed.
    """
    if not progress:
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "progress=True needs tqdm: pip install 'varemb[data]', or pass progress=False"
        ) from None
    disable = None if _ONLY_IN_TERMINALS.get() else False  # None: unless stderr is a terminal
    bar: Bar = tqdm(total=total, initial=initial, desc=text, leave=False, disable=disable)
    return bar


@contextlib.contextmanager
def closing(bar: Bar | None) -> Iterator[Bar | None]:
    """Closes the bar when its block ends, before an error is printed on the same line."""
    try:
        yield bar
    finally:
        if bar is not None:
            bar.close()


class Advancing(Protocol):
    """A search that goes on in steps and keeps a record of each."""

    history: list[dict[str, Any]]

    def advance(self) -> dict[str, Any]:
        """Makes the next step; returns its record."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""


def run_steps(
    name: str,
    search: Advancing,
    total: int,
    save: Callable[[dict[str, Any]], None],
    show: Callable[[dict[str, Any]], Mapping[str, Any]],
    *,
    progress: bool,
) -> None:
    """Makes the steps that are missing; everything is saved after each.

    Args:
        name: before the bar.
        search: whose history says how many steps are made.
        total: of the whole search.
        save: takes the search's state.
        show: a record -> what stands behind the bar.
        progress: show the bar.
    """
    bar = make_bar(name, total, initial=len(search.history), progress=progress)
    with closing(bar):
        while len(search.history) < total:
            record = search.advance()
            search.history.append(record)
            save(search.state())
            if bar is not None:
                bar.update()
                bar.set_postfix(show(record))
