"""Every command of docs/benchmarks.md is executed as it stands."""

import re
import shlex
from pathlib import Path

from evaluation.harness import drawn
from small_models import tiny_model

from unimed.commands.cli import main
from unimed.data.readers.records import RecordDataset
from unimed.evaluation.benchmarks.declaring import benchmarks

PAGE = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page(tmp_path, monkeypatch, capsys):
    drawn.write(tmp_path / "data" / "mine", patients=2, test_patients=2)
    drawn.perfect(RecordDataset(tmp_path / "data" / "mine", split="test"), tmp_path / "answers.jsonl")
    tiny_model().save_pretrained(tmp_path / "exports" / "mine")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.strip()]
    assert len(commands) == 7 and {words[0] for words in commands} == {"unimed"}
    compared = [words for words in commands if words[1] == "compare-runs"]
    for words in [*(w for w in commands if w not in compared), *compared]:
        quick = ["--resamples", "5"] if words[1] == "compare-runs" or words[2].startswith("unimed/") else []
        quick += ["--max-new-tokens", "4", "--worst", "1"] if words[1] == "benchmark" and quick else []
        code = main([*words[1:], *quick])
        assert code == 0, (words, capsys.readouterr())
    assert (tmp_path / "runs/board/comparison.html").is_file() and (tmp_path / "runs/mine/run.html").is_file()


def test_what_the_page_lists_is_declared():
    table = PAGE.split("## What is declared")[1].split("## Who can be asked")[0]
    named = set(re.findall(r"`([a-z0-9_]+/[a-z0-9_]*)`", table))
    for name in named:
        assert benchmarks(name), f"{name} is on the page and not declared"
    prefixes = {name.split("/")[0] for name in benchmarks()} - {"mine"}
    assert prefixes == {name.split("/")[0] for name in named} - {"data"}
