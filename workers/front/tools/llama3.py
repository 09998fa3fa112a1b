"""`{"name": ..., "parameters": {...}}` as the whole answer, as Llama 3 writes it: several are parted by semicolons, and
`<|python_tag|>` may come first. An object that names no known function is text."""

from __future__ import annotations

from workers.front.tools.json_call import json_call
from workers.front.tools.sink import Sink
from workers.front.tools.source import Scan, Source

TAG = "<|python_tag|>"


def llama3_json(source: Source, sink: Sink) -> Scan[None]:
    yield from _calls(source, sink)
    while (yield from source.until(sink.text, TAG)):
        yield from _calls(source, sink)


def _calls(source: Source, sink: Sink) -> Scan[None]:
    while True:
        source.mark()
        yield from source.space()
        yield from source.literal(TAG)
        yield from source.space()
        if not (yield from json_call(source, sink, known_only=True)):
            sink.text(source.since_mark())
            return
        yield from source.space()
        yield from source.literal(";")
