#!/usr/bin/env bash
# Runs a command beside a throw-away Postgres: DATABASE_URL names its superuser, PGBIN its
# programs. Nothing of it is left behind, however the command ends.
#
# usage: with-postgres.sh COMMAND…      (TEST_DATABASE_URL set: that server is used instead)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
packed=${GRISTMILL__EMBEDDED__DEPS_DIR:-$here/../.deps}/pg0/pg0

if [ -n "${TEST_DATABASE_URL:-}" ]; then
    export DATABASE_URL=$TEST_DATABASE_URL
    exec "$@"
fi
if [ ! -x "$packed" ]; then
    echo "with-postgres: $packed is missing: run \`make deps\`" >&2
    exit 1
fi

folder=$(mktemp -d "${TMPDIR:-/tmp}/gristmill-postgres.XXXXXX")
home=$folder/home
mkdir "$home"
chmod 755 "$folder"

# The server inherits no descriptor of ours: a pipe behind us would otherwise never end.
cleanup() {
    local pid
    if [ -f "$home/data/postmaster.pid" ]; then
        pid=$(head -n 1 "$home/data/postmaster.pid")
        # At once and without a checkpoint: nobody reads these data again.
        kill -QUIT "$pid" 2>/dev/null || true
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    fi
    rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Postgres refuses to run as root: another user runs it, from a copy it can reach.
as_server=(env -i)
if [ "$(id -u)" = 0 ]; then
    cp "$packed" "$folder/pg0"
    chmod 755 "$folder/pg0"
    packed=$folder/pg0
    chown 65534:65534 "$home"
    if command -v setpriv >/dev/null; then
        as_server=(setpriv --reuid 65534 --regid 65534 --clear-groups env -i)
    elif command -v runuser >/dev/null; then
        as_server=(runuser -u nobody -- env -i)
    else
        echo "with-postgres: root needs setpriv or runuser (util-linux) to start Postgres as another user" >&2
        exit 1
    fi
fi

free_port() {
    "${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

locale=C.UTF-8
[ "$(uname)" = Darwin ] && locale=en_US.UTF-8
# sqlx makes a database for each test: many connections, and nothing that waits for a disk.
options=(fsync=off full_page_writes=off synchronous_commit=off unix_socket_directories= max_connections=300
    shared_buffers=128MB maintenance_work_mem=64MB max_wal_size=2GB)
url=
for _ in 1 2 3; do
    port=$(free_port)
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    if (cd "$home" && "${as_server[@]}" HOME="$home" PATH=/usr/local/bin:/usr/bin:/bin LC_ALL=$locale "$packed" start \
        --name test --port "$port" --data-dir "$home/data" --username postgres --password "$password" \
        --database postgres "${options[@]/#/--config=}") >"$folder/start.log" 2>&1 </dev/null; then
        url=postgresql://postgres:$password@127.0.0.1:$port/postgres
        break
    fi
done
if [ -z "$url" ]; then
    echo "with-postgres: the server did not start:" >&2
    tail -n 20 "$folder/start.log" >&2
    exit 1
fi

export DATABASE_URL=$url
PGBIN=$(echo "$home"/.pg0/installation/*/bin)
export PGBIN
status=0
"$@" || status=$?
exit "$status"
