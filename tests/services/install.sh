#!/usr/bin/env bash
# Installs the servers that the tests of shared storage start, where they are missing. What pip can
# install is in the extra `dev`. Needs Debian or Ubuntu, and root; elsewhere it says what to install.
set -euo pipefail

if compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "install.sh: PostgreSQL is missing, and its tests will skip: install the package" \
        "postgresql" >&2
    exit 0
fi
# The tests make clusters of their own.
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] \
    || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql >/dev/null
