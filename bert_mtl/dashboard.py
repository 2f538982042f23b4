"""Dashboards of Weights & Biases: `python -m bert_mtl.dashboard task=[imdb,snips]`. Tasks in, saved views out: the
training of every head, one task against many, and what is served. Run again, it updates the same views.
"""

from bert_mtl.commands import DashboardConfig
from bert_mtl.tasks import make_tasks
from bert_mtl.tracking.account import check_account, plainly
from conf import entry


class DashboardError(Exception):
    """The views cannot be made: says why and what to do."""

    user_error = True


def dashboard(config: DashboardConfig) -> dict[str, str]:
    """Saves the views and prints their URLs; returns these by title.

    Raises:
        AccountError, DashboardError, ViewError: what is missing, or what the service refuses.
    """
    try:
        from bert_mtl.views import make_views, save_view
    except ImportError as error:
        raise DashboardError(f'a dashboard needs the extra track (pip install "bert_mtl[track]"): {error}.') from error
    entity, urls = check_account(config.entity), {}
    for view in make_views(entity, config.project, make_tasks(config.tasks)):
        with plainly(f"the view {view.name!r} was not saved"):
            urls[view.name] = save_view(view)
        print(f"{view.name}: {urls[view.name]}")
    return urls


def main() -> None:
    entry.main("dashboard", DashboardConfig, dashboard)


if __name__ == "__main__":
    main()
