"""A real service under load, scraped by a real Prometheus: every panel and every alert has something to go by."""

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from pictures import photo_bytes
from promql import Prometheus, alerts, compared, panel_queries, prometheus
from service import Service, wait_for

PATIENCE_S = 120


@pytest.fixture(scope="module")
def scraped(service: Service, metrics_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the service, which is loaded all the time."""
    done = threading.Event()

    def load(path: str, seed: int) -> None:
        while not done.wait(0.2):
            url, photo = f"{service.address}{path}", photo_bytes(64, 64, seed=seed + int(time.time()))
            requests.post(url, data=photo, timeout=120)

    paths = ["/v1/stylize", "/v1/stylize", "/v1/jobs", "/v1/stylize?style=unknown"]
    threads = [threading.Thread(target=load, args=(path, at)) for at, path in enumerate(paths)]
    with prometheus(Path(tmp_path_factory.mktemp("prometheus")), metrics_address) as started:
        for thread in threads:
            thread.start()
        try:
            yield started
        finally:
            done.set()
            for thread in threads:
                thread.join(130)


def has_data(scraped: Prometheus, query: str) -> bool:
    return any(map(math.isfinite, scraped.values(query)))


def test_every_query_of_the_dashboard_returns_data(scraped: Prometheus) -> None:
    missing = panel_queries()

    def are_all_there() -> bool:
        for name, query in list(missing.items()):
            if has_data(scraped, query):
                del missing[name]
        return not missing

    try:
        wait_for(are_all_there, PATIENCE_S)
    except AssertionError:
        raise AssertionError(f"no data: {missing}") from None


@pytest.mark.parametrize("name", alerts())
def test_what_an_alert_compares_returns_data(scraped: Prometheus, name: str) -> None:
    for side in compared(alerts()[name]):
        wait_for(lambda side=side: has_data(scraped, side), PATIENCE_S)


def test_rules_are_evaluated_without_a_fault(scraped: Prometheus) -> None:
    wait_for(lambda: set(scraped.rule_health().values()) == {"ok"}, PATIENCE_S)
    assert set(alerts()) < set(scraped.rule_health())


def test_processes_of_every_kind_say_what_they_take(scraped: Prometheus) -> None:
    kinds = ("Proxy", "Ingress", "Codec", "Decoders", "Stylizer", "JobRunner")
    for kind in kinds:
        wait_for(lambda kind=kind: scraped.values(f'animegan_resident_memory_bytes{{process="{kind}"}}'), PATIENCE_S)
    (stylizer,) = scraped.values('animegan_resident_memory_bytes{process="Stylizer"}')
    (ingress,) = scraped.values('animegan_resident_memory_bytes{process="Ingress"}')
    assert stylizer > ingress > 50_000_000


def test_nothing_that_was_admitted_is_lost_and_labels_are_few(scraped: Prometheus, metrics_address: str) -> None:
    wait_for(lambda: scraped.values("animegan:lost_pictures") == [0], PATIENCE_S)
    text = requests.get(f"http://{metrics_address}/metrics", timeout=30).text
    assert "unknown" not in {line.split('style="')[1].split('"')[0] for line in text.splitlines() if 'style="' in line}
    assert len(text.splitlines()) < 1500


def test_painting_takes_no_more_than_was_predicted(scraped: Prometheus) -> None:
    (predicted,) = scraped.values("animegan_painting_predicted_peak_bytes")
    (peak,) = scraped.values("animegan_painting_peak_bytes")
    assert 0 <= peak <= predicted
