"""Speed of `prepare`'s media check beside that of an earlier commit, which used threads.

Writes JPEG and PNG images like photographs and H.264 clips, then checks them with this tree (worker
processes) and with the earlier one (threads of one process) in turn, each repeat in a new process
with an empty log. Needs the git repository.

    python benchmarks/media_check.py [--images 600] [--videos 120] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import PIL.Image
from table import Report, Row, arguments_parser, interval

EARLIER = "20fe839"
ROOT = Path(__file__).parent.parent
PROGRAM = """
import json, os, resource, sys, time
from pathlib import Path
from types import SimpleNamespace
root, log, workers = Path(sys.argv[1]), Path(sys.argv[2]), len(os.sched_getaffinity(0))
import sf.config
from sf.data import check
pairs = [(p.name, "video" if p.suffix == ".mp4" else "image") for p in sorted(root.iterdir())]
vision = sf.config.Vision(
    image_min_pixels=3136, image_max_pixels=401408, video_min_pixels=3136,
    video_max_pixels=100352, video_max_frames=16, video_fps=2.0)
old = not hasattr(check, "TIME_LIMIT_S")
media = [SimpleNamespace(media=m, data_type=t) for m, t in pairs] if old else pairs
began = time.perf_counter()
facts = check.check_media(root, media, vision if old else [vision], check.MediaLog(log), workers)
seconds = time.perf_counter() - began
assert not [f.error for f in facts.values() if f.error]
who = resource.RUSAGE_SELF
if not old:
    from sf.isolation import _Server
    for server in _Server.idle:
        server.close()
    who = resource.RUSAGE_CHILDREN
print(json.dumps([len(pairs) / seconds, resource.getrusage(who).ru_maxrss / 2**10]))
"""


def write_media(root: Path, images: int, videos: int) -> None:
    """Write smooth noise, which compresses like photographs."""
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        picture = coarse.resize((640, 480), PIL.Image.Resampling.BICUBIC)
        suffix = "png" if number % 4 == 0 else "jpg"
        picture.save(root / f"{number:05d}.{suffix}")
    for number in range(videos):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (18, 32, 3), dtype=np.uint8))
        base = np.asarray(coarse.resize((480, 272), PIL.Image.Resampling.BICUBIC))
        with av.open(str(root / f"{number:05d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 480, 272, "yuv420p"
            for at in range(120):
                frame = np.roll(base, 2 * at, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))


def checked(tree: Path, root: Path, log: Path) -> tuple[float, float]:
    """Media per second and MiB of the largest process, in a new process on a source tree."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), str(log)],
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    rate, mebibytes = json.loads(done.stdout)
    return rate, mebibytes


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--videos", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    head = f"cpu, {cores} cores, {arguments.images} images, {arguments.videos} videos"
    report = Report(head, arguments.json)
    command = ["git", "-C", str(ROOT), "archive", EARLIER, "sf"]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(work / "earlier", filter="data")
        (work / "media").mkdir()
        report.begin("writing media")
        write_media(work / "media", arguments.images, arguments.videos)
        rates: dict[str, list[float]] = {"earlier": [], "now": []}
        peaks: dict[str, list[float]] = {"earlier": [], "now": []}
        for repeat in range(arguments.repeats):
            for name, tree in (("earlier", work / "earlier"), ("now", ROOT)):
                report.begin(f"repeat {repeat + 1} of {arguments.repeats}, {name}")
                rate, peak = checked(tree, work / "media", work / f"{name}{repeat}.jsonl")
                rates[name].append(rate)
                peaks[name].append(peak)
    ratios = [now / earlier for now, earlier in zip(rates["now"], rates["earlier"], strict=True)]
    report.add(
        [
            Row("media_check_rate", *interval(rates["now"]), "media/s", None, "higher"),
            Row("media_check_rate_earlier", *interval(rates["earlier"]), "media/s"),
            Row("media_check_speedup", *interval(ratios), "x", 1.0, "higher"),
            Row("media_check_worker_memory", *interval(peaks["now"]), "MiB", 8192, "lower"),
            Row("media_check_memory_earlier", *interval(peaks["earlier"]), "MiB"),
        ]
    )
    report.end()


if __name__ == "__main__":
    main()
