"""A tool's arguments as callers pass them, made into the tool's own model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.tools.base import ToolModel, ToolSpec

_SHOWN_ERRORS = 5
_SHOWN_VALUE = 80


def read_arguments(
    spec: ToolSpec, arguments: ToolModel | Mapping[str, Any] | str
) -> ToolModel | InvalidRequest:
    """Validate; an error is returned, not raised: it is the answer of a task that was admitted."""
    model = spec.arguments
    if isinstance(arguments, model):
        return arguments
    try:
        if isinstance(arguments, str):
            return model.model_validate_json(arguments or "{}")
        if isinstance(arguments, Mapping):
            return model.model_validate(dict(arguments))
    except ValidationError as error:
        return InvalidRequest(_explained(spec, error))
    return InvalidRequest(
        f"arguments of {spec.name!r} are of type {type(arguments).__name__!r}; "
        f"pass {model.__name__}, a mapping or JSON text"
    )


def _explained(spec: ToolSpec, error: ValidationError) -> str:
    errors = error.errors(include_url=False, include_context=False)
    parts = [_one(spec, problem) for problem in errors[:_SHOWN_ERRORS]]
    if len(errors) > _SHOWN_ERRORS:
        parts.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    return f"arguments of {spec.name!r} are not valid: " + "; ".join(parts)


def _one(spec: ToolSpec, problem: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "json_invalid":
        return f"not JSON ({problem['msg']}); pass one JSON object"
    if problem["type"] == "missing":
        return f"field {field!r} is missing; add it"
    if problem["type"] == "extra_forbidden":
        known = ", ".join(spec.arguments.model_fields) or "none"
        return f"field {field!r} is not known; remove it (known: {known})"
    value = repr(problem["input"])
    if len(value) > _SHOWN_VALUE:
        value = value[:_SHOWN_VALUE] + "..."
    where = f"field {field!r}" if field else "the whole"
    return f"{where} is {value}: {problem['msg']}"
