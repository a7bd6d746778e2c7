"""What tables of jagged rows share, whatever a lookup makes of the rows."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from varemb.nn.filling import fill_table
from varemb.nn.unify import ChainUnify, LinearUnify
from varemb.rows import granule_for
from varemb.storage import LaidOut, PackedStorage, PagedStorage, RowMap, freeze, thaw

_Table = TypeVar("_Table", bound="Table")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # what kernels compute in


def make_storage(
    module: str,
    dims: Tensor,  # [N]
    width: int,
    *,
    sparse: bool,
    resizable: bool,
    sizes: Iterable[int] | None,
    reserve_rows: int | None,
    reserve_numbers: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> PackedStorage | PagedStorage:
    """A packed table, or a paged one where rows are to change.

    Raises:
        TypeError: a dtype that operations do not know.
        ValueError: sizes, reservations or gradients that do not fit.
    """
    stored = torch.get_default_dtype() if dtype is None else dtype
    if stored not in _DTYPES:
        raise TypeError(
            f"{module}: dtype must be float32, float64, float16 or bfloat16, "
            f"got {str(stored).removeprefix('torch.')}"
        )
    if resizable and sparse:
        raise ValueError(f"{module}: a resizable table has no sparse gradients: use sparse=False")
    for name, reserved in (("reserve_rows", reserve_rows), ("reserve_numbers", reserve_numbers)):
        if reserved is not None and reserved < 0:
            raise ValueError(f"{module}: {name} must not be negative, got {reserved}")
    if not resizable:
        if sizes is not None:
            raise ValueError(f"{module}: sizes needs resizable=True")
        return PackedStorage(
            dims,
            width,
            reserve_rows=reserve_rows,
            reserve_numbers=reserve_numbers,
            device=device,
            dtype=dtype,
        )
    allowed = None if sizes is None else checked_sizes(module, sizes, width)
    if allowed is not None and not bool(
        torch.isin(dims, torch.tensor(allowed, device="cpu")).all()
    ):
        raise ValueError(f"{module}: dims must be of sizes {allowed}, got others")
    return PagedStorage(
        dims,
        width,
        sizes=allowed,
        reserve_rows=reserve_rows,
        reserve_numbers=reserve_numbers,
        device=device,
        dtype=dtype,
    )


def checked_sizes(module: str, sizes: Iterable[int], width: int) -> tuple[int, ...]:
    """Distinct sizes in ascending order.

    Raises:
        ValueError: there are none, or one is outside [0, D].
    """
    ordered = tuple(sorted({int(size) for size in sizes}))
    if not ordered or ordered[0] < 0 or ordered[-1] > width:
        raise ValueError(f"{module}: sizes must be in [0, {width}], got {list(ordered)}")
    return ordered


class Table(LaidOut):
    """Rows of different dims: what can be read from them, and how they change.

    Attributes:
        storage: owns the numbers and the index.
        padding_idx: a row that is not trained and stays zeros.
        unify: the matrices that bring rows to one width, if any.
    """

    storage: PackedStorage | PagedStorage
    embedding_dim: int
    padding_idx: int | None
    sparse: bool
    backend: str | None
    unify: LinearUnify | ChainUnify | None

    @property
    def num_embeddings(self) -> int:
        """Rows N; of a resizable table the rows that it has room for."""
        return self.storage.num_rows

    @property
    def weight(self) -> nn.Parameter:
        """All rows' numbers. [E]"""
        return self.storage.weight

    @property
    def dims(self) -> Tensor:
        """Stored numbers of each row; 0 for rows that are absent. [N], int64."""
        return self.storage.dims

    @property
    def live_numbers(self) -> int:
        """The sum of the dims."""
        return self.storage.live_numbers

    @property
    def num_present(self) -> int:
        """Rows that are there: all of them where rows cannot be removed."""
        return self.storage.num_present

    @property
    def fragmentation(self) -> float:
        """Allocated over live numbers; 1 where rows stand one after another."""
        return self.storage.fragmentation

    def reset_parameters(self) -> None:
        """New first numbers, normal ones and zeros in the padding row, and first matrices.

        Needed after `to_empty` where no state dict is loaded. An optimizer's state stays.

        Example:
            >>> import varemb
            >>> emb = varemb.VarEmbedding(2, 3, padding_idx=0, device="meta").to_empty(device="cpu")
            >>> emb.reset_parameters()
            >>> emb.row(0).tolist()
            [0.0, 0.0, 0.0]
        """
        with torch.no_grad():
            self.weight.zero_()  # also what no row has
        fill_table(self.storage, self.padding_idx)
        if self.unify is not None:
            self.unify.reset_parameters()

    def row(self, row: int) -> Tensor:
        """The numbers of one row, a view of the weight. [d[row]]

        Raises:
            IndexError: the table has no such row.
        """
        return self.storage.row(row)

    def to_dense(self) -> Tensor:
        """All rows zero-padded, without gradient; zeros for rows that are absent. [N, D]"""
        return self.storage.to_dense()

    def detach_optimizer(self) -> None:
        """Takes a fused optimizer off, if there is one: lookups then give gradients again.

        For an optimizer that is out of reach; else its own `detach` does this for all its tables.

        Example:
            >>> import varemb
            >>> table = varemb.VarEmbedding(3, 4)
            >>> _ = varemb.optim.SGD(table.parameters(), lr=1e-2)
            >>> table.detach_optimizer()
            >>> adam = varemb.optim.Adam(table.parameters(), lr=1e-2)
        """
        self.storage.detach_optimizer()

    def resize(
        self,
        rows: Any,
        dims: Any,
        init: str | RowMap = "zeros",
        *,
        std: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        """Gives rows other dims; each keeps its first min(old, new) numbers and optimizer state.

        State is kept for the optimizers of `varemb.optim` and for `weight.grad`; make other
        optimizers anew. The weight stays the same Parameter. A resizable table takes time and
        memory by the rows that change; one with `reserve_numbers` alone is rebuilt in place.

        Args:
            rows: distinct rows. [n]
            dims: one int for all or one per row. [n]
            init: what new numbers are: "zeros"; "normal", N(0, std); "map", what the chain's maps
                make of the old row, so that its lookup stays the same (with fresh optimizer state;
                rows may only grow); or a function
                (old [n, D] zero-padded, old dims [n], new dims [n]) -> [n, D].
            std: of "normal".
            generator: of "normal"; torch's own by default.

        Raises:
            TypeError, ValueError, IndexError: rows or dims that do not fit, rows that are absent,
                numbers beyond a packed table's reservation. Nothing has changed then.

        Example:
            >>> import varemb
            >>> emb = varemb.VarEmbedding(2, 3, dims=[1, 2], resizable=True)
            >>> _ = emb.weight.data.copy_(torch.tensor([7.0, 8.0, 9.0]))
            >>> emb.resize([0, 1], [3, 1])
            >>> emb.to_dense()
            tensor([[7., 0., 0.],
                    [8., 0., 0.]])
        """
        self._check_changing("resize")
        keep_state = init != "map"
        self.storage.resize(
            rows,
            dims,
            self._row_map() if init == "map" else init,
            std=std,
            keep_state=keep_state,
            generator=generator,
            backend=self.backend,
        )
        self._clear_padding()

    def extend(
        self,
        count: int,
        dims: Any,
        init: str | RowMap = "normal",
        *,
        std: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # [n]
        """New rows with fresh optimizer state; a resizable table uses removed rows again first.

        Args: as `resize`, without "map"; a function gets old dims of 0.

        Returns:
            The rows' numbers. [n], int64, on the CPU.

        Raises: as `resize`.
        """
        self._check_changing("extend")
        return self.storage.extend(
            count, dims, init, std=std, generator=generator, backend=self.backend
        )

    def remove(self, rows: Any) -> None:
        """Takes rows out of a resizable table; looking one up is an IndexError from then on.

        Args:
            rows: distinct rows that are there. [n]

        Raises:
            TypeError, ValueError, IndexError: as `resize`; the table is not resizable; one is the
                padding row.
        """
        storage = self._paged("remove")
        if self.padding_idx is not None and self.padding_idx in torch.as_tensor(rows):
            raise ValueError(f"remove: row {self.padding_idx} is padding_idx and must stay")
        storage.remove(rows, backend=self.backend)

    def compact(self) -> None:
        """Moves the rows of a resizable table together and gives back what no row has.

        Peak memory beside the table: 64 MiB. Takes time proportional to the table.

        Raises:
            ValueError: the table is not resizable.
        """
        self._paged("compact").compact(backend=self.backend)

    def freeze(self: _Table) -> _Table:
        """A packed table with the same rows, without optimizer: 1.34 bytes of index a row.

        Rows that are absent get a dim of 0, up to the last row that was ever there.

        Raises:
            ValueError: the table is not resizable, or its matrices take rows of a size to which
                packed rows would be rounded up (above a width of 255).
        """
        granule = granule_for(self.embedding_dim)
        sizes = [] if self.unify is None else [size for _, size in self.unify.members]
        if any(size % granule for size in sizes):
            raise ValueError(
                f"{type(self).__name__}.freeze: sizes must be multiples of {granule} at a width of "
                f"{self.embedding_dim}, got {sorted(set(sizes))}"
            )
        return self._with(freeze(self._paged("freeze"), backend=self.backend))

    def thaw(
        self: _Table, *, reserve_rows: int | None = None, reserve_numbers: int | None = None
    ) -> _Table:
        """A resizable table with the same rows, without optimizer.

        With matrices its rows may take the sizes that have one.

        Raises:
            ValueError: the table is resizable already, one of fields, or has sparse gradients.
        """
        name = type(self).__name__
        if isinstance(self.storage, PagedStorage):
            raise ValueError(f"{name}.thaw: the table is resizable already")
        if getattr(self, "field_starts", None) is not None:
            raise ValueError(f"{name}.thaw: a table of fields cannot be resizable")
        if self.sparse:
            raise ValueError(
                f"{name}.thaw: a resizable table has no sparse gradients, got sparse=True"
            )
        sizes = None if self.unify is None else tuple(sorted(s for _, s in self.unify.members))
        return self._with(
            thaw(
                self.storage,
                sizes=sizes,
                reserve_rows=reserve_rows,
                reserve_numbers=reserve_numbers,
                backend=self.backend,
            )
        )

    def _with(self: _Table, storage: PackedStorage | PagedStorage) -> _Table:
        """A copy of the module around another storage."""
        return copy.deepcopy(self, {id(self.storage): storage})

    def _check_changing(self, op: str) -> None:
        if self.unify is not None and isinstance(self.storage, PackedStorage):
            raise ValueError(f"{op}: a table with matrices must be built with resizable=True")

    def _paged(self, op: str) -> PagedStorage:
        if not isinstance(self.storage, PagedStorage):
            raise ValueError(f"{op}: build the table with resizable=True")
        return self.storage

    def _row_map(self) -> RowMap:
        if not isinstance(self.unify, ChainUnify):
            raise ValueError('resize: init="map" needs a table with unify="chain"')
        return self.unify.raise_rows

    @torch.no_grad()
    def _clear_padding(self) -> None:
        if self.padding_idx is not None:
            self.storage.row(self.padding_idx).zero_()
