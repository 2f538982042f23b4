"""What may go wrong with a request, by who is at fault; protocols say it in their own words (`serving.http.errors`)."""


class ServingError(Exception):
    """A request was not answered; the message says why."""


class TextError(ServingError, ValueError):
    """A text, or the list of them, is not acceptable; the message names the text's index."""


class TooManyTexts(ServingError):
    """More texts than one request may hold."""


class Refused(ServingError):
    """The model has no answer of this kind; the message says which it has."""

    user_error = True


class BadRequest(ServingError):
    """The request does not have the form of its protocol; the message names the key at fault."""


class UnknownModel(ServingError):
    """No model of that name is served."""


class UnknownVersion(ServingError):
    """No such version of the model is served."""


class NotReady(ServingError):
    """No version of the model is served yet, or any more."""


class QueueFull(ServingError):
    """As many texts are being answered as the queue holds; `retry_after` seconds from now there should be room."""

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(f"the server is busy with {limit} texts; ask again in {retry_after} s")
        self.retry_after = retry_after


class DeadlineExceeded(ServingError):
    """The answer was not there in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s")


class EngineError(ServingError):
    """The engine cannot be opened, ended, or answered something that its manifest does not say."""

    user_error = True
