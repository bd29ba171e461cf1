"""Write the teacher cache without training, or check a complete one.

nst cache data=cifar10 data.root=FOLDER teacher=resnet56 teacher.weights=FILE 'loss=[kd,at,nst_poly]' cache.views=16

The arguments are those of `nst train`. Student and losses determine what is cached, and every run with the same `cache`
settings uses it. If it is stopped, the same command continues. At the end every row is compared with its checksum.
"""

from collections.abc import Sequence

from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "config", arguments)


def task(cfg: DictConfig) -> None:
    """Write and check."""
    with readable_errors():
        from nst import build
        from nst.dist import join
        from nst.run import write_teacher_cache

        cfg.cache.views = cfg.cache.views or 16
        settings = build.settings(cfg)
        with join(settings.trainer.device, settings.trainer.timeout) as group:
            cache = write_teacher_cache(settings, group).cache
            if group.main and cache is not None:
                print(f"{cache.folder}: checksums match\n{cache.check()}")
