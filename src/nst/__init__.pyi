from .api import Run as Run, distil as distil, runs as runs, train as train
from .config import TrainerConfig as TrainerConfig
from .data.batch import Batch as Batch
from .data.memory import MemorySplit as MemorySplit, ViewScheme as ViewScheme
from .dist import Dist as Dist
from .distiller import Distiller as Distiller, Term as Term
from .evaluate import Metrics as Metrics
from .export import load_student as load_student
from .layers import LayerHooks as LayerHooks, Pair as Pair, feature_shapes as feature_shapes
from .loop import Loop as Loop, Training as Training
from .losses import (
    ABKD as ABKD,
    AT as AT,
    CATKD as CATKD,
    CC as CC,
    CRD as CRD,
    DIST as DIST,
    DKD as DKD,
    KD as KD,
    MGD as MGD,
    NKD as NKD,
    NST as NST,
    OFA as OFA,
    PKT as PKT,
    RKD as RKD,
    RLD as RLD,
    SDD as SDD,
    SP as SP,
    TTM as TTM,
    VID as VID,
    WKDF as WKDF,
    WKDL as WKDL,
    CrossEntropy as CrossEntropy,
    FitNet as FitNet,
    ReviewKD as ReviewKD,
    TransferLoss as TransferLoss,
)
from .models.weights import load_weights as load_weights, save_weights as save_weights
from .signals import Interrupted as Interrupted
from .teacher import LiveTeacher as LiveTeacher, Normalization as Normalization, Teacher as Teacher

__version__: str
