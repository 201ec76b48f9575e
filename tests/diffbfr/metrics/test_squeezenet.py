import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, relu

from diffbfr.errors import UsageError
from diffbfr.metrics.squeezenet import SqueezeNetDistance, SqueezeNetFeatures, load_squeezenet

REAL_WEIGHTS = Path(
    os.environ.get(
        "DIFFBFR_SQUEEZENET",
        Path(__file__).parents[4] / "shared" / "data" / "metrics" / "squeezenet_v1_0_imagenet.npz",
    )
)
needs_weights = pytest.mark.skipif(
    not REAL_WEIGHTS.is_file(),
    reason="SqueezeNet 1.0 weights are the user's: set DIFFBFR_SQUEEZENET to the .npz file",
)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the names of the Caffe model and random values: enough for every property but
    recognition.
    """
    draw = torch.Generator().manual_seed(0)
    arrays = {}
    for name, tensor in SqueezeNetFeatures().state_dict().items():
        for ours, theirs in (
            ("fires.", ""),
            (".squeeze.", "/conv1x1_1."),
            (".expand_1.", "/conv1x1_2."),
            (".expand_3.", "/conv3x3_2."),
        ):
            name = name.replace(ours, theirs)
        arrays[name] = (torch.randn(tensor.shape, generator=draw) * tensor[0].numel() ** -0.5).numpy()
    path = tmp_path_factory.mktemp("squeezenet") / "random.npz"
    np.savez(path, **arrays)
    return path


def pictures(seed: int, px: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_pictures_have_distance_zero(random_weights: Path) -> None:
    assert SqueezeNetDistance(random_weights)(pictures(0), pictures(0)).abs().max().item() == 0


def test_is_symmetric_and_between_0_and_2(random_weights: Path) -> None:
    distance = SqueezeNetDistance(random_weights)
    there, back = distance(pictures(0), pictures(1)), distance(pictures(1), pictures(0))
    torch.testing.assert_close(there, back)
    assert ((there > 0) & (there < 2)).all()


def test_one_picture_alone_equals_the_same_picture_in_a_batch(random_weights: Path) -> None:
    distance = SqueezeNetDistance(random_weights)
    batch = distance(pictures(0), pictures(1))
    alone = distance(pictures(0)[1:], pictures(1)[1:])
    torch.testing.assert_close(batch[1:], alone, rtol=0, atol=1e-6)


def test_channels_are_read_as_bgr_around_the_mean(random_weights: Path) -> None:
    network = load_squeezenet(random_weights)
    grey = torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1, 1).expand(1, 3, 64, 64) / 127.5 - 1
    with torch.inference_mode():
        silenced = SqueezeNetFeatures()
        silenced.load_state_dict(
            {n: t if n.endswith("weight") else torch.zeros_like(t) for n, t in network.state_dict().items()}
        )
        assert all(layer.abs().max() < 1e-3 for layer in silenced(grey))


def test_missing_file_is_refused_with_the_setting_to_change(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="DIFFBFR_SQUEEZENET"):
        SqueezeNetDistance(tmp_path / "absent.npz")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **{"conv1.weight": np.zeros((64, 3, 3, 3), np.float32)})
    with pytest.raises(UsageError, match=r"conv1\.weight.*SqueezeNet 1\.0"):
        SqueezeNetDistance(tmp_path / "other.npz")


def test_pictures_too_small_for_the_network_are_refused(random_weights: Path) -> None:
    with pytest.raises(UsageError, match="32 px"):
        SqueezeNetDistance(random_weights)(pictures(0, px=31), pictures(1, px=31))


@needs_weights
def test_the_real_network_recognises_a_cat_and_a_cup_of_espresso() -> None:
    from skimage import data
    from skimage.transform import resize

    network = load_squeezenet(REAL_WEIGHTS)
    with np.load(REAL_WEIGHTS) as arrays:
        head = torch.from_numpy(arrays["conv_final.weight"]), torch.from_numpy(arrays["conv_final.bias"])
    cats, espresso = {281, 282, 283, 284, 285}, {967}
    for photo, classes in ((data.chelsea(), cats), (data.coffee(), espresso)):
        side = min(photo.shape[:2])
        left, top = (photo.shape[1] - side) // 2, (photo.shape[0] - side) // 2
        square = resize(photo[top : top + side, left : left + side], (227, 227), anti_aliasing=True)
        image = torch.from_numpy(square).permute(2, 0, 1)[None].float() * 2 - 1
        logits = relu(conv2d(network(image)[-1], *head, padding=1)).mean(dim=(2, 3))
        assert logits.argmax().item() in classes


@needs_weights
def test_the_real_distance_grows_with_blur() -> None:
    from skimage import data
    from skimage.filters import gaussian

    distance = SqueezeNetDistance(REAL_WEIGHTS)
    photo = data.chelsea()[:256, 100:356] / 255.0
    blurred = [gaussian(photo, sigma, channel_axis=-1) for sigma in (0.5, 1.0, 2.0, 4.0)]
    batch = torch.stack([torch.from_numpy(x).permute(2, 0, 1).float() * 2 - 1 for x in blurred])
    reference = torch.from_numpy(photo).permute(2, 0, 1).float().expand_as(batch) * 2 - 1
    values = distance(batch, reference)
    assert (values.diff() > 0).all()
