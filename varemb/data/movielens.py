"""MovieLens 1M (Harper and Konstan, ACM TiiS 5(4), 2015): who likes which movie.

One row per rating, in the order of the file; the label is rating >= 4. Eight fields: movieId, year
(from the title's last parentheses), genres (the distinct combinations), userId, gender, age,
occupation, zip. Read from the publisher's ratings.dat, users.dat, movies.dat, or from
Parquet files with the same columns; both give the same data.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from varemb.data.base import ClickData, from_columns
from varemb.data.columns import check_columns
from varemb.data.text import open_text

Columns = dict[str, npt.NDArray[Any]]

_WHOLE = {"user_id", "movie_id", "rating", "age", "occupation", "year"}
_PARQUET = {
    "ratings": ("user_id", "movie_id", "rating"),
    "users": ("user_id", "gender", "age", "occupation", "zip"),
    "movies": ("movie_id", "year", "genres"),
}
_DAT = {
    "ratings": ("user_id", "movie_id", "rating", "timestamp"),
    "users": ("user_id", "gender", "age", "occupation", "zip"),
    "movies": ("movie_id", "title", "genres"),
}
_LARGEST = 10**18 - 1  # 18 digits, which int64 holds
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
_YEAR = re.compile(r"\((\d{4})\)\s*$")


def load_ml1m(folder: str | os.PathLike[str], *, min_ratings: int = 1) -> ClickData:
    """The ratings of MovieLens 1M as ClickData with eight fields.

    Args:
        folder: holds ratings.dat, users.dat and movies.dat, or ratings.parquet, users.parquet and
            movies.parquet, itself or in a folder ml-1m. Parquet is read where both are there.
        min_ratings: movies with fewer ratings share one id of movieId.

    Raises:
        FileNotFoundError: the folder or one of its files is missing; the message names it.
        ValueError: a column is missing or holds something else; the message names file and column.
        ImportError: Parquet files without the package that reads them.
    """
    tables = _read(Path(folder))
    ratings, users, movies = tables["ratings"], tables["users"], tables["movies"]
    user = _find(ratings, users, "user_id", "users")
    movie = _find(ratings, movies, "movie_id", "movies")
    if not ((ratings["rating"] >= 1) & (ratings["rating"] <= 5)).all():
        raise ValueError("load_ml1m: ratings, column rating: must be 1 to 5")
    movie_id = ratings["movie_id"]
    rare = np.bincount(movie)[movie] < min_ratings
    columns: Columns = {
        "movieId": np.where(rare, -1, movie_id),
        "year": movies["year"][movie],
        "genres": _ranks(movies["genres"])[movie],
        "userId": ratings["user_id"],
    }
    for name in ("gender", "age", "occupation", "zip"):
        columns[name] = _ranks(users[name])[user]
    return from_columns(columns, torch.from_numpy((ratings["rating"] >= 4).astype(np.float32)))


def _read(folder: Path) -> dict[str, Columns]:
    readers: dict[str, Callable[[Path, str], Columns]] = {
        ".parquet": _read_parquet,
        ".dat": _read_dat,
    }
    if not folder.is_dir():
        raise FileNotFoundError(f"load_ml1m: there is no folder {folder}")
    for place in (folder, folder / "ml-1m"):
        for suffix, read in readers.items():
            if (place / f"ratings{suffix}").exists():
                return {name: read(place / f"{name}{suffix}", name) for name in _PARQUET}
    raise FileNotFoundError(
        f"load_ml1m: neither ratings.parquet nor ratings.dat is in {folder} or {folder / 'ml-1m'}"
    )


def _read_parquet(path: Path, name: str) -> Columns:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError(
            "load_ml1m: reading Parquet needs pyarrow: pip install 'varemb[data]'"
        ) from None
    if not path.exists():
        raise FileNotFoundError(f"load_ml1m: {path} is missing")
    try:
        present = parquet.read_schema(path).names
        check_columns("load_ml1m", path, _PARQUET[name], present)
        table = parquet.read_table(path, columns=list(_PARQUET[name]))
    except ArrowException as error:
        raise ValueError(f"load_ml1m: {path} is truncated or no Parquet file: {error}") from None
    for column in _PARQUET[name]:
        if table[column].null_count:
            raise ValueError(f"load_ml1m: {path}, column {column}: has empty cells")
    values = {column: table[column].to_numpy() for column in _PARQUET[name]}
    return {column: _typed(values[column], path, column, "row", 0) for column in values}


def _read_dat(path: Path, name: str) -> Columns:
    if not path.exists():
        raise FileNotFoundError(f"load_ml1m: {path} is missing")
    columns = _DAT[name]
    cells: list[list[str]] = []
    with open_text(path, "load_ml1m") as file, io.TextIOWrapper(file, "latin-1") as opened:
        text = opened.read()
    # splitlines() would also cut at letters of Latin-1 that Unicode calls line ends.
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
        parts = line.rstrip("\r").split("::")
        if len(parts) != len(columns):
            raise ValueError(
                f"load_ml1m: {path}, line {number}: must have the columns {'::'.join(columns)}, "
                f"got {len(parts)} of {len(columns)}: {line[:60]!r}"
            )
        cells.append(parts)
    values = dict(zip(columns, zip(*cells, strict=True), strict=True))
    if name == "movies":
        years = [_YEAR.search(title) for title in values["title"]]
        if None in years:
            title = values["title"][years.index(None)]
            raise ValueError(f"load_ml1m: {path}, column title: no year in parentheses: {title!r}")
        values["year"] = tuple(year[1] for year in years if year)
    return {column: _typed(values[column], path, column, "line", 1) for column in _PARQUET[name]}


def _typed(values: Any, path: Path, column: str, unit: str, first: int) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if column not in _WHOLE:
        return array.astype(str)
    if array.dtype.kind in "iub":
        wrong = array > _LARGEST
    elif array.dtype.kind == "f":
        wrong = (array != np.floor(array)) | ~(np.abs(array) < _LARGEST)
    else:
        wrong = np.array([not _WHOLE_NUMBER.fullmatch(str(cell)) for cell in array], bool)
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(
            f"load_ml1m: {path}, {unit} {first + index}, column {column}: must be a whole number "
            f"of at most 18 digits, got {str(array[index])[:60]!r}"
        )
    return array.astype(np.int64)


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Order of the distinct values; a million numbers sort faster than a million texts."""
    return np.unique(values, return_inverse=True)[1]


def _find(ratings: Columns, listed: Columns, key: str, name: str) -> npt.NDArray[np.int64]:
    """Line of each rating's user or movie in the list of users or movies."""
    order = np.argsort(listed[key], kind="stable")
    ordered = listed[key][order]
    if (np.diff(ordered) == 0).any():
        raise ValueError(f"load_ml1m: {name}, column {key}: an id stands there twice")
    places = np.searchsorted(ordered, ratings[key]).clip(max=len(ordered) - 1)
    unknown = ordered[places] != ratings[key]
    if unknown.any():
        raise ValueError(
            f"load_ml1m: ratings, column {key}: {ratings[key][unknown][0]} is not in {name}"
        )
    return order[places]
