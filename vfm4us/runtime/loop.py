"""The one loop: it owns a training's position, its best epoch, saving, signals and resuming; what is learnt is the training's.

`Training` is what a training gives the loop; pretraining, fine-tuning and CycleGAN are the three that there are.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from vfm4us import checkpoints, log
from vfm4us.runtime import signals
from vfm4us.runtime.processes import come_to_meeting
from vfm4us.runtime.run import RunFolder

NEVER = {"score": -math.inf, "epoch": -1}
PLACE = ("stage", "epoch", "step", "best", "improved", "finished", "seconds")


class Training:
    """What the loop asks of a training. The loop stands in `self.loop`, with `stage`, `epoch` and `step` of the moment."""

    loop: "Loop"

    def batches(self) -> Iterable[Any]:
        """The batches of the current epoch, from `loop.step` on; a function of the position alone."""
        raise NotImplementedError

    def update(self, batch: Any) -> dict[str, Tensor | float]:
        """One step of learning; what is logged of it, as scalar tensors that nobody has waited for."""
        raise NotImplementedError

    def measure(self) -> dict[str, float]:
        """After an epoch: figures, of which `score` says how good the epoch is. Empty: every epoch is as good."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """All that last.pt holds; `loop.place()` is a part of it."""
        raise NotImplementedError

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `state`; gives back the place."""
        raise NotImplementedError

    # ---- what a training may leave out

    def begin(self) -> None:
        """A new run begins."""

    def begin_stage(self) -> None:
        """A stage begins."""

    def begin_epoch(self) -> None:
        """An epoch begins, or is gone on with."""

    def seen(self, values: dict[str, float]) -> None:
        """What `update` gave, as numbers, for every step in order. May raise FloatingPointError."""

    def remember(self) -> None:
        """The epoch that has just been measured is the best one; last.pt is written after this."""

    def after_epoch(self, improved: bool, again: bool = False) -> None:
        """What else an epoch leaves; last.pt is written already. `again`: of a run that may have been killed on the way."""

    def enough(self) -> bool:
        """Whether to end before the last epoch."""
        return False

    def shown(self, values: dict[str, float]) -> dict[str, str]:
        """Of a step or of an epoch's figures: what stands behind the progress bar."""
        return {"loss": f"{values['loss']:.3f}"} if "loss" in values else {}

    def remedy(self) -> str:
        """What to do where the loss or the weights are not finite, as a sentence."""
        return "Lower the learning rate."

    def title(self) -> str:
        """What stands before the progress bar."""
        return self.loop.folder.folder.name

    def context(self) -> dict[str, Any]:
        """What a logged line says of the step, beside its values."""
        return {}


def cosine_with_warmup(step: int, steps: int, warmup: float, peak: float) -> float:
    """Learning rate at `step` of `steps`: linear from 0 over the first share `warmup`, then a half cosine to 0."""
    rising = int(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return 0.5 * peak * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Loop:
    """Goes through stages, epochs and steps of a training, from wherever it was left, in a run folder.

    lengths: (epochs, steps of an epoch) of each stage. save_every: longest time between two writings of last.pt, seconds.
    log_every: steps between two logged lines. each_epoch: last.pt is written after every epoch, else when it is time.
    stop_after: leave after so many epochs, to be continued; 0: never.

    fetch_every: steps whose values are fetched in one copy, since fetching waits for a GPU; 0: 1 on a CPU, `log_every` or more
    on a GPU. Values that are not finite are found when they are fetched, and last.pt is never written before that.
    """

    def __init__(
        self,
        training: Training,
        folder: RunFolder,
        lengths: list[tuple[int, int]],
        device: torch.device,
        *,
        save_every: float = 60.0,
        log_every: int = 1,
        fetch_every: int = 0,
        each_epoch: bool = True,
        stop_after: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.training, self.folder, self.lengths = training, folder, lengths
        self.save_every, self.log_every, self.each_epoch, self.stop_after = (
            save_every,
            log_every,
            each_epoch,
            stop_after,
        )
        self.fetch_every = fetch_every or (1 if device.type == "cpu" else max(10, log_every))
        self.rank, self.world_size = rank, world_size
        self.stage, self.epoch, self.step = 0, 0, 0  # step counts within the epoch
        self.best: dict[str, float] = NEVER  # figures of the stage's best epoch
        self.improved, self.finished = False, False  # whether the latest epoch was the best; whether all is done
        self.seconds = 0.0  # in `update`
        self.saved, self.saved_at = time.monotonic(), ""
        self.waiting: list[tuple[int, int, dict[str, Tensor | float]]] = []  # of steps whose values are not fetched yet
        self.bar: Any = None  # a progress bar, while there is one
        training.loop = self

    def run(self) -> bool:
        """To the end; False where the run was finished already.

        Raises signals.Stopped where a signal asked to stop (all is saved), FloatingPointError where training has failed.
        """
        training, epochs_done = self.training, 0
        with signals.StopSignal() as stop, self._closing_bar():
            if not self._resume():
                training.begin()
            if self.finished:
                return False
            while not self.finished:
                self._begin_epoch()
                for batch in training.batches():
                    began = time.monotonic()
                    values = training.update(batch)
                    self.step += 1
                    self._keep(values)
                    self.seconds += time.monotonic() - began
                    asked = stop.asked(self.world_size)
                    if asked or self._is_time():
                        self.save()
                    if asked:
                        raise signals.Stopped(asked, self.folder.folder)
                self._end_epoch(stop)
                epochs_done += 1
                if epochs_done == self.stop_after and not self.finished:
                    self.say(f"stopped after {epochs_done} epochs as asked; the same command goes on")
                    break
        return True

    def _begin_epoch(self) -> None:
        if self.epoch == self.epochs:
            self.stage, self.epoch = self.stage + 1, 0
        if self.epoch == self.step == 0:
            self.best = NEVER
            self.training.begin_stage()
        self.training.begin_epoch()
        self._show_bar()

    def _end_epoch(self, stop: signals.StopSignal) -> None:
        """Measure, write last.pt, then all that can be made again from it."""
        self._fetch()
        figures = self.training.measure()
        if not math.isfinite(figures.get("score", 0.0)):
            raise FloatingPointError(
                f"training has failed by step {self.total}: the epoch's score is {figures['score']}. "
                f"{self.left()} {self.training.remedy()}"
            )
        self.epoch, self.step = self.epoch + 1, 0
        self.improved = figures.get("score", -math.inf) > self.best["score"]
        if self.improved:
            self.best = figures | {"epoch": self.epoch}
            self.training.remember()
        last = self.epoch == self.epochs and self.stage + 1 == len(self.lengths)
        self.finished = last or self.training.enough()
        # A signal until here is answered here; one that comes from here on is for the next step, which saves.
        asked = stop.number if self.world_size == 1 else 0
        if self.each_epoch or self.finished or asked or self._is_time():
            self.save()
        self.training.after_epoch(self.improved)
        self.bar.set_postfix(self.training.shown(figures))
        if asked:
            raise signals.Stopped(asked, self.folder.folder)

    # ---- position -------------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        """Of this stage."""
        return self.lengths[self.stage][0]

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch of this stage."""
        return self.lengths[self.stage][1]

    @property
    def in_stage(self) -> int:
        """Steps since the start of the stage."""
        return self.epoch * self.per_epoch + self.step

    @property
    def total(self) -> int:
        """Steps since the start of the run."""
        return sum(epochs * steps for epochs, steps in self.lengths[: self.stage]) + self.in_stage

    def place(self) -> dict[str, Any]:
        """The position and what belongs to it, as plain types."""
        return {name: getattr(self, name) for name in PLACE}

    # ---- saving ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write last.pt. Raises FloatingPointError, and writes nothing, where a loss or a weight is not finite."""
        self._fetch()
        if self.rank == 0:
            state = self.training.state()
            if wrong := not_finite(state):
                raise FloatingPointError(
                    f"training has failed at step {self.total}: {wrong} is not finite. {self.left()} {self.training.remedy()}"
                )
            checkpoints.save(self.folder.checkpoints / "last.pt", state)
        self._note_saved()

    def left(self) -> str:
        """What can be gone on with after a failure."""
        if not self.saved_at:
            return "Nothing had been saved yet."
        return f"{self.folder.checkpoints / 'last.pt'} holds the last good state ({self.saved_at})."

    def _note_saved(self) -> None:
        self.saved, self.saved_at = time.monotonic(), f"epoch {self.epoch}, step {self.step}"

    def _is_time(self) -> bool:
        return time.monotonic() - self.saved > self.save_every

    def _resume(self) -> bool:
        """Go back to where last.pt was written; False where there is none."""
        path = self.folder.checkpoints / "last.pt"
        resumed = path.is_file()
        if resumed:
            for name, value in self.training.restore(checkpoints.read(path)).items():
                setattr(self, name, value)
            self._note_saved()
        self._agree(resumed)
        self.folder.open_log(self.total if resumed else -1, epoch_ended=self.step == 0)
        if resumed and self.epoch and not self.step:  # the run may have been killed between last.pt and the rest
            self.training.after_epoch(self.improved, again=True)
        return resumed

    def _agree(self, resumed: bool) -> None:
        """Every process must stand where process 0 stands, or their collective calls would not meet."""
        if self.world_size > 1:
            here = [resumed, self.stage, self.epoch, self.step]
            first = [list(here)]
            come_to_meeting()
            dist.broadcast_object_list(first, 0)
            if first[0] != here:
                raise ValueError(
                    "the processes found different checkpoints: logs must be on a file system all machines share"
                )

    # ---- what is logged and shown ---------------------------------------------------------------------------------

    def _keep(self, values: dict[str, Tensor | float]) -> None:
        """Values of the step just made."""
        self.waiting.append((self.total, self.in_stage, values))
        self.bar.update()
        if len(self.waiting) >= self.fetch_every:
            self._fetch()

    def _fetch(self) -> None:
        """Get the waiting values as numbers, in one copy, and log those whose turn it is. Raises FloatingPointError."""
        waiting, self.waiting = self.waiting, []
        tensors = [v.detach().float() for *_, values in waiting for v in values.values() if isinstance(v, Tensor)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        for at, in_stage, values in waiting:
            line = {name: next(numbers) if isinstance(v, Tensor) else v for name, v in values.items()}
            if wrong := ", ".join(f"{name} is {v}" for name, v in line.items() if not math.isfinite(v)):
                raise FloatingPointError(
                    f"training has failed at step {at}: {wrong}. {self.left()} {self.training.remedy()}"
                )
            self.training.seen(line)
            if in_stage % self.log_every == 0:
                self.folder.log("train", at, self.training.context() | line)
            self.bar.set_postfix(self.training.shown(line), refresh=False)

    def _show_bar(self) -> None:
        """A progress bar for the stage."""
        if self.bar is None or self.epoch == self.step == 0:
            self._close_bar()
            self.bar = tqdm(
                total=self.epochs * self.per_epoch,
                initial=self.in_stage,
                unit="step",
                disable=self.rank > 0,
                dynamic_ncols=True,
            )
        self.bar.set_description(f"{self.training.title()} {self.epoch + 1}/{self.epochs}", refresh=False)

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()

    @contextlib.contextmanager
    def _closing_bar(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._close_bar()

    def say(self, text: str) -> None:
        """A line of the log, by process 0."""
        if self.rank == 0:
            log.say(text)


def not_finite(state: Any) -> str:
    """Where in nested dicts and lists the first tensor lies that holds a number that is not finite; '' where none does."""
    named = list(_floats(state, ""))
    flags: dict[Any, Any] = {}
    for device in {tensor.device for _, tensor in named}:  # one copy from each
        here = [(name, tensor) for name, tensor in named if tensor.device == device]
        finite = torch.stack([tensor.isfinite().all() for _, tensor in here]).tolist()
        flags |= {name: flag for (name, _), flag in zip(here, finite, strict=True)}
    return next((name for name, _ in named if not flags[name]), "")


def _floats(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _floats(value, f"{name}.{key}" if name else str(key))
