#!/usr/bin/env bash
# Installs azurite, Azure's server of Blob Storage for tests, into an environment of Python, where the
# tests find it and `make clean` removes it: install_azurite.sh .venv. Without npm it says what to
# install.
set -euo pipefail

# The newest that runs on the Node.js of Debian 12 and 13.
version=3.35.0

if [ -e "$1/bin/azurite-blob" ] || command -v azurite-blob >/dev/null; then
    exit 0
fi
if ! command -v npm >/dev/null; then
    echo "install_azurite.sh: azurite is missing, and its tests will skip: install npm" >&2
    exit 0
fi
# No package runs a program of its own while it is installed.
npm install --global --prefix "$1" --ignore-scripts --no-audit --no-fund --loglevel=error \
    "azurite@$version"
