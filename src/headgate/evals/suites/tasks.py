"""Tasks of EleutherAI's lm-evaluation-harness (lm_eval 0.4), with headgate as the model.

`headgate eval STORE --tasks NAME` evaluates here; :func:`register` makes ``headgate`` known
to lm_eval's own programs as a model with the arguments ``store`` and those of
:meth:`headgate.engine.Engine.load`. lm_eval is not a dependency of headgate.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import headgate
from headgate.chat import ChatTemplate
from headgate.engine import Engine
from headgate.errors import UsageError
from headgate.evals.templates import store_template

MODEL = "headgate"
#: Longest answer of a task that sets no limit.
MAX_TOKENS = 256


class Scorer:
    """Likelihoods and continuations of texts, of one engine; knows nothing of lm_eval.

    A text begins after the tokenizer's first stop token (the end of an earlier document),
    as lm_eval's own models have it, if there is nothing else before it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.encode = engine.tokenizer.encode

    @property
    def prefix(self) -> int:
        """The token before the first one."""
        end = self.engine.tokenizer.id_of("<|endoftext|>")
        return min(self.engine.stop_ids, default=0) if end is None else end

    def continuation(self, context: str, text: str) -> tuple[float, bool]:
        """Natural log probability of ``text`` after ``context``, and whether it is what
        the model would say greedily. White space at the context's end belongs to
        ``text``, as tokens hold it. A context that does not fit loses its beginning.

        Raises:
            UsageError: ``text`` alone does not fit.
        """
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, text = context[:-spaces], context[-spaces:] + text
        head = self.encode(context) if context else [self.prefix]
        whole = self.encode(context + text) if context else head + self.encode(text)
        if whole[: len(head)] != head:  # a token spans the border
            whole = head + self.encode(text)
        ids = whole[-self.engine.context :]
        count = len(whole) - len(head)
        if count >= len(ids):
            raise UsageError(f"a continuation of {count} tokens does not fit the context")
        return self._score(ids, count)

    def rolling(self, text: str) -> float:
        """Natural log probability of a whole text, in windows of the context's length
        that do not overlap in what they predict, each with all context that fits."""
        ids, size, total = self.encode(text), self.engine.context, 0.0
        for at in range(0, len(ids), size - 1):
            part = ids[at : at + size - 1]
            before = ids[:at][-(size - len(part)) :] if at else [self.prefix]
            total += self._score([*before, *part], len(part))[0]
        return total

    def until(self, context: str, stops: Sequence[str], max_tokens: int) -> str:
        """Greedy text up to the first of ``stops``. A context that does not fit loses its
        beginning."""
        ids = self.encode(context) or [self.prefix]
        room = self.engine.context - max_tokens
        if room < 1:
            raise UsageError(f"an answer of {max_tokens} tokens does not fit the context")
        session, said, text = self.engine.new_session(), [], ""
        for token in session.generate(ids[-room:], max_tokens):
            said.append(token)
            text = self.engine.tokenizer.decode(said)
            if any(stop in text for stop in stops):
                break
        ends = [text.index(stop) for stop in stops if stop in text]
        return text[: min(ends)] if ends else text

    def _score(self, ids: Sequence[int], count: int) -> tuple[float, bool]:
        """Log probability of the last ``count`` of ``ids``."""
        logits = self.engine.new_session().append(list(ids[:-1]), all_logits=True)
        rows = logits[-count:].astype(np.float64)
        top = rows.max(-1)
        total = top + np.log(np.exp(rows - top[:, None]).sum(-1))
        wanted = np.array(ids[-count:])
        chosen = rows[np.arange(count), wanted]
        return float((chosen - total).sum()), bool((rows.argmax(-1) == wanted).all())


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.api.model
        import lm_eval.api.registry
        import lm_eval.tasks
    except ImportError:
        raise UsageError("tasks need lm-evaluation-harness: pip install lm_eval") from None
    return lm_eval


def register() -> type:
    """Make ``headgate`` a model of lm_eval; the class. Does it once.

    Raises:
        UsageError: lm_eval is not installed.
    """
    lm = _lm_eval()
    registry = lm.api.registry
    try:
        found: type = registry.get_model(MODEL)
        return found
    except (KeyError, ValueError):
        pass

    base: Any = lm.api.model.LM

    class HeadgateLM(base):  # type: ignore[misc]
        """An engine behind lm_eval's interface."""

        def __init__(self, store: str | Engine = "", **options: Any) -> None:
            super().__init__()
            for name in ("batch_size", "max_batch_size", "device"):  # lm_eval's own
                options.pop(name, None)
            engine = store if isinstance(store, Engine) else Engine.load(store, **options)
            self.scorer = Scorer(engine)

        @property
        def tokenizer_name(self) -> str:
            """A name for caches of rendered prompts."""
            return str(self.scorer.engine.store.path.name)

        def loglikelihood(self, requests: Iterable[Any], **_: Any) -> list[tuple[float, bool]]:
            return [self.scorer.continuation(*request.args) for request in requests]

        def loglikelihood_rolling(self, requests: Iterable[Any], **_: Any) -> list[float]:
            return [self.scorer.rolling(*request.args) for request in requests]

        def generate_until(self, requests: Iterable[Any], **_: Any) -> list[str]:
            return [self.scorer.until(*_generation(*request.args)) for request in requests]

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            template: ChatTemplate = store_template(self.scorer.engine.store)
            return template.render(chat_history, None, add_generation_prompt, enable_thinking=False)

    registry.register_model(MODEL)(HeadgateLM)
    return HeadgateLM


def _generation(context: str, settings: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """Arguments of :meth:`Scorer.until` from those of a task.

    Raises:
        UsageError: the task wants tokens drawn.
    """
    if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
        raise UsageError("a task asks for sampling; headgate answers tasks greedily")
    stops = settings.get("until") or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    return context, [s for s in stops if s], int(settings.get("max_gen_toks", MAX_TOKENS))


def run_tasks(
    store: Path,
    options: dict[str, Any],
    names: Sequence[str],
    folder: Path | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Evaluate tasks on a store.

    Args:
        folder: with task files of one's own.
        limit: documents of each task.

    Returns:
        ``{headgate, target, suites: {}, tasks: {task: {n, figures, errors}}}``

    Raises:
        UsageError: lm_eval is not installed, or does not know a task.
    """
    lm = _lm_eval()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(lm, names, folder)
    engine = Engine.load(store, **options)
    found = lm.simple_evaluate(
        model=register()(engine),
        tasks=list(names),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=1000,
        log_samples=False,
    )
    return {
        "headgate": headgate.__version__,
        "target": {"name": store.name, "lossy": engine.lossy},
        "suites": {},
        "tasks": {name: _figures(found, name) for name in found["results"]},
    }


def _manager(lm: Any, names: Sequence[str], folder: Path | None) -> Any:
    """What knows the tasks. lm_eval's own, thousands, are read only if they are needed."""
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder of task files")
        manager = lm.tasks.TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return manager
    manager = lm.tasks.TaskManager(include_path=None if folder is None else str(folder))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UsageError(f"lm_eval knows no task {unknown[0]!r}")
    return manager


def _figures(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Numbers of one task; keys such as ``acc,none`` lose a filter that does nothing."""
    figures, errors = {}, {}
    for key, value in found["results"][name].items():
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in key:
            figure, _, kind = key.partition(",")
            figure += "" if kind == "none" else f" ({kind})"
            if "_stderr" in figure:
                errors[figure.replace("_stderr", "")] = float(value)
            else:
                figures[figure] = float(value)
    n = found.get("n-samples", {}).get(name, {}).get("effective", 0)
    return {"n": int(n), "figures": figures, "errors": errors}
