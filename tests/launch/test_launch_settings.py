"""Tests of the launch scripts' settings, dry runs and xpk commands."""

import re
import shlex
import subprocess
import sys

import pytest

from llama_cpt.runtime import errors
from tests.conftest import ROOT
from tests.launch.cloud import SETTINGS, make_checkout, make_cloud

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the hosts' scripts are Linux's")

COMMANDS = ["create", "setup", "run", "status", "logs", "collect", "delete"]


@pytest.mark.parametrize("script", COMMANDS)
def test_missing_settings_are_named(cloud, script):
    ran = cloud.run(script, ZONE="", NAME="")
    assert ran.returncode == 78 and "missing: ZONE NAME;" in ran.stderr
    assert not cloud.calls()


@pytest.mark.parametrize(
    "wrong",
    [
        {"OUTPUT": "runs/cpt"},
        {"OUTPUT": "gs://BUCKET/runs/cpt"},
        {"EXPORT": "gs:///exported/cpt"},
        {"BUCKET": "gs://a-bucket"},
        {"CAPACITY": "cheap"},
        {"SLICES": "two"},
        {"NAME": "Cpt_1b"},
        {"CONFIG": "configs/none.py"},
        {"OUTPUT": "gs://a-bucket/runs/[1]"},
        {"GRACE_SECONDS": "1+1"},
    ],
)
def test_wrong_settings_are_named(cloud, wrong):
    ((name, value),) = wrong.items()
    ran = cloud.run("create", **wrong)
    assert ran.returncode == 78 and f"{name}={value}" in ran.stderr
    assert not cloud.calls()


def test_a_list_setting_in_one_word_is_rejected(cloud):
    for word in ("--num-steps 200", "--seed=2 --num-steps=200"):
        ran = cloud.run("create", TRAIN_ARGS=f'"{word}"')
        assert ran.returncode == 78 and f"such as ({word})" in ran.stderr
    assert not cloud.calls()


def test_a_setting_from_an_unset_variable_is_rejected(cloud):
    ran = cloud.run("create", OUTPUT="gs://$NOWHERE/runs/cpt")
    assert ran.returncode == 78 and "OUTPUT=gs:///runs/cpt does not name a bucket" in ran.stderr


def test_an_uncommitted_config_is_rejected(tmp_path):
    own = make_cloud(tmp_path, make_checkout(tmp_path / "llama_cpt"))
    (own.checkout / "configs" / "llama3" / "new.py").touch()
    (own.checkout / "configs" / "llama3" / "cpt_1b.py").write_text("changed = True\n")
    for config, message in (
        ("new", "is not in the commit HEAD"),
        ("cpt_1b", "differs from the commit"),
    ):
        for script in ("create", "run"):
            for path in (f"configs/llama3/{config}.py", f"configs/llama3/{config}.py:config"):
                ran = own.run(script, CONFIG=path)
                assert ran.returncode == 78 and f"CONFIG={path} {message}" in ran.stderr
    assert not own.calls()
    for path in ("configs/llama3/cpt_1b.py", "configs/llama3/cpt_1b.py:config"):
        assert own.run("create", CONFIG=path, REVISION=own.revision()).returncode == 0
    assert own.run("delete", CONFIG="configs/none.py").returncode == 0


def test_a_missing_settings_file_is_an_error(cloud):
    ran = subprocess.run(
        [ROOT / "launch" / "create.sh"],
        env={"PATH": "/usr/bin:/bin", "SETTINGS": "/nowhere.env"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 78 and "/nowhere.env is missing" in ran.stderr


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
        *("cluster create", "storage attach", "workload list", "workload create"),
        *("workload list", "workload delete", "cluster delete"),
    ]
    assert all(
        call.endswith("--cluster=a-cluster --project=a-project --zone=a-zone") for call in calls
    )
    assert "--restart-on-exit-codes=1,75 " in calls[3] and "--data.almr 0.3\\ 3" in calls[3]
    assert f"JAX_COMPILATION_CACHE_DIR={cloud.place}/mount/compiled " in calls[3]
    assert "--termination-grace-period-seconds=0 " in calls[3]


def test_xpk_quotes_the_mount(cloud):
    mount = f"/mnt/a b;touch {cloud.place}/ran"
    ran = cloud.run("xpk", "run", CLUSTER="a-cluster", MOUNT=shlex.quote(mount))
    assert ran.returncode == 0, ran.stderr
    (call,) = (call for call in cloud.calls() if "workload create" in call)
    command = re.search("--command=(.*) --cluster=", call)
    assert command
    words = shlex.split(command[1])
    assert words[1] == f"JAX_COMPILATION_CACHE_DIR={mount}/compiled"
    assert {f"{mount}/data", f"{mount}/weights"} < set(words)


def test_xpk_without_an_action_prints_its_usage(cloud):
    ran = cloud.run("xpk", CLUSTER="a-cluster")
    assert ran.returncode == 2 and "usage: launch/xpk.sh create|run" in ran.stderr


def test_xpk_runs_a_workload_once(cloud):
    for _ in range(2):
        ran = cloud.run("xpk", "run", CLUSTER="a-cluster")
        assert ran.returncode == 0, ran.stderr
    assert "cpt: already exists; to start it over" in ran.stderr and "cpt-2" not in ran.stderr
    assert sum(" workload create" in call for call in cloud.calls()) == 1


@pytest.mark.parametrize(
    ("word", "met", "message"),
    [
        ("create", ["fails"], "may be billed until launch/xpk.sh delete"),
        ("create", ["ok", "fails"], "gs://a-bucket is not attached; the cluster is billed"),
        ("run", ["fails"], "its workloads cannot be listed"),
    ],
)
def test_failed_xpk_reports_what_is_billed(cloud, word, met, message):
    ran = cloud.run("xpk", word, plan={"xpk": met}, CLUSTER="a-cluster")
    assert ran.returncode == 1 and message in ran.stderr
    assert len(cloud.calls()) == len(met)


def test_scripts_and_commands_have_the_same_exit_statuses():
    (line,) = re.findall("^readonly (.*)$", (ROOT / "launch/lib/commands.sh").read_text(), re.M)
    for name, status in (word.split("=") for word in line.split()):
        assert getattr(errors, name) == int(status)


def test_the_example_has_every_setting():
    example = (ROOT / "launch" / "settings.env.example").read_text()
    assert all(f"\n{name}=" in example for name in SETTINGS)
