"""SizePlan: how wide each row of each embedding table is, and the file that keeps it.

Letters: `N` rows of a table, `D` its width, `d[r]` the dim of row r, `E` the sum of the dims.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from varemb.budget import fill_budget
from varemb.files import load_described, save_tensors
from varemb.rows import granule_for, units_of

MAX_WIDTH = 2048
_FORMAT = "varemb.plan"
_VERSION = "1"

Dims = npt.NDArray[np.int16]
Counts = npt.NDArray[np.float64]


class SizePlan:
    """Dims of every row of one or more tables; immutable.

    Numbers, bytes and shares are those that packed tables store: above a width of 255 each dim
    counts as rounded up to a multiple of 2, 4, 8 or 16 (`rows.granule_for`). A resizable table
    stores the dims as they are.

    Args:
        tables: table name -> dims of its rows, in the order of the tables. Each [N], whole numbers
            with 0 <= d[r] <= D <= 2048.
        width: the width D, one for all tables or one per table.

    Raises:
        ValueError: a dim is negative, above D or not whole, D is not in 1..2048, or a table is not
            1-D.

    Example:
        >>> plan = SizePlan({"user": [8, 4, 0], "item": [2, 2]}, width=8)
        >>> plan.num_params, plan.num_params_full, plan.mean_dim
        (16, 40, 3.2)
        >>> plan["user"]
        array([8, 4, 0], dtype=int16)
        >>> print(plan.summary())
        table  rows  width  min  mean  max  numbers  saved
        user      3      8    0  4.00    8       12  50.0%
        item      2      8    2  2.00    2        4  75.0%
        all       5           0  3.20    8       16  60.0%
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        tables: Mapping[str, Sequence[int] | npt.NDArray[Any] | torch.Tensor],
        width: int | Mapping[str, int],
    ) -> None:
        if not tables:
            raise ValueError("SizePlan: at least one table is needed, got none")
        widths = _widths(list(tables), width)
        self._widths = widths
        self._tables = {name: _dims(name, dims, widths[name]) for name, dims in tables.items()}

    @classmethod
    def uniform(
        cls, sizes: Mapping[str, int], width: int | Mapping[str, int], dim: int
    ) -> SizePlan:
        """Every row of every table has the same dim.

        Args:
            sizes: table name -> rows N.
            width: the width D, one for all tables or one per table.
            dim: 0 <= dim <= D.
        """
        return cls.for_fields(sizes, width, dict.fromkeys(sizes, dim))

    @classmethod
    def for_fields(
        cls, sizes: Mapping[str, int], width: int | Mapping[str, int], dims: Mapping[str, int]
    ) -> SizePlan:
        """One dim per table: all rows of a field share it.

        Args:
            sizes: table name -> rows N.
            width: the width D, one for all tables or one per table.
            dims: table name -> dim, for exactly the tables of `sizes`.

        Example:
            >>> plan = SizePlan.for_fields({"movieId": 3, "sex": 2}, 16, {"movieId": 8, "sex": 2})
            >>> plan.num_params
            28
        """
        _check_names("dims", sizes, dims)
        return cls(
            {
                name: np.full(_rows(name, rows), _whole(f"dim of {name}", dims[name]), np.int64)
                for name, rows in sizes.items()
            },
            width,
        )

    @classmethod
    def random(
        cls,
        sizes: Mapping[str, int],
        width: int | Mapping[str, int],
        candidates: Sequence[int],
        seed: int,
        *,
        per: str = "row",
    ) -> SizePlan:
        """Dims drawn uniformly from the candidates, each table in order, from one seed.

        Args:
            sizes: table name -> rows N.
            width: the width D, one for all tables or one per table.
            candidates: dims to draw from.
            seed: whole number; the same seed gives the same plan.
            per: "row" draws for each row, "table" one dim for each table.

        Raises:
            ValueError: `per` is something else, there are no candidates, one is above D or not
                whole, or a number of rows is negative.
        """
        if per not in ("row", "table"):
            raise ValueError(f'SizePlan.random: per must be "row" or "table", got {per!r}')
        choices = _dims("candidates", candidates, MAX_WIDTH)
        if not len(choices):
            raise ValueError("SizePlan.random: at least one candidate is needed, got none")
        draw = np.random.default_rng(seed)
        tables = {}
        for name, rows in sizes.items():
            count = _rows(name, rows)
            drawn = draw.choice(choices, count if per == "row" else None)
            tables[name] = np.broadcast_to(drawn, count)
        return cls(tables, width)

    @classmethod
    def by_frequency(
        cls,
        counts: Mapping[str, Sequence[float] | npt.NDArray[Any] | torch.Tensor],
        width: int | Mapping[str, int],
        budget: int,
        power: float = 1.0,
        min_dim: int = 1,
    ) -> SizePlan:
        """Wide rows for frequent ids: dims nu * count^power, cut to min_dim..D, within a budget.

        `num_params` is exactly `budget`, or all rows have D when the budget allows it. Above a
        width of 255 dims are those multiples that tables round up to, or D, and what no row below D
        can take is left over: less than a multiple. A row is never narrower than a row of the same
        width D that is looked up less often. Ties go to the earlier row.

        Args:
            counts: table name -> how often each row is looked up. [N], >= 0.
            width: the width D, one for all tables or one per table.
            budget: stored numbers to hand out over all tables.
            power: 1 is proportional to the count, 0 the same for all rows.
            min_dim: the narrowest row.

        Raises:
            ValueError: the budget is below min_dim, as it is stored, for every row, or a count is
                negative or not finite.

        Example:
            >>> SizePlan.by_frequency({"item": [100, 10, 10, 1]}, 8, budget=12)["item"]
            array([8, 2, 1, 1], dtype=int16)
        """
        if not counts:
            raise ValueError("SizePlan: at least one table is needed, got none")
        widths = _widths(list(counts), width)
        weights = {name: _counts(name, values) for name, values in counts.items()}
        rows = [len(values) for values in weights.values()]
        dims = fill_budget(
            np.concatenate(list(weights.values())), np.repeat(list(widths.values()), rows),
            _whole("budget", budget), power=power, min_dim=_whole("min_dim", min_dim),
            granules=np.repeat([granule_for(each) for each in widths.values()], rows),
        )  # fmt: skip
        ends = np.cumsum(rows)[:-1]
        return cls(dict(zip(weights, np.split(dims, ends), strict=True)), widths)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SizePlan:
        """The plan stored in a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, corrupt or no plan; the message names it and says
                why.
        """
        tensors, metadata = load_described(path, _FORMAT, _VERSION)
        try:
            entries = json.loads(metadata["tables"])
            widths = {str(entry["name"]): entry["width"] for entry in entries}
            dims = {name: tensors[str(i)] for i, name in enumerate(widths)}
            if not len(entries) == len(widths) == len(tensors):
                raise ValueError(f"{len(entries)} tables described, {len(tensors)} stored")
            if any(table.dtype != torch.int16 for table in dims.values()):
                raise ValueError("dims must be int16")
            return cls(dims, widths)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"load: {os.fspath(path)} is no valid plan: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as one safetensors file, atomically: dims in int16, names and widths as
        JSON.

        Raises:
            OSError: the folder is missing or cannot be written to.
        """
        entries = [{"name": name, "width": width} for name, width in self._widths.items()]
        tensors = {
            str(i): torch.from_numpy(dims.copy()) for i, dims in enumerate(self._tables.values())
        }
        metadata = {"format": _FORMAT, "version": _VERSION, "tables": json.dumps(entries)}
        save_tensors(path, tensors, metadata)

    @property
    def tables(self) -> dict[str, Dims]:
        """Table name -> dims, in order. Each [N], int16, read-only."""
        return dict(self._tables)

    @property
    def widths(self) -> dict[str, int]:
        """Table name -> width D, in order."""
        return dict(self._widths)

    @property
    def num_rows(self) -> int:
        """Rows of all tables."""
        return sum(len(dims) for dims in self._tables.values())

    @property
    def num_params(self) -> int:
        """Numbers stored: E, the sum of all dims as tables round them."""
        return sum(_stored(dims, self._widths[name]) for name, dims in self._tables.items())

    @property
    def num_params_full(self) -> int:
        """Numbers of plain tables, in which every row has the width: the sum of N D."""
        return sum(len(dims) * self._widths[name] for name, dims in self._tables.items())

    @property
    def mean_dim(self) -> float:
        """Mean dim over all rows, as they are, not rounded; 0 without rows."""
        return _sum(np.concatenate(list(self._tables.values()))) / max(self.num_rows, 1)

    @property
    def sparsity(self) -> float:
        """Share of the full-width numbers that is saved, up to 1; a little below 0 where all rows
        have a width that tables round up, such as 257."""
        return 1.0 - self.num_params / max(self.num_params_full, 1)

    def nbytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the stored numbers in `dtype`, without index and optimizer state."""
        return self.num_params * dtype.itemsize

    def summary(self) -> str:
        """A table of text: rows, width, dims, stored numbers and the share saved, per table and in
        all."""
        head = ["table", "rows", "width", "min", "mean", "max", "numbers", "saved"]
        tables = self._tables.items()
        lines = [head, *([name, *_summary(dims, self._widths[name])] for name, dims in tables)]
        if len(self._tables) > 1:
            total = _summary(np.concatenate(list(self._tables.values())), 1)
            total[1] = ""
            total[-2:] = f"{self.num_params:,}", f"{self.sparsity:.1%}"
            lines.append(["all", *total])
        columns = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join([line[0].ljust(columns[0]), *map(str.rjust, line[1:], columns[1:])])
            for line in lines
        )

    def __getitem__(self, name: str) -> Dims:
        if name not in self._tables:
            raise KeyError(f"SizePlan: no table {name!r}, there are {list(self._tables)}")
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __contains__(self, name: object) -> bool:
        return name in self._tables

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SizePlan):
            return NotImplemented
        return list(self._widths.items()) == list(other._widths.items()) and all(
            np.array_equal(dims, other._tables[name]) for name, dims in self._tables.items()
        )

    def __repr__(self) -> str:
        return (
            f"SizePlan(tables={list(self._tables)}, rows={self.num_rows}, "
            f"mean_dim={self.mean_dim:.2f}, saved={self.sparsity:.1%})"
        )


def _sum(dims: Dims) -> int:
    return int(dims.sum(dtype=np.int64))


def _stored(dims: Dims, width: int) -> int:
    """Numbers that a packed table of this width takes for rows of these dims."""
    granule = granule_for(width)
    return granule * _sum(units_of(dims, granule))


def _summary(dims: Dims, width: int) -> list[str]:
    total, rows = _stored(dims, width), len(dims)
    saved = 1.0 - total / max(rows * width, 1)
    least, most = (int(dims.min()), int(dims.max())) if rows else (0, 0)
    mean = f"{_sum(dims) / max(rows, 1):.2f}"
    return [f"{rows:,}", str(width), str(least), mean, str(most), f"{total:,}", f"{saved:.1%}"]


def _widths(names: list[str], width: int | Mapping[str, int]) -> dict[str, int]:
    if isinstance(width, Mapping):
        _check_names("width", names, width)
        widths = {name: _whole(f"width of {name}", width[name]) for name in names}
    else:
        widths = dict.fromkeys(names, _whole("width", width))
    for name, value in widths.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"SizePlan: table names must be text, got {name!r}")
        if not 1 <= value <= MAX_WIDTH:
            raise ValueError(f"SizePlan: width of {name} must be in 1..{MAX_WIDTH}, got {value}")
    return widths


def _dims(name: str, dims: Sequence[int] | npt.NDArray[Any] | torch.Tensor, width: int) -> Dims:
    values = _array(name, dims)
    bad = ~((values >= 0) & (values <= width))
    if values.dtype.kind == "f":
        bad |= values != np.trunc(values)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"SizePlan: dims of {name} must be whole numbers in 0..{width}, "
            f"got {values[row]} at row {row}"
        )
    stored = values.astype(np.int16)
    stored.flags.writeable = False
    return stored


def _counts(name: str, counts: Sequence[float] | npt.NDArray[Any] | torch.Tensor) -> Counts:
    values = np.asarray(_array(name, counts), np.float64)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"SizePlan.by_frequency: counts of {name} must be finite and >= 0, "
            f"got {values[row]} at row {row}"
        )
    return values


def _array(name: str, values: Any) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):  # numpy has no bfloat16
        values = (values.double() if values.is_floating_point() else values).detach().cpu().numpy()
    array = np.asarray(values)
    if array.size == 0 and array.ndim == 1:
        return array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ValueError(
            f"SizePlan: {name} must be one list of numbers, got shape {array.shape}, {array.dtype}"
        )
    return array


def _whole(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ValueError(f"SizePlan: {what} must be a whole number, got {value!r}")
    if not np.isfinite(value) or value != int(value):
        raise ValueError(f"SizePlan: {what} must be a whole number, got {value}")
    return int(value)


def _rows(name: str, rows: Any) -> int:
    count = _whole(f"rows of {name}", rows)
    if count < 0:
        raise ValueError(f"SizePlan: rows of {name} must be >= 0, got {count}")
    return count


def _check_names(what: str, names: Any, given: Mapping[str, Any]) -> None:
    if set(names) != set(given):
        raise ValueError(f"SizePlan: {what} must name the tables {list(names)}, got {list(given)}")
