"""`configs/trainer/multinode.sbatch` on a real SLURM: an interrupted job ends with the weights of an undisturbed one.

Needs root and Debian's slurm-wlm, munge and iproute2. Case B14 is in tests/field_report/test_cluster.py.
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
    output = job.wait_requeued()
    assert f"stopped by SIG{name} before training began" in output
    assert not list(job.run.glob("*.ckpt"))
    jobs.assert_as_undisturbed(job.finish())


def test_the_time_limit(jobs):
    """SLURM looks at limits every 30 s, so the signal comes 15 to 45 s after the start here."""
    job = jobs.submit("--time=2", "--signal=USR1@75")
    job.pace(4.0)
    output = job.wait_requeued()
    jobs.slurm.command("scontrol", "update", f"jobid={job.number}", "TimeLimit=UNLIMITED")
    assert "stopped by SIGUSR1" in output
    jobs.assert_as_undisturbed(job.finish())


@pytest.mark.case("B13")
@pytest.mark.parametrize("partition", ["low", "graceful"])
def test_preemption(jobs, partition):
    """Without grace time SLURM requeues the job at once, and it has KillWait seconds to save.

    With grace time SLURM treats a job that exits before it is over as failed, unless the job requests a requeue.
    """
    job = jobs.submit(f"--partition={partition}")
    job.wait_training()
    urgent = jobs.slurm.submit(
        "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    output = job.wait_requeued()
    assert output.count("stopped by SIGTERM") == 1
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
    # Its slurmd ends what it still runs of the job; started before that, the job would be ended with it.
    wait_until(lambda: len(jobs.slurm.pids("node2")) == 1, 120, job.explain)
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
