"""Configuration files of the test cluster: MariaDB's, slurmdbd's, SLURM's own.

The cluster is made for tests: it forgets finished jobs after ten seconds (sacct remembers them), requeues within seconds, and has four
partitions, of which one kills with grace:

=========  =============  ==============================================
name       PreemptMode    purpose
=========  =============  ==============================================
normal     REQUEUE        default; preempted by ``urgent``, then requeued
grace      REQUEUE        the same, 20 seconds after a warning
cancel     CANCEL         preempted by ``urgent``, not requeued
urgent     OFF            preempts the other three
=========  =============  ==============================================
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

GPUS = 2
CPUS = 4


def mariadb_conf(folder: Path, ports: dict[str, int]) -> str:
    return f"""[mariadbd]
datadir={folder}/db
socket={folder}/run/mariadb.socket
pid-file={folder}/run/mariadb.pid
log-error={folder}/log/mariadb.log
bind-address=127.0.0.1
port={ports["mariadb"]}
innodb_buffer_pool_size=64M
innodb_log_file_size=32M
innodb_lock_wait_timeout=60
innodb_flush_log_at_trx_commit=2
performance_schema=OFF
skip-name-resolve
"""


def slurmdbd_conf(folder: Path, ports: dict[str, int], password: str) -> str:
    return f"""AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
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
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
CommitDelay=1
"""


def slurm_conf(folder: Path, ports: dict[str, int]) -> str:
    node = node_name()
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
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
StateSaveLocation={folder}/spool/ctld
SlurmdSpoolDir={folder}/spool/d
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
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
AccountingStoragePass={folder}/run/munge.socket
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
PartitionName=grace Nodes={node} MaxTime=120 DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=cancel Nodes={node} MaxTime=120 DefaultTime=60 PriorityTier=1 PreemptMode=CANCEL State=UP
PartitionName=urgent Nodes={node} MaxTime=120 DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""


def gres_conf(folder: Path) -> str:
    return f"NodeName={node_name()} Name=gpu File={folder}/dev/gpu[0-{GPUS - 1}]\n"


def node_name() -> str:
    return socket.gethostname().split(".")[0]
