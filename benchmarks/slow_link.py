"""Nodes joined by slow links, for benchmarks: network namespaces, veth pairs, `tc tbf`; all removed afterwards.

Two nodes are joined directly; more each have a link of their own to a bridge, which stands in a namespace too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RANKS, NODES = 4, 2
PREFIX = f"grace{os.getpid()}"
KEEP_UP = ("net.ipv4.tcp_congestion_control=reno", "net.ipv4.tcp_slow_start_after_idle=0")
"""So that bursts find the link as fast as it is: transfers of megabytes took 1.5 times what the rate allows with BBR, 1.1 with these."""


@contextmanager
def nodes(rate: str, count: int = NODES) -> Iterator[tuple[list[list[str]], str]]:
    """Namespaces of the nodes: what to put before a rank's command, and the link in words."""
    names = [f"{PREFIX}n{node}" for node in range(count)]
    bridge = f"{PREFIX}b"
    clean_up_when_ended()
    try:
        try:
            build(names, bridge, rate)
        except (OSError, subprocess.CalledProcessError) as error:
            yield [["env"]] * count, f"plain loopback, no slow link (namespaces refused: {error})"
            return
        words = f"{rate} between nodes (tc tbf)" if count == 2 else f"{rate} to and from each node (tc tbf)"
        yield [["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={name}"] for name in names], words
    finally:
        if shutil.which("ip"):
            for name in (*names, bridge):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def build(names: list[str], bridge: str, rate: str) -> None:
    for name in names:
        command("ip", "netns", "add", name)
    if len(names) == 2:
        command("ip", "link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
    else:
        command("ip", "netns", "add", bridge)
        command("ip", "-n", bridge, "link", "add", "hub", "type", "bridge")
        command("ip", "-n", bridge, "link", "set", "hub", "up")
        for node, name in enumerate(names):
            port = f"port{node}"
            command("ip", "link", "add", name, "netns", name, "type", "veth", "peer", "name", port, "netns", bridge)
            command("ip", "-n", bridge, "link", "set", port, "master", "hub")
            command("ip", "-n", bridge, "link", "set", port, "up")
            shape(bridge, port, rate)  # what comes to the node
    for node, name in enumerate(names):
        command("ip", "-n", name, "addr", "add", f"10.77.0.{node + 1}/24", "dev", name)
        command("ip", "-n", name, "link", "set", "lo", "up")
        command("ip", "-n", name, "link", "set", name, "up")
        shape(name, name, rate)
        for setting in KEEP_UP:
            command("ip", "netns", "exec", name, "sysctl", "-w", setting)


def shape(namespace: str, device: str, rate: str) -> None:
    command("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms")


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def start(script: str, rank: int, prefix: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """One rank of a benchmark: the script with this process's arguments, `--rank` and `--folder`."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen([*prefix, sys.executable, script, *sys.argv[1:], "--rank", str(rank), "--folder", str(folder)], env=environment)


def before_others() -> None:
    """Let this process have a core as soon as it wants one, where the system allows it. A rank that mostly waits for links then finds them
    as they are, whatever else the machine does. Threads that it starts later are alike."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def finish(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all ranks; where one fails, stop the others and this program."""
    clean_up_when_ended()
    try:
        while any(process.poll() is None for process in ranks):
            if any(process.poll() for process in ranks):
                break
            time.sleep(0.1)
    finally:
        for process in ranks:
            process.kill()
    if any(codes := [process.wait() for process in ranks]):
        sys.exit(f"ranks ended with {codes}")


def clean_up_when_ended() -> None:
    """Ended from outside, this program still leaves no namespace and no rank behind."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice: the second would end the cleaning
        sys.exit("ended from outside")

    signal.signal(signal.SIGTERM, end)


def bytes_on_link() -> int:
    """Bytes that this node has put on the slow link; 0 on plain loopback."""
    name = os.environ.get("GLOO_SOCKET_IFNAME", "")
    listing = Path("/proc/net/dev").read_text()
    rows = [line.split(":")[1].split() for line in listing.splitlines() if line.strip().startswith(f"{name}:")] if name else []
    return int(rows[0][8]) if rows else 0
