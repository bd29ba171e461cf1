"""Measure the accuracy of any weights on any data set.

python scripts/evaluate.py model=resnet56 weights=resnet56.safetensors data=cifar10 data.root=FOLDER
"""

import hydra
from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Print top-1, top-5 and cross-entropy."""
    with readable_errors():
        from nst.runs.run import evaluate_weights

        evaluate_weights(cfg)


if __name__ == "__main__":
    with readable_errors("evaluate"):
        main()
