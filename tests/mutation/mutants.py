"""Which small wrong changes a room's sources allow, and the seeded sample of them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from parso.tree import NodeOrLeaf

from tests.mutation.dropping import DropArgument, DropStep, Node

_OF_HELP = ("help", "description", "metavar")
_NOT_HERE = ("TYPE_CHECKING", "__name__")
_WITH_HEAD = ("if_stmt", "while_stmt", "for_stmt")
OWN: dict[str, type[Operator]] = {"DropArgument": DropArgument, "DropStep": DropStep}


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change.

    Args:
        path: the file, relative to the repository.
        lines: first and last line of the statement that it changes; of a compound one what it changes of its head.
        was, becomes: the changed lines, blanks at both ends cut off.
        code: the whole file with the change.
    """

    path: str
    lines: tuple[int, int]
    was: str
    becomes: str
    code: str

    @property
    def name(self) -> tuple[str, str, str]:
        """What stays the same while other lines of the file come and go."""
        return self.path, self.was, self.becomes


def sample(root: Path, paths: list[str], operators: list[str], *, n: int, seed: int) -> list[Mutant]:
    """Mutants of ``paths``, at most ``n`` and one a place, in the order of a hash.

    The hash is of the seed and of the mutant's own statement: an edit elsewhere does not draw another sample.
    """
    drawn: dict[tuple[str, tuple[int, int]], _Candidate] = {}
    for path in paths:
        for candidate in _candidates(root, path, operators, seed):
            place = (path, candidate.start)
            if place not in drawn or candidate.rank < drawn[place].rank:
                drawn[place] = candidate
    return [_mutant(root, candidate) for candidate in sorted(drawn.values(), key=lambda candidate: candidate.rank)[:n]]


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    rank: str
    path: str
    operator: str
    occurrence: int
    start: tuple[int, int]
    lines: tuple[int, int]


def _candidates(root: Path, path: str, operators: list[str], seed: int) -> Iterator[_Candidate]:
    source = (root / path).read_text(encoding="utf-8")
    nodes = list(ast_nodes(parso.parse(source)))
    written = source.splitlines()
    for name in operators:
        spans = [(node, *place) for node in nodes for place in _operator(name).mutation_positions(node)]
        for occurrence, (node, start, end) in enumerate(spans):
            if _says_nothing(node):
                continue
            first, last = lines = _statement(node)
            words = [str(seed), path, *written[first - 1 : last], name, str(start[0] - first), str(start[1])]
            same = sum(1 for _, other, _ in spans[:occurrence] if other == start)  # two changes of one place
            rank = hashlib.sha256("\0".join([*words, str(same)]).encode()).hexdigest()
            head = (start[0], end[0]) if node.type in _WITH_HEAD else lines  # not all that stands around the statement
            yield _Candidate(rank=rank, path=path, operator=name, occurrence=occurrence, start=start, lines=head)


def _mutant(root: Path, candidate: _Candidate) -> Mutant:
    source = (root / candidate.path).read_text(encoding="utf-8")
    code = mutate_code(source, _operator(candidate.operator), candidate.occurrence)
    assert code is not None, candidate
    was, becomes = _difference(source.splitlines(), code.splitlines())
    return Mutant(path=candidate.path, lines=candidate.lines, was=was, becomes=becomes, code=code)


@functools.cache
def _operator(name: str) -> Operator:
    return OWN[name]() if name in OWN else cosmic_ray.plugins.get_operator(f"core/{name}")()


def _says_nothing(node: Node) -> bool:
    """Whether it stands in a decorator, an annotation, an assertion for the type checker, a help text or below
    ``if __name__``, or is a lone ``*`` of a signature: changed, these change no result, or nothing can be imported.
    """
    if node.parent is not None and node.parent.type in ("param", "parameters") and node.type == "operator":
        return True
    while node.parent is not None:
        parent = node.parent
        if node.type in ("decorator", "assert_stmt"):
            return True
        if parent.type in ("tfpdef", "param") and node is not parent.children[0] and ":" in _before(node):
            return True
        if parent.type == "annassign" and node is parent.children[1]:
            return True
        if parent.type == "funcdef" and "->" in _before(node) and ":" not in _before(node):
            return True
        if node.type == "arglist" and any(f"{word}=" in node.get_code() for word in _OF_HELP):
            return True
        if node.type == "if_stmt" and any(name in node.children[1].get_code() for name in _NOT_HERE):
            return True
        node = parent
    return False


def _before(node: Node) -> list[str]:
    """The leaves among the node's elder siblings."""
    siblings = node.parent.children
    return [getattr(sibling, "value", "") for sibling in siblings[: siblings.index(node)]]


def _statement(node: NodeOrLeaf) -> tuple[int, int]:
    """First and last line of the smallest statement around; of a compound one only its head."""
    compound = ("if_stmt", "for_stmt", "while_stmt", "with_stmt", "try_stmt", "funcdef", "classdef", "file_input")
    while node.parent is not None and node.type != "simple_stmt" and node.parent.type not in compound:
        node = node.parent
    return node.start_pos[0], max(node.start_pos[0], node.get_last_leaf().start_pos[0])


def _difference(before: list[str], after: list[str]) -> tuple[str, str]:
    head = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    tail = next((i for i, (a, b) in enumerate(zip(reversed(before), reversed(after), strict=False)) if a != b), 0)
    tail = min(tail, len(before) - head - 1, len(after) - head - 1)
    cut = [" ".join(" ".join(lines[head : len(lines) - tail]).split()) for lines in (before, after)]
    return cut[0], cut[1]
