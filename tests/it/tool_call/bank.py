"""An MCP server over stdio whose one tool has effects: each is a line in the book, however it ends."""

import json
import os
import sys
import time

book, manner = sys.argv[1], sys.argv[2]


def say(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def pay(request):
    meta = request["params"].get("_meta", {})
    with open(book, "a") as lines:
        lines.write(json.dumps({"key": meta.get("gristmill/idempotencyKey"), "call": meta.get("gristmill/callId"),
                                "sum": request["params"]["arguments"].get("sum")}) + "\n")
        lines.flush()
        os.fsync(lines.fileno())
    if manner == "dies":
        os._exit(1)
    if manner == "slow":
        for step in range(1, 41):
            token = meta.get("progressToken")
            if token is not None:
                say({"method": "notifications/progress",
                     "params": {"progressToken": token, "progress": step, "total": 40, "message": "counting"}})
            time.sleep(0.1)
    if manner == "fails":
        return {"content": [{"type": "text", "text": "no funds\u0000 left"}], "isError": True}
    return {"content": [{"type": "text", "text": "paid"},
                        {"type": "image", "mimeType": "image/png", "data": "QUJD"}],
            "structuredContent": {"receipt": 7}}


for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    if method == "initialize":
        say({"id": message["id"], "result": {
            "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
            "serverInfo": {"name": "bank", "version": "1"}}})
    elif method == "tools/call":
        say({"id": message["id"], "result": pay(message)})
    elif "id" in message:
        say({"id": message["id"], "error": {"code": -32601, "message": "no such method"}})
