"""TensorRT for deployments: flavours, runtime, inspector and refitter, without a builder."""
