#!/usr/bin/env bash
# Lists in CycloneDX what the image installs, as the image's build does: `make sbom` calls this.
#
# Installs image.lock into an environment that it removes again. Needs uv, cyclonedx-py and a
# network.
# Usage: sbom.sh FILE
set -euo pipefail
file=$(realpath -m "${1:?usage: sbom.sh FILE}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d "${TMPDIR:-/tmp}/treadle-sbom.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

uv venv --quiet --python "$(command -v python)" "$scratch/env"
uv pip install --quiet --python "$scratch/env/bin/python" --require-hashes --no-deps \
    --only-binary :all: --requirement requirements/image.lock
mkdir -p "$(dirname "$file")"
cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
    --output-file "$file" "$scratch/env/bin/python"
echo "$file"
