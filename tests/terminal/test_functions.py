"""Functions of a Python file become tools."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from headgate.errors import UsageError
from headgate.terminal import Toolbox, load_toolbox
from headgate.terminal.toolbox import LocalTool

SOURCE = '''
from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Literal, Optional


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Place:
    name: str
    height: float


def everything(
    city: Annotated[str, "Name of the city"],
    count: int,
    share: float = 0.5,
    urgent: bool = False,
    tags: list[str] = [],
    sizes: dict[str, int] | None = None,
    unit: Literal["km", "miles"] = "km",
    colour: Colour = Colour.RED,
    limit: Optional[int] = None,
    place: Place | None = None,
) -> str:
    """Does everything.

    In several lines.

    Args:
        count: how often,
            over two lines.
        share (float): part of it.

    Returns:
        what it got
    """
    return repr((city, count, share, urgent, tags, sizes, unit, colour, limit, place))


def no_tool(x):
    return x


def _private(x: int) -> int:
    """Not offered."""
    return x


async def later(x: int) -> dict[str, int]:
    """Comes later."""
    return {"x": x}


def fails() -> None:
    """Fails."""
    print("on its way")
    raise KeyError("nothing here")


def quits() -> None:
    """Quits."""
    raise SystemExit(1)
'''


def load(tmp_path: Path, source: str, name: str = "tools.py") -> Toolbox:
    path = tmp_path / name
    path.write_text(textwrap.dedent(source))
    return load_toolbox([path])


def tool(box: Toolbox, name: str) -> LocalTool:
    found = box.get(name)
    assert found is not None and found.run is not None
    return found


def run(box: Toolbox, name: str, **arguments: Any) -> str:
    call = tool(box, name).run
    assert call is not None
    return call(arguments)


def test_public_functions_with_a_docstring_are_tools(tmp_path: Path) -> None:
    box = load(tmp_path, SOURCE)
    assert [t.name for t in box.tools] == ["everything", "later", "fails", "quits"]
    assert tool(box, "everything").description == "Does everything.\n\nIn several lines."


def test_schemas_come_from_signatures(tmp_path: Path) -> None:
    schema = tool(load(tmp_path, SOURCE), "everything").declaration["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(schema)
    properties = schema["properties"]
    assert schema["required"] == ["city", "count"]
    assert properties["city"] == {"type": "string", "description": "Name of the city"}
    assert properties["count"] == {"type": "integer", "description": "how often, over two lines."}
    share = {"type": "number", "default": 0.5, "description": "part of it."}
    assert properties["share"] == share
    assert properties["urgent"] == {"type": "boolean", "default": False}
    assert properties["tags"] == {"type": "array", "items": {"type": "string"}, "default": []}
    assert properties["unit"]["enum"] == ["km", "miles"]
    assert properties["limit"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
    good = {"city": "Oslo", "count": 2, "colour": "blue", "place": {"name": "x", "height": 1}}
    jsonschema.validate(good, schema)
    for bad in ({"city": "Oslo"}, {**good, "colour": "green"}, {**good, "other": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_arguments_become_what_the_signature_says(tmp_path: Path) -> None:
    box = load(tmp_path, SOURCE)
    assert run(box, "everything", city="Oslo", count=2, colour="blue", sizes={"a": 1}) == (
        "('Oslo', 2, 0.5, False, [], {'a': 1}, 'km', <Colour.BLUE: 'blue'>, None, None)"
    )
    assert run(box, "later", x=3) == '{"x": 3}'


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"count": 1}, "city: Missing required argument"),
        ({"city": "a", "count": "many"}, "count: Input should be a valid integer"),
        ({"city": "a", "count": 1, "colour": "green"}, "colour: Input should be 'red' or 'blue'"),
        ({"city": "a", "count": 1, "q": 1}, "q: Unexpected keyword argument"),
    ],
)
def test_wrong_arguments_are_explained(
    tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        run(load(tmp_path, SOURCE), "everything", **arguments)


def test_a_functions_own_errors_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = load(tmp_path, SOURCE)
    with pytest.raises(KeyError, match="nothing here"):
        run(box, "fails")
    with pytest.raises(SystemExit):
        run(box, "quits")
    assert capsys.readouterr() == ("", "on its way\n")


def test_all_decides_what_is_offered(tmp_path: Path) -> None:
    source = "__all__ = ['f']\ndef f(x: int) -> int: return x\ndef g() -> int:\n    'G.'\n"
    assert [t.name for t in load(tmp_path, source).tools] == ["f"]
    with pytest.raises(UsageError, match="__all__ names h"):
        load(tmp_path, "__all__ = ['h']")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(x):\n    'F.'\n", "f: parameter x has no type annotation"),
        ("def f(*x: int):\n    'F.'\n", "f: parameter .* cannot be given by name"),
        ("def f(x: int, /):\n    'F.'\n", "f: parameter .* cannot be given by name"),
        ("def f(x: Nothing):\n    'F.'\n", "name 'Nothing' is not defined"),
        ("class A: ...\ndef f(x: A):\n    'F.'\n", "f: JSON cannot express"),
        ("x = 1\n", "no public function with a docstring"),
        ("def f(:\n", "line 1: SyntaxError"),
        ("\nx = 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("raise SystemExit('no')\n", "line 1: SystemExit: no"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_bad_files_give_one_line(tmp_path: Path, source: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        load(tmp_path, source)
    assert "\n" not in str(caught.value) and "tools.py" in str(caught.value)


def test_missing_files_and_equal_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        load_toolbox([tmp_path / "no.py"])
    source = "def f(x: int):\n    'F.'\n"
    load(tmp_path, source)
    load(tmp_path, source, "more.py")
    with pytest.raises(UsageError, match="both have a function named f"):
        load_toolbox([tmp_path / "tools.py", tmp_path / "more.py"])


def test_json_files_declare_and_do_not_run(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"name": "f", "parameters": {"type": "object"}}]))
    box = load_toolbox([path])
    assert [t.run for t in box.tools] == [None]
    with pytest.raises(UsageError, match="no function named f that could run"):
        box.allow("f")
