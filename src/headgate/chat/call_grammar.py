"""The grammar of tool calls in Qwen3.5's form, in llguidance's Lark dialect.

A call is written as the chat template prints it, parameters in any order, none twice: the
parser would take a second one for text of the value before it. A string's text stands as
it is and may not contain a tag of the call; other types are JSON by their schema, keys of
objects in the order of their declaration, which llguidance fixes. What is not declared is
not written, in no object that lists its properties. A parameter that may be any string
among other things is free text: what its text means is decided when it is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headgate.chat.schema import (
    NAMES,
    VALUES,
    Tool,
    branches,
    closed,
    dump,
    kinds,
    parameters_of,
    properties_of,
    resolve,
)
from headgate.chat.texts import TAGS, free_text, limited_text
from headgate.errors import UsageError

#: White space inside JSON: a blank, or a new line and its indentation. Unlimited, a model
#: may go on with blanks for ever.
WHITESPACE = r"\x20|\x0A[\x20\x09]{0,24}"

#: Characters that JSON can only hold as the escape with four digits, in a JSON text.
_ONLY_DIGITS = re.compile(r"\\u00(?:[01]|7f)")
#: Beginnings of the classes in a pattern that list what is not in them.
_NEGATED = re.compile(r"(\\.)|(\[\^(?!\]))|\[(?:\\.|[^\]\\])*\]", re.DOTALL)

#: Formats that llguidance knows; others are annotations, as the standard has them.
FORMATS = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
)

#: Bits of the number that a rule may carry in llguidance.
BITS = 64


@dataclass(frozen=True)
class CallGrammar:
    """Calls that an answer may hold.

    Attributes:
        functions: Lark rules of each function's block, by name.
        choice: ``auto`` for free text that may hold calls, ``required`` for calls only.
        parallel: whether there may be several.
    """

    functions: dict[str, str]
    choice: Literal["auto", "required"]
    parallel: bool

    def lark(self, opening: str, closing: str) -> str:
        """The whole answer, ``<tool_call>`` and ``</tool_call>`` being written as given."""
        if self.choice == "required":
            more = f' ("\\n" {opening} body)*' if self.parallel else ""
            return f"start: {opening} body{more}\n{self._body(closing)}"
        head = "head[lazy]: /(?s:.*)<tool_call>/\ntail: /(?s:.*)/\n"
        start = "(head body)* tail" if self.parallel else "head body | tail"
        return f"start: {start}\n{head}{self._body(closing)}"

    def lark_after_opening(self, closing: str) -> str:
        """One call, from behind ``<tool_call>``."""
        return f"start: body\n{self._body(closing)}"

    def _body(self, closing: str) -> str:
        names = " | ".join(f"f{number}" for number in range(len(self.functions)))
        return (
            f'body: "\\n" ({names}) "</function>\\n" {closing}\n'
            f"{free_text()}{''.join(self.functions.values())}"
        )


def call_grammar(
    tools: Sequence[Tool], choice: str, parallel: bool, strict: set[str] | None
) -> CallGrammar:
    """The grammar of calls to ``tools``.

    Args:
        choice: ``auto``, ``required``, or the name of the one function to call.
        strict: functions whose arguments follow their schema; all of them if None. Others
            take any of the declared names, with any text.

    Raises:
        UsageError: a declaration cannot be honoured; says which and why.
    """
    declared = dict(parameters_of(tool) for tool in tools)
    if choice not in ("auto", "required"):
        if choice not in declared:
            raise UsageError(f"tool_choice names {choice}, which is not among the tools")
        declared = {choice: declared[choice]}
    if not declared:
        raise UsageError("tool calls are constrained, but there are no tools")
    functions = {}
    for number, (name, parameters) in enumerate(declared.items()):
        _check_name(name, "function")
        builder = _Function(f"f{number}", name, parameters)
        try:
            by_schema = strict is None or name in strict
            functions[name] = builder.strict() if by_schema else builder.loose()
        except RecursionError:
            raise UsageError(f"the parameters of {name} are nested too deeply") from None
        except UsageError as error:
            raise UsageError(f"function {name}: {error}") from None
    return CallGrammar(functions, "auto" if choice == "auto" else "required", parallel)


class _Function:
    """Lark rules of one function's block."""

    def __init__(self, rule: str, name: str, parameters: dict[str, Any]) -> None:
        self.rule, self.opening = rule, f"<function={name}>\n"
        self.root = parameters
        self.properties = properties_of(parameters)
        self.rules: list[str] = []

    def strict(self) -> str:
        top = resolve(self.root, self.root)
        for keyword in ("anyOf", "oneOf", "allOf", "patternProperties", "if", "not"):
            if keyword in top:
                raise UsageError(f"{keyword} beside the parameters is not supported")
        required = top.get("required", [])
        if not isinstance(required, list) or not all(isinstance(x, str) for x in required):
            raise UsageError("required is not a list of names")
        names = list(dict.fromkeys([*self.properties, *required]))
        for number, name in enumerate(names):
            _check_name(name, "parameter")
            schema = self.properties.get(name, {})
            rule = f"{self.rule}_{number}"
            try:
                value = self._value(rule, schema)
            except UsageError as error:
                raise UsageError(f"parameter {name}: {error}") from None
            self.rules.append(f"{rule}: {_literal(f'<parameter={name}>')} {value}\n")
        return self._function([name in required for name in names])

    def loose(self) -> str:
        if not self.properties:
            return (
                f"{self.rule}: {_literal(self.opening)} {self.rule}_any*\n"
                f'{self.rule}_any: "<parameter=" /[^<>\\n]+/ ">\\n" free\n'
            )
        for number, name in enumerate(self.properties):
            _check_name(name, "parameter")
            opening = _literal(f"<parameter={name}>\n")
            self.rules.append(f"{self.rule}_{number}: {opening} free\n")
        return self._function([False] * len(self.rules))

    def _function(self, required: list[bool]) -> str:
        """The block: each parameter at most once, in any order, the required ones for sure.

        One bit for each parameter says whether it has been written. As there are only so
        many bits, the first 64 parameters precede the next.
        """
        parts = [_literal(self.opening)]
        for start in range(0, len(required), BITS):
            group = range(start, min(start + BITS, len(required)))
            wanted = sum(required[number] for number in group)
            rest = f"{self.rule}_from{start}"
            options = [f'"" %if is_ones([0:{wanted}])' if wanted else '""']
            for bit, number in enumerate(sorted(group, key=lambda n: not required[n])):
                written = f"{self.rule}_{number} {rest}::set_bit({bit})"
                options.append(f"{written} %if bit_clear({bit})")
            parts.append(f"{rest}::0")
            self.rules.append(f"{rest}::_: {' | '.join(options)}\n")
        return f"{self.rule}: {' '.join(parts)}\n" + "".join(self.rules)

    def _value(self, rule: str, schema: Any) -> str:
        """An expression for a value behind its opening tag, with its closing tag."""
        if schema is False:
            raise UsageError("no value is allowed")
        texts: list[str] = []
        documents: list[dict[str, Any]] = []
        limited = False
        for branch in branches(schema, self.root):
            found = kinds(branch, self.root)
            members = _members(branch, found)
            if members is not None:
                texts += [_member(member) for member in members]
            elif found is None:
                return '"\\n" free'
            elif found == {"string"}:
                text = limited_text(branch)
                if text is None:
                    return '"\\n" free'
                texts.append(f"({text})")
                limited = True
            elif "string" in found:
                raise UsageError("strings beside other types in allOf are not supported")
            else:
                documents.append(branch)
        if limited and documents:
            raise UsageError("a restricted string beside numbers or objects is not supported")
        if not texts and not documents:
            raise UsageError("no value is allowed")
        options = []
        if texts:
            # With its closing tag, because a terminal takes as much text as it can.
            options.append(f"{rule}_T".upper())
            self.rules.append(f'{options[0]}: ({" | ".join(texts)}) "\\n</parameter>\\n"\n')
        if documents:
            options.append(f'{rule}_json "\\n</parameter>\\n"')
            self.rules.append(f"{rule}_json: %json {self._document(documents)}\n")
        return f'"\\n" ({" | ".join(options)})'

    def _document(self, documents: list[dict[str, Any]]) -> str:
        # References count from the function's schema, which moves to a definition here.
        schema = documents[0] if len(documents) == 1 else {"anyOf": documents}
        moved = clean(schema, "#/$defs/root")
        if '"$ref"' in json.dumps(moved):
            moved = {**moved, "$defs": {"root": clean(self.root, "#/$defs/root")}}
        moved = closed(moved)
        # Last, as llguidance takes it out and puts the last keyword in its place, whose
        # position the order of keys may depend on.
        return json.dumps({**moved, "x-guidance": json_options(json.dumps(moved))})


def json_options(text: str) -> dict[str, str]:
    """llguidance's settings for the JSON schema in ``text``.

    Escapes with digits are left out where the schema can do without: the name of a
    property that is declared could be written with them as if it were another one's.
    """
    options = {"whitespace_pattern": WHITESPACE}
    if not _ONLY_DIGITS.search(text):
        options["json_allowed_escapes"] = 'nrbtf\\"'
    return options


def clean(schema: Any, base: str = "#") -> Any:
    """A schema without formats that are annotations only and without settings of
    llguidance; local references start at ``base``."""
    if isinstance(schema, list):
        return [clean(part, base) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            found[key] = base + value[1:]
        elif key == "x-guidance" or (
            key == "format" and isinstance(value, str) and value not in FORMATS
        ):
            continue
        elif key == "pattern" and isinstance(value, str):
            found[key] = _clean_pattern(value)
        elif key in NAMES and isinstance(value, Mapping):
            name_of = _clean_pattern if key == "patternProperties" else str
            found[key] = {name_of(name): clean(part, base) for name, part in value.items()}
        else:
            found[key] = value if key in VALUES else clean(value, base)
    return found


def _clean_pattern(pattern: str) -> str:
    """A pattern with U+0001 taken out of every class that lists what is not in it: of one
    with all control characters, llguidance 1.9 takes quotes and backslashes for members."""
    return _NEGATED.sub(lambda m: m.group() + (r"\x01" if m.group(2) else ""), pattern)


def _check_name(name: str, what: str) -> None:
    if not name or name != name.strip() or any(c in name for c in "<>\n\r"):
        raise UsageError(f"{what} name {name!r} cannot be written in a call")


def _literal(text: str) -> str:
    return json.dumps(text)


def _members(schema: Mapping[str, Any], found: frozenset[str] | None) -> list[Any] | None:
    """The values that a schema lists, None if it does not."""
    members = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(members, list):
        return members
    if found is not None and found <= {"null", "boolean"}:
        return [None] * ("null" in found) + [True, False] * ("boolean" in found)
    return None


def _member(value: Any) -> str:
    text = value if isinstance(value, str) else dump(value)
    if any(tag in text for tag in TAGS):
        raise UsageError(f"the value {text!r} contains a tag of the call")
    return _literal(text)
