"""Building blocks of request schemas.

Every field that clients are known to send is declared: honoured, accepted because it
has nothing to change here, or refused by name. A field that is not declared is refused
as unknown, so that nobody believes in an option that does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Fields(BaseModel):
    """A JSON object of a request. No conversions: ``"1"`` is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


@dataclass(frozen=True)
class Refused:
    """Marks a field that may only be absent, null (if ``null``), or one of ``harmless``:
    asking for more is an error that says why."""

    why: str
    harmless: tuple[Any, ...] = ()
    null: bool = True

    def check(self, value: Any) -> Any:
        if (value is None and self.null) or any(
            value == x and type(value) is type(x) for x in self.harmless
        ):
            return value
        raise PydanticCustomError("unsupported", "{why}", {"why": self.why})

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        allowed = [*([None] if self.null else []), *self.harmless]
        described = {"description": f"Not supported: {self.why}."}
        return {"enum": allowed, **described} if allowed else {"not": {}, **described}


@dataclass(frozen=True)
class OnlyText:
    """Marks the ``type`` of a content part: one of ``names``, all of which are text."""

    names: tuple[str, ...]

    def check(self, value: Any) -> str:
        if isinstance(value, str) and value in self.names:
            return value
        raise PydanticCustomError(
            "unsupported",
            "{value} is not supported here: the model reads text ({names})",
            {"value": repr(value)[:80], "names": ", ".join(self.names)},
        )

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": list(self.names)}


#: Accepted, and nothing here depends on it.
Ignored = Annotated[Any, Field(description="Accepted; has no effect here.")]

NonEmpty = Annotated[str, Field(min_length=1)]
#: As OpenAI requires of function names, but with dots and slashes, which MCP tools have.
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{1,128}$")]
JsonMap = dict[str, Any]

Probability = Annotated[float, Field(gt=0, le=1)]

#: Below this, float32 logits overflow; so cold a choice is always the likeliest token.
COLDEST = 1e-4


def _thawed(temperature: float) -> float:
    return temperature if temperature >= COLDEST else 0.0


Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_thawed)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=1 << 31)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
TopK = Annotated[int, Field(ge=0, le=1 << 31)]
#: Token ids as JSON object keys.
LogitBias = dict[
    Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]
]


def locate(errors: list[Any], body: Any) -> tuple[str, str]:
    """The most telling of a body's validation errors.

    Args:
        errors: pydantic's.
        body: what was validated.

    Returns:
        path of the field, such as ``messages[0].content``; what is wrong with it.
    """
    found = [(_path(error["loc"], body, error["type"]), error) for error in errors]
    # A refusal explains itself; of a union's branches the one that matched furthest.
    path, error = max(found, key=lambda x: (x[1]["type"] == "unsupported", len(x[0])))
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    message = "unknown field" if error["type"] == "extra_forbidden" else str(error["msg"])
    return text, message


def _path(loc: tuple[Any, ...], body: Any, kind: str) -> list[str | int]:
    """``loc`` without the names of union branches, which are nothing in the body."""
    path: list[str | int] = []
    for step in loc[1:] if loc and loc[0] in ("body", "query", "path") else loc:
        inside = (isinstance(body, dict) and isinstance(step, str) and step in body) or (
            isinstance(body, list) and isinstance(step, int) and step < len(body)
        )
        if inside:
            body = body[step]
        if inside or (kind == "missing" and step is loc[-1]):
            path.append(step)
    return path
