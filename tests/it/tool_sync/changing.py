"""An MCP server over stdio whose tools are what a file says: {"tools": [...], "fail": false}.

It lists one tool a page, and tells when the file changes. Calls are noted in a file beside it.
"""
import json
import os
import sys
import threading
import time

STATE, LOCK = sys.argv[1], threading.Lock()


def state():
    with open(STATE, encoding="utf-8") as file:
        return json.load(file)


def say(message):
    with LOCK:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def watch():
    last = os.stat(STATE).st_mtime_ns
    while True:
        time.sleep(0.05)
        now = os.stat(STATE).st_mtime_ns
        if now != last:
            last = now
            say({"method": "notifications/tools/list_changed"})


def answer(method, params):
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "changing", "version": "1"},
        }
    if method == "tools/list":
        tools, at = state()["tools"], int(params.get("cursor", 0))
        more = {"nextCursor": str(at + 1)} if at + 1 < len(tools) else {}
        return {"tools": tools[at : at + 1], **more}
    if method == "tools/call":
        with open(STATE.rsplit(".", 1)[0] + ".calls", "a", encoding="utf-8") as book:
            book.write(params["name"] + "\n")
        return {"content": [{"type": "text", "text": os.environ.get("TOKEN", "nobody")}]}
    return {}


threading.Thread(target=watch, daemon=True).start()
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue
    if state().get("fail"):
        sys.stderr.write("told to fail\n")
        sys.exit(3)
    say({"id": message["id"], "result": answer(message["method"], message.get("params") or {})})
