"""Write the teacher cache without training, or verify a complete one; pack a cache into one file to share it.

nst cache data=cifar10 data.root=FOLDER teacher=resnet56 teacher.weights=FILE 'loss=[kd,at,nst_poly]' cache.views=16
nst cache pack cache=FOLDER to=FILE.tar
nst cache unpack file=FILE.tar to=FOLDER

The arguments are those of `nst train`. Student and losses determine what is cached, and every run with the same `cache`
settings uses it. If it is stopped, the same command continues.

pack writes the manifest and all finished views of the cache in FOLDER (which has a manifest.json) into one file. unpack checks
that file, every SHA-256 included, and makes a cache of it, to be used with cache.views=16 cache.path=FOLDER.
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.cli.compose import hydra_main
from nst.cli.errors import nearest_keys, readable_errors, required

KEYS = {"pack": ("cache", "to"), "unpack": ("file", "to")}


def main(arguments: Sequence[str]) -> None:
    """Write or check a cache, or `pack` or `unpack` one."""
    if arguments and arguments[0] in KEYS:
        with readable_errors():
            share(arguments[0], *parse(arguments[0], arguments[1:]))
    else:
        hydra_main(task, "config", arguments)


def parse(command: str, arguments: Sequence[str]) -> list[Path]:
    """The paths behind a command's keys, in their order. Raises ValueError for an unknown or missing key."""
    values: dict[str, str] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in KEYS[command] or "=" not in argument:
            nearest = nearest_keys(key.lstrip("-"), list(KEYS[command]))
            hint = (
                f"did you mean {nearest[0]}=…?"
                if nearest
                else f"nst cache {command} takes {' and '.join(KEYS[command])}"
            )
            raise ValueError(f"{argument!r}: no such key; {hint}")
        values[key] = value
    if missing := [key for key in KEYS[command] if not values.get(key)]:
        raise ValueError(required(missing))
    return [Path(values[key]).expanduser() for key in KEYS[command]]


def share(command: str, source: Path, target: Path) -> None:
    """Pack the cache in the folder `source` into the file `target`, or unpack the other way round."""
    from nst.teacher.layout import readable_bytes
    from nst.teacher.pack import pack, unpack

    if command == "pack":
        cache = pack(source, target)
        done = f"{readable_bytes(target.stat().st_size)}"
    else:
        cache = unpack(source, target)
        done = f"use it with cache.views=16 cache.path={target}"
    views = min(len(state["sha256"]) for state in cache.state.values())
    print(f"{target}: {len(cache.state)} arrays, {views} of {cache.views} views of {cache.images:,} images; {done}")


def task(cfg: DictConfig) -> None:
    """Write or verify."""
    with readable_errors():
        from nst import build
        from nst.dist import join
        from nst.runs.run import write_teacher_cache

        cfg.cache.views = cfg.cache.views or 16
        settings = build.settings(cfg)
        with join(settings.trainer.device, settings.trainer.timeout) as group:
            cache = write_teacher_cache(settings, group).cache
            if group.main and cache is not None:
                cache.check_all()
                print(f"{cache.folder}: {len(cache.state)} arrays, complete, checksums match")
