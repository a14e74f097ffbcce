"""Which of several processes this one is, as torchrun, SLURM or `--devices` has said in the environment."""

from __future__ import annotations

import os

_PORTS = 20000  # SLURM jobs that share a machine must not meet at one port


def placed() -> bool:
    """Whether this process was started as one of several."""
    return int(variables().get("WORLD_SIZE", "1")) > 1


def number() -> int:
    """Which of all, from 0; the first one speaks and writes."""
    return int(variables().get("RANK", "0"))


def local() -> int:
    """Which of those of its machine, from 0: the number of its device."""
    return int(variables().get("LOCAL_RANK", "0"))


def local_count() -> int:
    """How many its machine holds."""
    return int(variables().get("LOCAL_WORLD_SIZE", "1"))


def variables() -> dict[str, str]:
    """torchrun's variables, or the same made of SLURM's for a job step of several tasks; else empty."""
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return dict(environment)
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if "SLURM_PROCID" not in environment or not tasks.isdecimal() or int(tasks) < 2:
        return {}
    address = environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    port = _PORTS + int(environment.get("SLURM_JOB_ID", "0")) % _PORTS
    here = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_NTASKS_PER_NODE", tasks))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": here.partition("(")[0].partition(",")[0],  # "4(x2),3"
        "MASTER_ADDR": environment.get("MASTER_ADDR", address),
        "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
    }
