"""The run that trains a teacher without weights."""

from dataclasses import replace

from nst.config import UNNAMED, CacheConfig, RunConfig, TeacherConfig, TrainerConfig


def teacher_run(settings: RunConfig) -> RunConfig:
    """The run that trains the teacher: its own recipe and seed, independent of the student's.

    From the student's trainer it takes only keys that do not change the result.
    """
    train = settings.teacher.train
    shared = [key.removeprefix("trainer.") for key in UNNAMED if key.startswith("trainer.")]
    trainer = replace(
        TrainerConfig(**{key: getattr(settings.trainer, key) for key in shared}),
        **{key: getattr(train, key) for key in ("epochs", "batch_size", "precision", "sync_bn")},
        profile=False,
    )
    return replace(
        settings,
        model=settings.teacher.model,
        teacher=TeacherConfig(),
        cache=CacheConfig(),
        loss={"ce": {"weight": 1.0, "_target_": "nst.losses.CrossEntropy"}},
        optim=train.optim,
        schedule=train.schedule,
        trainer=trainer,
        seed=settings.teacher.seed,
    )
