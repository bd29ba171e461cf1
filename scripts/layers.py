"""List the layers of teacher and student, their output shapes, and the pairs whose maps have one size.

Takes the words of train.py: python scripts/layers.py teacher=resnet56 model=resnet20 data=cifar10
"""

import hydra
from omegaconf import DictConfig

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    """Print what can be tapped; no data is read and no weights are loaded."""
    with readable_errors():
        from nst import build
        from nst.layers import describe, layers, matching, pairs_text

        run = build.settings(cfg)
        image = (run.data["channels"], run.data["size"], run.data["size"])
        student = layers(build.network("model", run.model, 0), image)
        print(describe("student", run.model["name"], student))
        if run.teacher.model is not None:
            teacher = layers(build.network("teacher.model", run.teacher.model, 0), image)
            print("\n" + describe("teacher", run.teacher.model["name"], teacher))
            tapped = [
                term.name for term in build.terms(run) if term.loss.source == "teacher" and not term.loss.on_logits
            ]
            print("\n" + pairs_text(matching(teacher, student), tapped[0] if tapped else None))


if __name__ == "__main__":
    with readable_errors():
        main()
