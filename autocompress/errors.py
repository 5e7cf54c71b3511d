"""Every error that autocompress raises on purpose, and the exit code it ends a command with.

    AutocompressError            code 1   never raised itself
    ├── InputError               code 2   what the user gave cannot be used
    │   ├── TeacherError                  the teacher cannot be found, run or traced
    │   ├── DataError                     the data cannot be found, read or learned from
    │   ├── SpaceError                    the search space does not load or does not fit the teacher
    │   ├── ProfileError                  the device profile does not load or does not fit the search
    │   ├── BudgetError                   a budget cannot be read or cannot be reached
    │   ├── RunError                      the run folder cannot be used, or its record is damaged
    │   └── StudentError                  the student folder cannot be used
    ├── NothingFeasibleError     code 3   the search finished and no student keeps the budgets
    ├── TooManyFailuresError     code 4   trials failed too often to go on
    ├── NoisyDeviceError         code 5   the device is too noisy to certify anything
    └── InterruptedSearchError   code 130 stopped on the user's wish, with everything finished kept

An error says what is wrong, where, why, and one way out; the command line prints those four
and no traceback.
"""


class AutocompressError(Exception):
    """Say `what` went wrong, `where` (file, key, layer), `why`, and one `fix`."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.fix = what, where, why, fix

    def __str__(self) -> str:
        parts = (("where", self.where), ("why", self.why), ("fix", self.fix))
        return "\n".join([self.what, *(f"  {label}: {text}" for label, text in parts if text)])

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.why, self.fix)


def _rebuild(kind: type[AutocompressError], what: str, where: str, why: str, fix: str) -> AutocompressError:
    return kind(what, where=where, why=why, fix=fix)


class InputError(AutocompressError):
    exit_code = 2


class TeacherError(InputError):
    pass


class DataError(InputError):
    pass


class SpaceError(InputError):
    pass


class ProfileError(InputError):
    pass


class BudgetError(InputError):
    pass


class RunError(InputError):
    pass


class StudentError(InputError):
    pass


class NothingFeasibleError(AutocompressError):
    exit_code = 3


class TooManyFailuresError(AutocompressError):
    exit_code = 4


class NoisyDeviceError(AutocompressError):
    exit_code = 5


class InterruptedSearchError(AutocompressError):
    exit_code = 130
