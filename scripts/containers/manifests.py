"""Writes configs/kubernetes/rayservice.yaml: its template, with configs/prod.yaml and the release of Ray put in."""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROD = ROOT / "configs" / "prod.yaml"
TEMPLATE = ROOT / "configs" / "kubernetes" / "rayservice.yaml.in"
MANIFEST = TEMPLATE.with_suffix("")  # without .in
OURS = ("guard", "metrics")  # blocks that are not Serve's
SERVE_INDENT, CONFIG_MAP_INDENT = 4 * " ", 4 * " "


def main() -> int:
    """Writes the file."""
    MANIFEST.write_text(manifest(TEMPLATE.read_text(encoding="utf-8"), PROD.read_text(encoding="utf-8")), "utf-8")
    return 0


def manifest(template: str, prod: str) -> str:
    """Returns the template with a config put in.

    Args:
        template: with the marks of `filled`.
        prod: text of a Serve config with our own blocks.
    """
    config = yaml.safe_load(prod)
    filled = {
        "@PROD_YAML@": indent(prod.rstrip(), CONFIG_MAP_INDENT),
        "@SERVE_CONFIG@": indent(serve_config(config).rstrip(), SERVE_INDENT),
        "@RAY_VERSION@": version("ray"),
        "@GUARD_DIGEST@": guard_digest(config),
    }
    for mark, text in filled.items():
        template = template.replace(mark, text)
    return template


def serve_config(config: dict[str, Any]) -> str:
    """Returns the part of a config that is Serve's, as YAML."""
    return yaml.safe_dump({key: value for key, value in config.items() if key not in OURS}, sort_keys=False, width=110)


def guard_digest(config: dict[str, Any]) -> str:
    """Returns a digest of what the proxies read only when they start, so that a change of it starts new ones."""
    ingress = next(each for each in config["applications"][0]["deployments"] if each["name"] == "Ingress")
    read = [config.get("guard"), config.get("metrics"), ingress.get("user_config", {}).get("trusted_proxies")]
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
