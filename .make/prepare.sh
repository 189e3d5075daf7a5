#!/usr/bin/env bash
# Writes what the query macros need to build without a database into .sqlx, or with --check
# says whether that folder is as it should be. Runs under with-postgres.sh.
set -euo pipefail

cd "$(dirname "$0")/.."
fresh=$(mktemp -d "${TMPDIR:-/tmp}/gristmill-sqlx.XXXXXX")
trap 'rm -rf "$fresh"' EXIT

for migration in migrations/*.sql; do
    if ! "$PGBIN/psql" "$DATABASE_URL" --quiet --no-psqlrc --single-transaction -v ON_ERROR_STOP=1 \
        -f "$migration" >"$fresh/migrate.log" 2>&1; then
        cat "$fresh/migrate.log" >&2
        echo "prepare: $migration failed" >&2
        exit 1
    fi
done
rm -f "$fresh/migrate.log"

# The macros write only while they expand, and cargo runs them only for what changed.
touch src/lib.rs src/main.rs
for test in tests/*.rs tests/*/main.rs; do
    [ -f "$test" ] && touch "$test"
done
SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$fresh" "${CARGO:-cargo}" test --quiet --no-run

count=$(find "$fresh" -name 'query-*.json' | wc -l | tr -d ' ')
if [ "${1:-}" = --check ]; then
    mkdir -p .sqlx
    if ! diff -rq .sqlx "$fresh"; then
        echo "prepare: .sqlx is not what the queries and migrations say; run \`make prepare\` and commit it" >&2
        exit 1
    fi
    echo "prepare: .sqlx is right ($count queries)"
else
    rm -rf .sqlx
    mkdir .sqlx
    find "$fresh" -name 'query-*.json' -exec cp {} .sqlx/ \;
    echo "prepare: $count queries in .sqlx"
fi
