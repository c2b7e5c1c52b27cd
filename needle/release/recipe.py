"""A recipe: a student trained in numbered parts, each from the weights of the one before, and the mean of some of them.

`needle train recipe=needle_26m` runs the one in conf/recipe/needle_26m.yaml, and goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from needle.judging.study import Train, Trained
from needle.release.average import average


@dataclass
class RecipeConfig:
    """`parts` are settings of training runs in their order; each starts from the weights and the tokenizer of the one
    before, and has the settings of all parts before it where it says nothing else. Part n is trained in
    `output`/part_n; `mean` are the parts, counted from 1, whose weights are averaged at the end into `output`/mean."""

    output: str | None = None
    parts: list[list[str]] = field(default_factory=list)
    mean: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.parts and not self.output:
            raise ValueError("recipe.output is missing: the folder that the parts are trained in")
        for part in self.mean:
            if not 1 <= part <= len(self.parts):
                raise ValueError(f"recipe.mean names part {part}; there are parts 1 to {len(self.parts)}")

    def folder(self, part: int) -> Path:
        """Of part `part`, counted from 1."""
        return Path(self.output or "") / f"part_{part}"

    def words(self, part: int) -> list[str]:
        """The settings of part `part`, counted from 1."""
        words = [word for own in self.parts[:part] for word in own]
        if part > 1:
            before = self.folder(part - 1)
            words += [f"train.start={before}", f"tokenizer.path={before}"]
        return [*words, f"output={self.folder(part)}"]


def run_recipe(
    recipe: RecipeConfig, train: Train, words: Sequence[str] = (), say: Callable[[str], None] = print
) -> Trained:
    """Trains every part that isn't done, each with `words` on top, then averages; the last part's run.

    Raises:
        ValueError: a part can't be trained.
    """
    trained = None
    for part in range(1, len(recipe.parts) + 1):
        say(f"part {part} of {len(recipe.parts)}: {recipe.folder(part)}")
        trained = train([*recipe.words(part), *words], f"part {part}  ")
    if trained is None:
        raise ValueError("the recipe has no parts")
    if recipe.mean:
        target = Path(recipe.output or "") / "mean"
        average([recipe.folder(part) for part in recipe.mean], target)
        say(f"the mean of parts {', '.join(map(str, recipe.mean))}: {target}")
    return trained
