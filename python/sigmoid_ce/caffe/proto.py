"""Adds the layer's message to a caffe.proto and takes it out again.

Only what is needed of the protobuf language (version 2) is read: which messages there are, and
which numbers and names the fields of LayerParameter have taken. Text is bytes read as Latin-1, so
that every byte comes back as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

MESSAGE = "SigmoidCrossEntropyLossParameter"
FIELD = "sigmoid_cross_entropy_loss_param"
# The message's fields, as the layer reads them.
MESSAGE_FIELDS = {
    "pos_weight": 1,
    "weight": 2,
    "divisor": 3,
    "uncertain": 4,
    "label_smoothing": 5,
    "balance": 6,
    "balance_per_channel": 7,
    "negative_scale": 8,
    "gamma": 9,
    "alpha": 10,
    "normalization": 11,
}
# A message of this name with these is ours, perhaps of an earlier version: the layer compiles with
# it, and reads the fields that are there.
FIRST_FIELDS = {"pos_weight", "weight", "divisor"}

# The number is the same in every tree where it is free, so that binary models can be exchanged.
# Small numbers would be free in one Caffe and another layer's in the next.
PREFERRED_NUMBER = 7311
# The language keeps these for itself, and allows none above the second.
_RESERVED = (19000, 19999)
_LARGEST = (1 << 29) - 1

# What is written into caffe.proto: a comment, and a field without its number.
_DECLARATIONS = [
    (
        "The factor on the positive part: one for all channels, or one for each.",
        "repeated double pos_weight",
    ),
    (
        "The factor on every element: one for all channels, or one for each.",
        "repeated double weight",
    ),
    ("The sum is divided by this, in place of what loss_param says.", "optional double divisor"),
    ('Targets other than 0 and 1: "soft", or "ignore".', "optional string uncertain"),
    ("Targets t become t (1 - s) + s / 2.", "optional double label_smoothing"),
    (
        'Weights of the classes by how many there are: "none", "image", "batch", "batch_mean".',
        "optional string balance",
    ),
    ("", "optional bool balance_per_channel"),
    ("A factor on the negatives.", "optional double negative_scale"),
    ("Focal loss.", "optional double gamma"),
    ("Positives by alpha, negatives by 1 - alpha.", "optional double alpha"),
    (
        '"foreground": by the number of positives. loss_param has the others.',
        "optional string normalization",
    ),
]

_BEGIN = "// sigmoid_ce begin: 'sigmoid-ce caffe uninstall' removes these lines"
_END = "// sigmoid_ce end"

_TOKEN = re.compile(
    r"""(?P<space>\s+|\ufeff|\xef\xbb\xbf|//[^\n]*|/\*.*?\*/)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<word>[A-Za-z_.][\w.]*)
      | (?P<number>0[xX][0-9a-fA-F]+|\d[\w.]*)
      | (?P<sign>[{}()\[\]<>=;,:+\-/])""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    text: str
    start: int
    end: int


class Edit(NamedTuple):
    """What was put into a caffe.proto. Taking both texts out gives the bytes from before."""

    number: int
    field: str
    message: str


@dataclass
class Fields:
    """What the fields of a message have taken."""

    names: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[int, int]] = field(default_factory=list)  # both ends count

    def taken(self, number: int) -> bool:
        return number in self.names.values() or any(a <= number <= b for a, b in self.ranges)


@dataclass
class Proto:
    """The top level of a .proto file."""

    syntax: str = "proto2"
    messages: dict[str, Fields] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)  # enums and services
    closing: dict[str, int] = field(default_factory=dict)  # offset of a message's last brace


def tokens(text: str) -> Iterator[Token]:
    """Words, numbers, strings and signs, without comments. Raises ValueError for anything else."""
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            line = text.count("\n", 0, at) + 1
            raise ValueError(f"line {line}: cannot read {text[at : at + 20]!r}")
        if match.lastgroup != "space":
            yield Token(match[0], match.start(), match.end())
        at = match.end()


def parse(text: str) -> Proto:
    """Reads a .proto file. Raises ValueError, with the line, for what is not understood."""
    reader = _Reader(text)
    proto = Proto()
    extended: list[tuple[str, Fields]] = []
    while reader.more():
        word = reader.next().text
        if word == "syntax":
            reader.expect("=")
            proto.syntax = reader.next().text[1:-1]
            reader.expect(";")
        elif word == "message":
            name = reader.next().text
            if name in proto.messages:
                reader.fail(f"message {name} is there twice")
            reader.expect("{")
            proto.messages[name] = Fields()
            proto.closing[name] = reader.body(proto.messages[name])
        elif word == "extend":
            name = reader.next().text
            reader.expect("{")
            extended.append((name.rpartition(".")[2], Fields()))
            reader.body(extended[-1][1])
        elif word in ("enum", "service"):
            proto.others.add(reader.next().text)
            reader.expect("{")
            reader.skip("}")
        elif word in ("import", "package", "option"):
            reader.skip(";")
        elif word != ";":
            reader.fail(f"cannot read {word!r}")
    for name, more in extended:
        if name in proto.messages:
            proto.messages[name].ranges.extend((n, n) for n in more.names.values())
    return proto


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(tokens(text))
        self._at = 0

    def more(self) -> bool:
        return self._at < len(self._tokens)

    def next(self) -> Token:
        if not self.more():
            raise ValueError("the file ends within a message")
        self._at += 1
        return self._tokens[self._at - 1]

    def fail(self, message: str) -> NoReturn:
        line = self._text.count("\n", 0, self._tokens[self._at - 1].start) + 1
        raise ValueError(f"line {line}: {message}")

    def expect(self, text: str) -> None:
        if self.next().text != text:
            self.fail(f"expected {text!r}, got {self._tokens[self._at - 1].text!r}")

    def skip(self, last: str) -> None:
        """Moves past the next `last` that is not within braces opened on the way."""
        depth = 0
        while True:
            text = self.next().text
            if depth == 0 and text == last:
                return
            depth += (text == "{") - (text == "}")
            if depth < 0:
                self.fail(f"expected {last!r}, got '}}'")

    def body(self, fields: Fields) -> int:
        """Reads a message, an extend or a oneof up to its last brace, whose offset it returns."""
        while True:
            token = self.next()
            word = token.text
            if word == "}":
                return token.start
            if word == ";":
                continue
            if word in ("message", "enum", "extend"):
                self.next()
                self.expect("{")
                self.skip("}")
            elif word == "oneof":
                self.next()
                self.expect("{")
                self.body(fields)
            elif word in ("extensions", "reserved"):
                self._ranges(fields)
            elif word == "option":
                self.skip(";")
            else:
                self._field(fields)

    def _ranges(self, fields: Fields) -> None:
        while True:
            token = self.next().text
            if token == ";":
                return
            if token == "[":  # options of extensions
                self.skip("]")
            elif token[0].isdigit():
                first = last = self._number(token)
                if self._tokens[self._at].text == "to":
                    self.next()
                    end = self.next().text
                    last = _LARGEST if end == "max" else self._number(end)
                fields.ranges.append((first, last))
            elif token != "," and token[0] not in "\"'":
                self.fail(f"cannot read {token!r} in a range of numbers")

    def _field(self, fields: Fields) -> None:
        name = ""
        while True:
            token = self.next().text
            if token == "=":
                break
            if token in "{};":
                self.fail(f"expected a field's number, got {token!r}")
            name = token
        fields.names[name] = self._number(self.next().text)
        while True:  # options; or a group's body
            token = self.next().text
            if token == ";":
                return
            if token == "{":
                self.skip("}")
                return
            if token == "[":
                self.skip("]")

    def _number(self, text: str) -> int:
        try:
            if re.fullmatch("0[0-7]+", text):
                return int(text, 8)  # octal, as in C
            return int(text, 0)
        except ValueError:
            self.fail(f"expected a number, got {text!r}")


def free_number(layer: Fields) -> int:
    """The first number from PREFERRED_NUMBER on that no field, extension or reserved range has.

    Only where there is none, one below it.
    """
    taken = sorted([*layer.ranges, *((n, n) for n in layer.names.values()), _RESERVED])
    for number, end in ((PREFERRED_NUMBER, _LARGEST), (1, PREFERRED_NUMBER - 1)):
        for first, last in taken:
            if first <= number <= last:
                number = last + 1
        if number <= end:
            return number
    raise ValueError("LayerParameter has no free field number")


def add(text: str, number: int | None = None) -> tuple[str, Edit]:
    """The text with the message, and with a field of LayerParameter for it.

    `number` is taken if it is free. Raises ValueError where the file already has something of these
    names, is of another version of the language, or is not understood.
    """
    proto = parse(text)
    if proto.syntax != "proto2":
        raise ValueError(f"expected syntax proto2, got {proto.syntax}")
    if "LayerParameter" not in proto.messages:
        raise ValueError("there is no message LayerParameter")
    layer = proto.messages["LayerParameter"]
    if MESSAGE in proto.messages or MESSAGE in proto.others or FIELD in layer.names:
        raise ValueError(f"there is a {MESSAGE} or {FIELD} already")
    if number is None or layer.taken(number):
        number = free_number(layer)
    closing = proto.closing["LayerParameter"]

    line_start = text.rfind("\n", 0, closing) + 1
    newline = "\r\n" if text[max(0, line_start - 2) : line_start] == "\r\n" else "\n"
    field_lines = [f"  {_BEGIN}", f"  optional {MESSAGE} {FIELD} = {number};", f"  {_END}"]
    if text[line_start:closing].strip(" \t"):  # the brace follows something on its line
        line_start = closing
        field_lines.insert(0, "")
    field_text = "".join(line + newline for line in field_lines)

    message_lines = [
        "",
        _BEGIN,
        "// Options of SigmoidCrossEntropyLoss.",
        f"message {MESSAGE} {{",
        *(line for comment, field in _DECLARATIONS for line in _declaration(comment, field)),
        "}",
        _END,
    ]
    rest = re.compile(r"[ \t;]*(?://[^\n]*)?(?:\n|\Z)").match(text, closing + 1)
    if rest is None:
        crlf = re.compile(r"[ \t;]*\r\n").match(text, closing + 1)
        after = crlf.end() if crlf else closing + 1
        own_line = crlf is not None
    else:
        after = rest.end()
        own_line = rest[0].endswith("\n")
    if not own_line:
        message_lines.insert(0, "")
    message_text = "".join(line + newline for line in message_lines)

    changed = text[:line_start] + field_text + text[line_start:after] + message_text + text[after:]
    edit = Edit(number, field_text, message_text)
    _check(changed, edit, proto)
    return changed, edit


def _declaration(comment: str, declared: str) -> list[str]:
    number = MESSAGE_FIELDS[declared.split()[-1]]
    return [*([f"  // {comment}"] if comment else []), f"  {declared} = {number};"]


def _check(text: str, edit: Edit, before: Proto) -> None:
    """The result has what was there, the new field and the new message, and nothing else."""
    after = parse(text)
    expected = dict(before.messages["LayerParameter"].names)
    expected[FIELD] = edit.number
    if (
        after.messages["LayerParameter"].names != expected
        or after.messages.pop(MESSAGE).names != MESSAGE_FIELDS
        or set(after.messages) != set(before.messages)
        or any(
            after.messages[name] != fields
            for name, fields in before.messages.items()
            if name != "LayerParameter"
        )
    ):
        raise ValueError("cannot tell where LayerParameter ends")


def remove(text: str, edit: Edit) -> str:
    """The text without what `add` put in; other parts may have changed.

    Raises ValueError where the lines are not there as they were written.
    """
    for part in (edit.field, edit.message):
        if text.count(part) != 1:
            raise ValueError("the lines between sigmoid_ce's marks were changed")
        text = text.replace(part, "")
    return text
