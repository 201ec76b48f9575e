import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from diffbfr.errors import UsageError
from diffbfr.images import decode, to_tensor
from diffbfr.metrics.crop import FFHQ_POINTS
from diffbfr.metrics.identity import (
    CROP_POINTS,
    IdentityCosine,
    MobileFaceNet,
    ffhq_crop,
    load_mobilefacenet,
)

SHARED = Path(__file__).parents[4] / "shared" / "data"
REAL_WEIGHTS = Path(os.environ.get("DIFFBFR_IDENTITY", SHARED / "metrics" / "mobilefacenet_068.npz"))
REAL_FACES = sorted((SHARED / "london512").glob("*.jpg"))[:6]


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with every name and random values: enough for every property but recognition."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("identity") / "random.npz"
    np.savez(
        path,
        **{
            name: tensor.numpy()
            for name, tensor in MobileFaceNet().state_dict().items()
            if "num_batches" not in name
        },
    )
    return path


def pictures(seed: int, px: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_pictures_are_one_person_and_others_are_less(random_weights: Path) -> None:
    cosine = IdentityCosine(random_weights)
    torch.testing.assert_close(cosine(pictures(0), pictures(0)), torch.ones(2))
    there, back = cosine(pictures(0), pictures(1)), cosine(pictures(1), pictures(0))
    torch.testing.assert_close(there, back)
    assert (there < 1).all()


def test_one_picture_alone_equals_the_same_picture_in_a_batch(random_weights: Path) -> None:
    cosine = IdentityCosine(random_weights)
    batch, alone = cosine(pictures(0), pictures(1)), cosine(pictures(0)[1:], pictures(1)[1:])
    torch.testing.assert_close(batch[1:], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("px", [512, 256, 128])
def test_the_five_points_of_the_frame_come_to_those_of_the_crop(px: int) -> None:
    """A bright spot on each point in turn; the similarity that fits all five misses each by less than two
    and a half pixels.
    """
    y, x = torch.meshgrid(torch.arange(px) + 0.5, torch.arange(px) + 0.5, indexing="ij")
    rows, columns = torch.meshgrid(torch.arange(112.0), torch.arange(96.0), indexing="ij")
    for (at_x, at_y), (to_x, to_y) in zip(FFHQ_POINTS, CROP_POINTS, strict=True):
        distance = ((x * 512 / px - 0.5 - at_x) ** 2 + (y * 512 / px - 0.5 - at_y) ** 2) / 2 / 12**2
        spot = ffhq_crop(torch.exp(-distance).expand(1, 3, px, px))[0, 0]
        found_x, found_y = ((spot * axis).sum() / spot.sum() for axis in (columns, rows))
        assert math.hypot(found_x - to_x, found_y - to_y) < 2.5


def test_the_size_of_the_frame_hardly_matters() -> None:
    smooth = interpolate(pictures(0, px=8), size=512, mode="bicubic").clamp(-1, 1)
    small = interpolate(smooth, size=128, mode="bilinear", antialias=True)
    torch.testing.assert_close(ffhq_crop(smooth), ffhq_crop(small), rtol=0, atol=0.05)


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(UsageError, match=r"has nothing for conv1\.conv\.weight, expected \(64, 3, 3, 3\)"):
        load_mobilefacenet(tmp_path / "other.npz")
    with pytest.raises(UsageError, match=r"no file .*evaluate\.identity"):
        load_mobilefacenet(tmp_path / "absent.npz")


@pytest.mark.skipif(
    not REAL_WEIGHTS.is_file(),
    reason="MobileFaceNet's weights are the user's: set DIFFBFR_IDENTITY to the .npz file",
)
@pytest.mark.skipif(not REAL_FACES, reason="real faces are not part of the project")
def test_real_people_are_told_apart_and_known_again_in_a_blur() -> None:
    faces = to_tensor([decode(path.read_bytes()).pixels for path in REAL_FACES])
    cosine = IdentityCosine(REAL_WEIGHTS)
    assert (cosine(faces, faces.roll(1, 0)) < 0.4).all()
    blurred = interpolate(
        interpolate(faces, size=64, mode="bilinear", antialias=True), size=512, mode="bilinear"
    )
    assert (cosine(blurred, faces) > 0.8).all()
