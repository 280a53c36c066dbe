"""A Slurm cluster of a test's own on the loopback device: munge, a controller and nodes, ended by id."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_cluster import wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
START_S = 60.0
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=30
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=300
SchedulerParameters=sched_interval=1,batch_sched_delay=0
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing_programs() -> str:
    """Return why no cluster can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"needs Debian's slurmctld, slurmd, slurm-client and munge: no {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "slurmd must be started as root"


@dataclass
class SlurmCluster:
    """A controller and nodes of one CPU each."""

    folder: Path
    ports: list[int]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        host = socket.gethostname().partition(".")[0]
        nodes = [
            f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=4000"
            for number, port in enumerate(self.ports[1:], start=1)
        ]
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host,
                folder=self.folder,
                user=pwd.getpwuid(os.geteuid()).pw_name,
                port=self.ports[0],
                nodes="\n".join(nodes),
            )
        )
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (munge / "key").write_bytes(secrets.token_bytes(64))
        (munge / "key").chmod(0o600)
        (self.folder / "state").mkdir()
        self._run(
            "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        wait_for((munge / "socket").exists, START_S, "munge")
        self.start_controller()
        for number in range(1, len(self.ports)):
            self.start_node(f"n{number}")
        wait_for(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "main").strip()
                 == str(len(self.ports) - 1), START_S, "idle nodes")  # fmt: skip

    def start_controller(self) -> None:
        self._run("slurmctld", "-D", "-i")

    def start_node(self, name: str) -> None:
        self._run("slurmd", "-D", "-N", name, called=name)

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon and everything that it runs, as a power cut does."""
        for pid in reversed(tuple(_below(self.processes[name].pid))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in Path("/proc").glob("[0-9]*/cmdline"):  # its step daemons are nobody's children
            with contextlib.suppress(OSError):
                environment = (path.parent / "environ").read_bytes()
                if (
                    f"SLURMD_NODENAME={name}\0".encode() in environment
                    and str(self.folder).encode() in environment
                ):
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def ask(self, *words: str) -> str:
        done = subprocess.run(
            words, env=os.environ | self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def stop(self) -> None:
        self.ask("scancel", "--user=root")
        for name in reversed(tuple(self.processes)):
            process = self.processes[name]
            below = tuple(_below(process.pid))
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _run(self, *words: str, called: str = "") -> None:
        self.processes[called or words[0]] = subprocess.Popen(
            words,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _below(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                yield from _below(child)


@contextlib.contextmanager
def slurm_cluster(nodes: int) -> Iterator[SlurmCluster]:
    """Start a cluster, and put it into the environment for the block."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short enough for a socket's path
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(nodes + 1)]
    ports = [one.getsockname()[1] for one in free]
    for one in free:
        one.close()
    cluster = SlurmCluster(folder, ports)
    before = os.environ.get("SLURM_CONF")
    try:
        cluster.start()
        os.environ.update(cluster.environment)
        yield cluster
    finally:
        cluster.stop()
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)
