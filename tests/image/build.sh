#!/usr/bin/env bash
# Builds the image with podman, or with Docker where there is no podman.
#
# Where podman has no base image and can pull none, base.sh makes a stand-in for it.
# Usage: build.sh NAME
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/engine.sh"

name=${1:?usage: build.sh NAME}
[ -n "$engine" ] || { echo "build.sh: neither podman nor a running Docker here" >&2; exit 1; }

scratch=$(mktemp -d "${TMPDIR:-/tmp}/treadle-build.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

if [ "$engine" = podman ]; then
    base=$(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$here/../../Dockerfile" | tail -1)
    podman image exists "$base" \
        || timeout 300 podman pull --quiet "$base" \
        || { echo "no registry: making a stand-in for $base"; "$here/base.sh" "$base"; }
    trust_this_machine "$scratch"
fi
run_engine build "${build_options[@]}" -t "$name" "$here/../.."
