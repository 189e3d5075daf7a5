#!/usr/bin/env bash
# Brings MCP servers that nobody here wrote, and the protocol's conformance suites, into .deps/mcp:
# optional, for tests alone, which skip what is not there.
#
# usage: deps-tools.sh [DIRECTORY]      (default: .deps/mcp beside the Makefile)
#        deps-tools.sh --demo           what `make demo` calls, and no more
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
only=
if [ "${1:-}" = --demo ]; then
    only=demo
    shift
fi
into=${1:-$here/../.deps/mcp}
python=${PYTHON:-python3}
mkdir -p "$into"
into=$(cd "$into" && pwd)

# What was brought last time is named in the stamp; the same again is nothing to do.
wanted=$(cat "$here"/tools/*.txt "$here"/tools/*.py "$here"/tools/*/package-lock.json | cksum)
if [ "$(cat "$into/.stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
rm -f "$into/.stamp"

missing=()

packages() { # NAME: a folder that Python can be pointed at
    rm -rf "${into:?}/$1"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action ignore --target "$into/$1" -r "$here/tools/$1.txt" ||
        missing+=("$1")
}

modules() { # NAME NPM…: a folder with node_modules
    local name=$1
    shift
    rm -rf "${into:?}/$name"
    mkdir "$into/$name"
    cp "$here/tools/$name/package.json" "$here/tools/$name/package-lock.json" "$into/$name"
    (cd "$into/$name" && npm ci --silent --no-audit --no-fund --ignore-scripts) || missing+=("$name")
}

cp "$here/tools/time.py" "$into/time.py"
if [ -n "$only" ]; then
    [ -d "$into/python" ] || packages python
    [ ${#missing[@]} -eq 0 ] || echo "deps-tools: the MCP server of the demo could not be brought; it goes on without" >&2
    exit 0
fi
packages python
packages sqlite
packages node
if command -v npm >/dev/null; then
    modules servers
    modules conformance
else
    missing+=("npm")
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "deps-tools: not brought: ${missing[*]}; tests that need them skip" >&2
    exit 0
fi
echo "$wanted" >"$into/.stamp"
