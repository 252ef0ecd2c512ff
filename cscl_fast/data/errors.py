"""The error of everything that is wrong with files: it names the file and what to do."""


class DataError(RuntimeError):
    """A file or folder of a data set is missing, unreadable or does not fit."""
