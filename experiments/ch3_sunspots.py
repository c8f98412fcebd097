"""Lesson 3.1.1: from a sequence to a vector, the sunspots of next year.

From the yearly sunspots of eleven years, a cycle, recurrent networks forecast those of
the next. Time has one direction: the networks learn from the years to 1900, the years
to 1950 choose the epoch, and those after are the test set. Two baselines: persistence,
which forecasts the value of the year before, and a linear regression on the same years.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple, get_args

import jax
import numpy as np
import optax
import pydantic

from jaxstudy.data.sources import SUNSPOTS, read_bytes
from jaxstudy.dataset import dataset, steps_per_epoch, subset
from jaxstudy.models.recurrent import KERAS_NAMES, Kind, sequence_to_vector
from jaxstudy.objectives import squared_error
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run, SubRun
from jaxstudy.runs.statistics import NONNEGATIVE, Estimate, mean_over_runs
from jaxstudy.text.plots import save_forecasts
from jaxstudy.training import (
    Evaluator,
    FitResult,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, PyTree, UserError

LESSON = Lesson(
    number="3.1.1",
    title="From a sequence to a vector",
    question="How does a network turn a sequence into a forecast?",
    metrics=(
        "SimpleRNN: test RMSE",
        "GRU: test RMSE",
        "LSTM: test RMSE",
        "linear regression: test RMSE",
        "persistence: test RMSE",
        "largest of the networks: test RMSE",
    ),
    claims=(
        Claim(
            "On the test years, the mean over seeds of the networks' largest RMSE is "
            "below the RMSE of persistence.",
            ("largest of the networks: test RMSE", "persistence: test RMSE"),
            "<",
        ),
        *(
            Claim(
                f"On the test years, the {name}'s RMSE is below linear regression's.",
                (f"{name}: test RMSE", "linear regression: test RMSE"),
                "<",
            )
            for name in KERAS_NAMES.values()
        ),
    ),
    figures={
        "sunspots": (
            "Test years as they were (black), with the forecasts of a year from the "
            "years before by a network (mean of the seeds) and by the linear "
            "regression. Look at the peaks: a forecast that is only a copy of the last "
            "value follows the black line one year late."
        ),
        "errors": (
            "RMSE on the test years: the mean over the seeds with its interval, or "
            "with the value of each seed where there are fewer than four; the last row "
            "takes the worst network of each seed. A network left of the dashed line "
            "beats persistence, one left of the dotted line the linear regression."
        ),
    },
    try_it={
        "--years 3": (
            "Three years are less than a cycle of eleven: expect all forecasts but "
            "persistence, which sees one year, to lose."
        ),
        "--epochs 10": (
            "A tenth of the passes: where the validation years would have chosen more, "
            "expect forecasts that stay too near the mean."
        ),
        "--units 128": (
            "Four times the units for the same 190 years: more weights than values, so "
            "expect no gain, and a choice of fewer epochs."
        ),
    },
)

LAST_TRAINING_YEAR, LAST_VALIDATION_YEAR = 1900, 1950
BATCH = 32  # years in a gradient step


@dataclass(frozen=True)
class Config(Settings):
    """The networks, and how long each is trained."""

    kinds: tuple[Kind, ...] = get_args(Kind)
    """Recurrent networks to compare."""
    years: Count = 11
    """Years that a forecast is made from."""
    units: Count = 32
    """Units of the recurrent layer."""
    epochs: Count = 100
    """Passes over the training years, at most: the validation years choose how many."""
    rate: Positive = 0.003
    """Learning rate of Adam."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of each network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(units=4, epochs=3),
    "quick": Config(),
    "full": Config(seeds=6),
}


class Series(NamedTuple):
    """Years to forecast, and the years before each.

    x [N, years, 1] and y [N] are standardised by the mean and scale of the training
    years; year [N].
    """

    x: np.ndarray
    y: np.ndarray
    year: np.ndarray
    mean: float
    scale: float

    def split(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the training, validation and test years: in the order of time."""
        last = LAST_TRAINING_YEAR, LAST_VALIDATION_YEAR
        cuts = np.searchsorted(self.year, last, side="right")
        train, validation, test = np.split(np.arange(len(self.year)), cuts)
        return train, validation, test

    def sunspots(self, z: np.ndarray) -> np.ndarray:
        """Undo the standardisation."""
        return self.mean + self.scale * z

    def rmse(self, forecast: np.ndarray, rows: np.ndarray) -> float:
        """Root of the mean squared error of forecasts [n] of some rows, in sunspots."""
        return float(self.scale * np.sqrt(np.mean((forecast - self.y[rows]) ** 2)))


def read_sunspots(years: int) -> Series:
    """Every year that has so many before it.

    Raises MissingData where the file is not there as it should be, UserError where
    there are too few years to learn from.
    """
    lines = read_bytes(SUNSPOTS).decode().splitlines()[1:]
    year, sunspots = np.array([line.split(",") for line in lines], float).T
    train = sunspots[year <= LAST_TRAINING_YEAR]
    if len(train) < 2 * years:
        raise UserError(f"--years {years}: there are only {len(train)} to learn from")
    mean, scale = train.mean(), train.std()
    z = ((sunspots - mean) / scale).astype(np.float32)
    rows = np.lib.stride_tricks.sliding_window_view(z, years + 1)
    return Series(rows[:, :-1, None], rows[:, -1], year[years:], mean, scale)


def linear_regression(series: Series, rows: np.ndarray) -> np.ndarray:
    """Forecasts of the linear regression on the years before, by least squares."""
    x = np.column_stack([series.x[..., 0], np.ones(len(series.y))]).astype(float)
    train, _, _ = series.split()
    weights, *_ = np.linalg.lstsq(x[train], series.y[train], rcond=None)
    return x[rows] @ weights


def forecast(kind: Kind, series: Series, config: Config, run: Run) -> np.ndarray:
    """Forecasts [seeds, N] of every year by one kind of network.

    It is trained twice, from the same weights and on the same batches: once to the end,
    then for as many epochs as had the lowest mean error on the validation years.
    """
    model = sequence_to_vector(1, kind, (config.units,), 1)
    objective, optimizer = squared_error(model), optax.adam(config.rate)
    data = dataset({"x": series.x, "y": series.y})
    train, validation, _ = (subset(data, rows) for rows in series.split())
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    train_step = make_train_step(objective, optimizer)
    eval_step = make_eval_step(objective)

    def train_for(epochs: int, sub_run: SubRun | None) -> FitResult:
        return fit(
            init_replicas(model, optimizer, keys[:, 0]),
            train_step,
            train,
            key=keys[:, 1],
            epochs=epochs,
            batch_size=BATCH,
            evaluators={"validation": Evaluator(eval_step, validation)},
            evaluate_first=False,
            log=sub_run,
            # an epoch a chunk: the second training runs the first one's program
            chunk_steps=steps_per_epoch(len(train.indices), BATCH),
        )

    records = train_for(config.epochs, run.sub_run(f"sunspots_{kind}")).records
    losses = [np.mean(r["loss"]) for r in records if r["split"] == "validation"]
    params = train_for(1 + int(np.argmin(losses)), None).state.params

    def outputs(params: PyTree) -> Array:
        return model.apply(params, {}, data.arrays["x"], train=False, key=None)[0]

    return np.asarray(jax.jit(lambda params: jax.lax.map(outputs, params))(params))


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Forecast the test years by every network and both baselines, and draw."""
    series = read_sunspots(config.years)
    _, _, test = series.split()
    regression = linear_regression(series, test)
    baselines = {
        "persistence": series.rmse(series.x[test, -1, 0], test),
        "linear regression": series.rmse(regression, test),
    }
    forecasts = {
        KERAS_NAMES[kind]: forecast(kind, series, config, run)[:, test]
        for kind in config.kinds
    }
    errors = {
        name: np.array([series.rmse(of_seed, test) for of_seed in of_seeds])
        for name, of_seeds in forecasts.items()
    }
    errors["largest of the networks"] = np.max([*errors.values()], axis=0)
    result: dict[str, Estimate | float] = {
        f"{name}: test RMSE": value for name, value in baselines.items()
    }
    for name, of_seeds in errors.items():
        result[f"{name}: test RMSE"] = mean_over_runs(of_seeds, NONNEGATIVE)
    means = {name: series.sunspots(f.mean(0)) for name, f in forecasts.items()}
    measured, regression = map(series.sunspots, (series.y[test], regression))
    save_forecasts(run, "sunspots", series.year[test], measured, means, regression)
    panel = plots.Comparison("RMSE [sunspots]", ["test RMSE"], baselines)
    plots.save_comparison(run, "errors", result, [*errors], [panel])
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
