"""Any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headgate.chat import ToolCall
from headgate.errors import UsageError
from headgate.evals.target import Answer, DoesNotFit, Message, NoAnswer, Question, Speed

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 3
#: Seconds before the second attempt; doubled before each further one.
PAUSE = 1.0
VARIABLES = "chat_template_kwargs"
#: Worth another attempt: time-outs, too many requests, faults of the server.
_AGAIN = frozenset({408, 409, 425, 429})


class HttpTarget:
    """A model at an OpenAI-compatible address.

    Args:
        url: base address, such as ``http://127.0.0.1:8080/v1``.
        model: name to ask for; the first that the server lists unless given.
        key: sent as a bearer token.
        timeout: seconds for one answer.
        pause: seconds before the second attempt.

    Raises:
        UsageError: httpx is not installed, or the address cannot be used.
        NoAnswer: the models cannot be listed.
    """

    constrains = True

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        timeout: float = 600.0,
        pause: float = PAUSE,
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise UsageError('asking a server needs httpx: pip install "headgate[eval]"') from None
        self._httpx = httpx
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        base = url.rstrip("/")
        base = base.removesuffix("/chat/completions")
        try:
            self._client = httpx.Client(base_url=base, headers=headers, timeout=timeout)
        except (httpx.InvalidURL, ValueError) as error:
            raise UsageError(f"{url} is no address: {error}") from None
        self._pause = pause
        self._lock = threading.Lock()
        self._knows_variables = True
        self.speed = Speed()
        self.url = base
        self.model = model or self._first_model()
        self.name = f"{self.model} at {base}"

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def answer(self, question: Question) -> Answer:
        """See :class:`headgate.evals.target.Target`."""
        body = request_body(self.model, question)
        begin = time.monotonic()
        found = self._ask(body)
        try:
            answer = parse_response(found)
            self._count(found.get("usage"), time.monotonic() - begin)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise NoAnswer(f"{self.url} answers with something else: {error!r}") from None
        return answer

    def describe(self) -> dict[str, Any]:
        """Name and address."""
        return {"name": self.model, "url": self.url}

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._knows_variables:
            try:
                return self._request("POST", "/chat/completions", body)
            except NoAnswer as error:
                if VARIABLES not in str(error):
                    raise
                self._knows_variables = False  # it refuses the field by name
        del body[VARIABLES]
        return self._request("POST", "/chat/completions", body)

    def _first_model(self) -> str:
        found = self._request("GET", "/models", None)
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise NoAnswer(f"{self.url} lists no models: give one with --model") from None

    def _request(self, method: str, path: str, body: Any) -> dict[str, Any]:
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                response = self._client.request(method, path, json=body)
            except (self._httpx.HTTPError, self._httpx.InvalidURL) as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
                continue
            if response.status_code in _AGAIN or response.status_code >= 500:
                why = f"status {response.status_code}: {response.text[:200]}"
                continue
            return self._document(response)
        raise NoAnswer(f"{self.url}{path} failed {ATTEMPTS} times, last with {why}")

    def _document(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code >= 400:
            text = response.text[:300]
            if response.status_code == 400 and _too_long(text):
                raise DoesNotFit(text)
            raise NoAnswer(f"{response.url} refuses: status {response.status_code}: {text}")
        try:
            found = response.json()
        except ValueError:
            raise NoAnswer(f"{response.url} does not answer with JSON") from None
        if not isinstance(found, dict):
            raise NoAnswer(f"{response.url} does not answer with a JSON object")
        return found

    def _count(self, usage: Any, seconds: float) -> None:
        usage = usage if isinstance(usage, dict) else {}
        with self._lock:
            self.speed.answers += 1
            self.speed.prompt_tokens += int(usage.get("prompt_tokens", 0))
            self.speed.generated_tokens += int(usage.get("completion_tokens", 0))
            self.speed.decode_s += seconds  # the prompt's time included: it is not told apart


def _too_long(text: str) -> bool:
    text = text.lower()
    return "context" in text and any(word in text for word in ("length", "long", "holds", "exceed"))


def request_body(model: str, question: Question) -> dict[str, Any]:
    """A question as a request of chat completions.

    ``chat_template_kwargs`` is what vLLM, SGLang, llama.cpp and headgate call the
    template's variables. A server that refuses it is asked without.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": list(_with_ids(question.messages)),
        "max_tokens": question.max_tokens,
        "temperature": 0,
        VARIABLES: {"enable_thinking": question.thinking},
    }
    if question.tools:
        body["tools"] = [_tool(tool, question.strict) for tool in question.tools]
        named = question.tool_choice not in ("auto", "none", "required")
        body["tool_choice"] = (
            {"type": "function", "function": {"name": question.tool_choice}}
            if named
            else question.tool_choice
        )
    if question.response_format is not None:
        body["response_format"] = question.response_format
    return body


def _tool(tool: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    function = dict(tool["function"])
    return {"type": "function", "function": {**function, "strict": True} if strict else function}


def _with_ids(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """Messages as servers want them: arguments as JSON text, results with their call's id."""
    waiting: list[str] = []
    count = 0
    for message in messages:
        out = dict(message)
        if calls := message.get("tool_calls"):
            waiting = [f"call_{count + i}" for i in range(len(calls))]
            count += len(calls)
            out["tool_calls"] = [
                {
                    "id": name,
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for name, call in zip(waiting, calls, strict=True)
            ]
        elif message["role"] == "tool" and waiting:
            out["tool_call_id"] = waiting.pop(0)
        yield out


def parse_response(found: Mapping[str, Any]) -> Answer:
    """A response of chat completions as an answer.

    Raises:
        KeyError, IndexError, TypeError, AttributeError: it is none.
    """
    choice = found["choices"][0]
    message = choice["message"]
    calls, broken = [], []
    for call in message.get("tool_calls") or ():
        name, raw = call["function"]["name"], call["function"]["arguments"]
        try:
            arguments = json.loads(raw or "{}") if isinstance(raw, str) else raw
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            calls.append(ToolCall(name, arguments))
        else:
            broken.append(str(raw))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    text = message.get("content") or ""
    if "</think>" in text:  # the server does not take reasoning apart
        reasoning, _, text = text.rpartition("</think>")
    return Answer(
        text.strip(),
        tuple(calls),
        str(reasoning),
        "length" if choice.get("finish_reason") == "length" else "stop",
        tuple(broken),
    )
