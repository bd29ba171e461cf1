"""List the layers of teacher and student, their output shapes, and the pairs whose maps have one size.

Takes the words of train.py: python scripts/layers.py teacher=resnet56 model=resnet20 data=cifar10
Only layers with a role are listed (of a network without roles, the last layer of each map size); with `all=true`, all.
"""

import sys

import hydra
from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors

ALL = "all=true"  # a word of this script alone, so that it is no key of a run
WORDS = list(sys.argv)


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    """Print what can be tapped; no data is read and no weights are loaded."""
    with readable_errors():
        from nst import build
        from nst.layers import describe, layers, matching, pairs_text, without_weights

        run, every = build.settings(cfg), ALL in WORDS
        image = (run.data["channels"], run.data["size"], run.data["size"])
        student = layers(build.network("model", without_weights(run.model), 0), image)
        print(describe("student", run.model["name"], student, every))
        if run.teacher.model is not None:
            teacher = layers(build.network("teacher.model", without_weights(run.teacher.model), 0), image)
            print("\n" + describe("teacher", run.teacher.model["name"], teacher, every))
            tapped = [
                term.name for term in build.terms(run) if term.loss.source == "teacher" and not term.loss.on_logits
            ]
            print("\n" + pairs_text(matching(teacher, student), tapped[0] if tapped else None))


if __name__ == "__main__":
    sys.argv = [word for word in WORDS if word != ALL]
    with readable_errors():
        main()
