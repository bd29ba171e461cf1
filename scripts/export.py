"""Turn a finished run's student into files to deploy, verified, with a model card.

python scripts/export.py run=outputs/digits/resnet20-resnet8/nst_poly/seed0-1a2b3c4d
"""

import hydra
from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors


@hydra.main(version_base="1.3", config_path="../configs", config_name="export")
def main(cfg: DictConfig) -> None:
    """Write the files and print how they compare with the network in memory."""
    with readable_errors("export"):
        from nst.export import export

        export(cfg)


if __name__ == "__main__":
    with readable_errors("export"):
        main()
