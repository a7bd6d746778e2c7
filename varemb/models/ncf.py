"""NCF as NeuMF (He et al., WWW 2017): a hidden layer over both rows beside their products.

    score(u, i) = w1 . ReLU(W [p_u; q_i] + b) + w2 . (p'_u * q'_i) + c

with p, q and p', q' from two tables. W [p; q] = W_u p + W_q q is linear in either part: each part
is mapped once per distinct row of a batch, and once per row for a ranking.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.models.graph import NodeRows
from varemb.ranking import Score


class NCF(nn.Module):
    """A recommender of pairs, with a hidden layer; its rows are users first, then items.

    Both tables have the same dims, and both count: CIESS's published code masks one of them only.

    Args:
        hidden_table: rows of the hidden layer, as NodeRows takes it.
        product_table: rows that are multiplied.
        num_users: U.
        num_items: V.
        width: D, of the rows and of the hidden layer.

    Example:
        >>> from varemb import VarEmbedding
        >>> tables = [VarEmbedding(5, 4, dims=[2, 2, 1, 1, 1]) for _ in range(2)]
        >>> model = NCF(*tables, 2, 3, 4)
        >>> score, items = model.ranking()
        >>> score(torch.tensor([0, 1]), items).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        hidden_table: nn.Module,
        product_table: nn.Module,
        num_users: int,
        num_items: int,
        width: int,
    ) -> None:
        super().__init__()
        self.num_users, self.num_items, self.width = num_users, num_items, width
        self.hidden_rows = NodeRows(hidden_table, width)
        self.product_rows = NodeRows(product_table, width)
        self.hidden = nn.Linear(2 * width, width)
        self.output = nn.Linear(2 * width, 1)
        for linear in (self.hidden, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, decay: float) -> Tensor:
        """mean softplus(score(u, n) - score(u, p)) + decay (squared norms of the batch's rows) / B.

        Args:
            users, positives, negatives: rows of a triple; items count from 0. [B], int64
            decay: weight of the L2 term.
        """
        user_rows, user_places = _distinct(users, self.num_users)
        items = torch.cat([positives, negatives])
        item_rows, item_places = _distinct(items, self.num_items)
        user_part, user_product, user_norms = self._read(user_rows)
        item_part, item_product, item_norms = self._read(item_rows + self.num_users)
        # F.embedding: its gradient sums repeated rows much faster than that of an index.
        mapped = F.embedding(user_places, user_part)  # [B, D]
        good, bad = F.embedding(item_places, item_part).chunk(2)  # [B, D] each
        first, second = self.output.weight[0].split(self.width)
        difference = (F.relu(mapped + bad) - F.relu(mapped + good)) @ first
        products = item_product * second[: item_product.shape[1]]
        good, bad = F.embedding(item_places, products).chunk(2)
        difference = difference + (F.embedding(user_places, user_product) * (bad - good)).sum(1)
        norms = user_norms[user_places].sum() + item_norms[item_places].sum()
        return F.softplus(difference).mean() + decay * norms / len(users)

    def _read(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mapped rows [n, D], rows to multiply [n, W], and squared norms of both rows. [n]

        All nodes are users or all are items; the layer's bias goes to the items.
        """
        rows, products = self.hidden_rows(nodes), self.product_rows(nodes)
        is_user = bool(nodes[0] < self.num_users)
        first = 0 if is_user else self.width
        weight = self.hidden.weight[:, first : first + rows.shape[1]]  # [D, W]
        norms = rows.square().sum(1) + products.square().sum(1)
        return F.linear(rows, weight, None if is_user else self.hidden.bias), products, norms

    @torch.no_grad()
    def ranking(self) -> tuple[Score, Tensor]:
        """A function that scores some items for some users, and a row for each item.

        With ReLU(x) = (x + |x|) / 2 the hidden layer's part is a term per user, a term per item,
        and half the sum of w1 |a_u + b_i|: a difference of two distances of the first norm, over
        the positive and over the negative numbers of w1. No block [b, V, D] is made.

        Returns:
            Users and items as `rank_metrics` takes them.
        """
        device = self.output.weight.device
        nodes = torch.arange(self.num_users + self.num_items, device=device)
        user_part, user_product, _ = self._read(nodes[: self.num_users])
        item_part, item_product, _ = self._read(nodes[self.num_users :])
        first, second = self.output.weight[0].split(self.width)
        user_part, item_part = user_part * first / 2, item_part * first / 2
        # Columns with a positive number of w1 first, so that the two sums are two slices.
        order = torch.argsort(first <= 0, stable=True)
        plus = int((first > 0).sum())
        user_part, item_part = user_part[:, order], item_part[:, order]
        user_terms = user_part.sum(1, keepdim=True)
        item_terms = item_part.sum(1, keepdim=True) + self.output.bias
        item_product = item_product * second[: item_product.shape[1]]
        sizes = [1, plus, self.width - plus, item_product.shape[1]]

        @torch.no_grad()
        def score(users: Tensor, items: Tensor) -> Tensor:  # [b], [C, R] -> [b, C]
            terms, item_plus, item_minus, products = items.split(sizes, 1)
            user_plus, user_minus = user_part[users].split(sizes[1:3], 1)
            out = torch.addmm(terms.T, user_product[users], products.T)
            out += user_terms[users]
            out += torch.cdist(user_plus, item_plus, p=1)
            out -= torch.cdist(user_minus, item_minus, p=1)
            return out

        return score, torch.cat([item_terms, -item_part, item_product], 1)


def _distinct(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows that occur and the place of each among them; all rows if the batch has as many."""
    if len(rows) >= count:
        return torch.arange(count, device=rows.device), rows
    return torch.unique(rows, return_inverse=True)
