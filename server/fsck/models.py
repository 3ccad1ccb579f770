"""`check_models` and its neighbours check models, their aliases and owners, and corpora."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from treadle.model.errors import LoadError
from treadle.model.model_file import read_header
from treadle.server.fsck.report import DAMAGED, Report, put_aside
from treadle.server.names import is_name
from treadle.server.storage import model_version
from treadle.server.storage.database import Database
from treadle.server.storage.model_version import HASH_FILE, MODEL_FILE


def check_models(root: Path, report: Report) -> None:
    """Checks every version of every model; other files under `models/` are left alone.

    Args:
        root: The data directory.
        report: Where findings go.

    Raises:
        OSError: A directory cannot be read.
    """
    models = root / "models"
    for home in sorted(models.iterdir()) if models.is_dir() else []:
        if is_name(home.name):
            _check_model(root, report, home)


def _check_model(root: Path, report: Report, home: Path) -> None:
    try:
        present = model_version.numbers(home)
    except OSError as error:
        report.note(f"the model cannot be read ({error})", home, "check the permissions")
        return
    for number in present:
        place = home / str(number)
        if home.is_symlink() or place.is_symlink():
            advice = "put what it leads to in its place to have it checked"
            report.note("a link leads to the model", place, advice)
        elif place.is_dir():
            _check_version(root, report, place, number == present[-1])


def _check_version(root: Path, report: Report, place: Path, newest: bool) -> None:
    if not any(place.iterdir()):
        if not newest:  # the newest keeps its number from being reused
            what = "it is the empty directory of a version that is not the newest"
            report.repair(what, place, "removed", place.rmdir)
        return
    try:
        damage = _damage(place)
    except OSError as error:
        what = f"the model cannot be read ({error})"
        report.note(what, place, "check the permissions and the disk")
        return
    if damage:
        name, number = place.parent.name, place.name
        action = f"moved to {DAMAGED}/{name}/{number}"
        report.repair(damage, place, action, partial(_put_version_aside, root, place, newest))
    elif model_version.recorded(place) is None:
        what = "the hash of the model is missing or cannot be read"
        report.repair(what, place / HASH_FILE, "written", partial(_record, place))


def _damage(place: Path) -> str:
    """Returns what is wrong with a version, as a sentence; empty where it is whole."""
    path = place / MODEL_FILE
    if not path.is_file():
        return "there is no model in it"
    try:
        read_header(path)
    except LoadError as error:
        return f"the model is damaged: {error}"
    known = model_version.recorded(place)
    if known is not None and model_version.file_hash(path) != known:
        return f"the model does not have the hash in {HASH_FILE}"
    return ""


def _put_version_aside(root: Path, place: Path, newest: bool) -> None:
    put_aside(root, place, place.parent.name, place.name)
    if newest:
        place.mkdir()


def _record(place: Path) -> None:
    model_version.record(place, model_version.file_hash(place / MODEL_FILE))


def check_aliases(root: Path, report: Report, database: Database) -> None:
    """Checks that every alias leads to a version that exists.

    Args:
        root: The data directory, its models checked already.
        report: Where findings go.
        database: Its database.

    Raises:
        DatabaseError: The database failed.
    """
    for model, alias, version in database.all_aliases():
        home = root / "models" / model
        if not (home / str(version) / MODEL_FILE).is_file():
            what = f"alias {alias} leads to version {version}, which does not exist"
            report.repair(what, home, "removed", partial(database.delete_alias, model, alias))


def check_version_owners(root: Path, report: Report, database: Database) -> None:
    """Checks that every version with an owner exists.

    Args:
        root: The data directory, its models checked already.
        report: Where findings go.
        database: Its database.

    Raises:
        DatabaseError: The database failed.
    """
    for model, version, owner, _ in database.version_owners():
        home = root / "models" / model
        if not (home / str(version) / MODEL_FILE).is_file():
            what = f"version {version}, which {owner} made, does not exist"
            work = partial(database.forget_versions, model, [version])
            report.repair(what, home, "its owner is forgotten", work)


def check_corpora(root: Path, report: Report) -> set[str]:
    """Checks that every corpus has the hash that is its name.

    Args:
        root: The data directory.
        report: Where findings go.

    Returns:
        The hashes of the corpora that are whole, or cannot be read just now.

    Raises:
        OSError: The directory cannot be read.
    """
    corpora = root / "corpora"
    whole = set[str]()
    for path in sorted(corpora.iterdir()) if corpora.is_dir() else []:
        try:
            if path.is_file() and model_version.file_hash(path) == path.name:
                whole.add(path.name)
                continue
        except OSError as error:
            what = f"the corpus cannot be read ({error})"
            report.note(what, path, "check the permissions and the disk")
            whole.add(path.name)  # it may be whole, and no job is to end for that
            continue
        what = "it does not have the hash that is its name"
        action = f"moved to {DAMAGED}/corpora/{path.name}"
        report.repair(what, path, action, partial(put_aside, root, path, "corpora", path.name))
    return whole


def check_corpus_rows(root: Path, report: Report, database: Database) -> None:
    """Checks that the corpora in the database, and those with an owner there, are on disk.

    Args:
        root: The data directory, its corpora checked already.
        report: Where findings go.
        database: Its database.

    Raises:
        DatabaseError: The database failed.
    """
    known = {sha256 for sha256, _, _ in database.corpora()}
    known.update(sha256 for sha256, _, _ in database.corpus_owners())
    for sha256 in sorted(known):
        path = root / "corpora" / sha256
        if not path.is_file():
            what = "the database knows this corpus, but it does not exist"
            report.repair(what, path, "forgotten", partial(database.forget_corpus, sha256))
