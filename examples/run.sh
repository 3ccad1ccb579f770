#!/usr/bin/env bash
# Builds the example of a language in build/examples and runs it against a server of its own:
# examples/run.sh go|java|browser. `make examples` runs all of them.
#
# The server listens on a free port of this machine only, keeps its models in a temporary
# directory, and ends with the example. Where a tool of the language is missing, the example is
# skipped with a reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

language=${1:?give a language: go, java or browser}
out=build/examples/$language
code=0
said=$("examples/$language/build.sh" "$out") || code=$?
if [ "$code" = 0 ] && [ "$language" = browser ]; then
    # It brings its own server, which has to know where the page is.
    said=$(python examples/browser/run.py "$out") || code=$?
    [ "$code" = 0 ] && echo "$said" && exit
fi
if [ "$code" = 77 ]; then
    echo "example-$language is skipped: $said"
    exit 0
elif [ "$code" != 0 ]; then
    exit "$code"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/treadle-example.XXXXXX")
server=

tidy_up() {
    if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then wait "$server" || true; fi
    rm -rf "$work"
}
trap tidy_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

touch "$work/out" "$work/log"
treadle-server --address 127.0.0.1:0 --data-dir "$work/data" >"$work/out" 2>"$work/log" &
server=$!
until grep -q 'listening on' "$work/out"; do
    if ! kill -0 "$server" 2>/dev/null; then
        cat "$work/log" >&2
        exit 1
    fi
    sleep 0.2
done
"$out/treadle-example" "$(sed -n 's/.*listening on //p' "$work/out")"
