"""Tell Ray that this node will go: `python -m workflows.launch.drain GCS_ADDRESS NODE_IP SECONDS`.

Training workers then hear of a preemption and save, and the loss of the node is not counted as a failure. A process
of its own, because Ray's client of the control store may hang when the store is gone.
"""

from __future__ import annotations

import sys
import time


def announce(address: str, node_ip: str, seconds: float) -> bool:
    """Announce that the node at `node_ip` leaves in `seconds`; False when the cluster knows no such node."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    store = GcsClient(address=address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    for node in store.get_all_node_info().values():
        if node.node_manager_address == node_ip and node.state == gcs_pb2.GcsNodeInfo.ALIVE:
            deadline_ms = int((time.time() + seconds) * 1000)
            accepted, _ = store.drain_node(node.node_id.hex(), reason, "the pod is being stopped", deadline_ms)
            return bool(accepted)
    return False


if __name__ == "__main__":
    sys.exit(0 if announce(sys.argv[1], sys.argv[2], float(sys.argv[3])) else 1)
