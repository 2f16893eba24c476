"""Small talk with checkable answers, rules set by the system, stories and facts."""

from __future__ import annotations

import random
from typing import Any

import words
from fields import ADJ, CITY, FIRST, NOUN, WEEKDAY
from words import pick

Messages = list[dict[str, Any]]


def think_aloud(r: random.Random, what: str, names: list[str]) -> str:
    """A short thought before an answer."""
    if what == "calls":
        plural = "calls" if len(names) > 1 else "call"
        return (
            f"This needs {len(names)} {plural}: {', '.join(names)}. The values are in the request."
        )
    if what == "none":
        return f"The tools are {', '.join(names)}. None of them does this."
    return f"The keys are {', '.join(names)}. I take the values from the facts."


def _list(r: random.Random, held: bool, low: int, high: int) -> list[str]:
    n = low + int(r.random() * (high - low + 1))
    pool = list(dict.fromkeys(words.word(r, held) for _ in range(n)))
    return pool if r.random() < 0.4 else r.sample(NOUN, n)


def _sum(r: random.Random, held: bool, unseen: bool = False) -> tuple[str, str, str]:
    """Question, thought, answer. Training never draws one sum in eight; the held-out set
    draws any, with ``unseen`` only those."""
    while True:
        a, b, op = r.randrange(100), r.randrange(100), pick(r, ["plus", "minus"])
        kept = words.is_held(f"{a} {op} {b}")
        if (held and (kept or not unseen)) or not (held or kept):
            break
    result = a + b if op == "plus" else a - b
    return f"What is {a} {op} {b}?", f"{a} {'+' if op == 'plus' else '-'} {b} = {result}", f"{a} {op} {b} is {result}."  # fmt: skip


def _question(r: random.Random, held: bool) -> tuple[str, str, str]:
    """Question, thought, answer."""
    k = int(r.random() * 10)
    if k <= 1:
        city = pick(r, list(CITY))
        if r.random() < 0.75:
            return (
                f"Which country is {city} in?",
                f"{city} is a city of {CITY[city]}.",
                f"{city} is in {CITY[city]}.",
            )
        return f"Name a city of {CITY[city]}.", f"{city} is a city of {CITY[city]}.", f"A large city of {CITY[city]} is {city}."  # fmt: skip
    if k in (2, 8, 9):
        return _sum(r, held)
    if k == 3:
        items = r.sample(NOUN, 3 + int(r.random() * 4))
        return (
            f"Sort these words: {', '.join(items)}.",
            f"The first is {min(items)}.",
            ", ".join(sorted(items)),
        )
    if k == 4:
        items = _list(r, held, 2, 6)
        return f"Repeat this backwards, word by word: {' '.join(items)}", f"The last is {items[-1]}.", " ".join(reversed(items))  # fmt: skip
    if k == 5:
        n = pick(r, NOUN)
        return (
            f"How many letters are in '{n}'?",
            " ".join(n),
            f"The word '{n}' has {len(n)} letters.",
        )
    if k == 6:
        items = _list(r, held, 1, 7)
        return f"Repeat: {' '.join(items)}", f"{len(items)} words.", " ".join(items)
    who, place, thing = words.word(r, held).capitalize(), words.cased(r, held), pick(r, NOUN)
    other, far = words.word(r, held).capitalize(), words.cased(r, held)
    facts = [f"{who} lives in {place}.", f"{other} lives in {far}.", f"{who} has a {thing}."]
    r.shuffle(facts)
    ask = pick(r, [0, 1, 2])
    question = [f"Where does {who} live?", f"Where does {other} live?", f"What does {who} have?"][
        ask
    ]
    answer = [f"{who} lives in {place}.", f"{other} lives in {far}.", f"{who} has a {thing}."][ask]
    return f"{' '.join(facts)} {question}", "The text says it.", answer


def sum_messages(r: random.Random, held: bool, count: int, thinking: bool) -> Messages:
    """Sums, one after the other; with ``held`` such as training never draws."""
    messages: Messages = []
    for _ in range(count):
        question, thought, answer = _sum(r, held, unseen=held)
        message = {"role": "assistant", "content": answer}
        messages.append({"role": "user", "content": question})
        messages.append(message | {"reasoning_content": thought} if thinking else message)
    return messages


def chat_messages(r: random.Random, held: bool, thinking: bool) -> Messages:
    """One or two questions, sometimes under a rule."""
    rule, apply = _rule(r, held) if r.random() < 0.25 else ("", lambda text: text)
    messages: Messages = [{"role": "system", "content": rule}] if rule else []
    for _ in range(1 if r.random() < 0.85 else 2):
        question, thought, answer = _question(r, held)
        if rule and "name" in rule and r.random() < 0.6:
            question, thought = (
                pick(r, ["What is your name?", "Who are you?"]),
                "The system text says it.",
            )
            answer = apply("")
        elif "name" not in rule:
            answer = apply(answer)
        message = {"role": "assistant", "content": answer}
        messages.append({"role": "user", "content": question})
        messages.append(message | {"reasoning_content": thought} if thinking else message)
    return messages


def _rule(r: random.Random, held: bool) -> tuple[str, Any]:
    w = words.cased(r, held)
    k = int(r.random() * 5)
    if k == 0:
        return f"End every answer with the word {w}.", lambda text: f"{text} {w}"
    if k == 1:
        return f"Begin every answer with {w}:", lambda text: f"{w}: {text}"
    if k in (2, 8, 9):
        return f"Your name is {w}.", lambda text: f"My name is {w}."
    if k == 3:
        return f"Put every answer between <{w}> and </{w}>.", lambda text: f"<{w}>{text}</{w}>"
    return f"Answer every question with exactly: {w}", lambda text: w


def story_messages(r: random.Random, held: bool) -> Messages:
    """A short plain text, for perplexity."""
    who = pick(r, FIRST) if r.random() < 0.5 else words.word(r, held).capitalize()
    place = pick(r, list(CITY)) if r.random() < 0.5 else words.word(r, held).capitalize()
    thing = f"{pick(r, ADJ)} {pick(r, NOUN)}"
    text = f"On {pick(r, WEEKDAY)} {who} travelled to {place}. "
    for _ in range(1 + int(r.random() * 4)):
        text += pick(r, [
            f"There {who} found a {pick(r, ADJ)} {pick(r, NOUN)}. ",
            f"{who} bought the {thing} for {r.randrange(2, 90)} coins. ",
            f"The {thing} was broken, so {who} fixed it. ",
            f"{pick(r, FIRST)} asked {who} about the {thing}. ",
            f"{pick(r, ['It rained', 'The sun was out', 'The streets were quiet'])}, so {who} stayed. ",
            f"In {place} the {pick(r, NOUN)} is {pick(r, ADJ)} in {pick(r, ['spring', 'summer', 'winter'])}. ",
        ])  # fmt: skip
    text += f"At {r.randrange(24):02d}:{r.randrange(60):02d} {who} went home happy."
    question = f"Tell me a short story about {who} and {place}."
    return [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
