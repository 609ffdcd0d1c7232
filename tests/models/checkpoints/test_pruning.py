"""The cache of conversions gets smaller by rules, and never under a process that uses it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unimed.commands.cli import main
from unimed.files import FolderLock
from unimed.models.checkpoints import cache, pruning

ROOT = Path(__file__).parents[3]
DAY = 86400
KEYS = [letter * 32 for letter in "abcd"]


class Converter:
    """Stands for the module of a layout: a folder of as many bytes as the checkpoint has."""

    @staticmethod
    def convert(source, target):
        target.mkdir(parents=True)
        (target / "model.safetensors").write_bytes(source.read_bytes())
        (target / "config.json").write_text("{}")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(pruning.LIMIT_VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def four(place):
    """Conversions of 1000 bytes and a little, used 40, 30, 20 and 10 days ago; the first by another version."""
    for number, key in enumerate(KEYS):
        folder = place / "cache" / "converted" / key
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(998))
        code = cache.code_hash() if number else "of an older version"
        pruning.note_use(folder, {"source": f"published-{number}", "layout": "lisa", "code": code})
        forget_use(folder)
        for path in (folder, pruning._note(folder)):
            os.utime(path, (time.time() - DAY * (40 - 10 * number),) * 2)
    return place / "cache" / "converted"


def forget_use(folder):
    """As the end of the process does."""
    from unimed import locks

    os.close(locks._uses.pop(str(pruning._mark(folder).absolute())))


def left(folder):
    return sorted(path.name[0] for path in folder.iterdir())


def test_rules(four):
    found = pruning.conversions()
    assert [one.folder.name[0] for one in found] == ["a", "b", "c", "d"]
    assert {(one.size, one.layout) for one in found} == {(1000, "lisa")} and found[1].source == "published-1"

    def names(**rules):
        return "".join(one.folder.name[0] for one in pruning.chosen(found, **rules))

    assert names() == "" and names(older_than_s=25 * DAY) == "ab" and names(code=cache.code_hash()) == "a"
    assert names(most_bytes=4000) == "" and names(most_bytes=3999) == "a" and names(most_bytes=0) == "abcd"
    # What goes for one reason counts for the other.
    assert (
        names(older_than_s=35 * DAY, most_bytes=3000) == "a" and names(older_than_s=35 * DAY, most_bytes=2000) == "ab"
    )


def test_listed_and_pruned_by_the_verb(four, capsys):
    assert main(["cache"]) == 0
    said = capsys.readouterr().out
    assert "published-2" in said and "used 20 d ago" in said and "4 conversions, 4 KiB" in said
    assert said.count("another version") == 1
    assert main(["cache", "--older-than", "25d"]) == 0 and left(four) == ["a", "b", "c", "d"]
    assert capsys.readouterr().out.count("would go") == 2
    assert main(["cache", "--prune", "--stale"]) == 0 and left(four) == ["b", "c", "d"]
    assert main(["cache", "--prune", "--max-size", "1k"]) == 0 and left(four) == ["d"]
    capsys.readouterr()
    assert main(["cache", "--prune", "--all"]) == 0 and left(four) == []
    assert "0 conversions, 0 bytes; 1 removed" in capsys.readouterr().out
    assert not any((four.parent / "uses").iterdir())
    assert main(["cache"]) == 0 and main(["cache", "--prune", "--all"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prune"], "needs a rule"),
        (["--prune", "--older-than", "soon"], "'soon' is no age"),
        (["--max-size", "large"], "'large' is no size"),
    ],
)
def test_mistakes(place, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(["cache", *words])
    said = capsys.readouterr().err
    assert (
        stop.value.code == 1 and message in said and sum(line.startswith("error:") for line in said.splitlines()) == 1
    )


def test_what_a_process_uses_stays(four, capsys):
    code = (
        "import sys, time; from pathlib import Path; from unimed.models.checkpoints import pruning\n"
        "pruning.note_use(Path(sys.argv[1]), {}); print('using', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(four / KEYS[0])], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "using\n"
        assert pruning.conversions()[-1].folder.name == KEYS[0]  # used last
        assert main(["cache", "--prune", "--all"]) == 2 and left(four) == ["a"]
        assert "kept: in use" in capsys.readouterr().out
        assert (four / KEYS[0] / "model.safetensors").stat().st_size == 998
    finally:
        process.kill()
        process.wait()
    assert main(["cache", "--prune", "--all"]) == 0 and left(four) == []


def test_what_is_being_converted_stays(four):
    one = pruning.conversions()[0]
    with FolderLock(one.folder, "converting", beside=True):
        assert pruning.remove(one) == "being converted" and one.folder.is_dir()
    assert pruning.remove(one) == "" and not one.folder.exists() and pruning.remove(one) == ""


def test_a_limit_holds_after_each_conversion(place, monkeypatch):
    monkeypatch.setenv(pruning.LIMIT_VARIABLE, "2500")
    made = []
    for number in range(3):
        source = place / f"{number}.pt"
        source.write_bytes(bytes([number]) * 998)
        made.append(cache.converted(source, "lisa", Converter))
        forget_use(made[-1])
        os.utime(pruning._note(made[-1]), (number, number))
        os.utime(made[-1], (number, number))
    assert [folder.exists() for folder in made] == [False, True, True]
    # Asked for again, it is made again, and used last.
    again = cache.converted(place / "0.pt", "lisa", Converter)
    assert again == made[0] and (again / "model.safetensors").read_bytes() == bytes(998)
    assert [folder.exists() for folder in made] == [True, False, True]
    monkeypatch.setenv(pruning.LIMIT_VARIABLE, "1")
    (place / "3.pt").write_bytes(b"3")
    assert cache.converted(place / "3.pt", "lisa", Converter).exists() and again.exists()  # both in use here
    assert not made[2].exists()
    monkeypatch.setenv(pruning.LIMIT_VARIABLE, "plenty")
    (place / "4.pt").write_bytes(b"4")
    with pytest.raises(ValueError, match="UNIMED_CACHE_BYTES='plenty' is no size"):
        cache.converted(place / "4.pt", "lisa", Converter)


def test_strange_things_in_the_cache_do_no_harm(four, capsys):
    pruning._note(four / KEYS[1]).write_text("[1")
    pruning._note(four / KEYS[2]).write_text("[1]")
    (four / "notes of mine").mkdir()
    (four / ("e" * 32)).mkdir()
    (four / ("f" * 32)).write_text("a file")
    assert main(["cache", "--prune", "--all"]) == 0
    assert left(four) == ["e", "f", "n"] and "4 removed" in capsys.readouterr().out


def in_a_child(work, *arguments):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    return child


def ask_and_read(source):
    for _ in range(50):
        folder = cache.converted(source, "lisa", Converter)
        assert (folder / "model.safetensors").read_bytes() == bytes(5000)
        forget_use(folder)


def test_conversion_and_pruning_at_once_never_leave_a_half(place):
    """One process prunes everything again and again while others ask for the conversion and read it."""
    (place / "0.pt").write_bytes(bytes(5000))
    readers = [in_a_child(ask_and_read, place / "0.pt") for _ in range(2)]
    removed, codes = 0, []
    while readers:
        removed += sum(pruning.remove(one) == "" for one in pruning.conversions())
        ended = [os.waitpid(reader, os.WNOHANG) for reader in readers]
        codes += [status for pid, status in ended if pid]
        readers = [reader for reader, (pid, _) in zip(readers, ended, strict=True) if not pid]
    assert codes == [0, 0]
    assert removed > 0


def test_notes_on_files_that_are_gone_are_removed(place, monkeypatch):
    monkeypatch.setattr(cache, "SMALL", 0)
    for name in ("a", "b"):
        (place / name).write_bytes(name.encode())
        cache.content_hash(place / name)
    (place / "a").unlink()
    pruning.remove_forgotten()
    assert len(list((place / "cache" / "hashes").iterdir())) == 1
