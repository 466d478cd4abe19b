"""The cache: logical against physical length, growth in place, later turns."""

from __future__ import annotations

import pytest
import torch
from tiny_models import batch, generate, prompt, text_model
from transformers import DynamicCache

from sf import TopP, sparsify
from sf.attention.cache import PrunedLayer, prune_in_place
from sf.errors import ConfigError


def layer(kept=5, appended=0, rows=2, prompt_width=9, valid=None):
    cache = PrunedLayer()
    cache.active = True
    key = torch.arange(rows * kept, dtype=torch.float32).view(rows, 1, kept, 1)
    cache.update(torch.zeros(rows, 1, prompt_width, 1), torch.zeros(rows, 1, prompt_width, 1))
    cache.commit(key, -key, prompt_width, appended, valid)
    return cache


def test_lengths_are_logical_and_tensors_physical():
    cache = layer(kept=5, prompt_width=9)
    assert cache.get_seq_length() == 9
    cache.update(torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1))
    assert cache.get_seq_length() == 10
    assert cache.get_mask_sizes(1) == (11, 0)
    assert cache.keys.shape == cache.values.shape == (2, 1, 6, 1)
    assert cache.nbytes == 2 * 2 * 6 * 4
    assert cache.keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 1]


def test_decoding_writes_in_place_and_copies_the_cache_a_few_times_only():
    cache = layer()
    one = torch.ones(2, 1, 1, 1)
    addresses = []
    for step in range(600):
        cache.update(one * step, one * step)
        addresses.append(cache.keys.data_ptr())
    assert len(set(addresses)) <= 5  # 64, 128, 256, 512, 1024 entries after the prompt
    assert cache.keys[1, 0, 5:, 0].tolist() == list(range(600))
    assert cache.keys[1, 0, :5, 0].tolist() == [5, 6, 7, 8, 9]


def test_what_follows_the_prompt_and_its_last_token_can_be_cropped():
    cache = layer()
    cache.update(torch.ones(2, 1, 3, 1), torch.ones(2, 1, 3, 1))
    cache.crop(-2)
    assert cache.get_seq_length() == 10
    cache.update(torch.full((2, 1, 1, 1), 7.0), torch.full((2, 1, 1, 1), 7.0))
    assert cache.keys[0, 0, 5:, 0].tolist() == [1, 7]
    for count in (-4, 1):
        with pytest.raises(ConfigError, match="its last 3 entries"):
            cache.crop(count)
    cache.crop(-3)
    assert cache.get_seq_length() == cache.prompt_width == 8
    assert cache.keys[:, 0, :, 0].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    cache.crop(0)
    with pytest.raises(ConfigError, match="its last 0 entries"):
        cache.crop(-1)  # of the dropped tokens before it nothing is known


@pytest.mark.parametrize("ends", [[True, False], [False, False]])
def test_a_last_column_of_padding_has_no_entry(ends):
    cache = PrunedLayer()
    cache.active = True
    key = torch.arange(8.0).view(2, 1, 4, 1)
    cache.update(key, key)
    cache.commit(key, key, 9, 0, None, torch.tensor(ends))
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-1)
    assert cache.get_seq_length() == 8
    assert cache.prompt_valid.sum(-1).tolist() == [4 - end for end in reversed(ends)]
    assert cache.prompt_valid[:, :3].all()
    assert cache.keys[:, 0, :, 0].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]


@pytest.mark.parametrize("padded", ["left", "right"])
def test_the_last_prompt_token_read_again_changes_nothing(padded):
    """Rows of different lengths: an entry fewer, or one that nothing may see."""
    model = text_model()
    inputs = batch([prompt("text", 20, 3), prompt("text", 13, 4)])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if padded == "right":
        mask = mask.flip(-1)
    width = ids.shape[1]
    more = torch.full((2, 2), 5)
    ids, mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), sparsify(model, TopP(p=[0.5, 0.9])):
        logits = []
        for again in (0, 1):
            cache = DynamicCache()
            first = slice(0, width)
            model(ids[:, first], mask[:, first], place[:, first], past_key_values=cache)
            assert cache.layers[0].prompt_valid is not None
            cache.crop(-again)
            rest = slice(width - again, width + 2)
            read = model(ids[:, rest], mask, place[:, rest], past_key_values=cache)
            logits.append(read.logits[:, -2:])
    assert (logits[0] - logits[1]).abs().max() <= 1e-5


def test_rows_are_moved_repeated_and_selected():
    valid = torch.tensor([[False, True], [True, True]])
    cache = layer(kept=2, valid=valid)
    cache.update(torch.tensor([5.0, 6.0]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    cache.reorder_cache(torch.tensor([1, 1]))
    assert cache.keys[:, 0, :, 0].tolist() == [[2, 3, 6]] * 2
    assert cache.prompt_valid.all()
    cache.batch_repeat_interleave(2)
    assert cache.keys.shape[0] == 4
    cache.batch_select_indices(torch.tensor([0, 3, 3]))
    assert cache.keys.shape[0] == cache.prompt_valid.shape[0] == 3
    cache.update(torch.ones(3, 1, 1, 1), torch.ones(3, 1, 1, 1))
    assert cache.keys[2, 0, :, 0].tolist() == [2, 3, 6, 1]
    cache.reset()
    assert cache.get_seq_length() == 0


def test_a_cache_with_other_layers_is_refused():
    cache = DynamicCache()
    cache.layers = [object()]
    with pytest.raises(ConfigError, match="full-attention layers"):
        prune_in_place(cache, 2)


def test_memory_is_what_was_kept(model, inputs):
    cache = DynamicCache()
    with sparsify(model, TopP(p=0.5)) as trace:
        model(**inputs, past_key_values=cache)
    widest = trace.kv_lengths.max(-1).values
    assert widest.max() < inputs["input_ids"].shape[1]
    for held, width in zip(cache.layers, widest.tolist(), strict=True):
        assert held.keys.shape[-2] == width
        assert held.keys.untyped_storage().nbytes() == held.keys.numel() * 4


def test_a_pruned_cache_is_sealed_outside_the_context(model, rows):
    cache = DynamicCache()
    with sparsify(model, TopP(p=0.5)):
        model(**rows[0], past_key_values=cache)
    more = {"input_ids": torch.tensor([[5]]), "past_key_values": cache}
    with pytest.raises(ConfigError, match="inside sparsify"):
        model(**more)
    with sparsify(model, TopP(p=0.5)):
        assert model(**more).logits.isfinite().all()


# Later turns


def second_turn(inputs, first, words):
    """Inputs of the next `generate`: the whole conversation, then `words` (rows, count)."""
    answered = torch.cat([first.sequences, words], dim=1)
    extra = answered.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, extra), value=1)
    return {"input_ids": answered, "attention_mask": mask}


def test_a_second_turn_continues_the_pruned_cache(model, rows, inputs):
    """All at once equals token by token, and a batch equals each row alone."""
    words = torch.randint(3, 89, (3, 7), generator=torch.Generator().manual_seed(0))
    p = [0.5, 0.8, 0.95]

    def talk(given, share, words):
        cache = DynamicCache()
        with sparsify(model, TopP(p=share)) as trace:
            first = generate(model, given, past_key_values=cache)
            after = trace.kv_lengths
            turn = second_turn(given, first, words)
            second = generate(model, turn, past_key_values=cache)
        assert torch.equal(trace.kv_lengths, after + 1 + 7 + 5)
        return first, second

    first, second = talk(inputs, p, words)
    for i, row in enumerate(rows):
        alone, again = talk(row, p[i], words[i : i + 1])
        assert torch.equal(first.sequences[i, -6:], alone.sequences[0, -6:])
        gap = torch.stack(second.logits)[:, i] - torch.stack(again.logits)[:, 0]
        assert gap.abs().max() <= 1e-5
    cache = DynamicCache()
    with torch.no_grad(), sparsify(model, TopP(p=p)):
        first = generate(model, inputs, past_key_values=cache)
        turn = second_turn(inputs, first, words)
        width = cache.get_seq_length()
        while width < turn["input_ids"].shape[1]:
            mask = turn["attention_mask"][:, : width + 1]
            positions = mask.sum(-1, keepdim=True)[None] - 1 + model.model.rope_deltas
            step = model(
                input_ids=turn["input_ids"][:, width : width + 1],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
            )
            width += 1
    assert (step.logits[:, -1] - second.logits[0]).abs().max() <= 1e-5


def test_padding_between_turns_is_not_seen():
    model = text_model()
    rows = [prompt("text", 20, 3), prompt("text", 15, 4)]
    both = {k: v for k, v in batch(rows).items() if k != "mm_token_type_ids"}
    words = torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]])
    mask = torch.cat([both["attention_mask"], torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])], 1)

    def last(given, said, given_mask):
        cache = DynamicCache()
        positions = given["attention_mask"].cumsum(-1) - 1
        with torch.no_grad(), sparsify(model, TopP(p=0.6)):
            model(**given, past_key_values=cache, position_ids=positions.clamp(min=0))
            later = (given_mask.cumsum(-1) - 1)[:, -said.shape[1] :]
            return model(
                input_ids=said, attention_mask=given_mask, past_key_values=cache, position_ids=later
            ).logits[:, -1]

    together = last(both, words, mask)
    short = {k: rows[0][k] for k in ("input_ids", "attention_mask")}
    alone = last(short, words[:1, 2:], torch.ones(1, 22).long())
    assert (together[:1] - alone).abs().max() <= 1e-5


def test_whole_kv_prunes_nothing_and_is_sparse_all_the_same(model, inputs, rows):
    cache = DynamicCache()
    with sparsify(model, TopP(p=0.5, whole_kv=True)) as trace:
        whole = generate(model, inputs, past_key_values=cache)
    with sparsify(model, TopP(p=0.5)):
        pruned = generate(model, inputs)
    dense = generate(model, inputs)
    assert trace.token_ratio.max() < 1
    assert trace.kv_lengths[0].tolist() == [32, 45, 25]
    assert all(held.keys.shape[-2] == cache.get_seq_length() for held in cache.layers)
    assert (whole.logits[0] - pruned.logits[0]).abs().max() <= 1e-5  # one prefill
    assert (whole.logits[1] - pruned.logits[1]).abs().max() > 1e-3
    assert (whole.logits[0] - dense.logits[0]).abs().max() > 1e-3
    with sparsify(model, TopP(p=0.5, whole_kv=True)):
        alone = generate(model, rows[0])
    assert (torch.stack(whole.logits)[:, 0] - torch.stack(alone.logits)[:, 0]).abs().max() <= 1e-5
    generate(model, second_turn(inputs, whole, torch.tensor([[5]] * 3)), past_key_values=cache)


def test_whole_kv_refuses_a_completion_in_the_same_forward(model, rows):
    with (
        sparsify(model, TopP(p=0.5, whole_kv=True), prompt_width=20),
        pytest.raises(ConfigError, match="whole_kv"),
    ):
        model(**rows[0])
