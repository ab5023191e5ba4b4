"""A rate is held on a grid of deadlines, by a clock that the test turns."""

import numpy as np
import pytest

from ideomotor.serving.client.pacing import Pacer, percentiles


class Clock:
    """Time that passes only where it is told to; sleeping takes ``extra`` longer."""

    def __init__(self, extra: float = 0.0) -> None:
        self.now, self.extra = 100.0, extra

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.extra


def paced(works, extra: float = 0.0, hz: float = 10) -> tuple[Pacer, list]:
    clock = Clock(extra)
    pacer, ticks = Pacer(hz, clock=clock, sleep=clock.sleep), []
    for work in works:
        ticks.append((*pacer.wait(), clock.now))
        clock.now += work
    return pacer, ticks


def test_short_work_keeps_the_rate_exactly() -> None:
    pacer, ticks = paced([0.03, 0.09, 0.0, 0.05] * 5)
    assert [number for number, _, _ in ticks] == list(range(20))
    assert np.allclose([now for _, _, now in ticks], 100 + np.arange(20) / 10)
    report = pacer.report()
    assert report.held_hz == pytest.approx(10) and report.missed == 0 and report.late_ms["max"] == pytest.approx(0)


def test_lateness_does_not_add_up() -> None:
    """Every wake-up is 4 ms late, and the rate is held all the same."""
    pacer, _ = paced([0.01] * 50, extra=0.004)
    report = pacer.report()
    assert report.held_hz == pytest.approx(10, rel=2e-3) and report.missed == 0
    assert report.late_ms["p50"] == pytest.approx(4, abs=1e-6) and report.jitter_ms["p95"] < 0.5


def test_an_overrun_is_late_once_and_leaves_out_what_it_missed() -> None:
    pacer, ticks = paced([0.0, 0.13, 0.0, 0.35, 0.0, 0.0])
    # 0.13 s: the next step is 30 ms late. 0.35 s from step 3 on: two deadlines pass, the next begins 50 ms late.
    assert [(number, round(late, 6)) for number, late, _ in ticks] == [
        (0, 0), (1, 0), (2, 0.03), (3, 0), (6, 0.05), (7, 0)
    ]  # fmt: skip
    assert pacer.missed == 2 and pacer.report().ticks == 6


def test_the_report_is_that_of_brute_force() -> None:
    works = np.random.default_rng(0).uniform(0, 0.15, 200)
    pacer, ticks = paced(works, extra=0.001)
    starts = np.array([now for _, _, now in ticks])
    jitter = np.abs(np.diff(starts) - 0.1) * 1000
    report = pacer.report()
    assert report.held_hz == pytest.approx(199 / (starts[-1] - starts[0]))
    assert report.jitter_ms["p95"] == pytest.approx(np.percentile(jitter, 95))
    assert report.jitter_ms["max"] == pytest.approx(jitter.max())
    assert report.missed == ticks[-1][0] + 1 - len(ticks)
    assert report.as_dict()["wanted_hz"] == 10 and "of 10 Hz over 200 steps" in str(report)


def test_what_has_no_rate() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Pacer(0)
    pacer, _ = paced([0.0])
    with pytest.raises(ValueError, match="needs two"):
        pacer.report()
    assert percentiles([0.001]) == pytest.approx({"p50": 1, "p95": 1, "p99": 1, "max": 1})
