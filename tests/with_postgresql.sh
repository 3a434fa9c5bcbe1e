#!/usr/bin/env bash
# Runs a command beside a PostgreSQL server of its own, whose address is TEST_POSTGRESQL; both end together.
set -euo pipefail
programs=$(command -v initdb || ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -n 1) \
    || { echo "no initdb: install PostgreSQL (Debian: postgresql)" >&2; exit 1; }
programs=$(dirname "$programs")
as=()
folder=$(mktemp -d)
if [ "$(id -u)" = 0 ]; then # the server refuses to run as root
    as=(runuser -u postgres --)
    chown postgres "$folder"
fi
cd "$folder"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
trap '"${as[@]}" "$programs/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null; rm -rf "$folder"' EXIT
"${as[@]}" "$programs/initdb" -D "$folder/data" -U tests -A trust >/dev/null
"${as[@]}" "$programs/pg_ctl" -D "$folder/data" -l "$folder/log" -w -t 60 \
    -o "-p $port -k $folder -c listen_addresses=127.0.0.1" start >/dev/null
cd "$OLDPWD"
TEST_POSTGRESQL="postgresql+psycopg://tests@127.0.0.1:$port/postgres" "$@"
