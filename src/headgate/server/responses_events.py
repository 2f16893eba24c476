"""A response of the Responses API as it grows, and its stream events."""

from __future__ import annotations

from typing import Any

from headgate.assistant import AnswerEvent, Finished, Logprobs
from headgate.chat.output import CallArguments, CallEnd, CallStart, Content, Reasoning
from headgate.server.openai_common import logprob_document, new_id

Event = dict[str, Any]


class ResponseBuilder:
    """Turns an answer's events into those of the stream, and into the final document.

    Args:
        document: the response with what is known before it begins; it is filled in.
        logprobs: whether log probabilities were asked for.
    """

    def __init__(self, document: dict[str, Any], logprobs: bool) -> None:
        self.document = document
        self._number = 0
        self._logprobs = logprobs
        self._waiting: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that is growing

    def begin(self) -> list[Event]:
        """The first events."""
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def events(self, event: AnswerEvent) -> list[Event]:
        """The events that follow from one of the answer's."""
        if isinstance(event, Logprobs):
            self._waiting += [logprob_document(token) for token in event.tokens]
        elif isinstance(event, Reasoning):
            return self._grow("reasoning", event.text)
        elif isinstance(event, Content):
            return self._grow("message", event.text)
        elif isinstance(event, CallStart):
            return [*self._close(), *self._begin_call(event.name)]
        elif isinstance(event, CallArguments):
            return self._grow_call(event.fragment)
        elif isinstance(event, CallEnd):
            return self._close()
        elif isinstance(event, Finished):
            return self._finish(event)
        return []

    def fail(self, message: str) -> list[Event]:
        """The last event after an error."""
        self.document["status"] = "failed"
        self.document["error"] = {"code": "server_error", "message": message}
        return [self._whole("response.failed")]

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _whole(self, kind: str) -> Event:
        return self._event(kind, response=dict(self.document, output=list(self.document["output"])))

    def _of_item(self, kind: str, **fields: Any) -> Event:
        assert self._open is not None
        at = {"item_id": self._open["id"], "output_index": len(self.document["output"])}
        return self._event(kind, **at, **fields)

    def _grow(self, kind: str, text: str) -> list[Event]:
        """Add text to the open item, or close that and begin one of this kind."""
        out: list[Event] = []
        if self._open is None or self._open["type"] != kind:
            out += [*self._close(), *self._begin(kind)]
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        if kind == "reasoning":
            self._waiting = []  # only the text's tokens are reported
            delta = self._of_item("response.reasoning_text.delta", content_index=0, delta=text)
            return [*out, delta]
        logprobs, self._waiting = self._waiting, []
        part["logprobs"] += logprobs
        more = {"content_index": 0, "delta": text, "logprobs": logprobs}
        return [*out, self._of_item("response.output_text.delta", **more)]

    def _begin(self, kind: str) -> list[Event]:
        if kind == "reasoning":
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
            item: dict[str, Any] = {"id": new_id("rs_"), "type": kind, "summary": []}
        else:
            part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
            item = {"id": new_id("msg_"), "type": kind, "role": "assistant"}
        self._open = {**item, "status": "in_progress", "content": [part]}
        shown = {**self._open, "content": []}
        index = len(self.document["output"])
        return [
            self._event("response.output_item.added", output_index=index, item=shown),
            self._of_item("response.content_part.added", content_index=0, part=_copy(part)),
        ]

    def _begin_call(self, name: str) -> list[Event]:
        self._open = {
            "id": new_id("fc_"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": new_id("call_"),
            "name": name,
            "arguments": "",
        }
        index = len(self.document["output"])
        item = dict(self._open)
        return [self._event("response.output_item.added", output_index=index, item=item)]

    def _grow_call(self, fragment: str) -> list[Event]:
        assert self._open is not None
        self._waiting = []
        self._open["arguments"] += fragment
        return [self._of_item("response.function_call_arguments.delta", delta=fragment)]

    def _close(self, status: str = "completed") -> list[Event]:
        """Complete the open item."""
        item = self._open
        if item is None:
            return []
        item["status"] = status
        out = []
        if item["type"] == "function_call":
            arguments = item["arguments"]
            done = "response.function_call_arguments.done"
            out.append(self._of_item(done, name=item["name"], arguments=arguments))
        else:
            part = item["content"][0]
            if item["type"] == "reasoning":
                more: dict[str, Any] = {}
                done = "response.reasoning_text.done"
            else:
                more = {"logprobs": part["logprobs"]}
                done = "response.output_text.done"
            out.append(self._of_item(done, content_index=0, text=part["text"], **more))
            out.append(self._of_item("response.content_part.done", content_index=0, part=part))
        index = len(self.document["output"])
        out.append(self._event("response.output_item.done", output_index=index, item=item))
        self.document["output"].append(item)
        self._open = None
        return out

    def _finish(self, event: Finished) -> list[Event]:
        cut = event.reason == "length"
        if self._waiting and self._open is not None and self._open["type"] == "message":
            self._open["content"][0]["logprobs"] += self._waiting
        out = self._close("incomplete" if cut else "completed")
        usage = event.usage
        self.document["usage"] = {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        }
        self.document["status"] = "incomplete" if cut else "completed"
        if cut:
            self.document["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*out, self._whole("response.incomplete" if cut else "response.completed")]


def _copy(part: dict[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, list) else v for name, v in part.items()}
