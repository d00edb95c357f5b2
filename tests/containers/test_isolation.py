"""Who can reach the containers, what they can reach, and where they can write."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator

import grpc
import psutil
import pytest

from tests.containers.containers import ContainerSet, execute, python

INTERNAL_METHODS = ("Load", "Unload", "List", "Admit")
# Every port that one of the containers listens on.
PORTS = (50051, 50052, 50061, 50062, 50063, 50064, 9461, 9462, 9463, 9464, 9901)
WRITABLE = {
    "model_mgmt": {"/tmp", "/var/cache/ml", "/var/lib/ml"},
    "text": {"/tmp", "/var/cache/ml"},
    "vision": {"/tmp", "/var/cache/ml"},
    "http": {"/tmp"},
    "envoy": {"/tmp"},
    "provider": {"/tmp"},
}
# Mounted by the engine in every container: shared memory, devices, the kernel's file systems.
ENGINES_OWN = ("/dev", "/proc", "/sys")

CONNECT = """
import socket, sys
for address in sys.argv[1:]:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 3).close()
        print(address, "connected")
    except OSError as error:
        pass
"""
RESOLVE = """
import socket, sys
for name in sys.argv[1:]:
    try:
        print(name, socket.gethostbyname(name))
    except OSError:
        pass
"""


@pytest.fixture
def listener() -> Iterator[int]:
    """A port on all addresses of this machine that accepts connections."""
    with socket.create_server(("0.0.0.0", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


def machine_addresses() -> list[str]:
    """Every IPv4 address of this machine but the loopback ones."""
    addresses = (a for group in psutil.net_if_addrs().values() for a in group)
    found = [a.address for a in addresses if a.family == socket.AF_INET]
    return [address for address in found if not address.startswith("127.")]


def reachable_addresses(containers: ContainerSet, service: str) -> list[str]:
    """The addresses of a container that this machine has a link to.

    Packets to the others would go to its router, which may respond for any address.
    """
    found = []
    for network in containers.one(service).attrs["NetworkSettings"]["Networks"].values():
        link = ipaddress.ip_interface(f"{network['IPAddress']}/{network['IPPrefixLen']}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((str(link.ip), 9))  # sends nothing, only chooses the route
            if ipaddress.ip_address(probe.getsockname()[0]) in link.network:
                found.append(str(link.ip))
    return found


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


def test_the_host_reaches_no_service(containers: ContainerSet) -> None:
    # Both are in the internal network alone; model_mgmt and Envoy have another one each.
    assert reachable_addresses(containers, "text") == []
    assert reachable_addresses(containers, "vision") == []
    (address,) = reachable_addresses(containers, "model_mgmt")
    assert [port for port in PORTS if accepts(address, port)] == []


def test_the_host_reaches_envoy_and_never_its_admin_page(containers: ContainerSet) -> None:
    assert accepts("127.0.0.1", containers.port)
    (address,) = reachable_addresses(containers, "envoy")
    assert accepts(address, 50051)
    assert not accepts(address, 9901)


def test_envoy_is_published_on_loopback_alone(containers: ContainerSet) -> None:
    assert [a for a in machine_addresses() if accepts(a, containers.port)] == []


@pytest.mark.parametrize("method", INTERNAL_METHODS)
def test_internal_rpcs_are_not_routed(containers: ContainerSet, method: str) -> None:
    with grpc.insecure_channel(containers.address) as channel:
        call = channel.unary_unary(f"/ml.internal.ModelWorker/{method}")
        with pytest.raises(grpc.RpcError) as failure:
            call(b"", timeout=30)
    assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("service", ["text", "vision"])
def test_no_egress(containers: ContainerSet, service: str, listener: int) -> None:
    container = containers.one(service)
    targets = [f"{address}:{listener}" for address in machine_addresses()]
    code, output = python(container, CONNECT, "1.1.1.1:443", "model_mgmt:50061", *targets)
    assert (code, output.split()) == (0, ["model_mgmt:50061", "connected"])
    code, output = python(container, RESOLVE, "example.com", "model_mgmt", "host.docker.internal")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == ["model_mgmt"]


def test_model_mgmt_reaches_this_machine(containers: ContainerSet, listener: int) -> None:
    target = f"host.docker.internal:{listener}"
    code, output = python(containers.one("model_mgmt"), CONNECT, target)
    assert (code, output.split()) == (0, [target, "connected"])


def test_mediapipes_reports_are_refused_at_once(containers: ContainerSet) -> None:
    code, output = python(containers.one("vision"), RESOLVE, "play.googleapis.com")
    assert (code, output.split()) == (0, ["play.googleapis.com", "127.0.0.1"])


@pytest.mark.parametrize("service", WRITABLE)
def test_only_volumes_are_mounted_to_be_written(containers: ContainerSet, service: str) -> None:
    code, mounts = execute(containers.one(service), "cat", "/proc/mounts")
    assert code == 0
    rows = [line.split() for line in mounts.splitlines()]
    writable = {place for _, place, _, options, *_ in rows if options.split(",")[0] == "rw"}
    assert {place for place in writable if not place.startswith(ENGINES_OWN)} == WRITABLE[service]


@pytest.mark.parametrize("service", WRITABLE)
def test_writing_elsewhere_fails_for_root_too(containers: ContainerSet, service: str) -> None:
    container = containers.one(service)
    script = (
        "for d in / /etc /usr/local/bin /opt /var /var/tmp /run /root /home; do"
        ' ( : > "$d/probe" ) 2>/dev/null && echo "$d"; done; true'
    )
    assert execute(container, "sh", "-c", script, user="0") == (0, "")
    for folder in WRITABLE[service]:
        script = f": > {folder}/probe && rm {folder}/probe"
        assert execute(container, "sh", "-c", script) == (0, ""), folder


@pytest.mark.parametrize("service", WRITABLE)
def test_processes_have_no_privileges(containers: ContainerSet, service: str) -> None:
    code, status = execute(containers.one(service), "cat", "/proc/1/status")
    assert code == 0
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    assert "0" not in facts["Uid"].split()
    assert facts["NoNewPrivs"] == "1"
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(facts[kind], 16) == 0, kind
