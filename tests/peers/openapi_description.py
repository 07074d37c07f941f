"""An API's own description, openapi.json, to which its tests hold what it answers."""

import json

import jsonschema

METHODS = {"get", "put", "post", "delete"}


def component(name):
    return {"$ref": f"#/components/schemas/{name}"}


class Description:
    """A description, read from its file; `operations` are its pairs of path and method."""

    def __init__(self, file):
        self.json = json.loads(file.read_text())
        self.operations = {(path, method) for path, item in self.json["paths"].items() for method in item if method in METHODS}

    def resolve(self, node):
        """What a reference into the file leads to."""
        while "$ref" in node:
            target = self.json
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step.replace("~1", "/").replace("~0", "~")]
            node = target
        return node

    def validator(self, schema):
        """References in the schema lead into the file; dates are looked at."""
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        return jsonschema.Draft202012Validator({**schema, "components": self.json["components"]}, format_checker=checker)

    def check(self, schema, value, what):
        errors = self.validator(schema).iter_errors(value)
        found = sorted(errors, key=lambda error: list(map(str, error.path)))
        assert not found, f"{what}: " + "\n".join(f"{error.json_path}: {error.message[:300]}" for error in found)

    def parameters(self, path, method):
        """All that an operation has."""
        item = self.json["paths"][path]
        return [self.resolve(one) for one in item.get("parameters", []) + item[method].get("parameters", [])]

    def described(self, reply, path, method, what):
        """What is said of an answer with this status, whose fields are there."""
        responses = self.json["paths"][path][method]["responses"]
        assert str(reply.status_code) in responses, f"{what}: not described"
        described = self.resolve(responses[str(reply.status_code)])
        for name in described.get("headers", {}):
            assert name in reply.headers, f"{what}: {name}"
        return described
