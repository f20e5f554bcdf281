"""What benchmarks print and write."""

import json
from pathlib import Path

import pytest
from benchmarks.reporting import collect, percentile, report


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 50), (99, 99), (100, 100)])
def test_percentile_is_the_nearest_rank(percent: float, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], percent) == value


def test_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([3.0], 99) == 3
    assert percentile([1.0, 2.0], 50) == 1


def test_report_prints_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "sides", "--out", "new folder"])
    rows = collect(iter([{"side": 512, "s": 0.5}, {"side": 1024, "s": 1234.5}]))
    assert capsys.readouterr().out.count("\n") == 2
    report(tmp_path / "new", "sides", rows, kind="made up")
    written = json.loads((tmp_path / "new" / "sides.json").read_text())
    assert written["rows"] == rows
    assert written["kind"] == "made up"
    assert written["command"] == "scripts/bench sides --out 'new folder'"
    assert "| side | s |\n| --- | --- |\n| 512 | 0.50 |\n| 1024 | 1,234.50 |\n" in capsys.readouterr().out
