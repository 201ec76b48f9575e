"""The key of a face's noise: what a restoration depends on besides the photo and the model."""


def noise_key(content: str, face: int = 0, draw: int = 0, seed: int = 0) -> str:
    """Name the noise of one restoration by content (sha256 of the photo's bytes), face in the photo, draw and
    seed.

    Nothing else enters: neither order, batch mates nor workers. Training's conditioning, evaluation,
    restoration and serving share it, so that they all speak of the same pictures. The samplers add stage and
    step.
    """
    key = f"{content}/{face}/{draw}"
    return key if seed == 0 else f"{key}/seed={seed}"


def draw_keys(content: str, samples: int, face: int = 0, seed: int = 0) -> list[str]:
    """Keys of so many restorations of one face; the first is the key of its only restoration."""
    return [noise_key(content, face, draw, seed) for draw in range(samples)]
