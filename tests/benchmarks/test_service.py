"""The verdicts of the service's benchmark. Figures are never measured here."""

import argparse

from benchmarks.service import targets


def test_targets_compare_with_the_bare_loop_and_with_rivals() -> None:
    quiet = {"side": 512, "p99_s": 1.0, "refusal_p99_s": None, "faults": 0, "unanswered": 0}
    ours = quiet | {"server": "Ray Serve, ours"}
    theirs = quiet | {"server": "LitServe, our engine"}
    rows = [
        ours | {"load": "closed, 4 clients", "throughput": 1.9},
        ours | {"load": "closed, 8 clients", "throughput": 1.8},
        ours | {"load": "open, 2 x peak", "throughput": 1.9, "p99_s": 4.0, "refusal_p99_s": 0.1},
        ours | {"load": "open, 5 x peak", "throughput": 1.0, "p99_s": 5.0, "refusal_p99_s": 0.3},
        theirs | {"load": "closed, 8 clients", "throughput": 1.0},
        theirs | {"load": "open, 2 x peak", "throughput": 1.0, "p99_s": 16.0},
    ]
    bare = {512: [{"spinning": 1.0, "passive": 2.0}, {"spinning": 2.0, "passive": 0.5}]}
    options = argparse.Namespace(loads=[2, 5], queue_time_s=8, threads=2)
    found = {row["target"]: row for row in targets(rows, bare, options)}
    assert found["peak / bare loop"] | {"measured": 0.95, "met": True} == found["peak / bare loop"]
    assert not found["accepted at 5 x peak / peak"]["met"]
    assert found["p99 of accepted at 5 x peak, s"]["measured"] == 5.0
    assert found["p99 of refusals, ms"]["measured"] == 300
    assert not found["p99 of refusals, ms"]["met"]
    assert found["5xx and unanswered"]["met"]
    assert found["painted, closed, 8 clients / LitServe, our engine"]["measured"] == 1.8
    assert found["p99 at 2 x / LitServe, our engine"]["measured"] == 0.25
