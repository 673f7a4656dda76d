# SPDX-License-Identifier: Apache-2.0
"""Several `vllm serve` on one machine, and one address in front of them.

    python examples/replicas/serve.py MODEL --replicas 2 --port 8000 -- --max-model-len 16384

Each replica gets a free port of this machine, and on NPUs its devices: `--devices "0,1;2,3"` is two
replicas of two NPUs. In front stands nginx (`apt install nginx-light`), or with `--front
vllm-router` vLLM's own router (`pip install vllm-router`). When a replica ends, the others serve
on; SIGTERM and Ctrl-C end all of them. docs/scaling.md says more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from string import Template

LOCAL = "127.0.0.1"
STOP_SECONDS = 60

Processes = dict[str, "subprocess.Popen[bytes]"]


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens at now."""
    sockets = [socket.create_server((LOCAL, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_replica(model: str, port: int, devices: str | None, extra: Sequence[str]):
    """Start `vllm serve` on its own devices, or with None on those that vLLM chooses."""
    command = [program("vllm"), "serve", model, "--host", LOCAL, "--port", str(port), *extra]
    visible = {"ASCEND_RT_VISIBLE_DEVICES": devices} if devices else {}
    return subprocess.Popen(command, env=os.environ | visible)


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOCAL}:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_until_healthy(replicas: Processes, ports: Sequence[int]) -> None:
    """Return when every replica answers; a replica that ends before is the end of all."""
    for (name, replica), port in zip(replicas.items(), ports, strict=True):
        while not is_healthy(port):
            if replica.poll() is not None:
                sys.exit(f"{name} ended with {replica.returncode} before it could answer.")
            time.sleep(1)


def nginx(host: str, port: int, ports: Sequence[int], folder: Path) -> list[str]:
    """Return the command of nginx, which gives each request to the replica with the fewest."""
    folder.chmod(0o755)  # nginx's workers are another user where it is started by root
    servers = "".join(f"server {LOCAL}:{each} max_fails=1 fail_timeout=10s; " for each in ports)
    template = Template(Path(__file__).with_name("nginx.conf").read_text())
    config = folder / "nginx.conf"
    config.write_text(template.substitute(HOST=host, PORT=port, SERVERS=servers))
    return [program("nginx"), "-p", str(folder), "-c", str(config), "-e", "stderr"]


def router(host: str, port: int, ports: Sequence[int], folder: Path) -> list[str]:
    """Return the command of vLLM's router: requests that begin alike go to the same replica."""
    urls = [f"http://{LOCAL}:{each}" for each in ports]
    command = [program("vllm-router"), "--host", host, "--port", str(port)]
    return [*command, "--policy", "cache_aware", "--worker-urls", *urls]


FRONTS = {"nginx": nginx, "vllm-router": router}


def program(name: str) -> str:
    """Return the path of a program, beside this Python or on the PATH."""
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join((beside, os.environ.get("PATH", ""), "/usr/sbin"))
    found = shutil.which(name, path=path)
    return found or sys.exit(f"{name} is not installed.")


def watch(replicas: Processes, front: subprocess.Popen[bytes]) -> str:
    """Say when a replica ends; return why nobody can be served any more."""
    while True:
        if front.poll() is not None:
            return f"The front ended with {front.returncode}."
        for name in [name for name, replica in replicas.items() if replica.poll() is not None]:
            code = replicas.pop(name).returncode
            print(f"{name} ended with {code}; {len(replicas)} serve on.", flush=True)
        if not replicas:
            return "No replica is left."
        time.sleep(0.5)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--devices", help='NPUs of each replica: "0,1;2,3"')
    parser.add_argument("--host", default=LOCAL, help="of the front")
    parser.add_argument("--port", type=int, default=8000, help="of the front")
    parser.add_argument("--front", choices=FRONTS, default="nginx")
    parser.epilog = "Options of `vllm serve` come after --."
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:own])
    arguments.extra = words[own + 1 :]
    if arguments.replicas < 1:
        parser.error(f"--replicas is {arguments.replicas}; expected 1 or more")
    devices = arguments.devices.split(";") if arguments.devices else [None] * arguments.replicas
    if len(devices) != arguments.replicas:
        parser.error(f"--devices names {len(devices)} groups for {arguments.replicas} replicas")
    arguments.devices = devices
    return arguments


def main() -> None:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    ports = free_ports(arguments.replicas)
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        front = FRONTS[arguments.front](arguments.host, arguments.port, ports, Path(folder))
        try:
            replicas: Processes = {}
            for number, (port, devices) in enumerate(zip(ports, arguments.devices, strict=True)):
                replica = start_replica(arguments.model, port, devices, arguments.extra)
                started.append(replica)
                replicas[f"Replica {number}"] = replica
                print(f"Replica {number}: process {replica.pid}, port {port}", flush=True)
            wait_until_healthy(replicas, ports)
            started.append(subprocess.Popen(front))
            print(f"Serving at http://{arguments.host}:{arguments.port}", flush=True)
            sys.exit(watch(replicas, started[-1]))
        finally:
            stop(started)


if __name__ == "__main__":
    main()
