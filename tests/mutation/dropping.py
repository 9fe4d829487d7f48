"""Two operators that cosmic-ray lacks: what is left out, of a call or of a function's steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cosmic_ray.operators.operator import Example, Operator

Span = tuple[tuple[int, int], tuple[int, int]]
Node = Any
"""Of parso's tree, whose types know no children."""


class DropArgument(Operator):
    """``f(a, b=c)`` becomes ``f(a)``: one keyword argument less."""

    def mutation_positions(self, node: Node) -> Iterator[Span]:
        yield from ((argument.start_pos, argument.end_pos) for argument in _named(node))

    def mutate(self, node: Node, index: int) -> Node:
        at = node.children.index(_named(node)[index])
        comma = at if at + 1 < len(node.children) else at - 1  # the one behind it, or before the last
        del node.children[comma : comma + 2]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("f(a, b=c)", "f(a)"), Example("f(b=c, d=e)", "f( d=e)"))


class DropStep(Operator):
    """A statement that only calls (``x.append(y)``), raises, or adds to something (``x += y``) becomes ``pass``."""

    def mutation_positions(self, node: Node) -> Iterator[Span]:
        if node.type == "simple_stmt" and _is_step(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Node, index: int) -> Node:
        step = node.children[0]
        leaf = step.get_first_leaf()
        kept = leaf.prefix
        for other in list(_leaves(step)):
            other.prefix = other.value = ""
        leaf.prefix, leaf.value = kept, "pass"
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("x.append(y)\n", "pass\n"), Example("x += y\n", "pass\n"), Example("raise X(y)\n", "pass\n"))


def _named(node: Node) -> list[Node]:
    """The keyword arguments of a call with several arguments."""
    if node.type != "arglist":
        return []
    return [child for child in node.children if child.type == "argument" and child.children[1] == "="]


def _is_step(statement: Node) -> bool:
    if statement.type == "atom_expr":
        return statement.children[-1].type == "trailer" and statement.children[-1].children[0] == "("
    if statement.type == "expr_stmt":
        return statement.children[1].type == "operator" and str(statement.children[1].value) != "="
    return statement.type == "raise_stmt"


def _leaves(node: Node) -> Iterator[Any]:
    if not hasattr(node, "children"):
        yield node
        return
    for child in node.children:
        yield from _leaves(child)
