"""Write the teacher cache without training; of a complete one, check every byte.

nst cache data=cifar10 data.root=FOLDER teacher=resnet56 teacher.weights=FILE 'loss=[kd,at,nst_poly]' knowledge.views=16

The words are those of `nst train`: student and losses decide what is cached, and every run with the same knowledge settings
finds it. Stopped, the same command continues.
"""

from collections.abc import Sequence

from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.commands.compose import hydra_main
from nst.errors import readable_errors


def main(words: Sequence[str]) -> None:
    """Do what the words say."""
    hydra_main(task, "config", words)


def task(cfg: DictConfig) -> None:
    """Write, or check."""
    with readable_errors():
        from nst import build
        from nst.runs.run import write_teacher_cache
        from nst.training.ranks import ranks

        cfg.knowledge.mode = "stored"
        settings = build.settings(cfg)
        with ranks(settings.trainer.device, settings.trainer.timeout) as here:
            cache = write_teacher_cache(settings, here).cache
            if here.main and cache is not None:
                cache.check_all()
                print(f"{cache.folder}: {len(cache.state)} arrays, complete and as their checksums say")
