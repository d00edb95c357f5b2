#!/bin/sh
# Makes the Python environment in a folder: `tools/setup.sh FOLDER`. `make setup` runs it.
#
# uv does it, which pip installs where there is none; pip alone takes two to three times as long. Both
# check every file against the hashes in requirements/. PYTHON names the interpreter; by default it
# is the first of python3.11 to python3.14 that works, and if there is none, uv downloads one.
set -u
venv=$1
python=${PYTHON:-}
uv=$(command -v "${UV-uv}" || true)
index=${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu}
cd "$(dirname "$0")/.." || exit 1

# pip needs a Python with venv and ensurepip, which Debian packages apart; uv does not.
modules=sys,venv,ensurepip
[ -z "$uv" ] || modules=sys

# A pyenv shim of a version that is not chosen is on PATH and does not run.
works() {
  "$1" -c "import $modules, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))" 2>/dev/null
}

# If the caller names an interpreter, no other is used instead.
find_python() {
  for candidate in ${python:-python3.11 python3.12 python3.13 python3.14 python3}; do
    if works "$candidate"; then
      python=$candidate
      return
    fi
  done
  [ -z "$python" ] || fail "$python is not a Python 3.11, 3.12, 3.13 or 3.14 with venv and pip"
  [ -n "$uv" ] || fail "no Python 3.11, 3.12, 3.13 or 3.14 with venv and pip was found:" \
    "install one (on Debian: apt install python3 python3-venv), or uv, which brings its own"
  python=3.13 # uv downloads it
}

fail() {
  echo "$*" >&2
  exit 1
}

install() {
  "$venv/bin/python" -m pip --disable-pip-version-check install -q --no-deps "$@"
}

# PyTorch's CPU build. pip's configured index comes first: it may have it.
install_torch() {
  set -- --require-hashes -r requirements/torch.txt
  install "$@" 2>/dev/null || install --index-url "$index" "$@"
}

with_uv() {
  "$uv" venv -q --seed --allow-existing --python "$python" "$venv" && install_by_uv
}

install_by_uv() {
  install_torch &
  # Compiled here as pip does it: a model's process may not write beside the packages.
  "$uv" pip install -q --compile-bytecode --python "$venv/bin/python" --no-deps --require-hashes \
    -r requirements/dev.txt
  installed=$?
  wait $! || exit 1 # pip has said why
  return $installed
}

with_pip() {
  "$python" -m venv "$venv" && install_torch && install --require-hashes -r requirements/dev.txt
}

# uv of the requirements, in the environment itself, with pip's settings.
install_uv() {
  "$python" -m venv "$venv" || return
  sed -n '/^uv==/,/[^\\]$/p' requirements/dev.txt > "$venv/uv.txt"
  install --require-hashes -r "$venv/uv.txt" || return
  eval "$("$venv/bin/python" tools/uv_settings.py)"
  uv=$venv/bin/uv
}

find_python
if [ -n "$uv" ]; then
  echo "making the environment in $venv with $python and uv (about a minute)"
  # uv does not read pip's configuration, so pip may reach an index that uv does not.
  with_uv || {
    echo "uv has failed, see above; trying pip"
    works "$python" || echo "there is no Python for pip: install 3.11 to 3.14"
    works "$python" && with_pip
  } || exit 1
else
  echo "making the environment in $venv with $python (about a minute)"
  install_uv && install_by_uv || {
    echo "uv has failed, see above; trying pip alone (about two minutes)"
    with_pip
  } || exit 1
fi
install --no-build-isolation -e . || exit 1
"$venv/bin/python" -m compileall -q ml shared model_mgmt_svc text_svc vision_svc http_svc stack cli demo tools
