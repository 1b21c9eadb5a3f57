"""The description of the machine that measured something."""

import json
import socket
from importlib import metadata

import torch

from cache_dit.report.machine import describe_machine


def test_it_names_the_processor_the_threads_and_the_versions():
    machine = describe_machine()
    assert machine.device
    assert machine.cores >= 1
    assert machine.threads == torch.get_num_threads()
    assert machine.versions["diffusers"] == metadata.version("diffusers")
    assert machine.device in str(machine)
    assert f"torch {torch.__version__}" in str(machine)


def test_it_is_plain_data_and_does_not_name_the_host():
    text = json.dumps(describe_machine().as_dict())
    assert socket.gethostname() not in text
