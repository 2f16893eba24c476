"""One answer while it is being generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from headgate.assistant.events import AnswerEvent, Failed
from headgate.assistant.reader import AnswerReader
from headgate.engine.ticket import Event, Ticket, Tokens


class Answer:
    """The events of an answer, to be iterated over or to be followed, once.

    Attributes:
        prompt_tokens: tokens of the prompt.

    Args:
        count: told of the numbers of tokens that arrive.
    """

    def __init__(
        self,
        ticket: Ticket,
        reader: AnswerReader,
        prompt_tokens: int,
        count: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._ticket, self._reader, self._count = ticket, reader, count

    def cancel(self) -> None:
        """Stop generating, within one token. No harm after the end."""
        self._ticket.cancel()

    def follow(
        self,
        receive: Callable[[AnswerEvent], None],
        call: Callable[..., Any] = lambda function, *arguments: function(*arguments),
    ) -> None:
        """Have ``receive`` called with every event, the last of which is a Finished or
        a Failed.

        Args:
            call: how to call a function with its arguments from the scheduler's thread,
                such as an event loop's ``call_soon_threadsafe``.
        """
        self._ticket.on_event(lambda event: call(self._pass_on, event, receive))

    def _pass_on(self, event: Event, receive: Callable[[AnswerEvent], None]) -> None:
        for out in self._read(event):
            receive(out)

    def _read(self, event: Event) -> list[AnswerEvent]:
        if isinstance(event, Tokens):
            self._count(len(event.steps))
        try:
            out = self._reader.push(event)
        except Exception as error:  # or whoever waits would wait for ever
            self._reader.done = True
            out = [Failed(error)]
        if self._reader.done:
            self.cancel()
        return out

    def __iter__(self) -> Iterator[AnswerEvent]:
        """Events as they come, without a Failed.

        Raises:
            HeadgateError: what a Failed holds.
        """
        try:
            for event in self._ticket:
                for out in self._read(event):
                    if isinstance(out, Failed):
                        raise out.error
                    yield out
                if self._reader.done:
                    return
        finally:
            self.cancel()
