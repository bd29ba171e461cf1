"""Networks: plain modules `model(images) -> logits` with names of their layers in `model.named_layers`.

Each stage has three names: "stage1" after the ReLU that ends it, "stage1_pre_relu" before that ReLU, "stage1_out" what it hands on
to the next stage; "last" is the last stage, "pooled" the vector that the classifier sees (see `nst.models.named_layers.name_layers`). A
layer "layer3" is a module's output, "layer3.8.relu2:input" a module's first input.
"""

from nst.models.external import timm_model, torchvision_model
from nst.models.inception_bn import InceptionBN, InceptionBNSmall, inception_bn, inception_bn_small
from nst.models.mobilenet_v2 import CifarMobileNetV2, mobilenet_v2_half
from nst.models.preact import CifarPreactResNet, PreactResNet, preact_resnet101, preact_resnet164, preact_resnet1001
from nst.models.resnet import (
    CifarBottleneckResNet,
    CifarResNet,
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet50_cifar,
    resnet56,
    resnet110,
)
from nst.models.shufflenet import CifarShuffleNetV1, CifarShuffleNetV2, shufflenet_v1, shufflenet_v2
from nst.models.vgg import CifarVGG, vgg8, vgg13
from nst.models.wrn import WideResNet, wrn16_2, wrn40_1, wrn40_2

__all__ = [
    "CifarBottleneckResNet",
    "CifarMobileNetV2",
    "CifarPreactResNet",
    "CifarResNet",
    "CifarShuffleNetV1",
    "CifarShuffleNetV2",
    "CifarVGG",
    "InceptionBN",
    "InceptionBNSmall",
    "PreactResNet",
    "WideResNet",
    "inception_bn",
    "inception_bn_small",
    "mobilenet_v2_half",
    "preact_resnet101",
    "preact_resnet164",
    "preact_resnet1001",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet50_cifar",
    "resnet56",
    "resnet110",
    "shufflenet_v1",
    "shufflenet_v2",
    "timm_model",
    "torchvision_model",
    "vgg8",
    "vgg13",
    "wrn16_2",
    "wrn40_1",
    "wrn40_2",
]
