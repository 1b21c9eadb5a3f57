"""Linear layers that round by their shape, as kernels do that add up in another order for another number of rows."""

import torch
from torch import Tensor

ROUNDINGS = 8
"""By how many eps a sum is off at most: as many as it has terms in the smallest toys."""


def round_by_shape() -> None:
    """From here on the results of linear layers are off by a few eps, by others for another number of rows."""
    plain = torch.nn.functional.linear

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = plain(input, weight, bias)
        wide = torch.promote_types(output.dtype, torch.float32)  # what kernels for half precision add up in
        places = torch.arange(output.shape[-1], device=output.device, dtype=wide)
        noise = torch.cos(places * output[..., 0].numel())
        return (output * (1 + ROUNDINGS * torch.finfo(wide).eps * noise)).to(output.dtype)

    torch.nn.functional.linear = torch.jit.ignore(linear)  # code that is scripted calls it too
