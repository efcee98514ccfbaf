"""Shares of a run's time."""

import time

import pytest

from fd_jax.training.goodput import Goodput


def test_shares_add_up_and_name_what_took_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    goodput = Goodput(restarts=2)

    def spend(name, seconds):
        with goodput.span(name):
            now[0] += seconds

    spend("compiling", 30.0)
    now[0] += 50.0  # steps
    spend("saving", 20.0)
    first = goodput.read()
    assert first == pytest.approx(
        {
            "time_steps": 0.5,
            "time_compiling": 0.3,
            "time_saving": 0.2,
            "time_evaluating": 0.0,
            "time_waiting": 0.0,
            "restarts": 2.0,
        }
    )
    now[0] += 75.0
    spend("waiting", 25.0)
    second = goodput.read()  # since the first
    assert second["time_steps"] == pytest.approx(0.75)
    assert second["time_waiting"] == pytest.approx(0.25)
    assert goodput.summary() == (
        "200 s: 62 % steps, 15 % compiling, 10 % saving, 0 % evaluating, 12 % waiting; "
        "resumed 2 times"
    )


def test_time_of_what_fails_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    goodput = Goodput(restarts=0)

    def fail():
        now[0] += 1.0
        raise OSError("full")

    with pytest.raises(OSError, match="full"), goodput.span("saving"):
        fail()
    assert goodput.read()["time_saving"] == 1.0
