"""Functions of a Python file as tools: the schema comes from the signature."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ArgsKwargs, to_jsonable_python

from headgate.chat.schema import Tool
from headgate.errors import UsageError

Run = Callable[[dict[str, Any]], str]

_ARGS = re.compile(r"^(Args|Arguments|Parameters):\s*$", re.MULTILINE)
_SECTION = re.compile(r"^\w[\w ]*:\s*$", re.MULTILINE)
_PARAMETER = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


class _Schema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a title would repeat the parameter's name


def load_functions(path: Path) -> list[tuple[Tool, Run]]:
    """The tools of a Python file, which is executed: its public functions that have a
    docstring, or those that ``__all__`` names.

    Parameters need type annotations that JSON can express: int, float, str, bool, list,
    dict, Literal, Optional, Enum, dataclasses. A parameter is described by
    ``Annotated[type, "text"]`` or in the docstring below ``Args:``.

    Raises:
        UsageError: says what is wrong with the file.
    """
    module = _load(path)
    found = [_tool(path, function) for function in _functions(path, module)]
    if not found:
        raise UsageError(f"tools file {path} has no public function with a docstring")
    return found


def _load(path: Path) -> ModuleType:
    name = f"headgate_tools_{re.sub(r'[^0-9A-Za-z]', '_', str(path.resolve()))}"
    if not path.is_file():
        raise UsageError(f"cannot read tools file {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"tools file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and type hints look their names up
    sys.path.insert(0, str(path.resolve().parent))  # its own neighbours, as python FILE.py has
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the file does
        del sys.modules[name]
        raise UsageError(f"tools file {path}: {_where(path, error)}{_said(error)}") from None
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _where(path: Path, error: BaseException) -> str:
    """The line of the file at which an error arose."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: "
    trace, line = error.__traceback__, None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _functions(path: Path, module: ModuleType) -> list[Callable[..., Any]]:
    public = getattr(module, "__all__", None)
    if public is None:
        return [
            value
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
            and inspect.getdoc(value)
        ]
    named = [getattr(module, str(name), None) for name in public]
    for name, value in zip(public, named, strict=True):
        if not inspect.isfunction(value):
            raise UsageError(f"tools file {path}: __all__ names {name}, which is no function")
    return [value for value in named if value is not None]


def _tool(path: Path, function: Any) -> tuple[Tool, Run]:
    where = f"tools file {path}: {function.__name__}"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UsageError(f"{where}: parameter {parameter} cannot be given by name")
        if parameter.annotation is parameter.empty:
            raise UsageError(f"{where}: parameter {parameter.name} has no type annotation")
    try:
        hints = get_type_hints(function, include_extras=True)
        adapter: TypeAdapter[Any] = TypeAdapter(function)
        schema = adapter.json_schema(schema_generator=_Schema)
    except (NameError, TypeError, PydanticUserError, PydanticSchemaGenerationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"{where}: JSON cannot express its signature: {first}") from None
    description, texts = _documentation(inspect.getdoc(function) or "")
    for name, hint in hints.items():
        if name in schema.get("properties", {}):
            _describe(schema["properties"][name], hint, texts.get(name))
    declared = {"name": function.__name__, "description": description, "parameters": schema}
    return {"type": "function", "function": declared}, _runner(function.__name__, adapter)


def _describe(schema: dict[str, Any], hint: Any, text: str | None) -> None:
    if get_origin(hint) is Annotated:
        text = next((extra for extra in get_args(hint)[1:] if isinstance(extra, str)), text)
    if text:
        schema.setdefault("description", text)


def _documentation(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring's text, and what it says of each parameter below ``Args:``."""
    found = _ARGS.search(doc)
    if found is None:
        return doc.strip(), {}
    rest = doc[found.end() :]
    following = _SECTION.search(rest)
    body = rest[: following.start()] if following else rest
    texts: dict[str, str] = {}
    name = None
    for line in textwrap.dedent(body.strip("\n")).splitlines():
        begin = _PARAMETER.match(line)
        if begin is not None:
            name = begin[1]
            texts[name] = begin[2].strip()
        elif name is not None and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return doc[: found.start()].strip(), texts


def _runner(name: str, adapter: TypeAdapter[Any]) -> Run:
    def run(arguments: dict[str, Any]) -> str:
        # What a function prints is no part of an answer.
        with contextlib.redirect_stdout(sys.stderr):
            try:
                value = adapter.validate_python(ArgsKwargs((), arguments))
            except ValidationError as error:
                if error.title != f"call[{name}]":
                    raise  # of the function itself
                raise ValueError(_complaints(error)) from None
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
        return value if isinstance(value, str) else _as_json(value)

    return run


def _as_json(value: Any) -> str:
    return json.dumps(to_jsonable_python(value, fallback=str), ensure_ascii=False)


def _complaints(error: ValidationError) -> str:
    """What is wrong with the arguments, for the model to do better."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    )
