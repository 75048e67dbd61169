"""The MLflow server: where it is, whether it answers, its errors as sentences, links into its pages."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from unic_core.errors import OutageError, UnicError

log = logging.getLogger(__name__)

CHECK_SECONDS = 5
PATIENCE_SECONDS = 60.0


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a database below the working directory. Child processes need it in their environment."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('.unic').absolute()}/mlflow.db"


def redact(text: str) -> str:
    """`text` without the passwords and signatures that a URL can carry."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "", text)
    return re.sub(r"(://[^\s?]+)\?\S*", r"\1", text)


def client() -> MlflowClient:
    """The client of this process for the present tracking URI."""
    return _client(tracking_uri())


@functools.cache
def _client(uri: str) -> MlflowClient:
    # MLflow's own defaults wait four minutes for a server that is gone
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Files go through the server: the address by which it knows its S3 need not lead there from here
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    for chatty in ("alembic", "mlflow.store", "mlflow.system_metrics", "mlflow.tracking"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    database = _database(uri)
    if database is None:
        return MlflowClient(uri)
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with (database.parent / f".{database.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that create the tables at once break the database
            created = MlflowClient(uri)
            created.search_experiments(max_results=1)
    except OSError as error:
        raise UnicError(
            f"cannot create {database}: {error.strerror}; set MLFLOW_TRACKING_URI or change the working directory"
        ) from error
    return created


def check_reachable() -> None:
    """Ask the server one cheap question.

    Raises:
        UnicError: it does not answer within a few seconds, or refuses; the sentence names it.
    """
    uri = tracking_uri()
    with sentences():
        if not uri.startswith("http"):
            client().search_experiments(max_results=1)
            return
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=CHECK_SECONDS,
            raise_on_status=False,
        )
    if answer.status_code == 200:
        return
    place = f"MLflow at {redact(uri)}"
    if answer.status_code == 401 or (answer.status_code == 403 and "Host" not in answer.text):
        raise UnicError(
            f"{place} refuses access ({answer.status_code}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if answer.status_code == 403:
        raise UnicError(f"{place} does not know this host name; start it with --allowed-hosts naming it")
    kind = OutageError if answer.status_code >= 500 else UnicError
    raise kind(f"{place} answers {answer.status_code} instead of 200; correct MLFLOW_TRACKING_URI")


def experiment_id(name: str) -> str:
    """Id of the experiment, made when it is missing."""
    found = client().get_experiment_by_name(name)
    if found is None:
        database = _database(tracking_uri())
        # without a server MLflow would put artifacts below whatever directory a process happens to be in
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            return str(client().create_experiment(name, artifact_location=location))
        except MlflowException as error:
            found = client().get_experiment_by_name(name)
            if found is None:
                raise error
    return _active(found)


def _active(found: Experiment) -> str:
    if found.lifecycle_stage != "active":
        raise UnicError(
            f"the MLflow experiment {found.name!r} is deleted; restore it there or set tracking.experiment to another"
        )
    return str(found.experiment_id)


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """MLflow's errors as UnicError."""
    try:
        yield
    except MlflowException as error:
        place = f"MLflow at {redact(tracking_uri())}"
        if is_outage(error):
            raise OutageError(f"{place} cannot be reached; start it or correct MLFLOW_TRACKING_URI") from error
        lines = redact(error.message).splitlines() or ["no reason given"]
        raise UnicError(f"{place} refuses the request ({lines[0]}); look into its log") from error


def is_outage(error: Exception) -> bool:
    """Whether the server is away or broken, as opposed to refusing the request."""
    return not isinstance(error, MlflowException) or error.get_http_status_code() >= 500


def persist(what: str, action: Callable[[], object], patience: float | None = None) -> None:
    """Do something that a training must not fail for: tried for `patience` (60) seconds, then only a warning."""
    deadline, pause = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience), 1.0
    while True:
        try:
            action()
        except (MlflowException, OSError) as error:
            if is_outage(error) and time.monotonic() + pause < deadline:
                time.sleep(pause)
                pause = min(2 * pause, 10.0)
                continue
            log.warning("MLflow does not have %s: %s", what, redact(str(error)).splitlines()[0])
        return


def run_url(run_id: str) -> str | None:
    """Page of a run; None without a server that has pages.

    MLFLOW_UI_URL says where people find the pages when that is not where processes find the server.
    """
    with sentences():
        experiment = client().get_run(run_id).info.experiment_id
    return _page(f"experiments/{experiment}/runs/{run_id}")


def compare_url(run_ids: Sequence[str]) -> str | None:
    """Page that compares runs; None without a server that has pages."""
    with sentences():
        experiments = sorted({str(client().get_run(run_id).info.experiment_id) for run_id in run_ids})
    runs = quote(json.dumps(list(run_ids)))
    return _page(f"compare-runs?runs={runs}&experiments={quote(json.dumps(experiments))}")


def find_run(experiment: str, tags: dict[str, str]) -> str | None:
    """Id of the newest run that has all these tags."""
    clauses = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client().search_runs([experiment], clauses, ViewType.ACTIVE_ONLY, 1, ["attributes.start_time DESC"])
    return str(found[0].info.run_id) if found else None


def read_artifact(run_id: str, path: str) -> bytes | None:
    """A file that a run stored; None when it has none by this name.

    Raises:
        UnicError: there is no such run, or MLflow cannot be reached or refuses.
    """
    folder = path.rpartition("/")[0]
    with sentences(), tempfile.TemporaryDirectory(prefix="unic-artifact-") as directory:
        client().get_run(run_id)
        if path not in {found.path for found in client().list_artifacts(run_id, folder or None)}:
            return None
        return Path(client().download_artifacts(run_id, path, directory)).read_bytes()


def run_name(run_id: str) -> str:
    """The name that a run is shown by."""
    with sentences():
        return str(client().get_run(run_id).info.run_name or run_id)


def _page(path: str) -> str | None:
    uri = redact(os.environ.get("MLFLOW_UI_URL") or tracking_uri()).rstrip("/")
    return f"{uri}/#/{path}" if uri.startswith("http") else None


def _database(uri: str) -> Path | None:
    """The file behind a sqlite URI."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
