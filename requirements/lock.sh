#!/usr/bin/env bash
# Writes image.lock, ray.lock and build.lock: what the images are built from, each package with its
# version and the hashes of its wheels. `make lock` calls this.
#
# Versions that a lock has already stay, unless pyproject.toml excludes them. `lock.sh --upgrade`
# takes the newest of all, `lock.sh --upgrade-package NAME` that of one. Needs uv and a network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d "${TMPDIR:-/tmp}/treadle-lock.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# The image's Python, and the oldest C library that the wheels of all packages support. Wheels
# only, because a source package runs code of its own while it is installed.
compile() {
    local machine=$1
    shift
    uv pip compile --quiet --python-version 3.11 --python-platform "$machine-manylinux_2_28" \
        --only-binary :all: --generate-hashes --custom-compile-command 'make lock' "$@"
}

# Locks the extras given, beginning with the versions that another lock has. One lock for both kinds
# of processor: the same versions must have wheels for both.
lock() {
    local name=$1
    shift
    compile x86_64 "${options[@]}" pyproject.toml "$@" \
        --override requirements/overrides.txt --output-file "requirements/$name"
    cp "requirements/$name" "$scratch/$name"
    compile aarch64 pyproject.toml "$@" \
        --override requirements/overrides.txt --output-file "$scratch/$name"
    diff "requirements/$name" "$scratch/$name" >&2 \
        || { echo "lock.sh: aarch64 needs other packages than x86_64 (above)" >&2; exit 1; }
}

options=("$@")
extras=(--extra server --extra bpe --extra cli --extra http --extra objectstore --extra oidc \
    --extra otel --extra postgresql)
lock image.lock "${extras[@]}"

# The image for jobs on a Ray cluster has the same versions, and those that Ray needs besides.
[ -e requirements/ray.lock ] || cp requirements/image.lock requirements/ray.lock
lock ray.lock "${extras[@]}" --extra ray --constraint requirements/image.lock

# What builds Treadle's wheel and lists what the image contains; none of it is in the image.
python3 - >"$scratch/build.in" <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    pyproject = tomllib.load(file)
tools = pyproject["project"]["optional-dependencies"]["dev"]
print(*pyproject["build-system"]["requires"], sep="\n")
print(*[tool for tool in tools if tool.startswith("cyclonedx-bom")], sep="\n")
PYTHON
compile x86_64 "${options[@]}" - --output-file requirements/build.lock <"$scratch/build.in"
