"""All workers meet before TensorFlow starts, whose chief would wait for ever for one that does not come, and hear no
signal but SIGKILL."""

import socket
import time

from bert_mtl.cluster import Cluster
from conf.errors import ConfigError, Problem

POLL = 0.5  # seconds between tries
COME, GO = b"bert_mtl worker %d\n", b"go\n"


def meet(cluster: Cluster, timeout: float) -> None:
    """Returns once all workers are here. Raises ConfigError naming the missing ones after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    missing = _gather(cluster, deadline) if cluster.rank == 0 else _join(cluster, deadline)
    if missing:
        told = ", ".join(f"{rank} ({cluster.addresses[rank]})" for rank in missing)
        rule = f"be enough for all {len(cluster.addresses)} workers to come; worker {told} did not"
        raise ConfigError([Problem("strategy.timeout", rule, timeout)])


def _gather(cluster: Cluster, deadline: float) -> list[int]:
    """What the chief does; returns the ranks of those who did not come."""
    port = int(cluster.addresses[0].rpartition(":")[2])
    came: dict[int, socket.socket] = {}
    expected = {COME % rank: rank for rank in range(1, len(cluster.addresses))}
    try:
        with _listen(cluster.addresses[0], port) as server:
            while (left := deadline - time.monotonic()) > 0 and not _all_here(came, len(expected)):
                server.settimeout(min(POLL, left))
                try:
                    caller, _ = server.accept()
                    caller.settimeout(POLL)
                    rank = expected.get(_line(caller))
                except OSError:
                    continue
                if rank is None:  # a stranger's call
                    caller.close()
                else:
                    came[rank] = caller
        missing = sorted(set(expected.values()) - set(came))
        for caller in came.values():
            if not missing:
                caller.sendall(GO)
        return missing
    finally:
        for caller in came.values():
            caller.close()


def _all_here(came: dict[int, socket.socket], count: int) -> bool:
    """Whether `count` workers are here, once those who have gone again are forgotten."""
    for rank in [rank for rank, caller in came.items() if _gone(caller)]:
        came.pop(rank).close()
    return len(came) == count


def _gone(call: socket.socket) -> bool:
    call.setblocking(False)
    try:
        return not call.recv(1, socket.MSG_PEEK)
    except BlockingIOError:  # nothing to read: it waits
        return False
    except OSError:
        return True
    finally:
        call.settimeout(POLL)


def _listen(address: str, port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:  # the port is taken, or no port
        raise ConfigError([Problem("strategy.cluster", f"give the chief a free port ({error})", address)]) from error


def _join(cluster: Cluster, deadline: float) -> list[int]:
    """What the others do; returns the chief's rank where it does not answer."""
    host, _, port = cluster.addresses[0].rpartition(":")
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left) as call:
                call.sendall(COME % cluster.rank)
                call.settimeout(left)
                if _line(call) == GO:
                    return []
        except OSError:  # the chief, or its name, is not there yet
            pass
        time.sleep(min(POLL, max(0.0, deadline - time.monotonic())))
    return [0]


def _line(call: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n") and len(found) < len(COME) + 20 and (more := call.recv(64)):
        found += more
    return found
