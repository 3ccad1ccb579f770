#!/usr/bin/env bash
# Shows Treadle in about two minutes: starts a server, trains a model on Shakespeare, generates
# text and scores sentences. `make demo` runs this; any environment with the extra `server` can.
#
# It listens on a free port of this machine only, keeps its models in a temporary
# directory, and removes both at the end. TRAIN_FOR=20s makes it shorter.
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

# Prints a heading.
heading() {
    printf '\n%s# %s%s\n' "$bold" "$*" "$plain"
}

# Prints a command as typed in a shell, then runs it.
show() {
    local word line="$bold\$"
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./:=-]*) word=${word@Q} ;; esac
        line+=" $word"
    done
    echo "$line$plain"
    "$@"
}

heading "Start a server (the very first start compiles its kernels: about a minute)"
echo "$bold\$ treadle-server --address 127.0.0.1:0 --data-dir $work/data &$plain"
touch "$work/out" "$work/log"
treadle-server --address 127.0.0.1:0 --data-dir "$work/data" >"$work/out" 2>"$work/log" &
server=$!
shown=0
until grep -q 'listening on' "$work/out"; do
    lines=$(wc -l <"$work/log")
    if ((lines > shown)); then # the progress: "the server is compiling its kernels (12 of 108)"
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

heading "Train on the first 90 % of tiny Shakespeare for about a minute; the rest is for validation"
show treadle train examples/data/tinyshakespeare.txt --model shakespeare \
    --cell lstm --hidden-size 256 --train-for "${TRAIN_FOR:-60s}"

heading "Generate 500 characters, printed as they are generated"
show treadle generate shakespeare --prompt 'ROMEO:' --max-new-tokens 500 --temperature 0.7 --seed 1

heading "Score a sentence that the model never saw, and the same words shuffled: fewer bits a character is likelier"
show treadle score shakespeare --context $'\n' --text \
    'What dowry shall I have with her to wife?' \
    'shall her What with I to dowry wife have?'

heading "Stop the server"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
echo "treadle-server ended with exit code $code"
exit "$code"
