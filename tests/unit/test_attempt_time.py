"""How long an attempt may last: from the forecast, within a partition's limit."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullft_cluster.attempt_time import MOST_SECONDS, STARTUP_SECONDS, attempt_time, requeues, slurm_time
from fullft_cluster.errors import UsageError
from fullft_cluster.units import slurm_time_seconds

DAY = 86400


class Forecast(NamedTuple):
    low: float
    expected: float
    high: float


def test_a_short_run_asks_for_its_high_end_with_start_up_margin_and_lead() -> None:
    # 1.1 x 3 h + 15 min start-up + 5 min lead = 3 h 38 min, in steps of ten minutes
    attempt = attempt_time(Forecast(2, 2.5, 3), 300, 2 * DAY)
    assert (attempt.time, attempt.attempts) == ("03:40:00", 1)
    assert "high end, 3.0 h" in attempt.sentence


def test_a_run_of_minutes_asks_for_an_hour_where_it_may() -> None:
    attempt = attempt_time(Forecast(0.05, 0.1, 0.2), 120, DAY)
    assert (attempt.time, attempt.attempts) == ("01:00:00", 1)
    assert "12 min" in attempt.sentence
    assert attempt_time(Forecast(0.05, 0.1, 0.2), 120, 1800).time == "00:30:00"


def test_a_long_run_asks_for_the_limit_and_says_how_often_it_is_requeued() -> None:
    attempt = attempt_time(Forecast(90, 100, 130), 600, 2 * DAY)
    # an attempt trains for 48 h - 10 min - 15 min = 47.6 h: 2 of them for 90 h, 3 for 100 h and for 130 h
    assert (attempt.time, attempt.attempts) == ("2-00:00:00", 3)
    assert "the run takes 90 h to 130 h, so 1 to 2 requeues" in attempt.sentence
    assert "the partition's limit" in attempt.sentence


def test_a_run_that_only_may_be_too_long() -> None:
    attempt = attempt_time(Forecast(20, 22, 26), 600, DAY)
    assert (attempt.time, attempt.attempts) == ("24:00:00", 1)
    assert "so 0 to 1 requeue," in attempt.sentence


def test_a_certain_number_of_requeues_is_one_number() -> None:
    assert "about 2 requeues" in attempt_time(Forecast(60, 62, 64), 600, DAY).sentence


@pytest.mark.parametrize(
    ("limit", "time"), [(None, "24:00:00"), (2 * DAY, "24:00:00"), (1800, "00:30:00"), (DAY, "24:00:00")]
)
def test_without_a_forecast_a_day_or_the_limit(limit: int | None, time: str) -> None:
    assert attempt_time(None, 300, limit).time == time


def test_no_limit_means_the_whole_run_in_one_attempt() -> None:
    attempt = attempt_time(Forecast(90, 100, 130), 600, None)
    assert (attempt.time, attempt.attempts) == ("5-23:30:00", 1)  # 143 h and 25 min


def test_not_even_without_a_limit_more_than_slurm_can_count() -> None:
    attempt = attempt_time(Forecast(1e6, 2e6, 3e6), 600, None, whose="ten years")
    assert slurm_time_seconds(attempt.time) == MOST_SECONDS
    assert attempt.attempts > 1


def test_a_limit_without_room_for_the_lead_is_refused() -> None:
    with pytest.raises(UsageError, match="not longer than the 1800 s that a step and a checkpoint take"):
        attempt_time(Forecast(1, 2, 3), 1800, 1800)


def test_in_a_limit_of_minutes_half_of_it_trains() -> None:
    attempts, _ = requeues(Forecast(1, 1, 1), 300, 1500)
    assert STARTUP_SECONDS > (1500 - 300) / 2
    assert attempts == 6  # ten minutes each


@given(
    hours=st.floats(0.001, 10**5),
    spread=st.floats(1, 3),
    lead=st.integers(60, 7200),
    limit=st.one_of(st.none(), st.integers(7260, 60 * DAY)),
)
def test_never_above_the_limit_never_below_what_is_needed(
    hours: float, spread: float, lead: int, limit: int | None
) -> None:
    attempt = attempt_time(Forecast(hours / spread, hours, hours * spread), lead, limit)
    asked = slurm_time_seconds(attempt.time)
    most = MOST_SECONDS if limit is None else limit
    assert lead < asked <= most
    if attempt.attempts == 1 and asked < most:
        assert asked >= hours * spread * 3600 + lead
    trained = attempt.attempts * (asked - lead - min(STARTUP_SECONDS, (asked - lead) / 2))
    assert trained >= hours * 3600 * 0.999


@given(st.integers(1, MOST_SECONDS))
def test_a_time_reads_as_written(seconds: int) -> None:
    assert slurm_time_seconds(slurm_time(seconds)) == seconds
