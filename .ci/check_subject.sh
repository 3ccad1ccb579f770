#!/usr/bin/env bash
# Checks the subject of a commit message: `check_subject.sh FILE`. pre-commit calls it.
set -euo pipefail

IFS= read -r subject <"$1" || true
case $subject in
'fixup! '* | 'squash! '* | 'Merge '* | 'Revert '*) exit 0 ;;
esac
if ((${#subject} >= 72)); then
    echo "The subject has ${#subject} characters; keep it shorter than 72." >&2
    exit 1
fi
if [[ ! $subject =~ ^[[:upper:]] || $subject == *. ]]; then
    echo "Begin the subject with a capital letter and leave out the full stop." >&2
    exit 1
fi
