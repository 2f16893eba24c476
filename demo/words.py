"""An open vocabulary: words, identifiers and hostile strings that no list holds.

Strings are split by a checksum: one in eight may only be drawn for the held-out set,
the others only for training, so that no held-out string was ever seen in training.
"""

from __future__ import annotations

import random
import zlib

ONSET = [*"bcdfghjklmnprstvwz", "br", "ch", "cl", "dr", "fl", "gr", "kl", "pl", "qu", "sh", "st", "th", "tr", "x", "y", ""]  # fmt: skip
VOWEL = [*"aeiou", *"aeiou", "ai", "ea", "io", "ou", "y", "oo"]
CODA = ["", "", "", "", *"lmnrstkpd", "nd", "rk", "sk", "x", "ng", "ll"]
SCRIPTS = {
    "greek": "αβγδεζηθικλμνξοπρστυφχψω",
    "cyrillic": "абвгдежзиклмнопрстуфхцчшыюя",
    "latin": "áàâäãåçéèêëíîïñóôöõøúûüýßæœčšžłő",
    "kana": "あいうえおかきくけこさしすせそたちつてとなにぬねのまみむめもラリルレロン",
    "han": "日月山水火木金土人大小中上下東西南北天空海川",
}
TAIL = "abcdefghijklmnopqrstuvwxyz0123456789"
HOSTILE = ['"', "'", "\\", "{", "}", "[", "]", ",", ":", "\n", "\\n", '\\"', "</", "<", ">", "&", "#", "%", "$", "|", "`", "/*", "();", "=", "~", "{}", '""', "\t"]  # fmt: skip


def is_held(text: str) -> bool:
    """Whether a string belongs to the held-out split."""
    return zlib.crc32(text.encode()) % 8 == 0


def pick(r: random.Random, items):
    """One of ``items``; quicker than random.choice."""
    return items[int(r.random() * len(items))]


def _pseudo(r: random.Random) -> str:
    n = 1 + int(r.random() ** 1.5 * 3.3)
    w = "".join(pick(r, ONSET) + pick(r, VOWEL) for _ in range(n)) + pick(r, CODA)
    if r.random() < 0.1:  # letters in any order
        w = "".join(pick(r, TAIL[:26]) for _ in range(2 + int(r.random() * 7)))
    return w if len(w) > 2 else w + pick(r, "klmnrst")


def word(r: random.Random, held: bool) -> str:
    """A lower-case pseudo-word of the split."""
    while is_held(w := _pseudo(r)) is not held or w == "null":
        pass
    return w


def cased(r: random.Random, held: bool) -> str:
    """A pseudo-word in some case or script."""
    while True:
        k = r.random()
        if k < 0.5:
            return word(r, held).capitalize()
        if k < 0.75:
            return word(r, held)
        if k < 0.83:
            w = word(r, held).upper()
        elif k < 0.9:
            w = word(r, held) + word(r, held).capitalize()
        elif k < 0.94:
            w = f"{word(r, held)}-{word(r, held)}"
        else:
            letters = pick(r, list(SCRIPTS.values()))
            n = 2 + int(r.random() * 6)
            w = "".join(pick(r, letters) for _ in range(n))
            if r.random() < 0.4:
                w = _pseudo(r) + w[:2] + _pseudo(r)
        return w


def phrase(r: random.Random, held: bool, nouns: list[str]) -> str:
    """Two to five words, made up or real."""
    n = 2 + int(r.random() * 4)
    words = [word(r, held) if r.random() < 0.6 else pick(r, nouns) for _ in range(n)]
    if held:
        words[0] = word(r, held)
    text = " ".join(words)
    return text.capitalize() if r.random() < 0.4 else text


def identifier(r: random.Random, held: bool) -> str:
    """Such as QX-1234, a7f3c9, k_88 or 10.4.0.7."""
    while True:
        k = int(r.random() * 6)
        if k == 0:
            w = f"{pick(r, 'ABCDEFGHKLMQRXZ')}{pick(r, 'ABCDEFGHKLMQRXZ')}-{r.randrange(1000, 10000)}"
        elif k == 1:
            w = "".join(pick(r, "0123456789abcdef") for _ in range(4 + int(r.random() * 5)))
            if w.isdigit() or "e" in w:  # would read as a number
                continue
        elif k == 2:
            w = f"{word(r, held)}_{r.randrange(1, 1000)}"
        elif k == 3:
            w = f"{word(r, held).upper()}/{r.randrange(1, 100)}-{pick(r, 'abcdefg')}"
        elif k == 4:
            w = ".".join(str(r.randrange(0, 256)) for _ in range(4))
        else:
            w = "".join(pick(r, "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjkmnpqrstuvwxyz23456789") for _ in range(5 + int(r.random() * 4)))  # fmt: skip
            if "e" in w.lower() or "n" in w.lower():
                continue
        if is_held(w) is held:
            return w


def hostile(r: random.Random, held: bool) -> str:
    """A string that has to be escaped in JSON: quotes, backslashes, newlines, braces."""
    parts = [word(r, held)]
    for _ in range(1 + int(r.random() * 4)):
        parts.append(pick(r, HOSTILE))
        if r.random() < 0.25:
            parts.append(pick(r, HOSTILE))
        if r.random() < 0.3:
            parts.append(" ")
        parts.append(word(r, held) if r.random() < 0.8 else str(r.randrange(1000)))
    if r.random() < 0.3:
        parts.append(pick(r, ['"', "}", "'", "\\", "]"]))
    return "".join(parts)


def email(r: random.Random, held: bool) -> str:
    """An address at an invented domain."""
    return f"{word(r, held)}{pick(r, ['.', '_', '', '-'])}{word(r, held)}@{word(r, held)}.{pick(r, ['org', 'net', 'com', 'io'])}"


def path(r: random.Random, held: bool) -> str:
    """A file's path."""
    parts = "/".join(word(r, held) for _ in range(1 + int(r.random() * 3)))
    return f"/{parts}.{pick(r, ['txt', 'md', 'log', 'json', 'csv'])}"


def url(r: random.Random, held: bool) -> str:
    """A web address."""
    return f"https://{word(r, held)}.{pick(r, ['org', 'net', 'io'])}/{word(r, held)}?{word(r, held)[:3]}={r.randrange(100)}"
