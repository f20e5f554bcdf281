"""Writes configs/grafana/dashboards/animegan.json: a row of panels for each question of whoever runs the service."""

import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "configs" / "grafana" / "dashboards" / "animegan.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")  # of configs/grafana/datasources
WIDTH, HEIGHT = 8, 8  # of a panel, in units of which a row is 24 wide


@dataclass(frozen=True)
class Panel:
    """A graph over time.

    Attributes:
        title: of the panel.
        text: what it shows, and what to look for.
        unit: of its values, as Grafana names it.
        queries: PromQL by the name of the line; `{{label}}` in a name stands for the value of a label.
        most: of the axis of values, where that is known.
    """

    title: str
    text: str
    unit: str
    queries: dict[str, str]
    most: float | None = None


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    """Returns queries for the median and the 95th and 99th percentile of a histogram of a few minutes.

    Args:
        metric: its name without `_bucket`.
        by: a label to tell apart.
    """
    labels, name = ("le", "") if not by else (f"le, {by}", f"{{{{{by}}}}} ")
    rate = f"sum by ({labels}) (rate({metric}_bucket[$__rate_interval]))"
    levels = {"0.5": "median", "0.95": "95 %", "0.99": "99 %"} if not by else {"0.95": "95 %"}
    return {f"{name}{word}": f"histogram_quantile({level}, {rate})" for level, word in levels.items()}


def rate(metric: str, by: str, matching: str = "") -> str:
    """Returns a query for the rate of a counter, by a label."""
    return f"sum by ({by}) (rate({metric}{matching}[$__rate_interval]))"


STYLIZE = '{route="/v1/stylize"}'
ROWS: dict[str, list[Panel]] = {
    "Is it slow?": [
        Panel(
            "Time to a painting",
            "From the arrival of a photograph to its painting, of /v1/stylize.",
            "s",
            quantiles("animegan_answer_seconds"),
        ),
        Panel(
            "Paintings in time",
            "Share of the paintings that were there within queue_time_s; those that were given up count as late.",
            "percentunit",
            {
                "in time": 'sum(rate(animegan_answers_total{in_time="yes"}[$__rate_interval]))'
                " / sum(rate(animegan_answers_total[$__rate_interval]))"
            },
            most=1,
        ),
        Panel(
            "Answers of /v1/stylize by outcome",
            "`busy` is 429, `late` 408, `unavailable` 503 or 507, `failed` another 5xx, `refused` another 4xx; `gone`:"
            " the client did not wait.",
            "reqps",
            {"{{outcome}}": rate("animegan_requests_total", "outcome", STYLIZE)},
        ),
        Panel(
            "Requests by route",
            "All requests that an Ingress has answered.",
            "reqps",
            {"{{route}}": rate("animegan_requests_total", "route")},
        ),
        Panel(
            "Refusals by code",
            "Why requests were turned away; docs/http.md explains the codes.",
            "reqps",
            {
                "{{code}}": rate("animegan_refusals_total", "code"),
                "{{code}} (guard)": rate("animegan_guard_refusals_total", "code"),
            },
        ),
        Panel(
            "Requests by style",
            "Requests for a painting or a job, by the style that they ask for.",
            "reqps",
            {"{{style}}": rate("animegan_requests_total", "style", '{style!=""}')},
        ),
    ],
    "Where?": [
        Panel(
            "Steps of a request",
            "95 of 100 requests spend less time in the step. In `queue` a picture waits for any of the others.",
            "s",
            {
                "{{step}}": "histogram_quantile(0.95, sum by (le, step) "
                '(rate(animegan_step_seconds_bucket{work="request"}[$__rate_interval])))'
            },
        ),
        Panel(
            "Steps of a job",
            "95 of 100 pictures of jobs spend less time in the step.",
            "s",
            {
                "{{step}}": "histogram_quantile(0.95, sum by (le, step) "
                '(rate(animegan_step_seconds_bucket{work="job"}[$__rate_interval])))'
            },
        ),
        Panel(
            "Wait for a batch",
            "From the arrival of a request's picture at a Stylizer to its batch.",
            "s",
            quantiles("animegan_batch_wait_seconds"),
        ),
        Panel("Time of a batch", "On the device.", "s", quantiles("animegan_batch_seconds")),
        Panel(
            "Pictures in a batch",
            "Mean of a few minutes. On a CPU large pictures are painted one by one, side by side.",
            "short",
            {
                "mean": "sum(rate(animegan_batch_pictures_sum[$__rate_interval]))"
                " / sum(rate(animegan_batch_pictures_count[$__rate_interval]))"
            },
        ),
        Panel(
            "Pixels painted",
            "By style, for requests and for jobs.",
            "short",
            {"{{style}}, {{work}}": rate("animegan_painted_pixels_total", "style, work")},
        ),
    ],
    "Is it full?": [
        Panel(
            "Devices in use",
            "Share of their time in which Stylizers paint.",
            "percentunit",
            {
                "in use": "sum(rate(animegan_device_busy_seconds_total[$__rate_interval]))"
                " / count(animegan_styles_loaded)"
            },
            most=1,
        ),
        Panel(
            "Pictures inside",
            "Admitted and not yet answered, those that wait in a Stylizer, and how many an Ingress admits at most.",
            "short",
            {
                "admitted": "sum(animegan_inside_pictures)",
                "waiting in Stylizers": "sum(animegan_waiting_pictures)",
                "limit": "sum(animegan_inside_pictures_limit)",
            },
        ),
        Panel(
            "Time to paint what is admitted",
            "At the rate of late; admission refuses a picture that would bring it above the limit.",
            "s",
            {
                "expected": "sum(animegan_inside_pixels) / sum(animegan_pixels_per_second)",
                "limit": "max(animegan_queue_time_limit_seconds)",
            },
        ),
        Panel(
            "Pixels that wait",
            "In Stylizers by what they are for, and of jobs in the database.",
            "short",
            {
                "{{work}}s in Stylizers": "sum by (work) (animegan_waiting_pixels)",
                "jobs in the database": "max(animegan_jobs_waiting_pixels)",
            },
        ),
        Panel(
            "Uploads in the guards",
            "Bodies that the proxies hold, those that wait for their turn, and those in the service.",
            "short",
            {
                "held": "sum(animegan_guard_uploads)",
                "waiting": "sum(animegan_guard_waiting)",
                "in the service": "sum(animegan_guard_forwarded)",
                "streams of events": "sum(animegan_guard_streams)",
                "limit": "sum(animegan_guard_uploads_limit)",
            },
        ),
        Panel(
            "Bytes in the guards and the store",
            "Uploads in memory and on the disk of proxies; photographs and paintings of jobs.",
            "bytes",
            {
                "uploads in memory": "sum(animegan_guard_memory_bytes)",
                "uploads on disk": "sum(animegan_guard_disk_bytes)",
                "uploads on disk, limit": "sum(animegan_guard_disk_limit_bytes)",
                "store": "max(animegan_jobs_stored_bytes)",
                "store, limit": "max(animegan_jobs_stored_limit_bytes)",
            },
        ),
    ],
    "Does it leak?": [
        Panel(
            "Memory of processes",
            "In RAM, pages that processes share included. It should be flat over days.",
            "bytes",
            {"{{process}} {{number}} at {{instance}}": "animegan_resident_memory_bytes"},
        ),
        Panel(
            "Open descriptors",
            "Files and sockets of a process. They should be flat over days.",
            "short",
            {"{{process}} {{number}} at {{instance}}": "animegan_open_descriptors"},
        ),
        Panel(
            "Memory of painting",
            "Most that painting has added to a Stylizer since it started, and what was predicted: the prediction should"
            " be above.",
            "bytes",
            {
                "measured, {{number}} at {{instance}}": "animegan_painting_peak_bytes",
                "predicted, {{number}} at {{instance}}": "animegan_painting_predicted_peak_bytes",
            },
        ),
        Panel(
            "Memory of cards",
            "Of each Stylizer: tensors, what its allocator holds, and its share. All are 0 on a CPU.",
            "bytes",
            {
                "tensors, {{number}} at {{instance}}": "animegan_cuda_allocated_bytes",
                "held, {{number}} at {{instance}}": "animegan_cuda_reserved_bytes",
                "share, {{number}} at {{instance}}": "animegan_cuda_share_bytes",
            },
        ),
        Panel(
            "Styles loaded",
            "Every Stylizer should have the same.",
            "short",
            {"Stylizer {{number}} at {{instance}}": "animegan_styles_loaded"},
        ),
        Panel(
            "Replicas retired within an hour",
            "Past their age or their memory mark, and replaced. If they retire for memory, something leaks.",
            "short",
            {"{{deployment}}": "sum by (deployment) (increase(animegan_retired_replicas_total[1h]))"},
        ),
        Panel(
            "Processes",
            "That publish metrics, by kind.",
            "short",
            {"{{process}}": "count by (process) (animegan_resident_memory_bytes)"},
        ),
    ],
    "Was anything accepted and never answered?": [
        Panel(
            "Oldest picture inside",
            "Age of the oldest picture that was admitted and not yet answered, and the time that it may take.",
            "s",
            {"oldest": "max(animegan_inside_oldest_seconds)", "limit": "max(animegan_timeout_seconds)"},
        ),
        Panel(
            "Pictures lost",
            "Admitted by an Ingress that died before it had answered them, since the node started.",
            "short",
            {"{{instance}}": "animegan:lost_pictures"},
        ),
        Panel("Jobs by state", "In the table of jobs.", "short", {"{{state}}": "max by (state) (animegan_jobs)"}),
        Panel(
            "Age of the oldest job",
            "Since it was submitted, by its state, and the time that one attempt may take.",
            "s",
            {
                "{{state}}": "max by (state) (animegan_jobs_oldest_seconds)",
                "limit of an attempt": "max(animegan_job_timeout_seconds)",
            },
        ),
        Panel(
            "Attempts at jobs",
            "By how they ended; `retried` and `released` ones are made again.",
            "reqps",
            {"{{outcome}}": rate("animegan_job_ends_total", "outcome")},
        ),
        Panel(
            "Jobs at work, attempts, webhooks",
            "Jobs that are worked on, the most attempts at a job that has not ended, and webhooks a second.",
            "short",
            {
                "at work": "sum(animegan_jobs_at_work)",
                "most attempts, {{state}}": "max by (state) (animegan_jobs_attempts)",
                "webhooks, {{outcome}}": rate("animegan_webhooks_total", "outcome"),
            },
        ),
    ],
}


def main() -> int:
    """Writes the file."""
    TARGET.write_text(made(), "utf-8")
    return 0


def made() -> str:
    """Returns the dashboard as JSON."""
    builder = (
        dashboard.Dashboard("animegan-serve")
        .uid("animegan-serve")
        .description("Is it slow, where, is it full, does it leak, and was anything accepted and never answered?")
        .tags(["animegan"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .readonly()
    )
    numbers = count(1)
    for title, panels in ROWS.items():
        builder = builder.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            builder = builder.with_panel(graph(panel).id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=2).encode(builder.build()) + "\n"


def graph(panel: Panel) -> Any:
    """Returns the builder of a panel."""
    legend = VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    builder = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .span(WIDTH)
        .height(HEIGHT)
        .legend(legend.placement(LegendPlacement.BOTTOM))
    )
    if panel.most is not None:
        builder = builder.max(panel.most)
    for number, (name, query) in enumerate(panel.queries.items()):
        target = prometheus.Dataquery().ref_id(chr(ord("A") + number)).datasource(SOURCE)
        builder = builder.with_target(target.expr(query).legend_format(name))
    return builder


if __name__ == "__main__":
    sys.exit(main())
