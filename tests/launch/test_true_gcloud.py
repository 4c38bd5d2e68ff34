"""Tests of the launch scripts with the real ``gcloud`` and local servers."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.launch.cloud import make_checkout, make_cloud
from tests.launch.google_cloud import google_cloud

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the hosts' scripts are Linux's"),
    pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed"),
]
SECONDS = {"POLL_SECONDS": "1", "GRACE_SECONDS": "20"}


@pytest.fixture
def cloud(tmp_path):
    checkout = make_checkout(tmp_path / "checkout" / "llama_cpt")
    made = make_cloud(tmp_path, checkout, commands=("ssh", "scp"))
    (tmp_path / ".ssh").mkdir()
    key = tmp_path / ".ssh" / "google_compute_engine"  # As in launch/README.md.
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", key], check=True)
    yield made
    made.power_off()


def test_a_run_survives_preemption(cloud):
    """The run is created, preempted, ends, is exported, collected and deleted.

    Restarts on the same hosts, which need no other commands of ``gcloud``, are in
    ``test_launch_scripts.py``.
    """
    story = ["200 preempt preempt", "400 0"]
    with google_cloud(cloud) as service:
        for script in ("create", "setup", "run", "status", "logs", "collect", "delete"):
            plan = {"train": story} if script == "run" else {}
            ran = cloud.run(script, plan=plan, **SECONDS)
            assert ran.returncode == 0, ran.stderr
            if script == "status":
                assert "request cpt: ACTIVE" in ran.stdout and "cpt\tREADY\t2" in ran.stdout
                assert "cpt-1 stopped 0" in ran.stdout
                assert "complete checkpoints in gs://a-bucket/runs/cpt: 200 400" in ran.stdout
        assert (len(service.asked), service.deleted) == (2, 2)
        assert not cloud.billed() and not cloud.processes()
    for host in ("cpt-0", "cpt-1"):
        assert len((cloud.place / f"trained.{host}").read_text().splitlines()) == len(story)
    (asked,) = {str(request) for request in service.asked}
    for part in (
        "'acceleratorType': 'v6e-16'",
        "'runtimeVersion': 'v2-alpha-tpuv6e'",
        "'email': 'trainer@a-project'",
        "'scope': ['https://www.googleapis.com/auth/cloud-platform']",
        "'validUntilDuration': '60s'",
        "'spot': {}",
    ):
        assert part in asked
    collected = cloud.place / "collected" / "cpt"
    assert (collected / "run" / "metrics.jsonl").read_text() == "{}\n"
    assert not (collected / "run" / "checkpoints").exists()
    assert len(list((collected / "logs").iterdir())) >= 3
    source = cloud.place / "bucket" / "exported" / "cpt.source"
    assert source.read_text() == "gs://a-bucket/runs/cpt step 400\n"


def test_slices(cloud):
    with google_cloud(cloud) as service:
        for script in ("create", "setup", "status", "delete"):
            ran = cloud.run(script, SLICES="2", CAPACITY="reserved", **SECONDS)
            assert ran.returncode == 0, ran.stderr
            if script == "status":
                assert all(f"cpt-{slice}\tREADY\t2" in ran.stdout for slice in (0, 1))
                assert len(re.findall(r"  cpt-\d-\d none\n", ran.stdout)) == 4
    (asked,) = service.asked
    assert "reservationName" in asked and "spot" not in asked
    (spec,) = asked["tpu"]["nodeSpec"]
    assert spec["multisliceParams"] == {"nodeCount": 2, "nodeIdPrefix": "cpt"}
    assert not cloud.billed()
