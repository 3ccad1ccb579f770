"""`model_key`, `corpus_key` and others name the blobs of models, corpora and jobs.

::

    models/NAME/VERSION/model.sha256         who has the version: the hash of its file
    models/NAME/VERSION/SHA256.safetensors   the file
    corpora/SHA256                           a corpus
    jobs/ID/FENCE-RANDOM/FILE                a file of a job, as one server had it at one time

No blob changes once it is there: another content has another key. So a server that was stopped for
a while, and then ends what it had begun, damages nothing.
"""

from __future__ import annotations

import secrets

MODELS = "models/"
CORPORA = "corpora/"
JOBS = "jobs/"


def version_prefix(name: str, version: int) -> str:
    """Returns what the keys of a version of a model begin with."""
    return f"{MODELS}{name}/{version}/"


def claim_key(name: str, version: int) -> str:
    """Returns the key of the blob that says which file a version of a model has."""
    return f"{version_prefix(name, version)}model.sha256"


def model_key(name: str, version: int, sha256: str) -> str:
    """Returns the key of the file of a version of a model.

    Args:
        name: The name of the model.
        version: The version.
        sha256: The hash of the file.
    """
    return f"{version_prefix(name, version)}{sha256}.safetensors"


def corpus_key(sha256: str) -> str:
    """Returns the key of the corpus of a hash."""
    return f"{CORPORA}{sha256}"


def job_prefix(job: str) -> str:
    """Returns what the keys of a job's files begin with."""
    return f"{JOBS}{job}/"


def new_job_prefix(job: str, fence: int) -> str:
    """Returns what the keys of files begin with that a server is about to store for a job.

    Args:
        job: The job's id.
        fence: The fence of the server's lease.
    """
    return f"{job_prefix(job)}{fence}-{secrets.token_hex(6)}/"
