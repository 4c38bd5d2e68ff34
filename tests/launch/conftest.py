"""Fixtures with a fake cloud and a checkout with the launch scripts."""

import pytest

from tests.launch.cloud import make_checkout, make_cloud


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("checkout") / "llama_cpt")


@pytest.fixture
def cloud(tmp_path, checkout):
    made = make_cloud(tmp_path, checkout)
    yield made
    made.power_off()
