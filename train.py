"""Train a student, alone or from a teacher: `python train.py --help`."""

import hydra
from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(cfg: DictConfig) -> float:
    """Do what the command line says; sweepers minimise the returned error (percent, on the evaluated split)."""
    with readable_errors():
        from nst.runs.run import run

        summary = run(cfg)
    return 100 - summary["last"]["top1"] if summary else 0.0


if __name__ == "__main__":
    with readable_errors():
        main()
