"""Names in a config find their class, and a mistyped one is told what was meant."""

import pytest

from unimed.registry import COLLATORS, DATASETS, TASKS, RegistryError, did_you_mean


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
