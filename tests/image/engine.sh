# shellcheck shell=bash disable=SC2034  # variables are for the script that sources this
# Sourced by build.sh and run.sh: which engine builds and runs containers here, and how.
#
# Sets `engine` (podman, docker or empty), `engine_global` (options before the command),
# `build_options` and `run_options`.

engine=
engine_global=()
build_options=()
run_options=()

if command -v podman >/dev/null; then
    engine=podman
    # runc and modest limits work in places where crun or podman's defaults are refused.
    if command -v runc >/dev/null; then engine_global=(--runtime runc); fi
    limits=(--ulimit nofile=1024:1024 --ulimit nproc=1000:1000)
    build_options=(--format docker --pull=never "${limits[@]}")
    run_options=("${limits[@]}" --health-interval=disable)
elif command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    engine=docker
fi

# Builds behind a company's proxy or package index: pip in the build trusts and asks whom
# pip on this machine does. Writes a pip.conf into the folder given.
trust_this_machine() {
    local bundle=/etc/ssl/certs/ca-certificates.crt conf=$1/pip.conf index
    [ "$engine" = podman ] && [ -r "$bundle" ] || return 0
    index=$(python3 -m pip config get global.index-url 2>/dev/null || true)
    { echo '[global]'; echo "cert = $bundle"; [ -z "$index" ] || echo "index-url = $index"; } >"$conf"
    build_options+=(-v "$bundle:$bundle:ro" -v "$conf:/etc/pip.conf:ro")
}

run_engine() {
    "$engine" "${engine_global[@]}" "$@"
}
