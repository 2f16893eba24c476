"""One answer, without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headgate.engine import Engine, Sampling, Step, Turn, TurnOptions
from headgate.engine.turn import MOST_FORCED
from headgate.errors import UsageError
from tests.conftest import DemoStore

VOCAB = 12
STOP = 9


def logits(*likely: int) -> npt.NDArray[np.float32]:
    """The first of ``likely`` is the likeliest, and so on."""
    x = np.zeros(VOCAB, np.float32)
    for rank, token in enumerate(likely):
        x[token] = 10 - rank
    return x


def turn(prompt: tuple[int, ...] = (1, 2), context: int = 100, **options: Any) -> Turn:
    return Turn(
        prompt,
        TurnOptions(**options),
        stop_ids=frozenset({STOP}),
        allowed=np.arange(VOCAB) < 11,
        context=context,
    )


class Script:
    """A constraint: exactly these tokens; forced are those behind a choice of ``free``."""

    def __init__(self, *tokens: int, choices: dict[int, set[int]] | None = None) -> None:
        self.tokens, self.choices, self.at = tokens, choices or {}, 0

    def mask(self) -> npt.NDArray[np.bool_] | None:
        allowed = self.choices.get(self.at, set(self.tokens[self.at : self.at + 1]))
        return np.isin(np.arange(VOCAB), list(allowed))

    def forced(self) -> list[int]:
        end = min((at for at in self.choices if at >= self.at), default=len(self.tokens))
        return list(self.tokens[self.at : end])

    def accept(self, token: int) -> None:
        assert token in self.choices.get(self.at, {self.tokens[self.at]})
        self.at += 1

    @property
    def finished(self) -> bool:
        return self.at == len(self.tokens)


def test_tokens_follow_until_a_stop_token() -> None:
    t = turn()
    assert t.pending == [1, 2]
    assert t.accept(logits(4)) == [Step(4)]
    assert (t.pending, t.tokens, t.finish_reason) == ([4], [1, 2, 4], None)
    assert t.accept(logits(STOP, 5)) == []
    assert (t.finish_reason, t.generated, t.tokens) == ("stop", 1, [1, 2, 4])


def test_own_stop_ids_replace_the_models() -> None:
    t = turn(stop_ids=frozenset({5}))
    assert t.accept(logits(STOP)) == [Step(STOP)]
    assert t.accept(logits(5)) == [] and t.finish_reason == "stop"


def test_limits_end_with_length() -> None:
    t = turn(max_tokens=2)
    t.accept(logits(3))
    assert (t.generated, t.finish_reason) == (1, None)
    assert t.accept(logits(3)) == [Step(3)] and t.finish_reason == "length"
    t = turn(context=3)
    t.accept(logits(3))
    assert (t.generated, t.finish_reason) == (1, None)
    # The last token need not be processed.
    assert t.accept(logits(4)) == [Step(4)] and t.finish_reason == "length"
    t = turn(max_tokens=0)
    assert t.accept(logits(3)) == [] and t.finish_reason == "length"


def test_constraint_masks_and_forced_tokens_come_as_one_chunk() -> None:
    t = turn(constraint=Script(3, 4, 5, 6, 7, choices={0: {3, 8}, 3: {6, 8}}))
    assert t.accept(logits(0, 8, 3)) == [Step(8), Step(4), Step(5)]
    assert t.pending == [8, 4, 5] and t.generated == 3
    assert t.accept(logits(1, 6)) == [Step(6), Step(7)]
    assert t.finish_reason == "stop"


def test_long_forced_text_comes_in_several_chunks() -> None:
    t = turn(constraint=Script(*[3] * 40))
    assert [len(t.accept(logits(3))) for _ in range(3)] == [1 + MOST_FORCED, 1 + MOST_FORCED, 6]
    assert t.finish_reason == "stop" and t.generated == 40


def test_forced_tokens_respect_the_limit() -> None:
    t = turn(max_tokens=2, constraint=Script(3, 4, 5))
    assert t.accept(logits(0)) == [Step(3), Step(4)]
    assert t.finish_reason == "length"


def test_log_probabilities_are_those_of_the_model_for_every_token() -> None:
    sampling = Sampling(logit_bias={4: 100.0})
    t = turn(top_logprobs=2, sampling=sampling, constraint=Script(4, 5, choices={0: {4, 6}}))
    x = logits(3, 4)
    expected = x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum())
    (step,) = t.accept(x)
    assert step.token == 4 and step.logprob == pytest.approx(expected[4])
    assert [token for token, _ in step.top] == [3, 4]
    assert step.top[0][1] == pytest.approx(expected[3])
    # A forced token waits for its own logits.
    (step,) = t.accept(logits(7))
    assert step.token == 5 and step.logprob == pytest.approx(np.log(1 / (np.exp(10) + 11)))


def test_penalties_count_the_answer_and_not_the_prompt() -> None:
    t = turn((3, 3, 3), sampling=Sampling(presence_penalty=2.0))
    assert [t.accept(logits(3, 4))[0].token for _ in range(3)] == [3, 4, 3]


def test_constraint_that_leaves_nothing_is_an_error() -> None:
    t = turn(constraint=Script(11))  # not allowed by the vocabulary
    with pytest.raises(UsageError, match="no token"):
        t.accept(logits(1))


@pytest.mark.parametrize("options", [{"max_tokens": -1}, {"top_logprobs": -1}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        TurnOptions(**options)


def test_session_follows_a_constraint(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(4, 8))

    class Only(Script):
        def mask(self) -> npt.NDArray[np.bool_] | None:
            allowed = self.tokens[self.at : self.at + 1]
            return np.isin(np.arange(engine.config.vocab_size), allowed)

    session = engine.new_session()
    script = (40, 41, 42, 43)
    found = list(session.generate([5, 6], 10, constraint=Only(*script)))
    assert tuple(found) == script
    assert session.generation is not None and session.generation.finish_reason == "stop"
    assert session.generation.generated_tokens == 4
