"""`python -m stack up | status | down | drain SERVICE`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from stack import (
    callers,
    control,
    envoy,
    envoy_config,
    guard,
    ports,
)
from stack.callers import CallersError
from stack.layout import (
    ROOT,
    Layout,
)
from stack.runner import (
    Runner,
    StartError,
)

# The services that can be drained: those that hold models.
DRAINABLE = ("text", "vision")
# Where the application serves its model cache.
APPLICATION_PROVIDER = f"localhost:{ports.Ports.provider}"


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m stack", description=__doc__)
    parser.add_argument("command", choices=("up", "status", "down", "drain"))
    parser.add_argument(
        "service", nargs="?", choices=DRAINABLE, help="for drain: takes no new calls from now on"
    )
    parser.add_argument("--undo", action="store_true", help="for drain: takes calls again")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "run", help="logs, caches, state")
    parser.add_argument(
        "--state-file", type=Path, help="JSON with addresses and pids (default: RUN_DIR/stack.json)"
    )
    up = parser.add_argument_group("up")
    up.add_argument("--models", type=Path, default=ROOT / "models", help="the model folder")
    up.add_argument(
        "--models-file",
        metavar="FILE",
        type=Path,
        help="models.toml: models that are loaded at the start and when the file changes",
    )
    up.add_argument("--port", type=_port, help="Envoy's port (default 50051), 0 for a free one")
    up.add_argument("--base-port", help="first of consecutive ports, or auto for free ones")
    up.add_argument("--no-provider", action="store_true", help="do not start a file provider")
    up.add_argument(
        "--provider",
        metavar="HOST:PORT",
        help=f"a running file provider (e.g. {APPLICATION_PROVIDER})",
    )
    up.add_argument(
        "--tls",
        metavar="DIR",
        type=Path,
        help=f"serve TLS and mTLS too, with {', '.join(envoy_config.TLS_FILES)} of this folder",
    )
    up.add_argument(
        "--hang-seconds",
        type=float,
        default=60.0,
        help="time after which a process that no longer serves is killed (default 60)",
    )
    up.add_argument(
        "--wait-seconds",
        type=int,
        default=envoy_config.WAIT_SECONDS,
        help="longest wait of a call for a service that is starting (default 30)",
    )
    up.add_argument(
        "--callers",
        metavar="DIR",
        type=Path,
        help="who may call: api_keys.txt, and client_names.txt for mTLS, of this folder",
    )
    up.add_argument(
        "--address",
        default=ports.LOOPBACK,
        help="where the ports for callers listen (default 127.0.0.1; 0.0.0.0 is everywhere)",
    )
    up.add_argument(
        "--exit-with-parent",
        metavar="PID",
        type=int,
        nargs="?",
        const=0,
        help="stop when the starting process ends (PID: its id, as it may have ended already)",
    )
    options = parser.parse_args(arguments)
    if (options.command == "drain") != bool(options.service):
        parser.error(f"drain needs one of {', '.join(DRAINABLE)}, and the others need none")
    options.run_dir = options.run_dir.resolve()
    options.state_file = (options.state_file or options.run_dir / "stack.json").resolve()
    return options


def plan(options: argparse.Namespace) -> Layout:
    """The layout of the stack to start.

    Raises:
        StartError: the options or the machine do not allow it; the message says why.
    """
    try:
        chosen = ports.choose_ports(options.base_port, options.port)
    except ValueError as error:
        raise StartError(str(error)) from None
    own_provider = not (options.no_provider or options.provider)
    own_address = f"{ports.LOOPBACK}:{chosen.provider}"
    layout = Layout(
        ports=chosen,
        models=options.models.resolve(),
        run_dir=options.run_dir,
        provider_address=own_address if own_provider else options.provider or APPLICATION_PROVIDER,
        own_provider=own_provider,
        state_file=options.state_file,
        envoy_options=_envoy_options(options),
        models_file=_models_file(options),
    )
    for needed in ("vision", *(("text",) if own_provider else ())):
        if not (layout.models / needed).is_dir():
            raise StartError(
                f"there is no model folder {layout.models / needed}: run `make models`"
            )
    return layout


def _models_file(options: argparse.Namespace) -> Path | None:
    path: Path | None = options.models_file
    if path and not path.is_file():
        raise StartError(f"--models-file: there is no {path}")
    return path and path.absolute()  # a link may be pointed elsewhere later


def _envoy_options(options: argparse.Namespace) -> envoy_config.EnvoyOptions:
    tls: Path | None = options.tls
    if tls:
        tls = tls.resolve()
        for name in envoy_config.TLS_FILES:
            if not (tls / name).is_file():
                raise StartError(f"there is no {tls / name}: run `python -m tools.dev_certs {tls}`")
    if options.wait_seconds < 0:
        raise StartError(f"--wait-seconds is {options.wait_seconds}; it must be at least 0")
    return envoy_config.EnvoyOptions(
        tls, _collector(), _callers(options), _address(options), options.wait_seconds
    )


def _callers(options: argparse.Namespace) -> Path | None:
    folder: Path | None = options.callers and options.callers.resolve()
    kinds = callers.kinds_in(folder)
    if folder and not kinds:
        names = " nor ".join(callers.source(folder, kind).name for kind in callers.KINDS)
        raise StartError(f"there is neither {names} in {folder}")
    if "client_names" in kinds and not options.tls:
        raise StartError("client_names.txt is for the mTLS port: give --tls too")
    return folder


def _address(options: argparse.Namespace) -> str:
    try:
        return str(ipaddress.IPv4Address(options.address))
    except ValueError:
        raise StartError(f"--address is {options.address!r}; it must be an IPv4 address") from None


def _collector() -> tuple[str, int] | None:
    """Where Envoy sends its spans: the address that OpenTelemetry's own variable names."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        return None
    try:
        url = urlsplit(endpoint)
        if url.scheme == "http" and url.hostname:
            return url.hostname, url.port or 4317
    except ValueError:
        pass  # not a valid port
    raise StartError(f"OTEL_EXPORTER_OTLP_ENDPOINT is {endpoint!r}; it must be http://HOST:PORT")


def up(options: argparse.Namespace) -> int:
    """Runs a stack until it is asked to stop.

    Raises:
        StartError: it cannot start.
    """
    parent = None if options.exit_with_parent is None else os.getppid()
    if options.exit_with_parent and options.exit_with_parent != parent:
        raise StartError("the process that started this one has ended")
    layout = plan(options)
    if running := control.find(layout.state_file):
        raise StartError(
            f"a stack is already running in {layout.run_dir} (process {running['pid']}): "
            "stop it with `make down`"
        )
    specs = layout.children(envoy.find_binary())
    ports.require_free(layout.used_ports())
    layout.state_file.unlink(missing_ok=True)  # left by a stack that was killed
    for folder in (layout.logs, layout.state_file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    envoy_config.write_native_config(layout.envoy_config, layout.ports, layout.envoy_options)
    return guard.run_guarded(lambda: _run(Runner(layout, specs, options.hang_seconds)), parent)


def drain(options: argparse.Namespace) -> int:
    """Drains a service, or lets it take calls again; returns 1 when no stack is running."""
    from shared.rpc import drain_command  # gRPC is slow to import

    state = control.find(options.state_file)
    if state is None:
        sys.stdout.write("no stack is running\n")
        return 1
    act = drain_command.undrain if options.undo else drain_command.drain
    return act(state["addresses"][options.service])


def _run(runner: Runner) -> int:
    try:
        return runner.run()
    except (StartError, CallersError) as error:
        return _refuse(error)


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
    return 1


def main() -> int:
    """Runs the command; a failure prints one sentence on stderr and returns 1."""
    options = parse_arguments()
    try:
        if options.command == "up":
            return up(options)
        if options.command == "status":
            return control.status(options.state_file)
        if options.command == "drain":
            return drain(options)
        return control.down(options.state_file)
    except (StartError, CallersError, envoy.EnvoyMissingError, ports.PortError, OSError) as error:
        return _refuse(error)


if __name__ == "__main__":
    sys.exit(main())
