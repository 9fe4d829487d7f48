"""A real SLURM on this one machine, in one folder: munge, MariaDB, slurmdbd, slurmctld and slurmd, started and stopped as root.

Everything private lives below the folder: key, sockets, database, spool, logs, fake GPUs. Daemons listen on free ports and find their
configuration through ``SLURM_CONF``, so a SLURM that is installed or running already is neither read nor touched.

The cluster is made for tests: it forgets finished jobs after ten seconds (sacct remembers them), requeues within seconds, kills without
grace, and has three partitions:

=========  =============  ==============================================
name       PreemptMode    purpose
=========  =============  ==============================================
normal     REQUEUE        default; preempted by ``urgent``, then requeued
cancel     CANCEL         preempted by ``urgent``, not requeued
urgent     OFF            preempts the other two
=========  =============  ==============================================
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = {
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "slurmdbd": "slurmdbd",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
PACKAGES = ("slurm-wlm", "slurmdbd", "slurm-wlm-mysql-plugin", "munge", "mariadb-server")
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
PORTS = ("mariadb", "slurmdbd", "slurmctld", "slurmd")
GPU_MAJOR = 240
"""First of the major device numbers that Linux reserves for local and experimental use."""
GPUS = 2
CPUS = 4


class ClusterError(RuntimeError):
    """The cluster cannot be started; the message says what is missing."""


def missing_programs() -> list[str]:
    return sorted({package for program, package in PROGRAMS.items() if find(program) is None})


def find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class TestCluster:
    """One cluster in one folder.

    Args:
        folder: where everything goes; must be short enough for a Unix socket (100 characters).
    """

    __test__ = False  # the name is not a test case

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.conf = self.folder / "etc" / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}

    def up(self) -> None:
        """Start what does not run yet.

        Raises:
            ClusterError: not root, packages missing, or a daemon that does not come up (with the end of its log).
        """
        if os.geteuid() != 0:
            raise ClusterError("the test cluster needs root (it makes device files and starts SLURM's daemons)")
        if missing := missing_programs():
            raise ClusterError(
                f"missing Debian packages: {' '.join(missing)}; apt-get install --no-install-recommends {' '.join(PACKAGES)}"
            )
        if not self.conf.is_file():
            self._configure()
        for name in DAEMONS:
            self.start(name)
        self._register()
        self.wait_for(
            lambda: "idle" in self.call("sinfo", "-h", "-o", "%T") or "mix" in self.call("sinfo", "-h", "-o", "%T"),
            "an idle node",
        )

    def down(self) -> None:
        """Cancel jobs, stop the daemons, remove the folder. Quiet where there is nothing.

        Raises:
            ClusterError: the folder holds what `up` did not make; nothing is touched.
        """
        made = self._made()
        if not made and self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir())):
            raise ClusterError(f"{self.folder} holds no test cluster; nothing was removed")
        if self.conf.is_file() and self.pid("slurmctld"):
            subprocess.run(
                [self._program("scancel"), "--user=root"],
                env=self.environment,
                capture_output=True,
                timeout=30,
                check=False,
            )
            deadline = time.monotonic() + 15
            while self.call("squeue", "-h", "-o", "%A", check=False).strip() and time.monotonic() < deadline:
                time.sleep(0.3)
        for name in reversed(DAEMONS):
            self.stop(name)
        for pid in self._strays():
            _kill(pid, signal.SIGKILL)
        if made:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str) -> None:
        """Start one daemon and wait until it answers; nothing where it runs already."""
        if self.pid(name):
            return
        ready = self._ready(name)
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            subprocess.Popen(  # a daemon: it outlives this process
                self._command(name),
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.folder,
            )
        self.wait_for(ready, name)

    def stop(self, name: str, *, number: int = signal.SIGTERM, patience_s: float = 20.0) -> None:
        """Send a signal to a daemon and wait until it is gone; SIGKILL after ``patience_s``."""
        pid = self.pid(name)
        if not pid:
            return
        _kill(pid, number)
        deadline = time.monotonic() + patience_s
        while self.pid(name) == pid:
            if time.monotonic() > deadline:
                _kill(pid, signal.SIGKILL)
                deadline += patience_s
            time.sleep(0.05)

    def pid(self, name: str) -> int:
        """Process id of a running daemon of this cluster, 0 where there is none.

        Known by command line and environment: slurmdbd has the same command line in every cluster.
        """
        wanted, marker = self._command(name), self._marker()
        for pid in _processes():
            if _command_line(pid) == wanted and marker in _environment(pid):
                return pid
        return 0

    def call(self, program: str, *arguments: str, check: bool = True, timeout_s: float = 60.0) -> str:
        """Output of a SLURM client against this cluster."""
        done = subprocess.run(
            [self._program(program), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(f"{program} {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def wait_for(self, condition: Callable[[], bool], what: str, *, patience_s: float = 60.0) -> None:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                if condition():
                    return
            except (ClusterError, OSError):
                pass
            if time.monotonic() > deadline:
                raise ClusterError(f"waited {patience_s:.0f} s for {what}\n{self._log_tails()}")
            time.sleep(0.2)

    def _program(self, name: str) -> str:
        path = find(name)
        if path is None:
            raise ClusterError(f"{name} is not installed; apt-get install --no-install-recommends {' '.join(PACKAGES)}")
        return path

    def _command(self, name: str) -> list[str]:
        folder = self.folder
        program = find(name) or name
        if name == "munged":
            return [
                program, "--foreground", "--force", f"--key-file={folder}/etc/munge.key", f"--socket={folder}/run/munge.socket",
                f"--pid-file={folder}/run/munged.pid", f"--seed-file={folder}/run/munged.seed", f"--log-file={folder}/log/munged.log",
            ]  # fmt: skip
        if name == "mariadbd":
            return [program, f"--defaults-file={folder}/etc/my.cnf", "--user=root"]
        if name == "slurmd":
            return [program, "-D", "-f", str(self.conf)]
        if name == "slurmctld":
            return [program, "-D", "-f", str(self.conf)]
        return [program, "-D"]

    def _ready(self, name: str) -> Callable[[], bool]:
        if name == "munged":
            return lambda: _answers(self.folder / "run" / "munge.socket")
        if name == "mariadbd":
            return lambda: _answers(self.folder / "run" / "mariadb.socket")
        if name == "slurmdbd":
            return lambda: _listens(self._ports()["slurmdbd"])
        if name == "slurmctld":
            return lambda: "UP" in self.call("scontrol", "ping", check=False)
        return lambda: bool(self.pid("slurmd"))

    def _ports(self) -> dict[str, int]:
        return json.loads((self.folder / "etc" / "ports.json").read_text(encoding="utf-8"))

    def _made(self) -> bool:
        """Whether `up` made the folder: the ports are the first thing that it writes."""
        try:
            return set(self._ports()) == set(PORTS)
        except (OSError, ValueError, TypeError):
            return False

    def _configure(self) -> None:
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ClusterError(f"{self.folder} is not empty and holds no test cluster; choose another folder")
        (self.folder / "etc").mkdir(parents=True)
        ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        _write(self.folder / "etc" / "ports.json", json.dumps(ports))
        for name in ("run", "log", "spool/ctld", "spool/d", "db", "dev"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "etc" / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        password = secrets.token_hex(12)
        for index in range(GPUS):
            os.mknod(self.folder / "dev" / f"gpu{index}", 0o660 | stat.S_IFCHR, os.makedev(GPU_MAJOR, index))
        _write(self.folder / "etc" / "my.cnf", self._mariadb_conf(ports))
        self._make_database(password)
        _write(self.folder / "etc" / "slurmdbd.conf", self._slurmdbd_conf(ports, password), mode=0o600)
        _write(self.folder / "etc" / "cgroup.conf", "CgroupPlugin=disabled\n")
        _write(
            self.folder / "etc" / "gres.conf", f"NodeName={_node()} Name=gpu File={self.folder}/dev/gpu[0-{GPUS - 1}]\n"
        )
        _write(self.conf, self._slurm_conf(ports))

    def _mariadb_conf(self, ports: dict[str, int]) -> str:
        return f"""[mariadbd]
datadir={self.folder}/db
socket={self.folder}/run/mariadb.socket
pid-file={self.folder}/run/mariadb.pid
log-error={self.folder}/log/mariadb.log
bind-address=127.0.0.1
port={ports["mariadb"]}
innodb_buffer_pool_size=64M
innodb_log_file_size=32M
innodb_lock_wait_timeout=60
innodb_flush_log_at_trx_commit=2
performance_schema=OFF
skip-name-resolve
"""

    def _make_database(self, password: str) -> None:
        make = [self._program("mariadb-install-db"), f"--defaults-file={self.folder}/etc/my.cnf", "--user=root", "--skip-test-db",
                "--auth-root-authentication-method=normal"]  # fmt: skip
        done = subprocess.run(make, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"mariadb-install-db: {done.stderr.strip() or done.stdout.strip()}")
        statements = (
            "CREATE DATABASE slurm_acct;\n"
            f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON slurm_acct.* TO 'slurm'@'127.0.0.1';\n"
        )
        boot = [*self._command("mariadbd"), "--bootstrap"]
        # Without privileges loaded, bootstrap refuses CREATE USER; FLUSH loads them.
        done = subprocess.run(
            boot, input="FLUSH PRIVILEGES;\n" + statements, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(f"mariadbd --bootstrap: {done.stderr.strip()}")

    def _slurmdbd_conf(self, ports: dict[str, int], password: str) -> str:
        return f"""AuthType=auth/munge
AuthInfo=socket={self.folder}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports["slurmdbd"]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports["mariadb"]}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
LogFile={self.folder}/log/slurmdbd.log
PidFile={self.folder}/run/slurmdbd.pid
CommitDelay=1
"""

    def _slurm_conf(self, ports: dict[str, int]) -> str:
        node = _node()
        memory = max(2048, int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20) - 1024)
        return f"""ClusterName=testcluster
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports["slurmctld"]}
SlurmdPort={ports["slurmd"]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a requeued job may not start before its old credential has expired (two minutes by default)
AuthInfo=socket={self.folder}/run/munge.socket,cred_expire=5
StateSaveLocation={self.folder}/spool/ctld
SlurmdSpoolDir={self.folder}/spool/d
SlurmctldPidFile={self.folder}/run/slurmctld.pid
SlurmdPidFile={self.folder}/run/slurmd.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill,UsePss
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports["slurmdbd"]}
# for slurmdbd connections the "password" is the munge socket
AccountingStoragePass={self.folder}/run/munge.socket
AccountingStorageTRES=gres/gpu
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,default_queue_depth=2000
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=0
ReturnToService=2
JobRequeue=1
MaxArraySize=2001
MaxJobCount=20000
MinJobAge=10
KillWait=2
InactiveLimit=0
Waittime=0
MessageTimeout=10
SlurmctldTimeout=30
SlurmdTimeout=30
UnkillableStepTimeout=120
NodeName={node} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={memory} Gres=gpu:{GPUS} State=UNKNOWN
SlurmdParameters=config_overrides
PartitionName=normal Nodes={node} Default=YES MaxTime=120 DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=cancel Nodes={node} MaxTime=120 DefaultTime=60 PriorityTier=1 PreemptMode=CANCEL State=UP
PartitionName=urgent Nodes={node} MaxTime=120 DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""

    def _register(self) -> None:
        """Make the cluster known to slurmdbd (slurmctld does that by itself, a little later) and wait until sacct answers."""
        self.wait_for(
            lambda: "testcluster" in self.call("sacctmgr", "-nP", "list", "cluster", "format=cluster"),
            "slurmdbd to know the cluster",
        )

    def _strays(self) -> list[int]:
        """Step daemons and job processes that a killed slurmd left behind, known by this folder in command line or environment."""
        marker, mine = self._marker(), os.getpid()
        found = []
        for pid in _processes():
            if pid == mine:
                continue
            line, environment = " ".join(_command_line(pid)), _environment(pid)
            in_job = any(entry.startswith(b"SLURM_JOB_ID=") for entry in environment)
            if marker in environment and (in_job or line.startswith("slurmstepd")):
                found.append(pid)
        return found

    def _marker(self) -> bytes:
        return f"SLURM_CONF={self.conf}".encode()

    def _log_tails(self) -> str:
        tails = []
        for path in sorted((self.folder / "log").glob("*")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-6:]
            if lines:
                tails.append(f"--- {path.name}\n" + "\n".join(lines))
        return "\n".join(tails)


def _node() -> str:
    return socket.gethostname().split(".")[0]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. All are held until the last is known, so that they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) == 0


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return []
    return [] if state == "Z" else raw.decode(errors="replace").rstrip("\0").split("\0")


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
