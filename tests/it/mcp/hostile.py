"""An MCP server over stdio that misbehaves on order: hostile.py MODE [FILE].

It answers `server/discover` as an older server does, with an error, unless its mode says otherwise.
FILE is where it leaves its process ids, one a line.
"""

import json
import os
import signal
import subprocess
import sys
import time

MODE = sys.argv[1] if len(sys.argv) > 1 else "honest"
if len(sys.argv) > 2:
    with open(sys.argv[2], "a", encoding="utf-8") as pids:
        pids.write(f"{os.getpid()}\n")


def send(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def answer(request, result):
    send({"id": request["id"], "result": result})


def text(words):
    return {"content": [{"type": "text", "text": words}]}


def progress(request, n, message=None):
    token = request["params"]["_meta"]["progressToken"]
    params = {"progressToken": token, "progress": n}
    if message is not None:
        params["message"] = message
    send({"method": "notifications/progress", "params": params})


def log(words):
    send({"method": "notifications/message", "params": {"level": "info", "logger": "hostile", "data": words}})


def endless(size):
    block = "x" * 65536
    sent = 0
    try:
        while size is None or sent < size:
            sys.stdout.write(block)
            sent += len(block)
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(0)


def grandchild(arguments):
    code = "import os,sys,time;open(sys.argv[1],'a').write(f'{os.getpid()}\\n');time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code, sys.argv[2]], stdin=subprocess.DEVNULL,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **arguments)
    # Until it has left its id.
    while len(open(sys.argv[2], encoding="utf-8").read().split()) < 2:
        time.sleep(0.01)


def call(request):
    name = request["params"]["name"]
    arguments = request["params"].get("arguments", {})
    if name == "echo":
        return answer(request, text(json.dumps(arguments)))
    if name == "meta":
        return answer(request, text(json.dumps(request["params"]["_meta"])))
    if name == "environment":
        return answer(request, text(json.dumps(dict(os.environ))))
    if name == "pid":
        return answer(request, text(str(os.getpid())))
    if name == "die":
        sys.stderr.write("the disk is on fire\n")
        sys.stderr.flush()
        os._exit(7)
    if name == "hang":
        return None
    if name == "answer_and_exit":
        answer(request, text("my last words"))
        os._exit(0)
    if name == "work":
        for n in range(int(arguments["steps"])):
            progress(request, n, f"step {n}")
            time.sleep(arguments["pause"])
        return answer(request, text("done"))
    if name == "big":
        return answer(request, text("x" * int(arguments["bytes"])))
    if name == "line":
        log("so far so good")
        progress(request, 1, "nearly there")
        return endless(int(arguments["bytes"]))
    if name == "flood":
        while True:
            log("y" * 1000)
    if name == "flood_progress":
        n = 0
        while True:
            n += 1
            progress(request, n, "z" * 1000)
    if name == "wrong_id":
        return send({"id": 987654, "result": text("for somebody else")})
    if name == "error":
        return send({"id": request["id"], "error": {"code": -32602, "message": "no such thing"}})
    if name == "sampling":
        send({"id": "mine-1", "method": "sampling/createMessage",
              "params": {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 5}})
        send({"id": "mine-2", "method": "elicitation/create",
              "params": {"message": "your password?", "requestedSchema": {"type": "object", "properties": {}}}})
        send({"id": "mine-3", "method": "roots/list"})
        send({"id": "mine-4", "method": "ping"})
        answers = {}
        while len(answers) < 4:
            reply = json.loads(sys.stdin.readline())
            if str(reply.get("id")).startswith("mine-"):
                answers[reply["id"]] = reply.get("error", {}).get("code", "ok")
        return answer(request, text(json.dumps(answers)))
    if name == "odd_content":
        return answer(request, {"content": [{"type": "hologram", "data": "?"}], "structuredContent": {"n": 1}})
    if name == "change":
        send({"method": "notifications/tools/list_changed"})
        return answer(request, text("changed"))
    return send({"id": request["id"], "error": {"code": -32602, "message": "unknown tool"}})


def serve():
    cancelled = []
    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method")
        if method == "initialize":
            if MODE == "no_initialize":
                continue
            if MODE == "wrong_initialize_id":
                send({"id": 987654, "result": {}})
                continue
            answer(message, {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}, "logging": {}},
                             "serverInfo": {"name": "hostile", "version": "1"}})
        elif method == "notifications/initialized" and MODE == "floods_unasked":
            while True:
                log("w" * 1000)
        elif method == "tools/list":
            tools = [{"name": n, "inputSchema": {"type": "object"}} for n in ("echo", "die", "hang")]
            answer(message, {"tools": tools})
        elif method == "tools/call":
            if message["params"]["name"] == "cancelled":
                answer(message, text(json.dumps(cancelled)))
            elif message["params"]["name"] == "deaf":
                while True:
                    time.sleep(60)
            else:
                call(message)
        elif method == "notifications/cancelled":
            cancelled.append(message["params"]["requestId"])
        elif "id" in message and method is not None:
            if MODE == "silent_about_discover" and method == "server/discover":
                continue
            if MODE == "dies_of_discover" and method == "server/discover":
                os._exit(3)
            send({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})


if MODE == "exit_0":
    sys.exit(0)
if MODE == "exit_4":
    sys.stderr.write("no configuration\n" * 2000 + "cannot go on\n")
    sys.exit(4)
if MODE == "never_reads":
    time.sleep(600)
if MODE == "junk":
    print("Starting up...\n\x1b[32mready\x1b[0m\n{not json", flush=True)
if MODE == "only_junk":
    while True:
        print("tick", flush=True)
if MODE == "line_at_once":
    endless(None)
if MODE == "ignores_sigterm":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if MODE == "forks":
    grandchild({})
if MODE == "forks_away":
    grandchild({"start_new_session": True})
serve()
if MODE == "ignores_sigterm":
    time.sleep(600)
