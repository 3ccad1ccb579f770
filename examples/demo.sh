#!/usr/bin/env bash
# Treadle in about two minutes: a server, a model trained on Shakespeare, text from it and
# scores by it. `make demo` runs this; so does any environment with treadle[server] in it.
#
# It listens on a free port of this machine only, keeps its models in a temporary
# directory, and leaves neither behind. TRAIN_FOR=20s makes it shorter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d "${TMPDIR:-/tmp}/treadle-demo.XXXXXX")
server=

tidy_up() {
    if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then wait "$server" || true; fi
    rm -rf "$work"
}
trap tidy_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

bold=
plain=
if [ -t 1 ]; then
    bold=$'\e[1m'
    plain=$'\e[0m'
fi

# Says what comes, and why.
tell() {
    printf '\n%s# %s%s\n' "$bold" "$*" "$plain"
}

# Shows a command as one would type it, then runs it.
show() {
    local word line="$bold\$"
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./:=-]*) word=${word@Q} ;; esac
        line+=" $word"
    done
    echo "$line$plain"
    "$@"
}

tell "Start a server (the very first start compiles its kernels: about a minute)"
echo "$bold\$ treadle-server --address 127.0.0.1:0 --data-dir $work/data &$plain"
touch "$work/out" "$work/log"
treadle-server --address 127.0.0.1:0 --data-dir "$work/data" >"$work/out" 2>"$work/log" &
server=$!
shown=0
until grep -q 'listening on' "$work/out"; do
    lines=$(wc -l <"$work/log")
    if ((lines > shown)); then # how far it is: "the server is compiling its kernels (12 of 108)"
        sed -n "$((shown + 1)),${lines}s/^.* treadle[a-z.]*: //p" "$work/log"
        shown=$lines
    fi
    if ! kill -0 "$server" 2>/dev/null; then
        cat "$work/log" >&2
        exit 1
    fi
    sleep 0.2
done
cat "$work/out"
TREADLE_SERVER=$(sed -n 's/.*listening on //p' "$work/out")
export TREADLE_SERVER

tell "Train on the first 90 % of tiny Shakespeare for about a minute; the rest is for validation"
show treadle train examples/data/tinyshakespeare.txt --model shakespeare \
    --cell lstm --hidden-size 256 --train-for "${TRAIN_FOR:-60s}"

tell "500 characters, streamed as they are made"
show treadle generate shakespeare --prompt 'ROMEO:' --max-new-tokens 500 --temperature 0.7 --seed 1

tell "A sentence the model never saw, and the same words shuffled: fewer nats a character is likelier"
show treadle score shakespeare --context $'\n' --text \
    'What dowry shall I have with her to wife?' \
    'shall her What with I to dowry wife have?'

tell "Stop the server"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
echo "treadle-server ended with exit code $code"
exit "$code"
