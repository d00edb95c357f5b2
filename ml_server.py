"""Starts the ML services the way the application does: `python3 ml_server.py --port 50051`.

Any Python can run this file. It replaces itself, in the same process, by the launcher in the
project's own environment, so that killing the pid that the starter knows ends every process of the
stack. The application itself serves the model files (`--provider`, default localhost:50052).
Further options are passed on to the launcher (`python -m stack --help`).
"""

# Any old Python must be able to run this file.
# ruff: noqa: PTH100, PTH118, PTH120, S606, UP031
import argparse
import os
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.path.join(ROOT, ".venv", "bin", "python")


def main():
    """Replaces this process by the launcher, or exits with a sentence about what is missing."""
    parser = argparse.ArgumentParser(description="Starts the ML services behind one port.")
    parser.add_argument("--port", type=int, default=50051, help="port for clients")
    parser.add_argument(
        "--provider", default="localhost:50052", metavar="HOST:PORT", help="serves GetModelFile"
    )
    options, others = parser.parse_known_args()
    if not os.access(PYTHON, os.X_OK):
        sys.exit("the Python environment %s is missing: run `make setup`" % os.path.dirname(PYTHON))
    # The starter's Python settings are not meant for another interpreter.
    for name in ("PYTHONHOME", "PYTHONPATH"):
        os.environ.pop(name, None)
    command = [PYTHON, "-m", "stack", "up", "--port", str(options.port)]
    command += ["--provider", options.provider, "--exit-with-parent", str(os.getppid())]
    command += others
    os.chdir(ROOT)
    os.execv(PYTHON, command)


if __name__ == "__main__":
    main()
