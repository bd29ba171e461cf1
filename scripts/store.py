"""Fill a knowledge store without training; of a complete one, check every byte.

python scripts/store.py data=cifar10 data.root=FOLDER teacher=resnet56 teacher.weights=FILE 'loss=[kd,at,nst_poly]' knowledge.views=16

The command line is that of train.py: student and losses decide what is stored, and every run with the same knowledge settings
finds it. Stopped, the same command continues.
"""

import hydra
from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    """Fill, or check."""
    with readable_errors():
        from nst.runs.run import store_knowledge

        cfg.knowledge.mode = "stored"
        store_knowledge(cfg)


if __name__ == "__main__":
    with readable_errors():
        main()
