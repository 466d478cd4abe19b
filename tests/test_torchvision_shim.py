"""The shim of torchvision in Pythons that do not import `sf` themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sf.torchvision_shim import install_at_start

SAY = "import sys; print(any('BeforeTorchvision' in str(finder) for finder in sys.meta_path))"


def test_every_python_of_the_environment_has_it(tmp_path: Path) -> None:
    install_at_start(str(tmp_path))
    folder = str(tmp_path)
    for path, expected in ((str(Path(__file__).parent.parent), "True"), (folder, "False")):
        start = f"import site, sys; sys.path.insert(0, {path!r}); site.addsitedir({folder!r}); "
        command = [sys.executable, "-S", "-c", start + SAY]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={}, cwd=tmp_path
        )
        assert (done.stdout.strip(), done.stderr) == (expected, "")
