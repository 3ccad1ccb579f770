"""`render` returns the Kubernetes objects of a kustomization, as `kubectl kustomize` does.

It knows what deploy/kubernetes uses and nothing else: resources, and strategic merge patches that
name their object. tests/test_deploy.py compares it with kubectl where that is installed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

Object = dict[str, Any]

MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""By which key the items of a list are merged. A patch replaces every other list."""

_FIELDS = {"apiVersion", "kind", "resources", "patches"}


def render(folder: Path) -> list[Object]:
    """Returns the objects of a kustomization.

    Raises:
        ValueError: It uses what is not known here, or patches an object that it does not have.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    if unknown := kustomization.keys() - _FIELDS:
        raise ValueError(f"{folder.name} has {sorted(unknown)}, which render does not know")
    objects: list[Object] = []
    for name in kustomization["resources"]:
        path = folder / name
        objects += render(path) if path.is_dir() else documents(path)
    by_name = {_identity(item): number for number, item in enumerate(objects)}
    if len(by_name) < len(objects):
        raise ValueError(f"{folder.name} has an object twice")
    for patch in kustomization.get("patches", []):
        if patch.keys() != {"path"}:
            raise ValueError(f"{folder.name} has a patch with {sorted(patch)}, not a path")
        for document in documents(folder / patch["path"]):
            if _identity(document) not in by_name:
                raise ValueError(f"{patch['path']} patches {_identity(document)}, which is missing")
            place = by_name[_identity(document)]
            objects[place] = _merged(objects[place], document)
    return objects


def documents(path: Path) -> list[Object]:
    """Returns the objects of a file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def _identity(item: Object) -> tuple[str, str, str]:
    return item["apiVersion"], item["kind"], item["metadata"]["name"]


def _merged(below: Object, patch: Object) -> Object:
    """Returns an object with the fields of a patch in place of its own."""
    merged = copy.deepcopy(below)
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        elif isinstance(value, list) and _merges(name, [*value, *merged.get(name, [])]):
            merged[name] = _merged_list(merged.get(name, []), value, MERGE_KEYS[name])
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def _merges(name: str, items: list[Any]) -> bool:
    """Returns whether a list is merged by a key: `ports` of a Service, for one, has another."""
    key = MERGE_KEYS.get(name)
    return key is not None and all(isinstance(item, dict) and key in item for item in items)


def _merged_list(below: list[Object], patch: list[Object], key: str) -> list[Object]:
    """Returns the items of a patch, each merged with its like, then the others."""
    old = {item[key]: item for item in below}
    changed = [_merged(old.get(item[key], {}), item) for item in patch]
    names = {item[key] for item in patch}
    return changed + [item for item in below if item[key] not in names]
