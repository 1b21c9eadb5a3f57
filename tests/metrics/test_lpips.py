"""LPIPS: its arithmetic with random trunks always, the published networks where they were fetched."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cache_dit.errors import ConfigError, MissingModelError
from cache_dit.metrics import compute_lpips, compute_video_lpips
from cache_dit.metrics.lpips import Lpips, compute_lpips_img, load_heads
from cache_dit.metrics.networks import files

from .media import picture, save, save_folder, save_video, shifted
from .weights import isolate, random_trunk

# Found before a test can put the caches elsewhere.
REAL = {name: files.own_folder() / network.files[0] for name, network in files.LPIPS.items()}


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    return random_trunk(tmp_path_factory.mktemp("lpips") / "lpips-alex.safetensors")


def plain(true, test, weights):
    """AlexNet's LPIPS written down from the paper, one layer after the other."""
    state = files.load_tensors(weights)
    distance = 0.0
    features = []
    for pixels in (true, test):
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
        # the mean and deviation of ImageNet, which LPIPS rounds on the scale of -1 … 1
        x = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.450]
        ).view(3, 1, 1)
        taps = []
        for index, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if index in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (state[f"features.{index}.{part}"].double() for part in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, stride, padding).clamp(min=0)
            taps.append(F.normalize(x[0], dim=0))
        features.append(taps)
    for first, second, head in zip(*features, load_heads("alex"), strict=True):
        distance += torch.einsum("chw,c->hw", (first - second) ** 2, head.double()).mean().item()
    return distance


@pytest.mark.parametrize("size", [(31, 31), (64, 64), (50, 97)])
def test_the_distance_is_the_papers(alex, size):
    true, test = picture(0, *size), picture(1, *size)
    assert Lpips("alex", alex, "cpu")(true, test) == pytest.approx(plain(true, test, alex), rel=1e-5)


def test_equal_pictures_have_distance_zero_and_others_the_same_both_ways(alex):
    measure, true, test = Lpips("alex", alex, "cpu"), picture(0, 40, 40), picture(1, 40, 40)
    assert measure(true, true) == 0
    assert measure(true, test) == pytest.approx(measure(test, true), rel=1e-6)
    assert measure(true, test) > 0


def test_heads_are_those_that_their_authors_published():
    # sums of weights/v0.1/alex.pth and vgg.pth in lpips 0.1.4
    for network, sums in HEADS.items():
        heads = load_heads(network)
        assert [len(head) for head in heads] == CHANNELS[network]
        assert [float(head.double().sum()) for head in heads] == pytest.approx(sums, rel=1e-6)
        assert all((head >= 0).all() for head in heads)


CHANNELS = {"alex": [64, 192, 384, 256, 256], "vgg": [64, 128, 256, 512, 512]}
HEADS = {
    "alex": [2.349532, 16.143027, 39.268439, 27.197178, 20.317177],
    "vgg": [6.925992, 8.858334, 17.515006, 51.521323, 47.034854],
}


def smooth():
    """A picture of slopes, 64 x 64."""
    y, x = np.mgrid[0:64, 0:64]
    return np.stack([x * 4, y * 4, (x + y) * 2], axis=-1).astype(np.uint8)


def noisy():
    """A picture of noise and the same with more noise, 64 x 64."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return pixels, np.clip(pixels.astype(int) + random.integers(-40, 41, pixels.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("network", "with_noise", "moved", "unlike"),
    # of the package lpips 0.1.4 with these trunks
    [("alex", 0.0126368, 0.1561858, 1.2073576), ("vgg", 0.0388152, 0.1757345, 0.9285659)],
)
def test_the_published_networks_give_what_the_authors_package_gives(network, with_noise, moved, unlike):
    if not REAL[network].is_file():
        pytest.skip(files.LPIPS_FETCH)
    measure = Lpips(network, REAL[network], "cpu")
    noise, noisier = noisy()
    values = [measure(noise, noisier), measure(smooth(), np.roll(smooth(), 5, axis=1)), measure(noise, smooth())]
    assert values == pytest.approx([with_noise, moved, unlike], rel=1e-4)


def test_vgg_takes_smaller_pictures_than_alexnet(tmp_path, alex):
    vgg = Lpips("vgg", random_trunk(tmp_path / "vgg.safetensors", "vgg"), "cpu")
    assert vgg(picture(0, 16, 20), picture(1, 16, 20)) > 0
    with pytest.raises(ConfigError, match="needs 16x16 pixels or more: 20x15"):
        vgg(picture(0, 15, 20), picture(1, 15, 20))
    with pytest.raises(ConfigError, match="needs 31x31 pixels or more: 40x30"):
        Lpips("alex", alex, "cpu")(picture(0, 30, 40), picture(1, 30, 40))


def test_floating_pictures_are_taken_as_the_same_ones_in_bytes_and_two_sizes_are_refused(alex):
    measure, true, test = Lpips("alex", alex, "cpu"), picture(0, 40, 40), picture(1, 40, 40)
    assert measure(true / 255, (test / 255).astype(np.float32)) == measure(true, test)
    with pytest.raises(ConfigError, match="40x40 and 48x40"):
        measure(true, picture(1, 40, 48))


def test_torchvisions_file_is_taken_with_the_layers_that_are_not_needed(alex, tmp_path):
    state = {**files.load_tensors(alex), "classifier.1.weight": torch.zeros(3, 3)}
    torch.save(state, tmp_path / "alexnet-owt-7be5be79.pth")
    true, test = picture(0, 40, 40), picture(1, 40, 40)
    assert Lpips("alex", tmp_path, "cpu")(true, test) == Lpips("alex", alex, "cpu")(true, test)


def test_another_networks_file_is_refused(alex):
    with pytest.raises(ConfigError, match="does not hold the VGG16 of LPIPS"):
        Lpips("vgg", alex, "cpu")
    with pytest.raises(ConfigError, match=r"network='squeeze'.*'alex', 'vgg'"):
        Lpips("squeeze", alex)


def test_a_missing_trunk_is_not_replaced_and_not_downloaded(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was downloaded"))
    with pytest.raises(MissingModelError, match="fetch lpips"):
        compute_lpips(picture(0, 40, 40), picture(1, 40, 40))


def test_folders_and_videos_give_the_mean_of_their_pairs(alex, tmp_path):
    pictures = [picture(seed, 32, 40) for seed in range(4)]
    changed = [shifted(pixels, offset) for offset, pixels in zip((0, 5, 10, 20), pictures, strict=True)]
    measure = Lpips("alex", alex, "cpu")
    values = [measure(one, other) for one, other in zip(pictures, changed, strict=True)]
    folders = save_folder(tmp_path / "a", pictures), save_folder(tmp_path / "b", changed)
    assert compute_lpips(*folders, weights=alex, device="cpu") == (pytest.approx(np.mean(values)), 4)
    videos = save_video(tmp_path / "a.mov", pictures), save_video(tmp_path / "b.mov", changed)
    assert compute_video_lpips(*videos, weights=alex, device="cpu") == (pytest.approx(np.mean(values)), 4)
    files = save(tmp_path / "one.png", pictures[3]), save(tmp_path / "two.png", changed[3])
    assert compute_lpips(*files, weights=alex, device="cpu") == (pytest.approx(values[3]), 1)


def test_the_distance_of_two_pictures_is_that_of_a_loaded_network(alex):
    expected = Lpips("alex", alex, "cpu")(picture(0, 40, 40), picture(1, 40, 40))
    assert compute_lpips_img(picture(0, 40, 40), picture(1, 40, 40), weights=alex, device="cpu") == expected
