"""What a config inherits, and what an option on the command line means."""

import pytest

from unimed.engine.config import load_config, parse_options
from unimed.engine.config_files import ConfigError, apply_options, merge, python_text, read_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1e-4", 1e-4),
        ("a=true", True),
        ("a=False", False),
        ("a=none", None),
        ("a=x", "x"),
        ("a=x,y", ["x", "y"]),
        ("a=1,2", (1, 2)),
        ("a=[1,b]", [1, "b"]),
        ("a=[[1,b],c]", [[1, "b"], "c"]),
        ("a=(x,y)", ("x", "y")),
        ("a=data/mine=old", "data/mine=old"),
        ("a=", ""),
        ("a=dict(r=4,names=['q'],deep=dict(x=None))", dict(r=4, names=["q"], deep=dict(x=None))),
        ("a=__import__('os').getpid()", "__import__('os').getpid()"),
    ],
)
def test_values_of_options(text, value):
    assert parse_options([text]) == {"a": value}


@pytest.mark.parametrize("text", ["a", "=1"])
def test_an_option_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_options([text])


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


MIXTURE = dict(mixture=[dict(dataset=dict(type="A", root="x"), weight=1.0)])


@pytest.mark.parametrize(
    ("own", "inherited", "result"),
    [
        (dict(a=1), dict(a=2, b=3), dict(a=1, b=3)),
        (dict(log=dict(to=["x"])), dict(log=dict(interval=5)), dict(log=dict(to=["x"], interval=5))),
        # Own data over shipped data: the shipped ones go.
        (dict(d=dict(type="B", path="y")), dict(d=MIXTURE), dict(d=dict(type="B", path="y"))),
        (dict(d=MIXTURE), dict(d=dict(type="B", path="y")), dict(d=MIXTURE)),
        (dict(d=dict(type="B", path="y")), dict(d=dict(type="A", root="x")), dict(d=dict(type="B", path="y"))),
        # The same kind, and no kind: changed key by key.
        (dict(d=dict(type="A", n=1)), dict(d=dict(type="A", root="x")), dict(d=dict(type="A", root="x", n=1))),
        (dict(d=dict(n=1)), dict(d=dict(type="A", root="x")), dict(d=dict(type="A", root="x", n=1))),
        (dict(t=dict(model=dict(type="B"))), dict(t=dict(type="T", model=dict(type="A", n=1))),
         dict(t=dict(type="T", model=dict(type="B")))),
        (dict(t=dict(m="folder")), dict(t=dict(type="T", m=dict(type="A"))), dict(t=dict(type="T", m="folder"))),
        (dict(t=dict(m=dict(type="A"))), dict(t=dict(type="T", m="folder")), dict(t=dict(type="T", m=dict(type="A")))),
        # A schedule is one thing with several shapes: its other values stay.
        (dict(schedule=dict(type="constant")), dict(schedule=dict(type="cosine", warmup=5)),
         dict(schedule=dict(type="constant", warmup=5))),
        (dict(d=dict(_delete_=True, n=1)), dict(d=dict(type="A")), dict(d=dict(n=1))),
        (dict(d=dict(_delete_=True, n=dict(_delete_=True, m=1))), {}, dict(d=dict(n=dict(m=1)))),
    ],
)  # fmt: skip
def test_merging(own, inherited, result):
    before = repr(inherited)
    assert merge(own, inherited) == result
    assert repr(inherited) == before


def test_inheriting_from_several_and_using_what_was_inherited(tmp_path):
    write(
        tmp_path,
        a="task = dict(type='A')\nmax_steps = 5\n",
        b="log = dict(interval=2)\nmax_steps = 7\n",
        c="_base_ = ['a.py', 'b.py']\nimport math\nseed = 2 * _base_.max_steps\n"
        "def helper():\n    return seed\nbatch_size = helper()\n",
    )
    config = load_config(tmp_path / "c.py")
    assert (config.max_steps, config.seed, config.batch_size, config.log.interval) == (7, 14, 14, 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (dict(c="_base_ = 'none.py'\n"), r"c\.py: _base_ names .*none\.py, which does not exist"),
        (dict(c="_base_ = 'c.py'\n"), r"c\.py inherits itself"),
        (dict(c="_base_ = name\n"), r"_base_ is a path or a list of paths"),
        (dict(c="task = dict(\n"), r"c\.py: not a python file: .*line 1"),
        (dict(c="x = 1\n\ntask = dict(type=missing)\n"), r"c\.py, line 3: NameError: name 'missing' is not defined"),
        (dict(c="import no_such_package\n"), r"c\.py, line 1: ModuleNotFoundError"),
    ],
)
def test_broken_files_are_named(tmp_path, files, message):
    with pytest.raises(ConfigError, match=message):
        read_file(write(tmp_path, **files) / "c.py")


def test_options_reach_into_lists_and_say_where_they_cannot(tmp_path):
    values = dict(train_data=dict(mixture=[dict(weight=1.0), dict(weight=2.0)]), seed=1, task=dict(lora=None))
    changed = apply_options(
        values, {"train_data.mixture.1.weight": 3.0, "task.lora.r": 4, "log.interval": 5, "task": dict(type="B")}
    )
    assert changed["train_data"]["mixture"][1]["weight"] == 3.0 and values["train_data"]["mixture"][1]["weight"] == 2.0
    assert changed["task"] == dict(lora=dict(r=4), type="B") and changed["log"] == dict(interval=5)
    with pytest.raises(ConfigError, match="seed.x: seed holds no key 'x'"):
        apply_options(values, {"seed.x": 1})


def test_length_in_steps_or_epochs(tmp_path):
    write(
        tmp_path,
        steps="task = dict(type='A')\nmax_steps = 5\n",
        epochs="_base_ = 'steps.py'\nepochs = 2\n",
        back="_base_ = 'epochs.py'\nmax_steps = 9\n",
        both="task = dict(type='A')\nmax_steps = 5\nepochs = 2\n",
    )
    assert load_config(tmp_path / "epochs.py").max_steps is None
    assert load_config(tmp_path / "back.py").epochs is None
    assert load_config(tmp_path / "steps.py", {"epochs": 1.5}).max_steps is None
    assert load_config(tmp_path / "epochs.py", {"max_steps": 3}).epochs is None
    with pytest.raises(ConfigError, match="max_steps and epochs are both given"):
        load_config(tmp_path / "both.py")
    with pytest.raises(ConfigError, match="epochs must be more than 0"):
        load_config(tmp_path / "steps.py", {"epochs": 0})


def test_old_spellings_are_understood_with_one_warning(tmp_path, caplog):
    write(
        tmp_path,
        new="task = dict(type='A', trainable=['x'])\n",
        old="_base_ = 'new.py'\ntask = dict(learn=['y'])\nguards = dict(max_worker_deaths=1)\n"
        "hooks = [dict(type='TugOfWarHook')]\n",
    )
    config = load_config(tmp_path / "old.py")
    load_config(tmp_path / "old.py")
    assert list(config.task.trainable) == ["y"] and "learn" not in config.task
    assert config.guards.max_worker_restarts == 1 and config.hooks[0]["type"] == "GradientConflictHook"
    assert load_config(tmp_path / "new.py", {"task.learn": ["z"]}).task.trainable == ["z"]
    for old in ("task.learn", "guards.max_worker_deaths", "TugOfWarHook"):
        assert sum(f"old.py: {old}" in r.message or f"the hook {old}" in r.message for r in caplog.records) == 1


def test_the_config_of_a_run_is_written_as_it_was(tmp_path):
    path = tmp_path / "config.py"
    for name in ("unified/_tiny", "uni_med/published", "umedground/_tiny", "quickstart/own_data"):
        values = load_config(f"configs/{name}.py").to_dict()
        path.write_text(python_text(values))
        assert read_file(path) == values, name
        assert max(map(len, path.read_text().splitlines())) < 240
    odd = {"a": {"from": 1, "x y": ("b",), 3: [None, {}]}, "b": {"text": "'\"\n\\ü", "t": (1, (2.5, -1e-9)), "e": ()}}
    odd["c"] = {"long": [{"type": "Named", "value": n} for n in range(20)]}
    path.write_text(python_text(odd), encoding="utf-8")
    assert read_file(path) == odd
