"""Prints pip's settings as uv's, as lines of a shell: `python tools/uv_settings.py`.

uv does not read pip's configuration, which says where packages come from: an index of a company, a
folder of wheels, the certificates of a proxy. Runs before anything but pip is installed.
"""

import ast
import re
import shlex
import subprocess
import sys

# uv's names, and what stands between several values.
NAMES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}
_LINE = re.compile(r"(?:global|install|:env:)\.(?P<name>[a-z-]+)=(?P<value>'.*'|\".*\")")


def settings(listed: str) -> dict[str, str]:
    """uv's settings.

    Args:
        listed: what `pip config list` prints; its environment comes last here, and wins.
    """
    # Every file is checked against a hash, so it does not matter which index has it.
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        match = _LINE.fullmatch(line.strip())
        if match and match["name"] in NAMES:
            name, between = NAMES[match["name"]]
            found[name] = between.join(str(ast.literal_eval(match["value"])).split())
    return found


def of_this_pip() -> dict[str, str]:
    """Those of the pip beside this Python, as variables of an environment."""
    command = (sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list")
    return settings(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def main() -> None:
    """Entry point."""
    for name, value in of_this_pip().items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
