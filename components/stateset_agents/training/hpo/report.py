"""A search as one HTML page: the best, what was luck, every trial, and Optuna's plots.

Owns what the page says. It has no external resource: it opens from a mail, an artifact store or a
disk. It does not know files; who calls it writes what `render_report` returns.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.hpo.summary import BASE, HPOSummary

if TYPE_CHECKING:
    from optuna import Study

# Fewer complete trials tell nothing about importances.
FEWEST_FOR_IMPORTANCES = 4


def render_report(summary: HPOSummary, study: Study, *, storage: str, created: str = "") -> str:
    """The page as HTML.

    Args:
        summary: of the search.
        study: the search's own, for Optuna's plots.
        storage: where the study is, without a password; for optuna-dashboard's command.
        created: date and time to show, as text.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    environment = Environment(
        loader=PackageLoader("stateset_agents.training.hpo", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    page: str = environment.get_template("report.html.j2").render(
        summary=summary,
        base=BASE,
        aim=next(iter(summary.objectives)),
        verdict=verdict(summary),
        front={trial.number for trial in summary.pareto_front},
        plots=list(_plots(summary, study)),
        dashboard=f"optuna-dashboard {storage}",
        created=created,
    )
    return page


def verdict(summary: HPOSummary) -> str:
    """The result in two sentences."""
    best = f"Trial {summary.best_trial.number} is the best of {len(summary.trials)}"
    gain, luck = summary.gain_again, summary.luck
    if gain is None or luck is None:
        return (
            f"{best} by the search's own values. Nothing was run again, so luck is in them: the "
            "best of many is too good."
        )
    found = f"{best}: {summary.gain_in_search:+.3f} against the base configuration in the search"
    if summary.beats_base:
        return f"{found}, {gain:+.3f} with fresh seeds. {luck:+.3f} of the gain was luck."
    return (
        f"{found}, but {gain:+.3f} with fresh seeds: the base configuration stays. {luck:+.3f} of "
        "the gain was luck."
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _plots(summary: HPOSummary, study: Study) -> Iterator[tuple[str, str]]:
    """Title and picture (PNG in base64) of each plot that the trials allow."""
    try:
        from optuna.visualization import matplotlib as draw
    except ImportError as error:  # pragma: no cover - matplotlib is in the extra
        raise ConfigurationError(
            f"the report needs matplotlib ({error}): pip install 'stateset-agents[hpo]'"
        ) from error
    done = [trial for trial in summary.trials if trial.state == "complete"]
    if not done:
        return
    names = list(summary.objectives)
    for index, name in enumerate(names):
        target = _target(index) if len(names) > 1 else None
        shown: dict[str, Any] = {"target": target, "target_name": name}
        yield f"History: {name}", _picture(draw.plot_optimization_history, study, **shown)
        if len(done) >= FEWEST_FOR_IMPORTANCES and _is_varied(summary, name):
            yield f"Importances: {name}", _picture(_importances, study, **shown)
        yield f"Parameters: {name}", _picture(draw.plot_parallel_coordinate, study, **shown)
    if len(names) in (2, 3):
        front = _picture(draw.plot_pareto_front, study, target_names=names)
        yield "Pareto front", front
    elif len(names) == 1:
        yield "Training", _picture(draw.plot_intermediate_values, study)


def _target(index: int) -> Callable[[Any], float]:
    return lambda trial: float(trial.values[index])


def _is_varied(summary: HPOSummary, name: str) -> bool:
    return len({trial.values[name] for trial in summary.trials if trial.values is not None}) > 1


def _importances(study: Study, **shown: Any) -> Any:
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as draw

    # Watanabe et al. 2023 (arXiv:2304.10255): needs no forest, and is meant for few trials
    return draw.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), **shown)


def _picture(plot: Callable[..., Any], study: Study, **options: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context({"figure.figsize": (8, 4)}):
        warnings.simplefilter("ignore")  # Optuna's plots are "experimental", and short of labels
        matplotlib.use("agg", force=False)
        axes = plot(study, **options)
        figure: Figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        from matplotlib import pyplot

        pyplot.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
