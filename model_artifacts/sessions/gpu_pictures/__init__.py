"""Pictures → pixels in the memory of a device, for hosts whose processor is too slow to decode them."""

from model_artifacts.sessions.gpu_pictures.torch_pictures import TorchPictures, decoder

__all__ = ["TorchPictures", "decoder"]
