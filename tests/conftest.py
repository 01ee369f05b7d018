"""Tests neither read nor write the user's own configuration and evidence."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_configuration(tmp_path_factory):
    previous = os.environ.get("ADVISOR_CONFIG")
    os.environ["ADVISOR_CONFIG"] = str(tmp_path_factory.mktemp("config"))
    yield
    if previous is None:
        del os.environ["ADVISOR_CONFIG"]
    else:
        os.environ["ADVISOR_CONFIG"] = previous
