"""What is said of long work: on a terminal, in a file, in the log; silence where nobody asked."""

import io
import json
import os

import pytest

from unimed import progress
from unimed.progress import Progress, line, logged, shown, stage


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def reporter():
    """A reporter whose thread never comes to a tick by itself; tests tick with times of their own."""

    def make(stream, **options):
        return shown(stream, interval_s=1e6, **options)

    return make


def test_nothing_is_said_where_nobody_asked(capfd):
    with Progress("slice", 10) as one:
        one.step()
        assert line().startswith("slice 2 of 10")
    assert line() == "" and capfd.readouterr() == ("", "")


def test_work_within_work_stands_in_one_line():
    with Progress("case", 3) as cases, stage("loading the model"), Progress("slice", 40) as slices:
        slices.step(7)
        cases.began -= 75
        cases.step()
        assert line() == "case 2 of 3, loading the model, slice 8 of 40; 1:15, about 2:30 left"
        cases.at(2)
        assert "case 3 of 3" in line() and "about 0:37 left" in line()


def test_steps_of_earlier_runs_do_not_count_for_the_pace():
    with Progress("case", 10, done=8) as cases:
        assert cases.left_s() is None
        cases.began -= 60
        cases.step()
        assert cases.left_s() == pytest.approx(60, abs=5)


def test_a_file_gets_a_line_per_interval_and_a_terminal_one_that_is_replaced(reporter, tmp_path):
    stream = io.StringIO()
    with reporter(stream), Progress("slice", 5), logged(tmp_path):
        now = progress._reporter._last
        progress._reporter.tick(now + 1)
        assert stream.getvalue() == "", "the interval is not over"
        progress._reporter.tick(now + 2e6)
        progress._reporter.tick(now + 2e6 + 1)
        progress._reporter.tick(now + 4e6)
    assert [text.split(";")[0] for text in stream.getvalue().splitlines()] == ["slice 1 of 5"] * 2
    rows = [json.loads(row)["progress"] for row in (tmp_path / progress.LOG).read_text().splitlines()]
    assert rows[0] == "begun" and rows[-1] == "finished" and len(rows) == 4
    terminal = Terminal()
    with reporter(terminal), Progress("slice", 5) as one:
        progress._reporter.tick()
        one.step()
        progress._reporter.tick()
    assert "\n" not in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[K")
    assert "slice 1 of 5" in terminal.getvalue() and "slice 2 of 5" in terminal.getvalue()
    drawn_by_others = Terminal()
    with reporter(drawn_by_others, terminal=False), Progress("slice", 5):
        progress._reporter.tick()
    assert drawn_by_others.getvalue() == ""


def test_a_line_of_somebody_else_counts(reporter):
    stream = io.StringIO()
    with reporter(stream), Progress("step", 5):
        before = progress._reporter._last
        progress._reporter._last -= 5
        progress.told()
        assert progress._reporter._last >= before


def test_the_thread_speaks_within_a_step_that_does_not_end(tmp_path):
    import time

    stream = io.StringIO()
    with shown(stream, interval_s=0.01), logged(tmp_path), stage("a step of minutes"):
        for _ in range(1000):
            if stream.getvalue():
                break
            time.sleep(0.01)
    assert "a step of minutes" in stream.getvalue()


def test_an_interruption_is_in_the_log(reporter, tmp_path):
    with pytest.raises(KeyboardInterrupt), reporter(io.StringIO()), logged(tmp_path):
        raise KeyboardInterrupt
    assert "stopped: KeyboardInterrupt" in (tmp_path / progress.LOG).read_text()
    assert progress._reporter is None


def test_shown_within_shown_changes_nothing(reporter):
    outer, inner = io.StringIO(), io.StringIO()
    with reporter(outer), reporter(inner):
        assert progress._reporter.stream is outer


def test_work_without_a_name_is_no_silence_and_waiting_is(reporter, monkeypatch):
    stream, spent = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "process_time", lambda: spent[0])
    with reporter(stream):
        now = progress._reporter._last
        progress._reporter.tick(now + 2e6)
        assert stream.getvalue() == "", "a server that waits"
        spent[0] += 3
        progress._reporter.tick(now + 4e6)
        progress._reporter.tick(now + 6e6)
    assert [text.split(";")[0] for text in stream.getvalue().splitlines()] == ["working"]


def test_a_command_that_writes_to_a_file_speaks_soon_and_often(tmp_path):
    """Within 10 s, and then at least every 15 s, whatever it does; here in a fifth of these times."""
    import subprocess
    import sys
    import time

    assert progress.FIRST_S < 10 and progress.INTERVAL_S < 15
    code = """
import time
from unimed import progress
from unimed.commands.common import guarded
for name in ("FIRST_S", "INTERVAL_S", "_WORKS_S"):
    setattr(progress, name, getattr(progress, name) / 5)
def work(_):
    while time.process_time() < 6:
        sum(range(20000))
    return 0
guarded(work, None)
"""
    began, times = time.monotonic(), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = tmp_path / "log"
    with open(path, "wb") as log, subprocess.Popen([sys.executable, "-c", code], stderr=log, env=environment) as done:
        while done.poll() is None:
            if path.read_text().count("working") > len(times):
                times.append(time.monotonic() - began)
            time.sleep(0.1)
    assert done.returncode == 0 and len(times) >= 2
    assert times[0] < 10 and all(b - a < 15 for a, b in zip(times, times[1:], strict=False)), times
