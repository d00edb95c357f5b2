"""Fixtures for tests that need real processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import stack as stacks
from tests.support.attack import report_attacks
from tests.support.folders import MakeFolder, folders
from tests.support.stack import Stack

# Set before anything imports torch, as in the services' own processes: threads that spin on shared
# cores make its tests up to sixty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "untimed",
    hypothesis.settings(),  # in CI its profile of that name, with the same examples every time
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def models() -> Path:
    """The model folder. Without it the test is skipped, and in CI it fails."""
    if not (stacks.MODELS / "vision").is_dir() or not (stacks.MODELS / "text").is_dir():
        reason = f"there is no {stacks.MODELS}: run `make models`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return stacks.MODELS


@pytest.fixture(scope="session")
def stack(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for the whole run, with all services serving. Leave it as you found it."""
    with stacks.stack_in(tmp_path_factory.mktemp("stack")) as running:
        running.wait_serving()
        yield running


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeFolder]:
    """Makes folders for what the tests of a file share; they are gone at its end."""
    with folders(tmp_path_factory) as make:
        yield make


@pytest.fixture
def private_stack(models: Path, tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Starts stacks that a test may break: `private_stack(*options)`, as `start_stack` takes them.

    It does not wait for anything. All of them are stopped at the end.
    """
    started: list[Stack] = []

    def start(*arguments: str, **options: object) -> Stack:
        folder = tmp_path / f"stack{len(started)}"
        started.append(stacks.start_stack(folder, *arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What attacks did. The process that reports for several has only this conftest."""
    report_attacks(terminalreporter)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the end of the stack's logs to the report of a failed test."""
    report = yield
    if report.failed:
        for one in stacks.running:
            report.sections.append((f"stack in {one.state_file.parent}", one.log_tails()))
    return report
