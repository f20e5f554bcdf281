"""Estimates of when a job will be finished, from the pace at which jobs were painted lately. No database, no clock.

Jobs take about as long as they have pixels. Those that run at a time share the pace, so one of four that run at once
takes four times as long as it would alone, and yet a job that waits moves up at the whole pace.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A job that was painted, or that runs.

    Attributes:
        pixels: of the painting.
        began: when it was started, in milliseconds of one clock; None if that is not known, because it was started more
            than once.
        ended: when it was finished, or the present for one that runs.
    """

    pixels: int
    began: int | None
    ended: int


@dataclass(frozen=True)
class Pace:
    """How fast jobs are painted.

    Attributes:
        pixels_per_s: of all jobs together, while any runs.
        at_once: jobs that ran at a time, on average.
    """

    pixels_per_s: float
    at_once: float


def measure_pace(painted: Sequence[Run], running: Sequence[Run], is_cut: bool) -> Pace | None:
    """Measures the pace of some jobs over the time in which any job ran; None if there is nothing to measure.

    Args:
        painted: the jobs that were finished last.
        running: those that run. They have taken their part of the pace, too.
        is_cut: whether more jobs were painted before these. Then the time counts only from the first end, because
            before it some of those others ran, which are not known here.
    """
    done = [(run.pixels, run.began, run.ended) for run in painted if run.began is not None and run.ended > run.began]
    if not done:
        return None
    start = min(ended if is_cut else began for _, began, ended in done)
    end = max(ended for _, _, ended in done)
    spans = [(began, ended) for _, began, ended in done]
    spans += [(run.began, run.ended) for run in running if run.began is not None]
    within = [(max(began, start), min(ended, end)) for began, ended in spans if began < end and ended > start]
    if not within:  # of jobs that all ended at the same time, or of one
        within = spans[: len(done)]
    at_once = sum(ended - began for began, ended in within) / covered(within)
    speed = sum(pixels for pixels, _, _ in done) / sum(ended - began for _, began, ended in done)
    return Pace(1000 * speed * at_once, at_once)


def covered(spans: Sequence[tuple[int, int]]) -> int:
    """Returns the length of the union of some spans of time."""
    total, reached = 0, min(began for began, _ in spans)
    for began, ended in sorted(spans):
        total += max(0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def remaining_pixels(run: Run, pace: Pace, at_once: float) -> float:
    """Returns how much of a job that runs is still to be painted; half of it if nobody knows when it was started."""
    if run.began is None:
        return run.pixels / 2
    painted = (run.ended - run.began) / 1000 * pace.pixels_per_s / at_once
    return max(0.0, run.pixels - painted)


def eta_of_running(run: Run, pace: Pace, running: int) -> float:
    """Returns the seconds until a job that runs should be finished.

    Args:
        run: the job.
        pace: of painting.
        running: jobs that run, this one included.
    """
    return remaining_pixels(run, pace, running) * running / pace.pixels_per_s


def eta_of_waiting(pixels: int, pixels_ahead: int, running: Sequence[Run], pace: Pace) -> float:
    """Returns the seconds until a job that waits should be finished.

    Args:
        pixels: of the job.
        pixels_ahead: of the jobs that wait before it.
        running: those that run.
        pace: of painting.
    """
    at_once = max(1.0, pace.at_once, len(running))
    left = [remaining_pixels(run, pace, at_once) for run in running]
    if not pixels_ahead and len(running) + 1 <= at_once:  # it is started at once
        shared = pixels + sum(min(pixels, rest) for rest in left)  # others get as much until it, or they, are finished
        return shared / pace.pixels_per_s
    # When it is started, the others that run then are half done on average.
    sizes = [run.pixels for run in running] or [pixels]
    half_done = (at_once - 1) * sum(sizes) / len(sizes) / 2
    return (max(0.0, pixels_ahead + sum(left) - half_done) + at_once * pixels) / pace.pixels_per_s
