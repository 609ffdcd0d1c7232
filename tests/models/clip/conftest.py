import pytest
from models.clip import recorded


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return recorded.converted(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def model(folder):
    from unimed.models.clip import ClipModel

    return ClipModel.from_pretrained(folder).eval()
