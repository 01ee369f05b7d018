"""JSON schemas of the YAML files, for editors that complete and check while a user writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowledge.conditions import VOCABULARY, Fact
from knowledge.load import ALL_KINDS
from knowledge.order import FAMILIES
from knowledge.reading import Kind
from knowledge.techniques.catalog import CATALOG

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
COMPARISONS = ("lt", "le", "gt", "ge")


def file_schema(name: str) -> Schema:
    """The schema of a file of one kind: `rules`, `claims`, `targets`, `models` or `presets`."""
    kind = ALL_KINDS[name]
    schema: Schema = kind.model.model_json_schema(by_alias=True)
    definitions: Schema = schema.pop("$defs", {})
    for part in (schema, *definitions.values()):
        _name_techniques(part)
    techniques = {technique: cls.model_json_schema() for technique, cls in CATALOG.items()}
    params = {technique: one.get("properties", {}) for technique, one in techniques.items()}
    if name == "rules":
        definitions["Condition"] = condition_schema()
        schema["properties"]["when"] = {"$ref": "#/$defs/Condition"}
        definitions["Setting"]["allOf"] = [_if_technique(t, param={"enum": list(p)}) for t, p in params.items()]
    if name == "claims":
        schema["allOf"] = [_if_technique(t, params=_closed(p)) for t, p in params.items()]
    if name == "presets":
        schema["properties"]["params"] = _closed({t: _closed(p) for t, p in params.items()})
    if name in ("claims", "presets"):
        definitions |= {
            part: one for technique in techniques.values() for part, one in technique.get("$defs", {}).items()
        }
    found = _listed(kind, schema, definitions) if kind.listed else {**schema, "$defs": definitions}
    return {"$schema": DRAFT, "title": f"advisor: {name}", **found}


def condition_schema() -> Schema:
    """What `when` may say: every fact with the tests and values that fit it."""
    facts = {name: _fact_schema(fact) for name, fact in VOCABULARY.items()}
    anything = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Condition"}}
    return {"type": "object", "additionalProperties": False, "properties": {**facts, "any": anything}}


def _fact_schema(fact: Fact) -> Schema:
    value: Schema = {"number": {"type": "number"}, "flag": {"type": "boolean"}}.get(fact.kind, {"type": "string"})
    if fact.values:
        value = {"enum": list(fact.values)}
    several = {"type": "array", "minItems": 1, "items": value}
    either = {"anyOf": [value, several]}
    one = either if fact.kind == "list" else value
    tests = {"eq": one, "ne": one, "in": either, "not": either}
    if fact.kind == "number":
        tests |= dict.fromkeys(COMPARISONS, value)
    compared = {"type": "object", "additionalProperties": False, "minProperties": 1, "properties": tests}
    unit = f" ({fact.unit})" if fact.unit else ""
    return {"description": f"{fact.meaning}{unit}", "anyOf": [value, several, compared]}


def _closed(properties: Mapping[str, Any]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}


def _if_technique(name: str, **properties: Schema) -> Schema:
    return {"if": {"properties": {"technique": {"const": name}}}, "then": {"properties": properties}}


def _name_techniques(part: Schema) -> None:
    """Techniques by their ids, where a field names one."""
    ids = list(CATALOG)
    fields = part.get("properties", {})
    for name, allowed in (("technique", ids), ("first", [*FAMILIES, *ids]), ("then", [*FAMILIES, *ids])):
        if name in fields and (fields[name].get("type") == "string" or "anyOf" in fields[name]):
            fields[name] = {"enum": sorted(allowed)}
    if "exclude" in fields:
        fields["exclude"]["items"] = {"enum": ids}


def _listed(kind: Kind[Any], entry: Schema, definitions: Schema) -> Schema:
    """A file of entries. What all of them share may stand beside the list, so each field is wanted here or there."""
    wanted = [field for field in entry.pop("required", []) if field != "id"]
    entry["required"] = ["id"]
    shared = {field: value for field, value in entry["properties"].items() if field != "id"}
    either = [
        {"anyOf": [{"required": [field]}, {"properties": {kind.name: {"items": {"required": [field]}}}}]}
        for field in wanted
    ]
    return {
        **_closed({kind.name: {"type": "array", "items": {"$ref": "#/$defs/Entry"}}, **shared}),
        "required": [kind.name],
        "allOf": either,
        "$defs": {**definitions, "Entry": entry},
    }
