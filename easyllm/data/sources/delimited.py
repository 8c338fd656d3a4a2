"""Records of CSV and TSV: from lines of bytes to fields, whatever is wrong with some of them.

Bytes are decoded before fields are parsed. Bytes that are not UTF-8 are left out for that, so that
the quotes around them keep their meaning: the record that holds them is rejected, wherever it
ends, and its neighbours are not affected.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from easyllm.data.sources.io import TooLong, text_of
from easyllm.spec.roles import Rejected

Lines = Iterator[tuple[int, bytes | Rejected]]
"""Lines of a file by number, without their ends, as ``io.byte_lines`` gives them."""

Line = tuple[int, str, str | None, int]
"""Number, text with its end, why its record cannot be used, and bytes."""


@dataclass(frozen=True)
class Row:
    """A record: the line at which it begins, and its fields."""

    line: int
    fields: list[str]


class _TooMuch(Exception):
    """A record that does not end within the bytes that may be held."""


class Rows:
    """The records of a file in order: ``Row``, or ``Rejected`` in place of a bad one.

    A double quote that opens and does not close would take all that follows into one record.
    Such a record is rejected, and reading continues at the next line at which a record begins
    that has ``width`` fields and no stray quote, or after the next line that closes a quote.
    A record that is longer than ``longest`` bytes counts as one that does not close, because
    no more is held: lines in it that look like records are then read as records. A blank line
    between records is not a record.
    """

    width: int | None = None
    """Fields of a record; None until the caller that reads the header sets it."""

    def __init__(self, lines: Lines, delimiter: str, quotes: bool, longest: int):
        self._feed = _Feed(lines, longest)
        self._quotes = quotes
        self._settings = {
            "delimiter": delimiter,
            "quoting": csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            "strict": True,  # else text after a closing quote is joined to it silently
        }
        between = re.escape(delimiter)
        field = rf'(?:"[^"]*+(?:""[^"]*+)*+"|[^"{between}]*+)'
        self._is_proper = re.compile(rf"{field}(?:{between}{field})*+").fullmatch
        # the process's limit; the lines of a record are counted before it is reached
        csv.field_size_limit(max(csv.field_size_limit(), 2 * longest))

    def __iter__(self) -> Iterator[Row | Rejected]:
        feed, broken = self._feed, None
        reader = csv.reader(feed, **self._settings)  # type: ignore[arg-type]
        while True:
            feed.begin()
            try:
                fields = next(reader)
            except StopIteration:
                break
            except (csv.Error, _TooMuch) as error:
                reader = csv.reader(feed, **self._settings)  # type: ignore[arg-type]
                if broken is None:
                    rejected = self._rejected(error)
                    if self.width is None or self._ends_with_its_line():
                        yield rejected
                    else:
                        broken = rejected
                        feed.go_back()
                    continue
                fields = []
            if broken is not None:
                if not self._begins_record(fields):
                    feed.go_back()
                    if feed.quotes_of_first() % 2:  # what was open is closed
                        yield _until(broken, feed.held[0][0] + 1)
                        broken = None
                    continue
                yield _until(broken, feed.held[0][0])
                broken = None
            if fields or any(bad for _, _, bad, _ in feed.held):  # else it is a blank line
                yield self._row(fields)
        yield from (bad for bad in (broken, feed.damage) if bad)

    @property
    def damage(self) -> Rejected | None:
        """The error that ended the file before its end, which was given last."""
        return self._feed.damage

    def _ends_with_its_line(self) -> bool:
        """Whether no quote is open after a record that cannot be parsed."""
        one = len(self._feed.held) == 1
        return one and (not self._quotes or self._feed.quotes_of_first() % 2 == 0)

    def _rejected(self, error: Exception) -> Rejected:
        first, last = self._feed.held[0][0], self._feed.held[-1][0]
        if self._feed.reason is not None:
            return Rejected(first, self._feed.reason)
        if first != last:
            reason = f"a double quote opens and does not close as it should, up to line {last}"
            return Rejected(first, reason)
        return Rejected(first, _said(error))

    def _begins_record(self, fields: list[str]) -> bool:
        text = "".join(line[1] for line in self._feed.held).removesuffix("\n")
        return len(fields) == self.width and self._is_proper(text) is not None

    def _row(self, fields: list[str]) -> Row | Rejected:
        number = self._feed.held[0][0]
        for line, _, bad, _ in self._feed.held:
            if bad:
                return Rejected(number, bad if line == number else f"line {line}: {bad}")
        if self.width is not None and len(fields) != self.width:
            return Rejected(number, f"{len(fields)} fields, the header has {self.width}")
        return Row(number, fields)


def _until(broken: Rejected, line: int) -> Rejected:
    return Rejected(broken.line, f"{broken.reason}; reading continues at line {line}")


def _said(error: Exception) -> str:
    """The csv module's message, in words that say what to do."""
    words = {
        "expected after": "other text follows a closing double quote; where quotes are mere "
        "characters, give the reader's quotes=false",
        "unexpected end": "a double quote opens and does not close",
        "new-line character": "a carriage return is outside double quotes",
    }
    return next((said for part, said in words.items() if part in str(error)), str(error))


class _Feed:
    """Lines for ``csv.reader``; those of the current record are held."""

    def __init__(self, lines: Lines, longest: int):
        self._lines, self._longest = lines, longest
        self._back: deque[Line] = deque()
        self._size = 0
        self.held: list[Line] = []
        self.reason: str | None = None
        """Why the record cannot be held."""
        self.damage: Rejected | None = None
        """Why there are no more lines, where that is not the file's end."""

    def begin(self) -> None:
        """A new record begins at the next line."""
        self.held.clear()
        self._size, self.reason = 0, None

    def quotes_of_first(self) -> int:
        """Double quotes in the first line of the record."""
        return self.held[0][1].count('"')

    def go_back(self) -> None:
        """Give the lines of the record again, except for its first."""
        self._back.extendleft(reversed(self.held[1:]))

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else self._read()
        self.held.append(line)
        self._size += line[3]
        if self._size > self._longest:
            self.reason = (
                f"longer than {self._longest:,} bytes, or a double quote in it does not close"
            )
            raise _TooMuch
        return line[1]

    def _read(self) -> Line:
        number, data = next(self._lines)
        if isinstance(data, TooLong):
            # in its place a line that opens or closes a quote as the long one does
            return number, '"\n' if data.quotes % 2 else "-\n", data.reason, 1
        if isinstance(data, Rejected):
            self.damage = data
            raise StopIteration
        text = text_of(data)
        if isinstance(text, str):
            return number, text + "\n", None, len(data)
        kept = data.replace(b"\0", b"").decode(errors="ignore")
        return number, kept + "\n", text.args[0], len(data)
