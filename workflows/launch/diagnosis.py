"""Why a job waits or failed, in sentences: from what the API server knows of its pods and their events."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

Object = dict[str, Any]

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_START = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_QUOTA = re.compile(r"exceeded quota: (?P<quota>[^,]+), (?P<numbers>.*)")


def reasons(pods: Iterable[Object], events: Iterable[Object]) -> tuple[str, ...]:
    """What keeps the pods from running or made them fail; empty when nothing is wrong.

    Args:
        pods: as the API server returns them.
        events: of the job and of its pods.
    """
    found = [sentence for pod in pods for sentence in _pod(pod)]
    found += [sentence for event in events if (sentence := _event(event))]
    return tuple(dict.fromkeys(found))


def last_words(pod: Object) -> str:
    """What the first container that failed wrote into its termination message; empty when there is none."""
    for state in _terminated(pod):
        if state.get("exitCode") and state.get("message"):
            return str(state["message"]).strip().splitlines()[-1]
    return ""


def _pod(pod: Object) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions") or ():
        if condition.get("reason") == "Unschedulable":
            yield (
                f"no node has room for {name} ({condition.get('message', '').rstrip('.')}); "
                "ask for less with --cpu and --memory, or add nodes"
            )
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _PULL:
            yield (
                f"the image {container['image']} can't be pulled ({_short(message) or reason}); push it, correct "
                "--image, or add a pull secret to the pods' service account"
            )
        elif reason in _START:
            advice = "create it as docs/kubernetes.md says" if "not found" in message else "correct the pod's settings"
            yield f"{name} can't start ({message or reason}); {advice}"
    for state in _terminated(pod):
        if state.get("reason") == "OOMKilled":
            limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory", "no limit")
            yield f"{name} ran out of memory (limit {limit}); raise --memory, or lower training.batch"
    if status.get("reason") == "Evicted":
        yield f"{name} was evicted ({status.get('message', '').strip()}); the operator replaces it"


def _event(event: Object) -> str:
    message = event.get("message") or ""
    if match := _QUOTA.search(message):
        return (
            f"the quota {match['quota']} does not allow these pods ({match['numbers']}); ask for less with --cpu "
            "and --memory, or have it raised"
        )
    if "violates PodSecurity" in message:
        reason = message.partition("violates PodSecurity")[2].strip(" .")
        return f"the namespace's pod security standard refuses the pods: {reason}"
    if re.search(r"error looking up service account|serviceaccount .* not found", message):
        return f"{_short(message)}; apply k8s/namespace first"
    return ""


def _terminated(pod: Object) -> Iterator[Object]:
    status = pod.get("status", {})
    for container in [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]:
        for key in ("state", "lastState"):
            state = (container.get(key) or {}).get("terminated")
            if state:
                yield state


def _short(message: str) -> str:
    """The last part of nested errors, which says most."""
    return message.strip().rpartition(": ")[2].strip('" .')
