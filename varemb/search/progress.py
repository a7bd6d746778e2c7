"""Progress bars, which need tqdm only where they are shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol


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
    bar: Bar = tqdm(total=total, initial=initial, desc=text, leave=False)
    return bar


@contextlib.contextmanager
def closing(bar: Bar | None) -> Iterator[Bar | None]:
    """Closes the bar when its block ends, before an error is printed on the same line."""
    try:
        yield bar
    finally:
        if bar is not None:
            bar.close()
