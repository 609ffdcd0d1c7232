"""`response_format`: the whole answer as one JSON object in `content`, for clients that know no `message.regions`."""

from __future__ import annotations

import json
from typing import Any

from unimed.serve.problems import Problem

#: What such a content holds; a schema may ask for a part of it.
OFFERED = ("text", "regions", "classes")


class Strict:
    """What a request's `response_format` asks for: `asked` is False for text.

    With `json_object` all of `OFFERED` is there. A `json_schema` chooses by its `properties`, and the object is checked
    against it: a schema that asks for anything else is refused, as no model here writes free JSON.

    Raises:
        Problem: 400, a format or schema nobody can follow.
    """

    def __init__(self, wanted: dict[str, Any] | None):
        kind = (wanted or {}).get("type", "text")
        self.schema: dict | None = None
        self.asked = kind != "text"
        if kind == "json_schema":
            inner = wanted.get("json_schema")
            self.schema = inner.get("schema") if isinstance(inner, dict) else None
            if not isinstance(self.schema, dict):
                raise _refused("json_schema needs a `schema`")
            self._check_schema()
        elif kind not in ("text", "json_object"):
            raise _refused(f"type {str(kind)[:40]!r}; known are text, json_object, json_schema")

    def _check_schema(self) -> None:
        try:
            from jsonschema import Draft202012Validator
            from jsonschema.exceptions import SchemaError
            from referencing import Registry
        except ImportError as error:
            raise Problem(501, "json_schema needs jsonschema: pip install 'unimed[serve]'") from error
        if len(json.dumps(self.schema)) > 50_000:
            raise _refused("the schema is larger than 50000 characters")
        if '"pattern' in json.dumps(self.schema):  # a pattern can be written to take years
            raise _refused("schemas with `pattern` are not followed")
        try:
            Draft202012Validator.check_schema(self.schema)
        except SchemaError as error:
            raise _refused(f"the schema is not valid: {error.message[:200]}") from error
        # With an empty registry nothing that a schema refers to is fetched.
        self.validator = Draft202012Validator(self.schema, registry=Registry())
        unknown = set(self.schema.get("required", ())) - set(OFFERED)
        if unknown:
            raise _refused(f"the schema requires {', '.join(sorted(unknown))[:200]}; offered are {', '.join(OFFERED)}")

    def content(self, message: dict[str, Any]) -> str:
        """The object as text.

        Raises:
            Problem: 422, the answer does not fit the schema.
        """
        values = {"text": message["content"], "regions": message["regions"]}
        if "classes" in message:
            values["classes"] = message["classes"]
        if self.schema is not None:
            named = self.schema.get("properties", {})
            values = {key: value for key, value in values.items() if not named or key in named}
            regions = named.get("regions", {}) if isinstance(named.get("regions"), dict) else {}
            values |= _projected(values, regions)
            try:
                error = next(self.validator.iter_errors(values), None)
            except Exception as problem:  # noqa: BLE001 - a reference that leads nowhere, recursion without end
                raise _refused(f"the schema cannot be followed ({type(problem).__name__})") from problem
            if error is not None:
                place = "/".join(map(str, error.absolute_path))
                raise Problem(422, f"the answer does not fit the schema at {place or 'root'}: {error.message[:200]}",
                              param="response_format", code="schema_not_met")  # fmt: skip
        return json.dumps(values, ensure_ascii=False)


def _projected(values: dict, schema: dict) -> dict:
    """Regions with the properties that the schema of their items names."""
    items = schema.get("items")
    named = items.get("properties") if isinstance(items, dict) else None
    if not isinstance(named, dict) or "regions" not in values:
        return {}
    return {"regions": [{key: one[key] for key in named if key in one} for one in values["regions"]]}


def _refused(message: str) -> Problem:
    return Problem(400, f"response_format: {message}", param="response_format")
