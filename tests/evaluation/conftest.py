import pytest
from made_up import film, made_up_report


@pytest.fixture
def report():
    return made_up_report()


@pytest.fixture(scope="session")
def playable_report():
    pytest.importorskip("av", reason="PyAV, which makes this test's videos, is not installed")
    return made_up_report(film)
