"""The pairs that methods are compared on, and their splits."""

from __future__ import annotations

from pathlib import Path

from varemb.data import INTERACTIONS, Interactions, Split, load_interactions
from varemb.data.interactions import read_edge_lists, read_interactions
from varemb.files import checksum


def load_pairs(data: str, data_dir: Path | None, columns: tuple[str, str]) -> Interactions:
    """The purchases that `data` names; arguments as in RankingComparison.

    Raises:
        ValueError: no such data, or its folder is not given.
        FileNotFoundError: a file is missing.
    """
    if data in INTERACTIONS:
        if data_dir is None:
            raise ValueError(f"--data {data} needs --data-dir, the folder with its files")
        return load_interactions(data, data_dir)
    path = Path(data)
    if path.is_dir():
        return read_edge_lists(path)
    if path.is_file():
        return read_interactions(path, *columns)
    raise ValueError(
        f"compare: no data {data!r} for models that rank, there are "
        f"{', '.join(INTERACTIONS)}; or give a file of pairs, or a folder with train.txt and "
        "test.txt"
    )


def keep_split(interactions: Interactions, seed: int, out: Path) -> Split:
    """The split of a seed, 50/25/25 per user, written into the folder if it is not there.

    Raises:
        ValueError: the folder holds a split of other pairs.
    """
    split, path = interactions.split(seed), out / f"split-seed{seed}.safetensors"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        split.save(path)
    elif content_of(Split.load(path)) != content_of(split):
        raise ValueError(f"{path} is a split of other pairs; give the same data or another --out")
    return split


def content_of(split: Split) -> str:
    """What tells splits of different pairs apart."""
    rows = [array for part in split.parts() for array in part]
    return f"checksum {checksum([split.user_ids, split.item_ids, *rows])}"
