#!/bin/sh
# Builds the page into a folder: examples/browser/build.sh OUT makes OUT/page, which any web server
# can serve. It needs Node.js with npm, and protoc or the Python package grpcio-tools.
#
# Exit code 77: a tool is missing, or npm's registry cannot be reached; standard output says which.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:?give the folder to build in}"
out=$(cd "$1" && pwd)

for tool in node npm; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed"; exit 77; }
done
if command -v protoc > /dev/null; then
    protoc=protoc
elif python3 -c 'import grpc_tools' 2> /dev/null; then
    protoc='python3 -m grpc_tools.protoc'
else
    echo "protoc is not installed"
    exit 77
fi

cp "$root/examples/browser/package.json" "$root/examples/browser/package-lock.json" \
    "$root/examples/browser/main.ts" "$out"
cd "$out"
if ! npm ci --no-audit --no-fund --fetch-retries=0 > npm.log 2>&1; then
    if grep -Eq 'ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|E50[0-9]' npm.log
    then
        echo "npm cannot reach its registry"
        exit 77
    fi
    cat npm.log >&2
    exit 1
fi
rm -rf generated page
mkdir generated page
$protoc "-I$root/proto" --plugin=protoc-gen-es=node_modules/.bin/protoc-gen-es \
    --es_out=generated --es_opt=target=ts treadle/v1/sequence.proto
node_modules/.bin/esbuild main.ts --bundle --minify --format=esm --log-level=warning \
    --outfile=page/main.js
cp "$root/examples/browser/index.html" page
