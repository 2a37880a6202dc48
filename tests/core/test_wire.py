"""Values that are sent to another process come out as they went in."""

import pickle
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core import errors
from vmcloner_core.drivers import BootRequest
from vmcloner_core.model import (
    AS_IT_COMES,
    CloneMode,
    CloneRequest,
    CloneSpec,
    Copying,
    DiskSnapshot,
    ImageSource,
    Labels,
    Network,
    Nic,
    NicSpec,
    Origin,
    Outcome,
    SnapshotAim,
    SnapshotLabels,
    State,
    Template,
    Volume,
)
from vmcloner_core.plan import (
    ClonePlan,
    CloneResult,
    OnFailure,
    Plan,
    ProgressEvent,
    Quota,
    Readiness,
    RunResult,
    Sizes,
    StepEvent,
    StepStatus,
)
from vmcloner_core.request import CreateRequest, TargetRequest
from vmcloner_core.steps import ACTIONS

ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.VmclonerError)
]
texts = st.text(max_size=20)
times = st.floats(0, 1e6)
counts = st.none() | st.integers(1, 1000)
fleets = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
sizes = st.integers(1, 2**40)
paths = st.from_regex(r"/[a-z]{1,9}", fullmatch=True).map(Path)
values = st.dictionaries(fleets, texts | st.integers(), max_size=3)
macs = st.integers(0, 2**24 - 1).map(
    lambda n: "52:54:00:" + ":".join(f"{byte:02x}" for byte in n.to_bytes(3, "big"))
)


@st.composite
def some_errors(draw, kinds=ERRORS):
    kind, hint = draw(st.sampled_from(kinds)), draw(st.none() | texts)
    if issubclass(kind, errors.PartialFailure):
        inner = [kind for kind in ERRORS if not issubclass(kind, errors.PartialFailure)]
        failures = draw(st.lists(st.tuples(fleets, some_errors(inner)), max_size=2))
        return kind(draw(texts), failures=failures, hint=hint)
    return kind(draw(texts), hint=hint)


labels = st.builds(
    Labels, fleet=fleets, index=st.integers(1, 99), template=fleets, run=texts, owner=texts,
    created=texts, storage=fleets, hypervisor=fleets, expires=st.none() | texts,
    boot=st.none() | fleets,
)  # fmt: skip
templates = st.builds(
    Template, name=fleets, image=st.builds(ImageSource, path=paths), values=values, memory=sizes
)
nics = st.tuples(st.builds(Nic, spec=st.builds(NicSpec), mac=macs))
origins = st.builds(
    Origin, template=fleets, pool=fleets, size=sizes, allocated=sizes, digest=texts,
    extents=st.none() | st.integers(0, 9),
)  # fmt: skip
copyings = st.builds(Copying, bandwidth=st.none() | sizes, verify=st.booleans())
requests = st.builds(
    CloneRequest, labels=labels, disk=st.integers(0, 9), origin=origins,
    mode=st.sampled_from(CloneMode), copying=copyings | st.just(AS_IT_COMES),
)  # fmt: skip
aims = st.builds(SnapshotAim, name=fleets.map(lambda name: name[:32].rstrip("-")))
kept = st.builds(
    DiskSnapshot,
    labels=st.builds(
        SnapshotLabels, labels=labels, name=st.just("x"), taken=texts, disk=sizes, disks=sizes
    ),
    pool=fleets,
    path=paths,
    size=sizes,
)
volumes = st.builds(Volume, name=fleets, pool=fleets, labels=labels, path=paths, size=sizes)
specs = st.builds(
    CloneSpec, labels=labels, template=templates, uuid=st.uuids(), nics=nics, values=values
)
waits = st.builds(Readiness, kind=st.just("running"), timeout=st.floats(1, 99))
clone_plans = st.builds(
    ClonePlan, labels=labels, steps=st.just(("clone", "define")),
    state=st.none() | st.sampled_from(State), volumes=st.tuples(volumes), wait=waits,
    kept=st.tuples(kept), spec=st.none() | specs,
)  # fmt: skip
plans = st.builds(
    Plan, action=st.sampled_from(sorted(ACTIONS)), run=texts, host=fleets,
    clones=st.tuples(clone_plans), order=st.just(("clone", "define")),
    template=st.none() | templates, copying=copyings, on_failure=st.sampled_from(OnFailure),
    min_ready=st.builds(Quota, count=counts), jobs=counts, space=sizes,
    snapshot=st.none() | aims,
)  # fmt: skip
boots = st.builds(
    BootRequest, labels=labels, template=templates, hypervisor=fleets, uuid=st.uuids(),
    volumes=st.tuples(volumes), nics=nics, values=values, folder=st.none() | paths,
    networks=st.none() | st.tuples(st.builds(Network, name=fleets, active=st.booleans())),
    dry_run=st.booleans(),
)  # fmt: skip
creates = st.builds(
    CreateRequest, fleet=fleets, template=fleets, count=counts, wait=st.none() | waits,
    values=st.dictionaries(st.integers(1, 99), values, max_size=2),
)  # fmt: skip
targets = st.sampled_from(sorted(ACTIONS)).flatmap(
    lambda action: st.builds(
        TargetRequest,
        action=st.just(action),
        targets=st.tuples(fleets),
        count=counts,
        sizes=st.just(Sizes(vcpus=2) if action == "set" else Sizes()),
        snapshot=aims if action.startswith("snapshot-") else st.none(),
    )
)
progress = st.builds(ProgressEvent, run=texts, what=texts, done=st.integers(), total=st.integers())


@given(requests | volumes | origins | plans | boots | creates | targets | progress)
def test_a_value_is_the_same(value):
    assert pickle.loads(pickle.dumps(value)) == value


def seen(error):
    """Return what is to be seen of an error, which compares by identity."""
    failures = [(name, seen(inner)) for name, inner in getattr(error, "failures", ())]
    return error and (type(error), error.message, error.hint, error.exit_code, failures)


@given(some_errors())
def test_an_error_is_the_same(error):
    assert seen(pickle.loads(pickle.dumps(error))) == seen(error)


@given(fleets, st.none() | some_errors(), volumes, st.booleans())
def test_an_outcome_is_the_same(key, error, value, changed):
    outcome = Outcome(key=key, error=error, value=value, changed=changed)
    again = pickle.loads(pickle.dumps(outcome))
    assert (again.key, again.value, again.changed) == (key, value, changed)
    assert seen(again.error) == seen(error)


@given(fleets, st.sampled_from(StepStatus), times, st.none() | some_errors())
def test_an_event_is_the_same(name, status, at, error):
    event = StepEvent(run="r", clone=name, step="clone", status=status, at=at, error=error)
    again = pickle.loads(pickle.dumps(event))
    assert (again.clone, again.status, again.at) == (name, status, at)
    assert seen(again.error) == seen(error)


@given(plans, fleets, st.none() | some_errors(), times)
def test_a_result_is_the_same(plan, name, error, seconds):
    clone = CloneResult(name=name, error=error, failed_step=None, seconds={"clone": seconds})
    result = RunResult(plan=plan, results=(clone,), seconds=seconds, error=error)
    again = pickle.loads(pickle.dumps(result))
    assert again.plan == plan
    assert [(c.name, c.seconds, seen(c.error)) for c in again.results] == [
        (name, {"clone": seconds}, seen(error))
    ]
    assert seen(again.error) == seen(error)
