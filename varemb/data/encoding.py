"""Click logs of any size as ids, in two passes: one counts values, one turns them into ids."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from varemb.data.base import ClickData, open_encoded
from varemb.data.columns import BLOCK_BYTES
from varemb.data.keys import count_equal, number_distinct
from varemb.data.mapped import NOTES, Ids, Labels, RowsWriter, building, load_notes
from varemb.data.reading import Batch, LogFormat, find_source, read_batches
from varemb.data.vocabulary import ValueCounts, Vocabulary, make_vocabulary

VOCABULARY = "vocabulary.safetensors"  # its name in an encoded folder

Place = str | os.PathLike[str]
MinCount = int | Mapping[str, int] | None


def count_values(
    form: LogFormat,
    place: Place,
    min_count: MinCount = None,
    *,
    progress: bool = True,
    block_bytes: int = BLOCK_BYTES,
) -> Vocabulary:
    """The vocabulary of a file: a pass over all of it.

    Memory: a few batches, and what `ValueCounts` says for the distinct values.

    Args:
        form: of the data set.
        place: a file, or a folder with it.
        min_count: occurrences a value needs for an id of its own, for all fields or by the name of
            the field; by default the data set's.
        progress: show a bar.
        block_bytes: text of a batch.

    Raises:
        ValueError: a minimum count is no count or for no field, or the file is damaged.
        FileNotFoundError: there is no file.

    Deterministic: yes; batches of any size give the same.
    """
    needed = _min_counts(form, min_count)
    path = find_source(form, place)
    if path.is_dir():
        raise ValueError(f"{form.name}: {path} is encoded already, and has its {VOCABULARY}")
    counts = {name: ValueCounts() for name in form.fields}
    rows = 0
    batches = read_batches(form, path, block_bytes=block_bytes)
    for batch in _show_progress(batches, f"{form.name}: counting", progress=progress):
        rows += len(batch.labels)
        for name, keys in batch.keys.items():
            counts[name].add(*count_equal(keys))
    vocabulary = make_vocabulary(form.name, rows, counts, needed)
    for name in vocabulary.constant_fields:
        number = vocabulary.distinct[name]
        text = "one value" if number == 1 else f"{number:,} values, all of them rare"
        warnings.warn(
            f"{form.name}: field {name} has the same id in all {rows:,} rows: {text}", stacklevel=3
        )
    return vocabulary


def load_log(
    form: LogFormat,
    place: Place,
    min_count: MinCount = None,
    vocabulary: Vocabulary | None = None,
    *,
    progress: bool = True,
) -> ClickData:
    """The rows of a file in memory, or those of an encoded folder as maps of its files.

    Args:
        form: of the data set.
        place: a file, an encoded folder, or a folder with one of these.
        min_count: as in `count_values`.
        vocabulary: gives the ids, in place of a new one.
        progress: show bars.

    Raises:
        ValueError: the file is damaged, the vocabulary is of other data, the ids do not fit into
            memory, or a folder is encoded otherwise than asked for.
        FileNotFoundError: there is no file.
    """
    path = find_source(form, place)
    if path.is_dir():
        return _open(form, path, min_count, vocabulary)
    total = None
    if vocabulary is None:
        vocabulary = count_values(form, path, min_count, progress=progress)
        total = vocabulary.rows
        _check_memory(form, path, total)
    else:
        _check_given(form, min_count, vocabulary)
    rows = 0
    parts: list[tuple[Ids, Labels]] = []
    for ids, labels in _encode(form, path, vocabulary, total, progress=progress):
        parts.append((ids, labels))
        rows += len(labels)
        _check_memory(form, path, rows)
    all_ids = torch.from_numpy(np.concatenate([ids for ids, _ in parts]))
    all_labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    return ClickData(all_ids, all_labels, form.fields, vocabulary.cardinalities)


def encode_log(
    form: LogFormat,
    place: Place,
    folder: Place,
    min_count: MinCount = None,
    vocabulary: Vocabulary | None = None,
    *,
    progress: bool = True,
    block_bytes: int = BLOCK_BYTES,
) -> ClickData:
    """The rows of a file, written as an encoded folder and mapped from there.

    The folder appears when it is whole; it holds the vocabulary too. A row takes 4 (F + 1) bytes
    on the disk. Memory: that of `count_values`.

    Args:
        form: of the data set.
        place: a file, or a folder with it.
        folder: the encoded folder to make.
        min_count: as in `count_values`.
        vocabulary: gives the ids, in place of a new one.
        progress: show bars.
        block_bytes: text of a batch.

    Raises:
        FileExistsError: the folder is there already, or is being written.
        FileNotFoundError: there is no file, or no parent for the folder.
        ValueError: the file is damaged, or the vocabulary is of other data.
    """
    path = find_source(form, place)
    if path.is_dir():
        raise ValueError(f"{form.name}: {path} is encoded already")
    with building(Path(folder)) as partial:
        total = None
        if vocabulary is None:
            vocabulary = count_values(
                form, path, min_count, progress=progress, block_bytes=block_bytes
            )
            total = vocabulary.rows
        else:
            _check_given(form, min_count, vocabulary)
        vocabulary.save(partial / VOCABULARY)
        writer = RowsWriter(partial, form.fields, vocabulary.cardinalities, form.name)
        try:
            for ids, labels in _encode(
                form, path, vocabulary, total, progress=progress, block_bytes=block_bytes
            ):
                writer.append(ids, labels)
            writer.finish()
        finally:
            writer.close()
    return open_encoded(Path(folder))


def _min_counts(form: LogFormat, min_count: MinCount) -> dict[str, int]:
    if isinstance(min_count, Mapping):
        for name in min_count:
            if name not in form.fields:
                raise ValueError(
                    f"{form.name}: min_count is for the field {name}, which is none of "
                    f"{', '.join(form.fields)}"
                )
        counts = dict.fromkeys(form.fields, form.min_count) | dict(min_count)
    else:
        counts = dict.fromkeys(form.fields, form.min_count if min_count is None else min_count)
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{form.name}: min_count of {name} must be at least 1, got {count}")
    return counts


def _check_given(form: LogFormat, min_count: MinCount, vocabulary: Vocabulary) -> None:
    if min_count is not None:
        raise ValueError(f"{form.name}: give min_count or a vocabulary, which has its own")
    vocabulary.check(form.name, form.fields)


def _open(
    form: LogFormat, folder: Path, min_count: MinCount, vocabulary: Vocabulary | None
) -> ClickData:
    notes = load_notes(folder)
    if notes["data"] != form.name or tuple(notes["fields"]) != form.fields:
        raise ValueError(f"{form.name}: {folder / NOTES} is of other data, {notes['data']}")
    is_asked = min_count is not None or vocabulary is not None
    if is_asked or (folder / VOCABULARY).exists():  # parts of a folder have none
        stored = Vocabulary.load(folder / VOCABULARY)
        stored.check(form.name, form.fields)
        pairs = zip(form.fields, notes["cardinalities"], stored.cardinalities, strict=True)
        for name, found, expected in pairs:
            if found != expected:
                raise ValueError(
                    f"{form.name}: {folder / NOTES}: the cardinality of {name} must be {expected}, "
                    f"as in {VOCABULARY}, got {found}"
                )
    if is_asked:
        is_same = stored.is_same(vocabulary) if vocabulary else True
        if min_count is not None and stored.min_counts != _min_counts(form, min_count):
            is_same = False
        if not is_same:
            raise ValueError(
                f"{form.name}: {folder} was encoded with another vocabulary or min_count"
            )
    return open_encoded(folder)


def _encode(
    form: LogFormat,
    path: Path,
    vocabulary: Vocabulary,
    total: int | None,
    *,
    progress: bool,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[Ids, Labels]]:
    batches = read_batches(form, path, block_bytes=block_bytes)
    for batch in _show_progress(batches, f"{form.name}: encoding", progress=progress, total=total):
        ids = np.empty((len(batch.labels), len(form.fields)), np.int32)
        for i, (name, keys) in enumerate(batch.keys.items()):
            distinct, places = number_distinct(keys)
            ids[:, i] = vocabulary.find(name, distinct)[places]
        yield ids, batch.labels


def _show_progress(
    batches: Iterable[Batch], text: str, *, progress: bool, total: int | None = None
) -> Iterator[Batch]:
    if not progress:
        yield from batches
        return
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "progress=True needs tqdm: pip install 'varemb[data]', or pass progress=False"
        ) from None
    with tqdm(desc=text, total=total, unit=" rows", unit_scale=True, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.labels))


def _check_memory(form: LogFormat, path: Path, rows: int) -> None:
    """Raises ValueError when rows, and the copy that a split makes, need more than the machine."""
    needed = 2 * rows * 4 * (len(form.fields) + 1)
    if needed > (memory := machine_memory()):
        raise ValueError(
            f"{form.name}: {path}: the ids and a split of them need more than {needed / 1e9:.1f} "
            f"GB, this machine has {memory / 1e9:.1f} GB; encode the file once with "
            f"python -m varemb.data {form.name} {path} --out FOLDER, then read FOLDER"
        )


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
