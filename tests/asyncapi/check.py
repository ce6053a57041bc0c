"""Holds an AsyncAPI document to the specification, and its examples to the schemas beside them.

    python3 check.py FILE

Needs jsonschema_rs, which comes with schemathesis.
"""

import json
import sys
from pathlib import Path

import jsonschema_rs

# The schema that AsyncAPI publishes for this version, as in @asyncapi/specs 6.11.1 (Apache-2.0, see LICENSE and NOTICE).
SPECIFICATION = Path(__file__).with_name("asyncapi-3.1.0.json")


def main(file):
    document = json.loads(Path(file).read_text())
    errors = [
        f"{pointer(error)}: {error.message}"
        for error in validator(json.loads(SPECIFICATION.read_text())).iter_errors(document)
    ]
    examples = 0
    for channel in document["channels"].values():
        for name, message in channel["messages"].items():
            # References in a payload start at the document's root.
            payload = validator({**message["payload"], "components": document["components"]})
            for example in message["examples"]:
                examples += 1
                errors += [f"{name}{pointer(error)}: {error.message}" for error in payload.iter_errors(example["payload"])]
                if payload.is_valid({**example["payload"], "data": {}}):
                    errors.append(f"{name}: the schema does not mind an event without data")
    if examples == 0:
        errors.append("there is no example")
    print("\n".join(errors) or f"{examples} examples are as the document says", file=sys.stderr)
    return 1 if errors else 0


def validator(schema):
    return jsonschema_rs.Draft7Validator(schema, validate_formats=True)


def pointer(error):
    return "".join(f"/{step}" for step in error.instance_path)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
