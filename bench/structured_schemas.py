"""Thirty JSON Schemas, of the kinds that requests bring."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
SHORT: Schema = {"type": "string", "minLength": 1, "maxLength": 20}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}


def closed(**properties: Schema) -> Schema:
    """An object of exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def one_of(*names: str) -> Schema:
    return {"enum": list(names)}


def matching(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def formatted(name: str) -> Schema:
    return {"type": "string", "format": name}


POINT = closed(x=NUMBER, y=NUMBER)
TREE: Schema = {
    "$ref": "#/$defs/node",
    "$defs": {"node": closed(value=INTEGER, children=array({"$ref": "#/$defs/node"}, maxItems=2))},
}
LIST: Schema = {
    "$ref": "#/$defs/cell",
    "$defs": {"cell": closed(head=SHORT, tail={"anyOf": [{"$ref": "#/$defs/cell"}, NULL]})},
}

SCHEMAS: dict[str, Schema] = {
    "a person": closed(name=SHORT, age={"type": "integer", "minimum": 0, "maximum": 130}),
    "a colour": closed(name=one_of("red", "green", "blue"), bright=FLAG),
    "a moment": closed(at=formatted("date-time")),
    "a day": closed(date=formatted("date"), weekday=one_of("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")),
    "a product code": closed(code=matching("^[A-Z]{3}-[0-9]{4}$")),
    "a polygon": closed(points=array(POINT, minItems=3, maxItems=4)),
    "a circle": closed(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0}),
    "a pet": {"anyOf": [closed(cat=SHORT), closed(dog=SHORT, loud=FLAG)]},
    "some numbers": array({"type": ["integer", "null"]}, minItems=2, maxItems=5),
    "a pair": {"type": "array", "prefixItems": [SHORT, INTEGER], "items": False, "minItems": 2},
    "a linked list": LIST,
    "a tree": TREE,
    "a word count": {
        "type": "object",
        "additionalProperties": INTEGER,
        "minProperties": 1,
        "maxProperties": 3,
    },
    "a contact": closed(email=formatted("email"), phone=matching(r"^\+[0-9]{6,12}$")),
    "a nested box": closed(a=closed(b=closed(c=closed(d=NULL)))),
    "a review": closed(stars={"type": "integer", "minimum": 1, "maximum": 5}, text=SHORT),
    "a sentiment": closed(label=one_of("positive", "negative", "neutral"), score=NUMBER),
    "a search": closed(
        query=SHORT, limit={"type": "integer", "minimum": 1, "maximum": 100}, sort=one_of("asc", "desc")
    ),
    "a host": closed(address=formatted("ipv4"), port={"type": "integer", "minimum": 1, "maximum": 65535}),
    "an identifier": closed(id=formatted("uuid")),
    "an order": closed(items=array(closed(sku=SHORT, count=INTEGER), minItems=1, maxItems=3), paid=FLAG),
    "a measurement": closed(value=NUMBER, unit=one_of("m", "s", "kg")),
    "a recipe": closed(title=SHORT, steps=array(SHORT, minItems=1, maxItems=3)),
    "a matrix": array(array(INTEGER, minItems=2, maxItems=2), minItems=2, maxItems=2),
    "an event": {**closed(name=SHORT, place=SHORT, seats=INTEGER), "required": ["name"]},
    "a function call": closed(function=one_of("add", "multiply"), arguments=closed(left=NUMBER, right=NUMBER)),
    "a version": matching(r"^[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}$"),
    "an answer": {"enum": ["yes", "no", None, 42]},
    "an open record": {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]},
    "anything": {},
}
