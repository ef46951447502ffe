"""A real SLURM on one machine: a controller and two nodes, each in a network and UTS namespace of its own."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare")
ADDRESSES = {"ctl": "10.77.0.10", "node1": "10.77.0.1", "node2": "10.77.0.2"}
SETTINGS = """
ClusterName=magnet
SlurmctldHost=ctl(10.77.0.10)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MinJobAge=3000
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=node[1-2] CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=graceful Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT")


class Slurm:
    """A running cluster; partitions `low` and `graceful` (GraceTime 0 and 60) give way to `high`.

    Args:
        folder: For its settings, logs and sockets; short, since a socket's path must have fewer than 108 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self._before: dict[str, str | None] = {}

    def start(self) -> None:
        self._make_network()
        (self.folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        )
        (self.folder / "state").mkdir()
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        megabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        (self.folder / "slurm.conf").write_text(
            SETTINGS.format(folder=self.folder, cpus=max(2, os.cpu_count() or 2), megabytes=megabytes // 2)
        )
        self._start_munge()
        settings = ("-D", "-f", f"{self.folder}/slurm.conf")
        self._start("slurmctld", *self._inside("ctl"), "slurmctld", *settings, "-c")
        for name in ("node1", "node2"):
            self._start(f"slurmd_{name}", *self._inside(name), "slurmd", *settings, "-c", "-N", name)
        wait_until(lambda: self.command("sinfo", "-h", "-o", "%D %T").split() == ["2", "idle"], 60, self.logs)

    def stop(self) -> None:
        """End what `start` started, by process and by name of the namespace."""
        if (self.folder / "slurm.conf").exists():
            subprocess.run(
                [*self._inside("ctl"), "scancel", "-u", "root"], env=self._environment(), check=False
            )
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for name in ADDRESSES:
            space = f"mt-{name}"
            left = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            for pid in left.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], check=False)

    def command(self, *words: str, **environment: str) -> str:
        """Run a client command on the controller's host; return what it prints."""
        environment = self._environment() | environment
        done = subprocess.run(
            [*self._inside("ctl"), *words], env=environment, capture_output=True, text=True, timeout=120
        )
        return done.stdout + done.stderr

    def pids(self, node: str, program: str = "") -> list[int]:
        """Return the processes of a node, or those that run `program`, launchers aside."""
        listed = subprocess.run(
            ["ip", "netns", "pids", f"mt-{node}"], capture_output=True, text=True, check=False
        )
        found = list(map(int, listed.stdout.split()))
        return [pid for pid in found if program in command_line(pid)] if program else found

    def submit(self, *words: str | Path, **environment: str) -> int:
        """`sbatch` with these words and this environment; return the job's number."""
        answer = self.command("sbatch", *map(str, words), **environment)
        found = re.search(r"Submitted batch job (\d+)", answer)
        assert found, answer
        return int(found[1])

    def describe(self, job: int) -> dict[str, str]:
        """Return what `scontrol show job` says."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.command("scontrol", "show", "job", str(job))))

    def wait_requeued(self, job: int, explain: Callable[[], str], restarts: int = 1) -> None:
        """Wait until the job is in the queue again."""

        def requeued() -> bool:
            shown = self.describe(job)
            assert shown["JobState"] not in ENDED, explain()
            return shown["JobState"] == "PENDING" and int(shown["Restarts"]) == restarts

        wait_until(requeued, 600, explain)

    def wait_state(self, job: int, wanted: str, explain: Callable[[], str] | None = None) -> None:
        """Wait for a state; a requeued job, which SLURM holds back for two minutes, is let go at once."""

        def reached() -> bool:
            shown = self.describe(job)
            state = shown["JobState"]
            assert state == wanted or state not in ENDED, (explain or self.logs)()
            if state == "PENDING" and shown["Reason"] == "BeginTime":
                time.sleep(3)  # a start in the second of the requeue is refused: "job credential revoked"
                self.command("scontrol", "update", f"jobid={job}", "StartTime=now")
            return state == wanted

        wait_until(reached, 600, explain or self.logs)

    def logs(self) -> str:
        return "\n".join(
            f"== {log.name}\n" + log.read_text(errors="replace")[-1500:] for log in self.folder.glob("*.log")
        )

    def cable(self, node: str, *, plugged: bool) -> None:
        """Unplug a node's cable, or plug it in."""
        self._ip("-n", "mt-ctl", "link", "set", node, "up" if plugged else "down")

    def _make_network(self) -> None:
        for name, address in ADDRESSES.items():
            self._ip("netns", "add", f"mt-{name}")
            self._ip("-n", f"mt-{name}", "link", "set", "lo", "up")
            if name == "ctl":
                self._ip("-n", "mt-ctl", "link", "add", "eth0", "type", "bridge")
            else:
                self._ip(
                    *("-n", "mt-ctl", "link", "add", name, "type", "veth"),
                    *("peer", "name", "eth0", "netns", f"mt-{name}"),
                )
                self._ip("-n", "mt-ctl", "link", "set", name, "master", "eth0", "up")
            self._ip("-n", f"mt-{name}", "addr", "add", f"{address}/24", "dev", "eth0")
            self._ip("-n", f"mt-{name}", "link", "set", "eth0", "up")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        places = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{option}={self.folder}/munge.{end}" for option, end in places.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        wait_until((self.folder / "munge.socket").exists, 20, self.logs)

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out.log").open("wb") as output:
            self.daemons.append(
                subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=self._environment())
            )

    def _inside(self, name: str) -> list[str]:
        """Return the words that run a command with the network, hostname and hosts file of a machine."""
        prepare = f'hostname {name}; mount --bind {self.folder}/hosts /etc/hosts; exec "$@"'
        space = ["nsenter", f"--net=/run/netns/mt-{name}", "unshare", "--uts", "--mount"]
        return [*space, "sh", "-c", prepare, "sh"]

    def _environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": f"{self.folder}/slurm.conf"}

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)


def command_line(pid: int) -> str:
    """Return the command line of a process, empty for a launcher or if it has exited."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return ""
    return (
        ""
        if words[0].endswith(("srun", "bash", "slurmstepd")) or "slurmstepd" in words[0]
        else " ".join(words)
    )


def catches(pid: int, *numbers: signal.Signals) -> bool:
    """Tell whether a process has handlers for these signals."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    return all(mask >> (number - 1) & 1 for number in numbers)


def wait_until(
    happened: Callable[[], bool], seconds: float, explain: Callable[[], str], every: float = 0.5
) -> None:
    """Wait until it happened; fail with an explanation if that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, explain()
        time.sleep(every)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster for the tests of a file, one at a time on a machine; skipped where it cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM of our own needs root, for network namespaces")
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge iproute2")
    with FileLock(
        tempfile.gettempdir() + "/magnet_train_tests_slurm.lock"
    ):  # network namespaces have fixed names
        cluster = Slurm(tmp_path_factory.mktemp("slurm"))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
