"""Where and how the pod of a step runs: image, resources, security, time-out, settings, placement."""

from __future__ import annotations

from typing import Any

from kfp import kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

from workflows.launch.pods import GPU, MLFLOW_SECRET, S3_SECRET, SETTINGS, USER

HOUR = 3600
SHARED_MEMORY = "/dev/shm"  # noqa: S108 (the mount point, nothing temporary is written by name)
KEYS = {
    S3_SECRET: ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    MLFLOW_SECRET: ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
}
ADDRESSES = (
    *("AWS_ENDPOINT_URL_S3", "AWS_REGION", "MLFLOW_TRACKING_URI", "MLFLOW_UI_URL", "KFP_UI_URL"),
    *("UNIC_TEACHERS", "HF_HUB_OFFLINE"),
)


def place(task: Any, image: Any, cpu: Any, memory: Any, hours: float, gpus: Any = None, shm: str = "64Mi") -> Any:
    """Describe the pod of `task`; it passes a namespace that enforces the `restricted` pod security standard.

    Args:
        image, cpu, memory, gpus: plain values or parameters of the pipeline. `gpus` None: the step never has one.
        hours: the step is ended after so long, the pulling of its image included.
        shm: size of /dev/shm, a part of `memory`.
    """
    task.set_container_image(image).set_cpu_limit(cpu).set_memory_limit(memory)
    task.set_cpu_request("100m")  # the limit alone would be reserved in full; of memory it has to be
    # the compiler passes a parameter into a loop for the image's sake, but not for the resources' sake
    resources = (value for value in (cpu, memory, gpus) if isinstance(value, PipelineChannel))
    task.register_pipeline_channels(list(resources))
    if gpus is not None:
        task.set_accelerator_type(GPU).set_accelerator_limit(gpus)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_timeout(task, int(hours * HOUR))
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.add_node_selector(task, "kubernetes.io/os", "linux")
    # every step: in a cluster of GPU nodes only, the others have nowhere else to go
    kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(task, volume_name="shm", mount_path=SHARED_MEMORY, medium="Memory", size_limit=shm)
    for secret, keys in KEYS.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    kubernetes.use_config_map_as_env(task, SETTINGS, {key: key for key in ADDRESSES}, optional=True)
    # by field path: a parameter with the run's id would make every cache key unique
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
    return task
