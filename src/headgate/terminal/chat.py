"""Questions, answers and the calls in them."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol

from headgate.assistant import (
    Answer,
    AnswerEvent,
    Assistant,
    ChatRequest,
    Failed,
    Finished,
)
from headgate.chat import CallEnd, Content, Reasoning, ToolCall
from headgate.engine import Sampling
from headgate.terminal.conversation import Conversation
from headgate.terminal.figures import AnswerFigures
from headgate.terminal.text import call_text, one_line
from headgate.terminal.toolbox import LocalTool, Toolbox
from headgate.terminal.view import View

Consent = Literal["yes", "no", "always", "stop"]

#: Seconds without an event after which what is shown is brought up to date.
QUIET_S = 0.1

DECLINED = "The user declined to run this function."
INTERRUPTED = "The user interrupted this function."


class Moment(Enum):
    """What is no event of an answer: for a while there was none, or Ctrl-C was pressed."""

    QUIET = 1
    STOPPED = 2


class Asker(Protocol):
    """Whoever decides about calls."""

    def consent(self, call: str, name: str) -> Consent:
        """Whether a call may run; ``stop`` ends the answer."""

    def result(self, call: str) -> str | None:
        """What a function returns that only the user can run; None ends the answer."""

    def confirm(self, question: str) -> bool:
        """Yes or no."""


@dataclass(frozen=True)
class ChatOptions:
    """How answers are generated.

    Attributes:
        sampling: None for the model's own.
        max_tokens: of an answer; None for up to the end of the context.
        thinking: whether the model reasons first; None leaves it to its template.
        interactive: Ctrl-C stops an answer; otherwise it ends the program.
    """

    sampling: Sampling | None = None
    max_tokens: int | None = None
    thinking: bool | None = None
    interactive: bool = True


@dataclass
class _Collected:
    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finished: Finished | None = None
    stopped: bool = False

    def take(self, event: AnswerEvent) -> None:
        if isinstance(event, Content):
            self.content += event.text
        elif isinstance(event, Reasoning):
            self.reasoning += event.text
        elif isinstance(event, CallEnd):
            self.calls.append(event.call)
        elif isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, Failed):
            raise event.error


class Chat:
    """One conversation with a model.

    Args:
        assistant: answers.
        tools: what it may call.
        view: shows answers.
        asker: decides about calls.

    Attributes:
        conversation: so far.
        thinking: as in :class:`ChatOptions`.
        reasoning: of the last answer.
        figures: of the last complete answer.
    """

    def __init__(
        self,
        assistant: Assistant,
        tools: Toolbox,
        view: View,
        asker: Asker,
        options: ChatOptions | None = None,
        system: str = "",
    ) -> None:
        self.assistant, self.tools, self.view, self.asker = assistant, tools, view, asker
        self.options = options or ChatOptions()
        self.thinking = self.options.thinking
        self.conversation = Conversation(system)
        self.reasoning = ""
        self.figures: AnswerFigures | None = None
        self._declined: set[str] = set()  # calls of this question

    def say(self, text: str) -> None:
        """Ask a question and see its answer through, calls included.

        Raises:
            HeadgateError: there is no answer; the question is taken back.
        """
        self.conversation.ask(text)
        self.go_on()

    def retry(self) -> bool:
        """Answer the last question again; whether there is one.

        Raises:
            HeadgateError: as :meth:`say`.
        """
        if not self.conversation.rewind():
            return False
        self.go_on()
        return True

    def go_on(self) -> None:
        """Generate until an answer calls nothing or is stopped."""
        self._declined.clear()
        try:
            while self._round():
                pass
        finally:
            self.view.end()
            self.conversation.close_calls()
            self.conversation.drop_unanswered()

    def _round(self) -> bool:
        """One answer and its calls; whether another has to follow."""
        found = self._generate()
        self.reasoning = found.reasoning
        # Of an answer that was cut, no call is run: it is not what the model meant to do.
        whole = found.finished is not None and found.finished.reason != "length"
        calls = found.calls if whole else []
        ids = self.conversation.answer(found.content, found.reasoning, calls)
        if found.stopped:
            kept = "" if ids or found.content else ", nothing came yet; /retry asks again"
            self.view.note(f"stopped{kept}")
        elif not whole:
            self.view.note(f"cut: {self._limit(found)}")
        if not calls:
            return False
        return all(self._run(call, call_id) for call, call_id in zip(calls, ids, strict=True))

    def _limit(self, found: _Collected) -> str:
        usage = found.finished.usage if found.finished else None
        if usage and usage.prompt + usage.completion >= self.assistant.engine.context:
            return f"the context of {self.assistant.engine.context} tokens is full"
        return "the answer has reached its limit"

    # Answers

    def _generate(self) -> _Collected:
        found, before = _Collected(), self.assistant.scheduler.state()
        answer = self.assistant.chat(self.request())
        self.view.begin()
        try:
            with _events(answer, self.options.interactive) as events:
                for event in events:
                    if isinstance(event, Moment):
                        self.view.tick()
                        found.stopped = event is Moment.STOPPED
                    else:
                        found.take(event)
                        self.view.show(event)
        finally:
            answer.cancel()
            self.view.end()
        if found.finished is not None:
            after = self.assistant.scheduler.state()
            self.figures = AnswerFigures.of(found.finished, before, after)
        return found

    def request(self) -> ChatRequest:
        """The conversation as a request."""
        return ChatRequest(
            messages=self.conversation.all_messages,
            tools=tuple(self.tools.declarations),
            sampling=self.options.sampling or self.assistant.default_sampling,
            max_tokens=self.options.max_tokens,
            thinking=self.thinking,
        )

    # Calls

    def _run(self, call: ToolCall, call_id: str) -> bool:
        """Run a call if it may; whether to go on."""
        tool = self.tools.get(call.name)
        shown = call_text(call.name, call.arguments)
        if tool is None:
            self.view.note(f"{shown}: there is no such function")
            self.conversation.result(call_id, f"error: there is no function named {call.name}")
            return True
        if tool.run is None:
            typed = self.asker.result(shown)
            if typed is not None:
                self.conversation.result(call_id, typed)
            return typed is not None
        if shown in self._declined:  # a model may insist for ever
            self.view.note(f"{shown} has been declined: stopped")
            return False
        consent = self._consent(tool, shown)
        if consent == "stop":
            return False
        if consent == "no":
            self._declined.add(shown)
            self.conversation.result(call_id, DECLINED)
            return True
        return self._execute(tool, tool.run, call, call_id)

    def _consent(self, tool: LocalTool, shown: str) -> Consent:
        if self.tools.allowed(tool.name):
            self.view.note(f"running {shown}")
            return "yes"
        consent = self.asker.consent(shown, tool.name)
        if consent == "always":
            self.tools.allow(tool.name)
        return consent

    def _execute(
        self,
        tool: LocalTool,
        run: Callable[[dict[str, Any]], str],
        call: ToolCall,
        call_id: str,
    ) -> bool:
        try:
            text = run(json.loads(json.dumps(call.arguments)))  # a copy: it may change them
        except KeyboardInterrupt:
            if not self.options.interactive:
                raise
            self.conversation.result(call_id, INTERRUPTED)
            self.view.note(f"{tool.name} interrupted")
            return False
        except BaseException as error:  # whatever it does, a SystemExit too
            what = " ".join(str(error).split())
            kind = type(error).__name__
            text = f"error: {kind}: {what}" if what else f"error: {kind}"
        self.conversation.result(call_id, text)
        self.view.note(f"{tool.name}: {one_line(text)}")
        return True


@contextmanager
def _events(answer: Answer, interruptible: bool) -> Iterator[Iterator[AnswerEvent | Moment]]:
    """The events of an answer, with moments of quiet between them.

    Ctrl-C takes effect at once, even while a long chunk of the prompt is processed, and
    nowhere in the middle of drawing.
    """
    queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    received: list[AnswerEvent] = []

    def stop(*_: object) -> None:
        queue.put(None)  # first, or the end of the answer could come before it
        answer.cancel()

    def events() -> Iterator[AnswerEvent | Moment]:
        while True:
            try:
                work = queue.get(timeout=QUIET_S)
            except Empty:
                yield Moment.QUIET
                continue
            if work is None:
                yield Moment.STOPPED
                return
            work()
            while received:
                event = received.pop(0)
                yield event
                if isinstance(event, Finished | Failed):
                    return

    handled = interruptible and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if handled else None
    try:
        answer.follow(
            received.append, lambda function, *given: queue.put(partial(function, *given))
        )
        yield events()
    finally:
        if handled:
            signal.signal(signal.SIGINT, before)
