"""The live line at every width, the pace of the steps, and how long a run takes."""

import io
import time

import pytest
from rich.console import Console

from ssd_jax.training import progress
from ssd_jax.training.progress import Display, Pace, Progress, expected_duration

VALUES = {
    **{"loss": 12.3456, "loss_loc": 3.21, "loss_conf": 9.1356, "learning_rate": 0.000123},
    **{"images_per_s": 123.4, "data_wait": 0.0321, "skipped": 2.0},
}


def display(width=80):
    console = Console(width=width, force_terminal=True, file=io.StringIO())
    return Display(console=console, live=True)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_narrow_terminal_keeps_step_and_time_left(width):
    shown = display()
    shown.advance(4321, 20_000, 38.0)
    shown.show(VALUES)
    line = shown.line(width)
    assert len(line) <= width
    assert "4321/20000  165:30:02 left" in line
    assert ("━" in line) == (width >= 60)
    assert "loss 12.35" in line
    assert ("waits 3%" in line) == (width == 200)


def test_without_a_pace_the_time_left_is_open():
    shown = display()
    shown.advance(0, 10)
    assert "0/10  -:--:-- left" in shown.line(80)


def test_a_phase_shows_its_time(monkeypatch):
    now = iter([100.0, 165.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    shown = display()
    with shown.phase("compiling"):
        assert shown.line(80) == "compiling  0:01:05"
    assert shown.line(80) == ""


def test_without_a_terminal_a_long_phase_is_a_line(monkeypatch, capsys):
    with Display() as shown, shown.phase("reading the data"):
        pass
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "_PATIENCE", 0.01)
    with Display() as shown, shown.phase("compiling"):
        time.sleep(0.2)
    assert capsys.readouterr().out == "compiling\n"


def test_a_terminal_of_80_columns_gets_the_whole_line():
    with display() as shown:
        shown.advance(3, 20_000, 0.5)
        shown.show(VALUES)
    output = shown.console.file.getvalue()
    assert "3/20000  2:46:38 left  loss 12.35  123 images/s" in output


def test_the_pace_leaves_pauses_out():
    pace = Pace(steps=4)
    assert pace.seconds_per_step is None
    pace.add(10, 100.0)
    pace.add(10, 101.0)  # no step more
    assert pace.seconds_per_step is None
    pace.add(12, 104.0)
    assert pace.seconds_per_step == 2.0
    assert not pace.settled
    pace.pause(60.0)
    pace.add(13, 166.0)
    assert pace.seconds_per_step == 2.0
    pace.add(14, 172.0)
    assert pace.settled


def test_the_duration_is_announced_once_and_without_the_compiler(monkeypatch, capsys):
    now = iter([1000.0, 1038.0, 1076.0, 1114.0])
    monkeypatch.setattr("ssd_jax.training.progress.time.perf_counter", lambda: next(now))
    progress = Progress(Display(), first=5, steps=20_005, platform="cpu")
    progress.update(5)
    assert capsys.readouterr().out == ""
    for completed in (6, 7, 8, 9):
        progress.update(completed)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("19,997 steps of 38 s are left: about 8.8 days")


def test_what_takes_days_on_a_cpu_comes_with_advice():
    line = expected_duration(20_000, 38.0, platform="cpu")
    assert line.startswith("20,000 steps of 38 s are left: about 8.8 days, evaluations not counted")
    assert "--model.width-multiplier 0.25" in line
    assert "GPU" in line
    assert "width" not in expected_duration(20_000, 38.0, platform="gpu")
    assert "width" not in expected_duration(900, 0.2, platform="cpu")
    assert "about 3 min" in expected_duration(900, 0.2, platform="cpu")
