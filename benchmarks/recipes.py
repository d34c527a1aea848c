"""How the recipe `default` was chosen: settings trained with seed 0 and measured on validation scenes, nothing else.

python benchmarks/recipes.py pooled_share=0.2 gain=50,pooled_share=0.3
"""

import sys

from unmix_clip.config import load_config
from unmix_clip.report.tables import align, percent
from unmix_clip.study import Sizes, Study

SIZES = Sizes(train=3000, val=600, test=50, unseen=50)
KEYS = ("map", "miou_objects", "miou_standard", "cross_activation", "background_activation")


def main() -> None:
    """Train each setting and print one line for it."""
    study = Study(SIZES)
    study.test = study.val  # thresholds are fitted on the same scenes: a comparison of settings, not a result
    rows = [["setting", *KEYS]]
    for setting in ["", *sys.argv[1:]]:
        config = load_config("default", setting.split(",") if setting else [])
        figures = study.measure_trained(study.fit(config, 0), "unmix").figures()
        rows.append([setting or "default", *(percent(figures[key]) for key in KEYS)])
    print("\n".join(align(rows)))


if __name__ == "__main__":
    main()
