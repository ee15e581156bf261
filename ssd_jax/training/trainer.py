"""Steps, log lines, evaluations and checkpoints of one run."""

import dataclasses
import math
import time
from functools import partial
from typing import NoReturn

import jax
import jax.numpy as jnp

from ssd_jax.checkpoints.writer import CheckpointManager
from ssd_jax.data.pipeline import Batch as HostBatch
from ssd_jax.distributed import barrier
from ssd_jax.evaluation.evaluate import evaluate_source
from ssd_jax.evaluation.report.metrics_json import flat_metrics
from ssd_jax.evaluation.report.output_dir import staged_on_main_process
from ssd_jax.inference.detect import DetectFn, StoppedError
from ssd_jax.training.build import Training
from ssd_jax.training.data import TrainingData
from ssd_jax.training.display import Display
from ssd_jax.training.metric_writer import MetricWriter
from ssd_jax.training.nonfinite import NonFiniteError, NonFiniteStep, report_nonfinite
from ssd_jax.training.optimizer import decay_per_step
from ssd_jax.training.pending_metrics import PendingStep, PendingSteps
from ssd_jax.training.preemption import PreemptionHandler
from ssd_jax.training.profiler import StepProfiler
from ssd_jax.training.progress import Progress
from ssd_jax.training.start import Start
from ssd_jax.training.state import TrainState
from ssd_jax.training.step import Batch, shard_batch
from ssd_jax.training.throughput import Throughput
from ssd_jax.training.workdir import Workdir


@dataclasses.dataclass
class Trainer:
    """Trains one run: takes steps, and logs, evaluates and saves when these are due."""

    training: Training
    data: TrainingData
    start: Start
    """State on the devices and progress to start from."""
    detect: DetectFn
    folder: Workdir
    display: Display
    preemption: PreemptionHandler
    checkpoints: CheckpointManager
    writer: MetricWriter
    profiler: StepProfiler
    start_time: float
    """Time of the program's start, by `time.perf_counter`."""

    def __post_init__(self) -> None:
        self.config = self.training.config
        self.state = self.start.state
        self.global_step = self.first_step = int(self.state.step)
        self.evaluated = bool(self.start.run_progress["evaluated"])
        """False while an evaluation that is due after the last step is not done."""
        self.mean_ap = self.start.mean_ap
        """mAP of the last evaluation; None before."""
        platform = jax.local_devices()[0].platform
        self.pending = PendingSteps(
            self.start.run_progress["unlogged"],
            # On a CPU host and device are the same, and steps are long compared with the host's
            # work between them. With one step, the run stops after the step of the signal.
            in_flight=1 if platform == "cpu" else 2,
            skip_nonfinite=self.config.train.on_nonfinite == "skip",
        )
        self.progress = Progress(
            self.display, first=self.first_step, steps=self.config.train.steps, platform=platform
        )
        self.throughput = Throughput(self.config.train.batch_size, self.first_step)

    def run(self) -> float:
        """Train to the last step and return the final mAP.

        Raises:
            StoppedError, AbandonedError: a signal arrived.
            NonFiniteError: a step is not finite; the state before it is saved.
            DataError: an image cannot be read.
            OutputError: an evaluation cannot be written.
            SaveError, LogError, LostWorkdirError: the workdir cannot be written.
        """
        if not self.evaluated:  # the run was stopped before
            self.evaluate()
        self.throughput.restart(self.global_step)
        while self.global_step < self.config.train.steps:
            self.step()
            self._log_evaluate_save()
        if self.mean_ap is None:  # resumed after the last step
            self.evaluate()
        assert self.mean_ap is not None
        return self.mean_ap

    def step(self) -> None:
        """Dispatch one step; raise StoppedError before it if a signal has arrived."""
        self.profiler.before_step(self.global_step - self.first_step)
        data_state = self.data.batches.get_state()
        host_batch = self._next_batch()
        self.pending.make_room()
        self.progress.update(self.global_step - len(self.pending))
        if self.pending.nonfinite is not None:
            self.flush()
        if self.preemption.requested and jax.process_count() == 1:
            self.data.batches.set_state(data_state)
            self.flush()
            raise StoppedError
        batch = shard_batch(
            host_batch,
            jax.local_device_count(),
            stop=self.preemption.requested,
            decay_per_step=decay_per_step(self.config.optim, steps=self.config.train.steps),
        )
        if self.global_step == self.first_step:
            self._compile(batch)
        self.global_step += 1
        self.preemption.stop_point = f"after step {self.global_step}, then saving"
        self.state, metrics = self.training.step(self.state, batch)
        self.pending.add(PendingStep(metrics, host_batch, data_state["position"]))
        self.checkpoints.check()
        if self.global_step == self.first_step + 1:
            with self.display.phase("taking the first step"):
                jax.block_until_ready(metrics)
            self.display.info(f"first step after {time.perf_counter() - self.start_time:.1f} s")
            self.throughput.restart(self.global_step)

    def _next_batch(self) -> HostBatch:
        requested = time.perf_counter()
        batch = next(self.data.batches)
        # While the devices are still busy, waiting for data costs nothing.
        if self.pending.idle:
            self.throughput.add_data_wait(time.perf_counter() - requested)
        return batch

    def _compile(self, batch: Batch) -> None:
        self.preemption.stop_point = "now: nothing is to be saved"
        target = f"{jax.device_count()} {jax.local_devices()[0].platform} device(s)"
        with self.display.phase(f"compiling for {target}"):
            self.preemption.call(
                partial(compile_on_all_processes, self.training.step, self.state, batch)
            )

    def _log_evaluate_save(self) -> None:
        """Log, evaluate and save if due after the current step; raise StoppedError on a signal."""
        train, step = self.config.train, self.global_step
        last = step == train.steps
        log_due = last or step % train.log_every == 0
        eval_due = last or (train.eval_every > 0 and step % train.eval_every == 0)
        # An evaluated state is always saved: it may be the best one.
        save_due = eval_due or step % train.checkpoint_every == 0
        # A single process stops at once, several ones at a step that all of them agree on.
        single = jax.process_count() == 1
        stop = self.preemption.requested if single else self.pending.stop_requested
        if not (log_due or save_due or stop):
            return
        self.flush()  # the only place where the loop waits for all steps
        self.folder.check()
        if log_due:
            self.log()
        pause_start = time.perf_counter()
        self.evaluated = not eval_due
        if stop:
            raise StoppedError
        if eval_due:
            self.evaluate()
        if save_due:
            self.save()
        pause = time.perf_counter() - pause_start
        self.throughput.exclude(pause)
        self.progress.exclude(pause)

    def flush(self) -> None:
        """Wait for the steps in flight.

        Raises:
            NonFiniteError: one of them is not finite; the state before it is saved.
        """
        self.pending.flush()
        self.progress.update(self.global_step - len(self.pending))
        if self.pending.nonfinite is not None:
            self._stop_at_nonfinite(self.pending.nonfinite)

    def _stop_at_nonfinite(self, pending: PendingStep) -> NoReturn:
        state = self.state.replace(nonfinite_steps=jnp.zeros_like(self.state.nonfinite_steps))
        self.state = state
        batches, source = self.data.batches, self.data.train_source
        batches.set_state({**batches.get_state(), "position": pending.position})
        self.save()
        self.checkpoints.close()  # the message says that it is saved
        step = NonFiniteStep(
            step=int(state.step) + 1,
            image_ids=tuple(source.annotation(int(k)).image_id for k in pending.batch["index"]),
            batch=pending.batch,
            variables=jax.device_get({"params": state.params, "batch_stats": state.batch_stats}),
            config=self.config,
        )
        raise NonFiniteError(report_nonfinite(step, self.folder.path))

    def log(self) -> None:
        """Log the mean metrics since the last log line."""
        speed = self.throughput.measure(self.global_step)
        self.writer.write(self.global_step, self.pending.pop_mean() | speed, kind="train")
        self.throughput.restart(self.global_step)
        for _ in range(self.data.batches.take_restarts()):
            self.display.info("a worker process had died; the workers were started again")

    def save(self) -> None:
        """Save state and progress in the background."""
        self.folder.check()
        self.writer.sync()
        run_progress = {
            "data": self.data.batches.get_state(),
            "unlogged": self.pending.completed,
            "evaluated": self.evaluated,
        }
        self.checkpoints.save(self.state, run_progress, self.config)

    def evaluate(self) -> None:
        """Evaluate the state and log its metrics; raise StoppedError on a signal meanwhile."""
        step, workdir = self.global_step, self.folder.path
        out_dir = workdir / "eval" / str(step)
        self.folder.check()
        self.preemption.stop_point = "in the evaluation, then saving"
        with (
            self.display.phase(f"evaluating after step {step}"),
            staged_on_main_process(out_dir) as staging,
        ):
            evaluate_state = partial(
                evaluate_source,
                self.detect,
                self.state.variables,
                self.data.eval_source,
                self.config,
                out_dir=staging,
                console=self.display.console,
                name=f"{workdir.absolute().name}, step {step}",
                extra={"step": step},
                stop=lambda: self.preemption.requested,
            )
            # Several processes have to stop at the same point, so none of them may abandon it.
            single = jax.process_count() == 1
            evaluation = self.preemption.call(evaluate_state) if single else evaluate_state()
            self.folder.check()
        self.preemption.stop_point = f"after step {step}, then saving"
        self.mean_ap, self.evaluated = evaluation.results[0].mean_ap, True
        values = flat_metrics(evaluation.results)
        score = values.get(self.config.train.best_metric, math.nan)
        if (best_step := self.checkpoints.add_score(step, score)) is not None:
            values["best_step"] = best_step
        self.writer.write(step, values, kind="eval")
        self.writer.write_image(step, "detections", out_dir / "images.jpg")


def compile_on_all_processes(step: jax.stages.Wrapped, state: TrainState, batch: Batch) -> None:
    """Compile the step and wait until all processes have compiled it.

    Otherwise one process could wait minutes in its first step for another that still compiles.
    """
    step.lower(state, batch).compile()
    barrier("compiled")
