"""Ways to write calls as target tokens: `json`, the compact text, `decisions`, what the text can't do without, and
`spans`, the same with places of the request for values (`needle.text.pointing`).

json        [{"name":"set_alarm","arguments":{"time":"7 am"}}]
decisions   <tool_0> <arg_0> 7 am          (the program renders the JSON)

In `decisions` a label points at a tool of the record or at a value of the tool named last (`needle.text.leaves` has the
table of forms). A string is written raw; a number as the request has it, other scalars as JSON, each item of a list
behind `<item>`, null as `<null>`. One space before a value isn't part of it. What can't be written so, or would read
back as something else, is spelled as JSON behind `<arg>`: a value, or all arguments of a call.

Students since version 2 of the codec write numbers, dates and times as the request says them ("two hundred").
"""

from __future__ import annotations

from needle.text.decisions import DecisionsCodec
from needle.text.jsoncodec import JsonCodec
from needle.text.pointing import SpansCodec
from needle.text.prompt import Codec
from needle.text.tokenizer import TextTokenizer

CODECS = ("decisions", "json", "spans")
VERSIONS = {"decisions": "decisions-2", "decisions-1": "decisions"}  # settings, and what checkpoints store


def current_codec(setting: str, tokenizer: TextTokenizer | None = None) -> str:
    """The name that a checkpoint stores for the setting `codec`: a new student learns the newest version, and one that
    reads word pieces points at places."""
    if tokenizer is not None and tokenizer.pieces is not None:
        if setting not in ("decisions", "spans"):
            raise ValueError(
                f"codec={setting} is for students that read and write one vocabulary; a span student has codec=spans"
            )
        return "spans"
    return VERSIONS.get(setting, setting)


def build_codec(name: str, tokenizer: TextTokenizer) -> Codec:
    """The codec of a name, as a checkpoint stores it: `decisions-2` for students since 0.2, `decisions` before."""
    if name in ("decisions", "decisions-2"):
        return DecisionsCodec(tokenizer, spoken=name == "decisions-2")
    if name == "json":
        return JsonCodec(tokenizer)
    if name == "spans":
        return SpansCodec(tokenizer)
    raise ValueError(f"codec '{name}' is unknown; expected one of {', '.join(CODECS)}")
