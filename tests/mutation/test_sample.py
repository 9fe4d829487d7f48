"""The sample of small wrong changes: what is changed, what is not, and that an edit elsewhere draws no other."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="cosmic-ray is in the mutants extra: pip install -e .[mutants]")

from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator

from tests.mutation.dropping import DropArgument, DropStep
from tests.mutation.forks import copy_tree
from tests.mutation.mutants import sample

CONFIGURATION = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text(encoding="utf-8"))
SOURCE = '''"""A module."""
@dataclass(frozen=True)
class A:
    size: int | None = 3

def f(a: int | str, *, b: float = 0.5) -> int | None:
    assert a is not None
    parser.add_argument("--x", help="words", default=4)
    return a + g(a, b=b) if a < 2 else None

if __name__ == "__main__":
    print(f(1 + 1))
'''


@pytest.mark.parametrize(
    ("operator", "example"), [(operator, case) for operator in (DropArgument, DropStep) for case in operator.examples()]
)
def test_what_is_left_out(operator: type[Operator], example: object) -> None:
    assert mutate_code(example.pre_mutation_code, operator(), 0) == example.post_mutation_code  # type: ignore[attr-defined]


def drawn(root: Path, source: str, *, n: int = 1000) -> list[tuple[str, str]]:
    (root / "module.py").write_text(source)
    return [(edit.was, edit.becomes) for edit in sample(root, ["module.py"], CONFIGURATION["operators"], n=n, seed=1)]


def test_types_decorators_assertions_help_and_main_are_left_alone(tmp_path: Path) -> None:
    changed = {was for was, _ in drawn(tmp_path, SOURCE)}
    assert changed == {
        "size: int | None = 3",
        "def f(a: int | str, *, b: float = 0.5) -> int | None:",
        'parser.add_argument("--x", help="words", default=4)',  # as a step; its words stay
        "return a + g(a, b=b) if a < 2 else None",
    }
    assert all("help" in becomes for was, becomes in drawn(tmp_path, SOURCE) if "help" in was and becomes != "pass")


def test_an_edit_elsewhere_draws_the_same_sample(tmp_path: Path) -> None:
    before = drawn(tmp_path, SOURCE, n=4)
    assert drawn(tmp_path, SOURCE.replace("A module.", "A module.\n\nThat says more."), n=4) == before
    assert len(before) == 4


def test_every_mutant_differs_in_the_lines_it_names(tmp_path: Path) -> None:
    pairs = drawn(tmp_path, SOURCE)
    assert pairs
    assert all(was != becomes for was, becomes in pairs)


def test_a_changed_condition_is_run_by_the_tests_that_run_it_and_not_by_all_of_its_function(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "def f(a):\n    b = 1\n    if a:\n        return b\n    for c in a:\n        b = c\n"
    )
    operators = ["AddNot", "ZeroIterationForLoop"]
    assert sorted(edit.lines for edit in sample(tmp_path, ["module.py"], operators, n=9, seed=1)) == [(3, 3), (5, 5)]


def test_what_is_known_to_live_names_files_of_a_room() -> None:
    root = Path(__file__).parents[2]
    rooms = [pattern for room in CONFIGURATION["rooms"].values() for pattern in room["sources"]]
    files = {str(path.relative_to(root)) for pattern in rooms for path in root.glob(pattern)}
    for entry in CONFIGURATION["known"]:
        assert entry["path"] in files
        assert entry["why"]
        written = " ".join((root / entry["path"]).read_text(encoding="utf-8").split())
        assert " ".join(entry["was"].split()) in written, f"{entry['was']} is no more; take the entry out"


def test_a_copy_holds_the_links_that_packages_are_imported_through(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "methods").mkdir(parents=True)
    (root / "methods" / "lora.py").write_text("")
    (root / "linked").symlink_to("methods", target_is_directory=True)
    copy_tree(root, tmp_path / "tree", ["methods/lora.py", "linked", "gone.py"])
    assert (tmp_path / "tree" / "linked").readlink() == Path("methods")
    assert (tmp_path / "tree" / "linked" / "lora.py").is_file()
