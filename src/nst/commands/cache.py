"""Write the teacher cache without training, or verify a complete one.

nst cache data=cifar10 data.root=FOLDER teacher=resnet56 teacher.weights=FILE 'loss=[kd,at,nst_poly]' knowledge.views=16

The arguments are those of `nst train`. Student and losses determine what is cached, and every run with the same `knowledge`
settings uses it. If it is stopped, the same command continues.
"""

from collections.abc import Sequence

from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.commands.compose import hydra_main
from nst.errors import readable_errors


def main(words: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "config", words)


def task(cfg: DictConfig) -> None:
    """Write or verify."""
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
                print(f"{cache.folder}: {len(cache.state)} arrays, complete, checksums match")
