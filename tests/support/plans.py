"""Plans of a small configuration, for hosts and farms that need not exist."""

from __future__ import annotations

from hypothesis import strategies as st

from model_artifacts.records import Backend, Precision, Variant
from pipeline.config.settings import Config
from pipeline.planning.plan import Plan
from pipeline.planning.schedule import Schedule
from pipeline.stages import STAGES


def config_of(**values: object) -> Config:
    """Return a configuration of one precision, one batch size and one workspace, with these changes."""
    document = {"model": {"name": "m"}, "profiles": [1], "workspaces": ["1GiB"], "precisions": ["fp32"], **values}
    return Config.model_validate(document)


def plan_of(**values: object) -> Plan:
    """Return the plan of such a configuration on this host."""
    return Plan(config_of(**values))


def engines_of(plan: Plan) -> list[Variant]:
    """Return a plan's engines, in order."""
    return [variant for variant in plan.variants if variant.backend is Backend.TENSORRT]


def schedule_of(plan: Plan) -> Schedule:
    """Return the schedule of a plan, with every stage."""
    return Schedule(plan, STAGES)


def commands_of(plan: Plan, stage: str) -> list[str]:
    """Return the subjects of a stage, in order."""
    return [step.subject for step in schedule_of(plan).of(stage)]


PLANS = st.builds(
    plan_of,
    precisions=st.lists(st.sampled_from([name.value for name in Precision]), min_size=1, unique=True),
    profiles=st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True),
    workspaces=st.lists(st.integers(1, 64).map("{}MiB".format), min_size=1, max_size=3, unique=True),
)


def farm_plan(*targets: dict[str, object], **values: object) -> Config:
    """Return a configuration whose engines are built on a farm of these targets."""
    return config_of(executor="ray", farm={"targets": targets}, **values)
