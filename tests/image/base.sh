#!/usr/bin/env bash
# Makes a stand-in for the image's base where no registry can be reached.
#
# The stand-in is Debian bookworm with Debian's own Python 3.11, `python` put where
# the official image has it. It differs from python:3.11-slim-bookworm in the
# interpreter's build and in size, so a report of a result names it; its label
# `treadle.base` says so too.
#
# Usage: base.sh IMAGE        Needs root, podman and debootstrap.
# DEBIAN_MIRROR names another mirror than deb.debian.org.
set -euo pipefail

image=${1:?usage: base.sh IMAGE}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
work=$(mktemp -d "${TMPDIR:-/tmp}/treadle-base.XXXXXX")
trap 'rm -rf "$work"' EXIT

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
    bookworm "$work/rootfs" "$mirror" >"$work/log" || { tail -20 "$work/log" >&2; exit 1; }

for name in python python3 python3.11; do
    ln -sf /usr/bin/python3.11 "$work/rootfs/usr/local/bin/$name"
done
rm -f "$work/rootfs/usr/lib/python3.11/EXTERNALLY-MANAGED"
rm -rf "$work/rootfs/var/cache/apt" "$work/rootfs/var/lib/apt/lists" \
    "$work/rootfs/usr/share/doc" "$work/rootfs/usr/share/man" "$work/rootfs/usr/share/locale"
mkdir -p "$work/context"
tar -C "$work/rootfs" --one-file-system -cf "$work/context/rootfs.tar" .
printf '%s\n' 'FROM scratch' 'ADD rootfs.tar /' \
    'LABEL treadle.base="stand-in: Debian bookworm with its own Python 3.11"' \
    'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
    'CMD ["python3"]' >"$work/context/Dockerfile"
podman build --format docker --pull=never -t "$image" "$work/context"
