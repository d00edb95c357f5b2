"""Parts of the native stack that need no running stack."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stack import __main__ as command
from stack import (
    control,
    envoy,
    envoy_config,
    guard,
    ports,
)
from stack.child import (
    FAILED,
    MAX_DELAY_SECONDS,
    MAX_FAILURES,
    RESTARTING,
    SERVING,
    STARTING,
    Child,
)
from stack.display import (
    NonBlockingOutput,
    PlainDisplay,
)
from stack.layout import ChildSpec
from stack.runner import StartError
from tests.support.stack import wait_for
from tools import dev_certs


def make_child(folder: Path, *code: str) -> Child:
    command = (sys.executable, "-c", *code) if code else ("true",)
    return Child(ChildSpec("thing", command, {"THING_PORT": "1"}, port=1), folder)


# Processes


def test_a_hung_service_has_time_for_its_tracebacks(tmp_path: Path) -> None:
    """It is killed when it has written them, not before, however slow the machine is."""
    code = """
import signal, time
def write(*_):
    time.sleep(1)
    print("a traceback", flush=True)
signal.signal(signal.SIGUSR1, write)
print("ready", flush=True)
while True:
    time.sleep(60)
"""
    command = (sys.executable, "-c", code)
    child = Child(ChildSpec("thing", command, {}, port=1, cluster="thing"), tmp_path)
    child.start()
    pid = child.pid
    assert pid is not None
    wait_for("the process", lambda: child.last_log_line() == "ready", 60)
    os.kill(pid, signal.SIGSTOP)
    child.kill_hung()
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert child.last_log_line() == "a traceback"


def test_a_process_that_was_stopped_makes_no_signal_up() -> None:
    """A runner that is stopped and continued goes on."""
    code = """
import signal
from stack import guard
signal.pthread_sigmask(signal.SIG_BLOCK, guard.WAITED_SIGNALS)
print("ready", flush=True)
print([guard.wait_for_signal(guard.WAITED_SIGNALS, 0.5) for _ in range(3)])
print(guard.wait_for_signal({signal.SIGTERM}, 60))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as waits:
        assert waits.stdout
        waits.stdout.readline()
        os.kill(waits.pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(waits.pid, signal.SIGCONT)
        assert waits.stdout.readline() == "[None, None, None]\n"
        waits.terminate()
        assert waits.stdout.readline() == f"{signal.SIGTERM.value}\n"


# Configuration


def test_the_native_config_differs_in_addresses_alone() -> None:
    chosen = ports.choose_ports("30000", None)
    resources = envoy_config.native_config(chosen)["static_resources"]
    listeners = {
        one["name"]: one["address"]["socket_address"]
        for one in resources["listeners"]
        if "internal_listener" not in one
    }
    assert listeners == {
        "grpc": {"address": "127.0.0.1", "port_value": chosen.envoy},
        "metrics": {"address": "127.0.0.1", "port_value": chosen.envoy_metrics},
    }
    text = next(one for one in resources["clusters"] if one["name"] == "text")
    assert text["type"] == "STATIC"
    assert text["health_checks"][0]["grpc_health_check"] == {
        "service_name": "ml.TransformersService"
    }
    (host,) = text["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert host["endpoint"]["address"]["socket_address"]["port_value"] == chosen.text


def test_optional_parts_of_the_config_are_asked_for(tmp_path: Path) -> None:
    options = envoy_config.EnvoyOptions(tmp_path, ("collector.example", 4444))
    resources = envoy_config.native_config(ports.Ports(), options)["static_resources"]
    listeners = {one["name"]: one for one in resources["listeners"]}
    assert set(listeners) == {"grpc", "grpc_tls", "grpc_mtls", "metrics", "wait"}
    assert listeners["grpc_mtls"]["address"]["socket_address"]["port_value"] == 50054
    assert f"{tmp_path}/server.key" in str(listeners["grpc_tls"])
    # The three serve the same.
    filters = [listeners[name]["filter_chains"][0]["filters"] for name in sorted(listeners)[:3]]
    assert filters[0] == filters[1] == filters[2]
    assert "tracing" in filters[0][-1]["typed_config"]
    (collector,) = (one for one in resources["clusters"] if one["name"] == "otel_collector")
    assert "collector.example" in str(collector)


@pytest.mark.parametrize("everything", [False, True])
def test_envoy_accepts_the_config(tmp_path: Path, everything: bool) -> None:
    source, options = tmp_path / "envoy.json", envoy_config.EnvoyOptions()
    if everything:
        dev_certs.make_certificates(tmp_path)
        options = envoy_config.EnvoyOptions(tmp_path, ("localhost", 4317))
    envoy_config.write_native_config(source, ports.Ports(), options)
    done = subprocess.run(
        [envoy.find_binary(), "--mode", "validate", "--log-level", "warning", "-c", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "eprecated" not in done.stderr


def test_a_missing_envoy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envoy", None)
    with pytest.raises(envoy.EnvoyMissingError, match="make setup"):
        envoy.find_binary()


# Ports


def test_default_ports() -> None:
    chosen = ports.choose_ports(None, None)
    assert (chosen.envoy, chosen.provider, chosen.text) == (50051, 50052, 50062)


def test_free_ports_are_free_and_differ() -> None:
    chosen = ports.choose_ports("auto", 0)
    numbers = list(vars(chosen).values())
    assert len(set(numbers)) == len(numbers)
    assert all(ports.is_free(port) for port in numbers)


def test_free_ports_leave_envoy_s_own_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "free_ports", lambda: iter(range(20_000, 21_000)))
    numbers = list(vars(ports.choose_ports("auto", 20_003)).values())
    assert numbers[0] == 20_003
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("base", "port"), [(None, 50052), ("30000", 30_005)])
def test_a_port_that_the_stack_has_already_is_refused(base: str | None, port: int) -> None:
    with pytest.raises(ValueError, match=f"port {port} is what .* listens on"):
        ports.choose_ports(base, port)


@pytest.mark.parametrize("base", ["0", "80", "65530", "-1", "x", ""])
def test_a_bad_base_port_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match="--base-port"):
        ports.choose_ports(base, None)


def test_a_port_is_taken_while_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
        assert ports.accepts(port)
    assert ports.is_free(port)
    assert not ports.accepts(port)


# The command line


def test_the_application_is_the_provider_unless_told_otherwise(tmp_path: Path) -> None:
    for folder in ("text", "vision"):
        (tmp_path / folder).mkdir()

    def planned(*arguments: str) -> tuple[bool, str]:
        options = command.parse_arguments(["up", "--models", str(tmp_path), *arguments])
        layout = command.plan(options)
        return layout.own_provider, layout.provider_address

    assert planned() == (True, "127.0.0.1:50052")
    assert planned("--no-provider") == (False, "localhost:50052")
    assert planned("--provider", "host:1") == (False, "host:1")


def test_a_stack_without_provider_needs_no_text_models(tmp_path: Path) -> None:
    (tmp_path / "vision").mkdir()
    options = ["up", "--models", str(tmp_path)]
    command.plan(command.parse_arguments([*options, "--no-provider"]))
    with pytest.raises(StartError, match="make models"):
        command.plan(command.parse_arguments(options))


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_out_of_range_is_refused(port: str) -> None:
    with pytest.raises(SystemExit):
        command.parse_arguments(["up", "--port", port])


# Children


def test_restarts_come_at_once_then_ever_later_up_to_a_cap(tmp_path: Path) -> None:
    child = make_child(tmp_path)
    told = [child.ended(1) for _ in range(12)]
    assert "at once" in told[0]
    assert "in 0.5 s" in told[1]
    assert "in 1 s" in told[2]
    assert f"in {MAX_DELAY_SECONDS:g} s" in told[-1]


def test_a_child_that_keeps_dying_is_called_failed(tmp_path: Path) -> None:
    child = make_child(tmp_path)
    states = []
    for _ in range(MAX_FAILURES):
        child.ended(1)
        states.append(child.state)
    assert states == [RESTARTING] * (MAX_FAILURES - 1) + [FAILED]


def test_a_child_has_failed_until_it_serves_again(tmp_path: Path) -> None:
    """Also while it is tried again, so that calls do not wait for a start that fails."""
    child = make_child(tmp_path)
    for _ in range(MAX_FAILURES):
        assert not child.failed
        child.ended(1)
    assert child.failed
    child.state = STARTING
    assert child.failed
    child.state = SERVING
    assert not child.failed


def test_the_end_of_a_child_is_told_with_its_last_words(tmp_path: Path) -> None:
    child = make_child(tmp_path)
    child.log.write_text('first\n{"level": "ERROR", "message": "no more memory"}\n\n')
    assert child.ended(3).startswith("thing exited with code 3 (last log line: no more memory)")
    child.log.write_text("plain words")
    assert child.ended(-9).startswith("thing was killed by SIGKILL (last log line: plain words)")


def test_a_child_has_its_settings_its_log_and_no_terminal(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['THING_PORT'], repr(sys.stdin.read()), os.getsid(0))"
    child = make_child(tmp_path, code)
    child.start()
    pid = child.pid
    assert pid is not None
    os.waitpid(pid, 0)
    assert child.log.read_text().split() == ["1", "''", str(pid)]
    child.ended(0)


def test_a_full_log_moves_aside_while_its_process_writes_on(tmp_path: Path) -> None:
    code = "import sys; print('old', flush=True); sys.stdin.read(); import time; time.sleep(600)"
    child = make_child(tmp_path, code)
    child.log.write_text("x" * 100)
    child.start()
    child.rotate_log(at=100)
    assert child.log.with_suffix(".log.1").read_text().startswith("x" * 100)
    assert child.log.stat().st_size < 100
    child.signal(signal.SIGKILL)
    assert child.pid is not None
    os.waitpid(child.pid, 0)
    child.ended(-9)


def test_yesterday_s_log_moves_aside(tmp_path: Path) -> None:
    child = make_child(tmp_path)
    child.log.write_text("yesterday")
    child.rotate_log(at=0)
    assert not child.log.exists()
    assert child.log.with_suffix(".log.1").read_text() == "yesterday"


PLATFORMS = pytest.mark.parametrize("platform", ["linux", "darwin"])


@PLATFORMS
def test_a_process_is_named_by_pid_and_start(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert control.start_ticks(os.getpid())
    assert control.start_ticks(os.getpid()) == control.start_ticks(os.getpid())
    with subprocess.Popen(["true"]) as process:
        pass
    assert control.start_ticks(process.pid) is None


@PLATFORMS
def test_a_pending_signal_is_taken_once(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        assert guard.wait_for_signal({signal.SIGUSR2}, 0.01) is None
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        assert guard.wait_for_signal({signal.SIGUSR2}, 60) == signal.SIGUSR2
        assert guard.wait_for_signal({signal.SIGUSR2}, 0.01) is None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_reaping_tells_exit_codes_and_signals() -> None:
    failed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    killed.kill()
    os.waitid(os.P_PID, failed.pid, os.WEXITED | os.WNOWAIT)
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    ended = guard.reap()
    failed.returncode = killed.returncode = 0
    assert (ended[failed.pid], ended[killed.pid]) == (3, -signal.SIGKILL)


# Output


def test_output_into_a_full_pipe_is_dropped_and_never_blocks() -> None:
    reader, writer = os.pipe()
    output = NonBlockingOutput(writer)
    for _ in range(1000):
        output.write("x" * 10_000)
    os.close(reader)
    output.write("nobody is there any more")
    os.close(writer)
    output.write("not even the pipe")


def test_output_comes_in_order_once_the_pipe_is_read() -> None:
    reader, writer = os.pipe()
    output = NonBlockingOutput(writer)
    text = "".join(f"{number}\n" for number in range(20_000))
    output.write(text)
    read = b""
    while len(read) < len(text):
        read += os.read(reader, 1 << 20)
        output.flush()
    assert read.decode() == text
    os.close(reader)
    os.close(writer)


def test_the_plain_display_tells_each_change_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    display = PlainDisplay(NonBlockingOutput(writer))
    child = make_child(tmp_path)
    display.show([child])
    display.show([child])
    child.state = SERVING
    display.show([child])
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert [line.split()[:2] for line in lines] == [["thing", "starting"], ["thing", "serving"]]


def test_a_state_file_that_is_damaged_counts_as_none(tmp_path: Path) -> None:
    state_file = tmp_path / "stack.json"
    for content in (b"", b"[]", b"{", b"\xff", b"[" * 500_000, b'{"pid": {}}', b'{"pid": 1e400}'):
        state_file.write_bytes(content)
        assert control.find(state_file) is None
    state_file.unlink()
    os.mkfifo(state_file)
    assert control.find(state_file) is None


def test_a_process_says_on_its_page_whether_it_was_drained(tmp_path: Path) -> None:
    page = [b"# HELP replica_drained 1 while\nreplica_drained 0.0\nother 1.0\n"]

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page[0])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        spec = ChildSpec("thing", ("true",), {}, port=1, metrics_port=server.server_port)
        child = Child(spec, tmp_path)
        assert not child.is_drained()
        page[0] = page[0].replace(b"replica_drained 0.0", b"replica_drained 1.0")
        assert child.is_drained()
        server.shutdown()
    assert not child.is_drained()
    assert not make_child(tmp_path).is_drained()


def test_drain_needs_a_service_and_a_running_stack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["drain"], ["drain", "model_mgmt"], ["status", "text"]):
        with pytest.raises(SystemExit):
            command.parse_arguments(wrong)
    capsys.readouterr()
    options = command.parse_arguments(["drain", "text", "--run-dir", str(tmp_path)])
    assert command.drain(options) == 1
    assert capsys.readouterr().out == "no stack is running\n"


def test_the_file_of_desired_models_is_there_and_named_to_its_service(tmp_path: Path) -> None:
    (tmp_path / "vision").mkdir()
    file = tmp_path / "models.toml"
    options = ["up", "--models", str(tmp_path), "--no-provider", "--base-port", "auto"]
    named = command.parse_arguments([*options, "--models-file", str(file)])
    with pytest.raises(StartError, match=r"--models-file: there is no .*models.toml"):
        command.plan(named)
    file.write_text("")
    (service,) = (
        child
        for child in command.plan(named).children(Path("envoy"))
        if child.name.startswith("model_mgmt")
    )
    assert service.environment["MODEL_MGMT_MODELS_FILE"] == str(file)
