"""The recorder of a stream: which events a record, a window, a part and a point of a curve hold."""

import numpy as np
import pytest

from tests.search.test_esapn_stream import METHODS, make_stream
from varemb.search.stream_recorder import CURVE, DIMS_CURVE, Recorder, Scored


def score(losses, right, frequencies=(1, 1), dims=(2, 4)):
    """Events of one user and one item that had occurred so often."""
    count = len(losses)
    both = (np.repeat(np.array(each)[:, None], count, 1) for each in (frequencies, dims))
    return Scored(np.float32(losses), np.array(right), *both)


def test_a_window_holds_the_events_since_the_last_record():
    recorder = Recorder()
    recorder.add(score([0.5, 0.5], [True, True]))
    first = recorder.close_window("mse")
    assert (first["events"], first["accuracy_window"], first["mse_window"]) == (2, 1.0, 0.5)
    recorder.add(score([0.25], [False]))
    recorder.add(score([0.75], [False]))
    second = recorder.close_window("mse")
    assert (second["events"], second["accuracy_window"], second["mse_window"]) == (4, 0.0, 0.5)
    assert second["accuracy"] == 0.5


def test_curves_end_at_their_last_frequency():
    recorder = Recorder(start=0)
    ends = (1, DIMS_CURVE, DIMS_CURVE + 1, CURVE, CURVE + 1, 10**6)
    for place, frequency in enumerate(ends):
        recorder.add(score([place / 4], [place % 2 == 0], (frequency, 1), (place, 4)))
    tables = recorder.tables("mse")
    for part in ("", "_all"):
        users = [e for e in tables[f"quality_by_frequency{part}"] if e["side"] == "user"]
        assert [e["frequency"] for e in users] == [1, DIMS_CURVE, DIMS_CURVE + 1, CURVE]
        assert [(e["events"], e["accuracy"], e["mse"]) for e in users] == [
            (1, 1.0, 0.0), (1, 0.0, 0.25), (1, 1.0, 0.5), (1, 0.0, 0.75)
        ]  # fmt: skip
    widths = [(e["side"], e["frequency"], e["mean_dim"]) for e in tables["width_by_frequency"]]
    assert widths == [("user", 1, 0.0), ("user", DIMS_CURVE, 1.0), ("item", 1, 4.0)]


def test_a_fit_reports_its_last_part_and_records_by_the_window():
    method = METHODS["fixed"](batch_size=50, window=120, reported=0.05)
    result = method.fit(make_stream(330), progress=False)
    # A record follows the batch with which another 120 events are full, and the last batch.
    assert [record["events"] for record in result.history] == [150, 250, 330]
    right = sum(
        record["accuracy_window"] * events
        for record, events in zip(result.history, (150, 100, 80), strict=True)
    )
    assert right / 330 == pytest.approx(result.metrics["accuracy_all"])
    users = [e for e in result.tables["quality_by_frequency"] if e["side"] == "user"]
    assert sum(e["events"] for e in users) == 17  # 5 % of 330, rounded up
    right = sum(e["events"] * e["accuracy"] for e in users)
    assert right / 17 == pytest.approx(result.metrics["accuracy"])
