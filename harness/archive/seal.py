"""The seal of a record: a hash of all that its file says, so that an edited number does not pass for a measured one.

It finds slips and careless edits. Whoever wants to forge a record can compute it as well.
"""

from __future__ import annotations

import json
from typing import Any

from harness.archive.files import digest

_SEAL = b'\n "seal": "'
"""As `sealed` writes it: a field of the record itself, by its indentation."""


def sealed(content: dict[str, Any]) -> bytes:
    """A record's content as its file, ending in a newline; halves of surrogate pairs become question marks."""
    data = _text({**content, "seal": ""})
    return data.replace(_SEAL + b'"', _SEAL + digest(data).encode() + b'"', 1)


def compact(data: bytes) -> bytes:
    """The same sealed content in few lines: mappings a field a line, unless all their values are plain; lists in one line.

    For records whose lists are long: a number a line, 44,000 lines of them, hide what a file says.
    """
    return (_compact(json.loads(data), indent="") + "\n").encode()


def _compact(value: Any, *, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()):
        fields = (f"{json.dumps(name, ensure_ascii=False)}: {_compact(value[name], indent=deeper)}" for name in value)
        return "{\n" + ",\n".join(deeper + field for field in fields) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(deeper + _compact(item, indent=deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def seal_holds(data: bytes) -> bool | None:
    """Whether a file says what was sealed; None where it has no seal, as files older than seals. Layout may differ."""
    if (place := data.find(_SEAL)) < 0 and b'"seal"' not in data:
        return None
    start = place + len(_SEAL)
    if digest(data[:start] + data[start + 16 :]).encode() == data[start : start + 16]:
        return True
    content = json.loads(data)
    seal = content.pop("seal", None)
    return None if seal is None else isinstance(seal, str) and digest(_text({**content, "seal": ""})) == seal


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(errors="replace")
