"""Show how hard each term of the loss pulls at the student, beside the cross-entropy: what a weight λ means for two networks.

python scripts/balance.py model=resnet8 teacher=resnet20 'loss=[kd,at,nst_poly]'

Takes the words of train.py. Nothing is trained but a teacher that has no weights yet. Measured on the student before its
training, and after it where the run of the same words is finished.
"""

import hydra
from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    """Print a table before and a table after training."""
    with readable_errors():
        from nst.runs.run import show_balance

        show_balance(cfg)


if __name__ == "__main__":
    with readable_errors():
        main()
