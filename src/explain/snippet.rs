//! Pods that are ready to be run.

use crate::resource::ResourceName;

/// A Pod that asks for one device of `resource` and lists what it sees. Any image will do where a container runtime
/// adds the driver's programs, so a common one is named.
pub(super) fn pod(resource: &ResourceName) -> String {
    let name = resource.short().replace('.', "-");
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: try-{name}
spec:
  restartPolicy: Never
  # runtimeClassName: nvidia    # where that is not the node's default runtime
  containers:
  - name: look
    image: ubuntu:24.04
    command: [nvidia-smi, -L]
    resources:
      limits:
        {resource}: 1
"
    )
}
