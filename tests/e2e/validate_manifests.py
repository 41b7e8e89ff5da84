"""Validates manifests by Kubernetes' schemas, and custom resources by their own definitions.

    python validate_manifests.py CRDS VERSION... < manifests.yaml

CRDS is a folder of CustomResourceDefinitions. Fields that no schema knows are errors. Prints each error on
a line, and runs in the environment of kubernetes-validate.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml


def main() -> None:
    folder, *versions = sys.argv[1:]
    custom = dict(definition(yaml.safe_load(path.read_text())) for path in Path(folder).glob("*.yaml"))
    for manifest in yaml.safe_load_all(sys.stdin):
        where = f"{manifest['kind']} {manifest['metadata']['name']}"
        if schema := custom.get((manifest["apiVersion"], manifest["kind"])):
            for error in jsonschema.Draft7Validator(schema).iter_errors(manifest):
                print(f"{where}: {error.json_path}: {error.message}")
            continue
        for version in versions:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                print(f"{where}: {version}: {list(error.path)}: {error.message}")


def definition(crd: dict[str, Any]) -> tuple[tuple[str, str], Any]:
    """What a CustomResourceDefinition defines: its version and kind, and the schema, made strict."""
    [version] = [one for one in crd["spec"]["versions"] if one["storage"]]
    name = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]
    schema = version["schema"]["openAPIV3Schema"]
    # The API server has a schema of its own for these.
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return name, strict(schema)


def strict(schema: Any) -> Any:
    """The same, but fields that it does not name are errors, and numbers and text where both are taken."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False) is True:
        made.pop("type", None)
    closed = isinstance(made.get("properties"), dict) and made.get("type") == "object"
    if closed and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


if __name__ == "__main__":
    main()
