"""Questions about given scenes, put as the benchmarks do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sf.evaluation.columns import column
from sf.mini.drafts import sample_subject
from sf.mini.formats import Formats
from sf.mini.world import Scene


def test_turns_are_true_of_the_subject(tmp_path: Path) -> None:
    formats = Formats([column("chartqa"), column("tempcompass")], tmp_path, seed=5)
    rng = np.random.default_rng(0)
    seen = set()
    for index in range(60):
        subject = sample_subject(rng, ("image", "video")[index % 2])
        scene = subject if isinstance(subject, Scene) else subject.last
        for prompt, reply in formats.turns(subject, rng, 3):
            seen.add(prompt.splitlines()[-1])
            if prompt.startswith("How many"):
                assert reply == str(len(scene.shapes))
            elif prompt.startswith("Is there a"):
                shape = prompt.split()[3]
                present = shape in {item.shape for item in scene.shapes}
                assert reply in (("yes", "B") if present else ("no", "A"))
    assert "Answer the question with a single word." in seen
    assert "Please answer yes or no:" in seen
    assert "Please directly give the best option:" in seen


def test_turns_depend_on_the_random_numbers_alone(tmp_path: Path) -> None:
    formats = Formats([column("chartqa")], tmp_path, seed=5)
    subject = sample_subject(np.random.default_rng(1), "image")
    first, again = (formats.turns(subject, np.random.default_rng(2), 4) for _ in range(2))
    assert first == again
    assert len({prompt for prompt, _ in first}) == len(first)
