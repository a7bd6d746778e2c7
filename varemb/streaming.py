"""What `varemb search esapn | scall` do: read a stream, learn it once, write the run folder.

A method and the baselines that are compared with it are one family. A run is one method on one
stream; `varemb report` shows several runs together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from varemb.data import STREAMS, EventColumns, EventStream, load_stream, load_stream_file
from varemb.experiment import Place, Result, Say, show_finished, train_option
from varemb.files import checksum, save_json, save_jsonl
from varemb.plan import MAX_WIDTH
from varemb.report import format_stream_results
from varemb.runs import CHECKPOINT, HISTORY, METRICS, PLAN, open_run
from varemb.search import (
    ESAPN,
    SCALL,
    ESAPNConfig,
    SCALLConfig,
    StreamAutoEmb,
    StreamAutoEmbConfig,
    StreamDARTS,
    StreamDARTSConfig,
    StreamFixed,
    StreamFixedConfig,
    StreamResult,
)
from varemb.search.esapn import check_esapn
from varemb.search.scall_config import check_scall
from varemb.search.settings import naming_options
from varemb.search.stream_fixed import check_fixed
from varemb.search.stream_soft import check_stream_autoemb, check_stream_darts

_MOST = 1e12  # of a budget, in MB or in numbers per row; counts of numbers stay in 64 bits


class StreamSearch(Protocol):
    """What learns from a stream."""

    def fit(
        self,
        stream: EventStream,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> StreamResult: ...


@dataclass(frozen=True)
class StreamMethod:
    """A method, by its class and settings.

    Attributes:
        search: makes it of its settings.
        config: their class.
        name: what results call it with these settings.
        told: fields that results name too, where they are not at their defaults.
        check: raises ValueError for settings that do not fit.
    """

    search: Callable[[Any], StreamSearch]
    config: type[Any]
    name: Callable[[Any], str]
    told: tuple[str, ...] = ()
    check: Callable[[Any], None] = lambda config: None


@dataclass(frozen=True)
class Family:
    """Methods with one contract.

    Attributes:
        title: how the family's own method is written.
        model: the recommender, for results.
        needs_ratings: it learns to predict them.
        methods: by the name of --method, its own first.
    """

    title: str
    model: str
    needs_ratings: bool
    methods: dict[str, StreamMethod]


@dataclass(frozen=True)
class Source:
    """Where a stream comes from.

    Attributes:
        data: a name of STREAMS, or a file.
        data_dir: folder of a stream that is known by name.
        order: "time", "shuffle" or "file".
        events: only the first so many; 0 takes all.
        columns: of a file.
    """

    data: str
    data_dir: Path | None = None
    order: str = "time"
    events: int = 0
    columns: EventColumns = dataclasses.field(default_factory=EventColumns)

    def check(self, *, needs_ratings: bool) -> None:
        """Raises ValueError for a file without the columns that are needed, before it is read."""
        if self.data in STREAMS or not Path(self.data).is_file():
            return
        if needs_ratings and self.columns.rating is None:
            raise ValueError(
                f"--rating-column must name the column of {self.data} with the ratings to learn"
            )
        if self.order == "time" and self.columns.time is None:
            raise ValueError(
                f"--time-column must name the column of {self.data} with the times; or choose "
                "--order file or shuffle"
            )

    @property
    def name(self) -> str:
        """What results call it."""
        return self.data if self.data in STREAMS else Path(self.data).stem

    def load(self, seed: int) -> EventStream:
        """The events.

        Args:
            seed: of a shuffle.

        Raises:
            ValueError: the data are unknown or damaged, or do not have what the order needs.
            FileNotFoundError: the file or the folder is missing.
        """
        if self.events < 0:
            raise ValueError(f"--events must be at least 1, or 0 for all, got {self.events}")
        if self.data in STREAMS:
            if self.data_dir is None:
                raise ValueError(f"--data {self.data} needs --data-dir, the folder with its files")
            stream = load_stream(self.data, self.data_dir, self.order, seed)
        elif Path(self.data).is_file():
            stream = load_stream_file(self.data, self.columns, self.order, seed, name=self.name)
        else:
            raise ValueError(
                f"--data must be one of {', '.join(STREAMS)}, or a file, got {self.data!r}"
            )
        return stream.part(slice(self.events)) if self.events else stream

    def options(self, stream: EventStream) -> dict[str, Any]:
        """What decides the events: option of the command line -> value."""
        columns = (stream.users, stream.items, stream.ratings, stream.times)
        arrays = [column for column in columns if column is not None]
        return {
            "--data": self.name,
            "--order": self.order,
            "--events": self.events,
            "content of --data": f"checksum {checksum(arrays)}",
        }


def run_stream(
    family: Family, method: str, config: Any, source: Source, place: Place, say: Say = print
) -> Result:
    """A method goes through a stream once; with a folder, what it found is kept there.

    Args:
        family: of the method.
        method: by its name in the family.
        config: its settings; their seed is also that of a shuffle.
        source: of the events.
        place: the run folder.
        say: takes each line that is printed.

    Returns:
        The result; fields as in metrics.json.

    Raises:
        ValueError: the events do not fit the method, or the folder holds another run.
    """
    source.check(needs_ratings=family.needs_ratings)
    stream = source.load(config.seed)
    _check(family, config, stream)
    options = {"command": f"search {family.title.lower()}", "--method": method}
    options |= source.options(stream)
    options |= {train_option(name): value for name, value in dataclasses.asdict(config).items()}
    with open_run(place.folder, options, resume=place.resume) as is_finished:
        if place.folder and is_finished:
            return show_finished(place.folder, say, format_stream_results)[0]
        users, items = len(np.unique(stream.users)), len(np.unique(stream.items))
        say(
            f"{source.name}, order {source.order}: {len(stream):,} events, {users:,} users, "
            f"{items:,} items; seed {config.seed}"
        )
        found = (
            family.methods[method]
            .search(config)
            .fit(
                stream,
                checkpoint_dir=place.folder / CHECKPOINT if place.folder else None,
                resume=place.resume,
            )
        )
        result = _result(family, method, config, source, found)
        result["events"] = len(stream)
        if place.folder:  # before anything is said: who reads it may be gone
            found.plan.save(place.folder / PLAN)
            save_jsonl(place.folder / HISTORY, found.history)
            save_json(place.folder / METRICS, result)
        say(format_stream_results([result]))
        if place.folder:
            say(f"\nwritten to {place.folder}; next: varemb report {place.folder}")
        return result


def _check(family: Family, config: Any, stream: EventStream) -> None:
    if not len(stream):
        raise ValueError(f"search {family.title.lower()}: the stream {stream.name} has no events")
    if family.needs_ratings and (stream.ratings == stream.ratings[0]).all():
        raise ValueError(
            f"search {family.title.lower()}: {family.title} learns to predict ratings, and all of "
            f"{stream.name} are {stream.ratings[0]:g}"
        )
    if family.needs_ratings and config.task == "binary":
        positives = int((stream.ratings > config.threshold).sum())
        if not 0 < positives < len(stream):
            raise ValueError(
                f"search {family.title.lower()}: --threshold must have ratings of {stream.name} "
                f"on both sides, got {config.threshold:g} with {positives:,} of {len(stream):,} "
                "ratings above it"
            )


def _result(
    family: Family, method: str, config: Any, source: Source, found: StreamResult
) -> Result:
    return {
        "method": method_label(family.methods[method], config),
        "data": source.name,
        "model": family.model,
        "seed": config.seed,
        "order": source.order,
        "task": getattr(config, "task", "ranking"),
        "metrics": found.metrics,
        "params": found.params,
        "params_full": found.params_full,
        "users": len(found.plan["user"]),  # rows: what is only met in a last test has none
        "items": len(found.plan["item"]),
        "bytes": found.bytes,
        "seconds": found.seconds,
        "rows_per_second": found.rows_per_second,
        "tables": found.tables,
    }


def method_label(method: StreamMethod, config: Any) -> str:
    """What results call a method: its name, and what its settings make of it."""
    parts = [method.name(config)]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in method.told and value != field.default:
            name = field.name.replace("_", "-")
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            parts.append(name if value is True else f"{name}={shown}")
    return " ".join(parts)


def make_config(family: Family, method: str, given: dict[str, Any]) -> Any:
    """The config of a method, with the settings that were given, checked.

    Args:
        family: of the method.
        method: by its name in the family.
        given: field -> value.

    Raises:
        ValueError: a setting is one of other methods alone, or does not fit; the message names the
            option.
    """
    fields = {field.name for field in dataclasses.fields(family.methods[method].config)}
    for name in given:
        if name not in fields:
            others = [
                each for each, m in family.methods.items()
                if name in {field.name for field in dataclasses.fields(m.config)}
            ]  # fmt: skip
            raise ValueError(
                f"{train_option(name)} is an option of {', '.join(others)}, not of {method}"
            )
    config = replace(family.methods[method].config(), **given)
    with naming_options(type(config), train_option):
        family.methods[method].check(config)
        _check_limits(family.title.lower(), config)
    return config


def _check_limits(name: str, config: Any) -> None:
    """Raises ValueError for rows and budgets beyond what any table can have."""
    for field, most in (("dim", MAX_WIDTH), ("memory", _MOST), ("mean_dim", _MOST)):
        value = getattr(config, field, 0)
        if not value <= most:
            raise ValueError(f"search {name}: {field} must be at most {most:g}, got {value}")
    if isinstance(config, StreamDARTSConfig | StreamAutoEmbConfig):  # their rows have all sizes
        total = sum(config.sizes)
        if total > MAX_WIDTH:
            raise ValueError(
                f"search {name}: sizes must be at most {MAX_WIDTH} together, got {total}"
            )


def _scall_name(config: SCALLConfig) -> str:
    budget = f"{config.memory:g}MB" if config.memory else f"mean-{config.mean_dim:g}"
    return f"{config.policy} {budget}"


# By the name of the command.
FAMILIES: dict[str, Family] = {
    "esapn": Family(
        "ESAPN",
        "mlp",
        needs_ratings=True,
        methods={
            "esapn": StreamMethod(
                ESAPN,
                ESAPNConfig,
                lambda config: "esapn",
                ("policy", "chance", "norm", "validation", "price", "reward", "sizes"),
                check_esapn,
            ),
            "fixed": StreamMethod(
                StreamFixed,
                StreamFixedConfig,
                lambda config: f"fixed-{config.dim}",
                ("normalise",),
                check_fixed,
            ),
            "darts": StreamMethod(
                StreamDARTS, StreamDARTSConfig, lambda config: "darts", (), check_stream_darts
            ),
            "autoemb": StreamMethod(
                StreamAutoEmb,
                StreamAutoEmbConfig,
                lambda config: "autoemb",
                (),
                check_stream_autoemb,
            ),
        },
    ),
    "scall": Family(
        "SCALL",
        "lightgcn",
        needs_ratings=False,
        methods={
            "scall": StreamMethod(
                SCALL,
                SCALLConfig,
                _scall_name,
                ("distribution", "scale", "frequency", "width"),
                check_scall,
            )
        },
    ),
}
