"""A tiny checkpoint as LLaVA-NeXT's code writes it, and that code's forward, written out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from sf.models.tokenizer import train_tokenizer

CORPUS = [
    "What color is the ring? The video lasts for 2.00 seconds, and 4 frames are uniformly sampled.",
    "You are a helpful assistant. Please answer the following questions related to this video.",
] * 3
SIDE, PATCH, CELLS = 38, 7, 5  # pixels of a tile, as 384 of the real one no multiple of the patch
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def config_json(**changes: Any) -> dict[str, Any]:
    """The fields of LLaVA-Video-7B-Qwen2's config.json that matter."""
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "hidden_act": "silu",
        "hidden_size": 48,
        "image_aspect_ratio": "anyres_max_2",
        "image_grid_pinpoints": [[SIDE * w, SIDE * h] for w in (1, 2, 3) for h in (1, 2)],
        "intermediate_size": 64,
        "max_position_embeddings": 32768,
        "mm_hidden_size": 32,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "siglip-tiny",
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "add_faster_video": False,
        "add_time_instruction": True,
        "force_sample": True,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        **changes,
    }


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under LLaVA-NeXT's names."""
    make = torch.Generator().manual_seed(seed)
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    eye, eye_inner = TOWER["hidden_size"], TOWER["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "model.norm.weight": (width,),
        "model.image_newline": (width,),
        "model.mm_projector.0.weight": (width, eye),
        "model.mm_projector.0.bias": (width,),
        "model.mm_projector.2.weight": (width, width),
        "model.mm_projector.2.bias": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (rows, width)
    for at in range(config["num_hidden_layers"]):
        layer = f"model.layers.{at}."
        for name, out in (("q", width), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (out, width)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (out,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (width, width)
        shapes[f"{layer}mlp.gate_proj.weight"] = (inner, width)
        shapes[f"{layer}mlp.up_proj.weight"] = (inner, width)
        shapes[f"{layer}mlp.down_proj.weight"] = (width, inner)
        shapes[f"{layer}input_layernorm.weight"] = (width,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (width,)
    tower = "model.vision_tower.vision_tower.vision_model."
    shapes[f"{tower}embeddings.patch_embedding.weight"] = (eye, 3, PATCH, PATCH)
    shapes[f"{tower}embeddings.patch_embedding.bias"] = (eye,)
    shapes[f"{tower}embeddings.position_embedding.weight"] = (CELLS**2, eye)
    shapes[f"{tower}post_layernorm.weight"] = shapes[f"{tower}post_layernorm.bias"] = (eye,)
    for at in range(TOWER["num_hidden_layers"] - 1):  # type: ignore[operator]
        layer = f"{tower}encoder.layers.{at}."
        sizes = {f"self_attn.{name}": (eye, eye) for name in ("q_proj", "k_proj", "v_proj")}
        sizes |= {"self_attn.out_proj": (eye, eye)}
        sizes |= {"mlp.fc1": (eye_inner, eye), "mlp.fc2": (eye, eye_inner)}
        for name, size in sizes.items():
            shapes[f"{layer}{name}.weight"], shapes[f"{layer}{name}.bias"] = size, size[:1]
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}{name}.weight"] = shapes[f"{layer}{name}.bias"] = (eye,)
    return {
        name: torch.randn(shape, generator=make) * (0.2 if len(shape) > 1 else 0.5)
        + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, shape in shapes.items()
    }


def write(
    folder: Path, parts: int = 3, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Tensor]:
    """Write a checkpoint; returns its weights."""
    tokenizer = train_tokenizer(CORPUS)
    config = config_json(**{"vocab_size": len(tokenizer) + 12, **changes})
    weights = {name: tensor.to(dtype) for name, tensor in tensors(config).items()}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"do_sample": True, "eos_token_id": [tokenizer.eos_token_id], "top_p": 0.8}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "siglip-tiny").mkdir(exist_ok=True)
    whole = {"model_type": "siglip", "vision_config": TOWER}
    (folder / "siglip-tiny" / "config.json").write_text(json.dumps(whole))
    write_weights(folder, weights, parts)
    return weights


def write_weights(folder: Path, weights: dict[str, Tensor], parts: int) -> None:
    """Write weights to `parts` files with an index, or to one file."""
    names = sorted(weights)
    if parts == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    places = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        part_weights = {name: weights[name] for name in names[part::parts]}
        save_file(part_weights, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part_weights, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class Reference:
    """LLaVA-NeXT's forward: `llava_arch.py`, `siglip_encoder.py` and Qwen2, in float32."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.weights, self.config = {n: w.float() for n, w in weights.items()}, config

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A linear layer, with its bias if it has one."""
        return functional.linear(
            x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        )

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Projected patches [tiles, CELLS * CELLS, D] of pixels [tiles, 3, SIDE, SIDE]."""
        tower = "model.vision_tower.vision_tower.vision_model."
        embedding = f"{tower}embeddings.patch_embedding."
        x = functional.conv2d(
            pixels, self.weights[f"{embedding}weight"], self.weights[f"{embedding}bias"], PATCH
        )
        x = x.flatten(2).transpose(1, 2)
        x = x + self.weights[f"{tower}embeddings.position_embedding.weight"]
        for at in range(TOWER["num_hidden_layers"] - 1):  # type: ignore[operator]
            layer = f"{tower}encoder.layers.{at}."
            y = self.layer_norm(f"{layer}layer_norm1", x)
            q, k, v = (
                self.linear(f"{layer}self_attn.{name}_proj", y).unflatten(-1, (2, -1)).mT
                for name in "qkv"
            )  # [tiles, patches, width of a head, heads]
            scores = torch.einsum("nqdh,nkdh->nhqk", q, k) / math.sqrt(q.shape[2])
            mixed = torch.einsum("nhqk,nkdh->nqhd", scores.softmax(-1), v).flatten(2)
            x = x + self.linear(f"{layer}self_attn.out_proj", mixed)
            y = self.linear(f"{layer}mlp.fc1", self.layer_norm(f"{layer}layer_norm2", x))
            x = x + self.linear(f"{layer}mlp.fc2", functional.gelu(y, approximate="tanh"))
        x = functional.gelu(self.linear("model.mm_projector.0", x))
        return self.linear("model.mm_projector.2", x)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        """A layer norm of the tower."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, 1e-6)

    def video(self, pixels: Tensor) -> Tensor:
        """Tokens [L, D] of frames [F, 3, SIDE, SIDE]."""
        newline = self.weights["model.image_newline"]
        grid = self.encode_images(pixels).unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 2)
        mode = self.config["mm_spatial_pool_mode"]
        if mode == "bilinear":
            size = [math.ceil(CELLS / 2)] * 2
            grid = functional.interpolate(grid, size=size, mode="bilinear")
        else:
            pool = functional.avg_pool2d if mode == "average" else functional.max_pool2d
            grid = pool(grid, 2)
        frames = grid.permute(0, 2, 3, 1)  # [F, rows, columns, D]
        tokens: list[Tensor] = []
        for frame in frames:
            for row in frame:
                tokens.extend(row)
                if self.config["mm_newline_position"] == "grid":
                    tokens.append(newline)
            if self.config["mm_newline_position"] == "frame":
                tokens.append(newline)
        if self.config["mm_newline_position"] == "one_token":
            tokens.append(newline)
        return torch.stack(tokens)

    def image(self, pixels: Tensor, width: int, height: int) -> Tensor:
        """Tokens [L, D] of an image's tiles [tiles, 3, SIDE, SIDE], the whole image first."""
        newline = self.weights["model.image_newline"]
        features = self.encode_images(pixels)
        if len(features) == 1:
            return torch.cat((features[0], newline[None]))
        base, tiles = features[0], features[1:]
        wide, high = self.grid_shape(width, height)
        rows = tiles.view(high, wide, CELLS, CELLS, -1).permute(4, 0, 2, 1, 3)
        plane = rows.flatten(1, 2).flatten(2, 3)  # [D, rows, columns]
        if width / height > plane.shape[2] / plane.shape[1]:
            cut = (plane.shape[1] - int(height * (plane.shape[2] / width))) // 2
            plane = plane[:, cut : plane.shape[1] - cut]
        else:
            cut = (plane.shape[2] - int(width * (plane.shape[1] / height))) // 2
            plane = plane[:, :, cut : plane.shape[2] - cut]
        most = int(self.config["image_aspect_ratio"].removeprefix("anyres_max_"))
        times = math.sqrt(plane.shape[1] * plane.shape[2] / (most * CELLS**2))
        if times > 1.1:
            size = [int(plane.shape[1] // times), int(plane.shape[2] // times)]
            plane = functional.interpolate(plane[None], size, mode="bilinear")[0]
        ends = newline[:, None, None].expand(-1, plane.shape[1], 1)
        return torch.cat((base, torch.cat((plane, ends), -1).flatten(1, 2).T))

    def grid_shape(self, width: int, height: int) -> tuple[int, int]:
        """Tiles beside and above each other: LLaVA-NeXT's `select_best_resolution`."""
        best, most, least = (0, 0), 0, math.inf
        for wide, high in self.config["image_grid_pinpoints"]:
            scale = min(wide / width, high / height)
            used = min(int(width * scale) * int(height * scale), width * height)
            wasted = wide * high - used
            if used > most or (used == most and wasted < least):
                best, most, least = (wide, high), used, wasted
        return best[0] // SIDE, best[1] // SIDE

    def logits(self, segments: list[Tensor]) -> Tensor:
        """Qwen2's logits [L, vocabulary] of a sequence of ids [N] and visual tokens [N, D]."""
        table = self.weights["model.embed_tokens.weight"]
        x = torch.cat([part if part.is_floating_point() else table[part] for part in segments])
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        head = x.shape[1] // heads
        speeds = 1 / self.config["rope_theta"] ** (torch.arange(0, head, 2) / head)
        angles = torch.outer(torch.arange(len(x)).float(), speeds).repeat(1, 2)[:, None]

        def turned(part: Tensor) -> Tensor:
            left, right = part.chunk(2, -1)
            return part * angles.cos() + torch.cat((-right, left), -1) * angles.sin()

        def norm(name: str, part: Tensor) -> Tensor:
            scale = (part.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
            return part * scale * self.weights[f"{name}.weight"]

        for at in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{at}."
            y = norm(f"{layer}input_layernorm", x)
            q, k, v = (
                self.linear(f"{layer}self_attn.{name}_proj", y).unflatten(-1, (-1, head))
                for name in "qkv"
            )
            q, k = turned(q), turned(k).repeat_interleave(heads // groups, 1)
            v = v.repeat_interleave(heads // groups, 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(head)
            unseen = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
            weights = scores.masked_fill(unseen, -math.inf).softmax(-1)
            mixed = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
            x = x + self.linear(f"{layer}self_attn.o_proj", mixed)
            y = norm(f"{layer}post_attention_layernorm", x)
            gate = functional.silu(self.linear(f"{layer}mlp.gate_proj", y))
            x = x + self.linear(
                f"{layer}mlp.down_proj", gate * self.linear(f"{layer}mlp.up_proj", y)
            )
        x = norm("model.norm", x)
        return x @ self.weights.get("lm_head.weight", table).T
