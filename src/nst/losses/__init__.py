"""Losses of knowledge distillation, each a target of the teacher and a value from it.

from nst.losses import NST

nst = NST()
target = nst.target(teacher_feature, student_feature.shape[1:])
loss = cross_entropy + 50 * nst(student_feature, target)
"""

from nst.losses.abkd import ABKD
from nst.losses.attention import AT
from nst.losses.base import Convention, CrossEntropy, Input, LossSpec, Shape, TransferLoss
from nst.losses.cat_kd import CATKD
from nst.losses.cc import CC
from nst.losses.crd import CRD
from nst.losses.dist import DIST
from nst.losses.dkd import DKD
from nst.losses.fitnet import FitNet
from nst.losses.kd import KD
from nst.losses.mgd import MGD
from nst.losses.nkd import NKD
from nst.losses.nst import NST
from nst.losses.ofa import OFA
from nst.losses.pkt import PKT
from nst.losses.review import ReviewKD
from nst.losses.rkd import RKD
from nst.losses.rld import RLD
from nst.losses.sdd import SDD
from nst.losses.sp import SP
from nst.losses.ttm import TTM
from nst.losses.vid import VID
from nst.losses.wkd_f import WKDF
from nst.losses.wkd_l import WKDL

__all__ = [
    "ABKD",
    "AT",
    "CATKD",
    "CC",
    "CRD",
    "DIST",
    "DKD",
    "KD",
    "MGD",
    "NKD",
    "NST",
    "OFA",
    "PKT",
    "RKD",
    "RLD",
    "SDD",
    "SP",
    "TTM",
    "VID",
    "WKDF",
    "WKDL",
    "Convention",
    "CrossEntropy",
    "FitNet",
    "Input",
    "LossSpec",
    "ReviewKD",
    "Shape",
    "TransferLoss",
]
