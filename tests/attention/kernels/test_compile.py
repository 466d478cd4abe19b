"""The kernels compile for devices that are not at hand: Triton needs none for that.

The interpreter takes Python that the compiler refuses, and knows neither registers nor shared
memory. Compiling happens in a process of its own, since in this one kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Bytes of shared memory for one program, by compute capability.
LIMITS = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}


def compiled(kernel: Any, given: dict[str, str], constants: dict[str, Any], arch: int) -> Any:
    """The compiler's output, and cuobjdump's line on registers and memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    types = {
        name: given.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    types |= dict.fromkeys(constants, "constexpr")
    # What Triton finds out at launch: aligned pointers and strides.
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name in types
        if name not in constants and (name.endswith("_ptr") or name.startswith("stride_"))
    }
    source = ASTSource(
        kernel, types, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, aligned
    )
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        dump = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    return made, dict(part.split(":") for part in dump.stdout.split() if part.count(":") == 1)


def compile_all(arch: int, name: str, size: int) -> list[dict[str, Any]]:
    import torch

    from sf.attention.kernels import decode, kept_tokens, linear, probe_scores, rotary
    from sf.attention.kernels.tiles import padded, tiles_for

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    pointers = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "out_ptr"), f"*{name}")
    given = {**pointers, "column_ptr": "*i32", "valid_ptr": "*u8", "mask_ptr": "*u8"}
    given["scale_log2"] = "fp32"
    tiles = tiles_for(size, dtype, LIMITS[arch])
    tile = decode.decode_tile(size, dtype, LIMITS[arch], 1 << 15)
    common = {"REPEATS": 7, "HEAD_DIM": size, "BLOCK_D": padded(size)}
    scores = {
        **common,
        "GROUPS": 4,
        "UPCAST": False,
        "BLOCK_M": tiles.rows,
        "BLOCK_N": tiles.keys,
        "stride_kd": 1,
        "stride_vl": 1,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    small = {"num_warps": 4, "num_stages": 3}
    stretch = {
        **common,
        "GROUPS": 4,
        "UPCAST": False,
        "MASKED": True,
        "STRETCH": 512,
        "BLOCK_R": padded(7),
        "BLOCK_N": tile.entries,
        "stride_kd": 1,
        "stride_vd": 1,
        "stride_ml": 1,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    parts = ("row", "gain", "first", "second", "third", "residual", "out")
    parts += ("first_bias", "second_bias", "third_bias")
    projected = {f"{part}_ptr": f"*{name}" for part in parts} | {"epsilon": "fp32"}

    def projection(inputs: int, normed: bool, gated: bool) -> dict[str, Any]:
        tile = linear.linear_tile(inputs, normed, gated)
        return {
            "NORMED": normed,
            "INPUTS": inputs,
            "GATED": gated,
            "BIASED": normed and not gated,
            "ADDED": not normed,
            "BLOCK_N": tile.outputs,
            "BLOCK_K": tile.inputs,
            "num_warps": tile.warps,
            "num_stages": 3,
        }

    rotation = {**common, "HEADS": 28, "GROUPS": 4, "num_warps": 1, "num_stages": 1}
    del rotation["REPEATS"]
    turned = {f"{part}_ptr": f"*{name}" for part in ("projected", "cos", "sin")}
    turned |= pointers | {"entry_ptr": "*i64"}
    given |= {"at_ptr": "*i64", "present_ptr": "*u8", "picked_ptr": f"*{name}"}
    first = {"STRETCH": probe_scores._STRETCH, "stride_qd": 1, "stride_cp": 1, "stride_pp": 1}
    work = [
        (probe_scores._row_statistics, given, {**scores, **first}),
        (probe_scores._merge_statistics, given, {"BLOCK": 128, **small}),
        (probe_scores._key_mass, given, {**scores, "BLOCK_P": 128}),
        (decode._stretches, given, stretch),
        (decode._join, given, {**common, "BLOCK_S": decode._JOINED, **small}),
        *(
            (linear._one_row, projected, projection(*shape))
            for shape in (
                *((3584, True, False), (3584, True, True)),
                *((3584, False, False), (18944, False, False)),
            )
        ),
        (linear._gate, projected, {"BLOCK": linear._GATED, **small}),
        (linear._normalise, projected, {"INPUTS": 3584, "BLOCK_K": 4096, **small}),
        (rotary._rotate_and_store, turned, rotation),
    ]
    tokens = {
        "HEADS": 28,
        "GROUPS": 4,
        "HEAD_DIM": size,
        "BLOCK_D": padded(size),
        "BLOCK_T": kept_tokens._TOKENS,
        "num_warps": 4,
        "num_stages": 3,
    }
    given |= dict.fromkeys(
        ("query_out_ptr", "key_out_ptr", "value_out_ptr", "part_ptr"), f"*{name}"
    )
    given |= dict.fromkeys(("key_padded_ptr", "value_padded_ptr"), f"*{name}")
    given |= {"slot_ptr": "*i32", "ends_ptr": "*i32", "index_ptr": "*i64"}
    ones = {"stride_qd": 1, "stride_kd": 1, "stride_vd": 1, "stride_iw": 1}
    spread = {**tokens, "stride_pd": 1}
    spread.pop("GROUPS")
    work += [
        (kept_tokens._gather, given, {**tokens, **ones, "RAGGED": False}),
        (kept_tokens._gather, given, {**tokens, **ones, "RAGGED": True}),
        (kept_tokens._spread, given, spread),
    ]
    rows = []
    for kernel, types, constants in work:
        made, usage = compiled(kernel, types, constants, arch)
        rows.append(
            {
                "kernel": kernel.__name__,
                "shared": made.metadata.shared,
                "registers": int(usage["REG"]),
                "spilled": int(usage["STACK"]),
                "wgmma": made.asm["ptx"].count("wgmma.mma_async"),
            }
        )
    return rows


@pytest.mark.parametrize(("arch", "dtype", "size"), [(90, "bf16", 128)])
def test_kernels_compile_and_fit(arch, dtype, size, tmp_path):
    """For H200: they fit, spill nothing, and the scores use Hopper's matrix instructions."""
    check(arch, dtype, size, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("arch", sorted(LIMITS))
def test_kernels_compile_everywhere(arch, dtype, size, tmp_path):
    check(arch, dtype, size, tmp_path)


def check(arch: int, dtype: str, size: int, cache: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, __file__, str(arch), dtype, str(size)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 15
    for row in rows:
        assert row["shared"] <= LIMITS[arch], row
        if dtype != "fp32":
            assert row["spilled"] == 0, row
    if arch == 90 and dtype != "fp32":
        assert all(
            row["wgmma"] for row in rows if row["kernel"] in ("_row_statistics", "_key_mass")
        )


if __name__ == "__main__":
    print(json.dumps(compile_all(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
