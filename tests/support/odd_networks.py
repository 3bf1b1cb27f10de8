"""Networks of odd kinds: each computes, is made or is wrapped in a way that a reference has to notice."""

from __future__ import annotations

import types
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune


class Plain(nn.Module):
    """A convolution, a batch-norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 8)."""
        found: torch.Tensor = self.body(image)
        return found.mean((2, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(self.features(image))
        return logits


# Lowered precision


class Autocast(Plain):
    """Enters autocast, as the training loop's author left it in forward."""

    device, enabled = "cpu", True

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a GPU, torch says that it has none
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.enabled):
                features = self.features(image)
        logits: torch.Tensor = self.head(features.float())
        return logits


class AutocastOnGpu(Autocast):
    """Enters autocast for a GPU, which has no effect on the CPU."""

    device = "cuda"


class AutocastOff(Autocast):
    """Switches autocast off for a part of its forward."""

    enabled = False


class Half(Plain):
    """Computes its features in FP16."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(self.features(image).half().float())
        return logits


class HalfInput(Plain):
    """Casts the images only, which its FP32 weights do not take."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Raise an error."""
        return super().forward(image.half())


class Switches(Plain):
    """Allows TF32 for its matrix products, and forbids it again."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        logits = super().forward(image)
        torch.set_float32_matmul_precision(before)
        return logits


class SwitchesLate(Plain):
    """Allows TF32 behind its last operator, so that its next call computes in it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits = super().forward(image)
        torch.set_float32_matmul_precision("medium")
        return logits


class FakeQuantized(Plain):
    """Rounds its features to eight bits, as training that is aware of quantisation does."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        features = torch.fake_quantize_per_tensor_affine(self.features(image), 0.1, 0, -128, 127)
        logits: torch.Tensor = self.head(features)
        return logits


# Other logits for the same image


class AlwaysDropout(Plain):
    """Drops in evaluation mode, too."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(functional.dropout(self.features(image), 0.3))
        return logits


class ForgottenTraining(Plain):
    """Has a dropout that stays in training mode, because `train` is overridden."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> ForgottenTraining:  # noqa: FBT001, FBT002 - torch's signature
        """Set the mode of everything but the dropout."""
        super().train(mode)
        self.drop.train()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(self.drop(self.features(image)))
        return logits


class NumpyNoise(Plain):
    """Adds noise that numpy draws."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        return super().forward(image) * float(np.random.default_rng().uniform(0.5, 1.5))


class Moving(Plain):
    """Computes with a buffer that it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        self.calls += 1
        return super().forward(image) * self.calls


class Counting(Moving):
    """Counts its calls in a buffer, and computes without it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        self.calls += 1
        return Plain.forward(self, image)


class EvaluatedDropout(Plain):
    """Has dropouts that evaluation mode switches off."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        features = functional.dropout(self.features(image), 0.3, training=self.training)
        logits: torch.Tensor = self.head(features)
        return logits


# Computed weights


def weight_normed() -> nn.Module:
    """Return a network with the older `weight_norm`, which computes the weight in a hook."""
    model = Plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecation, which is torch's to say
        nn.utils.weight_norm(model.body[0])
    return model


def spectrally_normed() -> nn.Module:
    """Return a network with the older `spectral_norm`."""
    model = Plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same
        nn.utils.spectral_norm(model.body[0])
    return model


def pruned() -> nn.Module:
    """Return a network that is pruned twice by masks, with a bias that two layers share."""
    model = Plain()
    prune.l1_unstructured(model.body[0], "weight", amount=0.4)  # type: ignore[no-untyped-call]  # torch's own
    prune.ln_structured(model.body[0], "weight", 0.3, n=2, dim=0)  # type: ignore[no-untyped-call]  # the same
    model.body[1].bias = model.body[0].bias
    prune.random_unstructured(model.body[0], "bias", amount=0.5)  # type: ignore[no-untyped-call]  # the same
    return model


def parametrized() -> nn.Module:
    """Return a network with torch's parametrisations, one of them over another."""
    model = Plain()
    nn.utils.parametrizations.weight_norm(model.body[0])
    nn.utils.parametrizations.spectral_norm(model.body[0])
    nn.utils.parametrizations.orthogonal(model.head, orthogonal_map="matrix_exp")
    nn.utils.parametrize.register_parametrization(model.body[1], "running_var", Positive())
    return model


class Positive(nn.Module):
    """Computes a tensor that has no value below a half."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return values of at least a half."""
        return values.abs() + 0.5


class FromTheImage(Plain):
    """Scales the weight of its head, by a parametrisation, with the brightness of the last images."""

    class Scale(nn.Module):
        """Multiplies by a number that somebody else sets."""

        brightness = torch.ones(())

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            """Return the scaled weight."""
            return weight * self.brightness

    def __init__(self) -> None:
        super().__init__()
        self.scale = FromTheImage.Scale()
        nn.utils.parametrizations.weight_norm(self.body[0])
        nn.utils.parametrize.register_parametrization(self.head, "weight", self.scale)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        self.scale.brightness = image.abs().mean()
        return super().forward(image)


class LooksAtItsParts(Plain):
    """Reads the tensors that a weight is computed from."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.head)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        sizes: torch.Tensor = self.head.parametrizations.weight.original0  # type: ignore[union-attr, assignment]  # as people write it
        return super().forward(image) / sizes.mean()


# Other logits in another batch


class BatchOfOne(Plain):
    """Goes another way with one image."""

    most = 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        features = self.features(image)
        logits: torch.Tensor = self.head(torch.tanh(3 * features) if image.size(0) > self.most else features)
        return logits


class BatchOfTwo(BatchOfOne):
    """Goes another way with two images or one."""

    most = 2


class Centred(Plain):
    """Subtracts the mean over the batch."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits = super().forward(image)
        return logits - logits.mean(dim=0)


def batch_statistics() -> nn.Module:
    """Return a network whose batch-norm keeps no statistics."""
    model = Plain()
    model.body[1] = nn.BatchNorm2d(8, track_running_stats=False)
    return model


# Wrapped


def compiled() -> nn.Module:
    """Return what torch.compile makes of a network."""
    return torch.compile(Plain())  # type: ignore[return-value]  # a module again


def compiled_in_place() -> nn.Module:
    """Return a network that was compiled in place, with a layer that torch.compile wrapped."""
    model = Plain()
    model.body = torch.compile(model.body)  # type: ignore[assignment]  # a module again
    model.compile()
    return model


def compiled_forward() -> nn.Module:
    """Return a network whose own forward was replaced by a compiled one."""
    model = Plain()
    model.forward = torch.compile(model.forward)  # type: ignore[method-assign]  # as people write it
    return model


def parallel() -> nn.Module:
    """Return a network for several GPUs."""
    return nn.DataParallel(Plain())


def averaged() -> nn.Module:
    """Return the average of a network's weights."""
    return torch.optim.swa_utils.AveragedModel(Plain())


def nested() -> nn.Module:
    """Return a compiled network for several GPUs, with a compiled layer."""
    return torch.compile(nn.DataParallel(compiled_in_place()))  # type: ignore[return-value]  # a module again


class Module(nn.Module):
    """Calls the network that it holds `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Plain()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.module(image)
        return logits


# Hooks and patches


def root_hook() -> nn.Module:
    """Return a network that a hook of its own gives other images."""
    model = Plain()
    model.register_forward_pre_hook(lambda _, images: ((images[0] - 1.0) / 0.3,))
    return model


def patched_forward() -> nn.Module:
    """Return a network whose instance has another forward."""

    def forward(self: Plain, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(image).amax((2, 3)))
        return logits

    model = Plain()
    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]  # as people write it
    return model


def closing_layer() -> nn.Module:
    """Return a network with a layer whose forward is a function that calls the former one, in its weights' type."""
    model = Plain()
    plain = model.head.forward

    def forward(features: torch.Tensor) -> torch.Tensor:
        return plain(features.to(model.head.weight.dtype)).to(features.dtype)

    model.head.forward = forward  # type: ignore[assignment, method-assign]  # as people write it
    return model


def closing_forward() -> nn.Module:
    """Return a network whose forward is a function that calls the former one, in its weights' type."""
    model = Plain()
    plain = model.forward

    def forward(image: torch.Tensor) -> torch.Tensor:
        return 2 * plain(image.to(model.head.weight.dtype)).to(image.dtype)

    model.forward = forward  # type: ignore[method-assign]  # as people write it
    return model


def layer_hook() -> nn.Module:
    """Return a network with a hook between its convolution and its batch-norm."""
    model = Plain()
    model.body[0].register_forward_hook(lambda _, __, found: found.clamp(min=0))
    return model


class KnowsTensors(Plain):
    """Goes another way where it is traced, because a proxy is no tensor."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits = super().forward(image)
        return logits * 2 if type(image) is torch.Tensor else logits


class KnowsExport(Plain):
    """Goes another way where torch exports it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits = super().forward(image)
        return logits if torch.compiler.is_exporting() else logits * 2


# Made in another way


class NoneFromTrain(Plain):
    """Overrides `train` and returns nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]  # noqa: FBT001, FBT002 - as people write it
        """Set the mode."""
        super().train(mode)


def lazy() -> nn.Module:
    """Return a network whose weights have no shape yet."""
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))


def scripted() -> nn.Module:
    """Return a TorchScript module."""
    traced: nn.Module = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch's own
        Plain().eval(), torch.zeros(2, 3, 32, 32)
    )
    return traced


def exported() -> nn.Module:
    """Return the module of an exported program, which has no evaluation mode."""
    return torch.export.export(Plain().eval(), (torch.zeros(2, 3, 32, 32),)).module()


def quantized() -> nn.Module:
    """Return a network that torch has quantised dynamically."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecation, which is torch's to say
        model: nn.Module = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]  # torch's own
            Plain().eval(), {nn.Linear}, dtype=torch.qint8
        )
    return model


def allows_tf32() -> nn.Module:
    """Return a network, and allow TF32 for the whole process."""
    torch.set_float32_matmul_precision("medium")
    return Plain()


def ends_the_process() -> nn.Module:
    """Parse the command line as a script does, without the argument that it requires."""
    raise SystemExit(2)


class Viewing(Plain):
    """Flattens a convolution's result by `view`, which fails in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 16 * 16, 10)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 2048)."""
        found: torch.Tensor = self.body(image)
        return found.view(len(found), -1)


class Striding(Viewing):
    """Flattens by the strides, which gives another order in channels_last."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 2048)."""
        found: torch.Tensor = self.body(image)
        return found.as_strided((len(found), 8 * 16 * 16), (8 * 16 * 16, 1))
