"""JSON schemas that every client takes: no references, no unions with null, nothing spurious."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_DROPPED = frozenset({"title", "$defs"})


def portable(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a model, written out in plain JSON Schema (any draft from 4 on)."""
    schema = model.model_json_schema()
    plain = _plain(schema, schema.get("$defs", {}))
    assert isinstance(plain, dict)
    plain.pop("description", None)
    plain.setdefault("properties", {})
    return plain


def _plain(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_plain(one, definitions) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        found = definitions[node["$ref"].rpartition("/")[2]]
        return _plain({**found, **{k: v for k, v in node.items() if k != "$ref"}}, definitions)
    if "anyOf" in node:
        kinds = [one for one in node["anyOf"] if one.get("type") != "null"]
        if len(kinds) == 1:
            rest = {k: v for k, v in node.items() if k not in ("anyOf", "default")}
            return _plain({**kinds[0], **rest}, definitions)
    made: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            made[key] = {name: _plain(one, definitions) for name, one in value.items()}
        elif key not in _DROPPED and not (key == "format" and value in ("base64", "binary")):
            made[key] = _plain(value, definitions)
    return made
