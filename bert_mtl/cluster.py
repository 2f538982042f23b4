"""Which processes train together: the cluster as TF_CONFIG, SLURM or Kubernetes tell each of them by its environment.

TensorFlow's own resolvers do not do here: SLURM's sorts hosts by name, so that ranks miss their hosts (n10 before n9),
and fails without GPUs; Kubernetes' names the nodes instead of the pods, and cannot tell a pod which one it is.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bert_mtl.config import StrategyConfig
from conf.errors import ConfigError, Problem

EXAMPLE = '{"cluster": {"worker": ["host1:8470", "host2:8470"]}, "task": {"type": "worker", "index": 0}}'
JOBS = ("chief", "worker")  # in the order of their ranks


class Cluster(NamedTuple):
    """`addresses` (`host:port`) of all workers, the chief's first; `rank`, the place of this process among them."""

    addresses: tuple[str, ...]
    rank: int


def find_cluster(config: StrategyConfig, environment: Mapping[str, str]) -> Cluster:
    """The cluster that `strategy.cluster` asks for. Raises ConfigError where the environment does not tell it."""
    kind = _kind(environment) if config.cluster == "auto" else config.cluster
    if kind == "tf_config":
        cluster = _of_tf_config(environment)
    elif kind == "slurm":
        cluster = _of_slurm(environment, config.port)
    else:
        cluster = _of_kubernetes(environment, config)
    if config.workers not in (None, len(cluster.addresses)):
        raise _error("strategy.workers", f"be null or the cluster's {len(cluster.addresses)}", config.workers)
    return cluster


def _kind(environment: Mapping[str, str]) -> str:
    signs = {"tf_config": "TF_CONFIG", "slurm": "SLURM_PROCID", "kubernetes": "KUBERNETES_SERVICE_HOST"}
    if found := [kind for kind, variable in signs.items() if variable in environment]:
        return found[0]
    rule = "find its workers by TF_CONFIG, be started by SLURM's srun, or run in the pods of a Kubernetes Job"
    raise _error("strategy.cluster", rule, f"none of {', '.join(signs.values())} in the environment")


# ---- TF_CONFIG ----
def _of_tf_config(environment: Mapping[str, str]) -> Cluster:
    text = environment.get("TF_CONFIG")
    try:
        given: Any = json.loads(text or "")
    except ValueError:
        raise _error("TF_CONFIG", f"be JSON such as {EXAMPLE}", text) from None
    if not isinstance(given, dict) or not all(isinstance(given.get(key), dict) for key in ("cluster", "task")):
        raise _error("TF_CONFIG", f"have a cluster and a task, as {EXAMPLE}", text)
    jobs, task = given["cluster"], given["task"]
    if other := [job for job in jobs if job not in JOBS]:
        raise _error("TF_CONFIG.cluster", "have workers and a chief only", other[0], JOBS)
    addresses = [address for job in JOBS for address in _addresses(job, jobs.get(job, []))]
    if not addresses or len(set(addresses)) < len(addresses):
        raise _error("TF_CONFIG.cluster", "name every worker once", jobs)
    kind, index = task.get("type"), task.get("index")
    if kind not in jobs:
        raise _error("TF_CONFIG.task.type", "be a job of TF_CONFIG.cluster", kind, tuple(jobs))
    places = range(len(jobs[kind]))
    if not str(index).isdecimal() or int(index) not in places:
        raise _error("TF_CONFIG.task.index", f"be the place of this process among its {kind}s", index, tuple(places))
    return Cluster(tuple(addresses), int(index) + (kind == "worker") * len(jobs.get("chief", [])))


def _addresses(job: str, given: Any) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(each, str) and re.search(r".:\d+$", each) for each in given):
        raise _error(f"TF_CONFIG.cluster.{job}", "be a list of host:port", given)
    return given


# ---- SLURM ----
def _of_slurm(environment: Mapping[str, str], port: int) -> Cluster:
    """Tasks of a node listen on ports one behind the other, from `port` on."""
    names = ("SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    if missing := [name for name in names if name not in environment]:
        raise _error("strategy.cluster", f"be started by srun, which sets {missing[0]}", "slurm")
    rank, hosts, tasks = (environment[name] for name in names)
    try:
        counts = [
            int(count)
            for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?(?:,|$)", tasks)
            for _ in range(int(times or 1))
        ]
        nodes = list(zip(expand_hosts(hosts), counts, strict=True))
    except ValueError:
        raise _error("SLURM_STEP_TASKS_PER_NODE", f"have a count for each node of {hosts}", tasks) from None
    addresses = [(node, f"{host}:{port + i}") for node, (host, count) in enumerate(nodes) for i in range(count)]
    if not rank.isdecimal() or int(rank) >= len(addresses):
        raise _error("SLURM_PROCID", f"be one of the step's {len(addresses)} tasks, from 0 on", rank)
    node, _ = addresses[int(rank)]
    if environment.get("SLURM_NODEID", str(node)) != str(node):
        rule = f"be block, so that task {rank} of {tasks} is on node {node} of {hosts}"
        raise _error("srun --distribution", rule, environment.get("SLURM_DISTRIBUTION", "another"))
    return Cluster(tuple(address for _, address in addresses), int(rank))


def expand_hosts(hosts: str) -> Iterator[str]:
    """The hosts of a SLURM list such as `n[1-2,7],login`, in its order. Raises ValueError where it is none."""
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", hosts):
        pieces = [
            _expand_range(text[1:-1]) if text[0] == "[" else [text] for text in re.findall(r"\[.*?\]|[^\[]+", part)
        ]
        yield from map("".join, itertools.product(*pieces))


def _expand_range(text: str) -> list[str]:
    """`01-03,7` is 01, 02, 03, 7."""
    ends = [(first, last or first) for first, _, last in (each.partition("-") for each in text.split(","))]
    return [str(number).zfill(len(first)) for first, last in ends for number in range(int(first), int(last) + 1)]


# ---- Kubernetes ----
def _of_kubernetes(environment: Mapping[str, str], config: StrategyConfig) -> Cluster:
    """Pod `i` of an Indexed Job is `<job>-<i>` under the headless service that is the pods' subdomain."""
    index, pod = environment.get("JOB_COMPLETION_INDEX", ""), environment.get("HOSTNAME", "").split(".")[0]
    if not index.isdecimal() or not pod.endswith(f"-{index}"):
        rule = "run in the pods of a Job with completionMode: Indexed, which sets JOB_COMPLETION_INDEX and the hostname"
        raise _error("strategy.cluster", rule, f"index {index or 'none'}, hostname {pod or 'none'}")
    if config.workers is None or int(index) >= config.workers:
        raise _error("strategy.workers", "be the Job's number of completions", config.workers)
    job = pod.removesuffix(f"-{index}")
    service = config.service or job
    return Cluster(tuple(f"{job}-{i}.{service}:{config.port}" for i in range(config.workers)), int(index))


def _error(key: str, rule: str, value: object, options: tuple = ()) -> ConfigError:
    return ConfigError([Problem(key, rule, value, options)])
