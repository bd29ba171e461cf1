"""Networks: plain modules `model(images) -> logits` with names of their layers in `model.named_layers`.

Images are [B, C, H, W]; every constructor takes `num_classes`, the number of logits, and `in_channels`, the channels of the images.
"""

from functools import partial

from nst.models.crd import (
    CifarMobileNetV2 as CifarMobileNetV2,
    CifarShuffleNet as CifarShuffleNet,
    CifarVGG as CifarVGG,
)
from nst.models.external import timm_model as timm_model, torchvision_model as torchvision_model
from nst.models.inception_bn import InceptionBN as InceptionBN, InceptionBNSmall as InceptionBNSmall
from nst.models.preact import (
    CifarPreactResNet as CifarPreactResNet,
    PreactResNet as PreactResNet,
    WideResNet as WideResNet,
)
from nst.models.resnet import CifarBottleneckResNet as CifarBottleneckResNet, CifarResNet as CifarResNet

resnet8 = partial(CifarResNet, 8)
resnet14 = partial(CifarResNet, 14)
resnet20 = partial(CifarResNet, 20)
resnet32 = partial(CifarResNet, 32)
resnet44 = partial(CifarResNet, 44)
resnet56 = partial(CifarResNet, 56)
resnet110 = partial(CifarResNet, 110)
resnet8x4 = partial(CifarResNet, 8, shortcut="B", widths=(32, 64, 128, 256))
resnet32x4 = partial(CifarResNet, 32, shortcut="B", widths=(32, 64, 128, 256))
resnet50_cifar = CifarBottleneckResNet
wrn16_2 = partial(WideResNet, 16, 2)
wrn40_1 = partial(WideResNet, 40, 1)
wrn40_2 = partial(WideResNet, 40, 2)
vgg8 = partial(CifarVGG, 1)
vgg13 = partial(CifarVGG, 2)
mobilenet_v2_half = partial(CifarMobileNetV2, 0.5)
CifarShuffleNetV1 = shufflenet_v1 = partial(CifarShuffleNet, 1)
CifarShuffleNetV2 = shufflenet_v2 = partial(CifarShuffleNet, 2)
preact_resnet164 = partial(CifarPreactResNet, 164)
preact_resnet1001 = partial(CifarPreactResNet, 1001)  # the paper's CIFAR teacher
preact_resnet101 = partial(PreactResNet, (3, 4, 23, 3))  # the paper's ImageNet teacher
inception_bn_small = InceptionBNSmall
inception_bn = InceptionBN
