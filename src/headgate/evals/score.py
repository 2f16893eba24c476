"""Right or wrong, and if wrong, how. Pure functions of an answer and what was wanted.

Calls are compared as syntax trees (name, arguments, types), as the Berkeley function
calling leaderboard does (Patil et al., 2023): white space and the order of arguments do
not count, an argument that was not asked for does. Calls of one turn have no order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from headgate.chat import ToolCall
from headgate.errors import UsageError
from headgate.evals.failures import Failure, Verdict
from headgate.evals.target import Answer

#: A piece this long that stands this often at the end of a text is a loop.
LOOP_PERIODS, LOOP_LENGTH = 4, 24
_MARKS = re.compile(r"</?(?:tool_call|function|parameter)\b|\"arguments\"\s*:")


# -- values


def kind_of(value: Any) -> str:
    """The JSON type of a value; all numbers are one type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    names: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return names.get(type(value), "unknown")


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values: true is not 1, 1 is 1.0, objects have no order."""
    if kind_of(a) != kind_of(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def difference(wanted: Any, found: Any, where: str) -> tuple[Failure, str] | None:
    """The first way in which ``found`` differs from ``wanted``; None if they are the same."""
    if same(wanted, found):
        return None
    if isinstance(wanted, dict | list) and isinstance(found, str):
        return Failure.MALFORMED, f"{where} cannot be read: {_short(found)}"
    if kind_of(wanted) != kind_of(found):
        return Failure.WRONG_TYPE, f"{where} is {_short(found)}, not a {kind_of(wanted)}"
    if isinstance(wanted, dict):
        # What cannot be read may have swallowed the next argument.
        for key, value in wanted.items():
            if isinstance(value, dict | list) and isinstance(found.get(key), str):
                return difference(value, found[key], f"{where}.{key}")
        if missing := [key for key in wanted if key not in found]:
            return Failure.MISSING_ARGUMENT, f"{where} lacks {', '.join(missing)}"
        if invented := [key for key in found if key not in wanted]:
            return Failure.INVENTED_ARGUMENT, f"{where} has {', '.join(map(str, invented))}"
        parts = [difference(wanted[key], found[key], f"{where}.{key}") for key in wanted]
        return next(part for part in parts if part is not None)
    if isinstance(wanted, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        parts = [difference(w, f, f"{where}[{i}]") for i, (w, f) in pairs]
        return next(part for part in parts if part is not None)
    why = f"{where} is {_short(found)}, not {_short(wanted)}"
    if isinstance(wanted, str) and _bare(wanted) == _bare(found):
        return Failure.WRONG_QUOTING, why
    return Failure.WRONG_VALUE, why


def _bare(text: str) -> str:
    """A string without what goes wrong in quoting: escapes, marks around it, white space."""
    for escape, plain in (("\\n", ""), ("\\t", ""), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(escape, plain)
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)
    return re.sub(r"[\s\\\"'`«»“”‘’]", "", text)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


# -- the shape of an answer


def loops(text: str) -> bool:
    """Whether the text ends in the same piece over and over."""
    tail = text[-800:].rstrip()
    for length in range(1, len(tail) // LOOP_PERIODS + 1):
        periods = max(LOOP_PERIODS, -(-LOOP_LENGTH // length))
        piece = tail[-length:]
        if piece.strip() and tail.endswith(piece * periods):
            return True
    return False


def _unfinished(answer: Answer) -> tuple[Failure, str] | None:
    """What is wrong with how an answer ended, if anything."""
    text = answer.text + "".join(answer.broken)
    if answer.finish_reason == "length":
        if loops(text or answer.reasoning) or _twice(answer.calls):
            return Failure.REPETITION, f"ends in a loop: {_short((text or answer.reasoning)[-60:])}"
        return Failure.TOO_LONG, "not finished within the limit of tokens"
    if not text.strip() and not answer.calls:
        return Failure.EARLY_STOP, "the answer is empty"
    opened = text.count("<tool_call>") > text.count("</tool_call>")
    if opened or any(_cut_json(piece) for piece in answer.broken):
        return Failure.EARLY_STOP, "ends in the middle of a call"
    return None


def _cut_json(text: str) -> bool:
    """Whether a text is the beginning of a JSON value that nothing completes."""
    try:
        json.loads(text)
    except ValueError as error:
        at = getattr(error, "pos", 0)
        unclosed = "Unterminated string" in str(error)
        return bool(text.lstrip()[:1] in ("{", "[") and (at >= len(text.rstrip()) or unclosed))
    return False


def _twice(calls: Sequence[ToolCall]) -> bool:
    return any(a.name == b.name and same(a.arguments, b.arguments)
               for i, a in enumerate(calls) for b in calls[:i])  # fmt: skip


# -- scorers


def score_calls(
    answer: Answer, wanted: Sequence[ToolCall], tools: Sequence[Mapping[str, Any]] = ()
) -> Verdict:
    """A turn in which exactly the calls ``wanted`` are right, in any order.

    Args:
        tools: those offered, to tell a made-up function from another one.
    """
    rest, missing = list(answer.calls), []
    for call in wanted:
        match = next((c for c in rest if c.name == call.name and same(c.arguments, call.arguments)),
                     None)  # fmt: skip
        if match is None:
            missing.append(call)
        else:
            rest.remove(match)
    if not missing and not rest and not answer.broken and not _MARKS.search(answer.text):
        return Verdict()
    if not missing and rest and all(any(_equal(c, w) for w in wanted) for c in rest):
        return Verdict(Failure.REPETITION, f"calls {rest[0].name} again")
    if (ended := _unfinished(answer)) is not None:
        return Verdict(*ended)
    if answer.broken or _MARKS.search(answer.text):
        return Verdict(Failure.MALFORMED, f"cannot be read: {_short(answer.text[-80:])}")
    if not answer.calls:
        return Verdict(Failure.REFUSAL, f"no call, but {_short(answer.text)}")
    if not missing:
        return Verdict(Failure.NEEDLESS_CALL, f"also calls {rest[0].name}")
    if not rest:
        return Verdict(Failure.EARLY_STOP, f"{len(missing)} of {len(wanted)} calls are missing")
    return _wrong_call(missing, rest, tools)


def _equal(a: ToolCall, b: ToolCall) -> bool:
    return a.name == b.name and same(a.arguments, b.arguments)


def _wrong_call(
    missing: Sequence[ToolCall], rest: Sequence[ToolCall], tools: Sequence[Mapping[str, Any]]
) -> Verdict:
    """Of calls that are neither right nor absent, the first one's first fault."""
    for call in missing:
        same_name = next((c for c in rest if c.name == call.name), None)
        if same_name is not None:
            found = difference(call.arguments, same_name.arguments, call.name)
            assert found is not None
            return Verdict(*found)
    known = {tool["function"]["name"] for tool in tools}
    what = "" if rest[0].name in known or not known else ", which does not exist"
    return Verdict(Failure.WRONG_FUNCTION, f"calls {rest[0].name}{what}, not {missing[0].name}")


def score_words(answer: Answer, mentions: Sequence[str] = ()) -> Verdict:
    """A turn without calls, in which every string of ``mentions`` occurs."""
    if (ended := _unfinished(answer)) is not None:
        return Verdict(*ended)
    if answer.calls:
        return Verdict(Failure.NEEDLESS_CALL, f"calls {answer.calls[0].name}")
    if answer.broken or _MARKS.search(answer.text):
        return Verdict(Failure.MALFORMED, f"cannot be read: {_short(answer.text[-80:])}")
    missing = [text for text in mentions if text not in answer.text]
    if not missing:
        return Verdict()
    plain = _bare(answer.text)
    failure = (
        Failure.WRONG_QUOTING if all(_bare(m) in plain for m in missing) else Failure.WRONG_VALUE
    )
    return Verdict(failure, f"{_short(missing[0])} is not in {_short(answer.text)}")


_BY_KEYWORD = {
    "type": Failure.WRONG_TYPE,
    "required": Failure.MISSING_ARGUMENT,
    "additionalProperties": Failure.INVENTED_ARGUMENT,
    "unevaluatedProperties": Failure.INVENTED_ARGUMENT,
}


def score_json(answer: Answer, schema: Mapping[str, Any], wanted: Any) -> Verdict:
    """A turn that is one JSON document valid by ``schema``. ``equal`` says beside it
    whether the document is ``wanted``.

    Raises:
        UsageError: jsonschema is not installed.
    """
    text = _unfenced(answer.text)
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _no_json(answer, text)
    also = {"equal": same(value, wanted)}
    error = schema_error(value, schema)
    if error is None:
        return Verdict(also=also)
    failure = _BY_KEYWORD.get(error[0], Failure.WRONG_VALUE)
    if failure is Failure.WRONG_VALUE and also["equal"] is False:
        found = difference(wanted, value, "$")
        quoting = found is not None and found[0] is Failure.WRONG_QUOTING
        failure = Failure.WRONG_QUOTING if quoting else failure
    return Verdict(failure, f"{error[0]}: {error[1][:120]}", also)


def _no_json(answer: Answer, text: str) -> Verdict:
    also = {"equal": False}
    if (ended := _unfinished(answer)) is not None:
        return Verdict(*ended, also)
    if _cut_json(text):
        return Verdict(Failure.EARLY_STOP, "ends in the middle of the document", also)
    if not re.search(r"[{\[\"]|^\s*-?\d", text):
        return Verdict(Failure.REFUSAL, f"no JSON, but {_short(text)}", also)
    return Verdict(Failure.MALFORMED, f"not JSON: {_short(text)}", also)


def _unfenced(text: str) -> str:
    """A document without the Markdown fence that chat models like to put around it."""
    match = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text.strip(), re.DOTALL)
    return match[1] if match else text.strip()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def schema_error(value: Any, schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """(keyword, message) of the most telling violation of a JSON Schema (draft 2020-12);
    None if there is none.

    Raises:
        UsageError: jsonschema is not installed.
    """
    try:
        import jsonschema
    except ImportError:
        raise UsageError(
            'checking schemas needs jsonschema: pip install "headgate[eval]"'
        ) from None
    validator = jsonschema.Draft202012Validator(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return None if error is None else (str(error.validator), str(error.message))
