"""The comparison of two checkouts' costs. Figures are never measured here."""

from benchmarks.cost import COSTS, compare


def test_costs_are_compared_pair_by_pair() -> None:
    ours = [dict.fromkeys(COSTS, 10.0) | {"refusal ms": ms} for ms in (6.0, 12.0, 5.0)]
    theirs = [dict.fromkeys(COSTS, 10.0) | {"idle ms/s": 8.0} for _ in ours]
    idle, beside, _, refusal = compare(ours, theirs)
    assert idle["ratio"] == "1.25 (1.25 to 1.25)"
    assert idle["grown"]
    assert beside["ratio"] == "1.00 (1.00 to 1.00)"
    assert refusal["this"] == "6.00 (5.00 to 12.00)"
    assert refusal["ratio"] == "0.60 (0.50 to 1.20)"
    assert not refusal["grown"]
