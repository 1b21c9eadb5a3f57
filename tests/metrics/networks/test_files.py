"""Where networks are found, and what is said when they are not."""

import pytest
import torch
from safetensors.torch import save_file

from cache_dit.errors import ConfigError, MissingModelError
from cache_dit.metrics.networks import __main__ as command
from cache_dit.metrics.networks import files
from cache_dit.metrics.networks.files import (
    BERT_TOKENIZER,
    CLIP,
    IMAGE_REWARD,
    INCEPTION,
    LPIPS,
    NETWORKS,
    find,
    load_tensors,
)
from tests.metrics.weights import isolate

ALEX = LPIPS["alex"]


@pytest.fixture(autouse=True)
def _nothing_is_there(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path / "cache")


def put(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def in_hub(tmp_path, repository, name):
    folder = tmp_path / "cache" / "hub" / f"models--{repository.replace('/', '--')}"
    put(folder / "refs" / "main", "abc")
    return put(folder / "snapshots" / "abc" / name)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_missing_network_is_named_with_what_to_get_and_where_to_put_it(network):
    with pytest.raises(MissingModelError) as error:
        find(network)
    for part in (network.name, network.files[0], network.get, network.variable):
        assert part in str(error.value)


@pytest.mark.parametrize("network", [ALEX, INCEPTION, IMAGE_REWARD], ids=lambda network: network.name)
def test_a_file_is_found_by_argument_by_variable_and_by_their_folder(network, tmp_path, monkeypatch):
    file = put(tmp_path / "mine" / network.files[0])
    assert find(network, file) == find(network, str(file.parent)) == file
    monkeypatch.setenv(network.variable, str(file))
    assert find(network) == file
    monkeypatch.setenv(network.variable, str(file.parent))
    assert find(network) == file


def test_the_argument_comes_before_the_variable_and_both_before_the_caches(tmp_path, monkeypatch):
    cached = put(files.own_folder() / ALEX.files[0])
    assert find(ALEX) == cached
    named = put(tmp_path / "named" / ALEX.files[0])
    monkeypatch.setenv(ALEX.variable, str(named))
    assert find(ALEX) == named
    passed = put(tmp_path / "passed.safetensors")
    assert find(ALEX, passed) == passed


@pytest.mark.parametrize("source", ["argument", "variable"])
def test_what_was_asked_for_and_is_not_there_is_not_replaced_by_a_cache(source, tmp_path, monkeypatch):
    put(files.own_folder() / ALEX.files[0])
    argument = tmp_path / "nowhere" if source == "argument" else None
    if source == "variable":
        monkeypatch.setenv(ALEX.variable, str(tmp_path / "nowhere"))
    with pytest.raises(MissingModelError, match=f"nowhere.*from {'the argument' if argument else ALEX.variable}"):
        find(ALEX, argument)


@pytest.mark.parametrize("network", [ALEX, LPIPS["vgg"], INCEPTION], ids=lambda network: network.name)
def test_torch_hubs_cache_is_looked_at(network, tmp_path):
    file = put(tmp_path / "cache" / "torch" / "hub" / "checkpoints" / network.files[-1])
    assert find(network) == file


@pytest.mark.parametrize("network", [CLIP, IMAGE_REWARD, BERT_TOKENIZER], ids=lambda network: network.name)
def test_the_hubs_cache_is_looked_at(network, tmp_path):
    for repository in reversed(network.repositories):
        file = in_hub(tmp_path, repository, network.files[0])
        assert find(network) == (file.parent if network.folder else file)


def test_where_the_package_image_reward_keeps_its_weights_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = put(tmp_path / ".cache" / "ImageReward" / "ImageReward.pt")
    assert find(IMAGE_REWARD) == file


def test_a_repository_in_the_hubs_cache_may_be_asked_for_by_name(tmp_path):
    file = in_hub(tmp_path, "openai/clip-vit-base-patch32", "config.json")
    assert find(CLIP, "openai/clip-vit-base-patch32") == file.parent
    with pytest.raises(MissingModelError, match="openai/clip-vit-large"):
        find(CLIP, "openai/clip-vit-large-patch14")


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    put(tmp_path / "clip" / "weights.txt")
    with pytest.raises(MissingModelError, match=r"no folder with a config\.json"):
        find(CLIP, tmp_path / "clip")


def test_weights_are_read_from_safetensors_and_from_pytorchs_files(tmp_path):
    state = {"a": torch.arange(3.0)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert torch.equal(load_tensors(tmp_path / name)["a"], state["a"])


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("it was run",))


@pytest.mark.parametrize("content", [{"a": Malicious()}, [torch.zeros(1)], {"a": 1}], ids=["code", "list", "number"])
def test_a_file_that_brings_anything_but_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"a\.pth"):
        load_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_damaged_file_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(ConfigError, match="cannot be read as a file of weights"):
        load_tensors(tmp_path / name)


def test_the_command_says_what_is_there_and_what_to_do_for_the_rest(tmp_path, capsys):
    file = put(files.own_folder() / ALEX.files[0])
    assert command.main([]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(NETWORKS)
    assert said[0] == f"{ALEX.name}: {file}"
    assert INCEPTION.get in said[2]
