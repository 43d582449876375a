"""What is named on the command line, or one a line on standard input."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from subscriptions.errors import DomainError
from subscriptions.numbers import LOOKS_LIKE


class MalformedNumber(DomainError):
    """A subscription's number looks like SUB-20260101-7KX2M."""

    code = "malformed_number"


class NotText(DomainError):
    """This is not UTF-8."""

    code = "not_utf_8"


class NamedTwice(DomainError):
    """It has been named before: it was not done a second time."""

    code = "named_twice"


@dataclass(frozen=True)
class Name:
    """A subscription's number, or what stands in its place and why it is none."""

    text: str
    error: DomainError | None = None


def named(words: Sequence[str], standard_input: Iterable[bytes]) -> list[Name]:
    """Every number of the words, and of standard input in the place of a `-` or of no word at all; each once."""
    names: list[Name] = []
    seen: set[str] = set()
    for word in words or ["-"]:
        for name in _lines(standard_input) if word == "-" else [_name(word)]:
            is_repeated = name.error is None and name.text in seen
            names.append(Name(name.text, NamedTwice()) if is_repeated else name)
            seen.add(name.text)
    return names


def _lines(standard_input: Iterable[bytes]) -> Iterator[Name]:
    """Blank lines and what follows a `#` are for people."""
    for position, line in enumerate(standard_input, 1):
        try:
            text = line.decode("utf-8-sig").partition("#")[0].strip()
        except UnicodeDecodeError:
            yield Name(f"line {position}", NotText(f"Line {position} of standard input is not UTF-8."))
        else:
            if text:
                yield _name(text)


def _name(text: str) -> Name:
    return Name(text) if LOOKS_LIKE.fullmatch(text) else Name(ascii(text[:100]), MalformedNumber())
