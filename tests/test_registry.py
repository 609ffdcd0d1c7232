"""Names in a config find their class, and a mistyped one is told what was meant."""

import inspect
import pickle

import pytest

from unimed import registry
from unimed.registry import COLLATORS, DATASETS, TASKS, RegistryError, did_you_mean, import_plugins, look_up, renames


@pytest.fixture
def registered():
    @DATASETS.register_module(name="RegistryProbe", force=True)
    class RegistryProbe:
        def __init__(self, root, size=3):
            self.root, self.size = root, size

    yield RegistryProbe
    DATASETS.module_dict.pop("RegistryProbe")


def test_build_by_name_with_defaults(registered):
    built = DATASETS.build(dict(type="RegistryProbe", size=5), root="here")
    assert type(built) is registered and (built.root, built.size) == ("here", 5)


def test_config_wins_over_default(registered):
    assert DATASETS.build(dict(type="RegistryProbe", root="a"), root="b").root == "a"


def test_build_by_class(registered):
    assert DATASETS.build(dict(type=registered, root="x")).size == 3


@pytest.mark.parametrize("name", ["RegistryProb", "registryprobe"])
def test_mistyped_name_is_corrected(registered, name):
    with pytest.raises(RegistryError, match="did you mean 'RegistryProbe'") as error:
        DATASETS.build(dict(type=name, root="x"))
    assert "Valid choices" in str(error.value)


def build_part(width=1):
    return width


def test_a_key_that_only_a_part_further_in_refuses_is_named(registered):
    class Outer(registered):
        def __init__(self, part, **rest):
            super().__init__(**rest)
            self.part = build_part(**part)

    with pytest.raises(RegistryError, match="build_part takes no argument 'widht'; did you mean 'width'"):
        DATASETS.build(dict(type=Outer, part={"widht": 2}, root="x"))
    with pytest.raises(RegistryError, match="takes no argument 'sise'; did you mean 'size'"):
        DATASETS.build(dict(type=Outer, part={}, root="x", sise=2))
    assert DATASETS.build(dict(type=Outer, part={"width": 2}, root="x")).part == 2


def test_other_type_errors_stay_what_they_are():
    class Broken:
        def __init__(self):
            raise TypeError("something else")

    with pytest.raises(TypeError, match="something else"):
        DATASETS.build(dict(type=Broken))


def test_unknown_constructor_key_is_named(registered):
    with pytest.raises(RegistryError, match="no argument 'sise'; did you mean 'size'"):
        DATASETS.build(dict(type="RegistryProbe", root="x", sise=2))


def test_missing_constructor_key_is_named(registered):
    with pytest.raises(RegistryError, match="needs the argument 'root'"):
        DATASETS.build(dict(type="RegistryProbe"))


def test_config_without_type():
    with pytest.raises(RegistryError, match="needs a key 'type'"):
        TASKS.build(dict(lr=1))


def test_config_that_is_no_mapping():
    with pytest.raises(TypeError, match="dict\\(type="):
        COLLATORS.build("TextCollator")


def test_nothing_close_gives_no_advice():
    assert did_you_mean("zzz", ["alpha", "beta"]) == ""


@renames(many="count", colour=None)
class Base:
    def __init__(self, count=1):
        self.count = count


@renames(wide="width")
class Derived(Base):
    def __init__(self, width=2, **others):
        super().__init__(**others)
        self.width = width


@pytest.fixture
def untold(monkeypatch):
    monkeypatch.setattr(registry, "_told", set())


def test_former_names_of_arguments_are_understood_with_one_warning(untold, caplog):
    for _ in range(2):
        built = DATASETS.build(dict(type=Derived, wide=5, many=7, colour="red"))
        assert (built.width, built.count) == (5, 7)
    assert sorted(record.message for record in caplog.records) == [
        "dataset 'Derived': 'colour' is gone and ignored",
        "dataset 'Derived': 'many' is called 'count' now",
        "dataset 'Derived': 'wide' is called 'width' now",
    ]


def test_former_names_work_in_calls_too(untold, caplog):
    assert Derived(wide=5, many=7).count == 7 and pickle.loads(pickle.dumps(Derived(wide=5))).width == 5
    assert [record.message.split(":")[0] for record in caplog.records] == ["Derived"] * 2
    with pytest.raises(TypeError, match="both 'wide' and 'width'"):
        Derived(wide=1, width=2)
    assert list(inspect.signature(Derived).parameters) == ["width", "others"]
    with pytest.raises(RegistryError, match="no argument 'cuont'; did you mean 'count'"):
        DATASETS.build(dict(type=Base, cuont=2))


def test_functions_may_be_renamed_in_the_same_way(untold, caplog):
    @renames(old="new")
    def build(new=1):
        return new

    assert build(old=4) == build(new=4) == DATASETS.build(dict(type=build, old=4)) == 4
    assert len(caplog.records) == 2


def test_every_former_name_of_ours_leads_to_an_argument():
    for kind in (value for value in vars(registry).values() if isinstance(value, registry.Registry)):
        for name, entry in registry.registered(kind).items():
            known = {}
            for base in inspect.getmro(entry)[:-1] if inspect.isclass(entry) else ():
                known |= inspect.signature(base).parameters
            for old, new in getattr(entry, "renamed_arguments", {}).items():
                assert old not in known and (new is None or new in known), (name, old, new)


PLUGIN = """
from unimed.registry import DATASETS


@DATASETS.register_module("{0}")
class Plugged:
    pass
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch, untold):
    """A folder on the path; entries that a plug-in adds are taken out again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_plugins_searched", False)
    monkeypatch.setattr(DATASETS, "_module_dict", dict(DATASETS.module_dict))
    return tmp_path


def test_modules_named_in_the_environment_are_imported(plugins, monkeypatch):
    for name in ("first", "second"):
        (plugins / f"plugged_{name}.py").write_text(PLUGIN.format(name))
    monkeypatch.setenv(registry.PLUGINS, "plugged_first, plugged_second")
    assert look_up("first", DATASETS).__module__ == "plugged_first"
    assert look_up("second", DATASETS).__module__ == "plugged_second"


def test_a_plugin_that_is_not_there_is_one_line_each_time(plugins, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS, "not_there")
    for _ in range(2):
        with pytest.raises(RegistryError, match="UNIMED_PLUGINS: not_there cannot be imported.*set PYTHONPATH"):
            import_plugins()


def test_entry_points_of_other_packages_are_imported_and_broken_ones_left_out(plugins, caplog):
    (plugins / "plugged_entry.py").write_text(PLUGIN.format("entry"))
    (plugins / "plugged_broken.py").write_text("raise ValueError('not today')")
    info = plugins / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unimed.plugins]\na = plugged_broken\nb = plugged_entry\n")
    assert look_up("entry", DATASETS).__module__ == "plugged_entry"
    assert "plug-in 'a' (plugged_broken) is left out: ValueError: not today" in caplog.text
