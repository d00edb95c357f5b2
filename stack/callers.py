"""Who may call: the operator's files of API keys and certificate names, and what Envoy reads.

Envoy reads both as extension configurations from files, and again when these are replaced; calls
and streams that run go on. `deploy/envoy/entrypoint.sh` does the same for containers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.caller import CALLER_KEY

# A name and a key. A name may have several keys, so that a new one can be handed out before the old
# one goes.
_KEY_LINE = re.compile(r"([A-Za-z][A-Za-z0-9._-]{0,63})[ \t]+([A-Za-z0-9._~+/=-]{16,256})")
_API = "type.googleapis.com/envoy.extensions.filters.http"


class CallersError(ValueError):
    """A file of keys or names is not valid; the message names the line, and never a key."""


def api_keys(text: str) -> dict[str, Any]:
    """The configuration of Envoy's filter for API keys.

    Args:
        text: lines of a name and a key; blank lines and those that begin with # do not count.

    Raises:
        CallersError: a line is not valid, or two lines have the same key.
    """
    credentials: dict[str, str] = {}
    for number, line in _lines(text):
        match = _KEY_LINE.fullmatch(line)
        if not match:
            raise CallersError(
                f"line {number} must be a name (a letter, then letters, digits or ._-; at most 64 "
                "characters) and a key (16 to 256 letters, digits or ._~+/=-)"
            )
        name, key = match.groups()
        if key in credentials:
            raise CallersError(f"line {number} has the key of another line")
        credentials[key] = name
    return _extension(
        "envoy.filters.http.api_key_auth",
        {
            "@type": f"{_API}.api_key_auth.v3.ApiKeyAuth",
            "credentials": [{"client": name, "key": key} for key, name in credentials.items()],
            "key_sources": [{"header": "authorization"}, {"header": "x-api-key"}],
            "forwarding": {"header": CALLER_KEY, "hide_credentials": True},
        },
    )


def client_names(text: str) -> dict[str, Any]:
    """The configuration of Envoy's filter for the names of client certificates.

    Args:
        text: a name on each line: a URI or DNS name that the certificate is for, its whole subject
            ("CN=app,O=Example"), or the CN of a subject that has nothing else. Blank lines and
            those that begin with # do not count.

    Raises:
        CallersError: a line is not valid.
    """
    allowed = []
    for number, line in _lines(text):
        if not line.isascii() or not line.isprintable() or '"' in line or "\\" in line:
            raise CallersError(
                f"line {number} must be printable ASCII without quotation marks and backslashes"
            )
        allowed += [line] if "=" in line or "/" in line else [line, f"CN={line}"]
    principals = [{"authenticated": {"principal_name": {"exact": name}}} for name in allowed]
    # Envoy takes no empty list: nobody is among the allowed ones.
    nobody = {"not_id": {"any": True}}
    policy = {"permissions": [{"any": True}], "principals": [*principals, nobody]}
    return _extension(
        "client_names",
        {
            "@type": f"{_API}.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {"allowed": policy}},
        },
    )


def _lines(text: str) -> list[tuple[int, str]]:
    numbered = enumerate(map(str.strip, text.split("\n")), 1)
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def _extension(name: str, config: dict[str, Any]) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
    return {"resources": [{"@type": kind, "name": name, "typed_config": config}]}


# The files of the operator's folder, and what makes Envoy's configuration of each.
KINDS = {"api_keys": api_keys, "client_names": client_names}


def source(folder: Path, kind: str) -> Path:
    """The operator's file of a kind; without it, that check is off."""
    return folder / f"{kind}.txt"


def kinds_in(folder: Path | None) -> list[str]:
    """Which of `KINDS` a folder has a file of."""
    return [kind for kind in KINDS if folder and source(folder, kind).is_file()]


class CallerFiles:
    """Keeps what Envoy reads in step with the operator's files.

    Args:
        folder: where Envoy reads.
        sources: the operator's folder.
        kinds: which of `KINDS` are in use.
    """

    def __init__(self, folder: Path, sources: Path | None, kinds: Sequence[str]) -> None:
        self._folder = folder
        self._sources = {kind: source(sources, kind) for kind in kinds if sources}
        self._written: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def write(self) -> None:
        """Writes all files for Envoy, before it starts.

        Raises:
            CallersError: a file cannot be read or is not valid.
        """
        for kind, path in self._sources.items():
            self._write(kind, _read(path))

    def refresh(self) -> list[str]:
        """Writes what has changed, and returns a sentence about each file that has.

        A file that cannot be read or is not valid changes nothing: what it was stays in force.
        """
        said = []
        for kind, path in self._sources.items():
            try:
                text = _read(path)
                if text != self._written[kind]:
                    self._write(kind, text)
                    said.append(f"{path} has changed, and is in force")
                self._refused.pop(kind, None)
            except (CallersError, OSError) as error:
                if self._refused.get(kind) != str(error):
                    self._refused[kind] = str(error)
                    said.append(f"{error}; what it was stays in force")
        return said

    def _write(self, kind: str, text: str) -> None:
        try:
            config = json.dumps(KINDS[kind](text))
        except CallersError as error:
            raise CallersError(f"{self._sources[kind]}: {error}") from None
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{kind}.part"
        part.unlink(missing_ok=True)
        # Nobody else may read the keys. Envoy notices a file that is moved into place.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(config)
        part.rename(self._folder / f"{kind}.json")
        self._written[kind] = text


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise CallersError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CallersError(f"{path} is not UTF-8") from None
