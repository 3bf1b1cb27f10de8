"""Export the classifiers of torchvision and timm, and give each graph to TensorRT-RTX's parser: the table of models.md.

python benchmarks/zoo.py              all networks that the results lack, each in a process of its own; no GPU needed
python benchmarks/zoo.py --only vit   the networks whose name matches, anew
python benchmarks/zoo.py --table      write the table to docs/models.md, from the results

Weights are random: a graph depends on the architecture alone. timm's networks need timm: it is no dependency of this
project, so install it elsewhere and put that folder on PYTHONPATH (`pip install --no-deps --target DIR timm
huggingface_hub`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from model_artifacts.errors import ArtifactError
from model_artifacts.host.environment import version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.planning.project import Project

RESULTS = Path("artifacts/zoo.json")
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"
LIMIT_SECONDS = 1200
"""Longest time of one network."""
PRECISIONS = ("fp32", "fp16", "int8")
BUILT = {"torchvision resnet18", "torchvision densenet121", "torchvision vit_b_16", "timm levit_128s"}
"""Networks of which engines are built, in FP32 and FP16. TensorRT-RTX builds them for a GPU that is not there."""


class Network(NamedTuple):
    """A network of a library."""

    library: str
    name: str
    size: int
    """Height and width of its input."""
    options: str = ""
    """Further keyword arguments of its builder, as Python code."""

    @property
    def title(self) -> str:
        """The library and the name."""
        return f"{self.library} {self.name}"


TORCHVISION = (
    Network("torchvision", "alexnet", 64),
    Network("torchvision", "convnext_tiny", 64),
    Network("torchvision", "densenet121", 64),
    Network("torchvision", "densenet161", 64),
    Network("torchvision", "densenet169", 64),
    Network("torchvision", "densenet201", 64),
    Network("torchvision", "efficientnet_b0", 64),
    Network("torchvision", "efficientnet_v2_s", 64),
    Network("torchvision", "googlenet", 64, "aux_logits=False, init_weights=False"),
    Network("torchvision", "inception_v3", 96, "aux_logits=False, init_weights=False"),
    Network("torchvision", "maxvit_t", 224),
    Network("torchvision", "mnasnet0_5", 64),
    Network("torchvision", "mnasnet1_3", 64),
    Network("torchvision", "mobilenet_v2", 64),
    Network("torchvision", "mobilenet_v3_large", 64),
    Network("torchvision", "mobilenet_v3_small", 64),
    Network("torchvision", "regnet_x_400mf", 64),
    Network("torchvision", "regnet_y_400mf", 64),
    Network("torchvision", "resnet18", 64),
    Network("torchvision", "resnet50", 64),
    Network("torchvision", "resnext50_32x4d", 64),
    Network("torchvision", "shufflenet_v2_x0_5", 64),
    Network("torchvision", "shufflenet_v2_x1_0", 64),
    Network("torchvision", "squeezenet1_0", 64),
    Network("torchvision", "squeezenet1_1", 64),
    Network("torchvision", "swin_t", 64),
    Network("torchvision", "swin_v2_t", 64),
    Network("torchvision", "vgg11", 64),
    Network("torchvision", "vgg11_bn", 64),
    Network("torchvision", "vit_b_16", 64, "image_size=64"),
    Network("torchvision", "vit_b_32", 64, "image_size=64"),
    Network("torchvision", "wide_resnet50_2", 64),
)
TIMM = (
    Network("timm", "beit_base_patch16_224", 224),
    Network("timm", "cait_xxs24_224", 224),
    Network("timm", "coat_tiny", 224),
    Network("timm", "coatnet_nano_rw_224", 224),
    Network("timm", "convit_tiny", 224),
    Network("timm", "convmixer_768_32", 64),
    Network("timm", "convnextv2_atto", 64),
    Network("timm", "crossvit_9_240", 240),
    Network("timm", "cspresnet50", 64),
    Network("timm", "darknet53", 64),
    Network("timm", "davit_tiny", 224),
    Network("timm", "deit_tiny_patch16_224", 224),
    Network("timm", "dla34", 64),
    Network("timm", "dpn68", 64),
    Network("timm", "eca_nfnet_l0", 64),
    Network("timm", "edgenext_xx_small", 64),
    Network("timm", "efficientformer_l1", 224),
    Network("timm", "efficientnet_lite0", 64),
    Network("timm", "efficientvit_b0", 64),
    Network("timm", "fastvit_t8", 64),
    Network("timm", "focalnet_tiny_srf", 64),
    Network("timm", "gernet_s", 64),
    Network("timm", "ghostnet_100", 64),
    Network("timm", "hardcorenas_a", 64),
    Network("timm", "hrnet_w18_small", 64),
    Network("timm", "inception_next_tiny", 64),
    Network("timm", "lcnet_050", 64),
    Network("timm", "levit_128s", 224),
    Network("timm", "maxvit_rmlp_nano_rw_256", 256),
    Network("timm", "mixer_s32_224", 224),
    Network("timm", "mobilenetv4_conv_small", 64),
    Network("timm", "mobileone_s0", 64),
    Network("timm", "mobilevit_xxs", 64),
    Network("timm", "mobilevitv2_050", 64),
    Network("timm", "pit_ti_224", 224),
    Network("timm", "poolformer_s12", 64),
    Network("timm", "pvt_v2_b0", 64),
    Network("timm", "regnetz_040", 64),
    Network("timm", "repvgg_a0", 64),
    Network("timm", "res2net50_26w_4s", 64),
    Network("timm", "resmlp_12_224", 224),
    Network("timm", "resnest14d", 64),
    Network("timm", "resnetv2_50", 64),
    Network("timm", "rexnet_100", 64),
    Network("timm", "selecsls42", 64),
    Network("timm", "seresnet18", 64),
    Network("timm", "swin_tiny_patch4_window7_224", 224),
    Network("timm", "tf_mixnet_s", 64),
    Network("timm", "tiny_vit_5m_224", 224),
    Network("timm", "tinynet_e", 64),
    Network("timm", "twins_svt_small", 224),
    Network("timm", "vgg11_bn", 64),
    Network("timm", "vit_tiny_patch16_224", 224),
    Network("timm", "volo_d1_224", 224),
    Network("timm", "vovnet39a", 64),
    Network("timm", "xception41", 96),
    Network("timm", "xcit_nano_12_p16_224", 224),
)

MODEL = """
from {library} import {builder} as build


def make():
    return build({name!r}{options})
"""
CONFIGURATION = """
model: {{name: network, factory: "model:make", weights: factory}}
preprocessing: {{resize: {size}, crop: {size}, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
data: {{images: photographs, calibration: 4, validation: 2}}
precisions: [fp32, fp16, int8]
profiles: [1]
workspaces: [256MiB]
benchmark: {{batches: [1]}}
"""


class Graph(NamedTuple):
    """The fate of one graph."""

    outcome: str
    """`parsed`, `engine`, or the first line of the reason."""
    detail: str = ""
    """The whole message of a failure."""
    opset: int = 0
    nodes: int = 0
    folded: int = 0
    """Batch-norms folded into other layers."""
    left: int = 0
    """Batch-norms in the graph."""


def examine(network: Network) -> None:
    """Write a small project in the current folder, run its steps, and print one JSON object for each precision."""
    options = f", {network.options}" if network.options else ""
    builder = {"torchvision": "models.get_model", "timm": "create_model"}[network.library]
    module, _, function = f"{network.library}.{builder}".rpartition(".")
    Path("model.py").write_text(
        MODEL.format(library=module, builder=function, name=network.name, options=options), encoding="utf-8"
    )
    Path("pipeline.yaml").write_text(CONFIGURATION.format(size=network.size), encoding="utf-8")
    sys.path.insert(0, "")
    from pipeline.planning.project import Project  # noqa: PLC0415 - imports wait until the folder is made
    from pipeline.stages import STAGES  # noqa: PLC0415 - the same
    from pipeline.stages.common.model import restore_model  # noqa: PLC0415 - the same
    from pipeline.stages.data.stage import make_data  # noqa: PLC0415 - the same
    from pipeline.stages.source.stage import make_source  # noqa: PLC0415 - the same

    project = Project.load(Path("pipeline.yaml"), STAGES)
    make_source(project)
    make_data(project, restore_model(project))
    for precision in PRECISIONS:
        began = time.perf_counter()
        try:
            graph = _graph(project, precision, builds=network.title in BUILT and precision != "int8")
        except ArtifactError as exc:
            graph = Graph(exc.what, str(exc))
        print(json.dumps({precision: {**graph._asdict(), "seconds": round(time.perf_counter() - began, 1)}}))
        sys.stdout.flush()


def _graph(project: Project, precision: str, *, builds: bool) -> Graph:
    import onnx  # noqa: PLC0415 - imports wait until the folder is made

    from model_artifacts.records import Graph as Kind  # noqa: PLC0415 - the same
    from pipeline.stages.common.model import restore_model  # noqa: PLC0415 - the same
    from pipeline.stages.export.stage import make_onnx  # noqa: PLC0415 - the same
    from pipeline.stages.quantize.stage import make_quantized  # noqa: PLC0415 - the same

    kind = Kind(precision)
    record = make_quantized(project, kind) if kind is Kind.INT8 else make_onnx(project, restore_model(project), kind)
    file = project.file(record.file)
    nodes = onnx.load(file).graph.node
    _parse(file, precision, builds=builds)
    left = sum(node.op_type == "BatchNormalization" for node in nodes)
    return Graph("engine" if builds else "parsed", "", record.opset, len(nodes), record.folded_batch_norms, left)


def _parse(graph: Path, precision: str, *, builds: bool) -> None:
    """Give a graph to TensorRT-RTX's parser, or to its builder for GPUs of compute capability 8.9.

    Raises:
        ArtifactError: TensorRT-RTX refuses it.
    """
    from model_artifacts.records import BatchRange, EngineFlavour, Precision  # noqa: PLC0415 - imports wait
    from model_artifacts.tensorrt.flavour import BuildLog, load_flavour, make_logger  # noqa: PLC0415 - the same
    from pipeline.adapters.tensorrt_builder import EngineRequest, build_engine, parse  # noqa: PLC0415 - the same
    from pipeline.config.tensorrt import TensorRTConfig  # noqa: PLC0415 - the same

    flavour = load_flavour(EngineFlavour.TENSORRT_RTX)
    if not builds:
        logger = make_logger(flavour.module, BuildLog())
        parse(flavour, flavour.module.Builder(logger), logger, graph)
        return
    request = EngineRequest(
        onnx=graph,
        precision=Precision(precision),
        profile=BatchRange(min=1, opt=1, max=4),
        workspace_bytes=2**28,
        compute_capabilities=(89,),
        gpu=None,
        settings=TensorRTConfig(),
    )
    build_engine(flavour, request, BuildLog())


def run(network: Network) -> dict[str, object]:
    """Examine a network in a process of its own, and return its graphs by precision."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--examine", network.title]
        try:
            done = subprocess.run(  # noqa: S603 - this script itself
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"failure": f"it took longer than {LIMIT_SECONDS} s"}
    graphs: dict[str, object] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            graphs |= json.loads(line)
    if done.returncode:
        graphs["failure"] = " ".join(done.stderr.strip().splitlines()[-1:]) or f"exit status {done.returncode}"
    return graphs


def table(results: dict[str, dict[str, dict[str, object]]]) -> Iterator[str]:
    """Yield the lines of the page's table, and a summary above it."""
    libraries = {"torchvision": version("torchvision"), "timm": version("timm")}
    shown = [network for network in (*TORCHVISION, *TIMM) if network.title in results]
    whole = [
        network
        for network in shown
        if all(results[network.title].get(name, {}).get("outcome") in {"parsed", "engine"} for name in PRECISIONS)
    ]
    versions = ", ".join(f"{name} {number}" for name, number in libraries.items() if number != "absent")
    yield f"{len(whole)} of {len(shown)} networks have graphs in all three precisions that the parser takes: torch"
    yield f"{version('torch')}, {versions}, tensorrt-rtx {version('tensorrt-rtx')}, images of the height given."
    yield ""
    yield "| network | image | fp32 | fp16 | int8 | opset | nodes | batch-norms folded, left |"
    yield "|---|---|---|---|---|---|---|---|"
    for network in shown:
        graphs = results[network.title]
        cells = [str(graphs.get(name, {}).get("outcome", "")) for name in PRECISIONS]
        first = graphs.get("fp32", {})
        if first.get("nodes"):
            cells += [f"{first['opset']}", f"{first['nodes']}", f"{first['folded']}, {first['left']}"]
        else:  # int8 needs the fp32 graph
            cells = [str(graphs.get("failure", cells[0])), cells[1], "", "", "", ""]
        yield f"| {network.title} | {network.size} | {' | '.join(cells)} |"


def write_page(results: dict[str, dict[str, dict[str, object]]]) -> None:
    """Replace the table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(table(results))}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Run the networks that are asked for, one after the other, and write each result at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table, run nothing")
    parser.add_argument("--examine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    networks = [*TORCHVISION, *(TIMM if version("timm") != "absent" else ())]
    networks.sort(key=lambda network: network.size)  # the quick ones first
    if options.examine:
        examine(next(network for network in networks if network.title == options.examine))
        return 0
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else {}
    if options.table:
        write_page(results)
        return 0
    console, failed = Console(), 0
    for network in networks:
        if not re.search(options.only, network.title) or (network.title in results and not options.only):
            continue
        results[network.title] = run(network)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
        outcomes = {
            name: graph if name == "failure" else f"{graph['outcome']} in {graph['seconds']} s"
            for name, graph in results[network.title].items()
        }
        failed += "failure" in outcomes
        console.print(f"{network.title}: {outcomes}", soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
