"""What is taken from torchvision, imported when it is first needed: networks and images of one's own need none of it.

Raises ValueError on import where torchvision is missing, or was built for another torch than the one installed.
"""

import torch

try:
    from torchvision import datasets, models
    from torchvision.transforms import InterpolationMode, v2
    from torchvision.transforms.v2 import functional as transforms
except (ImportError, RuntimeError, OSError) as error:
    raise ValueError(
        f"torchvision, which photographs and the networks of torchvision and timm need, cannot be imported beside torch "
        f"{torch.__version__}: {error}. Install the two again, together and from one place: pip install --force-reinstall torch torchvision"
    ) from error

__all__ = ["InterpolationMode", "datasets", "models", "transforms", "v2"]
