"""YAML as plain data: protocols, studies, cluster profiles and claims are read only here.

People exchange these files, so nothing in them is executed: no tags (``!!python/…``), no templates (``{{$ENV:…}}``), no repeated keys,
and bounds on size, depth and the expansion of aliases.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from harness.system.errors import UsageError
from harness.system.files import bounded_text

_MOST_BYTES = 200_000
MOST_NODES = 20_000
"""Most values in a file, with aliases expanded; a long text counts once more for every 64 characters."""
MOST_LEVELS = 20
LARGEST_INTEGER = 2**63
TIMESTAMP = "tag:yaml.org,2002:timestamp"


def read_yaml(path: Path, *, what: str, values_as_text: bool = False) -> Any:
    """The content of a file: mappings, lists, text, numbers, booleans and None; a date is text.

    Args:
        what: the kind of file, for messages ("study", "protocol").
        values_as_text: every value stays text, even one such as ``4:00:00``, which YAML reads as 14400.

    Raises:
        UsageError: it cannot be read, is not UTF-8 or YAML, or is more than plain data.
    """
    where = f"{what} {path}"
    text = bounded_text(path, where=where, most=_MOST_BYTES)
    try:
        return (_TextLoader if values_as_text else _PlainLoader)(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise UsageError(f"{where}: {line}{' '.join(problem.split())}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from error


class _Checks(yaml.composer.Composer, yaml.constructor.BaseConstructor, yaml.resolver.BaseResolver):
    """Checks every node as it is composed, before anything is built from it."""

    levels = 0

    def __init__(self, text: str) -> None:
        """libyaml's parser is many times faster than PyYAML's own, which is used where libyaml is missing."""
        parser = yaml.CBaseLoader(text) if yaml.__with_libyaml__ else yaml.BaseLoader(text)
        self.check_event, self.peek_event, self.get_event = parser.check_event, parser.peek_event, parser.get_event
        yaml.composer.Composer.__init__(self)
        yaml.constructor.BaseConstructor.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)

    def get_single_node(self) -> Any:
        self.sizes: dict[int, int] = {}
        return super().get_single_node()

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _refused(event, f"the tag {event.tag!r}; only plain values are read, so leave it out")
        if self.levels > MOST_LEVELS:
            raise _refused(event, f"more than {MOST_LEVELS} levels of nesting")
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        if isinstance(event, yaml.AliasEvent) and id(node) not in self.sizes:
            raise _refused(event, f"*{event.anchor} is part of itself")
        size = self.sizes.setdefault(id(node), self._size(node))
        if size > MOST_NODES:
            raise _refused(event, f"more than {MOST_NODES} values, aliases expanded")
        return node

    def _size(self, node: Any) -> int:
        if isinstance(node, yaml.ScalarNode):
            if "{{" in node.value:
                raise _refused(node, "a template ({{…}}); write the value itself")
            return 1 + len(node.value) // 64
        if isinstance(node, yaml.SequenceNode):
            return 1 + sum(self.sizes[id(item)] for item in node.value)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a key that is not text, as in a template ({{…}}); write the value itself")
            if (key.tag, key.value) in seen:
                raise _refused(key, f"the key {key.value!r} occurs twice; keep one of them")
            seen.add((key.tag, key.value))
        return 1 + sum(self.sizes[id(item)] for pair in node.value for item in pair)


def _refused(at: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(problem=problem, problem_mark=at.start_mark)


class _PlainLoader(_Checks, yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: Any) -> int:
        if ":" in node.value or re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            raise _refused(
                node, f"{node.value}, which YAML reads as another number; write it out, or as text in quotes"
            )
        if len(node.value) > 100 or abs(value := super().construct_yaml_int(node)) >= LARGEST_INTEGER:
            raise _refused(node, "a whole number beyond 64 bits")
        return value

    def construct_yaml_float(self, node: Any) -> float:
        if ":" in node.value:
            raise _refused(node, f"{node.value}, which YAML reads in base 60; write it out, or as text in quotes")
        return super().construct_yaml_float(node)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)  # type: ignore[type-var]
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_yaml_float)  # type: ignore[type-var]


class _TextLoader(_Checks):
    pass
