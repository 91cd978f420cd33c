"""The model in memory: which it is, with how many caches, and how another replaces it."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.store.store import name_of
from conifer_cli import errors
from conifer_cli.acquire import RequestedModel, StreamOffer, ensure, judge, locate
from conifer_cli.fit.streaming import wording
from conifer_cli.fit.verdict import FitReport, FitRequest, reading
from conifer_cli.options import gpu_verdicts, open_store
from conifer_cli.serve.fields import BadRequest
from conifer_cli.serve.metrics import Metrics
from conifer_cli.session import checkpoint
from conifer_cli.session.prompt_cache import PromptStore, worth_storing
from conifer_cli.session.session import SLOW, is_raw, stored_format
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted
from engine.serving.scheduler import FAILURES, Scheduler

if TYPE_CHECKING:
    from engine.fit.streaming import Forecast, Plan
    from engine.model import Model
    from engine.nn.cache.state import CacheState
    from engine.serving.prefixes import Prefixes
    from engine.streaming import StoreStats

MAX_PREFIX_BYTES = 4 << 30
PREFIX_SHARE = 8  # stored prefixes take at most this part of the memory for experts


@dataclass(frozen=True)
class ServeOptions:
    """What to serve and where.

    api_key: empty if none is required. origins: for CORS. cache: keep prompts on the disk.
    """

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8321
    api_key: str = ""
    context: int | None = None
    parallel: int = 1
    origins: tuple[str, ...] = ()
    kv_type: str = "f16"
    kernels: str = "auto"
    isa: str | None = None
    force: bool = False
    stream: bool = False
    budget_bytes: int | None = None
    offline: bool = False
    yes: bool = False
    cache: bool = False

    @property
    def request(self) -> FitRequest:
        """What the verdict needs to know."""
        return FitRequest(
            self.context,
            self.kv_type,
            self.force,
            self.yes,
            self.kernels,
            self.offline,
            stream=self.stream,
            budget_bytes=self.budget_bytes,
        )


@dataclass(eq=False)
class ServedModel:
    """A loaded model with its caches. context: tokens per answer. lanes: answers at once.

    need_bytes: without the stored prefixes.
    """

    report: FitReport
    model: Model
    prefixes: Prefixes
    context: int
    lanes: int
    need_bytes: int
    loaded_s: float = field(default_factory=time.time)
    users: int = 0

    @property
    def name(self) -> str:
        """The model's name; of a path, the file's name."""
        reference, name = self.report.reference, self.report.name
        return Path(name).name if reference is not None and reference.path is not None else name

    @property
    def experts(self) -> StoreStats | None:
        """What its experts on the disk have cost so far; None if all are in memory."""
        store = self.model.expert_store
        return store.stats() if store is not None else None


class Host:
    """Holds at most one model. All methods but `load` run in the event loop's thread."""

    def __init__(self, options: ServeOptions) -> None:
        self.options, self.metrics = options, Metrics()
        self.scheduler = Scheduler(options.parallel)
        self.current: ServedModel | None = None
        self._last: RequestedModel | None = None  # the last one that could be loaded
        self._turn = asyncio.Lock()  # for a request's model, first come first served
        self._freed = asyncio.Condition()
        self._released: set[asyncio.Task[None]] = set()

    async def lease(self, name: str | None) -> ServedModel:
        """Return the requested model, loaded. Call `release` after its use.

        A server of one model ignores `name`. Another model waits until the loaded one is unused. If
        the last one did not fit, the one before it is loaded again for a request without a name.
        """
        async with self._turn:
            if self.options.model is None and name is not None:
                await self._switch(name)
            elif self.current is None and self._last is not None:
                await self._load(self._last)
            if self.current is None:
                raise BadRequest("the request names no model; /v1/models lists them", "model")
            self.current.users += 1
            return self.current

    def release(self, served: ServedModel) -> None:
        """End a lease."""
        served.users -= 1
        if not served.users:
            task = asyncio.ensure_future(self._tell())
            self._released.add(task)
            task.add_done_callback(self._released.discard)

    async def _tell(self) -> None:
        async with self._freed:
            self._freed.notify_all()

    async def _switch(self, name: str) -> None:
        target = await asyncio.to_thread(self.find, name)
        if self.current is not None and self.current.report.name == target.name:
            return
        async with self._freed:
            await self._freed.wait_for(lambda: self.current is None or not self.current.users)
        await self._load(target)

    async def _load(self, target: RequestedModel) -> None:
        failures = (*errors.known_exceptions(), *FAILURES)
        await asyncio.wrap_future(self.scheduler.call(lambda: self.load(target), failures))

    def find(self, name: str) -> RequestedModel:
        """Return a model on this machine by its name. Raises BadRequest."""
        known = available()
        if name not in known:
            names = ", ".join(sorted(set(known.values())))
            raise BadRequest(
                f"the model {name!r} is not on this machine; it has {names or 'none'}",
                "model",
                404,
                "model_not_found",
            )
        return locate(known[name])

    def load(self, target: RequestedModel, asks: bool = False) -> None:
        """Replace the loaded model. Runs in the scheduler's thread. Raises NoRoom.

        asks: whether a person may be asked if a model that does not fit shall stream.
        """
        from engine.model import load
        from engine.serving.prefixes import Prefixes
        from engine.text.sandbox import Sandbox

        self._unload()
        request = replace(self.options.request, asks=asks)
        named = target.name if self.options.model is not None else ""
        offer = StreamOffer(named, "serve", notes=False)
        report = ensure(target, judge(target, request), request, offer)
        plan = plan_lanes(report, self.options.parallel, self.options.force)
        if plan.streaming is not None:
            report = replace(report, streaming=plan.streaming)
            console.note(wording.note(report.name, plan.streaming))
        sandbox = Sandbox()
        if not is_raw(report):
            sandbox.start()
        with reading(target.name, target.reference):
            source = report.file or report.paths[0]
            model = load(
                *(source, self.options.kernels),
                sandbox=sandbox,
                isa=self.options.isa,
                gpu_verdicts=gpu_verdicts(),
                expert_bytes=report.expert_bytes,
            )
            model.tokenizer.prepare()
        if model.kernels.fallback_reason is not None:
            console.log(f"conifer: {SLOW.format(model.kernels.fallback_reason)}")
        context = report.verdict.context
        kv_type = self.options.kv_type
        disk = disk_for(report, model, kv_type) if self.options.cache else None
        prefixes = Prefixes(model, context, kv_type, plan.lanes, plan.prefix_bytes, disk)
        self.scheduler.parallel = plan.lanes
        if plan.lanes < self.options.parallel:
            console.log(
                f"conifer: memory for {counted(plan.lanes, 'answer')} at once, not "
                f"{self.options.parallel}, with a context of {counted(context, 'token')} each"
            )
        self.current = ServedModel(report, model, prefixes, context, plan.lanes, plan.need_bytes)
        self._last = target

    def _unload(self) -> None:
        if self.current is not None and (experts := self.current.experts) is not None:
            self.metrics.streamed(experts)
        self.current = None
        gc.collect()

    def close(self, timeout_s: float) -> None:
        """End all answers and the scheduler."""
        self.scheduler.close(timeout_s)


def disk_for(report: FitReport, model: Model, kv_type: str) -> StoredPrompts:
    """Return the disk's part of a model's cache."""
    identity, form = checkpoint.identity(report), stored_format(model, kv_type)
    return StoredPrompts(PromptStore(report.name, identity, form))


class StoredPrompts:
    """Prompts on the disk, which `run --cache` shares."""

    def __init__(self, store: PromptStore) -> None:
        self.store = store

    def find(self, tokens: list[int], above: int) -> CacheState | None:
        """Return the state that shares the longest prefix with `tokens`, if more than `above`."""
        path, shared = self.store.find(tokens)
        found: list[CacheState] = []
        if path is not None and shared > above:
            self.store.restore(path, found.append)
        return found[0] if found else None

    def keep(self, kept: CacheState) -> None:
        """Store a state, unless most of it is stored already."""
        if worth_storing(len(kept.tokens), self.store.find(kept.tokens)[1]):
            self.store.store(kept)


def available() -> dict[str, str]:
    """Return the models on this machine: each name that a request may use, and the full name."""
    names: dict[str, str] = {}
    for model in open_store().installed():
        full = name_of(model)
        names[full] = full
        if model.model_id is not None:
            names.setdefault(model.model_id, full)
    return names


@dataclass(frozen=True)
class LanePlan:
    """How the memory is divided. Sizes are in bytes. need_bytes: without prefix_bytes.

    streaming: what to expect if experts stay on the disk; those in memory get the rest.
    """

    lanes: int
    prefix_bytes: int
    need_bytes: int
    streaming: Forecast | None = None


def plan_lanes(report: FitReport, parallel: int, force: bool = False) -> LanePlan:
    """Divide the memory: as many caches of the whole context as fit, then stored prefixes."""
    from engine.fit.memory import MARGIN, Need, kind_of

    if report.streaming is not None:
        return _with_experts(report, report.streaming, parallel)
    verdict = report.verdict
    need, machine = verdict.need, verdict.machine

    def with_lanes(lanes: int) -> Need:
        kv_bytes = lanes * need.kv_bytes
        return Need(need.weights_bytes, kv_bytes, need.buffers_bytes, need.program_bytes)

    counts = range(parallel, 0, -1)
    fitting = (n for n in counts if kind_of(with_lanes(n), machine) != "too_large")
    lanes = parallel if force else next(fitting, 1)
    needed = with_lanes(lanes)
    left = verdict.budget_bytes - verdict.reserve_bytes - int(MARGIN * needed.total_bytes)
    prefix_bytes = max(0, min(left, MAX_PREFIX_BYTES))
    return LanePlan(lanes, prefix_bytes, needed.total_bytes)


def _with_experts(report: FitReport, found: Forecast, parallel: int) -> LanePlan:
    """Divide the memory of a model whose experts stay on the disk.

    Prefixes get the room of one more cache, or an eighth of the experts' memory if that is less:
    reading a prompt again means reading most experts again.
    """
    from engine.fit.memory import MARGIN
    from engine.fit.streaming import plan, replanned

    verdict, first = report.verdict, found.plan
    kv_bytes = verdict.need.kv_bytes

    def split(lanes: int, prefix_bytes: int = 0) -> Plan | None:
        more = int(MARGIN * (lanes - 1) * kv_bytes) + prefix_bytes
        resident = first.resident_bytes + more
        return plan(first.experts, resident, verdict.budget_bytes, verdict.reserve_bytes)

    lanes = next((n for n in range(parallel, 0, -1) if split(n)), 1)
    chosen = split(lanes) or first
    prefix_bytes = min(MAX_PREFIX_BYTES, kv_bytes, chosen.store_bytes // PREFIX_SHARE)
    if (with_prefixes := split(lanes, prefix_bytes)) is None:
        prefix_bytes = 0
    made = replace(with_prefixes or chosen, fits_context=first.fits_context)
    need_bytes = made.resident_bytes + made.store_bytes - prefix_bytes
    return LanePlan(lanes, prefix_bytes, need_bytes, replanned(found, made))


def model_card(name: str, served: ServedModel | None) -> dict[str, Any]:
    """Return a model's entry in /v1/models."""
    card: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "conifer"}
    if served is not None:
        total, active = served.report.parameters or (None, None)
        card |= {
            "created": int(served.loaded_s),
            "context_length": served.context,
            "max_context_length": served.report.supported_context,
            "parameters": total,
            "active_parameters": active,
            "loaded": True,
        }
    return card
