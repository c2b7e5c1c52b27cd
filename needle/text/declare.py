"""Tools that are declared in Python: typed functions and pydantic models, as JSON Schema."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from docstring_parser import parse as parse_docstring
from pydantic import BaseModel, Field, create_model
from pydantic.errors import PydanticUserError

from needle.text.records import ToolSchemaError


def declared(tool: Any, where: str) -> Any:
    """The declaration of a function or a pydantic model; anything else as it is. Raises `ToolSchemaError`."""
    if isinstance(tool, type) and issubclass(tool, BaseModel):
        return declared_model(tool, where)
    if inspect.isroutine(tool):
        return declared_function(tool, where)
    return tool


def declared_function(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """The declaration of a function: its hints as JSON Schema, its docstring's words. Raises `ToolSchemaError`."""
    words = parse_docstring(inspect.getdoc(function) or "")
    about = {param.arg_name: param.description or "" for param in words.params}
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if name.startswith("_") and parameter.default is not parameter.empty:
                continue  # private
            if not fields and name in ("self", "cls") and "." in getattr(function, "__qualname__", ""):
                continue  # a method that isn't bound
            default = ... if parameter.default is parameter.empty else parameter.default
            said = str if default in (..., None) else type(default)  # without a hint, a default tells
            fields[name] = (hints.get(name, said), Field(default, description=about.get(name) or None))
        schema = create_model(function.__name__, **fields).model_json_schema()
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        raise _says_nothing(where, error) from error
    return {"name": function.__name__, "description": _plain(words.description), "parameters": schema}


def declared_model(model: type[BaseModel], where: str) -> dict[str, Any]:
    """The declaration of a pydantic model: its name is the tool's, its fields are the arguments. Raises
    `ToolSchemaError`."""
    try:
        schema = model.model_json_schema()
    except (PydanticUserError, TypeError, ValueError) as error:
        raise _says_nothing(where, error) from error
    return {"name": model.__name__, "description": _plain(schema.pop("description", "")), "parameters": schema}


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def _says_nothing(where: str, error: Exception) -> ToolSchemaError:
    return ToolSchemaError(where, f"the type hints say nothing that JSON could hold: {str(error).splitlines()[0]}")
