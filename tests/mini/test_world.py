"""The mini world: questions match what is shown, and everything depends only on the seed."""

from __future__ import annotations

import numpy as np
import pytest

from sf.data.video import load_video
from sf.mini.grid_labels import WORDS, cell_facts, cell_words, sample_crowded_scene
from sf.mini.scenes import (
    CELL,
    COLOURS,
    DIGITS,
    LETTERS,
    SHAPES,
    Clip,
    Item,
    Scene,
    ask,
    askable,
    pixels,
    render,
    sample_clip,
    sample_scene,
    write_video,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


SCENE = Scene(
    2,
    3,
    (Item("circle", "red", 0, 0), Item("square", "blue", 1, 2), Item("7", "white", 0, 1)),
    clutter=5,
)


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("colour", {"What color is the circle?": "red", "What color is the square?": "blue"}),
        ("shape", {"What shape is red?": "circle", "What shape is blue?": "square"}),
        ("count", {"How many colored shapes are in the image?": "2"}),
        ("digit", {"What number is written in the image?": "7"}),
    ],
)
def test_answers_are_what_the_scene_holds(kind, answers, rng):
    answer_of = {}
    for _ in range(30):
        question = ask(SCENE, kind, rng)
        answer_of[question.text] = question.answer
        assert question.answer not in question.distractors
    assert answer_of == answers


def test_presence_is_yes_for_shapes_that_are_there_only(rng):
    for _ in range(60):
        question = ask(SCENE, "presence", rng)
        named = question.text.split()[3]
        assert (question.answer == "yes") == (named in ("circle", "square")), question


def test_recolouring_is_told_apart_from_before_and_after(rng):
    clip = sample_clip(rng, event="recolour")
    shape = clip.subject.shape
    was = next(item.colour for item in clip.first.shapes if item.shape == shape)
    assert ask(clip, "before", rng).answer == was
    assert ask(clip, "after", rng).answer == clip.subject.colour != was


def test_only_askable_kinds_are_asked(rng):
    assert "letter" not in askable(SCENE)
    with pytest.raises(ValueError, match="kind = 'letter'"):
        ask(SCENE, "letter", rng)


def test_a_full_house_cannot_be_denied():
    items = tuple(Item(s, c, i, i) for i, (s, c) in enumerate(zip(SHAPES, COLOURS, strict=False)))
    assert "presence" not in askable(Scene(6, 6, items, 0))


def test_options_hold_the_answer_under_its_letter(rng):
    for kind in ("colour", "shape", "count", "presence"):
        question = ask(SCENE, kind, rng)
        options, letter = question.options(rng)
        assert options["ABCD".index(letter)] == question.answer
        assert len(set(options)) == len(options) <= 4


def test_scenes_hold_no_two_alike_shapes_or_colours(rng):
    for _ in range(50):
        shapes = sample_scene(rng, glyph="letter").shapes
        assert len({s.shape for s in shapes}) == len({s.colour for s in shapes}) == len(shapes)


def test_too_many_objects_are_refused(rng):
    with pytest.raises(ValueError, match="objects"):
        sample_scene(rng, objects=(1, len(SHAPES) + 1))


def test_the_same_seed_gives_the_same_pixels():
    first, second = (pixels(sample_scene(np.random.default_rng(3))) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, pixels(sample_scene(np.random.default_rng(4))))


def test_an_item_changes_its_own_cell_only():
    bare = Scene(2, 3, (), SCENE.clutter)
    changed = (pixels(SCENE) != pixels(bare)).any(-1)
    cells = changed.reshape(2, CELL, 3, CELL).any((1, 3))
    assert cells.tolist() == [[True, True, False], [False, False, True]]
    assert render(SCENE).size == (3 * CELL, 2 * CELL)


def test_every_form_looks_different():
    stamps = {
        pixels(Scene(1, 1, (Item(form, "white", 0, 0),), 0)).tobytes()
        for form in (*SHAPES, *DIGITS, *LETTERS)
    }
    assert len(stamps) == len(SHAPES) + len(DIGITS) + len(LETTERS)


def test_a_written_clip_comes_back(tmp_path, rng, vision):
    clip = sample_clip(rng, event="recolour")
    write_video(clip, tmp_path / "clip.mp4")
    frames, metadata = load_video(tmp_path / "clip.mp4", vision)
    shown = np.stack([pixels(scene) for scene in clip.frames])
    assert frames.shape == shown.shape
    assert np.abs(frames.astype(int) - shown).mean() < 3  # grey levels: chroma is subsampled
    assert metadata.sampled_fps == 1.0


def test_a_clip_needs_two_frames(rng):
    with pytest.raises(ValueError, match="frames = 1"):
        sample_clip(rng, frames=1)


def test_cell_words_say_what_the_items_are(rng):
    scene = sample_crowded_scene(rng, 3)
    targets = cell_words(cell_facts(scene)).reshape(3, 3, len(WORDS))
    truth = {(i.row, i.col): {i.shape, i.colour} for i in scene.items}
    for row in range(3):
        for col in range(3):
            words = {WORDS[k] for k in np.flatnonzero(targets[row, col])}
            assert words == truth.get((row, col), set())


def test_a_still_clip_does_not_change(rng):
    clip = sample_clip(rng)
    assert isinstance(clip, Clip)
    assert clip.first == clip.last
