"""What several methods cost together: all dense features from one pass of the backbone, against a pass each.

    python benchmarks/one_pass.py                      # mini, 1000 scenes
    python benchmarks/one_pass.py --backbone ViT-B-32:random --n 50

Both are timed in turns in the same run, several times; scenes are drawn before the clock starts.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from unmix_clip.backbones import build_backbone
from unmix_clip.data import load_data
from unmix_clip.features import store_dense


def main() -> None:
    """Time both ways and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    backbone = build_backbone(args.backbone)
    scenes = load_data(f"scenes@test?n={args.n}")
    drawn = [sample.load_image() for sample in scenes.samples]
    samples = [
        replace(sample, load_image=lambda image=image: image)
        for sample, image in zip(scenes.samples, drawn, strict=True)
    ]
    scenes = replace(scenes, samples=samples)
    names = list(backbone.dense_names)
    ways = {"one pass": [names], "a pass each": [[name] for name in names], "one strategy": [names[:1]]}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, passes in ways.items():
            with tempfile.TemporaryDirectory() as cache:
                started = time.perf_counter()
                for together in passes:
                    store_dense(backbone, scenes, together, cache=Path(cache))
                seconds[way].append(time.perf_counter() - started)
    for way, values in seconds.items():
        print(f"{way:13s} {statistics.median(values):7.2f} s  ({min(values):.2f} to {max(values):.2f})")
    one, each, single = (statistics.median(seconds[way]) for way in ("one pass", "a pass each", "one strategy"))
    print(
        f"{len(names)} strategies on {args.n} pictures, {args.backbone}: one pass is {each / one:.1f} times faster "
        f"than a pass each, and costs {one / single:.2f} times one strategy"
    )


if __name__ == "__main__":
    main()
