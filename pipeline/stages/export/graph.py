"""Torch module → ONNX graph: torch's exporter, then its optimiser, each in every precision alike."""

from __future__ import annotations

import logging
import re
import string
import traceback
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import onnx
import torch
from onnx.inliner import inline_selected_functions
from onnxscript import ir, optimizer
from torch.fx import GraphModule, Interpreter

from model_artifacts.errors import ExportError, one_line, out_of_memory, shortened
from model_artifacts.sessions.arithmetic import call, strict_fp32, tensors, torch_batch
from model_artifacts.sessions.feeds.samples import Samples
from pipeline.adapters import onnx_graph, onnx_rewrites
from pipeline.adapters.onnx_graph import reason_of
from pipeline.stages.common.sizes.axes import INPUT, NO_AXES, Axes, dims_of, require_free_axes
from pipeline.stages.common.sizes.conditions import Conditions, conditions_of, noting_branches, quiet
from pipeline.stages.export.axes import require_named_axes
from pipeline.stages.export.translations import TRANSLATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.sessions.arithmetic import Result
    from model_artifacts.sessions.torch_model import Typed

OUTPUTS = ("logits",)
"""The names of the outputs of a classifier."""

_EXPORTER_OPSET = 18
"""Oldest opset that torch's exporter writes; older ones are converted from it."""

_BATCH_NORM = "BatchNormalization"

WITHOUT_BF16 = [("", name) for name in ("Celu", "HardSwish", "LpNormalization", "Mish")]
"""Operators (domain, name) that TensorRT's parser refuses in bfloat16, and that ONNX defines by others (onnx-tensorrt,
`onnxOpImporters.cpp`: "Only FLOAT, HALF or INT8 input is supported"). It takes the others in every type."""

_HIDDEN = "hidden"
"""The domain of nodes that the exporter's optimiser must not know."""
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_NEAR = 1e-4
"""The distance from a neutral number within which nodes are hidden: ten times the optimiser's tolerance (onnxscript's
`Constant` of patterns: 1e-5 of the number, or 1e-8)."""

_LARGE_BATCH = 1_000
"""Limits above are those of numbers of 32 bits for pixels, which torch may set, and no branch of a network."""

NOT_CONVERTIBLE = (
    onnx.version_converter.ConvertError,
    RuntimeError,  # the converter's own assertions
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)

_NAMED_LINE = re.compile(r'File "(.+?)", line (\d+), in forward\n +(.+)')
"""A line of a model in the messages of torch's exporter."""

_NAMED_OPERATOR = re.compile(r"(?:While executing|Error when translating node) .*?\[target=(.+?)\]")
"""An operator in the messages of torch.fx and of torch's exporter."""

_OTHER_OPERATORS = (
    "write this layer with other operators; PyTorch's own artifacts (eager, Torch-TensorRT) are built without the graph"
)

log = logging.getLogger(__name__)


class Exported(NamedTuple):
    """A graph, the number of batch-norms that were folded on the way to it, and the conditions of its trace."""

    model: onnx.ModelProto
    batch_norms: int
    conditions: Conditions = Conditions()


def to_onnx(
    model: Typed,
    inputs: tuple[int, int, int] | Samples,
    opset: int,
    outputs: tuple[str, ...] = OUTPUTS,
    axes: Axes = NO_AXES,
) -> Exported:
    """Export a model to a valid graph with folded constants and a dynamic batch axis.

    Args:
        model: the module, in evaluation mode.
        inputs: (channels, height, width) of an image, or samples of the inputs, whose names the graph has.
        opset: the operator set. The graph keeps the exporter's own, newer one if an operator has no older form.
        outputs: the names of the graph's outputs, in the model's order.
        axes: the other dynamic axes of the inputs, with their ranges.

    Raises:
        ExportError: torch cannot trace the model, its batch size or an axis is fixed, or the result is not valid ONNX.
    """
    with noting_branches() as asked:
        program = _trace(model, inputs, max(opset, _EXPORTER_OPSET), outputs, axes)
    _require_one_way(program)
    require_free_axes(program.exported_program, axes)
    conditions = conditions_of(program.exported_program, axes, asked)
    batch_norms = optimize(program.model, folds_batch_norms=model.dtype is torch.float32)
    _use_small_letters(program.model)
    exported = ir.to_proto(program.model)
    if model.dtype is torch.bfloat16:
        exported = inline_selected_functions(exported, WITHOUT_BF16, inline_schema_functions=True)
    for value in program.model.graph.initializers.values():
        value.const_value = None  # the optimiser's rules keep parts of the last graph, and with them all weights
    onnx_graph.forget_origin(exported)
    onnx_rewrites.count_no_padding(exported.graph)
    try:
        onnx_graph.check(exported)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise _uncomputable(model, inputs) or ExportError(
            "the exported graph is not valid ONNX",
            where=_dtype_name(model),
            got=one_line(exc),
            fix=_OTHER_OPERATORS,
        ) from exc
    _require_names(exported.graph, outputs)
    _require_dynamic_batch(exported.graph)
    require_named_axes(exported.graph, axes)
    if onnx_graph.opset_of(exported) > opset:
        try:
            onnx_graph.convert(exported, opset)
        except NOT_CONVERTIBLE as exc:
            newer = onnx_graph.opset_of(exported)
            log.info("the graph stays at opset %d, which TensorRT 8.6 cannot read: %s", newer, reason_of(exc))
    onnx_graph.use_oldest_ir(exported)
    return Exported(exported, batch_norms, conditions)


def optimize(model: ir.Model, *, folds_batch_norms: bool) -> int:
    """Run the exporter's optimiser on a graph in place, and return the number of batch-norms that it folded.

    TensorRT takes axes and shapes as constants only, so that the optimiser always runs. It folds a batch-norm into the
    layer before it, if that layer and its weights have no other use. In a narrow type this would round the
    batch-norm's factors and the product. Batch-norms are therefore hidden from it, behind a domain that it does not
    know.

    It takes a number near 0 or 1 for that, and drops `+ 1e-12` in front of a division. Such nodes are hidden, too, as
    soon as their numbers are known.

    Args:
        model: the exporter's graph.
        folds_batch_norms: True for graphs in FP32.
    """
    before = len(_batch_norms(model))
    for node in () if folds_batch_norms else _batch_norms(model):
        node.domain = _HIDDEN
    optimizer.fold_constants(model, onnx_shape_inference=True)
    for node in model.graph.all_nodes():
        if _nearly_does_nothing(node):
            node.domain = _HIDDEN
    optimizer.optimize(model)
    for node in model.graph.all_nodes():
        if node.domain == _HIDDEN:
            node.domain = ""
    model.graph.opset_imports.pop(_HIDDEN, None)
    return before - len(_batch_norms(model))


def _nearly_does_nothing(node: ir.Node) -> bool:
    """Return True for a sum or product with a number that is near the neutral one, and is another."""
    if node.domain or node.op_type not in _NEUTRAL:
        return False
    neutral = _NEUTRAL[node.op_type]
    for value in node.inputs:
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        if tensor is not None and tensor.size == 1 and 0 < abs(float(tensor.numpy().item()) - neutral) <= _NEAR:
            return True
    return False


def _use_small_letters(model: ir.Model) -> None:
    """Rename the axes of Einsum: ONNX allows all letters, and TensorRT's parser small ones only."""
    for node in model.graph.all_nodes():
        if node.op_type == "Einsum":
            equation = node.attributes["equation"].as_string()
            names = dict(zip(dict.fromkeys(filter(str.isalpha, equation)), string.ascii_lowercase, strict=False))
            renamed = "".join(names.get(letter, letter) for letter in equation)
            node.attributes["equation"] = ir.AttrString("equation", renamed)


def _batch_norms(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == _BATCH_NORM]


def _trace(
    model: Typed,
    inputs: tuple[int, int, int] | Samples,
    opset: int,
    outputs: tuple[str, ...],
    axes: Axes,
) -> torch.onnx.ONNXProgram:
    for noisy in ("torch.onnx", "torch.fx.experimental.symbolic_shapes"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet(), _promoting_weights():
            program = torch.onnx.export(
                model,
                tensors(_two(inputs)),
                dynamo=True,
                opset_version=opset,
                input_names=[*_names(inputs)],
                output_names=[*outputs],
                dynamic_shapes=_dynamic(inputs, batch, axes),
                custom_translation_table=TRANSLATIONS,
                optimize=False,
                verbose=False,
            )
    except Exception as exc:
        raise _explained(exc, model, inputs) from exc
    if program is None:
        raise ExportError("torch's exporter returned nothing")
    return program


def _names(inputs: tuple[int, int, int] | Samples) -> tuple[str, ...]:
    return inputs.names if isinstance(inputs, Samples) else (INPUT,)


def _two(inputs: tuple[int, int, int] | Samples) -> Result:
    return torch_batch(inputs.batch(2)) if isinstance(inputs, Samples) else torch.zeros(2, *inputs)


def _dynamic(inputs: tuple[int, int, int] | Samples, batch: torch.export.Dim, axes: Axes) -> dict[str, Any]:
    """Return the dynamic axes of the parameters of `Typed.forward`, or of `TypedInputs.forward`."""
    dims = tuple({0: batch} | more for more in dims_of(axes, len(_names(inputs))))
    return {INPUT: dims[0]} if len(dims) == 1 else {"inputs": dims}


@contextmanager
def _promoting_weights() -> Iterator[None]:
    """Let torch's exporter promote types of weights beside Python's numbers, such as `self.gain * 0.5` in FP16.

    Its pass runs the operator once more, and takes the first call that it sees for the operator's. With a real weight
    beside the number's fake tensor, the first call asks for a device instead (torch 2.11, `type_promotion.py`).
    """
    try:
        type_promotion = import_module("torch.onnx._internal.fx.passes.type_promotion")
        original = type_promotion._OpTraceDispatchMode  # noqa: SLF001 - there is no public name
    except (ImportError, AttributeError):  # another version of torch, whose pass works otherwise
        yield
        return

    class Tracing(original):  # type: ignore[misc, valid-type]  # a private class of torch, without a public counterpart
        def __torch_dispatch__(self, *call: Any, **more: Any) -> Any:  # noqa: ANN401 - torch's own signature
            result = super().__torch_dispatch__(*call, **more)
            self.traced_ops: list[Any] = [op for op in self.traced_ops if op.namespace != "prim"]
            return result

    with mock.patch.object(type_promotion, "_OpTraceDispatchMode", Tracing):
        yield


def _explained(exc: Exception, model: Typed, inputs: tuple[int, int, int] | Samples) -> Exception:
    """Return the error of a failed export: too little memory, a type that an operator lacks, or no trace."""
    cause = exc.__cause__ or exc
    if memory := out_of_memory(cause):
        return memory
    return _uncomputable(model, inputs) or ExportError(
        "torch cannot export the model to ONNX",
        where=_line_of_model(cause),
        expected="a model that torch.export can trace: no control flow that depends on the values of tensors, and "
        "operators that torch.onnx knows in this type",
        got=shortened(next((line for line in str(cause).splitlines() if line.strip()), type(exc).__name__)),
        fix=_OTHER_OPERATORS,
    )


def _uncomputable(model: Typed, inputs: tuple[int, int, int] | Samples) -> ExportError | None:
    """Return the error of a model that PyTorch itself cannot run in its narrow type; None if it runs, or in FP32."""
    failed = None if model.dtype is torch.float32 else _fails(model, inputs)
    if failed is None:
        return None
    name = _dtype_name(model)
    return ExportError(
        f"the model does not compute in {name}",
        where=_line_of_model(failed),
        expected=f"operators that take {name}",
        got=one_line(failed),
        fix="take this precision out of `precisions` in pipeline.yaml, or compute this line in float32 in the "
        "model: `.float()` before it, and `.to(x.dtype)` behind it",
    )


def _dtype_name(model: Typed) -> str:
    return str(model.dtype).removeprefix("torch.")


def _fails(model: Typed, inputs: tuple[int, int, int] | Samples) -> Exception | None:
    """Return the exception that the model itself raises for two images; None if it runs."""
    images = _two(inputs)
    try:
        with quiet(), strict_fp32():
            if isinstance(model.body, GraphModule):
                narrow = [item.to(model.dtype) if item.is_floating_point() else item for item in tensors(images)]
                Interpreter(model.body).run(*narrow)  # it names the operator, unlike the module
            else:
                call(model, images)
    except Exception as exc:  # noqa: BLE001 - the model's own code may raise any type
        return exc
    return None


def _line_of_model(exc: BaseException) -> str:
    """Return the model's last line that an exception passed or names, or the operator; empty without either."""
    libraries = Path(torch.__file__).parent
    passed = [
        (frame.filename, frame.lineno, frame.line)
        for frame in traceback.extract_tb(exc.__traceback__)
        if frame.name == "forward"
    ]
    for name, line, code in reversed([*_NAMED_LINE.findall(str(exc)), *passed]):
        file = Path(name)
        if file.is_file() and libraries not in file.parents and file.name != "torch_model.py":
            return f"{file.name}:{line}: {code}"
    operator = _NAMED_OPERATOR.search(str(exc))
    if operator is None:
        return ""
    overload = operator[1].startswith("torch.ops.")  # such as torch.ops.aten.mul.Tensor
    return f"the operator {operator[1].split('.')[-2 if overload else -1]}"


def _require_one_way(program: torch.onnx.ONNXProgram) -> None:
    """Refuse a network that branches on a large batch size: its graph would hold the way of small batches alone.

    Where torch.export sees such a branch, the exporter of torch 2.11 narrows the range of the batch size in silence.
    """
    exported: Any = program.exported_program
    names = set(exported.graph_signature.user_inputs)
    given = next(node for node in exported.graph.nodes if node.op == "placeholder" and node.name in names)
    size = given.meta["val"].shape[0]
    limits = exported.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
    if limits is not None and limits.upper <= _LARGE_BATCH:
        raise ExportError(
            "what the network computes depends on the batch size",
            expected="the same way through forward for a batch of any size",
            got=f"another one for more than {limits.upper} images",
            fix="take the branch on `x.size(0)` or `x.shape[0]` out of forward",
        )


def _require_names(graph: onnx.GraphProto, outputs: tuple[str, ...]) -> None:
    """Refuse a graph whose outputs are not those of the network: the exporter gives two of the same tensor one name."""
    found = tuple(value.name for value in graph.output)
    if found != outputs:
        raise ExportError(
            "the graph's outputs are not those of the network",
            expected=", ".join(outputs),
            got=", ".join(found),
            fix="return each tensor once",
        )


def _require_dynamic_batch(graph: onnx.GraphProto) -> None:
    if not all(value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)):
        raise ExportError(
            "the model runs with one batch size only",
            expected="a batch of any size as the first axis of input and output",
            got=f"a fixed batch of {graph.input[0].type.tensor_type.shape.dim[0].dim_value} images",
            fix="write `x.shape[0]` for `len(x)` and for a number, and one operator for a loop over images or `chunk`",
        )
