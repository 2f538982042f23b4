"""Which processes train together: what TF_CONFIG, SLURM and Kubernetes tell, and that all of them come."""

import json
import socket
import struct
import threading
import time

import pytest

from bert_mtl.cluster import Cluster, expand_hosts, find_cluster
from bert_mtl.config import StrategyConfig, TrainConfig
from bert_mtl.rendezvous import meet
from conf import entry
from conf.errors import ConfigError

SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "n[9-10],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}
POD = {"JOB_COMPLETION_INDEX": "1", "HOSTNAME": "imdb-1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture(scope="module")
def strategy():
    config = entry.compose("train", ["strategy=multi_worker"], TrainConfig).strategy

    def changed(**keys) -> StrategyConfig:
        return config.model_copy(update=keys)

    return changed


def tf_config(cluster, kind="worker", index: object = 0) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_tf_config_ranks_the_chief_before_the_workers(strategy):
    cluster = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    for kind, index, rank in (("chief", 0, 0), ("worker", 0, 1), ("worker", "1", 2)):
        assert find_cluster(strategy(), tf_config(cluster, kind, index)) == (("a:1", "b:1", "c:1"), rank)
    assert find_cluster(strategy(), tf_config({"worker": ["b:1", "c:1"]}, index=1)) == (("b:1", "c:1"), 1)


def test_tasks_of_slurm_are_ranked_in_the_order_of_its_hosts_each_with_a_port(strategy):
    addresses = ("n9:8470", "n9:8471", "n10:8470", "n10:8471", "login:8470")
    assert find_cluster(strategy(), SRUN) == (addresses, 3)
    one = SRUN | {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_PROCID": "1"}
    assert find_cluster(strategy(port=5000), one | {"SLURM_NODEID": "0"}) == (("127.0.0.1:5000", "127.0.0.1:5001"), 1)


def test_hosts_of_slurm_are_expanded_in_their_order():
    assert list(expand_hosts("n[08-10,2],gpu-a[1-2]b[3,5],x.y")) == [
        *("n08", "n09", "n10", "n2"),
        *("gpu-a1b3", "gpu-a1b5", "gpu-a2b3", "gpu-a2b5"),
        "x.y",
    ]


def test_pods_of_an_indexed_job_find_each_other_under_its_headless_service(strategy):
    assert find_cluster(strategy(workers=2), POD) == (("imdb-0.imdb:8470", "imdb-1.imdb:8470"), 1)
    named = find_cluster(strategy(workers=3, service="workers", port=99), POD | {"HOSTNAME": "imdb-1.workers.ns.svc"})
    assert named == (("imdb-0.workers:99", "imdb-1.workers:99", "imdb-2.workers:99"), 1)


def test_the_cluster_is_found_by_tf_config_before_slurm_before_kubernetes(strategy):
    own = tf_config({"worker": ["b:1"]})
    assert find_cluster(strategy(), POD | SRUN | own).addresses == ("b:1",)
    assert find_cluster(strategy(), POD | SRUN).addresses[0] == "n9:8470"
    assert find_cluster(strategy(cluster="kubernetes", workers=2), POD | SRUN | own).rank == 1


CLUSTER = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("keys", "environment", "message"),
    [
        ({}, {}, "strategy.cluster must find its workers by TF_CONFIG, be started by SLURM's srun, or run in the pods"),
        ({}, {"TF_CONFIG": "{worker"}, 'TF_CONFIG must be JSON such as {"cluster": .*; got {worker.'),
        ({"cluster": "tf_config"}, {}, "TF_CONFIG must be JSON such as .*; got null"),
        ({}, {"TF_CONFIG": '{"cluster": {}}'}, "TF_CONFIG must have a cluster and a task"),
        ({}, tf_config(CLUSTER | {"ps": ["c:1"]}), "TF_CONFIG.cluster must have workers and a chief only; got ps"),
        (
            {},
            tf_config(CLUSTER, "evaluator"),
            "TF_CONFIG.task.type must be a job of .*; got evaluator. Options: worker",
        ),
        ({}, tf_config(CLUSTER, index=2), "TF_CONFIG.task.index must be the place .*; got 2. Options: 0, 1"),
        ({}, tf_config(CLUSTER, index=None), "TF_CONFIG.task.index must be the place .*; got null"),
        (
            {},
            tf_config({"worker": ["a", "b:1"]}),
            r"TF_CONFIG.cluster.worker must be a list of host:port; got \[a, b:1",
        ),
        ({}, tf_config({"worker": ["a:1", "a:1"]}), "TF_CONFIG.cluster must name every worker once"),
        ({"workers": 3}, tf_config(CLUSTER), "strategy.workers must be null or the cluster's 2; got 3"),
        ({"cluster": "slurm"}, {"SLURM_PROCID": "0"}, "must be started by srun, which sets SLURM_STEP_NODELIST"),
        ({}, SRUN | {"SLURM_PROCID": "5"}, "SLURM_PROCID must be one of the step's 5 tasks, from 0 on; got"),
        ({}, SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2"}, "SLURM_STEP_TASKS_PER_NODE must have a count for each node"),
        ({}, SRUN | {"SLURM_STEP_NODELIST": "n[a-b]"}, "SLURM_STEP_TASKS_PER_NODE must have a count for each node"),
        (
            {},
            SRUN | {"SLURM_NODEID": "0", "SLURM_DISTRIBUTION": "cyclic"},
            r"srun --distribution must be block, so that task 3 of 2\(x2\),1 is on node 1 of .*; got cyclic",
        ),
        ({}, POD, "strategy.workers must be the Job's number of completions; got null"),
        ({"workers": 1}, POD, "strategy.workers must be the Job's number of completions; got 1"),
        (
            {"workers": 2},
            POD | {"JOB_COMPLETION_INDEX": ""},
            "must run in the pods of a Job with completionMode: Indexed",
        ),
    ],
)
def test_an_environment_that_tells_no_cluster_is_refused(strategy, keys, environment, message):
    with pytest.raises(ConfigError, match=message):
        find_cluster(strategy(**keys), environment)


# All workers come.


def cluster_here(workers: int) -> tuple[str, ...]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return tuple(f"127.0.0.1:{port}" for port in ports)


def started(addresses, rank: int, timeout: float) -> tuple[threading.Thread, list]:
    """A worker in a thread, and what becomes of it."""
    became: list = []

    def run() -> None:
        try:
            became.append(meet(Cluster(addresses, rank), timeout))
        except ConfigError as error:
            became.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, became


def test_workers_wait_for_the_chief_and_strangers_do_not_count():
    addresses = cluster_here(3)
    threads = [started(addresses, rank, 20) for rank in (2, 0)]
    with calling(int(addresses[0].split(":")[1])) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\n")
        time.sleep(0.2)
        assert not any(became for _, became in threads)
        threads.append(started(addresses, 1, 20))
        for thread, became in threads:
            thread.join()
            assert became == [None]


@pytest.mark.parametrize("reset", [False, True])
def test_a_worker_that_came_and_died_is_waited_for_anew(reset):
    addresses = cluster_here(3)
    chief = started(addresses, 0, 20)
    with calling(int(addresses[0].split(":")[1])) as dying:
        dying.sendall(b"bert_mtl worker 1\n")
        if reset:
            dying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    other = started(addresses, 2, 20)
    time.sleep(1)
    assert chief[1] == other[1] == []
    again = started(addresses, 1, 20)
    for thread, became in (chief, other, again):
        thread.join()
        assert became == [None]


def calling(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:
            time.sleep(0.02)


def test_a_worker_that_does_not_come_is_named_by_the_chief_and_a_chief_by_the_workers():
    addresses = cluster_here(3)
    threads = [started(addresses, rank, 1) for rank in (0, 2)]
    for thread, _ in threads:
        thread.join()
    rule = "strategy.timeout must be enough for all 3 workers to come; worker {} did not; got 1."
    assert threads[0][1] == [rule.format(f"1 ({addresses[1]})")]
    assert threads[1][1] == [rule.format(f"0 ({addresses[0]})")]


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"strategy.cluster must give the chief a free port .*; got {address}"):
            meet(Cluster((address, "127.0.0.1:1"), 0), 1)
