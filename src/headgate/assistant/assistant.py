"""A loaded model that takes conversations and gives answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any

from headgate.assistant.alternatives import Alternatives
from headgate.assistant.answer import Answer
from headgate.assistant.budget import ThinkingBudget
from headgate.assistant.grammars import grammars_of
from headgate.assistant.prompt import Prompt, PromptBuilder
from headgate.assistant.reader import THINK_END, AnswerReader, ReaderOptions
from headgate.assistant.request import ChatRequest, CompletionRequest
from headgate.chat import ChatTemplate, Constraint, Grammar, Vocabulary
from headgate.engine import Engine, Sampling
from headgate.engine.prefix_cache import PrefixCache
from headgate.engine.scheduler import Scheduler
from headgate.engine.turn import TokenConstraint, TurnOptions
from headgate.errors import InvalidRequest, PromptTooLong, UsageError

TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be answered, any number of times.

    Attributes:
        request: what was asked.
        prompt: rendered.
        grammars: forms of which the answer must have one, after the reasoning; none
            leave it free.
    """

    request: ChatRequest
    prompt: Prompt
    grammars: tuple[Grammar, ...]


class Assistant:
    """An engine, its scheduler, its chat template and its vocabulary.

    Safe to use from several threads.

    Args:
        engine: not to be used by others from now on.
        sequences: answers that are generated together.
        queue: requests that may wait beyond those.
        prefix_cache: kept states of prompts; None keeps none.
        name: what clients call the model; the store's name unless given.

    Attributes:
        created: when the model was loaded, in seconds since 1970.
        generated: tokens of all answers so far.
        default_sampling: what a request gets that says nothing: the model's generation
            config, or the likeliest token where that says nothing either.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        sequences: int = 4,
        queue: int = 64,
        prefix_cache: PrefixCache | None = None,
        name: str | None = None,
    ) -> None:
        self.engine, self.created = engine, int(time.time())
        self.name = name or engine.store.path.name.removesuffix(".headgate")
        self.tokenizer = engine.tokenizer
        self.default_sampling = _default_sampling(engine)
        self.sequences, self.generated = sequences, 0
        self._lock = Lock()
        self.scheduler = Scheduler(
            engine, sequences=sequences, queue=queue, prefix_cache=prefix_cache
        )

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template.

        Raises:
            UsageError: the store has none.
        """
        store = self.engine.store
        present = {n: store.read_file(n) for n in TEMPLATE_FILES if n in store.manifest.files}
        template = ChatTemplate.from_files(present)
        if template is None:
            raise UsageError("the store has no chat template: only plain completions are possible")
        return template

    @property
    def vocabulary(self) -> Vocabulary:
        """What constraints are checked against, built when it is first needed."""
        with self._lock:
            return self._vocabulary

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        engine = self.engine
        return Vocabulary(
            engine.store.read_file("tokenizer.json"), engine.config.vocab_size, engine.stop_ids
        )

    def prepare(self, request: ChatRequest) -> Prepared:
        """Check and render a request. Takes time in proportion to its length.

        Raises:
            InvalidRequest: a field cannot be used; says which.
            PromptTooLong: the prompt does not fit the context.
        """
        prompt = self._prompt(request)
        self.engine.check_tokens(prompt.ids)
        return Prepared(request, prompt, grammars_of(request))

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the request's prompt, the template's markup included.

        Raises:
            InvalidRequest: a field cannot be used; says which.
        """
        return len(self._prompt(request).ids)

    def chat(self, request: ChatRequest) -> Answer:
        """Answer a conversation.

        Raises:
            InvalidRequest, PromptTooLong: as :meth:`prepare`.
            Busy, ShuttingDown: as :meth:`start`.
        """
        return self.start(self.prepare(request))

    def start(self, prepared: Prepared, seed: int | None = None) -> Answer:
        """Have a prepared request answered.

        Args:
            seed: of the generator, instead of the request's.

        Raises:
            Busy: as many requests wait as may wait.
            ShuttingDown: the assistant is being closed.
            UsageError: a grammar is too complex.
        """
        request, prompt = prepared.request, prepared.prompt
        sampling = request.sampling if seed is None else replace(request.sampling, seed=seed)
        options = TurnOptions(
            max_tokens=request.max_tokens,
            sampling=sampling,
            constraint=self._constraint(prepared),
            top_logprobs=request.top_logprobs,
        )
        reader = ReaderOptions(
            prompt=prompt.ids,
            stop_ids=self.engine.stop_ids,
            tools=() if request.tool_choice == "none" else tuple(request.tools),
            thinking=prompt.thinking,
            stop=request.stop,
            one_call=not request.parallel_tool_calls,
            logprobs=request.top_logprobs is not None,
        )
        return self._submit(prompt.ids, options, reader, snapshot_at=prompt.boundaries)

    def complete(self, request: CompletionRequest, seed: int | None = None) -> Answer:
        """Continue a text.

        Raises:
            InvalidRequest: the prompt is empty, not Unicode, or has unknown token ids.
            PromptTooLong: the prompt does not fit the context.
            Busy, ShuttingDown: as :meth:`start`.
        """
        ids = self.encode(request.prompt)
        sampling = request.sampling if seed is None else replace(request.sampling, seed=seed)
        options = TurnOptions(
            max_tokens=request.max_tokens,
            sampling=sampling,
            top_logprobs=request.top_logprobs,
        )
        reader = ReaderOptions(
            prompt=ids,
            stop_ids=self.engine.stop_ids,
            parse=False,
            stop=request.stop,
            logprobs=request.top_logprobs is not None,
        )
        return self._submit(ids, options, reader, prompt_logprobs=request.prompt_logprobs)

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """The token ids of a raw prompt, checked.

        Raises:
            InvalidRequest, PromptTooLong: as :meth:`complete`.
        """
        if isinstance(prompt, str):
            try:
                ids = self.tokenizer.encode(prompt)
            except (UnicodeEncodeError, TypeError):
                raise InvalidRequest("prompt", "the prompt is not valid Unicode") from None
        else:
            ids = list(prompt)
        try:
            self.engine.check_tokens(ids)
        except PromptTooLong:
            raise
        except UsageError as error:
            raise InvalidRequest("prompt", str(error)) from None
        return ids

    def close(self, timeout: float = 0.0) -> None:
        """Take no more requests and stop, after at most ``timeout`` seconds for answers
        under way."""
        self.scheduler.close(timeout)

    def _prompt(self, request: ChatRequest) -> Prompt:
        with self._lock:
            prompts = self._prompts
        return prompts.build(request)

    @cached_property
    def _prompts(self) -> PromptBuilder:
        return PromptBuilder(self.template, self.tokenizer)

    def _constraint(self, prepared: Prepared) -> TokenConstraint | None:
        thinking, budget = prepared.prompt.thinking, prepared.request.thinking_budget
        end = self.tokenizer.id_of(THINK_END) if thinking else None
        bound: TokenConstraint | None = None
        if prepared.grammars:
            forms = [Constraint(self.vocabulary, g, after=end) for g in prepared.grammars]
            bound = forms[0] if len(forms) == 1 else Alternatives(forms)
        if end is None or budget is None:
            return bound
        return ThinkingBudget(budget, end, self.engine.config.vocab_size, bound)

    def _submit(
        self, ids: list[int], options: TurnOptions, reader: ReaderOptions, **more: Any
    ) -> Answer:
        ticket = self.scheduler.submit(ids, options, **more)
        return Answer(ticket, AnswerReader(self.tokenizer, reader), len(ids), self._count)

    def _count(self, tokens: int) -> None:
        with self._lock:
            self.generated += tokens


def _default_sampling(engine: Engine) -> Sampling:
    if "generation_config.json" not in engine.store.manifest.files:
        return Sampling()
    config = engine.store.read_json("generation_config.json")
    if not config.get("do_sample", "temperature" in config):
        return Sampling()
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    found = {name: config[name] for name in names if isinstance(config.get(name), (int, float))}
    return Sampling(**{"temperature": 1.0, **found})
