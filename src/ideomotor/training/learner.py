"""The learner: one objective, its optimizer, and one update."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ideomotor.training.config import config_to_json
from ideomotor.training.loss_scale import MOST_SKIPPED, LossScale
from ideomotor.training.optim import OptimConfig, WeightAverage, build_optimizer, learning_rate
from ideomotor.training.processes import Processes
from ideomotor.types import Batch, Borrowed, Losses


class LearnerState(NamedTuple):
    """All that a learner needs to go on: tensors by name, and JSON values (step and what ``identity`` gives)."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def seed_of(seed: int, *words: str | int) -> int:
    """Returns a 63-bit seed that is a pure function of the run's seed and ``words``."""
    text = "/".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Learner:
    """Moves the weights of one objective.

    The objective is an ``nn.Module`` whose ``forward(batch)`` returns ``Losses``. It is in train mode in an update and
    in eval mode outside of it; what it holds as ``Borrowed`` is in eval mode throughout. Made by ``Run.learner``.

    ``step`` counts its updates, of which ``steps`` are planned; the run's step ``start`` is the first that has one.
    """

    def __init__(
        self,
        objective: nn.Module,
        config: OptimConfig,
        steps: int,
        *,
        name: str | None = None,
        seed: int = 0,
        processes: Processes | None = None,
        start: int = 0,
    ) -> None:
        if steps < 1 or start < 0:
            raise ValueError(f"steps is {steps}, start {start}; a learner needs at least 1 for its schedule, from 0 on")
        self.name = name or type(objective).__name__
        self.objective, self.config, self.steps, self.seed, self.step = objective, config, steps, seed, 0
        self.start = start
        self.processes = processes or Processes(device="cpu")
        self.device = self.processes.device
        objective.to(self.device)
        self.borrowed = list(_borrowed(objective, frozenset(id(part) for part in objective.modules())))
        for module in self.borrowed:
            module.to(self.device)
        self.optimizer = build_optimizer(objective, config)
        self.loss_scale = LossScale(self.device, config.fp16)
        self.average = None if config.ema is None else WeightAverage(objective, config.ema)
        self._call = self.processes.wrap(objective)
        self._set_modes(training=False)

    def update(self, batch: Batch) -> dict[str, float]:
        """Moves the weights by one batch and returns ``"name/term"``: ``loss``, the terms, ``grad_norm`` and ``lr``.

        The global random state inside is a pure function of (seed, name, step, rank) and is given back unchanged.
        Under fp16 there are ``loss_scale`` and ``skipped`` too; a step whose gradients overflow is 1 of these, moves
        nothing but the step, and has no ``grad_norm``.

        Raises:
            TypeError: the objective did not return ``Losses`` with an fp32 scalar.
            FloatingPointError: a loss or the gradient is not finite; no weight has moved. Under fp16: a loss is not, or
                the gradients of 20 steps in a row.
        """
        rate = learning_rate(self.config, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._set_modes(training=True)
        try:
            terms = self._gradients(batch.to(self.device, non_blocking=True))
            self.loss_scale.unscale(self.optimizer)
            weights = [weight for weight in self.objective.parameters() if weight.grad is not None]
            norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
            metrics = self._checked(terms | {"grad_norm": norm})
            moved = math.isfinite(metrics["grad_norm"])
            if moved and self.config.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(weights, self.config.clip_norm, norm)
            metrics |= self.loss_scale.step(self.optimizer, moved)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self._set_modes(training=False)
        if not moved:
            self._skip(metrics)
        elif self.average is not None:
            self.average.update(self.objective, self.step - self.loss_scale.skipped)
        self.step += 1
        return {f"{self.name}/{term}": value for term, value in (metrics | {"lr": rate}).items()}

    def validate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Returns ``"name/validation_loss"``, the mean loss of the batches; no weight or random state is changed.

        In eval mode, with the averaged weights where there are some, under the same noise each time it is called.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        total = 0.0
        with torch.no_grad(), self.averaged(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed_of(self.seed, self.name, "validation"))
            for batch in batches:
                with self.config.autocast(self.device):
                    total += float(self.objective(batch.to(self.device)).total)
        return {f"{self.name}/validation_loss": total / len(batches)}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the objective holds its averaged weights (where ``config.ema`` keeps them); afterwards its own."""
        with nullcontext() if self.average is None else self.average.swapped(self.objective):
            yield

    def state(self) -> LearnerState:
        """Returns weights, optimizer state, averaged weights and step. The tensors are live: save or copy them."""
        tensors = {f"weights.{name}": value.detach() for name, value in self.objective.state_dict().items()}
        for name, weight in self.objective.named_parameters():
            for key, value in self.optimizer.state.get(weight, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.tensors.items()}
        tensors |= {f"loss_scale.{name}": value for name, value in self.loss_scale.tensors().items()}
        return LearnerState(tensors, {"step": self.step, **self.identity()})

    def identity(self) -> dict[str, Any]:
        """Returns what a resumed run must have the same: the objective's class, the config, the schedule's steps."""
        same = {"objective": type(self.objective).__name__, "steps": self.steps, "optim": config_to_json(self.config)}
        return same | ({"start": self.start} if self.start else {})  # states of before there was a start have none

    def load_state(self, state: LearnerState) -> None:
        """Goes on from ``state``.

        Raises:
            ValueError: a tensor is missing, left over, or of another shape; the message names it.
        """
        parts = {part: _under(state.tensors, part) for part in ("weights", "optimizer", "average")}
        check_tensors(self.objective.state_dict(), parts["weights"], f"the state of learner {self.name!r}")
        self.objective.load_state_dict(parts["weights"])
        self._load_optimizer(parts["optimizer"])
        if self.average is not None:
            check_tensors(self.average.tensors, parts["average"], f"the averaged weights of learner {self.name!r}")
            self.average.load(parts["average"])
        self.loss_scale.load(_under(state.tensors, "loss_scale"))
        self.step = int(state.values["step"])

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Runs forward and backward; returns the loss and its terms, averaged over the parts of the batch."""
        sums: dict[str, Tensor] = {}
        parts = _split(batch, self.config.accumulate)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed_of(self.seed, self.name, self.step, self.processes.rank))
            for i, part in enumerate(parts):
                share = len(part) / len(batch)
                last = i == len(parts) - 1
                with nullcontext() if last else self.processes.without_sync(self._call):
                    with self.config.autocast(self.device):
                        losses = self._losses(self._call(part))
                    self.loss_scale.scaled(losses.total * share).backward()
                for term, value in {"loss": losses.total.detach(), **losses.terms}.items():
                    sums[term] = sums.get(term, 0.0) + value.detach().float() * share
        return sums

    def _losses(self, losses: Any) -> Losses:
        name = type(self.objective).__name__
        if not isinstance(losses, Losses):
            raise TypeError(f"{name} returned a {type(losses).__name__}; wanted ideomotor.Losses(total=..., terms=...)")
        total = losses.total
        if total.shape != () or total.dtype != torch.float32:
            raise TypeError(
                f"{name} returned a total of {total.dtype} with shape {tuple(total.shape)}; wanted an fp32 scalar: "
                "under autocast call .float() on what enters the loss, and .mean() on the result"
            )
        if not total.requires_grad:
            raise TypeError(f"{name} returned a total without gradient: it does not depend on the weights it owns")
        return losses

    def _checked(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Brings all numbers to the CPU in one transfer, and stops at the first that is not finite.

        Gradients that overflow in fp16 pass, where the loss was finite in every process.
        """
        values = torch.stack([value.to(self.device, torch.float32) for value in terms.values()]).tolist()
        metrics = dict(zip(terms, values, strict=True))
        broken = {term: value for term, value in metrics.items() if not math.isfinite(value)}
        # Gradients are shared, so all processes come to this question, or none.
        overflow = self.config.fp16 and "grad_norm" in broken
        if broken and not (overflow and not self.processes.any(len(broken) > 1)):
            way_out = "take bf16 in place of fp16" if self.config.fp16 else "switch bf16 off"
            raise FloatingPointError(
                f"learner {self.name!r}, step {self.step}: {_written(broken)} is not finite; no weight was "
                f"moved. Look at the data of this step, lower lr, or {way_out}"
            )
        return metrics

    def _skip(self, metrics: dict[str, float]) -> None:
        """Takes the norm that is none out of the metrics; stops where a smaller scale has not helped for long."""
        del metrics["grad_norm"]
        if self.loss_scale.in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"learner {self.name!r}, step {self.step}: the gradients of {MOST_SKIPPED} steps in a row overflowed "
                f"in fp16, the last with a loss times {metrics['loss_scale']:g}; no weight was moved by them. Look at "
                "the data of these steps, lower lr, or take bf16 in place of fp16"
            )

    def _load_optimizer(self, saved: Mapping[str, Tensor]) -> None:
        names = {id(weight): name for name, weight in self.objective.named_parameters()}
        packed, index = {}, 0
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                name = names[id(weight)]
                values = {key.split(".", 1)[0]: value for key, value in saved.items() if key.split(".", 1)[1] == name}
                if values:
                    packed[index] = {key: _laid_out_like(weight, value) for key, value in values.items()}
                index += 1
        self.optimizer.load_state_dict({"state": packed, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _set_modes(self, training: bool) -> None:
        self.objective.train(training)
        for module in self.borrowed:
            module.eval()


def check_ownership(learners: Iterable[Learner]) -> None:
    """Checks that no weight belongs to two learners.

    Raises:
        ValueError: naming the weight and both learners.
    """
    owners: dict[int, tuple[Learner, str]] = {}
    for learner in learners:
        for name, weight in learner.objective.named_parameters():
            owner, first = owners.setdefault(id(weight), (learner, name))
            if owner is not learner:
                raise ValueError(
                    f"the weight {name!r} of learner {learner.name!r} also belongs to learner {owner.name!r} "
                    f"(there {first!r}): a weight has one owner; let the other hold it as Borrowed(module)"
                )


def check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Checks that ``found`` has the names and shapes of ``wanted``.

    Raises:
        ValueError: naming what is missing, left over or of another shape (at most five of each).
    """
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, the model wants {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    kinds = {"missing": missing, "unknown": extra, "of another shape": shapes}
    problems = [f"{kind}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}" for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(
            f"{where} does not fit the model: {'; '.join(problems)}. "
            "Build the model from the config it was trained with"
        )


def _borrowed(holder: nn.Module, owned: frozenset[int]) -> Iterator[nn.Module]:
    """What ``holder`` and its parts borrow, and what that borrows in turn, without what the objective also owns."""
    for part in holder.modules():
        for value in vars(part).values():
            items = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            )
            for item in items:
                if isinstance(item, Borrowed) and id(item.module) not in owned:
                    yield item.module
                    yield from _borrowed(item.module, owned | {id(item.module)})


def _written(values: Mapping[str, float]) -> str:
    return ", ".join(f"{term} = {value}" for term, value in values.items())


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _laid_out_like(weight: Tensor, value: Tensor) -> Tensor:
    """A copy with the weight's strides: fused AdamW walks both in memory order, and a file holds plain order only."""
    return torch.empty_like(weight, dtype=value.dtype).copy_(value) if value.shape == weight.shape else value.clone()


def _split(batch: Any, parts: int) -> list[Batch]:
    if parts == 1:
        return [batch]
    size = math.ceil(len(batch) / parts)

    def cut(value: Any, begin: int) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(item, begin) for key, item in value.items()}
        return None if value is None else value[begin : begin + size]

    begins = range(0, len(batch), size)
    return [replace(batch, **{f.name: cut(getattr(batch, f.name), begin) for f in fields(batch)}) for begin in begins]
