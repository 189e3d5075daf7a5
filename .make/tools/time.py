"""Starts the MCP server mcp-server-time from a folder of packages: time.py FOLDER [ARGUMENTS]."""

import sys

sys.path.insert(0, sys.argv.pop(1))

from mcp_server_time import main  # noqa: E402

main()
