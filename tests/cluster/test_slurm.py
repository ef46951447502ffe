"""`configs/trainer/multinode.sbatch` on a real SLURM: an interrupted job ends with the weights of an undisturbed one.

Needs root and Debian's slurm-wlm, munge and iproute2. Cases B13 and B14 of the field report are in tests/field_report.
"""

from __future__ import annotations

import pytest
from slurm_cluster import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_during_start_up(jobs, name):
    job = jobs.submit()
    job.wait_ranks()
    jobs.slurm.command("scancel", f"--signal={name}", str(job.number))
    said = job.wait_requeued()
    assert f"stopped by SIG{name} before training began" in said
    assert not list(job.run.glob("*.ckpt"))
    jobs.assert_as_undisturbed(job.finish())


def test_the_time_limit(jobs):
    """SLURM looks at limits every 30 s, so the signal comes 15 to 45 s after the start here."""
    job = jobs.submit("--time=2", "--signal=USR1@75")
    job.pace(4.0)
    said = job.wait_requeued()
    jobs.slurm.command("scontrol", "update", f"jobid={job.number}", "TimeLimit=UNLIMITED")
    assert "stopped by SIGUSR1" in said
    jobs.assert_as_undisturbed(job.finish())


def test_preemption_without_grace(jobs):
    """SLURM requeues the job itself, at once; it has KillWait seconds to save."""
    job = jobs.submit("--partition=low")
    job.wait_training()
    urgent = jobs.slurm.submit(
        "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    said = job.wait_requeued()
    assert said.count("stopped by SIGTERM") == 1
    jobs.slurm.wait_state(urgent, "COMPLETED")
    jobs.assert_as_undisturbed(job.finish())


def test_a_node_that_fails(jobs):
    """Its cable is pulled: no connection is closed, and SLURM requeues the job once the node is silent for too long."""
    job = jobs.submit()
    job.wait_training()
    jobs.slurm.cable("node2", plugged=False)
    try:
        job.wait_requeued()
    finally:
        jobs.slurm.cable("node2", plugged=True)
    jobs.assert_as_undisturbed(job.finish())


def test_a_cancelled_job_is_saved_and_not_requeued(jobs):
    job = jobs.submit()
    job.wait_training()
    jobs.slurm.command("scancel", str(job.number))
    jobs.slurm.wait_state(job.number, "CANCELLED")
    wait_until(lambda: list(job.run.glob("stopped_step=*.ckpt")), 60, job.explain)
    wait_until(lambda: not jobs.slurm.command("squeue", "-h").strip(), 60, job.explain)
    assert jobs.slurm.describe(job.number)["Restarts"] == "0"
    assert job.output.count("stopped by SIGTERM") == 1
