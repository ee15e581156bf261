"""Status line, pace of the steps and expected duration."""

import io
import time

import pytest
from rich.console import Console

from ssd_jax.training import display as display_module
from ssd_jax.training.display import Display
from ssd_jax.training.progress import Pace, Progress, expected_duration

VALUES = {
    **{"loss": 12.3456, "loss_loc": 3.21, "loss_conf": 9.1356, "learning_rate": 0.000123},
    **{"images_per_s": 123.4, "data_wait": 0.0321, "skipped": 2.0},
}


def make_display(width=80):
    console = Console(width=width, force_terminal=True, file=io.StringIO())
    return Display(console=console, live=True)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_narrow_terminal_shows_step_and_time_left(width):
    display = make_display()
    display.advance(4321, 20_000, 38.0)
    display.show(VALUES)
    line = display.line(width)
    assert len(line) <= width
    assert "4321/20000  165:30:02 left" in line
    assert ("━" in line) == (width >= 60)
    assert "loss 12.35" in line
    assert ("waits 3%" in line) == (width == 200)


def test_time_left_is_unknown_before_the_first_steps():
    display = make_display()
    display.advance(0, 10)
    assert "0/10  -:--:-- left" in display.line(80)


def test_phase_shows_its_elapsed_time(monkeypatch):
    now = iter([100.0, 165.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    display = make_display()
    with display.phase("compiling"):
        assert display.line(80) == "compiling  0:01:05"
    assert display.line(80) == ""


def test_long_phase_is_printed_without_a_terminal(monkeypatch, capsys):
    with Display() as display, display.phase("reading the data"):
        pass
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(display_module, "_PHASE_DELAY", 0.01)
    with Display() as display, display.phase("compiling"):
        time.sleep(0.2)
    assert capsys.readouterr().out == "compiling\n"


def test_terminal_of_80_columns_shows_the_most_important_metrics():
    with make_display() as display:
        display.advance(3, 20_000, 0.5)
        display.show(VALUES)
    output = display.console.file.getvalue()
    assert "3/20000  2:46:38 left  loss 12.35  123 images/s" in output


def test_pace_excludes_pauses():
    pace = Pace(steps=4)
    assert pace.seconds_per_step is None
    pace.add(10, 100.0)
    pace.add(10, 101.0)  # no further step
    assert pace.seconds_per_step is None
    pace.add(12, 104.0)
    assert pace.seconds_per_step == 2.0
    assert not pace.is_reliable
    pace.exclude(60.0)
    pace.add(13, 166.0)
    assert pace.seconds_per_step == 2.0
    pace.add(14, 172.0)
    assert pace.is_reliable


def test_duration_is_announced_once_and_excludes_compilation(monkeypatch, capsys):
    now = iter([1000.0, 1038.0, 1076.0, 1114.0])
    monkeypatch.setattr("ssd_jax.training.progress.time.perf_counter", lambda: next(now))
    progress = Progress(Display(), first=5, steps=20_005, platform="cpu")
    progress.update(5)
    assert capsys.readouterr().out == ""
    for completed in (6, 7, 8, 9):
        progress.update(completed)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("19,997 steps of 38 s are left: about 8.8 days")


def test_advice_for_days_of_training_on_a_cpu():
    line = expected_duration(20_000, 38.0, platform="cpu")
    expected = "20,000 steps of 38 s are left: about 8.8 days, not counting evaluations"
    assert line.startswith(expected)
    assert "--model.width-multiplier 0.25" in line
    assert "GPU" in line
    assert "width" not in expected_duration(20_000, 38.0, platform="gpu")
    assert "width" not in expected_duration(900, 0.2, platform="cpu")
    assert "about 3 min" in expected_duration(900, 0.2, platform="cpu")
