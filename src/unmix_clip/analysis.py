"""`analyze`: how entangled a class list is, for a backbone or for stored text features, before and after unmixing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unmix_clip.backbones import build_backbone
from unmix_clip.candidates import build_rivals
from unmix_clip.errors import InputError
from unmix_clip.evaluation.entanglement import cosine_matrix, text_entanglement
from unmix_clip.evaluator import evaluate_cross_activation
from unmix_clip.files import make_folder, written_whole
from unmix_clip.jobs import Workplace, entanglement_after, learned_method
from unmix_clip.method.model import UnmixModel
from unmix_clip.provenance import versions
from unmix_clip.report.figures import draw_matrices
from unmix_clip.runs import method_name
from unmix_clip.unmixer import Unmixer
from unmix_clip.vocabulary import load_class_list, load_prompts


def analyze_classes(
    classes: str,
    backbone: str | None,
    text_features: Path | None,
    model: Path | None,
    data: str | None,
    *,
    prompts_name: str,
    top: int,
    figure: Path | None,
    cache: Path | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return the entanglement of a class list; arguments are those of the command."""
    started = time.monotonic()
    names = load_class_list(classes)
    if model and backbone:
        raise InputError("--backbone comes from the run of --model; leave one of them out")
    if text_features is not None:
        if backbone or model or data:
            raise InputError("--text-features stands alone; leave out --backbone, --model and --data")
        before, after, place, unmixed = _load_features(text_features), None, None, None
        run = None
    else:
        if model is not None:
            unmixer = Unmixer.from_pretrained(model)
            run = unmixer.run
            place, prompts = Workplace(unmixer.backbone, cache, tell), run.prompts
        else:
            run = None
            place, prompts = Workplace(build_backbone(backbone or "mini"), cache, tell), load_prompts(prompts_name)
        synonyms = run.synonyms if run else {}
        texts = place.texts(prompts, names, synonyms)
        # Other models have no projected texts to compare.
        unmixed = learned_method(run.model, texts) if run and isinstance(run.model, UnmixModel) else None
        before = texts.positive.numpy()
        after = None if unmixed is None else unmixed.queries.positive.numpy()
    result: dict[str, Any] = {
        "task": "entanglement",
        "protocol": "raw cosines of the positive prompts",
        "method": method_name(run.model.config, run.identity.dense) if run else "clip",
        "backbone": place.backbone.identity.to_dict() if place else None,
        "data": str(text_features) if text_features else data,
        "n_images": 0,
        "n_classes": len(names),
        "seed": run.model.config.seed if run else 0,
        "versions": versions(),
        **text_entanglement(before, names, top),
    }
    if unmixed is not None:
        result |= entanglement_after(result, texts, unmixed.queries.positive, names, top)
    if data is not None and place is not None:
        dataset = place.load(data)
        bench = place.bench(dataset)
        texts = place.texts(prompts, dataset.classes, synonyms)
        plain = build_rivals(["maskclip"], texts, bench)[0]
        result["n_images"] = len(dataset.samples)
        result["pictures"] = {"data": dataset.spec, "plain": evaluate_cross_activation(plain, bench)}
        if run is not None:
            result["pictures"]["unmixed"] = evaluate_cross_activation(learned_method(run.model, texts), bench)
    result["seconds"] = time.monotonic() - started
    if figure is not None:
        make_folder(figure.parent)
        matrices = (cosine_matrix(before), None if after is None else cosine_matrix(after))
        with written_whole(figure) as temporary:
            draw_matrices(*matrices, names).savefig(temporary, format="png")
    return result


def _load_features(path: Path) -> np.ndarray:
    try:
        features = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"no text features at {path}; expected a .npy file of shape (classes, width)") from None
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path} is no readable .npy file ({error}); expected numbers of shape (classes, width)"
        ) from None
    if not isinstance(features, np.ndarray):
        raise InputError(f"{path} holds several arrays; expected one .npy array of shape (classes, width)")
    return features
