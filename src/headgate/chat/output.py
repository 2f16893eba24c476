"""A model's answer, taken apart while it arrives: reasoning, content, tool calls.

Reasoning stands between ``<think>`` and ``</think>``. Two forms of a call are understood
inside ``<tool_call>`` ... ``</tool_call>``: Qwen3.5's

    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>

and the Hermes form, a JSON object with ``name`` and ``arguments``.

A value may contain text that looks like markup. It ends at ``</parameter>`` only where
another parameter or the end of the call follows. Models forget tags, so these are
forgiven: every closing tag at the end of the text; ``</parameter>`` before a line that
opens a declared parameter or closes the call; ``</tool_call>``; and ``<tool_call>`` before
a line that calls a declared function. A call on a line of its own to a declared function
ends reasoning that ``</think>`` did not end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from headgate.chat.arguments import Arguments
from headgate.chat.events import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    Reasoning,
)
from headgate.chat.markup import MORE, NAME, SPACE, Match, More, first, scan
from headgate.chat.schema import Tool, ToolCall, dump, parameters_of, strict_json

__all__ = [
    "CallArguments",
    "CallEnd",
    "CallStart",
    "Content",
    "Event",
    "OutputParser",
    "Reasoning",
    "parse_tool_calls",
]

_OPEN, _CLOSE, _THINK_END = "<tool_call>", "</tool_call>", "</think>"
#: What may follow a function's name, or a closed parameter.
_NEXT = (("<parameter=", NAME), ("</function>",), (_CLOSE,))


@dataclass(frozen=True)
class _Step:
    """What follows a function's name or a value.

    Attributes:
        length: of the markup up to there, in characters.
        parameter: whose value follows; None at the end of the call.
        closed: nothing of the call is left.
    """

    length: int
    parameter: str | None = None
    closed: bool = False


@dataclass(frozen=True)
class _Call:
    """A call's beginning; ``arguments`` if the whole call is there."""

    name: str
    step: _Step
    arguments: dict[str, Any] | None = None


class OutputParser:
    """Turns text into events, whatever the pieces it comes in.

    White space around reasoning and content is dropped, as the chat template would not
    print it. A malformed call is content.

    Args:
        tools: declarations, which give the types of arguments.
        thinking: the text begins inside the think block.
    """

    def __init__(self, tools: Sequence[Tool] = (), *, thinking: bool = False) -> None:
        self._tools = dict(parameters_of(tool) for tool in tools)
        self._thinking = thinking
        self._buffer = ""
        self._before = "\n"  # the character before the buffer
        self._final = False
        self._events: list[Event] = []
        self._state: Callable[[], bool] = self._start
        self._spaces = ""  # seen, not printed yet
        self._said = False
        self._index = 0
        self._name = ""
        self._arguments = Arguments(None)

    def push(self, text: str) -> list[Event]:
        """The events that ``text`` completes."""
        self._buffer += text
        return self._run()

    def finish(self) -> list[Event]:
        """The events that were held back; the text is complete."""
        self._final = True
        return self._run()

    def _run(self) -> list[Event]:
        while self._state():
            pass
        events, self._events = self._events, []
        return events

    # A state consumes what it can of the buffer and says whether to go on.

    def _start(self) -> bool:
        found = scan((SPACE, "<think>"), self._buffer, 0)
        if found is MORE and not self._final:
            return False
        if isinstance(found, Match):
            self._drop(found.end)
            self._thinking = True
        self._state = self._plain
        return True

    def _plain(self) -> bool:
        """Reasoning or content, up to the next tag."""
        at = -1
        while (at := self._buffer.find("<", at + 1)) >= 0:
            found = self._tag(at)
            if found is None:
                continue
            self._say(at)
            if found is MORE:
                return False
            found()
            return True
        self._say(len(self._buffer))
        return False

    def _value(self) -> bool:
        """A parameter's value, up to what ends it."""
        at = -1
        while (at := self._buffer.find("<", at + 1)) >= 0:
            found = self._value_end(at)
            if found is None:
                continue
            self._argue(self._arguments.push(self._drop(at)))
            if found is MORE:
                return False
            self._drop(found.length)
            self._argue(self._arguments.end())
            self._follow(found)
            return True
        self._argue(self._arguments.push(self._drop(len(self._buffer))))
        if self._final:
            self._argue(self._arguments.end())
            self._follow(_Step(0))
        return False

    def _tail(self) -> bool:
        """Behind ``</function>``."""
        found = scan((SPACE, _CLOSE), self._buffer, 0)
        if found is MORE and not self._final:
            return False
        if isinstance(found, Match):
            self._drop(found.end)
        self._state = self._plain
        return True

    # What a tag at some place of the buffer means; MORE if that is not known yet.

    def _tag(self, at: int) -> Callable[[], None] | More | None:
        """In plain text: what to do once the text before the tag is out."""
        found: Match | _Call | More | None
        if self._thinking:
            found = scan((_THINK_END,), self._buffer, at)
            if isinstance(found, Match):
                return self._end_reasoning
            if found is MORE:
                return None if self._final else MORE
        found = self._header(at)
        if found is None and not self._thinking:
            found = self._hermes(at)
        if isinstance(found, _Call):
            call = found
            return lambda: self._begin_call(call)
        return MORE if found is MORE else None

    def _header(self, at: int) -> _Call | More | None:
        """A call's beginning, up to its first value or its end."""
        own_line, declared = self._own_line(at), self._thinking
        if self._thinking and not own_line:
            return None
        found = scan((_OPEN, SPACE, "<function=", NAME, SPACE), self._buffer, at)
        if found is None and own_line and not self._thinking:
            declared = True
            found = scan(("<function=", NAME, SPACE), self._buffer, at)
        if not isinstance(found, Match):
            return None if self._final else found
        if declared and found.names[0] not in self._tools:
            return None
        step = self._step(found.end, at)
        if step is MORE and self._final:
            whole = found.end == len(self._buffer)
            step = _Step(found.end - at, closed=True) if whole else None
        return _Call(found.names[0], step) if isinstance(step, _Step) else step

    def _hermes(self, at: int) -> _Call | More | None:
        """A call as a JSON object."""
        head = scan((_OPEN, SPACE, "{"), self._buffer, at)
        if not isinstance(head, Match):
            return None if self._final else head
        start = end = head.end - 1
        while (end := self._buffer.find(_CLOSE, end)) >= 0:
            call, cut = _read_hermes(self._buffer[start:end])
            if call is not None:
                length = end + len(_CLOSE) - at
                return _Call(call.name, _Step(length, closed=True), call.arguments)
            if not cut:
                return None
            end += 1  # inside a string
        if not self._final:
            return MORE
        call, _ = _read_hermes(self._buffer[start:])
        step = _Step(len(self._buffer) - at, closed=True)
        return None if call is None else _Call(call.name, step, call.arguments)

    def _value_end(self, at: int) -> _Step | More | None:
        """Whether a value ends, and what follows."""
        text = self._buffer
        found = scan(("</parameter>", SPACE), text, at)
        if isinstance(found, Match):
            step = self._step(found.end, at)
            if step is MORE and self._final:
                return _Step(len(text) - at, closed=True)
            if isinstance(step, _Step) and step.parameter is not None:
                return step if self._arguments.can_begin(step.parameter) else None
            return step
        if found is MORE and not self._final:
            return MORE
        return self._forgotten_end(at) if self._own_line(at) else None

    def _forgotten_end(self, at: int) -> _Step | More | None:
        """The end of a value whose ``</parameter>`` is missing."""
        text = self._buffer
        found = scan(("<parameter=", NAME), text, at)
        if isinstance(found, Match):
            name = found.names[0]
            good = self._arguments.can_begin(name, declared=True)
            return _Step(found.end - at, name) if good else None
        if found is MORE and not self._final:
            return MORE
        found = scan(("</function>", SPACE, _CLOSE), text, at)
        if isinstance(found, Match):
            return _Step(found.end - at, closed=True)
        if found is MORE and self._final:
            whole = text.startswith("</function>", at)
            return _Step(len(text) - at, closed=True) if whole else None
        return found

    def _step(self, at: int, start: int) -> _Step | More | None:
        """What follows a function's name or a closed parameter; lengths from ``start``."""
        found = first(_NEXT, self._buffer, at)
        if found is None or found is MORE:
            return found
        number, match = found
        name = match.names[0] if match.names else None
        return _Step(match.end - start, name, closed=number == 2)

    # What happens then.

    def _begin_call(self, call: _Call) -> None:
        self._drop(call.step.length)
        self._thinking = False
        self._name = call.name
        self._arguments = Arguments(self._tools.get(call.name))
        self._events.append(CallStart(self._index, call.name))
        if call.arguments is None:
            self._follow(call.step)
            return
        self._argue(dump(call.arguments))
        self._end_call(call.arguments)
        self._state = self._plain

    def _follow(self, step: _Step) -> None:
        if step.parameter is not None:
            self._argue(self._arguments.begin(step.parameter))
            self._state = self._value
            return
        self._argue(self._arguments.close())
        self._end_call(self._arguments.values)
        self._state = self._plain if step.closed else self._tail

    def _end_call(self, arguments: dict[str, Any]) -> None:
        self._events.append(CallEnd(self._index, ToolCall(self._name, arguments)))
        self._index += 1

    def _end_reasoning(self) -> None:
        self._drop(len(_THINK_END))
        self._thinking = False
        self._spaces, self._said = "", False

    def _argue(self, fragment: str) -> None:
        if fragment:
            self._events.append(CallArguments(self._index, fragment))

    def _say(self, length: int) -> None:
        text = self._drop(length)
        body = text.rstrip()
        if not body:
            self._spaces += text
            return
        said = self._spaces + body
        said = said if self._said else said.lstrip()
        self._spaces, self._said = text[len(body) :], True
        self._events.append(Reasoning(said) if self._thinking else Content(said))

    def _drop(self, length: int) -> str:
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        self._before = text[-1:] or self._before
        return text

    def _own_line(self, at: int) -> bool:
        return (self._buffer[at - 1] if at else self._before) == "\n"


def _read_hermes(body: str) -> tuple[ToolCall | None, bool]:
    """The call, and whether the text ends inside a string instead."""
    try:
        raw = strict_json(body)
        arguments = raw.get("arguments", {}) if isinstance(raw, dict) else None
        if isinstance(arguments, str):
            arguments = strict_json(arguments)
        if not isinstance(arguments, dict) or not isinstance(raw.get("name"), str):
            return None, False
        dump(arguments)
    except (ValueError, RecursionError) as error:
        return None, str(error).startswith("Unterminated string")
    return ToolCall(raw["name"], arguments), False


def parse_tool_calls(text: str, tools: Sequence[Tool] = ()) -> tuple[str, list[ToolCall]]:
    """Split an answer into its content and its tool calls.

    The same grammar as :class:`OutputParser`. A call that cannot be understood stays in
    the content; reasoning in front, inside ``<think>``, is in neither.

    Args:
        tools: declarations, which give the types of arguments.

    Returns:
        content without calls, stripped; calls in order.
    """
    parser = OutputParser(tools)
    events = parser.push(text) + parser.finish()
    content = "".join(event.text for event in events if isinstance(event, Content))
    return content, [event.call for event in events if isinstance(event, CallEnd)]
