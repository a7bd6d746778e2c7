"""Optimizers for tables: they touch only looked-up rows, of those only their d[r] numbers, and keep
state as narrow as the rows.

They are lazy: a row that a batch did not look up does not move, and its moments do not decay.
`fused=True` (default) applies the update inside backward and never stores a gradient: two lookups
of a table in one step are then applied one after the other (of a table with matrices, or with
`per_sample_weights` that are trained, the second is refused: the rows it read are gone),
`clip_grad_norm_` counts the table as 0 and clips nothing of it, and `GradScaler.step` raises.
`fused=False` reads the sparse gradient of tables built with `sparse=True`, on which a `GradScaler`
works; torch clips dense gradients alone, those for its own optimizers.

A table keeps a fused optimizer until its `detach`, also when nothing else refers to it any more.
`weight.requires_grad` says what it says in torch, whether a table is trained or frozen: also with
`fused=True`, where `weight.grad` stays None.

A copy of an optimizer (`copy.deepcopy`, pickle) trains copies of its tables: copy the model in the
same call, as in `copy.deepcopy((model, optimizer))`. A copied table alone has no optimizer.

`stochastic_rounding=True` rounds new numbers of float16 and bfloat16 rows up or down at random, the
chance by distance: the mean is exact, so that steps smaller than a row's precision are not lost.
The same seed gives the same numbers on every device, with any number of threads; the lookups of a
table in one step share their random numbers.
"""

from varemb.optim.adagrad import Adagrad
from varemb.optim.adam import Adam
from varemb.optim.base import TableOptimizer
from varemb.optim.row_wise_adagrad import RowWiseAdagrad
from varemb.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "RowWiseAdagrad", "TableOptimizer"]
