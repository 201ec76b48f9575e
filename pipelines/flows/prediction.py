"""How much a step is, before it runs: what `--plan` prints."""

from pipelines.recipes import Recipe


def predicted_work(recipe: Recipe, name: str) -> str:
    """How much a step is, in the units of its progress line; a training also in parameters and floating-point operations."""
    if name.startswith("train-"):
        from diffbfr.cost import num_parameters, training_flops
        from diffbfr.memory import training_memory
        from diffbfr.training.seats import num_taken

        config = recipe.stage(name.removeprefix("train-"))  # type: ignore[arg-type]
        network, count = config.stage.unet, config.training.num_samples
        flops = training_flops(network, count) * config.training.area_share(config.stage.px)
        batch, workers = config.training.global_batch, max(1, recipe.cluster.min_workers or recipe.cluster.num_workers)
        share = batch // num_taken(workers, batch, config.training.parts)
        memory = training_memory(
            network,
            num_parameters(network),
            min(recipe.cluster.micro_batch or share, share),
            averages=config.training.num_averages,
            recompute_px=recipe.cluster.recompute_px,
            image_px=config.training.largest_px(config.stage.px),
        )
        return (
            f"{count:,} samples, {num_parameters(network) / 1e6:.1f} M parameters, {_scaled(flops)}FLOP, {_scaled(memory.total)}B a worker"
        )
    if name == "shard":
        return f"faces of {recipe.data.hq_px} px x {recipe.data.variants} variants"
    if name == "condition-irm1":
        return f"{recipe.data.variants} pictures a face"
    if name == "restore":
        return f"{recipe.restore.num_photos} photos"
    return ""


def _scaled(value: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} E"
