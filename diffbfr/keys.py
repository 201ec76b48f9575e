"""Noise keys: what a restoration depends on besides the photo and the model."""


def noise_key(content: str, face: int = 0, draw: int = 0, seed: int = 0) -> str:
    """Key of the noise of one restoration: content (sha256 of the photo's bytes), face, draw and seed.

    Neither order, batch nor workers enter. Conditioning, evaluation, restoration and serving share the keys,
    so that they all produce the same images. The samplers add stage and step.
    """
    key = f"{content}/{face}/{draw}"
    return key if seed == 0 else f"{key}/seed={seed}"


def draw_keys(content: str, samples: int, face: int = 0, seed: int = 0) -> list[str]:
    """Keys of `samples` restorations of one face; the first is the key of its only restoration."""
    return [noise_key(content, face, draw, seed) for draw in range(samples)]
