"""A real SLURM on this one machine, in one folder: munge, MariaDB, slurmdbd, slurmctld and slurmd, started and stopped as root.

Everything private lives below the folder: key, sockets, database, spool, logs, fake GPUs. Daemons listen on free ports and find their
configuration through ``SLURM_CONF``, so a SLURM that is installed or running already is neither read nor touched. What it is made
for is in `configuration`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from configuration import GPUS, gres_conf, mariadb_conf, slurm_conf, slurmdbd_conf
from processes import answers, command_line_of, environment_of, free_ports, kill, listens, process_ids

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
            kill(pid, signal.SIGKILL)
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
        kill(pid, number)
        deadline = time.monotonic() + patience_s
        while self.pid(name) == pid:
            if time.monotonic() > deadline:
                kill(pid, signal.SIGKILL)
                deadline += patience_s
            time.sleep(0.05)

    def pid(self, name: str) -> int:
        """Process id of a running daemon of this cluster, 0 where there is none.

        Known by command line and environment: slurmdbd has the same command line in every cluster.
        """
        wanted, marker = self._command(name), self._marker()
        for pid in process_ids():
            if command_line_of(pid) == wanted and marker in environment_of(pid):
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
            return lambda: answers(self.folder / "run" / "munge.socket")
        if name == "mariadbd":
            return lambda: answers(self.folder / "run" / "mariadb.socket")
        if name == "slurmdbd":
            return lambda: listens(self._ports()["slurmdbd"])
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
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
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
        _write(self.folder / "etc" / "my.cnf", mariadb_conf(self.folder, ports))
        self._make_database(password)
        _write(self.folder / "etc" / "slurmdbd.conf", slurmdbd_conf(self.folder, ports, password), mode=0o600)
        _write(self.folder / "etc" / "cgroup.conf", "CgroupPlugin=disabled\n")
        _write(self.folder / "etc" / "gres.conf", gres_conf(self.folder))
        _write(self.conf, slurm_conf(self.folder, ports))

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
        for pid in process_ids():
            if pid == mine:
                continue
            line, environment = " ".join(command_line_of(pid)), environment_of(pid)
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


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
