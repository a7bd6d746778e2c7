"""VarEmbeddingBag: `nn.EmbeddingBag` whose rows have their own widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from varemb.nn.dims import row_dims
from varemb.nn.embedding import checked_padding, refuse_torch_options
from varemb.nn.filling import fill_table
from varemb.nn.pretrained import pretrained
from varemb.nn.table import Table, make_storage
from varemb.ops import lookup_bag


class VarEmbeddingBag(Table):
    """Sums, means or maxima of bags of rows of different dims; a swap for `nn.EmbeddingBag`.

    A row's missing columns count as zeros, also in "max". With equal dims the result is torch's.

    Differs from torch: `weight` is flat, [E]; max_norm, scale_grad_by_freq and `_weight` are
    refused by name; double backward is refused; "max" can be sparse.

    Args:
        num_embeddings: rows N.
        embedding_dim: width D of the output, at most 2048.
        max_norm, norm_type, scale_grad_by_freq: not supported, for torch's argument order.
        mode: "sum", "mean" or "max".
        sparse: the gradient of `weight` is a sparse tensor of the touched numbers.
        _weight: not supported; use `from_pretrained`.
        include_last_offset: offsets end with the number of indices. [G + 1]
        padding_idx: a row that bags leave out; starts as zeros.
        device, dtype, dims, resizable, sizes, reserve_rows, reserve_numbers, backend: as in
            `VarEmbedding`.

    Attributes:
        weight: all rows' numbers, one row after another. Parameter [E].

    Shape:
        - input: [L] with offsets [G], or [G, P] without; int32 or int64
        - per_sample_weights: shape of input, mode "sum" only
        - output: [G, D]

    Raises:
        TypeError: dims are a whole plan, or a dtype that is not floating.
        ValueError: dims or options that do not fit; forward: shapes or bags that do not fit,
            IndexError for an index outside [0, N), TypeError for what is no tensor or not whole.

    Example:
        >>> bag = VarEmbeddingBag(3, 2, mode="sum", dims=[1, 2, 0])
        >>> _ = bag.weight.data.copy_(torch.tensor([1.0, 10.0, 20.0]))
        >>> bag(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 2])).tolist()
        [[11.0, 20.0], [1.0, 0.0]]
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
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
    ) -> None:
        super().__init__()
        name = type(self).__name__
        refuse_torch_options(name, max_norm, norm_type, scale_grad_by_freq)
        if _weight is not None:
            raise ValueError(f"{name}: _weight is not supported; use {name}.from_pretrained")
        if unify != "pad":
            raise ValueError(f"{name}: unify must be 'pad', got {unify!r}")
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"{name}: mode must be sum, mean or max, got {mode!r}")
        given = row_dims(name, dims, num_embeddings, embedding_dim)
        self.embedding_dim, self.unify = embedding_dim, None
        self.padding_idx = checked_padding(name, padding_idx, num_embeddings)
        self.mode, self.sparse, self.backend = mode, sparse, backend
        self.include_last_offset = include_last_offset
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
        fill_table(self.storage, self.padding_idx)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor | nn.Module,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float | None = None,
        scale_grad_by_freq: bool | None = None,
        mode: str | None = None,
        sparse: bool | None = None,
        include_last_offset: bool | None = None,
        padding_idx: int | None = None,
        *,
        dims: Any = None,
        backend: str | None = None,
    ) -> VarEmbeddingBag:
        """A table that keeps the first d[r] numbers of each row of a dense one.

        Args:
            embeddings: [N, D], or an `nn.EmbeddingBag`.
            freeze: the weight is not trained (torch's default).
            max_norm, norm_type, scale_grad_by_freq, mode, sparse, include_last_offset,
                padding_idx: as in the constructor; None takes the module's. To leave those behind
                give the module's weight.
            dims, backend: as in the constructor.

        Returns:
            A table of N rows on the device and in the dtype of the dense one.

        Raises:
            TypeError: embeddings are neither.
            ValueError: as the constructor, also for what the module has; a tensor that is not
                [N, D], a module with a forward of its own or hooks.

        Example:
            >>> dense = nn.EmbeddingBag.from_pretrained(torch.ones(3, 2), mode="sum")
            >>> VarEmbeddingBag.from_pretrained(dense, dims=[1, 2, 0])(torch.tensor([[0, 1, 2]]))
            tensor([[2., 1.]])
        """
        given = {
            "max_norm": max_norm,
            "norm_type": norm_type,
            "scale_grad_by_freq": scale_grad_by_freq,
            "mode": mode,
            "sparse": sparse,
            "include_last_offset": include_last_offset,
            "padding_idx": padding_idx,
        }
        dense, options = pretrained(cls.__name__, embeddings, nn.EmbeddingBag, given)
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

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
        *,
        limit: int | Tensor | None = None,
    ) -> Tensor:
        """One pooled vector per bag. [G, D]

        Args:
            input: rows of all bags one after another [L], or one bag per line [G, P].
            offsets: where each bag begins. [G], or [G + 1] with include_last_offset; int32 or
                int64, whatever input is.
            per_sample_weights: multiplies each row. Shape of input.
            limit: read and train only the first so many numbers of a row: one for all or shape of
                input.
        """
        _check_tensors(input, offsets, per_sample_weights, limit)
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError("VarEmbeddingBag: offsets must be None for input [G, P]")
            step = input.shape[1]
            offsets = torch.arange(input.shape[0] + 1, device=input.device, dtype=input.dtype)
            offsets = offsets * step
            has_last = True
        elif input.dim() == 1 and offsets is not None:
            has_last = self.include_last_offset
            if offsets.dtype != input.dtype:
                input, offsets = _as_wide(input, offsets)
        else:
            raise ValueError(
                "VarEmbeddingBag: input must be [G, P], or [L] with offsets, "
                f"got shape {list(input.shape)} and offsets {offsets}"
            )
        weights = per_sample_weights
        return lookup_bag(
            self.storage.weight,
            self.storage.rows,
            input.reshape(-1),
            offsets,
            mode=self.mode,
            per_sample_weights=None if weights is None else weights.reshape(-1),
            limit=limit.reshape(-1) if isinstance(limit, Tensor) else limit,
            padding_idx=self.padding_idx,
            include_last_offset=has_last,
            sparse=self.sparse,
            fused=self.storage.fused,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode}{padding}"


def _check_tensors(
    input: Any, offsets: Any, per_sample_weights: Any, limit: int | Tensor | None
) -> None:
    """The part of the contract that is to be asked before tensors are made flat: then other shapes
    with as many numbers look alike.

    Raises:
        TypeError: one is no tensor.
        ValueError: what goes with each index is not shaped like them.
    """
    if not isinstance(input, Tensor):
        raise _no_tensor("indices", input)
    if offsets is not None and not isinstance(offsets, Tensor):
        raise _no_tensor("offsets", offsets)
    if per_sample_weights is not None:
        if not isinstance(per_sample_weights, Tensor):
            raise _no_tensor("per_sample_weights", per_sample_weights)
        _check_shape("per_sample_weights", per_sample_weights, input)
    if isinstance(limit, Tensor):
        _check_shape("limit", limit, input)


def _no_tensor(name: str, given: Any) -> TypeError:
    return TypeError(f"lookup_bag: {name} must be a Tensor, got {type(given).__name__}")


def _check_shape(name: str, given: Tensor, input: Tensor) -> None:
    if given.shape != input.shape:
        raise ValueError(
            f"lookup_bag: {name} must have the shape of indices {list(input.shape)}, "
            f"got {list(given.shape)}"
        )


def _as_wide(input: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:  # [L], [G]
    """Indices and offsets of different widths as int64: a narrower offset could become another."""
    if {input.dtype, offsets.dtype} == {torch.int32, torch.int64}:
        return input.long(), offsets.long()
    return input, offsets
