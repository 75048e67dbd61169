"""Starting a run in Kubeflow Pipelines through its own client, and waiting for it."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH, Client
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp_server_api.exceptions import ApiException
from urllib3.exceptions import HTTPError, SSLError

from unic_core.errors import OutageError, UnicError
from workflows.pipeline.compile import compile_pipeline
from workflows.request import PipelineRequest, is_yaml

PAUSE_S = 5.0
PATIENCE_S = 300.0  # how long the server may be away while a run is waited for
SUCCEEDED, ENDED = "SUCCEEDED", {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


class _Client(Client):  # type: ignore[misc]
    """kfp's client. Its own question whether the server is there forgets the answer and logs tracebacks."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        del sleep_duration  # asked once; who waits for a run is patient himself
        return self.healthzs.healthz_service_get_healthz()


@dataclass(frozen=True)
class Kubeflow:
    """Where Kubeflow Pipelines is and how it is entered."""

    host: str | None = None
    """Address of its API or of its pages; None inside the cluster."""
    namespace: str | None = None
    """The user's, where Kubeflow is shared."""
    token_file: Path | None = None
    """A file with a bearer token. Without it the token that Kubeflow mounts into pods is used, where there is one."""
    ca_file: Path | None = None

    def connect(self) -> Client:
        """The client; asks the server one question.

        Raises:
            UnicError: the server can't be found, does not answer, refuses, or is no Kubeflow.
        """
        mounted = Path(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
        token = self.token_file or (mounted if mounted.is_file() else None)
        for file in filter(None, (self.token_file, self.ca_file)):
            if not file.is_file():
                raise UnicError(f"there is no file {file}; correct --token-file or --ca-file")
        if token and not _holds_text(token):
            raise UnicError(f"there is no token in the file {token}; write it there, or correct --token-file")
        if not self.host and "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise UnicError("Kubeflow's address is not known; give --host, as in --host https://kubeflow.example.com")
        place = self.host or "this cluster"
        with warnings.catch_warnings(), sentences(place):
            warnings.simplefilter("ignore")  # about the client's age and the host's scheme
            logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # of every attempt
            client = _Client(
                host=self.host,
                credentials=ServiceAccountTokenVolumeCredentials(str(token)) if token else None,
                ssl_ca_cert=str(self.ca_file) if self.ca_file else None,
                **({"namespace": self.namespace} if self.namespace else {}),
            )
            answer = client.healthzs.healthz_service_get_healthz(_preload_content=False)
        try:
            json.loads(answer.data)
        except ValueError:
            raise _other(place) from None
        return client


@dataclass(frozen=True)
class Submission:
    """One run of the pipeline."""

    request: PipelineRequest
    experiment: str = "unic"
    service_account: str | None = None
    """Of the steps; None leaves the choice to Kubeflow."""
    use_cache: bool = True

    def name(self) -> str:
        """What the run is called in Kubeflow: what it runs, and when it was started."""
        recipe = self.request.recipe
        plain = "recipe" if is_yaml(recipe) else recipe.rpartition("/")[2].removesuffix(".yaml")
        return f"{self.request.run_name or plain} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class Submitted:
    """A run that Kubeflow has accepted."""

    id: str
    name: str
    url: str


def submit(client: Client, kubeflow: Kubeflow, submission: Submission) -> Submitted:
    """Start the run that was asked for.

    Raises:
        UnicError: Kubeflow refuses it, with Kubeflow's reason.
    """
    name = submission.name()
    host, quiet = (kubeflow.host or "").rstrip("/"), redirect_stdout(io.StringIO())  # the client prints links
    with tempfile.TemporaryDirectory() as directory, sentences(host or "this cluster"), quiet:
        file = Path(directory, "unic.yaml")
        compile_pipeline(file, submission.request.image)
        experiment = client.create_experiment(submission.experiment, namespace=kubeflow.namespace)
        run = client.create_run_from_pipeline_package(
            str(file),
            arguments=submission.request.parameters(),
            run_name=name,
            experiment_id=experiment.experiment_id,
            namespace=kubeflow.namespace,
            # True would switch it on for the steps, too, that must not be cached
            enable_caching=None if submission.use_cache else False,
            service_account=submission.service_account,
        )
    return Submitted(run.run_id, name, f"{host}/#/runs/details/{run.run_id}")


def wait(client: Client, run: Submitted, say: Callable[[str], None]) -> int:
    """Follow the run to its end: 0 when it succeeded, else 1.

    Args:
        say: gets a line whenever the state of the run or of a step changes.

    Raises:
        OutageError: the server is away for minutes.
    """
    known: dict[str, str] = {}
    since = time.monotonic()
    while True:
        try:
            with sentences(run.url):
                found = client.get_run(run.id)
            if found.run_id != run.id:
                raise _other(run.url)
            since = time.monotonic()
        except OutageError:
            if time.monotonic() - since > PATIENCE_S:
                raise
            time.sleep(PAUSE_S)
            continue
        for name, state in states(found).items():
            if state and known.get(name) != state:
                known[name] = state
                say(f"{name}: {state.lower()}")
        if found.state in ENDED:
            reason = getattr(found.error, "message", "") or "" if found.state != SUCCEEDED else ""
            say(f"{run.name}: {found.state.lower()}{': ' if reason else ''}{reason}; {run.url}")
            return 0 if found.state == SUCCEEDED else 1
        time.sleep(PAUSE_S)


def states(run: Any) -> dict[str, str]:
    """The state of every step of a run as Kubeflow describes it, by display name; steps of a loop are numbered."""
    details = getattr(run.run_details, "task_details", None) or []
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for task in details:
        name = task.display_name or ""
        if not name or name.endswith("-driver") or name in {"root", "executor"}:
            continue
        seen[name] += 1
        if task.state:
            found[f"{name} {seen[name]}" if seen[name] > 1 else name] = str(task.state)
    return found


@contextmanager
def sentences(place: str) -> Iterator[None]:
    """What goes wrong between here and Kubeflow at `place`, as a UnicError."""
    try:
        yield
    except ApiException as error:
        if error.status in {401, 403}:
            advice = "give --token-file, and --namespace in a shared Kubeflow"
            raise UnicError(f"Kubeflow at {place} refuses access ({error.status}); {advice}") from error
        if error.status == HTTPStatus.TOO_MANY_REQUESTS or (error.status or 0) > HTTPStatus.INTERNAL_SERVER_ERROR:
            raise OutageError(
                f"Kubeflow at {place} answers {error.status}; try again, or see whether it runs"
            ) from error
        raise UnicError(f"Kubeflow at {place} refuses the request: {_reason(error)}") from error
    except (HTTPError, OSError) as error:
        if isinstance(reason := getattr(error, "reason", None), SSLError):
            raise UnicError(
                f"there is no secure connection to Kubeflow at {place} ({reason}); give --ca-file, or correct --host"
            ) from error
        raise OutageError(f"Kubeflow at {place} does not answer; correct --host, or see whether it runs") from error


def _holds_text(file: Path) -> bool:
    try:
        return bool(file.read_text().strip())
    except (OSError, UnicodeDecodeError):
        return False


def _other(place: str) -> UnicError:
    """What is raised where something answers that is no Kubeflow: mostly a page that asks for a login."""
    return UnicError(
        f"what answers at {place} is not Kubeflow Pipelines but perhaps a login; give --token-file, or correct --host"
    )


def _reason(error: ApiException) -> str:
    """The server's own words, the last of its nested reasons."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
    return message.splitlines()[0]
