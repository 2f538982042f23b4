"""The account of Weights & Biases that a command acts for: a name, or nothing, in; the account or team out."""

from collections.abc import Iterator
from contextlib import contextmanager

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from bert_mtl.tracking.weights_and_biases import has_key

PATIENCE = 8  # seconds of a try: two of them end before the client gives up waiting, which is after 19 seconds


class AccountError(Exception):
    """Weights & Biases does not answer, or refuses: says why and what to do."""

    user_error = True


def check_account(entity: str | None) -> str:
    """The account or team to act for: `entity`, else the key's own.

    Raises:
        AccountError: there is no key, or the service does not answer or does not know it.
    """
    # Left alone, the client's process goes on trying for minutes, and this one waits for it at its end.
    tries = wandb.Settings(
        x_graphql_timeout_seconds=PATIENCE, x_graphql_retry_max=1, x_graphql_retry_wait_max_seconds=1
    )
    wandb.setup(tries)
    if not has_key():
        raise AccountError("wandb must have a key; got nothing. Log in with `wandb login`, or set WANDB_API_KEY.")
    with plainly("wandb did not answer, or refused the key"):
        own = wandb.Api().default_entity
    account = entity or own
    if not account:
        raise AccountError("entity must be given: wandb's key has no account of its own.")
    return account


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """Raises what the service's client raises in the block as an AccountError of one line that says `what` failed."""
    try:
        yield
    except (wandb.errors.Error, WandbApiFailedError) as error:
        raise AccountError(f"{what}: {' '.join(str(error).split())}") from error
