"""Two processes under torchrun give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripted import BOUNDS

_RUN = """
import json, sys
from pathlib import Path
import sf
from sf.evaluation.aggregate import column_score
from sf.evaluation.columns import column
from sf.evaluation.model import SparseChatModel
from sf.evaluation.run import evaluate_columns
checkpoint, home, work, bounds = sys.argv[1:]
options = {**json.loads(bounds), "method": "zipvl", "value": 0.8, "records": f"{work}/records"}
lm = SparseChatModel(checkpoint, **options)
columns = [column("mlvu_dev"), column("chartqa")]
results = evaluate_columns(lm, columns, Path(home), Path(work), most_new_tokens=3)
found = {r.column.name: [column_score(r.column, r.scores)] for r in results}
for r in results:
    for s in (s for samples in r.samples.values() for s in samples):
        found[r.column.name].append([s.record.doc_id, s.record.reply, s.record.token_ratio])
if results:
    Path(work, "found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_give_the_same_scores(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(_RUN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    found = []
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, command in (("one", [sys.executable]), ("two", launch)):
        work = tmp_path / name
        arguments = [str(checkpoints["qwen2_5_vl"]), str(home), str(work), json.dumps(BOUNDS)]
        subprocess.run([*command, str(script), *arguments], check=True, env=environment)
        found.append(json.loads((work / "found.json").read_text()))
    assert found[0] == found[1]
    assert len(found[0]["mlvu_dev"]) == 8  # seven rows: one process has to answer one twice
    files = sorted(path.name for path in (tmp_path / "two" / "records").iterdir())
    assert files == ["rank0.jsonl", "rank1.jsonl"]
