"""What the optimizers share: the tables they train, their hyperparameters and their state."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from varemb.ops import Fused, update_
from varemb.ops.update import ALGORITHMS
from varemb.optim.group import STEP, Group, check_hyperparameters
from varemb.optim.saved import saved_group, saved_state
from varemb.storage import State, Storage, storage_of


@dataclass(eq=False)
class _Trained:
    """A table and what an optimizer keeps for it."""

    storage: Storage
    hyper: Tensor  # [6] float64, as `Fused` has it: its last number is that of the coming step
    steps: Tensor  # [2]: that number and the steps done, the state's, in one tensor to count both
    state: dict[str, Tensor]  # what torch calls a parameter's state
    moves: State  # the part of it that follows the rows
    fused: Fused | None  # what lookups apply; None: `step` applies gradients


class TableOptimizer(torch.optim.Optimizer, abc.ABC):
    """What the optimizers of this module share.

    As in torch, a table is trained while its weight requires a gradient: freeze it with
    `requires_grad_(False)`, before or after the optimizer is made, and it rests, its step counter
    too. With fused=False steps with a gradient count, as in torch; with fused=True every step does,
    and `weight.grad` stays None: `clip_grad_norm_` counts tables as 0 and clips nothing of them,
    and `GradScaler.step` raises.

    Args:
        params: weights of VarEmbedding and VarEmbeddingBag, or groups of them.
        defaults: hyperparameters.
        fused: apply the update inside backward.
        stochastic_rounding: round new numbers at random; rows must be float16 or bfloat16.
        seed: of stochastic rounding, below 2^32; each table draws numbers of its own.
        fill: what the state begins with.

    Raises:
        TypeError: a parameter is not the weight of a table.
        ValueError: a hyperparameter is out of range; a table already has a fused optimizer; rows
            have too many bits for stochastic rounding.
    """

    algorithm: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]
    is_row_wise: ClassVar[bool] = False  # state [N] instead of [E]
    torch_options: ClassVar[dict[str, Any]] = {}  # what makes torch's rule of this name this one

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        fused: bool,
        stochastic_rounding: bool,
        seed: int,
        fill: float = 0.0,
    ) -> None:
        check_hyperparameters(type(self).__name__, defaults)
        if not 0 <= seed < 2**32:
            raise ValueError(f"{type(self).__name__}: seed must be in [0, 2^32), got {seed}")
        self._fused, self._fill = fused, fill
        self._seed = seed if stochastic_rounding else None
        self._tables: dict[Tensor, _Trained] = {}
        # A GradScaler then leaves scaled gradients to `step`, which can say that there are none.
        self._step_supports_amp_scaling = fused
        self._is_complete = False
        super().__init__(params, defaults)
        self._is_complete = True
        _attach(self._tables.values())  # at the end, as a later group may have been refused

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds tables with hyperparameters of their own, as in torch; all of them or none.

        Raises: as the constructor.
        """
        super().add_param_group(param_group)
        given = self.param_groups.pop()  # comes back when nothing can raise any more
        weights = given["params"]
        check_hyperparameters(type(self).__name__, given)
        storages = [self._checked_table(position, weights) for position in range(len(weights))]
        made = [self._make_trained(*pair) for pair in enumerate(storages, len(self._tables))]
        self.param_groups.append(Group(given, [table.hyper for table in made]))
        for weight, table in zip(weights, made, strict=True):
            self._tables[weight], self.state[weight] = table, table.state
            table.storage.follow(table.moves)
        if self._is_complete:
            _attach(made)

    def _checked_table(self, position: int, weights: list[Tensor]) -> Storage:
        name, weight = type(self).__name__, weights[position]
        storage = storage_of(weight)
        if storage is None:
            raise TypeError(
                f"{name}: every parameter must be the weight of a VarEmbedding or VarEmbeddingBag, "
                f"parameter {position} of shape {list(weight.shape)} is not; give it to torch.optim"
            )
        if any(weight is other for other in weights[:position]):
            raise ValueError(f"{name}: every table must be given once, parameter {position} is not")
        if storage.attached is not None:
            raise ValueError(
                f"{name}: the table of parameter {position} must have no other optimizer, it has a "
                "fused optimizer: call the optimizer's detach() first, or the table's "
                "detach_optimizer()"
            )
        if self._seed is not None and weight.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name}: stochastic_rounding needs rows of float16 or bfloat16, "
                f"parameter {position} has {str(weight.dtype).removeprefix('torch.')}"
            )
        return storage

    def _make_trained(self, number: int, storage: Storage) -> _Trained:
        """What is kept for a table, which does not know of it yet; its number is its own here."""
        weight = storage.weight
        numbers = torch.zeros(STEP + 2, dtype=torch.float64, device=weight.device)
        hyper, steps = numbers[: STEP + 1], numbers[STEP:]
        steps[0] = 1
        state = {"step": steps[1]}
        if self._seed is not None:
            # The table's number is the seed's upper half, so that two tables do not round alike.
            seed_and_offset = [self._seed | number << 32, 0]
            state["rounding"] = torch.tensor(seed_and_offset, device=weight.device)
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        for state_name in self.state_names:
            state[state_name] = storage.new_state(wide, self._fill, per_row=self.is_row_wise)
        tensors = [state[state_name] for state_name in self.state_names]
        moves = State(per_row=tensors) if self.is_row_wise else State(per_number=tensors)
        moves.fill = self._fill
        fused = None
        if self._fused:
            anchor = torch.zeros(0, device=weight.device, requires_grad=True)
            algorithm = ALGORITHMS[self.algorithm]
            fused = Fused(anchor, *self._buffers(state), hyper, state.get("rounding"), algorithm)
        return _Trained(storage, hyper, steps, state, moves, fused)

    def _buffers(self, state: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        buffers = [state[name] for name in self.state_names] + [None, None]
        return buffers[0], buffers[1]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Advances the step counter; with fused=False applies the gradients first.

        Raises:
            ValueError: fused=False and a table's gradient is dense (build it with sparse=True);
                fused=True and a table has a gradient, which nothing would apply, or no longer has
                this optimizer, or a GradScaler calls.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._fused:
            self._refuse_scaler()
            self._check_attached("step")
            self._check_gradients()
        for weight, table in self._tables.items():
            if self._fused:
                if not weight.requires_grad:
                    continue
            else:
                if weight.grad is None:
                    continue
                update_(
                    weight,
                    *self._buffers(table.state),
                    table.hyper,
                    table.state.get("rounding"),
                    table.storage.rows,
                    weight.grad,
                    algorithm=ALGORITHMS[self.algorithm],
                )
            # Through `data`, as a group writes: lookups from before may still go backward.
            table.steps.data.add_(1)
            if self._seed is not None:
                table.state["rounding"].data[1].add_(1)
        return loss

    def detach(self) -> None:
        """Takes a fused optimizer off its tables, so that they can get another one.

        Until then lookups apply it, even if nothing refers to it any more: `del` takes nothing
        off. From then on they give gradients as before, and `step` raises; the state stays and can
        be saved. `table.detach_optimizer()` does the same for one table, whoever holds the
        optimizer. With fused=False no table has the optimizer and nothing changes.

        Example:
            >>> import varemb
            >>> table = varemb.VarEmbedding(3, 4)
            >>> adam = varemb.optim.Adam(table.parameters(), lr=1e-2)
            >>> adam.detach()
            >>> sgd = varemb.optim.SGD(table.parameters(), lr=1e-2)
        """
        for table in self._tables.values():
            if table.fused is not None and table.storage.attached is table.fused:
                table.storage.detach_optimizer()

    def _check_attached(self, what: str) -> None:
        for position, table in enumerate(self._tables.values()):
            if self._fused and table.storage.attached is not table.fused:
                raise ValueError(
                    f"{type(self).__name__}.{what}: the tables must have this optimizer, it was "
                    f"detached from that of parameter {position}; make another one"
                )

    def _refuse_scaler(self) -> None:
        if "found_inf" in vars(self):  # a GradScaler's, which it takes back only after the step
            del vars(self)["found_inf"], vars(self)["grad_scale"]
            raise ValueError(
                f"{type(self).__name__}.step: with fused=True there must be no GradScaler, got "
                "one: backward has applied scaled gradients; use fused=False and tables with "
                "sparse=True"
            )

    def _check_gradients(self) -> None:
        for position, weight in enumerate(self._tables):
            if weight.grad is not None:
                raise ValueError(
                    f"{type(self).__name__}.step: with fused=True tables must have no gradient, "
                    f"got one of parameter {position}, which would be lost: an old one (zero_grad),"
                    " or of a use of the weight that is no lookup, or of DistributedDataParallel"
                )

    def state_dict(self) -> dict[str, Any]:
        """Hyperparameters and state as torch's optimizer of the same rule has them, which can load
        them for the same weight; of a table that grows without its free end."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group.update(self.torch_options)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for key, weight in enumerate(weights):
            used = self._used_state(weight)
            # Of its own and on the CPU: torch's optimizers do not copy it when they load it.
            state["state"][key] = {**used, "step": used["step"].to("cpu", copy=True)}
        return state

    def _used_state(self, weight: Tensor) -> dict[str, Tensor]:
        """State of a table as views of what its rows may use."""
        table = self._tables[weight]
        storage = table.storage
        used = storage.used_rows if self.is_row_wise else storage.used_numbers
        return {
            name: value[:used] if name in self.state_names else value
            for name, value in table.state.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes hyperparameters and state into the buffers that the tables already use.

        They may be those of torch's optimizer of the same rule for the same weights; a table
        without state, as before a first step, begins anew. Tables that change are to be loaded
        before.

        Raises:
            ValueError: the state belongs to other tables or another rule; nothing has changed then.

        Example:
            >>> import torch, varemb
            >>> table = varemb.VarEmbedding(3, 4)
            >>> adam = torch.optim.Adam(table.parameters(), lr=0.5)
            >>> lazy = varemb.optim.Adam(table.parameters())
            >>> lazy.load_state_dict(adam.state_dict())
            >>> lazy.param_groups[0]["lr"]
            0.5
        """
        name, there = type(self).__name__, state_dict["param_groups"]
        if [len(g["params"]) for g in there] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError(f"{name}: the saved state has other parameter groups")
        groups = [saved_group(name, g, self.defaults, self.torch_options) for g in there]
        for group in groups:
            check_hyperparameters(name, group)
        keys = [key for group in there for key in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        states = [
            saved_state(name, key, state_dict["state"].get(key), self._used_state(weight))
            for key, weight in zip(keys, weights, strict=True)
        ]
        for weight, saved in zip(weights, states, strict=True):
            self._take_state(weight, saved)
        for own, group in zip(self.param_groups, groups, strict=True):
            own.update(group)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies train copies of the tables: those of a model that is copied with the optimizer."""
        self._check_attached("copy")
        groups = [
            {**group, "params": [self._tables[weight].storage for weight in group["params"]]}
            for group in self.param_groups
        ]
        options = {
            "fused": self._fused,
            "stochastic_rounding": self._seed is not None,
            "seed": self._seed or 0,
            "fill": self._fill,
        }
        return _copied, (type(self), groups, self.defaults, options, self.state_dict())

    def _take_state(self, weight: Tensor, saved: dict[str, Tensor]) -> None:
        """Makes checked state that of a table; none is that before the first step."""
        table = self._tables[weight]
        if saved:
            for part, own in self._used_state(weight).items():
                own.copy_(saved[part])
        else:
            for part in self.state_names:
                table.state[part].fill_(self._fill)
            table.state["step"].zero_()
            if self._seed is not None:
                table.state["rounding"][1] = 0
        table.steps[0] = table.steps[1] + 1


def _attach(tables: Iterable[_Trained]) -> None:
    """Lets the lookups of tables apply their optimizer."""
    for table in tables:
        if table.fused is not None:
            table.storage.attach(table.fused, table.moves)


def _copied(
    cls: type[TableOptimizer],
    groups: list[dict[str, Any]],
    defaults: dict[str, Any],
    options: dict[str, Any],
    state: dict[str, Any],
) -> TableOptimizer:
    """An optimizer for copied tables; the groups have storages as their parameters."""
    for group in groups:
        group["params"] = [storage.weight for storage in group["params"]]
    optimizer = cls.__new__(cls)
    TableOptimizer.__init__(optimizer, groups, defaults, **options)
    optimizer.load_state_dict(state)
    return optimizer
