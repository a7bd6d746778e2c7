"""VarEmbedding: `nn.Embedding` whose rows have their own widths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from varemb.nn.dims import checked_cardinalities, field_dims, row_dims
from varemb.nn.filling import fill_table
from varemb.nn.pretrained import pretrained
from varemb.nn.table import Table, checked_sizes, make_storage
from varemb.nn.unify import ChainUnify, LinearUnify
from varemb.ops import field_rows, lookup, lookup_linear

UNIFY: dict[str, type[LinearUnify] | type[ChainUnify]] = {
    "linear": LinearUnify,
    "chain": ChainUnify,
}


def refuse_torch_options(
    module: str, max_norm: float | None, norm_type: float, scale_grad_by_freq: bool
) -> None:
    """Raises ValueError for options of torch's modules that tables of jagged rows do not have."""
    if max_norm is not None or norm_type != 2.0:
        raise ValueError(f"{module}: max_norm and norm_type are not supported")
    if scale_grad_by_freq:
        raise ValueError(f"{module}: scale_grad_by_freq is not supported")


def checked_padding(module: str, padding_idx: int | None, num_rows: int) -> int | None:
    """padding_idx counted from 0, as torch counts it."""
    if padding_idx is None:
        return None
    if not -num_rows <= padding_idx < num_rows:
        raise ValueError(
            f"{module}: padding_idx must be within the table's {num_rows} rows, got {padding_idx}"
        )
    return padding_idx % num_rows


class VarEmbedding(Table):
    """Rows of different dims, looked up as vectors of one width; a swap for `nn.Embedding`.

    Row r stores d[r] numbers. With equal dims the result is that of `nn.Embedding`.

    Differs from torch: `weight` is flat, [E], E the sum of the dims; max_norm and
    scale_grad_by_freq are refused by name; double backward is refused.

    Args:
        num_embeddings: rows N.
        embedding_dim: width D of the output, at most 2048.
        padding_idx: a row that is not trained; starts as zeros.
        max_norm, norm_type, scale_grad_by_freq: not supported, for torch's argument order.
        sparse: the gradient of `weight` is a sparse tensor of the touched numbers.
        device, dtype: of the numbers: float32, float64, float16 or bfloat16. A table made on "meta"
            has dims and no numbers until `to_empty`, then those of a state dict or of
            `reset_parameters`.
        dims: None (all D), one whole number or N of them in [0, D], of Python, numpy or torch;
            above a width of 255 a dim is rounded up to a multiple of 2, 4, 8 or 16, and `dims` says
            what is stored.
        unify: "pad" (zeros), "linear" (a matrix and bias per size; AutoDim Eq. 1) or "chain"
            (consecutive maps; ESAPN Eq. 1).
        resizable: rows may change their dims, come and go (`resize`, `extend`, `remove`).
        sizes: dims that rows of a resizable table may take; needed with "linear" and "chain", where
            each has its map. None: any dim.
        reserve_rows, reserve_numbers: room that a resizable table has from the start: within it its
            tensors keep their addresses. With reserve_numbers a table that is not resizable can be
            rebuilt in place by `resize` and `extend`, never holding more numbers than these.
        backend: "cpu", "cuda", "triton" or "reference"; by default the fastest that runs.

    Attributes:
        weight: all rows' numbers, one row after another. Parameter [E].

    Shape:
        - input: [*], int32 or int64
        - output: [*, D]

    Raises:
        TypeError: dims are a whole plan, or a dtype is none of these.
        ValueError: dims or options that do not fit; forward: IndexError for an index outside
            [0, N), TypeError for indices that are not whole.

    Example:
        >>> emb = VarEmbedding(3, 4, dims=[1, 4, 0])
        >>> _ = emb.weight.data.copy_(torch.arange(5.0))
        >>> emb(torch.tensor([0, 1, 2]))
        tensor([[0., 0., 0., 0.],
                [1., 2., 3., 4.],
                [0., 0., 0., 0.]], grad_fn=<ViewBackward0>)
        >>> emb.weight.numel(), emb.dims.tolist()
        (5, [1, 4, 0])
    """

    field_starts: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        dims: Any = None,
        unify: str = "pad",
        resizable: bool = False,
        sizes: Sequence[int] | None = None,
        reserve_rows: int | None = None,
        reserve_numbers: int | None = None,
        backend: str | None = None,
        field_starts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        refuse_torch_options(name, max_norm, norm_type, scale_grad_by_freq)
        given = row_dims(name, dims, num_embeddings, embedding_dim)
        self.embedding_dim = embedding_dim
        self.padding_idx = checked_padding(name, padding_idx, num_embeddings)
        self.sparse, self.backend = sparse, backend
        self.storage = make_storage(
            name,
            given,
            embedding_dim,
            sparse=sparse,
            resizable=resizable,
            sizes=sizes,
            reserve_rows=reserve_rows,
            reserve_numbers=reserve_numbers,
            device=device,
            dtype=dtype,
        )
        if resizable and field_starts is not None:
            raise ValueError(f"{name}: a table of fields cannot be resizable")
        self.field_starts = None
        if field_starts is not None:
            self.keep("field_starts", torch.tensor(list(field_starts), device="cpu"), device)
        self.unify = None
        if unify != "pad":
            if unify not in UNIFY:
                raise ValueError(f"{name}: unify must be pad, linear or chain, got {unify!r}")
            grouped, starts_of = self.storage.dims.cpu(), list(field_starts or (0, num_embeddings))
            if resizable:
                if sizes is None:
                    raise ValueError(f"{name}: unify={unify!r} with resizable=True needs sizes")
                grouped = torch.tensor(checked_sizes(name, sizes, embedding_dim), device="cpu")
                starts_of = [0, len(grouped)]
            self.unify = UNIFY[unify](grouped, starts_of, embedding_dim, device=device, dtype=dtype)
        fill_table(self.storage, self.padding_idx)

    @classmethod
    def for_fields(
        cls,
        cardinalities: Iterable[int],
        embedding_dim: int,
        dims: Any = None,
        *,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        unify: str = "pad",
        backend: str | None = None,
    ) -> VarEmbedding:
        """One table for all categorical fields: ids [*, F] that count from 0 in every field.

        Args:
            cardinalities: rows of each field, any sequence, array or tensor of ints. [F]
            embedding_dim: width D.
            dims: one int per field, one per row, a SizePlan with a table per field, or None.
            unify: "linear" and "chain" have a matrix per field and size.

        Returns:
            A table whose forward maps [*, F] to [*, F, D].

        Raises:
            TypeError: cardinalities that are not whole numbers.
            ValueError: a cardinality below 1, dims that do not fit, a plan for another width.
                Forward: IndexError for an id outside its field.

        Example:
            >>> fields = VarEmbedding.for_fields([5, 2], 4, dims=[3, 1])
            >>> fields(torch.tensor([[4, 1], [0, 0]])).shape, fields.weight.numel()
            (torch.Size([2, 2, 4]), 17)
        """
        rows = checked_cardinalities("VarEmbedding.for_fields", cardinalities)
        starts = [0, *accumulate(rows)]
        return cls(
            starts[-1],
            embedding_dim,
            sparse=sparse,
            device=device,
            dtype=dtype,
            dims=field_dims(rows, embedding_dim, dims),
            unify=unify,
            backend=backend,
            field_starts=starts,
        )

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor | nn.Module,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float | None = None,
        scale_grad_by_freq: bool | None = None,
        sparse: bool | None = None,
        *,
        dims: Any = None,
        backend: str | None = None,
    ) -> VarEmbedding:
        """A table that keeps the first d[r] numbers of each row of a dense one.

        Args:
            embeddings: [N, D], or an `nn.Embedding`.
            freeze: the weight is not trained (torch's default).
            padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse: as in the constructor;
                None takes the module's. To leave those behind give the module's weight.
            dims, backend: as in the constructor.

        Returns:
            A table of N rows on the device and in the dtype of the dense one.

        Raises:
            TypeError: embeddings are neither.
            ValueError: as the constructor, also for what the module has; a tensor that is not
                [N, D], a module with a forward of its own or hooks.

        Example:
            >>> dense = nn.Embedding.from_pretrained(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
            >>> VarEmbedding.from_pretrained(dense, dims=[1, 2])(torch.tensor([0, 1]))
            tensor([[1., 0.],
                    [3., 4.]])
        """
        given = {
            "padding_idx": padding_idx,
            "max_norm": max_norm,
            "norm_type": norm_type,
            "scale_grad_by_freq": scale_grad_by_freq,
            "sparse": sparse,
        }
        dense, options = pretrained(cls.__name__, embeddings, nn.Embedding, given)
        table = cls(
            dense.shape[0],
            dense.shape[1],
            **options,
            device=dense.device,
            dtype=dense.dtype,
            dims=dims,
            backend=backend,
        )
        table.storage.copy_dense_(dense)
        table.weight.requires_grad_(not freeze)
        return table

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.field_starts is not None:
            destination[prefix + "field_starts"] = self.field_starts.clone()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if self.field_starts is not None:
            state_dict = dict(state_dict)
            saved, own = state_dict.pop(prefix + "field_starts", None), self.field_starts.tolist()
            if saved is None:
                missing_keys.append(prefix + "field_starts")
            elif saved.tolist() != own:
                error_msgs.append(f"{prefix}field_starts: saved {saved.tolist()}, this table {own}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def unify_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the matrices; none for "pad"."""
        return iter(()) if self.unify is None else self.unify.parameters()

    def forward(self, input: Tensor, *, limit: int | Tensor | None = None) -> Tensor:
        """Rows of `input`, D wide. [*] -> [*, D]

        Args:
            input: rows, or ids [*, F] of a table of fields.
            limit: read and train only the first so many numbers: one for all or shape of input.
        """
        table, indices = self.storage, input
        if self.field_starts is not None:
            indices = field_rows(input, self.beside("field_starts", table.weight))
        trained: dict[str, Any] = {
            "padding_idx": self.padding_idx,
            "sparse": self.sparse,
            "fused": table.fused,
            "backend": self.backend,
        }
        if self.unify is None:
            return lookup(table.weight, table.rows, indices, limit=limit, **trained)
        if limit is not None:
            raise ValueError("VarEmbedding: limit needs unify='pad'")
        weight, bias = self.unify.matrices()
        groups = self.unify.beside("groups", weight)
        return lookup_linear(table.weight, table.rows, indices, groups, weight, bias, **trained)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
