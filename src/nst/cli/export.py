"""Write a finished run's student as files to deploy, verified, with a model card.

nst export run=outputs/digits/resnet20-resnet8/nst_poly/seed0-1a2b3c4d
"""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

import nst.config
from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "export", arguments)


def task(cfg: DictConfig) -> None:
    """Write the files and print how they compare with the network in memory."""
    with readable_errors("export"):
        from nst.export import export

        settings = OmegaConf.to_object(cfg)
        assert isinstance(settings, nst.config.ExportConfig)
        export(settings)
