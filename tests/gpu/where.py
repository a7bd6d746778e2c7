"""Where the tests of this folder run: the GPU, on each backend that it has kernels of."""

import pytest
import torch

from varemb.ops.backend import PREFERENCE, why_not
from varemb.testing import PagedNumbers, Table

DEVICE = "cuda"


def _backend(name: str):
    reason = why_not(name, DEVICE)
    return pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


BACKENDS = [_backend(name) for name in PREFERENCE[DEVICE] if name != "reference"]


def moved(table: Table) -> Table:
    """The same table on the GPU; the one given stays where it is."""
    if isinstance(table.storage, PagedNumbers):
        rows = table.rows._replace(index=there(table.rows.index))
        dims, weight = there(table.storage.dims), there(table.values).requires_grad_()
        return Table(PagedNumbers(weight, rows, dims), table.dense.to(DEVICE))
    dims, width = table.storage.dims, table.storage.width
    storage = type(table.storage)(dims, width, device=DEVICE, dtype=table.values.dtype)
    with torch.no_grad():
        storage.weight.copy_(table.values)
    return Table(storage, table.dense.to(DEVICE))


def there(*tensors):
    """Copies on the GPU; None stays None."""
    out = [None if t is None else t.detach().clone().to(DEVICE) for t in tensors]
    return out[0] if len(out) == 1 else out
