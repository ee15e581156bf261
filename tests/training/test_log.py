"""metrics.jsonl has every step once, also after a run that was killed."""

import json

from ssd_jax.training.log import RunLog


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RunLog(tmp_path, start=0, steps=9) as log:
        for step in (2, 4, 6):
            log.write(step, {"loss": 1.0}, kind="train")
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # torn by a kill
    with RunLog(tmp_path, start=4, steps=9) as log:
        log.write(6, {"loss": 2.0}, kind="train")
        log.write(4, {"loss": 3.0}, kind="train")  # is there already
    assert steps(path) == [2, 4, 6]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 2.0


def test_other_processes_write_nothing(tmp_path, capsys):
    with RunLog(tmp_path, start=0, steps=9, write=False) as log:
        log.write(2, {"loss": 1.0}, kind="train")
        log.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    with RunLog(tmp_path, start=0, steps=9) as log:
        log.write(2, {"loss": 1.5, "data_wait": 0.25}, kind="train")
    assert capsys.readouterr().out == "step 2  loss 1.5  data_wait 0.25\n"
