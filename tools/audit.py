"""Looks up known vulnerabilities of all pinned packages: `python -m tools.audit [OPTION ...]`.

pip-audit asks PyPI for the advisories of every version in `requirements/`, and OSV where PyPI knows
none of them; uv fetches pip-audit into an environment of its own. Options go to pip-audit, such as
`--ignore-vuln ID`. The exit status is 1 if a vulnerability is known, and 2 if some package could
not be looked up, since silence then says nothing about it.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PIP_AUDIT = "pip-audit==2.10.1"
SERVICES = ("pypi", "osv")
_PIN = re.compile(r"^([\w.-]+)==([\w.!]+)", re.MULTILINE)


@dataclass
class Findings:
    """What the advisories say.

    Attributes:
        vulnerable: a line for each package with known vulnerabilities.
        unknown: a line for each package that could not be looked up.
        audited: number of packages that were.
    """

    vulnerable: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    audited: int = 0


def pins() -> dict[str, list[str]]:
    """All versions of each package in `requirements/`.

    The local part of a version, as in "2.13.0+cpu", is left out: advisories do not have it.
    """
    found: dict[str, set[str]] = {}
    for lock in sorted((ROOT / "requirements").glob("*.txt")):
        for name, version in _PIN.findall(lock.read_text()):
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def rounds(versions: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Files of requirements that together have all versions; pip-audit takes one of each name."""
    for index in itertools.count():
        lines = [f"{name}=={all_[index]}\n" for name, all_ in versions.items() if index < len(all_)]
        if not lines:
            return
        yield "".join(lines)


def read(dependencies: Iterable[Mapping[str, Any]]) -> Findings:
    """The findings in pip-audit's JSON."""
    findings = Findings()
    for each in dependencies:
        if reason := each.get("skip_reason"):
            findings.unknown.append(f"{each['name']}: {reason}")
            continue
        findings.audited += 1
        if known := [vulnerability["id"] for vulnerability in each["vulns"]]:
            findings.vulnerable.append(f"{each['name']} {each['version']}: {', '.join(known)}")
    return findings


def audit(service: str, options: Sequence[str]) -> Findings:
    """Asks one service about all pins; what it says instead of an answer is an unknown."""
    dependencies: list[Mapping[str, Any]] = []
    for requirements in rounds(pins()):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(requirements)
            file.flush()
            command = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "--from", PIP_AUDIT]
            command += ["pip-audit", "--requirement", file.name, "--disable-pip", "--no-deps"]
            command += ["--format", "json", "--progress-spinner", "off"]
            command += ["--vulnerability-service", service, *options]
            asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        try:
            dependencies += json.loads(asked.stdout)["dependencies"]
        except ValueError:
            last = asked.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"]
            return Findings(unknown=[f"{service}: {last[0]}"])
    return read(dependencies)


def main() -> None:
    """Entry point."""
    for service in SERVICES:
        findings = audit(service, sys.argv[1:])
        if findings.audited:
            break
        print(f"no package was looked up at {service}; {findings.unknown[0]}")
    else:
        sys.exit(2)
    for line in (*findings.unknown, *findings.vulnerable):
        print(line)
    print(f"{findings.audited} packages looked up, {len(findings.vulnerable)} vulnerable")
    if findings.vulnerable:
        sys.exit(1)
    if findings.unknown:
        sys.exit(2)


if __name__ == "__main__":
    main()
