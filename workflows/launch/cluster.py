"""The connection to a Kubernetes cluster, and its errors as sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from unic_core.errors import OutageError, UnicError

CONNECT_S, READ_S = 5, 20
TIMEOUT = (CONNECT_S, READ_S)


def connect() -> Any:
    """The API client of the current kubeconfig, or of the service account inside a pod.

    Raises:
        UnicError: there is neither, or the kubeconfig can't be read.
    """
    try:
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            config.load_kube_config(client_configuration=settings)
    except (config.ConfigException, OSError, TypeError) as error:
        raise UnicError(f"no cluster is set up here ({error}); set KUBECONFIG to the cluster's kubeconfig") from None
    settings.retries = 2
    return client.ApiClient(settings)


@contextmanager
def sentences(action: str) -> Iterator[None]:
    """Turn what goes wrong while doing `action`, as in "create the job smoke", into a UnicError.

    It is an OutageError where the API server is away or has trouble of its own, as while its store elects a leader.
    """
    try:
        yield
    except ApiException as error:
        status = error.status or 0
        kind = (
            OutageError
            if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
            else UnicError
        )
        raise kind(f"cannot {action}: {explain(error)}") from error
    except (HTTPError, OSError) as error:
        reason = str(error).partition("(Caused by")[2].strip(" )") or str(error)
        raise OutageError(
            f"cannot {action}: the cluster's API server does not answer ({reason}); check KUBECONFIG and the network"
        ) from error


def explain(error: ApiException) -> str:
    """Why the API server refused, and what to do."""
    message = _message(error)
    if error.status == 401:
        return "the cluster does not accept these credentials; log in again, or correct KUBECONFIG"
    if error.status == 403 and "exceeded quota" in message:
        return f"{message.partition('is forbidden: ')[2]}; ask for less, or have the quota raised"
    if error.status == 403:
        return f"{message}; ask for the role unic-launcher in this namespace (k8s/namespace/access.yaml)"
    if webhook := re.search(r'failed calling webhook "([^"]+)"', message):
        return (
            f"the operator's check {webhook[1]} does not answer; see whether the operator runs, with "
            "kubectl get pods -A (training-operator, kuberay-operator), and try again"
        )
    return message


def _message(error: ApiException) -> str:
    """The API server's own words."""
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
