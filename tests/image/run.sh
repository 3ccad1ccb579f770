#!/usr/bin/env bash
# Builds the image, runs it and uses it as its users do. `make image-test` calls this.
#
# Skips with a reason where containers cannot be built; fails at the first thing that is
# not so. Needs `treadle` on the PATH. IMAGE=name tests an image that is there already.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/engine.sh"

checks=0
containers=()
volumes=()
scratch=$(mktemp -d "${TMPDIR:-/tmp}/treadle-image.XXXXXX")
printf hello >"$scratch/hello.txt"
printf 'a stitch in time saves nine; %.0s' {1..200} >"$scratch/proverb.txt"

skip() {
    echo "skipped: $1"
    exit 0
}

ok() {
    checks=$((checks + 1))
    echo "ok $checks - $1"
}

fail() {
    echo "not ok - $1" >&2
    if [ ${#containers[@]} -gt 0 ]; then run_engine logs --tail 40 "${containers[-1]}" >&2 || true; fi
    exit 1
}

tidy_up() {
    local container volume
    for container in "${containers[@]}"; do run_engine rm -f "$container" >/dev/null 2>&1 || true; done
    for volume in "${volumes[@]}"; do run_engine volume rm -f "$volume" >/dev/null 2>&1 || true; done
    rm -rf "$scratch"
}

# Starts a container and waits until its health check passes. Arguments: engine options.
# Sets `container`, `address` and `http`.
start() {
    # Its complaints that there is no systemd to run health checks are shown only if it fails.
    container=$(run_engine run -d "${run_options[@]}" -p 127.0.0.1::50051 -p 127.0.0.1::8080 "$@" "$IMAGE" 2>"$scratch/errors") \
        || { cat "$scratch/errors" >&2; fail "the container does not start"; }
    containers+=("$container")
    address=$(run_engine port "$container" 50051/tcp | head -1)
    http=http://$(run_engine port "$container" 8080/tcp | head -1)
    local begun=$SECONDS
    until run_engine exec "$container" treadle-server --check-health >/dev/null 2>&1; do
        [ "$(run_engine inspect -f '{{.State.Running}}' "$container")" = true ] || fail "the server ended"
        [ $((SECONDS - begun)) -lt 60 ] || fail "the server is not healthy after 60 s"
        sleep 0.2
    done
    export TREADLE_SERVER=$address
}

# Asks the container to stop as `docker stop` does and checks how it went.
stop_cleanly() {
    local what=$1 code
    run_engine stop -t 20 "$container" >/dev/null 2>"$scratch/errors" || { cat "$scratch/errors" >&2; fail "$what"; }
    code=$(run_engine inspect -f '{{.State.ExitCode}}' "$container")
    [ "$code" = 0 ] || fail "$what: exit code $code after SIGTERM"
    ok "$what: SIGTERM exits 0"
}

inside() {
    run_engine exec "$container" sh -c "$1"
}

# Every compiled kernel with its size and time: the same list means that nothing was compiled.
kernels() {
    inside 'find /var/cache/treadle /tmp -name "*.nb?" -exec stat -c "%n %s %Y" {} + | sort'
}

new_volume() {
    volume=treadle-test-$$-${#volumes[@]}
    volumes+=("$volume")
    run_engine volume create "$volume" >/dev/null
}

# The settings that a file under deploy/ has, as options of the engine, one on each line.
deployed() {
    PYTHONPATH="$here/.." python - "$here/../../deploy/$1" <<'PYTHON'
import sys
from pathlib import Path

import yaml
from kustomization import render

path = Path(sys.argv[1])
if path.is_file():
    variables = yaml.safe_load(path.read_text())["services"]["treadle"]["environment"]
else:
    [deployment] = [item for item in render(path) if item["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
for name, value in variables.items():
    print(f"--env={name}={value}")
PYTHON
}

# Trains on "hello" through the published port and has it say the rest of the word.
say_hello() {
    treadle train "$scratch/hello.txt" --model hello --json >"$scratch/train.jsonl" \
        || fail "$1: training failed"
    local said
    said=$(treadle generate hello --prompt h --greedy --max-new-tokens 4)
    [ "$said" = ello ] || fail "$1: hello's model says '$said' after h"
    ok "$1: trains and generates through the published port"
}

trap tidy_up EXIT
[ -n "$engine" ] || skip "podman is missing (Debian: apt-get install podman buildah runc debootstrap)"
command -v treadle >/dev/null || fail "no treadle command on the PATH; run make venv"
if [ -z "${IMAGE:-}" ]; then
    IMAGE=localhost/treadle-image-test
    "$here/build.sh" "$IMAGE" >"$scratch/build.log" 2>&1 || { tail -40 "$scratch/build.log" >&2; fail "build"; }
    ok "built in $SECONDS s"
fi
size=$(run_engine image inspect -f '{{.Size}}' "$IMAGE")
base=$(run_engine image inspect -f '{{index .Config.Labels "treadle.base"}}' "$IMAGE")
echo "# engine: $(run_engine --version)"
echo "# base: ${base:-the official image named in the Dockerfile}"
echo "# size: $((size / 1000000)) MB"

new_volume
begun=$(date +%s%N)
start -v "$volume:/data" -e NUMBA_DEBUG_CACHE=1
ok "healthy $((($(date +%s%N) - begun) / 1000000)) ms after docker run"

[ "$(inside 'id -u')" = 10001 ] || fail "runs as $(inside id)"
ok "runs as uid 10001"
for tool in gcc cc g++ c++ clang ld pip; do
    if inside "command -v $tool" >/dev/null; then fail "$tool is in the image"; fi
done
ok "has no compiler and no pip"

inside 'cat /opt/treadle/sbom.json' >"$scratch/sbom.json" || fail "no SBOM in the image"
python3 - "$scratch/sbom.json" "$here/../../requirements/image.lock" <<'PYTHON' || fail "SBOM"
import json
import re
import sys

with open(sys.argv[1]) as file:
    listed = json.load(file)
with open(sys.argv[2]) as file:
    locked = re.findall(r"^([\w.-]+)==(\S+)", file.read(), re.MULTILINE)
found = {
    (re.sub("[-_.]+", "-", component["name"]).lower(), component["version"])
    for component in listed["components"]
}
assert listed["bomFormat"] == "CycloneDX"
assert listed["metadata"]["component"]["name"] == "treadle"
assert found == set(locked), sorted(found ^ set(locked))
PYTHON
ok "its SBOM lists what is locked: $(grep -c '^[a-z].*==' "$here/../../requirements/image.lock") packages"

if [ "$engine" = podman ]; then
    run_engine healthcheck run "$container" >/dev/null || fail "HEALTHCHECK fails"
    ok "HEALTHCHECK passes"
fi

[ "$(curl -fsS --noproxy '*' "$http/readyz")" = ready ] || fail "/readyz"
ok "answers /readyz through the published port of HTTP"

kernels >"$scratch/baked"
[ -s "$scratch/baked" ] || fail "no compiled kernels in the image"
say_hello "named volume"
curl -fsS --noproxy '*' --json '{"model": "hello", "prompt": "h", "temperature": 0, "maxNewTokens": 4}' \
    "$http/treadle.v1.SequenceService/Generate" >"$scratch/lines" || fail "Generate over HTTP"
[ "$(sed -n 's/.*"text":"\([^"]*\)".*/\1/p' "$scratch/lines" | tr -d '\n')" = ello ] \
    || fail "over HTTP hello's model says $(cat "$scratch/lines")"
ok "generates over HTTP through the published port"
for cell in rnn gru lstm; do
    treadle train "$scratch/proverb.txt" --model "$cell" --cell "$cell" --seed 7 --max-steps 30 --json \
        >"$scratch/$cell.jsonl" || fail "training a $cell"
done
treadle generate lstm --prompt 'a st' --seed 3 --max-new-tokens 60 >"$scratch/said"
treadle score lstm --text 'a stitch in time' >/dev/null || fail "scoring"
ok "trains rnn, gru and lstm and scores"
kernels | diff "$scratch/baked" - >&2 || fail "kernels were compiled at run time"
if run_engine logs "$container" 2>&1 | grep -q 'data saved'; then fail "kernels were compiled at run time"; fi
ok "compiles nothing: $(wc -l <"$scratch/baked") cache files, none new"

treadle train "$scratch/proverb.txt" --model cut --train-for 600s --json >"$scratch/cut.jsonl" 2>&1 &
training=$!
until grep -q progress "$scratch/cut.jsonl" 2>/dev/null; do sleep 0.2; done
stop_cleanly "while a model trains"
if wait "$training"; then grep -q completed "$scratch/cut.jsonl" || fail "a cut-off training looks complete"; fi

start -v "$volume:/data"
treadle generate lstm --prompt 'a st' --seed 3 --max-new-tokens 60 | diff "$scratch/said" - >&2 \
    || fail "a second container generates another text"
kernels | diff "$scratch/baked" - >&2 || fail "the second start compiled kernels"
ok "second container: models are kept, same text, nothing compiled"
stop_cleanly "second container"

if [ "$(uname -m)" = x86_64 ]; then
    start -v "$volume:/data" -e NUMBA_CPU_NAME=x86-64-v3 -e NUMBA_CPU_FEATURES=
    treadle generate lstm --prompt 'a st' --seed 3 --max-new-tokens 60 | diff "$scratch/said" - >&2 \
        || fail "kernels for x86-64-v3 generate another text"
    kernels | diff "$scratch/baked" - >&2 || fail "x86-64-v3 had to be compiled"
    ok "kernels for x86-64-v3: same text, nothing compiled"
    stop_cleanly "x86-64-v3"
fi

hardened=(--read-only --tmpfs /tmp:mode=1777,noexec,nosuid,nodev,size=256m
    --cap-drop=ALL --security-opt no-new-privileges)
new_volume
start -v "$volume:/data" "${hardened[@]}"
say_hello "read-only root"
in_use() { inside "find $1 -name '*.nb?' -printf '%f %s\n' | LC_ALL=C sort -u"; }
in_use /tmp >"$scratch/copied"
[ -s "$scratch/copied" ] || fail "the kernels were not copied to /tmp"
in_use /var/cache/treadle | LC_ALL=C comm -23 "$scratch/copied" - >"$scratch/new"
[ ! -s "$scratch/new" ] || fail "compiled at run time: $(head -3 "$scratch/new")"
ok "read-only root: kernels are copied, not compiled"
stop_cleanly "read-only root"

uid=$((20000 + RANDOM))
new_volume
start -v "$volume:/data" --user "$uid" "${hardened[@]}"
[ "$(inside 'id -u')" = "$uid" ] || fail "runs as $(inside id)"
inside 'grep -E "^Cap(Inh|Prm|Eff|Bnd|Amb):" /proc/1/status' >"$scratch/capabilities"
if grep -v '0000000000000000$' "$scratch/capabilities" >&2; then fail "the server has capabilities"; fi
[ "$(wc -l <"$scratch/capabilities")" = 5 ] || fail "the capabilities cannot be read"
inside 'grep -q "^NoNewPrivs:.1$" /proc/1/status' || fail "the server may gain privileges"
for folder in / /opt/treadle /usr/local/bin /var/cache/treadle /etc; do
    if inside "touch $folder/written" 2>/dev/null; then fail "$folder can be written"; fi
done
say_hello "uid $uid, read-only root, no capabilities"
stop_cleanly "uid $uid"
ok "any uid: no capability, no new privileges, nothing but /data and /tmp is written"

new_volume
start -v "$volume:/data" --user 12345
say_hello "uid 12345"
stop_cleanly "uid 12345"
start -v "$volume:/data"
say_hello "uid 10001 on the volume of uid 12345"
stop_cleanly "uid 10001"
start -v "$volume:/data" --user 23456 -e http_proxy=http://127.0.0.1:9 -e https_proxy=http://127.0.0.1:9
say_hello "uid 23456 on the volume of both, healthy behind a proxy"
stop_cleanly "uid 23456"

mkdir -m 0777 "$scratch/data"
start -v "$scratch/data:/data" --user 12345:12345 --memory 1g --cpus 1 "${hardened[@]}"
say_hello "uid and gid 12345, read-only root, 1 GiB, 1 CPU"
stop_cleanly "uid and gid 12345"

# As deploy/compose.yaml has it. The image's user makes the callers file, so that it can read it.
secrets=$scratch/secrets
mkdir -m 0777 "$secrets"
curve=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2)
openssl req -x509 "${curve[@]}" -subj '/CN=Test authority' \
    -keyout "$scratch/ca.key" -out "$scratch/ca.crt" 2>"$scratch/errors" \
    && openssl req -x509 -CA "$scratch/ca.crt" -CAkey "$scratch/ca.key" "${curve[@]}" \
        -subj '/CN=localhost' -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' \
        -addext 'basicConstraints=critical,CA:false' \
        -keyout "$secrets/tls.key" -out "$secrets/tls.crt" 2>"$scratch/errors" \
    || { cat "$scratch/errors" >&2; fail "openssl makes no certificates"; }
head -c 32 /dev/urandom | base64 >"$secrets/state.key"
chmod 0644 "$secrets"/*
run_engine run --rm "${run_options[@]}" "${hardened[@]}" --network none -v "$secrets:/secrets" "$IMAGE" \
    token create tester --role trainer --models hello --expires 1d --callers-file /secrets/callers.toml \
    >"$scratch/tester.token" 2>"$scratch/errors" || { cat "$scratch/errors" >&2; fail "token create"; }
chmod 0600 "$scratch/tester.token"
new_volume
mapfile -t settings < <(deployed compose.yaml)
start -v "$volume:/data" "${hardened[@]}" -v "$secrets:/run/secrets/treadle:ro" "${settings[@]}"
if [ "$engine" = podman ]; then
    run_engine healthcheck run "$container" >/dev/null || fail "HEALTHCHECK fails with TLS"
    ok "HEALTHCHECK passes with TLS and callers"
fi
if treadle models >/dev/null 2>&1; then fail "a call without TLS is answered"; fi
export TREADLE_CA_FILE=$scratch/ca.crt
if treadle models >/dev/null 2>"$scratch/refused"; then fail "a call without a token is answered"; fi
grep -qi token "$scratch/refused" || { cat "$scratch/refused" >&2; fail "the refusal names no token"; }
export TREADLE_TOKEN_FILE=$scratch/tester.token
say_hello "TLS and a token"
if treadle train "$scratch/hello.txt" --model other >/dev/null 2>&1; then fail "trains what it may not"; fi
ok "refuses calls without TLS, without a token, and for other models"
run_engine logs "$container" >"$scratch/audit" 2>/dev/null
grep -q '"tester"' "$scratch/audit" || { cat "$scratch/audit" >&2; fail "no line of the audit log"; }
run_engine logs "$container" >"$scratch/log" 2>&1
secret=$(sed 's/.*_//' "$scratch/tester.token")
if [ -z "$secret" ] || grep -qF "$secret" "$scratch/log"; then fail "the token is in the log"; fi
ok "the audit log names the caller, and nothing its token"
run_engine run --rm "${run_options[@]}" --network none -v "$secrets:/secrets" "$IMAGE" \
    token revoke tester --callers-file /secrets/callers.toml 2>/dev/null || fail "token revoke"
begun=$SECONDS
while treadle models >/dev/null 2>&1; do
    [ $((SECONDS - begun)) -lt 30 ] || fail "a revoked token is still accepted"
    sleep 0.2
done
ok "a revoked token is refused within $((SECONDS - begun + 1)) s"
stop_cleanly "TLS and a token"

mapfile -t settings < <(deployed kubernetes/single)
new_volume
start -v "$volume:/data" "${hardened[@]}" -v "$secrets:/run/secrets/tls:ro" \
    -v "$secrets:/run/secrets/access:ro" "${settings[@]}"
inside 'treadle-server --check-health 127.0.0.1:50052' >/dev/null || fail "the probes of Kubernetes fail"
ok "health checks without TLS at the port of Kubernetes' probes"
stop_cleanly "settings of Kubernetes"

echo "$checks passed, 0 failed"
