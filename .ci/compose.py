"""Checks docker-compose.yml where no docker compose is: parses it and follows its references.

usage: compose.py FILE
"""

import sys

try:
    import yaml
except ModuleNotFoundError:
    sys.exit("compose.py: neither docker compose nor Python's yaml is here (Debian: python3-yaml)")

ONE_SHOT = {"migrate"}


def faults(compose):
    services, volumes = compose["services"], set(compose.get("volumes") or {})
    for name, service in services.items():
        if not ("image" in service or "build" in service):
            yield f"{name} has neither image nor build"
        if ":" not in service.get("image", ":") and "build" not in service:
            yield f"{name}: image without a version"
        if "healthcheck" not in service and name not in ONE_SHOT:
            yield f"{name} has no health check"
        for other, how in (service.get("depends_on") or {}).items():
            if other not in services:
                yield f"{name} depends on {other}, which is not there"
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                yield f"{name} waits for the health of {other}, which has no check"
        for mount in service.get("volumes") or []:
            source = mount.split(":")[0]
            if not source.startswith((".", "/")) and source not in volumes:
                yield f"{name} mounts {source}, which is not declared"


with open(sys.argv[1], encoding="utf-8") as file:
    found = list(faults(yaml.safe_load(file)))
if found:
    sys.exit("\n".join(found))
