"""What can be wrong with the data that a user gives."""


class DataError(Exception):
    """Something is wrong with the data given: says where, what is allowed and what to do."""

    user_error = True
