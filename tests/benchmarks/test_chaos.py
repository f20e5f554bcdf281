"""The chaos benchmark's faults, load, memory and verdicts, without a service. Figures are never measured here."""

import argparse
import asyncio
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from benchmarks.chaos import retirement, service
from benchmarks.chaos.endurance import Endurance
from benchmarks.chaos.faults import FAULTS, Fault, Injector, Rotation
from benchmarks.chaos.ledger import Injection
from benchmarks.chaos.load import OTHER_STYLE_SHARE, arrivals, is_picture, problem_code
from benchmarks.chaos.memory import memory_rows, once_a_minute, slopes
from benchmarks.chaos.service import DAMAGED, ChaosService, NotRecoveredError, Supervisor
from benchmarks.chaos.uploads import PLACES, gauges, verdicts
from benchmarks.load import Clock
from benchmarks.photographs import photograph
from benchmarks.reporting import MB, Row
from shared import ROOT

from serve_app.frames import Size

SERVICE = cast(ChaosService, None)  # the faults here need none


def fault(name: str, inject: Any = lambda service: None) -> Fault:
    return Fault(name, inject)


def test_faults_take_turns_and_begin_again() -> None:
    rotation = Rotation([fault("a"), fault("b")])
    injections: list[Injection] = []
    for minute in range(3):
        chosen = rotation.next(injections)
        assert chosen is not None
        injections.append(Injection(chosen.name, minute, began_s=60.0 * minute, recovered_s=60.0 * minute + 1))
    assert [each.fault for each in injections] == ["a", "b", "a"]


def test_no_fault_begins_while_the_service_recovers_and_none_loses_its_turn() -> None:
    rotation = Rotation([fault("a"), fault("b")])
    assert rotation.next([]) is not None
    last = Injection("a", 0, began_s=0)
    assert rotation.next([last]) is None
    last.recovered_s = 70
    chosen = rotation.next([last])
    assert chosen is not None
    assert chosen.name == "b"


def test_a_fault_that_never_ended_does_not_end_the_rotation() -> None:
    rotation = Rotation([fault("a"), fault("b")])
    rotation.next([])
    assert rotation.next([Injection("a", 0, began_s=0, error="after 300 s there was no a")]) is not None


def test_an_injector_leaves_minutes_out_until_a_slow_fault_is_over() -> None:
    is_over = threading.Event()
    order: list[str] = []

    def slow(service: ChaosService) -> None:
        order.append("slow")
        is_over.wait(30)

    def other(service: ChaosService) -> None:
        order.append("other")

    def stuck(service: ChaosService) -> None:
        is_over.set()
        raise NotRecoveredError("after 300 s there was none")

    injections: list[Injection] = []
    injector = Injector(SERVICE, [fault("slow", slow), fault("other", other)], Clock(), injections, minute_s=0.05)

    async def scene() -> None:
        running = asyncio.create_task(injector.run(3))
        while not order or injections[0].minute != 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert order == ["slow"]
        is_over.set()
        await running

    asyncio.run(scene())
    assert [each.fault for each in injections] == ["slow"]
    assert injections[0].recovered_s is not None
    asyncio.run(Injector(SERVICE, [fault("stuck", stuck)], Clock(), injections, minute_s=0.05).run(1))
    assert (injections[-1].recovered_s, injections[-1].error) == (None, "after 300 s there was none")


def test_only_faults_that_kill_what_holds_connections_may_break_them() -> None:
    assert {each.name for each in FAULTS if each.breaks_connections} == {"Ingress", "proxy", "node"}
    assert {each.name: each.damaged_style for each in FAULTS if each.damaged_style} == {"style": DAMAGED}
    assert max(Counter(each.name for each in FAULTS).values()) == 1


def test_arrivals_keep_their_times_and_shares_and_repeat_by_seed() -> None:
    times = [0.1 * number for number in range(5000)]
    due = arrivals(times, 0.2, ("toon", "cel"), seed=3)
    assert [each.due_s for each in due] == times
    assert len({each.number for each in due}) == len(due)
    assert sum(each.is_job for each in due) / len(due) == pytest.approx(0.2, abs=0.03)
    assert sum(each.style == "cel" for each in due) / len(due) == pytest.approx(OTHER_STYLE_SHARE, abs=0.03)
    assert due == arrivals(times, 0.2, ("toon", "cel"), seed=3)
    assert due != arrivals(times, 0.2, ("toon", "cel"), seed=4)


def test_an_answer_is_a_picture_only_if_it_is_whole_and_as_large_as_the_photograph() -> None:
    whole = photograph(1, Size(64, 64), "JPEG")
    assert is_picture(whole, 64)
    assert is_picture(whole, 66)  # up to 3 pixels are cut off
    assert not is_picture(whole, 128)
    assert not is_picture(whole[: len(whole) // 2], 64)
    assert not is_picture(b"<html>", 64)


def test_the_code_of_a_problem_is_read_and_other_bodies_are_quoted() -> None:
    assert problem_code(b'{"code": "too-busy"}') == "too-busy"
    assert problem_code(b"Internal Server Error") == "b'Internal Server Error'"
    assert problem_code(b"[]") == "b'[]'"


def life(role: str, pid: int, begun_s: int, ended_s: int, megabytes: float, a_minute: float) -> list[Row]:
    return [
        {"s": s, "role": role, "pid": pid, "bytes": MB * (megabytes + a_minute * s / 60)}
        for s in range(begun_s, ended_s, 10)
    ]


def test_a_slope_is_that_of_living_processes_and_not_of_a_restart() -> None:
    samples = [
        *life("Codec", 1, 0, 900, 100, 0),
        *life("Codec", 2, 900, 1800, 300, 0),
        *life("Ingress", 3, 0, 1200, 50, 2),
        *life("Ingress", 4, 1200, 1800, 10, 2),
        *life("raylet", 5, 0, 60, 70, 1),
    ]
    assert slopes(samples, since_s=600) == pytest.approx({"Codec": 0.0, "Ingress": 2.0, "raylet": None}, abs=1e-6)


def test_a_slope_leaves_out_the_first_minute_of_each_process_and_what_was_before() -> None:
    grown = [
        *life("Codec", 1, 0, 600, 0, 50),
        *life("Codec", 2, 600, 660, 10, 90),
        *life("Codec", 2, 660, 1200, 200, 0),
    ]
    assert slopes(grown, since_s=600, warm_up_s=60) == pytest.approx({"Codec": 0.0}, abs=1e-6)


def test_memory_is_told_by_role() -> None:
    rows = memory_rows([*life("Codec", 1, 0, 300, 100, 0), *life("Codec", 2, 300, 600, 120, 0)], since_s=0)
    assert rows == [
        {
            "role": "Codec",
            "processes": 2,
            "first MB": 100,
            "last MB": 120,
            "most MB": 120,
            "last half, MB a minute": pytest.approx(0),
        }
    ]


def test_a_report_has_a_sample_a_minute_of_each_process() -> None:
    samples = sorted(
        [*life("Codec", 1, 5, 120, 100, 0), *life("Ingress", 2, 70, 90, 50, 0)], key=lambda each: each["s"]
    )
    assert [(each["s"], each["pid"]) for each in once_a_minute(samples)] == [(5, 1), (65, 1), (70, 2)]


def test_gauges_are_added_up_over_processes() -> None:
    lines = [f'{name}{{number="1"}} 0.0' for name in PLACES]
    lines += [f'{PLACES[0]}{{number="2"}} 3.0', "other 7"]
    assert gauges("# HELP other nothing\n" + "\n".join(lines) + "\n") == 3


def test_gauges_are_ones_that_the_service_has() -> None:
    known = (ROOT / "docs" / "metrics.md").read_text()
    assert [name for name in PLACES if f"`{name}`" not in known] == []


def test_a_missing_gauge_is_not_taken_for_nothing_held() -> None:
    with pytest.raises(SystemExit, match=PLACES[1]):
        gauges("\n".join(f"{name} 0" for name in PLACES if name != PLACES[1]))


def part(**changes: Any) -> Row:
    fine = {"beside": "nobody", "not painted": 0, "times alone": 1.9, "places held": 0.0, "MB more": 5.0}
    return fine | {"descriptors more": {"Codec": 2}} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"not painted": 1}, "1 photographs were not painted"),
        ({"times alone": 2.0}, "2.0 times"),
        ({"places held": 3.0}, "3 places"),
        ({"MB more": 200.0}, "200 MB more"),
        ({"descriptors more": {"Codec": 200}}, "Codec has 200 descriptors more"),
    ],
)
def test_whatever_ordinary_clients_or_the_service_lose_is_said(changes: Row, words: str) -> None:
    assert verdicts([part()]) == []
    (sentence,) = verdicts([part(), part(**changes)])
    assert words in sentence


def test_a_supervisor_starts_a_command_again_when_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "RESTART_S", 0.05)
    monkeypatch.setattr(service, "LOOK_S", 0.05)
    with Supervisor([sys.executable, "-c", "print('started')"], tmp_path / "log", dict(os.environ)) as supervisor:
        end = time.monotonic() + 60
        while supervisor.starts < 3 and time.monotonic() < end:
            time.sleep(0.05)
    assert supervisor.starts >= 3
    assert (tmp_path / "log").read_text().count("started") >= 2


def test_who_waits_for_the_service_gives_up_when_the_run_is_stopped() -> None:
    service = cast(ChaosService, SimpleNamespace(stopping=threading.Event()))
    with pytest.raises(NotRecoveredError, match="after 0 s there was none"):
        ChaosService.wait_until(service, lambda: False, 0, "there was none")
    service.stopping.set()
    with pytest.raises(NotRecoveredError, match="stopped"):
        ChaosService.wait_until(service, lambda: False, 3600, "there was none")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_jobs_in_progress_are_lost_only_if_the_run_came_to_its_end(
    is_stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def together(*_: Any) -> None:
        endurance.jobs.accept("key", "a", 1)
        if is_stopped:
            raise SystemExit("stopped")

    options = argparse.Namespace(minutes=1, seed=0, jobs_share=0.2, style="toon", allow_broken=90.0)
    endurance = Endurance(cast(ChaosService, SimpleNamespace(tree=list)), options, rate=1)
    monkeypatch.setattr(endurance, "_together", together)
    endurance.run([])
    assert (endurance.stopped_after_s is not None) is is_stopped
    assert endurance.problems(1) == ([] if is_stopped else [{"job": "a", "problem": "it has not ended"}])
    assert bool(endurance.problems(2)) is not is_stopped  # a key made two
    assert bool(endurance.problems(None)) is not is_stopped


def test_a_config_is_changed_so_that_stylizers_retire() -> None:
    config = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    retirement.retire_soon(config, 2)
    (stylizer,) = [each for each in config["applications"][0]["deployments"] if each["name"] == "Stylizer"]
    assert stylizer["num_replicas"] == 2
    assert stylizer["user_config"]["retire_after_s"] == retirement.RETIRE_AFTER_S
    assert stylizer["user_config"]["stuck_after_s"] == 600  # what was there before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"other": 1}, "1 requests were answered dishonestly"),
        ({"refused": 2}, "2 requests were refused"),
        ({"replaced": 0}, "0 were replaced"),
    ],
)
def test_whatever_clients_lose_by_a_retirement_is_said(changes: Row, words: str) -> None:
    fine = {"Stylizers": 2, "replaced": 3, "refused": 0, "other": 0}
    assert retirement.verdicts(fine) == []
    (sentence,) = retirement.verdicts(fine | changes)
    assert words in sentence
    assert retirement.verdicts(fine | {"Stylizers": 1, "refused": 2}) == []


def test_a_plot_is_drawn_of_minutes_and_memory(tmp_path: Path) -> None:
    from benchmarks import plots

    row = {"fault": "node", "painted": 5, "refused": 1, "broken, allowed": 2, "other": 0}
    plots.chaos(tmp_path, [row, row], life("Codec", 1, 0, 120, 100, 0))
    assert (tmp_path / "chaos.png").stat().st_size > 1000
