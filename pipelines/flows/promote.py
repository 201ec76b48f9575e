"""Promotion: evaluate candidate and champion on the frozen hold-out, then compare them face by face.

A version that has scores on the hold-out is not evaluated again. Cascades of any recipes and data can be
compared: what each was evaluated on after its training does not matter.
"""

from typing import TYPE_CHECKING, Any, cast

from diffbfr.errors import DiffBFRError, UsageError
from pipelines import registry as models
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.recipes.recipe import EvaluateConfig, Recipe
from pipelines.registry import HoldOut, ModelVersion, Promotion
from pipelines.steps.evaluate import evaluate_cascade
from pipelines.tracking.connection import Registry

if TYPE_CHECKING:
    from diffbfr.metrics.info import MetricInfo


def promote(registry: Registry, ref: str, force: bool, why: str, recipe: Recipe, root: str) -> Promotion:
    """Evaluate what has no scores yet, and make the version champion if it is no worse than the champion.

    With `force` nothing is evaluated or compared. RegressionError if the version may be worse.
    """
    models.recover_all(registry, models.CASCADE)
    holdout, version = models.read_holdout(registry), models.get_version(registry, ref)
    if version.name == models.CASCADE and holdout is not None and not force:
        champion = models.version_with_alias(registry, models.CASCADE, "champion")
        compared = {it.ref: it for it in (champion, version) if it is not None}
        lacking = [it for it in compared.values() if not _has_scores(registry, it, holdout)]
        if lacking:
            evaluate_versions(registry, lacking, holdout, recipe, root)
    return models.promote(registry, ref, force, why)


def evaluate_versions(
    registry: Registry, versions: list[ModelVersion], holdout: HoldOut, recipe: Recipe, root: str
) -> None:
    """Evaluate versions on the hold-out, and record their scores in the registry."""
    from pipelines.execution.model_ref import pin_model

    protocol = holdout.protocol
    config = EvaluateConfig(
        split=cast(Any, protocol.split),
        max_faces=protocol.num_images,
        variant=protocol.variant,
        seeds=protocol.seeds,
        batch=recipe.evaluate.batch,
        num_panels=0,
        squeezenet=recipe.evaluate.squeezenet,
        identity=recipe.evaluate.identity,
    )
    _check_holdout(holdout, config)
    with Cluster(recipe.cluster) as cluster:
        for version in versions:
            folder = models.resolve(version.ref, registry, storage.cache_folder("models")).folder
            cascade = pin_model(folder)
            if cluster.is_joined:
                cascade = cascade.stage_to(storage.join(root, "promoted", version.digest[:12]))
            evaluation = evaluate_cascade(cluster, cascade, holdout.dataset, config, protocol.mode, root)
            models.record_evaluation(registry, version, evaluation)


def choose_holdout(dataset: str, recipe: Recipe) -> HoldOut:
    """The hold-out that a recipe's evaluation takes from a dataset; UsageError if it would be empty."""
    from pipelines.dataset.manifest import open_dataset
    from pipelines.evaluation.scores import Protocol, digest_of_keys, metric_slug

    config, opened = recipe.evaluate, open_dataset(dataset)
    keys, info = opened.keys(config.split)[: config.max_faces], opened.info
    if not keys or config.variant >= info.variants:
        raise UsageError(
            f"{dataset} holds {len(keys)} faces of split {config.split} in {info.variants} variants; "
            "expected some, and variant "
            f"{config.variant}; choose others with --set evaluate.split=.. and evaluate.variant=.."
        )
    cards = _cards(config)
    protocol = Protocol(
        dataset=info.content_id,
        split=config.split,
        num_images=len(keys),
        variant=config.variant,
        seeds=config.seeds,
        mode=recipe.sampling.mode,
        hq_px=info.hq_px,
        keys_sha256=digest_of_keys(keys),
        metrics=tuple(f"{card.name} v{card.version}" for card in cards),
    )
    return HoldOut(storage.absolute(dataset), protocol, {metric_slug(card): card.version for card in cards})


def _has_scores(registry: Registry, version: ModelVersion, holdout: HoldOut) -> bool:
    """Whether a version has scores on the hold-out, and the table of them is what was recorded."""
    if not models.is_measured(version, holdout):
        return False
    try:
        return bool(models.read_faces(registry, version, holdout.protocol.digest))
    except DiffBFRError:
        return False


def _check_holdout(holdout: HoldOut, config: EvaluateConfig) -> None:
    """UsageError if the dataset no longer has the frozen faces, or a metric is not available here."""
    from pipelines.dataset.manifest import DATASET_RECORD, open_dataset
    from pipelines.evaluation.scores import digest_of_keys, metric_slug

    expected = holdout.protocol.dataset
    again = "put it back, or choose another with `diffbfr models holdout DATASET`"
    if not storage.exists(storage.join(holdout.dataset, DATASET_RECORD)):
        raise UsageError(
            f"the hold-out {holdout.dataset} is gone; expected the dataset of content {expected[:12]}; "
            f"{again}"
        )
    opened = open_dataset(holdout.dataset)
    keys = opened.keys(config.split)[: config.max_faces]
    if opened.info.content_id != expected or digest_of_keys(keys) != holdout.protocol.keys_sha256:
        raise UsageError(
            f"the hold-out {holdout.dataset} has content {opened.info.content_id[:12]} and {len(keys)} faces "
            f"of split {config.split}; expected {expected[:12]} and the same {holdout.protocol.num_images} "
            f"faces; {again}"
        )
    here = {metric_slug(card): card.version for card in _cards(config)}
    lacking = [
        f"{name} v{version}" for name, version in sorted(holdout.metrics.items()) if here.get(name) != version
    ]
    if lacking:
        raise UsageError(
            f"the hold-out is measured by {', '.join(lacking)}, this installation has "
            f"{', '.join(f'{name} v{version}' for name, version in sorted(here.items()))}; expected every "
            "metric of the hold-out; give the "
            "weights that they need (DIFFBFR_SQUEEZENET, DIFFBFR_IDENTITY), or choose another with `diffbfr "
            "models holdout DATASET`"
        )


def _cards(config: EvaluateConfig) -> list["MetricInfo"]:
    """The metrics that an evaluation of this configuration takes here."""
    from diffbfr.metrics import psnr, ssim
    from pipelines.steps.evaluate import identity_weights, squeezenet_weights

    cards = [psnr.INFO, ssim.INFO]
    if squeezenet_weights(config.squeezenet):
        from diffbfr.metrics import squeezenet

        cards.append(squeezenet.INFO)
    if identity_weights(config.identity):
        from diffbfr.metrics import identity

        cards.append(identity.INFO)
    return cards
